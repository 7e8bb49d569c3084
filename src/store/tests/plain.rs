//! Plain mode, and what holds in every mode: names, handles, what the kernel is told.

use super::*;

#[test]
fn a_plain_file_is_read_and_written_where_it_is_said() {
    let w = World::new();
    let mut file = w.open(ROOT, b"f", READ_WRITE);
    w.put(&mut file, b"hello world");
    file.at = 0;
    w.put(&mut file, b"J");
    assert_eq!(w.read(file, 0, 100), b"Jello world");
    w.ftruncate(file, 5).unwrap();
    assert_eq!(w.read(file, 0, 100), b"Jello");
    w.close(file);
    assert_eq!(w.cat(ROOT, b"f"), b"Jello");
}

#[test]
fn o_append_and_o_trunc_work_in_plain_mode() {
    let w = World::new();
    let mut one = w.open(ROOT, b"f", APPEND);
    let mut two = w.open(ROOT, b"f", APPEND);
    w.put(&mut one, b"1");
    w.put(&mut two, b"2");
    w.put(&mut one, b"3");
    assert_eq!(w.cat(ROOT, b"f"), b"123");
    w.close(w.open(ROOT, b"f", TRUNCATE));
    assert_eq!(w.cat(ROOT, b"f"), b"");
}

#[test]
fn a_plain_write_handle_stays_on_its_inode() {
    let w = World::new();
    let mut file = w.open(ROOT, b"f", APPEND);
    w.put(&mut file, b"1");
    w.mv(ROOT, b"f", b"g");
    w.put(&mut file, b"2");
    assert_eq!(w.cat(ROOT, b"g"), b"12");
    assert!(!w.exists(ROOT, b"f"));
    w.store.unlink(&WRITER, ROOT, b"g").unwrap();
    w.put(&mut file, b"3");
    let used = w.files_used();
    w.close(file);
    assert_eq!(w.files_used(), used - 1);
}

#[test]
fn the_kernel_is_told_what_it_may_believe() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let values = w.dir(b"values", b"value");
    for (dir, flags, expected) in [
        // direct_io, keep_cache, no_flush
        (ROOT, READ_WRITE, (false, true, true)),
        (ROOT, READ, (false, true, true)),
        (logs, READ, (true, false, true)),
        (logs, APPEND, (true, false, true)),
        (logs, READ_WRITE, (true, false, true)),
        (values, READ, (true, false, true)),
        (values, WRITE, (true, false, false)),
    ] {
        if !w.exists(dir, b"f") {
            w.close(w.open(dir, b"f", WRITE));
        }
        let ino = w.attr(dir, b"f").ino;
        let opened = w.store.open(&WRITER, ino, flags).unwrap();
        let told = (opened.direct_io, opened.keep_cache, opened.no_flush);
        assert_eq!(told, expected, "{dir} {flags:?}");
        w.store.release(ino, opened.fh).unwrap();
    }
    let cacheable = |dir| w.store.lookup(&WRITER, dir, b"f").unwrap().cacheable;
    assert!(cacheable(ROOT));
    assert!(!cacheable(logs));
    assert!(cacheable(values));
    let writer = w.open(values, b"f", WRITE);
    assert!(!cacheable(values));
    w.close(writer);
    assert!(
        w.store.getattr(logs, None).unwrap().cacheable,
        "a directory"
    );
}

#[test]
fn the_door_has_no_other_use() {
    let w = World::new();
    let file = w.open(ROOT, b"f", WRITE);
    let refused = [
        errno(w.store.mkdir(&WRITER, ROOT, b".cask", 0o755)),
        errno(w.store.create(&WRITER, ROOT, b".cask", 0o644, WRITE)),
        errno(w.store.symlink(&WRITER, ROOT, b".cask", b"x")),
        errno(w.store.link(&WRITER, file.ino, ROOT, b".cask")),
        errno(w.mv_by(&WRITER, ROOT, b"f", b".cask")),
        errno(
            w.store
                .mknod(&WRITER, ROOT, b".cask", FileKind::Fifo, 0o644, 0),
        ),
    ];
    assert_eq!(refused, [libc::EPERM; 6]);
}

#[test]
fn wrong_handles_are_refused() {
    let w = World::new();
    let file = w.open(ROOT, b"f", WRITE);
    let mut buf = Vec::new();
    assert_eq!(
        errno(w.store.read(file.ino, file.fh, 0, 1, &mut buf)),
        libc::EBADF
    );
    let reader = w.open(ROOT, b"f", READ);
    assert_eq!(
        errno(w.store.write(&WRITER, reader.ino, reader.fh, 0, b"x")),
        libc::EBADF
    );
    w.close(file);
    assert_eq!(errno(w.store.release(file.ino, file.fh)), libc::EBADF);
}

#[test]
fn readdir_gives_attributes_and_goes_on_after_a_full_buffer() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    for name in [b"a", b"b", b"c"] {
        w.close(w.open(logs, name, WRITE));
    }
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let before = names.len();
        let mut room = 2;
        w.store
            .readdir(logs, cookie, true, &mut |entry, with| {
                let with = with.unwrap();
                assert_eq!(with.attr.ino, entry.ino);
                assert_eq!(with.cacheable, entry.kind == FileKind::Directory);
                if room == 0 {
                    return false;
                }
                room -= 1;
                cookie = entry.cookie;
                names.push(entry.name.clone());
                true
            })
            .unwrap();
        if names.len() == before {
            break;
        }
    }
    names.sort();
    assert_eq!(names, [&b"."[..], b"..", b"a", b"b", b"c"]);
}

#[test]
fn a_create_that_finds_the_file_after_all_opens_it_only_with_plain_permission() {
    let w = World::new();
    let create = |caller: &Caller, flags| w.store.create(caller, ROOT, b"f", 0o640, flags);
    let (made, _) = create(&WRITER, WRITE).unwrap();
    let (again, _) = create(&WRITER, WRITE).unwrap();
    assert_eq!(made.attr.ino, again.attr.ino);
    assert_eq!(errno(create(&WRITER, EXCLUSIVE)), libc::EEXIST);
    let stranger = Caller {
        uid: 5,
        gid: 5,
        tid: 5,
    };
    assert_eq!(errno(create(&stranger, READ_WRITE)), libc::ESTALE);
    let colleague = Caller {
        uid: 5,
        gid: 100,
        tid: 5,
    };
    create(&colleague, READ).unwrap();
    assert_eq!(errno(create(&colleague, WRITE)), libc::ESTALE);
    create(&ROOT_USER, READ_WRITE).unwrap();
}

#[test]
fn thousands_of_handles() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut files: Vec<File> = (0..3000).map(|_| w.open(logs, b"a", APPEND)).collect();
    files.iter_mut().for_each(|file| w.put(file, b"x\n"));
    w.mv(logs, b"a", b"a.1");
    files.iter_mut().for_each(|file| w.put(file, b"y\n"));
    assert_eq!(w.cat(logs, b"a.1"), b"x\n".repeat(3000));
    assert_eq!(w.cat(logs, b"a"), b"y\n".repeat(3000));
    files.into_iter().for_each(|file| w.close(file));
    assert!(w.store.bindings.find(logs, b"a").is_none());
}
