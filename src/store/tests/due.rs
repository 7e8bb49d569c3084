//! Logs that are cut by themselves, segments that are dropped, the record of rolls.

use super::*;

const DAY: i64 = 86_400;
/// 2025-11-24 00:00:00 UTC.
const MONDAY: i64 = 1_763_942_400;

fn store_with(settings: &[(&str, &str)]) -> (World, Number) {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    for (name, value) in settings {
        w.set(logs, name, value.as_bytes());
    }
    (w, logs)
}

impl World {
    fn events(&self) -> Vec<String> {
        let door = self.store.lookup(&ROOT_USER, ROOT, b".cask").unwrap();
        let text = self.cat(door.attr.ino, b"events");
        assert_eq!(self.attr(door.attr.ino, b"events").size, text.len() as u64);
        let text = String::from_utf8(text).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn seven_lines_by_three_are_three_files() {
    let (w, logs) = store_with(&[("roll-lines", "3")]);
    let mut file = w.open(logs, b"n", APPEND);
    w.put(&mut file, b"1\n2\n3\n4\n5\n6\n7\n");
    assert_eq!(w.names(logs), ["n", "n.19700101", "n.19700101.1"]);
    assert_eq!(w.cat(logs, b"n.19700101"), b"1\n2\n3\n");
    assert_eq!(w.cat(logs, b"n.19700101.1"), b"4\n5\n6\n");
    assert_eq!(w.cat(logs, b"n"), b"7\n");
    w.close(file);
    // What is not known is counted: a new handle, and one record at a time.
    for line in [b"8\n", b"9\n"] {
        let mut file = w.open(logs, b"n", APPEND);
        w.put(&mut file, line);
        w.close(file);
    }
    assert!(!w.exists(logs, b"n"), "a log that is full is cut at once");
    assert_eq!(w.cat(logs, b"n.19700101.2"), b"7\n8\n9\n");
    assert_eq!(
        w.events(),
        [
            "1000 lines /logs/n /logs/n.19700101",
            "1000 lines /logs/n /logs/n.19700101.1",
            "1000 lines /logs/n /logs/n.19700101.2",
        ]
    );
}

#[test]
fn a_log_is_full_with_the_record_that_reaches_its_size() {
    let (w, logs) = store_with(&[("roll-size", "8"), ("roll-name", "%n.old")]);
    let mut file = w.open(logs, b"n", APPEND);
    for line in [b"aaa\n".as_slice(), b"bb\n", b"cccccc\n", b"half"] {
        w.put(&mut file, line);
    }
    assert_eq!(w.cat(logs, b"n.old"), b"aaa\nbb\ncccccc\n");
    assert_eq!(w.cat(logs, b"n"), b"half");
    w.put(&mut file, b" of it\ndd\n");
    assert_eq!(w.cat(logs, b"n.old.1"), b"half of it\n");
    assert_eq!(w.cat(logs, b"n"), b"dd\n");
}

#[test]
fn what_another_handle_has_begun_stays_whole() {
    let (w, logs) = store_with(&[("roll-lines", "2")]);
    let (mut one, mut two) = (w.open(logs, b"n", APPEND), w.open(logs, b"n", APPEND));
    w.put(&mut one, b"1\nbeg");
    w.put(&mut two, b"2\n3");
    assert_eq!(w.cat(logs, b"n.19700101"), b"1\nbeg2\n");
    assert_eq!(w.cat(logs, b"n"), b"3");
    w.put(&mut two, b"!\n");
    w.mv(logs, b"n", b"n.1");
    assert_eq!(w.cat(logs, b"n.1"), b"3!\n");
}

#[test]
fn one_write_cuts_a_bounded_number_of_times_and_loses_nothing() {
    let (w, logs) = store_with(&[("roll-lines", "1")]);
    let mut file = w.open(logs, b"n", APPEND);
    let lines: Vec<String> = (0..100).map(|n| format!("{n}\n")).collect();
    w.put(&mut file, lines.concat().as_bytes());
    let mut all = Vec::new();
    for count in 0..32 {
        let name = match count {
            0 => "n.19700101".to_owned(),
            count => format!("n.19700101.{count}"),
        };
        all.extend(w.cat(logs, name.as_bytes()));
    }
    all.extend(w.cat(logs, b"n"));
    assert_eq!(String::from_utf8(all).unwrap(), lines.concat());
    w.put(&mut file, b"last\n");
    assert!(!w.exists(logs, b"n"));
}

#[test]
fn a_large_write_is_cut_like_a_small_one() {
    let (w, logs) = store_with(&[("roll-size", "100k")]);
    let mut file = w.open(logs, b"n", APPEND);
    let line = [[b'x'; 99].as_slice(), b"\n"].concat();
    w.put(&mut file, &line.repeat(3000));
    assert_eq!(w.attr(logs, b"n.19700101").size, 102_400);
    assert_eq!(w.attr(logs, b"n.19700101.1").size, 102_400);
    assert_eq!(w.cat(logs, b"n"), line.repeat(3000 - 2048));
}

#[test]
fn midnight_falls_between_two_records() {
    let (w, logs) = store_with(&[("roll", "day")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.clock.set(Timestamp {
        secs: MONDAY - 1,
        nanos: 999_000_000,
    });
    w.put(&mut file, b"sunday\nbeg");
    w.at(MONDAY);
    w.put(&mut file, b"un\nmonday\n");
    assert_eq!(w.cat(logs, b"a.20251123"), b"sunday\n");
    assert_eq!(w.cat(logs, b"a"), b"begun\nmonday\n");
    assert_eq!(
        w.events(),
        [format!("{MONDAY} clock /logs/a /logs/a.20251123")]
    );
}

#[test]
fn a_silent_log_is_cut_by_the_timer_and_a_late_one_by_its_next_record() {
    let (w, logs) = store_with(&[("roll", "day")]);
    w.at(MONDAY + 100);
    w.store.tick().unwrap();
    let mut silent = w.open(logs, b"silent", APPEND);
    w.put(&mut silent, b"1\n");
    let mut late = w.open(logs, b"late", APPEND);
    w.put(&mut late, b"1\n");
    w.close(late);
    let _empty = w.open(logs, b"empty", APPEND);
    w.at(MONDAY + DAY - 1);
    w.store.tick().unwrap();
    assert_eq!(w.names(logs), ["empty", "late", "silent"]);
    w.at(MONDAY + DAY);
    w.store.tick().unwrap();
    assert_eq!(w.names(logs), ["empty", "late", "silent.20251124"]);
    w.at(MONDAY + 3 * DAY);
    w.store.tick().unwrap();
    let mut late = w.open(logs, b"late", APPEND);
    w.put(&mut late, b"2\n");
    assert_eq!(w.cat(logs, b"late.20251124"), b"1\n");
    assert_eq!(w.cat(logs, b"late"), b"2\n");
    w.put(&mut silent, b"2\n");
    assert_eq!(w.cat(logs, b"silent"), b"2\n");
}

#[test]
fn each_period_has_its_name() {
    let (w, logs) = store_with(&[("roll", "hour")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.at(MONDAY + 3 * 3600);
    w.put(&mut file, b"1\n");
    w.at(MONDAY + 4 * 3600);
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(logs, b"a.2025112403"), b"1\n");
    w.set(logs, "roll", b"month");
    w.set(logs, "roll-name", b"%Y-%m_%n");
    w.at(MONDAY + 10 * DAY);
    w.put(&mut file, b"3\n");
    assert_eq!(w.cat(logs, b"2025-11_a"), b"2\n");
    w.set(logs, "roll", b"year");
    w.at(MONDAY + 40 * DAY);
    w.put(&mut file, b"4\n");
    assert_eq!(w.cat(logs, b"2025-12_a"), b"3\n");
}

#[test]
fn a_week_keeps_seven_at_every_instant() {
    let (w, logs) = store_with(&[("roll", "day"), ("keep", "7")]);
    let mut file = w.open(logs, b"a", APPEND);
    let free = w.store.statfs().unwrap().blocks_free;
    for quarter in 0..4 * 21 {
        w.at(MONDAY + quarter * DAY / 4);
        w.store.tick().unwrap();
        assert!(w.names(logs).len() <= 7, "{:?}", w.names(logs));
        w.put(&mut file, format!("{quarter}\n").as_bytes());
        assert!(w.names(logs).len() <= 7, "{:?}", w.names(logs));
    }
    let names = w.names(logs);
    assert_eq!(names.len(), 7);
    assert_eq!(names[1], "a.20251208");
    assert_eq!(w.cat(logs, b"a.20251208"), b"56\n57\n58\n59\n");
    assert_eq!(w.files_used(), 2 + 7);
    assert!(w.store.statfs().unwrap().blocks_free >= free - 200);
}

#[test]
fn keep_counts_what_was_renamed_moved_and_rotated() {
    let (w, logs) = store_with(&[("keep", "3")]);
    let old = w.dir(b"old", b"plain");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    let flags = RenameFlags::default();
    w.store
        .rename(&ROOT_USER, logs, b"a", old, b"first", flags)
        .unwrap();
    w.put(&mut file, b"2\n");
    w.mv(logs, b"a", b"a.1");
    // A segment may get another name and is still the second.
    w.mv(logs, b"a.1", b"a.2");
    w.put(&mut file, b"3\n");
    assert_eq!(w.names(old), ["first"]);
    w.store.rotate(&ROOT_USER, logs, b"a").unwrap();
    assert_eq!(w.names(old), [""; 0]);
    assert_eq!(w.names(logs), ["a.19700101", "a.2"]);
    assert_eq!(
        w.events(),
        [
            "1000 rename /logs/a /old/first",
            "1000 rename /logs/a /logs/a.1",
            "1000 rotate /logs/a /logs/a.19700101",
        ]
    );
}

#[test]
fn a_segment_that_is_written_again_is_a_log_of_its_own() {
    let (w, logs) = store_with(&[("keep", "1")]);
    w.set(logs, "keep", b"all");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    w.mv(logs, b"a", b"b");
    let mut other = w.open(logs, b"b", APPEND);
    w.put(&mut other, b"2\n");
    w.set(logs, "keep", b"1");
    w.put(&mut file, b"3\n");
    w.mv(logs, b"a", b"c");
    assert_eq!(w.names(logs), ["b"], "with keep=1 only the live log stays");
    assert_eq!(w.cat(logs, b"b"), b"1\n2\n");
}

#[test]
fn a_name_given_before_is_not_given_again() {
    let (w, logs) = store_with(&[("roll-lines", "1"), ("keep", "3")]);
    let mut file = w.open(logs, b"a", APPEND);
    for _ in 0..5 {
        w.put(&mut file, b"x\n");
    }
    assert_eq!(w.names(logs), ["a.19700101.3", "a.19700101.4"]);
    let mut other = w.open(logs, b"a.19700101.5", WRITE);
    w.put(&mut other, b"not a segment");
    w.put(&mut file, b"y\n");
    assert_eq!(w.cat(logs, b"a.19700101.5"), b"not a segment");
    assert_eq!(w.cat(logs, b"a.19700101.6"), b"y\n");
}

#[test]
fn each_log_begins_with_the_header() {
    let (w, logs) = store_with(&[("header", "t|who"), ("roll-lines", "2")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n2\n3\nbeg");
    assert_eq!(w.cat(logs, b"a.19700101"), b"t|who\n1\n2\n");
    w.mv(logs, b"a", b"a.1");
    assert_eq!(w.cat(logs, b"a.1"), b"t|who\n3\n");
    assert_eq!(w.cat(logs, b"a"), b"t|who\nbeg");
    w.put(&mut file, b"un\n");
    w.mv(logs, b"a", b"a.2");
    assert_eq!(w.cat(logs, b"a.2"), b"t|who\nbegun\n");
    w.ftruncate(file, 0).unwrap();
    let large = vec![b'x'; 200_000];
    w.put(&mut file, &large);
    assert_eq!(w.cat(logs, b"a"), [b"t|who\n".as_slice(), &large].concat());
    // The header is no record.
    let mut other = w.open(logs, b"b", APPEND);
    w.put(&mut other, b"1\n");
    w.close(other);
    let mut other = w.open(logs, b"b", APPEND);
    assert!(w.exists(logs, b"b"));
    w.put(&mut other, b"2\n");
    assert!(!w.exists(logs, b"b"));
}

#[test]
fn a_header_that_holds_what_ends_a_record_is_no_record() {
    let (w, logs) = store_with(&[("header", "head"), ("record", "e"), ("roll-lines", "3")]);
    for record in [b"1e", b"2e", b"3e"] {
        // What a handle has counted, the next one reads.
        let mut file = w.open(logs, b"a", APPEND);
        w.put(&mut file, record);
        w.close(file);
        w.set(logs, "keep", b"all");
    }
    assert_eq!(w.cat(logs, b"a.19700101"), b"heade1e2e3e");
}

#[test]
fn the_record_of_rolls_is_bounded_and_read_only() {
    let (w, logs) = store_with(&[]);
    let long = [b'n'; 200];
    let mut file = w.open(logs, &long, APPEND);
    let to = [b'm'; 200];
    for count in 0..900u32 {
        w.put(&mut file, b"x\n");
        w.mv(logs, &long, &[&to, count.to_string().as_bytes()].concat());
        w.store
            .unlink(
                &ROOT_USER,
                logs,
                &[&to, count.to_string().as_bytes()].concat(),
            )
            .unwrap();
    }
    let events = w.events();
    let bytes: usize = events.iter().map(|line| line.len() + 1).sum();
    assert!((64 << 10..=257 << 10).contains(&bytes), "{bytes}");
    assert!(events.last().unwrap().ends_with("m899"));
    assert!(events.iter().all(|line| line.split(' ').count() == 4));
    let door = w.store.lookup(&ROOT_USER, ROOT, b".cask").unwrap().attr.ino;
    assert_eq!(
        errno(w.open_by(&ROOT_USER, door, b"events", APPEND)),
        libc::EPERM
    );
    assert_eq!(w.files_used(), 2);
    let inner = w.store.lookup(&ROOT_USER, logs, b".cask").unwrap().attr.ino;
    assert!(!w.exists(inner, b"events"), "behind the root's door only");
}

#[test]
fn without_room_for_its_line_a_log_is_cut_all_the_same() {
    let w = World::with(FormatOptions {
        blocks: Some(2_048),
        wal_bytes: Some(1 << 20),
        secret: [3; 32],
        ..FormatOptions::default()
    });
    let logs = w.dir(b"logs", b"log");
    let mut file = w.open(logs, b"a", APPEND);
    let line = [[b'x'; 65_535].as_slice(), b"\n"].concat();
    while w.write(&mut file, &line).is_ok() {}
    while w.write(&mut file, b"x\n").is_ok() {}
    for count in 0..40 {
        let name = format!("a.{count}");
        match count {
            0 => w.mv(logs, b"a", b"a.0"),
            count => w.mv(logs, format!("a.{}", count - 1).as_bytes(), name.as_bytes()),
        }
    }
    assert!(!w.exists(logs, b"a"));
    w.store.unlink(&ROOT_USER, logs, b"a.39").unwrap();
    w.put(&mut file, b"fresh\n");
    assert_eq!(w.cat(logs, b"a"), b"fresh\n");
}

#[test]
fn without_a_writer_a_rename_is_no_cut() {
    let (w, logs) = store_with(&[("keep", "2")]);
    for name in [b"a".as_slice(), b"b", b"c"] {
        let mut file = w.open(logs, name, APPEND);
        w.put(&mut file, b"1\n");
        w.close(file);
        w.mv(logs, name, &[name, b".old"].concat());
    }
    assert_eq!(w.names(logs), ["a.old", "b.old", "c.old"]);
    assert!(w.events().is_empty());
}

#[test]
fn the_kernel_forgets_the_names_that_went() {
    let (w, logs) = store_with(&[("keep", "2")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.heard();
    for name in [b"a.1", b"a.2"] {
        w.put(&mut file, b"1\n");
        w.mv(logs, b"a", name);
    }
    assert_eq!(w.names(logs), ["a.2"]);
    assert_eq!(w.heard(), [Notice::InvalidateEntry(logs, b"a.1".to_vec())]);
    w.put(&mut file, b"1\n");
    w.store.rotate(&ROOT_USER, logs, b"a").unwrap();
    let heard = w.heard();
    assert!(heard.contains(&Notice::InvalidateEntry(logs, b"a".to_vec())));
    assert!(heard.contains(&Notice::InvalidateEntry(logs, b"a.2".to_vec())));
}

#[test]
fn records_are_counted_anew_when_the_settings_change() {
    let (w, logs) = store_with(&[("roll-lines", "5")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n2\n3\n");
    w.set(logs, "roll-lines", b"0");
    w.ftruncate(file, 0).unwrap();
    w.put(&mut file, b"one long record\n");
    w.set(logs, "roll-lines", b"3");
    w.put(&mut file, b"2\n");
    assert!(w.exists(logs, b"a"));
    w.put(&mut file, b"3\n");
    assert!(!w.exists(logs, b"a"));
}

#[test]
fn what_is_no_file_is_no_segment() {
    let (w, logs) = store_with(&[("keep", "1")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    w.store.unlink(&ROOT_USER, logs, b"a").unwrap();
    w.store.symlink(&ROOT_USER, logs, b"a", b"nowhere").unwrap();
    w.mv(logs, b"a", b"link");
    w.put(&mut file, b"2\n");
    w.mv(logs, b"a", b"gone");
    assert_eq!(w.names(logs), ["link"]);
    w.put(&mut file, b"3\n");
    assert_eq!(w.cat(logs, b"a"), b"3\n");
}

#[test]
fn keep_leaves_alone_what_somebody_gave_a_second_name() {
    let (w, logs) = store_with(&[("keep", "2")]);
    let mine = w.dir(b"mine", b"plain");
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    w.mv(logs, b"a", b"a.1");
    let segment = w.attr(logs, b"a.1").ino;
    w.store.link(&ROOT_USER, segment, mine, b"kept").unwrap();
    for name in [b"a.2", b"a.3"] {
        w.put(&mut file, b"2\n");
        w.mv(logs, b"a", name);
    }
    assert_eq!(w.names(logs), ["a.1", "a.3"]);
    assert_eq!(w.names(mine), ["kept"]);
}

#[test]
fn who_waits_for_a_segment_that_was_dropped_makes_one_like_it() {
    let (w, logs) = store_with(&[("keep", "2")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    w.mv(logs, b"a", b"a.1");
    let mut other = w.open(logs, b"a.1", APPEND);
    let set = SetAttr {
        perm: Some(0o600),
        ..SetAttr::default()
    };
    let ino = w.attr(logs, b"a.1").ino;
    w.store.setattr(&ROOT_USER, ino, None, &set).unwrap();
    w.put(&mut file, b"2\n");
    w.mv(logs, b"a", b"a.2");
    assert!(!w.exists(logs, b"a.1"));
    w.put(&mut other, b"3\n");
    assert_eq!(w.attr(logs, b"a.1").perm, 0o600);
}

#[test]
fn a_segment_that_was_removed_while_open_does_not_count() {
    let (w, logs) = store_with(&[("keep", "3")]);
    let mut file = w.open(logs, b"a", APPEND);
    for name in [b"a.1", b"a.2", b"a.3"] {
        w.put(&mut file, b"x\n");
        w.mv(logs, b"a", name);
    }
    assert_eq!(w.names(logs), ["a.2", "a.3"]);
    let reader = w.open(logs, b"a.3", READ);
    w.store.unlink(&ROOT_USER, logs, b"a.3").unwrap();
    w.put(&mut file, b"x\n");
    w.mv(logs, b"a", b"a.4");
    assert_eq!(w.names(logs), ["a.2", "a.4"]);
    assert_eq!(w.read(reader, 0, 10), b"x\n");
    w.close(reader);
}

#[test]
fn an_append_goes_through_where_a_segment_can_have_no_name() {
    let (w, logs) = store_with(&[("roll-lines", "1")]);
    let long = [b'n'; 250];
    let mut file = w.open(logs, &long, APPEND);
    w.put(&mut file, b"1\n2\n3\n");
    w.put(&mut file, b"4\n");
    assert_eq!(w.cat(logs, &long), b"1\n2\n3\n4\n");
    w.set(logs, "roll-name", b"%n");
    let mut file = w.open(logs, b"same", APPEND);
    w.put(&mut file, b"1\n2\n");
    assert_eq!(w.cat(logs, b"same.1"), b"1\n");
    assert_eq!(w.cat(logs, b"same.2"), b"2\n");
}

#[test]
fn an_old_date_is_no_obstacle() {
    let (w, logs) = store_with(&[("roll", "day")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    let set = SetAttr {
        mtime: Some(SetTime::At(Timestamp::from_secs(-400_000_000_000))),
        ..SetAttr::default()
    };
    let ino = w.attr(logs, b"a").ino;
    w.store.setattr(&ROOT_USER, ino, None, &set).unwrap();
    w.put(&mut file, b"2\n");
    assert_eq!(w.cat(logs, b"a.19700101"), b"1\n");
    assert_eq!(w.cat(logs, b"a"), b"2\n");
}

#[test]
fn no_handle_of_before_can_change_a_segment() {
    let (w, logs) = store_with(&[("roll-lines", "1"), ("roll-name", "%n.old")]);
    let mut other = w.open(logs, b"a.old", APPEND);
    w.store.unlink(&ROOT_USER, logs, b"a.old").unwrap();
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    assert_eq!(w.cat(logs, b"a.old.1"), b"1\n");
    w.put(&mut other, b"mine\n");
    assert_eq!(w.cat(logs, b"a.old.1"), b"1\n");
}

#[test]
fn without_records_a_full_log_takes_one_write_more() {
    let (w, logs) = store_with(&[
        ("record", "none"),
        ("roll-size", "4"),
        ("header", "a long first line"),
        ("roll-name", "%n.old"),
    ]);
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"123456");
    assert_eq!(w.cat(logs, b"a.old"), b"a long first line123456");
    assert_eq!(w.names(logs), ["a.old"]);
}

#[test]
fn records_that_end_with_nul_are_counted_right() {
    let (w, logs) = store_with(&[("record", "\\0"), ("roll-lines", "3"), ("header", "head")]);
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\x002\0");
    assert_eq!(w.cat(logs, b"a"), b"head\x001\x002\0");
    w.put(&mut file, b"3\0");
    assert!(!w.exists(logs, b"a"));
}

/// A ttl of a log's own goes on in each fresh log, and is listed as long as the file is there.
#[test]
fn the_ttl_of_a_log_itself_is_listed_with_each_file_and_no_longer() {
    let (w, logs) = store_with(&[("roll-lines", "1"), ("keep", "2")]);
    let mut file = w.open(logs, b"n", APPEND);
    w.put(&mut file, b"begun");
    w.set(w.attr(logs, b"n").ino, "ttl", b"100000");
    w.put(&mut file, b" and ended\n");
    for _ in 0..9 {
        w.put(&mut file, b"line\n");
    }
    w.put(&mut file, b"begun");
    let mut files: Vec<_> = w
        .names(logs)
        .iter()
        .map(|name| w.attr(logs, name.as_bytes()).ino)
        .collect();
    files.sort_unstable();
    assert_eq!(files.len(), 2);
    let listed = crate::fs::lifetime::listed(&*w.store.cask).unwrap();
    assert_eq!(listed, files);
}
