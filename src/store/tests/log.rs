//! Log mode without a cut: where writes land and which are refused.

use super::*;

#[test]
fn appends_land_at_the_end_whatever_the_offset() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut one = w.open(logs, b"a", APPEND);
    let mut two = w.open(logs, b"a", APPEND);
    w.put(&mut one, b"1\n");
    two.at = 1_000_000;
    w.put(&mut two, b"2\n");
    one.at = 0;
    w.put(&mut one, b"3\n");
    assert_eq!(w.cat(logs, b"a"), b"1\n2\n3\n");
}

#[test]
fn a_writer_without_o_append_goes_on_where_it_was() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", TRUNCATE);
    w.put(&mut file, b"1\n");
    let mut other = w.open(logs, b"a", APPEND);
    w.put(&mut other, b"other\n");
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(logs, b"a"), b"1\nother\n2\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"3\n");
    assert_eq!(w.cat(logs, b"a"), b"3\n", "no hole after a cut");
    w.truncate(w.attr(logs, b"a").ino, 0).unwrap();
    w.put(&mut file, b"4\n");
    assert_eq!(w.cat(logs, b"a"), b"4\n", "no hole after a truncation");
}

#[test]
fn a_seek_forward_appends_zeros_and_a_seek_backward_is_refused() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", WRITE);
    w.put(&mut file, b"ab");
    file.at += 3;
    w.put(&mut file, b"cd");
    assert_eq!(w.cat(logs, b"a"), b"ab\0\0\0cd");
    file.at = 4;
    assert_eq!(errno(w.write(&mut file, b"x")), libc::EPERM);
    file.at = 7 + (1 << 30);
    w.put(&mut file, b"!");
    let attr = w.attr(logs, b"a");
    assert_eq!(attr.size, 8 + (1 << 30));
    assert!(attr.blocks < 100, "the gap takes no room");
    file.at = u64::MAX >> 1;
    assert_eq!(errno(w.write(&mut file, b"x")), libc::EFBIG);
}

#[test]
fn nothing_written_is_changed() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"0123456789");
    let mut over = w.open(logs, b"a", WRITE);
    assert_eq!(errno(w.write(&mut over, b"X")), libc::EPERM, "at the start");
    over.at = 10;
    w.put(&mut over, b"X");
    assert_eq!(errno(w.ftruncate(file, 3)), libc::EPERM);
    assert_eq!(errno(w.truncate(file.ino, 3)), libc::EPERM);
    let allocate = |mode, offset, len| w.store.fallocate(file.ino, file.fh, mode, offset, len);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(errno(allocate(punch, 0, 4)), libc::EPERM);
    assert_eq!(
        errno(allocate(libc::FALLOC_FL_ZERO_RANGE, 0, 4)),
        libc::EPERM
    );
    assert_eq!(errno(allocate(0, 0, 4096)), libc::EPERM);
    allocate(libc::FALLOC_FL_KEEP_SIZE, 0, 4096).unwrap();
    allocate(0, 0, 10).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"0123456789X");
    w.ftruncate(file, 13).unwrap();
    w.ftruncate(file, 13).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"0123456789X\0\0");
}

#[test]
fn a_closed_log_is_neither_shortened() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"abc");
    w.close(file);
    assert_eq!(errno(w.truncate(file.ino, 2)), libc::EPERM);
    w.truncate(file.ino, 4).unwrap();
    w.truncate(file.ino, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"");
}

#[test]
fn a_large_write_is_one_append() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", APPEND);
    let big: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251) as u8).collect();
    w.put(&mut file, b"head\n");
    w.put(&mut file, &big);
    w.put(&mut file, b"tail\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, &big);
    assert_eq!(
        w.cat(logs, b"a.1"),
        [b"head\n", &big[..], b"tail\n"].concat()
    );
    assert_eq!(w.cat(logs, b"a"), big);
}

#[test]
fn appends_of_many_threads_are_whole_and_in_order() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u32)
            .map(|writer| {
                let w = &w;
                scope.spawn(move || {
                    let mut file = w.open(logs, b"a", APPEND);
                    for line in 0..300u32 {
                        // Some are long enough to be staged.
                        let fill = if line % 50 == 7 { 70_000 } else { 20 };
                        let text = format!("{writer} {line} {}\n", "x".repeat(fill));
                        w.put(&mut file, text.as_bytes());
                    }
                    w.close(file);
                })
            })
            .collect();
        let cutter = scope.spawn(|| {
            let mut cuts = 0;
            while !done.load(Ordering::SeqCst) {
                let name = format!("a.{cuts:06}");
                match w.mv_by(&ROOT_USER, logs, b"a", name.as_bytes()) {
                    Ok(()) => cuts += 1,
                    Err(Error::NotFound) => {}
                    Err(error) => panic!("{error}"),
                }
                std::thread::yield_now();
            }
        });
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::SeqCst);
        cutter.join().unwrap();
    });
    let mut next = [0u32; 4];
    // `a` sorts before `a.000000`, but is the newest.
    let mut names = w.names(logs);
    if names.first().is_some_and(|name| name == "a") {
        names.rotate_left(1);
    }
    for name in names {
        for line in w
            .cat(logs, name.as_bytes())
            .split_inclusive(|b| *b == b'\n')
        {
            let text = std::str::from_utf8(line).unwrap();
            assert!(text.ends_with("x\n"), "torn: {text:?}");
            let mut words = text.split(' ');
            let writer: usize = words.next().unwrap().parse().unwrap();
            let number: u32 = words.next().unwrap().parse().unwrap();
            assert_eq!(number, next[writer], "writer {writer}");
            next[writer] += 1;
        }
    }
    assert_eq!(next, [300; 4]);
}

#[test]
fn no_second_name_for_a_live_log_and_no_exchange() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let file = w.open(logs, b"a", APPEND);
    w.close(w.open(logs, b"b", APPEND));
    assert_eq!(
        errno(w.store.link(&WRITER, file.ino, logs, b"c")),
        libc::EPERM
    );
    let exchange = RenameFlags {
        exchange: true,
        ..RenameFlags::default()
    };
    let swap = |a: &[u8], b: &[u8]| w.store.rename(&WRITER, logs, a, logs, b, exchange);
    assert_eq!(errno(swap(b"a", b"b")), libc::EINVAL);
    assert_eq!(errno(swap(b"b", b"a")), libc::EINVAL);
    w.close(file);
    swap(b"a", b"b").unwrap();
    w.store.link(&WRITER, file.ino, logs, b"c").unwrap();
}

#[test]
fn a_file_whose_name_is_gone_is_appended_to_itself() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.close(w.open(logs, b"a", APPEND));
    let ino = w.attr(logs, b"a").ino;
    let reader = w.open(logs, b"a", READ);
    w.store.unlink(&WRITER, logs, b"a").unwrap();
    // As by /proc/self/fd.
    let opened = w.store.open(&WRITER, ino, APPEND).unwrap();
    w.close(reader);
    let mut file = File {
        ino,
        fh: opened.fh,
        at: 0,
    };
    w.put(&mut file, b"still here\n");
    assert_eq!(w.names(logs), Vec::<String>::new());
    assert_eq!(w.store.getattr(ino, None).unwrap().attr.size, 11);
    let used = w.files_used();
    w.close(file);
    assert_eq!(w.files_used(), used - 1);
}

#[test]
fn one_life_of_flush_and_sync() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.set(logs, "flush", b"0");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    w.set(logs, "sync", b"1");
    w.put(&mut file, b"2\n");
    let stats = w.store.cask().stats();
    assert_eq!(stats.durable_lsn, stats.lsn);
    w.set(logs, "sync", b"0");
    w.put(&mut file, b"3\n");
    assert!(w.store.cask().stats().durable_lsn < w.store.cask().stats().lsn);
    w.store.fsync(file.ino, file.fh, true).unwrap();
    let stats = w.store.cask().stats();
    assert_eq!(stats.durable_lsn, stats.lsn);
    let mut sync = w.open(
        logs,
        b"a",
        OpenFlags {
            sync: true,
            ..APPEND
        },
    );
    w.put(&mut sync, b"4\n");
    let stats = w.store.cask().stats();
    assert_eq!(stats.durable_lsn, stats.lsn);
}

#[test]
fn with_assemble_records_in_pieces_do_not_interleave() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.set(logs, "assemble", b"1");
    let (mut one, mut two) = (w.open(logs, b"a", APPEND), w.open(logs, b"a", WRITE));
    w.put(&mut one, b"1 beg");
    w.put(&mut two, b"2 whole\n2 beg");
    assert_eq!(w.cat(logs, b"a"), b"2 whole\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut one, b"un\n1 more\n1 last");
    w.put(&mut two, b"un");
    w.put(&mut two, b", too\n");
    assert_eq!(w.cat(logs, b"a.1"), b"2 whole\n");
    let text = b"1 begun\n1 more\n2 begun, too\n";
    assert_eq!(w.cat(logs, b"a"), text);
    // Closing and syncing leave nothing behind.
    w.close(one);
    assert_eq!(w.cat(logs, b"a"), [text.as_slice(), b"1 last"].concat());
    w.put(&mut two, b"x");
    w.store.fsync(two.ino, two.fh, false).unwrap();
    assert_eq!(w.cat(logs, b"a"), [text.as_slice(), b"1 lastx"].concat());
}

#[test]
fn what_is_kept_back_is_bounded_and_goes_when_the_setting_does() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.set(logs, "assemble", b"1");
    let mut file = w.open(logs, b"a", WRITE);
    let half = vec![b'x'; 600 << 10];
    w.put(&mut file, &half);
    assert_eq!(w.attr(logs, b"a").size, 0);
    w.put(&mut file, &half);
    assert_eq!(w.attr(logs, b"a").size, 1200 << 10);
    w.put(&mut file, b"begun");
    w.set(logs, "assemble", b"0");
    w.put(&mut file, b" and ended");
    assert_eq!(w.attr(logs, b"a").size, (1200 << 10) + 15);
    w.set(logs, "assemble", b"1");
    w.put(&mut file, b"kept");
    // Of a seek nothing is kept.
    file.at += 10;
    w.put(&mut file, b"after a hole");
    assert_eq!(w.attr(logs, b"a").size, (1200 << 10) + 15 + 4 + 10 + 12);
}
