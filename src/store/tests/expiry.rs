//! `ttl`: segments go when they are as old as it says, and never before.

use super::*;
use crate::cask::{Class, Read};
use crate::format::{Key, Kind};
use crate::fs::segment;

const DAY: i64 = 86_400;
/// 2025-11-24 00:00:00 UTC.
const MONDAY: i64 = 1_763_942_400;

/// A directory of logs with these settings, at noon of a Monday.
fn store_with(settings: &[(&str, &str)]) -> (World, Number) {
    let w = World::new();
    let logs = w.dir(b"logs", b"log");
    for (name, value) in settings {
        w.set(logs, name, value.as_bytes());
    }
    w.at(MONDAY + DAY / 2);
    (w, logs)
}

impl World {
    /// One record in a log that nobody has open afterwards.
    fn record(&self, dir: Number, name: &[u8]) {
        let mut file = self.open(dir, name, APPEND);
        self.put(&mut file, b"a record\n");
        self.close(file);
    }

    /// A log with a record, cut by a rename under its writer, who leaves.
    fn cut_to(&self, dir: Number, name: &[u8], segment: &[u8]) {
        let mut file = self.open(dir, name, APPEND);
        self.put(&mut file, b"a record\n");
        self.mv(dir, name, segment);
        self.close(file);
    }

    pub fn tick_at(&self, secs: i64) {
        self.at(secs);
        self.store.tick().unwrap();
    }

    pub fn next_life(self) -> Self {
        self.store.close().unwrap();
        let device = MemoryDevice::from_bytes(self.store.cask().device().to_bytes());
        let secs = self.store.now().secs;
        drop(self.store);
        let next = Self::over(Arc::new(
            Cask::open(device, OpenOptions::default()).unwrap(),
        ));
        next.at(secs);
        next
    }
}

#[test]
fn a_segment_is_there_a_second_before_its_time_and_gone_then() {
    let (w, logs) = store_with(&[("ttl", "1D")]);
    let start = MONDAY + DAY / 2;
    w.cut_to(logs, b"a", b"a.1");
    w.record(logs, b"a");
    w.heard();
    for secs in [start + 1, start + DAY / 2, start + DAY - 1] {
        w.tick_at(secs);
        assert_eq!(w.names(logs), ["a", "a.1"], "{secs}");
    }
    w.tick_at(start + DAY);
    assert_eq!(w.names(logs), ["a"]);
    assert!(
        w.heard()
            .contains(&Notice::InvalidateEntry(logs, b"a.1".to_vec()))
    );
    // The live log stays, however old it is.
    w.tick_at(start + 100 * DAY);
    assert_eq!(w.cat(logs, b"a"), b"a record\n");
    assert_eq!(w.files_used(), 3);
}

#[test]
fn the_age_is_that_of_the_last_record_not_of_the_cut() {
    let (w, logs) = store_with(&[("ttl", "2h")]);
    let start = MONDAY + DAY / 2;
    let mut file = w.open(logs, b"a", APPEND);
    w.put(&mut file, b"1\n");
    w.at(start + 3600);
    w.put(&mut file, b"2\n");
    w.at(start + 5400);
    w.mv(logs, b"a", b"a.1");
    w.close(file);
    w.tick_at(start + 3 * 3600 - 1);
    assert_eq!(w.names(logs), ["a.1"]);
    w.tick_at(start + 3 * 3600);
    assert!(w.names(logs).is_empty());
}

#[test]
fn it_goes_after_a_remount_as_well_and_what_is_over_at_once() {
    for late in [0, 3 * DAY] {
        let (w, logs) = store_with(&[("ttl", "1D")]);
        let start = MONDAY + DAY / 2;
        w.cut_to(logs, b"a", b"a.1");
        let w = w.next_life();
        w.tick_at(start + DAY - 1);
        assert_eq!(w.names(logs), ["a.1"]);
        let w = w.next_life();
        w.tick_at(start + DAY + late);
        assert!(w.names(logs).is_empty());
        assert_eq!(w.files_used(), 2);
        // Nothing is left of the list either.
        w.tick_at(start + 2 * DAY + late);
        assert!(segment::homes(&**w.store.cask()).unwrap().is_empty());
    }
}

#[test]
fn logs_that_the_clock_cuts_keep_what_is_younger() {
    let (w, logs) = store_with(&[("roll", "day"), ("ttl", "3D"), ("keep", "6")]);
    let mut file = w.open(logs, b"a", APPEND);
    for quarter in 0..4 * 10 {
        let now = MONDAY + quarter * DAY / 4;
        w.tick_at(now);
        w.put(&mut file, b"a record\n");
        for name in w.names(logs) {
            let age = now - w.attr(logs, name.as_bytes()).mtime.secs;
            assert!(age < 3 * DAY, "{name} is {age} s old");
        }
        // The last record of a day comes at 18:00; at that hour the third segment goes.
        let younger = (quarter / 4).min(if quarter % 4 == 3 { 2 } else { 3 });
        assert_eq!(w.names(logs).len() as i64, 1 + younger, "{quarter}");
    }
    // The smaller of the two bounds holds.
    w.set(logs, "keep", b"2");
    w.tick_at(MONDAY + 10 * DAY);
    w.put(&mut file, b"a record\n");
    assert_eq!(w.names(logs).len(), 2);
    w.close(file);
}

#[test]
fn a_cut_drops_what_has_expired_without_the_timer() {
    let (w, logs) = store_with(&[("ttl", "1h")]);
    let start = MONDAY + DAY / 2;
    w.cut_to(logs, b"a", b"a.1");
    w.cut_to(logs, b"b", b"b.1");
    w.at(start + 3600);
    w.cut_to(logs, b"a", b"a.2");
    assert_eq!(w.names(logs), ["a.2", "b.1"], "b is another log");
}

#[test]
fn the_rule_is_that_of_the_place_where_the_segment_stands() {
    let (w, logs) = store_with(&[("ttl", "1h")]);
    let start = MONDAY + DAY / 2;
    let below = w
        .store
        .mkdir(&ROOT_USER, logs, b"old", 0o755)
        .unwrap()
        .attr
        .ino;
    let away = w.dir(b"archive", b"log");
    let to = |dir, segment: &[u8]| {
        let mut file = w.open(logs, b"a", APPEND);
        w.put(&mut file, b"a record\n");
        let flags = RenameFlags::default();
        w.store
            .rename(&ROOT_USER, logs, b"a", dir, segment, flags)
            .unwrap();
        w.close(file);
    };
    to(below, b"a.1");
    to(away, b"a.2");
    to(logs, b"a.3");
    let own = w.attr(logs, b"a.3").ino;
    w.set(own, "ttl", b"2h");
    // Linked once more: it is somebody's.
    w.cut_to(logs, b"a", b"a.4");
    let twice = w.attr(logs, b"a.4").ino;
    w.store.link(&ROOT_USER, twice, logs, b"mine").unwrap();
    w.tick_at(start + 3600);
    assert!(w.names(below).is_empty());
    assert_eq!(w.names(away), ["a.2"]);
    assert_eq!(w.names(logs), ["a.3", "a.4", "mine", "old"]);
    w.tick_at(start + 7200);
    assert_eq!(w.names(logs), ["a.4", "mine", "old"]);
    assert_eq!(w.names(away), ["a.2"]);
}

#[test]
fn a_changed_setting_holds_at_once() {
    let (w, logs) = store_with(&[]);
    let start = MONDAY + DAY / 2;
    w.cut_to(logs, b"a", b"a.1");
    w.tick_at(start + 10 * DAY);
    assert_eq!(w.names(logs), ["a.1"]);
    w.set(logs, "ttl", b"20D");
    w.tick_at(start + 11 * DAY);
    w.set(logs, "ttl", b"10D12h");
    w.tick_at(start + 11 * DAY);
    assert!(w.names(logs).is_empty());
}

#[test]
fn what_was_touched_or_is_written_again_is_not_old() {
    let (w, logs) = store_with(&[("ttl", "1h")]);
    let start = MONDAY + DAY / 2;
    w.cut_to(logs, b"a", b"touched");
    w.cut_to(logs, b"a", b"written");
    let touch = SetAttr {
        mtime: Some(SetTime::At(Timestamp::from_secs(start + 1800))),
        ..SetAttr::default()
    };
    let ino = w.attr(logs, b"touched").ino;
    w.store.setattr(&ROOT_USER, ino, None, &touch).unwrap();
    w.record(logs, b"written");
    w.tick_at(start + 5399);
    assert_eq!(w.names(logs), ["touched", "written"]);
    w.tick_at(start + 5400);
    assert_eq!(w.names(logs), ["written"], "a log of its own again");
}

#[test]
fn many_go_by_and_by_and_on_a_full_cask_too() {
    let w = World::with(FormatOptions {
        blocks: Some(1200),
        wal_bytes: Some(1 << 20),
        ..FormatOptions::default()
    });
    let logs = w.dir(b"logs", b"log");
    w.set(logs, "ttl", b"1h");
    w.at(MONDAY);
    for number in 0..300 {
        w.cut_to(logs, b"a", format!("a.{number}").as_bytes());
    }
    let mut file = w.open(logs, b"filler", APPEND);
    for len in [64 << 10, 4096, 100] {
        while w.write(&mut file, &vec![b'x'; len]).is_ok() {}
    }
    w.close(file);
    w.tick_at(MONDAY + 3599);
    assert_eq!(w.names(logs).len(), 301);
    w.tick_at(MONDAY + 3600);
    w.tick_at(MONDAY + 3600);
    assert_eq!(w.names(logs), ["filler"]);
    w.record(logs, b"a");
}

#[test]
fn a_look_goes_on_where_it_stopped_and_keeps_what_it_has_found() {
    let (w, early) = store_with(&[("ttl", "1h")]);
    let start = MONDAY + DAY / 2;
    let late = w.dir(b"late", b"log");
    w.set(late, "ttl", b"1h");
    for number in 0..600 {
        w.cut_to(late, b"a", format!("a.{number}").as_bytes());
    }
    w.at(start + 100);
    w.cut_to(early, b"a", b"a.1");
    let mut left = Vec::new();
    for _ in 0..4 {
        w.tick_at(start + 3600);
        left.push(w.names(late).len());
    }
    assert_eq!(left, [344, 88, 0, 0]);
    w.tick_at(start + 3699);
    assert_eq!(w.names(early), ["a.1"]);
    w.tick_at(start + 3700);
    assert!(w.names(early).is_empty());
}

#[test]
fn a_segment_that_cannot_be_removed_keeps_no_other() {
    let (w, logs) = store_with(&[("ttl", "1h")]);
    let start = MONDAY + DAY / 2;
    w.cut_to(logs, b"a", b"bad");
    w.cut_to(logs, b"a", b"a.1");
    w.at(start + 30);
    w.cut_to(logs, b"a", b"a.2");
    let cask = w.store.cask();
    let name = Key::new(logs, Kind::Dirent, cask.name_hash(b"bad"));
    cask.transact(Class::Grow, |tx| tx.put(name, b"no name".as_slice()))
        .unwrap();
    let there = |name: &[u8]| w.store.lookup(&ROOT_USER, logs, name).is_ok();
    w.tick_at(start + 3600);
    assert!(!there(b"a.1"));
    assert!(there(b"a.2"));
    w.tick_at(start + 3630);
    assert!(!there(b"a.2"));
}
