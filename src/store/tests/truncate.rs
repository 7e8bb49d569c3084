//! Truncation of logs: `copytruncate` without loss.

use super::*;

/// A log store, a writer that has written this, and a copier as logrotate has it.
fn copying(data: &[u8]) -> (World, Number, File, File) {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    let mut writer = w.open(logs, b"a", APPEND);
    w.put(&mut writer, data);
    let copier = w.open(logs, b"a", READ_WRITE);
    (w, logs, writer, copier)
}

#[test]
fn only_what_was_read_is_dropped() {
    let (w, logs, mut writer, copier) = copying(b"1\n2\n");
    let mut copy = w.read(copier, 0, 2);
    copy.extend(w.read(copier, 2, 100));
    assert_eq!(w.read(copier, 4, 100), b"");
    w.put(&mut writer, b"late\n");
    let entry = w.ftruncate(copier, 0).unwrap();
    assert_eq!(entry.attr.size, 5);
    assert_eq!(copy, b"1\n2\n");
    assert_eq!(w.cat(logs, b"a"), b"late\n");
    w.put(&mut writer, b"later\n");
    assert_eq!(w.cat(logs, b"a"), b"late\nlater\n");
    assert_eq!(w.attr(logs, b"a").ino, copier.ino, "it is the same file");
}

#[test]
fn a_second_truncation_does_not_drop_what_stayed() {
    let (w, logs, mut writer, copier) = copying(b"1\n");
    w.read(copier, 0, 100);
    w.put(&mut writer, b"2\n");
    w.ftruncate(copier, 0).unwrap();
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"2\n");
    w.read(copier, 0, 100);
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"");
}

#[test]
fn an_empty_log_that_was_read_keeps_what_came() {
    let (w, logs, mut writer, copier) = copying(b"");
    assert_eq!(w.read(copier, 0, 100), b"");
    w.put(&mut writer, b"1\n");
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"1\n");
}

#[test]
fn a_gap_in_what_was_read_spares_all_behind_it() {
    let (w, logs, _, copier) = copying(b"1\n2\n3\n");
    w.read(copier, 0, 2);
    w.read(copier, 4, 2);
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"2\n3\n");
}

#[test]
fn who_has_read_nothing_drops_everything() {
    let (w, logs, mut writer, copier) = copying(b"1\n");
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"");
    w.put(&mut writer, b"2\n");
    w.ftruncate(writer, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"");
    w.put(&mut writer, b"3\n");
    w.truncate(copier.ino, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"");
    w.put(&mut writer, b"4\n");
    let shell = w.open(logs, b"a", TRUNCATE);
    assert_eq!(w.cat(logs, b"a"), b"");
    w.close(shell);
}

#[test]
fn truncate_posix_drops_everything() {
    let (w, logs, mut writer, copier) = copying(b"1\n");
    w.set(logs, "truncate", b"posix");
    w.read(copier, 0, 100);
    w.put(&mut writer, b"2\n");
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.cat(logs, b"a"), b"");
}

#[test]
fn after_a_cut_the_copier_has_read_nothing_of_the_fresh_log() {
    let (w, logs, mut writer, copier) = copying(b"1\n");
    w.read(copier, 0, 100);
    w.mv(logs, b"a", b"a.1");
    w.put(&mut writer, b"2\n");
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.cat(logs, b"a.1"), b"1\n", "the segment is final");
    assert_eq!(w.cat(logs, b"a"), b"2\n");
    assert_eq!(errno(w.ftruncate(writer, 1)), libc::EPERM);
}

#[test]
fn a_long_rest_is_moved_whole() {
    let (w, logs, mut writer, copier) = copying(b"1\n");
    w.read(copier, 0, 100);
    let rest: Vec<u8> = (0..3_000_000u32).map(|i| (i % 253) as u8).collect();
    for piece in rest.chunks(1 << 20) {
        w.put(&mut writer, piece);
    }
    let used = w.files_used();
    w.ftruncate(copier, 0).unwrap();
    assert_eq!(w.files_used(), used, "no spare is left");
    assert_eq!(w.cat(logs, b"a"), rest);
    assert!(w.heard().contains(&Notice::InvalidateInode(copier.ino)));
}

#[test]
fn a_begun_record_is_still_carried_after_a_truncation() {
    let (w, logs, mut writer, copier) = copying(b"1\n");
    w.read(copier, 0, 100);
    w.put(&mut writer, b"2\nbeg");
    w.ftruncate(copier, 0).unwrap();
    w.mv(logs, b"a", b"a.1");
    w.put(&mut writer, b"un\n");
    assert_eq!(w.cat(logs, b"a.1"), b"2\n");
    assert_eq!(w.cat(logs, b"a"), b"begun\n");
}

#[test]
fn an_emptied_log_has_nothing_to_carry() {
    let (w, logs, mut writer, _) = copying(b"1\nbeg");
    w.truncate(writer.ino, 0).unwrap();
    w.mv(logs, b"a", b"a.1");
    assert!(!w.exists(logs, b"a"));
    w.put(&mut writer, b"2\n");
    assert_eq!(w.cat(logs, b"a.1"), b"");
    assert_eq!(w.cat(logs, b"a"), b"2\n");
}

#[test]
fn copying_under_writers_loses_and_doubles_nothing() {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    w.close(w.open(logs, b"a", APPEND));
    let mut copies = Vec::new();
    let mut copy = |w: &World| {
        let copier = w.open_by(&ROOT_USER, logs, b"a", READ_WRITE).unwrap();
        let mut at = 0;
        loop {
            let piece = w.read(copier, at, 700);
            if piece.is_empty() {
                break;
            }
            at += piece.len() as u64;
            copies.extend(piece);
        }
        w.ftruncate(copier, 0).unwrap();
        w.close_by(&ROOT_USER, copier);
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut file = w.open(logs, b"a", APPEND);
            for line in 0..2_000u32 {
                w.put(&mut file, format!("{line}\n").as_bytes());
            }
            w.close(file);
        });
        while !writer.is_finished() {
            copy(&w);
        }
    });
    copy(&w);
    let expected: String = (0..2_000u32).map(|line| format!("{line}\n")).collect();
    assert_eq!(String::from_utf8(copies).unwrap(), expected);
    assert_eq!(w.cat(logs, b"a"), b"");
}
