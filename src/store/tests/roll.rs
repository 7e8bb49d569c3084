//! The rename rule: cuts, carried records, adoption, removal.

use super::*;

/// A log store with one writer that has written this.
fn log_with(data: &[u8]) -> (World, Number, File) {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, data);
    (w, logs, file)
}

#[test]
fn a_rename_cuts_and_the_next_record_begins_a_new_log() {
    let (w, logs, mut file) = log_with(b"1\n");
    let old = w.attr(logs, b"a");
    let set = SetAttr {
        perm: Some(0o620),
        uid: Some(7),
        gid: Some(8),
        ..SetAttr::default()
    };
    w.store.setattr(&ROOT_USER, old.ino, None, &set).unwrap();
    w.mv(logs, b"a", b"a.1");
    assert!(!w.exists(logs, b"a"), "absent until the next record");
    w.at(1_001);
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(logs, b"a.1"), b"1\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n");
    let (segment, live) = (w.attr(logs, b"a.1"), w.attr(logs, b"a"));
    assert_eq!(segment.ino, old.ino);
    assert_ne!(live.ino, old.ino);
    assert_eq!((live.perm, live.uid, live.gid), (0o620, 7, 8));
    assert_eq!(segment.mtime, Timestamp::from_secs(1_000));
    assert_eq!(live.mtime, Timestamp::from_secs(1_001));
}

#[test]
fn all_handles_of_a_name_move_together_and_two_cuts_are_two() {
    let (w, logs, mut one) = log_with(b"1\n");
    let mut two = w.open(logs, b"a", APPEND);
    w.put(&mut two, b"2\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut two, b"3\n");
    w.put(&mut one, b"4\n");
    w.mv(logs, b"a", b"a.2");
    w.put(&mut one, b"5\n");
    assert_eq!(w.cat(logs, b"a.1"), b"1\n2\n");
    assert_eq!(w.cat(logs, b"a.2"), b"3\n4\n");
    assert_eq!(w.cat(logs, b"a"), b"5\n");
    assert_eq!(errno(w.mv_by(&ROOT_USER, logs, b"b", b"b.1")), libc::ENOENT);
}

#[test]
fn a_begun_record_is_carried() {
    let (w, logs, mut file) = log_with(b"whole\nbeg");
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.cat(logs, b"a.1"), b"whole\n");
    assert_eq!(w.cat(logs, b"a"), b"beg");
    w.put(&mut file, b"un\n");
    assert_eq!(w.cat(logs, b"a"), b"begun\n");
    assert_eq!(w.cat(logs, b"a.1"), b"whole\n");
    assert!(w.heard().contains(&Notice::InvalidateInode(file.ino)));
}

#[test]
fn a_record_in_many_pieces_is_carried_again_and_again() {
    let (w, logs, mut file) = log_with(b"0\nab");
    w.put(&mut file, b"cd");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"ef");
    w.mv(logs, b"a", b"a.2");
    w.mv(logs, b"a", b"a.3");
    w.put(&mut file, b"gh\n");
    assert_eq!(w.cat(logs, b"a.1"), b"0\n");
    assert_eq!(w.cat(logs, b"a.2"), b"");
    assert_eq!(w.cat(logs, b"a.3"), b"");
    assert_eq!(w.cat(logs, b"a"), b"abcdefgh\n");
}

#[test]
fn begun_records_of_two_handles_are_carried_together() {
    let (w, logs, mut one) = log_with(b"x\nab");
    let mut two = w.open(logs, b"a", APPEND);
    w.put(&mut two, b"cd");
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.cat(logs, b"a.1"), b"x\n");
    assert_eq!(w.cat(logs, b"a"), b"abcd");
    w.put(&mut one, b"1\n");
    w.put(&mut two, b"2\n");
    w.mv(logs, b"a", b"a.2");
    assert_eq!(w.cat(logs, b"a.2"), b"abcd1\n2\n");
    assert!(!w.exists(logs, b"a"));
}

#[test]
fn what_nobody_is_in_the_middle_of_is_renamed_as_it_is() {
    // A log whose writer closed without a newline, one that is open for reading only, and one whose
    // open writer is not inside a record.
    let (w, logs, file) = log_with(b"1\nno newline");
    let mut idle = w.open(logs, b"a", APPEND);
    w.close(file);
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.cat(logs, b"a.1"), b"1\nno newline");
    assert!(!w.exists(logs, b"a"));
    w.put(&mut idle, b"2\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n");

    let mut image = w.open(logs, b"x.gz", WRITE);
    w.put(&mut image, &[7; 5000]);
    w.close(image);
    w.mv(logs, b"x.gz", b"y.gz");
    assert_eq!(w.cat(logs, b"y.gz"), [7; 5000]);
}

#[test]
fn only_what_the_open_handle_wrote_is_carried() {
    let (w, logs, first) = log_with(b"1\nleft by the dead ");
    w.close(first);
    let mut second = w.open(logs, b"a", APPEND);
    w.put(&mut second, b"begun");
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.cat(logs, b"a.1"), b"1\nleft by the dead ");
    assert_eq!(w.cat(logs, b"a"), b"begun");
}

#[test]
fn without_records_and_beyond_one_mib_the_cut_is_at_the_byte() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.set(logs, "record", b"none");
    w.put(&mut file, b"abc");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"def");
    assert_eq!(w.cat(logs, b"a.1"), b"1\nabc");
    assert_eq!(w.cat(logs, b"a"), b"def");

    w.set(logs, "record", b"\\n");
    w.put(&mut file, b"\n");
    let half = vec![b'z'; 1 << 19];
    w.put(&mut file, &half);
    w.put(&mut file, &half);
    w.mv(logs, b"a", b"a.2");
    assert_eq!(w.cat(logs, b"a.2"), b"def\n");
    assert_eq!(w.cat(logs, b"a").len(), 1 << 20, "exactly 1 MiB is carried");
    w.put(&mut file, b"z");
    w.mv(logs, b"a", b"a.3");
    assert_eq!(w.cat(logs, b"a.3").len(), (1 << 20) + 1);
    assert!(!w.exists(logs, b"a"));
    w.put(&mut file, b"end\n");
    assert_eq!(w.cat(logs, b"a"), b"end\n");
}

#[test]
fn another_delimiter() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.set(logs, "record", b"\\x1e");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"one\n\x1etwo\n");
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.cat(logs, b"a.1"), b"one\n\x1e");
    assert_eq!(w.cat(logs, b"a"), b"two\n");
}

#[test]
fn a_cut_into_another_directory_leaves_the_live_log_where_it_was() {
    let (w, logs, mut file) = log_with(b"1\nbegun");
    let old = w
        .store
        .mkdir(&ROOT_USER, ROOT, b"old", 0o755)
        .unwrap()
        .attr
        .ino;
    let flags = RenameFlags::default();
    w.store
        .rename(&ROOT_USER, logs, b"a", old, b"a.1", flags)
        .unwrap();
    w.put(&mut file, b" here\n");
    assert_eq!(w.cat(old, b"a.1"), b"1\n");
    assert_eq!(w.cat(logs, b"a"), b"begun here\n");
    assert_eq!(w.names(old), ["a.1"]);
}

#[test]
fn a_cut_over_an_older_segment_replaces_it_or_not_as_asked() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"2\nbeg");
    let keep = RenameFlags {
        no_replace: true,
        ..RenameFlags::default()
    };
    let refused = w.store.rename(&ROOT_USER, logs, b"a", logs, b"a.1", keep);
    assert_eq!(errno(refused), libc::EEXIST);
    assert_eq!(
        w.cat(logs, b"a"),
        b"2\nbeg",
        "a refused cut changes nothing"
    );
    let used = w.files_used();
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.cat(logs, b"a.1"), b"2\n");
    w.put(&mut file, b"un\n");
    assert_eq!(w.cat(logs, b"a"), b"begun\n");
    assert_eq!(w.files_used(), used);
}

#[test]
fn renamed_over_a_live_log_the_writers_go_on_in_that_file() {
    let (w, logs, mut file) = log_with(b"old\nbegun");
    let mut other = w.open(ROOT, b"new", WRITE);
    w.put(&mut other, b"header\n");
    w.close(other);
    let flags = RenameFlags::default();
    w.store
        .rename(&ROOT_USER, ROOT, b"new", logs, b"a", flags)
        .unwrap();
    w.put(&mut file, b" end\n");
    assert_eq!(w.cat(logs, b"a"), b"header\n end\n");
    assert_eq!(w.attr(logs, b"a").ino, other.ino);
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"next\n");
    assert_eq!(w.cat(logs, b"a"), b"next\n");
}

#[test]
fn one_live_log_over_another() {
    let (w, logs, mut a) = log_with(b"a1\na");
    let mut b = w.open(logs, b"b", APPEND);
    w.put(&mut b, b"b1\n");
    w.mv(logs, b"a", b"b");
    w.put(&mut a, b"2\n");
    w.put(&mut b, b"b2\n");
    assert_eq!(w.cat(logs, b"a"), b"a2\n");
    assert_eq!(w.cat(logs, b"b"), b"a1\nb2\n");
}

#[test]
fn renaming_a_log_to_itself_is_nothing() {
    let (w, logs, mut file) = log_with(b"1\nbeg");
    w.mv(logs, b"a", b"a");
    w.put(&mut file, b"un\n");
    assert_eq!(w.cat(logs, b"a"), b"1\nbegun\n");
}

#[test]
fn a_removed_live_log_frees_its_space_at_once_and_comes_back() {
    let (w, logs, mut file) = log_with(&[b'x'; 300_000]);
    let free = |w: &World| w.store.statfs().unwrap().blocks_free;
    let (before, used) = (free(&w), w.files_used());
    w.store.unlink(&WRITER, logs, b"a").unwrap();
    assert!(free(&w) >= before + 300_000 / 4096);
    assert_eq!(w.files_used(), used - 1);
    let ghost = w.store.getattr(file.ino, None).unwrap();
    assert_eq!(
        (ghost.attr.nlink, ghost.attr.size, ghost.attr.ino),
        (0, 0, file.ino)
    );
    w.put(&mut file, b"again\n");
    assert_eq!(w.cat(logs, b"a"), b"again\n");
    assert_eq!(w.attr(logs, b"a").perm, 0o644);
    w.close(file);
    assert_eq!(errno(w.store.getattr(file.ino, None)), libc::ESTALE);
}

#[test]
fn a_reading_writer_keeps_the_file_it_reads() {
    let (w, logs, file) = log_with(b"1\n2\n");
    w.close(file);
    let both = w.open(logs, b"a", READ_WRITE);
    let idle = w.open(logs, b"a", READ_WRITE);
    assert_eq!(w.read(both, 0, 2), b"1\n");
    w.store.unlink(&WRITER, logs, b"a").unwrap();
    assert_eq!(w.read(both, 2, 10), b"2\n");
    assert_eq!(w.read(idle, 0, 2), b"1\n", "it is still there");
    w.close(both);
    w.close(idle);
    let late = w.open(logs, b"b", READ_WRITE);
    w.store.unlink(&WRITER, logs, b"b").unwrap();
    assert_eq!(
        w.read(late, 0, 10),
        b"",
        "nothing was kept for who had read nothing"
    );
    w.close(late);
}

#[test]
fn a_reader_stays_on_the_segment() {
    let (w, logs, mut file) = log_with(b"1\n");
    let reader = w.open(logs, b"a", READ);
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"2\n");
    assert_eq!(w.read(reader, 0, 10), b"1\n");
    w.store.unlink(&WRITER, logs, b"a.1").unwrap();
    assert_eq!(w.read(reader, 0, 10), b"1\n");
}

#[test]
fn without_an_open_writer_a_rename_is_a_rename() {
    let (w, logs, file) = log_with(b"1\nbegun");
    w.close(file);
    w.mv(logs, b"a", b"b");
    assert_eq!(w.cat(logs, b"b"), b"1\nbegun");
    let mut again = w.open(logs, b"b", APPEND);
    w.put(&mut again, b" on\n");
    assert_eq!(w.cat(logs, b"b"), b"1\nbegun on\n");
}

#[test]
fn bindings_follow_a_renamed_directory() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(ROOT, b"logs", b"journal");
    w.put(&mut file, b"2\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"3\n");
    assert_eq!(w.cat(logs, b"a.1"), b"1\n2\n");
    assert_eq!(w.cat(logs, b"a"), b"3\n");
}

#[test]
fn a_log_whose_directory_is_removed_cannot_be_written() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.store.unlink(&WRITER, logs, b"a").unwrap();
    w.store.rmdir(&WRITER, ROOT, b"logs").unwrap();
    assert_eq!(errno(w.write(&mut file, b"2\n")), libc::ENOENT);
    w.close(file);
}

#[test]
fn a_directory_in_the_place_of_a_log_cannot_be_written() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    w.store.mkdir(&WRITER, logs, b"a", 0o755).unwrap();
    assert_eq!(errno(w.write(&mut file, b"2\n")), libc::EISDIR);
    w.store.rmdir(&WRITER, logs, b"a").unwrap();
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n");
}

#[test]
fn somebody_elses_new_file_becomes_the_live_log() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    let mut other = w.open(logs, b"a", APPEND);
    w.put(&mut other, b"2\n");
    w.put(&mut file, b"3\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n3\n");
}

#[test]
fn the_renaming_thread_does_not_see_the_name_and_its_create_adopts_the_log() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"2\n");
    assert!(w.exists(logs, b"a"));
    assert_eq!(errno(w.store.lookup(&ROOT_USER, logs, b"a")), libc::ENOENT);
    let live = w.attr(logs, b"a").ino;
    let (entry, opened) = w
        .store
        .create(&ROOT_USER, logs, b"a", 0o600, EXCLUSIVE)
        .unwrap();
    assert_eq!(entry.attr.ino, live);
    assert_eq!(
        (entry.attr.perm, entry.attr.uid, entry.attr.gid),
        (0o600, 0, 0)
    );
    w.store.release(live, opened.fh).unwrap();
    assert!(w.store.lookup(&ROOT_USER, logs, b"a").is_ok());
    assert_eq!(w.cat(logs, b"a"), b"2\n", "adopting drops nothing");
    let again = w.store.create(&ROOT_USER, logs, b"a", 0o600, EXCLUSIVE);
    assert_eq!(errno(again), libc::EEXIST);
}

#[test]
fn an_adopting_writer_without_o_append_writes_behind_what_came() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"2\n");
    let mut adopted = w
        .open_by(
            &ROOT_USER,
            logs,
            b"a",
            OpenFlags {
                truncate: true,
                ..EXCLUSIVE
            },
        )
        .unwrap();
    w.put(&mut adopted, b"3\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n3\n");
}

#[test]
fn mknod_adopts_as_create_does() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"2\n");
    let kind = FileKind::Regular;
    let entry = w
        .store
        .mknod(&ROOT_USER, logs, b"a", kind, 0o604, 0)
        .unwrap();
    assert_eq!(
        (entry.attr.perm, entry.attr.uid, entry.attr.size),
        (0o604, 0, 2)
    );
    assert_eq!(
        errno(w.store.mknod(&ROOT_USER, logs, b"a", kind, 0o604, 0)),
        libc::EEXIST
    );
}

#[test]
fn the_absence_ends_after_five_seconds_or_with_a_rename_onto_the_name() {
    let (w, logs, mut file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    w.put(&mut file, b"2\n");
    let sees = |w: &World| w.store.lookup(&ROOT_USER, logs, b"a").is_ok();
    w.clock.set(Timestamp {
        secs: 1_004,
        nanos: 999_999_999,
    });
    assert!(!sees(&w));
    w.at(1_005);
    assert!(sees(&w));
    w.store.tick().unwrap();
    w.mv(logs, b"a", b"a.2");
    w.put(&mut file, b"3\n");
    assert!(!sees(&w));
    w.mv(logs, b"a.2", b"a");
    assert!(sees(&w));
    assert_eq!(w.cat(logs, b"a"), b"2\n");
}

#[test]
fn every_cut_of_a_log_is_followed_by_the_absence_and_no_plain_rename_is() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.close(w.open(logs, b"a", APPEND));
    w.mv(logs, b"a", b"a.1");
    w.close(w.open(logs, b"a", APPEND));
    assert_eq!(errno(w.store.lookup(&ROOT_USER, logs, b"a")), libc::ENOENT);
    w.close(w.open(ROOT, b"p", WRITE));
    w.mv(ROOT, b"p", b"q");
    w.close(w.open(ROOT, b"p", WRITE));
    assert!(w.store.lookup(&ROOT_USER, ROOT, b"p").is_ok());
}

#[test]
fn who_looked_before_the_cut_and_opens_after_it_looks_again() {
    let (w, logs, file) = log_with(b"1\n");
    w.mv(logs, b"a", b"a.1");
    let late = |flags| w.store.open(&WRITER, file.ino, flags);
    assert_eq!(errno(late(APPEND)), libc::ESTALE);
    late(APPEND).unwrap();
    late(READ).unwrap();
    w.at(1_010);
    late(APPEND).unwrap();
}

/// What was woken since, and whether there is room for more.
type Woken = Arc<Mutex<(Vec<String>, usize)>>;

fn wake_into(w: &World, room: usize) -> Woken {
    let woken = Woken::new(Mutex::new((Vec::new(), room)));
    let sink = Arc::clone(&woken);
    w.store.set_wake_sink(Box::new(move |path| {
        let (paths, room) = &mut *sink.lock();
        let has_room = paths.len() < *room;
        if has_room {
            paths.push(String::from_utf8_lossy(path).into_owned());
        }
        has_room
    }));
    woken
}

/// What one more tick wakes.
fn tick(w: &World, woken: &Woken) -> Vec<String> {
    w.store.tick().unwrap();
    std::mem::take(&mut woken.lock().0)
}

#[test]
fn watchers_are_woken_by_the_next_tick_and_once() {
    let (w, logs, mut file) = log_with(b"1\n");
    let woken = wake_into(&w, usize::MAX);
    w.put(&mut file, b"2\n");
    assert!(tick(&w, &woken).is_empty(), "nothing was cut");
    w.mv(logs, b"a", b"a.1");
    for _ in 0..5 {
        w.put(&mut file, b"2\n");
    }
    assert!(woken.lock().0.is_empty());
    assert_eq!(tick(&w, &woken), ["logs/a"]);
    assert!(tick(&w, &woken).is_empty());
    w.put(&mut file, b"3\n");
    w.mv(logs, b"a", b"a.2");
    w.store.unlink(&WRITER, logs, b"a.2").unwrap();
    // Whether there still is something to watch is not asked here.
    assert_eq!(tick(&w, &woken), ["logs/a"]);
    w.put(&mut file, b"4\n");
    assert_eq!(tick(&w, &woken), ["logs/a"]);
    let mut direct = w.open(logs, b"a", APPEND);
    w.put(&mut direct, b"5\n");
    let own = tick(&w, &woken);
    assert!(own.is_empty(), "the kernel saw that one itself: {own:?}");
}

#[test]
fn a_watcher_for_whom_there_is_no_room_is_woken_later() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let woken = wake_into(&w, 2);
    let mut files: Vec<File> = (0..5)
        .map(|i| w.open(logs, format!("a{i}").as_bytes(), APPEND))
        .collect();
    for (i, file) in files.iter_mut().enumerate() {
        w.put(file, b"1\n");
        w.mv(logs, format!("a{i}").as_bytes(), format!("b{i}").as_bytes());
        w.put(file, b"2\n");
    }
    assert_eq!(tick(&w, &woken), ["logs/a0", "logs/a1"]);
    // They come before those that were written since, and all are woken in their turn, once.
    w.put(&mut files[0], b"3\n");
    w.put(&mut files[4], b"3\n");
    assert_eq!(tick(&w, &woken), ["logs/a2", "logs/a3"]);
    assert_eq!(tick(&w, &woken), ["logs/a4", "logs/a0"]);
    assert!(tick(&w, &woken).is_empty());
    woken.lock().1 = 0;
    w.put(&mut files[1], b"4\n");
    for _ in 0..3 {
        assert!(tick(&w, &woken).is_empty());
    }
    woken.lock().1 = 9;
    assert_eq!(tick(&w, &woken), ["logs/a1"]);
}

#[test]
fn a_full_cask_can_still_be_cut_and_its_logs_removed() {
    let w = World::with(FormatOptions {
        blocks: Some(1_000),
        wal_bytes: Some(256 << 10),
        secret: [4; 32],
        ..FormatOptions::default()
    });
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", APPEND);
    let line = [vec![b'x'; 99_999], b"\n".to_vec()].concat();
    while w.write(&mut file, &line).is_ok() {}
    assert_eq!(errno(w.write(&mut file, &line)), libc::ENOSPC);
    w.mv(logs, b"a", b"a.1");
    w.store.unlink(&WRITER, logs, b"a.1").unwrap();
    w.put(&mut file, &line);
    assert_eq!(w.cat(logs, b"a"), line);
}
