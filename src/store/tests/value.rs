//! Value mode: old or new, never a half.

use super::*;

/// A value store with the value `s`.
fn value_of(data: &[u8]) -> (World, Number) {
    let w = World::new();
    let dir = w.dir(b"sessions", b"value");
    let mut file = w.open(dir, b"s", WRITE);
    w.put(&mut file, data);
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), data);
    (w, dir)
}

#[test]
fn readers_see_the_old_until_the_writer_closes() {
    let (w, dir) = value_of(b"old");
    let reader = w.open(dir, b"s", READ);
    let mut writer = w.open(dir, b"s", TRUNCATE);
    assert_eq!(w.cat(dir, b"s"), b"old");
    w.put(&mut writer, b"new content");
    assert_eq!(w.cat(dir, b"s"), b"old");
    assert_eq!(w.read(reader, 0, 100), b"old");
    assert_eq!(w.attr(dir, b"s").size, 3);
    let own = w.store.getattr(writer.ino, Some(writer.fh)).unwrap();
    assert_eq!(own.attr.size, 11);
    assert_eq!(w.store.lseek(writer.ino, writer.fh, 3, false).unwrap(), 11);
    w.at(1_100);
    w.close(writer);
    assert_eq!(w.read(reader, 0, 100), b"new content");
    assert_eq!(w.cat(dir, b"s"), b"new content");
    let attr = w.attr(dir, b"s");
    assert_eq!((attr.size, attr.mtime), (11, Timestamp::from_secs(1_100)));
    assert!(w.heard().contains(&Notice::InvalidateInode(writer.ino)));
}

#[test]
fn the_writer_reads_what_it_wrote() {
    let (w, dir) = value_of(b"0123456789");
    let mut file = w.open(dir, b"s", READ_WRITE);
    assert_eq!(w.read(file, 0, 100), b"0123456789");
    file.at = 4;
    w.put(&mut file, b"XY");
    assert_eq!(w.read(file, 3, 4), b"3XY6");
    w.ftruncate(file, 7).unwrap();
    assert_eq!(w.read(file, 0, 100), b"0123XY6");
    w.ftruncate(file, 9).unwrap();
    assert_eq!(w.read(file, 6, 100), b"6\0\0");
    file.at = 12;
    w.put(&mut file, b"end");
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), b"0123XY6\0\0\0\0\0end");
}

#[test]
fn appending_to_a_value_goes_to_the_end_of_what_is_in_hand() {
    let (w, dir) = value_of(b"ab");
    let mut file = w.open(dir, b"s", APPEND);
    w.put(&mut file, b"cd");
    file.at = 1;
    w.put(&mut file, b"ef");
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), b"abcdef");
}

#[test]
fn nothing_written_is_nothing_saved() {
    let (w, dir) = value_of(b"old");
    let before = w.store.cask().lsn();
    w.at(1_100);
    w.close(w.open(dir, b"s", READ_WRITE));
    assert_eq!(w.store.cask().lsn(), before);
    assert_eq!(w.attr(dir, b"s").mtime, Timestamp::from_secs(1_000));
    w.close(w.open(dir, b"s", TRUNCATE));
    assert_eq!(w.cat(dir, b"s"), b"");
    assert_eq!(w.attr(dir, b"s").mtime, Timestamp::from_secs(1_100));
}

#[test]
fn a_killed_writer_leaves_the_old_content() {
    let (w, dir) = value_of(b"old");
    let mut file = w.open(dir, b"s", TRUNCATE);
    w.put(&mut file, b"half of the n");
    w.killed.0.store(true, Ordering::SeqCst);
    w.close(file);
    w.killed.0.store(false, Ordering::SeqCst);
    assert_eq!(w.cat(dir, b"s"), b"old");
    assert_eq!(w.store.pending.in_memory(), 0);
}

#[test]
fn a_killed_parent_does_not_take_the_childs_work_along() {
    let (w, dir) = value_of(b"old");
    let mut file = w.open(dir, b"s", TRUNCATE);
    w.put(&mut file, b"ne");
    w.killed.0.store(true, Ordering::SeqCst);
    w.store.flush(&WRITER, file.ino, file.fh).unwrap();
    w.killed.0.store(false, Ordering::SeqCst);
    assert_eq!(w.cat(dir, b"s"), b"old");
    w.put(&mut file, b"w");
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), b"new");
}

#[test]
fn every_dup_that_is_closed_saves_once() {
    let (w, dir) = value_of(b"old");
    let mut file = w.open(dir, b"s", TRUNCATE);
    w.put(&mut file, b"new");
    w.store.flush(&WRITER, file.ino, file.fh).unwrap();
    let (saved, lsn) = (w.attr(dir, b"s"), w.store.cask().lsn());
    w.at(1_100);
    w.store.flush(&WRITER, file.ino, file.fh).unwrap();
    assert_eq!((w.attr(dir, b"s"), w.store.cask().lsn()), (saved, lsn));
    w.put(&mut file, b"er");
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), b"newer");
}

#[test]
fn the_last_close_wins_whole() {
    let (w, dir) = value_of(b"old");
    let mut one = w.open(dir, b"s", TRUNCATE);
    let mut two = w.open(dir, b"s", TRUNCATE);
    w.put(&mut one, b"a long one");
    w.put(&mut two, b"short");
    w.close(two);
    assert_eq!(w.cat(dir, b"s"), b"short");
    w.close(one);
    assert_eq!(w.cat(dir, b"s"), b"a long one");
}

#[test]
fn a_large_value_spills_and_is_saved_in_one_step() {
    let (w, dir) = value_of(b"old");
    let used = w.files_used();
    let big: Vec<u8> = (0..2_500_000u32).map(|i| (i % 241) as u8).collect();
    let mut file = w.open(dir, b"s", TRUNCATE);
    for piece in big.chunks(300_000) {
        w.put(&mut file, piece);
    }
    assert_eq!(w.files_used(), used + 1, "the spare");
    assert_eq!(w.store.pending.in_memory(), 0);
    assert_eq!(w.cat(dir, b"s"), b"old");
    let own = w.store.getattr(file.ino, Some(file.fh)).unwrap();
    assert_eq!(own.attr.size, 2_500_000);
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), big);
    assert_eq!(w.files_used(), used);

    // On with a large one: one byte changed, then thrown away.
    let mut file = w.open(dir, b"s", READ_WRITE);
    file.at = 2_000_000;
    w.put(&mut file, b"!");
    assert_eq!(
        w.read(file, 1_999_999, 3),
        [big[1_999_999], b'!', big[2_000_001]]
    );
    assert_eq!(w.cat(dir, b"s"), big);
    w.killed.0.store(true, Ordering::SeqCst);
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), big);
    assert_eq!(w.files_used(), used);
}

#[test]
fn fsync_saves_and_makes_durable() {
    let (w, dir) = value_of(b"old");
    let mut file = w.open(dir, b"s", TRUNCATE);
    w.put(&mut file, b"new");
    w.store.fsync(file.ino, file.fh, false).unwrap();
    assert_eq!(w.cat(dir, b"s"), b"new");
    let stats = w.store.cask().stats();
    assert_eq!(stats.durable_lsn, stats.lsn);
    w.killed.0.store(true, Ordering::SeqCst);
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), b"new");
}

#[test]
fn a_save_into_a_removed_or_replaced_value_is_lost_with_it() {
    let (w, dir) = value_of(b"old");
    let mut file = w.open(dir, b"s", TRUNCATE);
    w.put(&mut file, b"new");
    w.close(w.open(dir, b"t", WRITE));
    w.mv(dir, b"t", b"s");
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), b"");
    assert_eq!(w.names(dir), ["s"]);
}

#[test]
fn a_time_set_while_it_is_open_stays() {
    let (w, dir) = value_of(b"old");
    let mut file = w.open(dir, b"s", TRUNCATE);
    w.put(&mut file, b"new");
    let then = Timestamp::from_secs(77);
    let set = SetAttr {
        mtime: Some(SetTime::At(then)),
        ..SetAttr::default()
    };
    w.store.setattr(&WRITER, file.ino, None, &set).unwrap();
    w.close(file);
    assert_eq!(w.cat(dir, b"s"), b"new");
    assert_eq!(w.attr(dir, b"s").mtime, then);
}

#[test]
fn a_full_cask_says_so_at_write() {
    let w = World::with(FormatOptions {
        blocks: Some(1_000),
        wal_bytes: Some(256 << 10),
        secret: [4; 32],
        ..FormatOptions::default()
    });
    let dir = w.dir(b"sessions", b"value");
    let mut filler = w.open(ROOT, b"filler", WRITE);
    while w.write(&mut filler, &[1; 65_536]).is_ok() {}
    while w.write(&mut filler, &[1; 4_096]).is_ok() {}
    let mut file = w.open(dir, b"s", WRITE);
    let refused = (0..20).find_map(|_| w.write(&mut file, &[2; 65_536]).err());
    assert_eq!(refused.unwrap().errno(), libc::ENOSPC);
    w.store.release(file.ino, file.fh).unwrap();
    w.store.unlink(&WRITER, ROOT, b"filler").unwrap();
}

#[test]
fn truncate_by_path_is_a_save_of_its_own() {
    let (w, dir) = value_of(b"old");
    let ino = w.attr(dir, b"s").ino;
    w.truncate(ino, 1).unwrap();
    assert_eq!(w.cat(dir, b"s"), b"o");
}

#[test]
fn room_for_a_draft_may_be_asked_for() {
    let (w, dir) = value_of(b"old");
    let file = w.open(dir, b"s", READ_WRITE);
    let allocate = |mode, len| w.store.fallocate(file.ino, file.fh, mode, 0, len);
    allocate(0, 5).unwrap();
    allocate(0, 2).unwrap();
    allocate(libc::FALLOC_FL_KEEP_SIZE, 500).unwrap();
    assert_eq!(w.read(file, 0, 100), b"old\0\0");
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(errno(allocate(punch, 2)), libc::EOPNOTSUPP);
}

#[test]
fn a_reader_goes_on_in_the_content_it_began_with() {
    let (w, dir) = value_of(&[b'o'; 10_000]);
    let used = w.files_used();
    let save = |data: &[u8]| {
        let mut writer = w.open(dir, b"s", TRUNCATE);
        w.put(&mut writer, data);
        w.close(writer);
    };
    let one = w.open(dir, b"s", READ);
    let two = w.open(dir, b"s", READ_WRITE);
    assert_eq!(w.read(one, 0, 6_000), [b'o'; 6_000]);
    assert_eq!(w.read(two, 0, 100), [b'o'; 100]);
    save(&[b'n'; 20_000]);
    assert_eq!(w.files_used(), used + 1, "the old content is kept");
    save(&[b'm'; 15_000]);
    assert_eq!(
        w.files_used(),
        used + 1,
        "nobody was reading the one between"
    );
    assert_eq!(w.read(one, 6_000, 6_000), [b'o'; 4_000]);
    assert_eq!(w.read(one, 10_000, 6_000), b"");
    assert_eq!(w.read(two, 100, 100), [b'o'; 100]);
    assert_eq!(
        w.read(two, 0, 30_000),
        [b'm'; 15_000],
        "from the start it is the new"
    );
    assert_eq!(w.files_used(), used, "the last reader is through");
    assert_eq!(w.read(one, 10_000, 1), b"m", "after the end it is the new");
    save(b"");
    assert_eq!(w.read(one, 10_001, 10), [b'm'; 10]);
    assert_eq!(w.files_used(), used + 1);
    w.close(one);
    w.close(two);
    assert_eq!(w.files_used(), used);
    assert_eq!(w.cat(dir, b"s"), b"");
}

#[test]
fn a_large_value_is_kept_for_its_readers_too() {
    let (w, dir) = value_of(&vec![b'o'; 2_000_000]);
    let used = w.files_used();
    let reader = w.open(dir, b"s", READ);
    assert_eq!(w.read(reader, 0, 10), [b'o'; 10]);
    let mut writer = w.open(dir, b"s", TRUNCATE);
    w.put(&mut writer, &vec![b'n'; 1_500_000]);
    w.close(writer);
    assert_eq!(w.read(reader, 1_999_990, 100), [b'o'; 10]);
    w.truncate(reader.ino, 1).unwrap();
    assert_eq!(w.read(reader, 5, 5), [b'o'; 5]);
    w.close(reader);
    assert_eq!(w.files_used(), used);
    assert_eq!(w.cat(dir, b"s"), b"n");
}

#[test]
fn without_an_inode_for_the_old_content_a_save_still_goes_through() {
    let w = World::with(FormatOptions {
        blocks: Some(4_096),
        wal_bytes: Some(256 << 10),
        files: Some(3),
        secret: [4; 32],
        ..FormatOptions::default()
    });
    let dir = w.dir(b"sessions", b"value");
    let mut writer = w.open(dir, b"s", WRITE);
    w.put(&mut writer, b"old");
    w.store.flush(&WRITER, writer.ino, writer.fh).unwrap();
    let reader = w.open(dir, b"s", READ);
    assert_eq!(w.read(reader, 0, 1), b"o");
    w.put(&mut writer, b"er");
    w.close(writer);
    assert_eq!(w.read(reader, 1, 10), b"lder", "what there is now");
    w.close(reader);
    assert_eq!(w.cat(dir, b"s"), b"older");
}

/// Room for a few hundred values.
fn small_world() -> World {
    World::with(FormatOptions {
        block_size: 1024,
        blocks: Some(6000),
        wal_bytes: Some(256 << 10),
        ..FormatOptions::default()
    })
}

fn value(number: usize) -> Vec<u8> {
    let lengths = [200, 3_000, 100, 100_000, 20_000];
    (number as u64 | 1 << 40)
        .to_le_bytes()
        .repeat(lengths[number % lengths.len()] / 8)
}

#[test]
fn what_was_taken_by_write_is_saved_by_close() {
    let w = small_world();
    let dir = w.dir(b"sessions", b"value");
    let mut kept = Vec::new();
    let mut refused = 0;
    for number in 0.. {
        let name = format!("{number}").into_bytes();
        let mut file = match w.open_by(&WRITER, dir, &name, TRUNCATE) {
            Ok(file) => file,
            Err(error) => {
                assert!(matches!(error, Error::NoSpace), "{error}");
                break;
            }
        };
        if refused == 20 {
            w.close(file);
            break;
        }
        match w.write(&mut file, &value(number)) {
            Ok(()) => kept.push(number),
            Err(error) => {
                assert!(matches!(error, Error::NoSpace), "{error}");
                refused += 1;
            }
        }
        w.close(file);
    }
    assert!(
        kept.len() > 50 && refused > 0,
        "{} were taken, {refused} refused",
        kept.len()
    );
    for number in &kept {
        let name = format!("{number}").into_bytes();
        assert!(w.cat(dir, &name) == value(*number), "{number}");
    }
    for name in w.names(dir) {
        w.store.unlink(&WRITER, dir, name.as_bytes()).unwrap();
    }
}

#[test]
fn values_in_hand_keep_their_room_whatever_else_is_written() {
    let w = small_world();
    let dir = w.dir(b"sessions", b"value");
    let empty = w.store.statfs().unwrap().blocks_free;
    let mut open = Vec::new();
    for number in 0..20 {
        let mut file = w.open(dir, format!("{number}").as_bytes(), WRITE);
        w.put(&mut file, &value(number));
        open.push(file);
    }
    // Now others take all there is.
    let plain = w.dir(b"other", b"plain");
    let mut big = w.open(plain, b"big", WRITE);
    for len in [1 << 16, 1 << 10, 1] {
        while w.write(&mut big, &vec![7; len]).is_ok() {}
    }
    while w
        .store
        .mkdir(
            &ROOT_USER,
            plain,
            format!("{}", w.files_used()).as_bytes(),
            0o755,
        )
        .is_ok()
    {}
    // Half are given up, and give their room back; half are saved, and saved again.
    for (number, mut file) in open.into_iter().enumerate() {
        if number % 2 == 0 {
            w.killed.0.store(true, Ordering::SeqCst);
            w.close(file);
            w.killed.0.store(false, Ordering::SeqCst);
            continue;
        }
        w.store.flush(&WRITER, file.ino, file.fh).unwrap();
        file.at = 0;
        if w.write(&mut file, &value(number)).is_ok() {
            w.store.flush(&WRITER, file.ino, file.fh).unwrap();
        }
        w.store.release(file.ino, file.fh).unwrap();
        assert!(
            w.cat(dir, format!("{number}").as_bytes()) == value(number),
            "{number}"
        );
    }
    for dir in [dir, plain] {
        for name in w.names(dir) {
            let name = name.as_bytes();
            if w.store.unlink(&WRITER, dir, name).is_err() {
                w.store.rmdir(&WRITER, dir, name).unwrap();
            }
        }
    }
    w.close(big);
    let left = w.store.statfs().unwrap().blocks_free;
    assert!(left + 8 >= empty, "{left} of {empty} blocks are free again");
}
