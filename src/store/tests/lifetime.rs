//! `ttl` of files: there until their time, then gone for everybody at once, removed later.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::cask::{Class, Read, Tx};
use crate::format::{Key, Kind};

/// A value store with this `ttl`.
fn sessions(ttl: &[u8]) -> (World, Number) {
    sessions_of(10_000, ttl)
}

/// The same in a cask for so many files.
fn sessions_of(files: u64, ttl: &[u8]) -> (World, Number) {
    let w = World::with(FormatOptions {
        blocks: Some(16_384),
        wal_bytes: Some(4 << 20),
        secret: [3; 32],
        files: Some(files),
        ..FormatOptions::default()
    });
    let dir = w.dir(b"sessions", b"value");
    w.set(dir, "ttl", ttl);
    (w, dir)
}

impl World {
    fn keep(&self, dir: Number, name: &[u8], data: &[u8]) {
        let mut file = self.open(dir, name, TRUNCATE);
        self.put(&mut file, data);
        self.close(file);
    }

    fn touch(&self, dir: Number, name: &[u8], mtime: SetTime) {
        let set = SetAttr {
            mtime: Some(mtime),
            ..SetAttr::default()
        };
        let ino = self.attr(dir, name).ino;
        self.store.setattr(&WRITER, ino, None, &set).unwrap();
    }

    /// What `ls -l` would list.
    fn listed(&self, dir: Number) -> Vec<Vec<u8>> {
        let mut names = Vec::new();
        self.store
            .readdir(dir, 2, true, &mut |entry, found| {
                assert!(found.is_some());
                names.push(entry.name.clone());
                true
            })
            .unwrap();
        names
    }

    fn free_files(&self) -> u64 {
        self.store.statfs().unwrap().files_free
    }

    fn ticks(&self) {
        for _ in 0..3 {
            self.store.tick().unwrap();
        }
    }

    #[track_caller]
    fn check_ages(&self) {
        let ages = &self.store.ages;
        assert!(ages.count(&self.store.cask, usize::MAX).unwrap());
        let kept = ages.kept();
        for (dir, steps) in ages.found(&self.store.cask).unwrap() {
            // One in which nothing ends need not be known.
            let kept = kept.get(&dir).cloned().unwrap_or_default();
            assert_eq!(kept, steps, "directory {dir}");
        }
    }
}

#[test]
fn a_session_is_there_until_its_time_and_then_for_nobody() {
    let (w, dir) = sessions(b"30m");
    w.at(5_000);
    w.keep(dir, b"a", b"one");
    w.keep(dir, b"b", b"two");
    w.at(5_001);
    w.keep(dir, b"c", b"three");
    w.ticks();
    w.at(5_000 + 1_799);
    let entry = w.store.lookup(&WRITER, dir, b"a").unwrap();
    assert_eq!(entry.left, Some(Duration::from_secs(1)));
    assert_eq!(w.names(dir), ["a", "b", "c"]);
    let free = w.free_files();
    // Not a nanosecond early, and without a tick.
    w.clock.set(Timestamp {
        secs: 5_000 + 1_799,
        nanos: 999_999_999,
    });
    assert_eq!(w.cat(dir, b"a"), b"one");
    w.at(5_000 + 1_800);
    assert!(!w.exists(dir, b"a"));
    assert_eq!(w.names(dir), ["c"]);
    assert_eq!(w.listed(dir), [b"c"]);
    assert_eq!(errno(w.open_by(&WRITER, dir, b"b", READ)), libc::ENOENT);
    assert_eq!(
        errno(w.store.open(&WRITER, entry.attr.ino, READ)),
        libc::ESTALE
    );
    assert_eq!(w.files_used(), 5);
    w.at(5_000 + 1_801);
    assert_eq!(w.free_files(), free + 2);
    w.ticks();
    assert_eq!(w.files_used(), 2);
    assert_eq!(w.free_files(), free + 3);
    w.check_ages();
}

#[test]
fn a_save_or_a_touch_gives_a_new_life() {
    let (w, dir) = sessions(b"100");
    for name in [b"saved".as_slice(), b"touched", b"left", b"read"] {
        w.keep(dir, name, b"x");
    }
    w.at(1_099);
    w.keep(dir, b"saved", b"y");
    w.touch(dir, b"touched", SetTime::Now);
    assert_eq!(w.cat(dir, b"read"), b"x");
    w.tick_at(1_100);
    assert_eq!(w.names(dir), ["saved", "touched"]);
    w.tick_at(1_198);
    assert_eq!(w.names(dir), ["saved", "touched"]);
    // Into the past, too; the kernel is told that it believes the name too long.
    w.heard();
    w.touch(dir, b"touched", SetTime::At(Timestamp::from_secs(1_000)));
    assert!(
        w.heard()
            .contains(&Notice::InvalidateEntry(dir, b"touched".to_vec()))
    );
    assert_eq!(w.names(dir), ["saved"]);
    w.check_ages();
    w.tick_at(1_199);
    assert!(w.names(dir).is_empty());
    w.ticks();
    assert_eq!(w.files_used(), 2);
}

#[test]
fn every_level_counts_and_logs_have_their_own_rule() {
    let w = World::new();
    w.set(ROOT, "ttl", b"100");
    let sub = w.dir(b"sub", b"value");
    let lasting = w.dir(b"lasting", b"plain");
    w.set(lasting, "ttl", b"none");
    let logs = w.dir(b"logs", b"log");
    for dir in [ROOT, sub, lasting, logs] {
        w.keep(dir, b"a", b"x");
        w.keep(dir, b"own", b"x");
    }
    let own = w.attr(lasting, b"own").ino;
    w.set(own, "ttl", b"50");
    w.set(w.attr(sub, b"own").ino, "ttl", b"150");
    w.check_ages();
    w.tick_at(1_050);
    assert_eq!(w.names(lasting), ["a"]);
    w.at(1_051);
    w.ticks();
    assert_eq!(w.files_used(), 4 + 7);
    w.tick_at(1_100);
    assert_eq!(w.names(ROOT), ["lasting", "logs", "sub"]);
    assert_eq!(w.names(sub), ["own"]);
    assert_eq!(w.names(logs), ["a", "own"]);
    w.tick_at(1_150);
    assert!(w.names(sub).is_empty());
    w.ticks();
    w.check_ages();
    assert_eq!(w.files_used(), 4 + 3);
    // Nothing is left to remove where it was taken back.
    w.set(ROOT, "ttl", b"none");
    w.keep(sub, b"a", b"x");
    w.tick_at(100_000);
    assert_eq!(w.names(sub), ["a"]);
}

#[test]
fn what_is_open_or_has_two_names_lives_on() {
    let (w, dir) = sessions(b"100");
    w.keep(dir, b"open", b"old");
    w.keep(dir, b"linked", b"x");
    let linked = w.attr(dir, b"linked").ino;
    w.store.link(&WRITER, linked, ROOT, b"other").unwrap();
    let mut writer = w.open(dir, b"open", TRUNCATE);
    w.put(&mut writer, b"new");
    w.tick_at(1_500);
    assert_eq!(w.names(dir), ["linked", "open"]);
    assert_eq!(w.cat(dir, b"open"), b"old");
    w.ticks();
    // Who began before its end and saves after it keeps it.
    w.close(writer);
    assert_eq!(w.cat(dir, b"open"), b"new");
    w.tick_at(1_599);
    assert_eq!(w.names(dir), ["linked", "open"]);
    w.tick_at(1_600);
    assert_eq!(w.names(dir), ["linked"]);
    // With one name it has an end again.
    w.store.unlink(&WRITER, ROOT, b"other").unwrap();
    let reader = w.open(dir, b"open", WRITE);
    w.close(reader);
    w.ticks();
    w.check_ages();
}

#[test]
fn a_name_that_is_over_is_free_for_anything() {
    let (w, dir) = sessions(b"100");
    let names = [
        b"create".as_slice(),
        b"excl",
        b"dir",
        b"symlink",
        b"link",
        b"to",
        b"node",
    ];
    let fresh = |at: i64| {
        w.at(at);
        names.map(|name| {
            w.keep(dir, name, b"old content");
            w.attr(dir, name).ino
        })
    };
    let old = fresh(1_000);
    w.keep(ROOT, b"source", b"source");
    let source = w.attr(ROOT, b"source").ino;
    w.at(1_100);
    let mut file = w.open(dir, b"create", WRITE);
    assert_ne!(file.ino, old[0]);
    w.put(&mut file, b"new");
    w.close(file);
    assert_eq!(w.cat(dir, b"create"), b"new");
    let file = w.open(dir, b"excl", EXCLUSIVE);
    assert_ne!(file.ino, old[1]);
    w.close(file);
    assert_eq!(w.attr(dir, b"excl").size, 0);
    w.store.mkdir(&WRITER, dir, b"dir", 0o755).unwrap();
    w.store
        .symlink(&WRITER, dir, b"symlink", b"target")
        .unwrap();
    w.store.link(&WRITER, source, dir, b"link").unwrap();
    let flags = RenameFlags {
        no_replace: true,
        ..RenameFlags::default()
    };
    w.store
        .rename(&WRITER, ROOT, b"source", dir, b"to", flags)
        .unwrap();
    let kind = FileKind::Fifo;
    w.store
        .mknod(&WRITER, dir, b"node", kind, 0o600, 0)
        .unwrap();
    assert_eq!(w.names(dir).len(), names.len());
    w.ticks();
    assert_eq!(w.names(dir).len(), names.len());
    // A file that is not over is in the way as ever.
    w.at(1_150);
    assert_eq!(
        errno(w.store.mkdir(&WRITER, dir, b"excl", 0o755)),
        libc::EEXIST
    );
    w.check_ages();
}

#[test]
fn a_directory_of_nothing_but_what_is_over_is_empty() {
    let (w, dir) = sessions(b"100");
    let sub = w.store.mkdir(&WRITER, dir, b"sub", 0o755).unwrap().attr.ino;
    for number in 0..700 {
        w.keep(sub, format!("s{number}").as_bytes(), b"x");
    }
    let other = w.store.mkdir(&WRITER, ROOT, b"other", 0o755).unwrap();
    assert_eq!(errno(w.store.rmdir(&WRITER, dir, b"sub")), libc::ENOTEMPTY);
    w.at(1_100);
    let flags = RenameFlags::default();
    w.store
        .rename(&WRITER, ROOT, b"other", dir, b"sub", flags)
        .unwrap();
    assert_eq!(w.attr(dir, b"sub").ino, other.attr.ino);
    w.keep(other.attr.ino, b"x", b"x");
    w.at(1_200);
    w.store.rmdir(&WRITER, dir, b"sub").unwrap();
    assert!(w.names(dir).is_empty());
    assert_eq!(w.files_used(), 2);
}

#[test]
fn who_finds_no_room_gets_that_of_what_is_over() {
    let (w, dir) = sessions_of(400, b"100");
    for number in 0..398 {
        w.keep(dir, format!("s{number}").as_bytes(), b"x");
    }
    let make = |name: &[u8]| w.store.create(&WRITER, dir, name, 0o600, EXCLUSIVE);
    assert_eq!(errno(make(b"more").map(drop)), libc::ENOSPC);
    assert!(!w.store.make_room().unwrap());
    w.at(1_101);
    assert_eq!(w.free_files(), 398);
    assert_eq!(errno(make(b"more").map(drop)), libc::ENOSPC);
    assert!(w.store.make_room().unwrap());
    make(b"more").unwrap();
    assert!(w.store.make_room().unwrap());
    assert!(!w.store.make_room().unwrap());
    assert_eq!(w.files_used(), 3);
}

#[test]
fn what_nobody_looks_at_is_removed_also_in_the_next_life() {
    let (w, dir) = sessions(b"100");
    for number in 0..5_000 {
        w.keep(dir, format!("s{number}").as_bytes(), b"x");
    }
    let w = w.next_life();
    w.tick_at(1_099);
    assert_eq!(w.files_used(), 5_002);
    // So many at a time that nobody waits for long.
    w.tick_at(1_101);
    assert_eq!(w.files_used(), 5_002 - 2_000);
    w.tick_at(1_101);
    w.tick_at(1_101);
    w.tick_at(1_101);
    assert_eq!(w.files_used(), 2);
}

#[test]
fn a_directory_that_comes_into_reach_is_counted() {
    let (w, dir) = sessions(b"100");
    let sub = w.dir(b"sub", b"value");
    w.keep(sub, b"a", b"x");
    w.ticks();
    let flags = RenameFlags::default();
    w.store
        .rename(&WRITER, ROOT, b"sub", dir, b"sub", flags)
        .unwrap();
    w.at(1_100);
    assert!(w.names(sub).is_empty());
    w.at(1_101);
    w.ticks();
    assert_eq!(w.files_used(), 3);
    // And one that leaves it keeps what it has.
    w.keep(sub, b"b", b"x");
    w.store
        .rename(&WRITER, dir, b"sub", ROOT, b"sub", flags)
        .unwrap();
    w.at(5_000);
    w.ticks();
    assert_eq!(w.names(sub), ["b"]);
    w.check_ages();
}

#[test]
fn what_is_moved_into_reach_is_not_believed_longer_than_it_has() {
    let (w, dir) = sessions(b"100");
    let out = w.dir(b"out", b"value");
    w.keep(out, b"a", b"x");
    let sub = w.store.mkdir(&WRITER, out, b"sub", 0o755).unwrap().attr.ino;
    w.keep(sub, b"b", b"x");
    w.heard();
    let flags = RenameFlags::default();
    let mv = |name: &[u8], to: Number| {
        w.store.rename(&WRITER, out, name, to, name, flags).unwrap();
        w.heard()
    };
    let told = |name: &[u8]| Notice::InvalidateEntry(dir, name.to_vec());
    assert!(mv(b"a", dir).contains(&told(b"a")));
    assert!(!mv(b"sub", dir).contains(&told(b"sub")));
    // Names below it are told of as they go.
    w.at(1_101);
    w.ticks();
    let gone = w.heard();
    assert!(gone.contains(&Notice::InvalidateEntry(sub, b"b".to_vec())));
    assert_eq!(w.files_used(), 4);
}

#[test]
fn a_file_with_an_end_of_its_own_is_counted_wherever_it_goes() {
    let (w, dir) = sessions(b"none");
    let out = w.dir(b"out", b"value");
    w.keep(out, b"a", b"x");
    w.set(w.attr(out, b"a").ino, "ttl", b"20");
    w.ticks();
    let flags = RenameFlags::default();
    w.store
        .rename(&WRITER, out, b"a", dir, b"b", flags)
        .unwrap();
    w.check_ages();
    // Nobody looks at it.
    w.at(1_021);
    w.ticks();
    assert_eq!(w.files_used(), 3);
}

#[derive(Clone, Debug)]
enum Step {
    Save(u8, u8, u16),
    Touch(u8, u8, i64),
    Remove(u8, u8),
    Move(u8, u8, u8, u8),
    Link(u8, u8, u8, u8),
    Make(u8, u8),
    Own(u8, u8, u8),
    Ttl(u8, u8),
    Later(u8),
    Count(u16),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    let (d, n) = (0..4u8, 0..12u8);
    prop_oneof![
        6 => (d.clone(), n.clone(), any::<u16>()).prop_map(|(d, n, s)| Step::Save(d, n, s)),
        2 => (d.clone(), n.clone(), 900..1_200i64).prop_map(|(d, n, t)| Step::Touch(d, n, t)),
        2 => (d.clone(), n.clone()).prop_map(|(d, n)| Step::Remove(d, n)),
        2 => (d.clone(), n.clone(), d.clone(), n.clone()).prop_map(|(a, b, c, e)| Step::Move(a, b, c, e)),
        1 => (d.clone(), n.clone(), d.clone(), n.clone()).prop_map(|(a, b, c, e)| Step::Link(a, b, c, e)),
        1 => (d.clone(), n.clone()).prop_map(|(d, n)| Step::Make(d, n)),
        1 => (d.clone(), n, 0..4u8).prop_map(|(d, n, t)| Step::Own(d, n, t)),
        1 => (d, 0..4u8).prop_map(|(d, t)| Step::Ttl(d, t)),
        2 => (0..30u8).prop_map(Step::Later),
        1 => (0..600u16).prop_map(Step::Count),
        1 => Just(Step::Tick),
    ]
}

proptest! {
    // A case that fails becomes a test of its own.
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    /// Whatever is done, and wherever a count is interrupted, the counts stay right; and what is shown
    /// is what is not over.
    #[test]
    fn the_counts_are_what_a_count_would_find(steps in proptest::collection::vec(step(), 1..80)) {
        let (w, first) = sessions(b"60");
        let inner = w.store.mkdir(&WRITER, first, b"inner", 0o755).unwrap().attr.ino;
        let outer = w.dir(b"outer", b"value");
        let dirs = [ROOT, first, inner, outer];
        let dir = |d: u8| dirs[usize::from(d)];
        let name = |n: u8| format!("n{n}").into_bytes();
        let found = |d: u8, n: u8| w.store.lookup(&WRITER, dir(d), &name(n)).ok().map(|found| found.attr);
        let mut now = 1_000;
        for step in steps {
            match step {
                Step::Save(d, n, size) => {
                    if found(d, n).is_none_or(|attr| attr.kind == FileKind::Regular) {
                        w.keep(dir(d), &name(n), &vec![7; usize::from(size)]);
                    }
                }
                Step::Touch(d, n, time) => {
                    if found(d, n).is_some() {
                        w.touch(dir(d), &name(n), SetTime::At(Timestamp::from_secs(time)));
                    }
                }
                Step::Remove(d, n) => drop(w.store.unlink(&WRITER, dir(d), &name(n))),
                Step::Move(a, b, c, e) => {
                    let flags = RenameFlags::default();
                    drop(w.store.rename(&WRITER, dir(a), &name(b), dir(c), &name(e), flags));
                }
                Step::Link(a, b, c, e) => {
                    if let Some(attr) = found(a, b) {
                        drop(w.store.link(&WRITER, attr.ino, dir(c), &name(e)));
                    }
                }
                Step::Make(d, n) => drop(w.store.mkdir(&WRITER, dir(d), &name(n), 0o755)),
                Step::Own(d, n, t) => {
                    if let Some(attr) = found(d, n) {
                        w.set(attr.ino, "ttl", [b"none".as_slice(), b"20", b"60", b"200"][usize::from(t)]);
                    }
                }
                Step::Ttl(d, t) => w.set(dir(d), "ttl", [b"none".as_slice(), b"20", b"60", b"200"][usize::from(t)]),
                Step::Later(secs) => {
                    now += i64::from(secs);
                    w.at(now);
                }
                Step::Count(names) => drop(w.store.ages.count(&w.store.cask, usize::from(names)).unwrap()),
                Step::Tick => w.store.tick().unwrap(),
            }
        }
        w.check_ages();
        for d in 0..4 {
            let listed: Vec<_> = w.names(dir(d));
            for n in 0..12 {
                let there = found(d, n).is_some();
                let name = format!("n{n}");
                prop_assert_eq!(there, listed.contains(&name));
            }
        }
    }
}

impl World {
    /// No names can be read of this hash any more.
    fn spoil(&self, dir: Number, hash: u64) {
        let key = Key::new(dir, Kind::Dirent, hash);
        let spoilt = |tx: &mut Tx<'_, _>| tx.put(key, b"no names".as_slice());
        self.store.cask.transact(Class::Grow, spoilt).unwrap();
    }

    /// Removes all of a directory; the names, and the errno.
    fn expired(
        &self,
        dir: Number,
        seen: &mut dyn FnMut(usize),
    ) -> (BTreeSet<Vec<u8>>, Result<(), i32>) {
        let mut gone = BTreeSet::new();
        let outcome = self
            .store
            .expire(dir, self.store.now(), &|_| true, &mut |name| {
                gone.insert(name.to_vec());
                seen(gone.len());
            });
        (gone, outcome.map_err(|error| error.errno()))
    }
}

#[test]
fn names_that_cannot_be_read_keep_those_before_them_from_nothing() {
    let (w, dir) = sessions(b"100");
    let names: Vec<Vec<u8>> = (0..600).map(|n| format!("s{n}").into_bytes()).collect();
    names.iter().for_each(|name| w.keep(dir, name, b"x"));
    let hash = |name: &[u8]| w.store.cask.name_hash(name);
    let mut hashes: Vec<u64> = names.iter().map(|name| hash(name)).collect();
    hashes.sort_unstable();
    // In the second piece of names that is read.
    w.spoil(dir, hashes[400] + 1);
    let before: BTreeSet<_> = names
        .into_iter()
        .filter(|n| hash(n) <= hashes[400])
        .collect();
    assert_eq!(w.expired(dir, &mut |_| {}), (before, Err(libc::EIO)));
    assert_eq!(
        w.expired(dir, &mut |_| {}),
        (BTreeSet::new(), Err(libc::EIO))
    );
}

#[test]
fn a_file_that_cannot_be_removed_keeps_no_other_of_its_batch() {
    let (w, dir) = sessions(b"100");
    let names: Vec<Vec<u8>> = (0..70).map(|n| format!("s{n}").into_bytes()).collect();
    names.iter().for_each(|name| w.keep(dir, name, b"x"));
    let (gone, outcome) = w.expired(dir, &mut |count| {
        if count == 1 {
            w.spoil(dir, w.store.cask.name_hash(b"s40"));
        }
    });
    assert_eq!(outcome, Err(libc::EIO));
    let wanted: BTreeSet<_> = names.into_iter().filter(|name| name != b"s40").collect();
    assert_eq!(gone, wanted);
}

#[test]
fn who_finds_no_room_is_not_told_what_is_wrong_with_others() {
    let (w, dir) = sessions_of(400, b"100");
    for number in 0..300 {
        w.keep(dir, format!("s{number}").as_bytes(), b"x");
    }
    w.ticks();
    w.at(1_101);
    w.spoil(dir, u64::MAX >> 3);
    // What stands before it is removed.
    while w.store.make_room().unwrap() {}
    assert!(w.files_used() < 60, "{}", w.files_used());
}
