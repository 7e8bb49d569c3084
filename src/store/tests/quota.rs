//! Limits: refused before anything is accepted, counted right whatever happens.

use super::*;

/// A log store with this limit.
fn limited(setting: &str, value: &[u8]) -> (World, Number) {
    let w = World::new();
    let dir = w.dir(b"dir", b"log");
    w.set(dir, setting, value);
    (w, dir)
}

impl World {
    fn rename(&self, from: (Number, &[u8]), to: (Number, &[u8])) -> Result<()> {
        let flags = RenameFlags::default();
        self.store
            .rename(&ROOT_USER, from.0, from.1, to.0, to.1, flags)
            .map(drop)
    }

    /// What is kept of each directory that has a limit is what a count finds.
    #[track_caller]
    fn check_counts(&self) {
        let (mut kept, found) = self.store.quotas.kept_and_found(&*self.store.cask).unwrap();
        kept.retain(|dir, _| found.contains_key(dir));
        assert_eq!(kept, found);
    }
}

#[test]
fn a_write_beyond_the_limit_is_refused_whole_and_room_comes_back() {
    let (w, dir) = limited("limit", b"100");
    let mut log = w.open(dir, b"a", APPEND);
    let record = |len: usize| [vec![b'1'; len - 1], vec![b'\n']].concat();
    w.put(&mut log, &record(60));
    assert_eq!(errno(w.write(&mut log, &record(41))), libc::EDQUOT);
    assert_eq!(w.cat(dir, b"a"), record(60));
    w.put(&mut log, &record(40));
    assert_eq!(errno(w.write(&mut log, b"3")), libc::EDQUOT);
    // A cut goes through, whatever the limit; a segment that leaves makes room, wherever it goes.
    w.mv(dir, b"a", b"a.1");
    assert_eq!(errno(w.write(&mut log, b"3")), libc::EDQUOT);
    w.rename((dir, b"a.1"), (ROOT, b"out")).unwrap();
    w.put(&mut log, b"3\n");
    assert_eq!(
        errno(w.rename((ROOT, b"out"), (dir, b"back"))),
        libc::EDQUOT
    );
    assert_eq!(w.cat(ROOT, b"out").len(), 100);
    w.store.unlink(&ROOT_USER, dir, b"a").unwrap();
    w.rename((ROOT, b"out"), (dir, b"back")).unwrap();
    assert_eq!(errno(w.write(&mut log, b"4")), libc::EDQUOT);
    w.store.unlink(&ROOT_USER, dir, b"back").unwrap();
    w.put(&mut log, b"4\n");
    w.check_counts();
}

#[test]
fn all_levels_hold_and_what_was_there_counts() {
    let w = World::new();
    let outer = w.dir(b"outer", b"plain");
    let inner = w.store.mkdir(&ROOT_USER, outer, b"in", 0o755).unwrap();
    let inner = inner.attr.ino;
    let mut file = w.open(inner, b"a", WRITE);
    w.put(&mut file, &[1; 50]);
    w.set(outer, "limit", b"100");
    w.set(inner, "limit", b"1k");
    w.put(&mut file, &[1; 50]);
    assert_eq!(errno(w.write(&mut file, b"2")), libc::EDQUOT);
    w.set(inner, "limit", b"10");
    w.set(outer, "limit", b"none");
    assert_eq!(errno(w.write(&mut file, b"2")), libc::EDQUOT);
    // Below the limit or not, it may get shorter.
    w.ftruncate(file, 60).unwrap();
    w.ftruncate(file, 5).unwrap();
    assert_eq!(errno(w.ftruncate(file, 11)), libc::EDQUOT);
    w.ftruncate(file, 10).unwrap();
    w.check_counts();
    let w = w.again();
    let file = w.open(inner, b"a", WRITE);
    assert_eq!(errno(w.ftruncate(file, 11)), libc::EDQUOT);
    w.check_counts();
}

#[test]
fn files_count_and_names_do_not() {
    let (w, dir) = limited("limit-files", b"3");
    w.close(w.open(dir, b"a", APPEND));
    let sub = w.store.mkdir(&ROOT_USER, dir, b"sub", 0o755).unwrap();
    w.close(w.open(sub.attr.ino, b"b", APPEND));
    let refused = w.store.mkdir(&ROOT_USER, dir, b"more", 0o755);
    assert_eq!(errno(refused), libc::EDQUOT);
    assert_eq!(
        errno(w.open_by(&ROOT_USER, dir, b"c", APPEND)),
        libc::EDQUOT
    );
    assert!(!w.exists(dir, b"c"));
    let a = w.attr(dir, b"a").ino;
    w.store.link(&ROOT_USER, a, dir, b"a2").unwrap();
    w.store.unlink(&ROOT_USER, sub.attr.ino, b"b").unwrap();
    w.close(w.open(dir, b"c", APPEND));
    w.check_counts();
}

#[test]
fn a_directory_takes_with_it_what_stands_below_it() {
    let (w, dir) = limited("limit-files", b"5");
    let tree = w.dir(b"tree", b"plain");
    let deep = w.store.mkdir(&ROOT_USER, tree, b"deep", 0o755).unwrap();
    for name in [b"a", b"b", b"c"] {
        w.close(w.open(deep.attr.ino, name, WRITE));
    }
    w.rename((ROOT, b"tree"), (dir, b"tree")).unwrap();
    w.check_counts();
    assert_eq!(
        errno(w.open_by(&ROOT_USER, tree, b"d", WRITE)),
        libc::EDQUOT
    );
    w.rename((dir, b"tree"), (ROOT, b"tree")).unwrap();
    w.close(w.open(tree, b"d", WRITE));
    assert_eq!(
        errno(w.rename((ROOT, b"tree"), (dir, b"tree"))),
        libc::EDQUOT
    );
    w.check_counts();
}

#[test]
fn a_value_is_refused_when_it_is_written_not_when_it_is_closed() {
    let w = World::new();
    let dir = w.dir(b"dir", b"value");
    w.set(dir, "limit", b"100");
    let mut one = w.open(dir, b"a", TRUNCATE);
    w.put(&mut one, &[1; 60]);
    w.close(one);
    let mut two = w.open(dir, b"b", TRUNCATE);
    assert_eq!(errno(w.write(&mut two, &[2; 41])), libc::EDQUOT);
    w.put(&mut two, &[2; 40]);
    w.close(two);
    let mut again = w.open(dir, b"a", TRUNCATE);
    w.put(&mut again, &[3; 60]);
    assert_eq!(errno(w.write(&mut again, &[3; 1])), libc::EDQUOT);
    w.close(again);
    assert_eq!(w.cat(dir, b"a"), [3; 60]);
    assert_eq!(w.cat(dir, b"b"), [2; 40]);
    w.check_counts();
}

#[test]
fn a_store_that_drops_its_oldest_segments_goes_on_at_its_limit() {
    let (w, dir) = limited("limit", b"40");
    w.set(dir, "roll-size", b"10");
    w.set(dir, "keep", b"3");
    let mut log = w.open(dir, b"a", APPEND);
    for number in 100..200 {
        w.put(&mut log, format!("{number}\n").as_bytes());
    }
    w.check_counts();
}

#[test]
fn counts_are_right_whatever_is_done() {
    let w = World::new();
    let mut dice = 7u64;
    let mut roll = |bound: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) % bound
    };
    let top = w.dir(b"top", b"plain");
    let mut dirs = vec![ROOT, top];
    for (parent, name) in [(top, b"x"), (top, b"y"), (ROOT, b"z")] {
        let made = w.store.mkdir(&ROOT_USER, parent, name, 0o755).unwrap();
        dirs.push(made.attr.ino);
    }
    for dir in &dirs[1..] {
        w.set(*dir, "limit", b"3000");
        w.set(*dir, "limit-files", b"12");
    }
    w.set(dirs[3], "mode", b"value");
    w.set(dirs[4], "mode", b"log");
    let names: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"x", b"y"];
    let mut refused = 0;
    for _ in 0..4000 {
        let dir = dirs[roll(5) as usize];
        let other = dirs[roll(5) as usize];
        let (name, new) = (names[roll(6) as usize], names[roll(6) as usize]);
        let done = match roll(9) {
            0..=3 => w.open_by(&ROOT_USER, dir, name, APPEND).and_then(|mut f| {
                let done = w.write(&mut f, &vec![1; roll(700) as usize]);
                w.close(f);
                done
            }),
            4 => w.rename((dir, name), (other, new)),
            5 => w.store.unlink(&ROOT_USER, dir, name).map(drop),
            6 => w.store.mkdir(&ROOT_USER, dir, new, 0o755).map(drop),
            7 => w.store.rmdir(&ROOT_USER, dir, name).map(drop),
            _ => w
                .store
                .lookup(&ROOT_USER, dir, name)
                .and_then(|f| w.store.link(&ROOT_USER, f.attr.ino, other, new))
                .map(drop),
        };
        refused += u32::from(done.is_err_and(|error| error.errno() == libc::EDQUOT));
        w.check_counts();
    }
    assert!(refused > 50, "refused {refused} times");
}

#[test]
fn a_rename_cuts_whatever_the_limit_is() {
    let (w, dir) = limited("limit-files", b"1");
    let mut log = w.open(dir, b"a", APPEND);
    w.put(&mut log, b"1\nbegun");
    w.mv(dir, b"a", b"a.1");
    assert_eq!(w.cat(dir, b"a"), b"begun");
    w.put(&mut log, b", ended\n");
    w.check_counts();
    w.mv(dir, b"a", b"a.2");
    assert_eq!(errno(w.write(&mut log, b"2\n")), libc::EDQUOT);
    w.store.unlink(&ROOT_USER, dir, b"a.1").unwrap();
    assert_eq!(errno(w.write(&mut log, b"2\n")), libc::EDQUOT);
    w.store.unlink(&ROOT_USER, dir, b"a.2").unwrap();
    w.put(&mut log, b"2\n");
    w.check_counts();
}

#[test]
fn counts_outlive_other_settings_but_not_the_limit() {
    let (w, dir) = limited("limit", b"10");
    let sub = w.store.mkdir(&ROOT_USER, dir, b"sub", 0o755).unwrap();
    let mut log = w.open(sub.attr.ino, b"a", APPEND);
    w.put(&mut log, b"123456\n");
    w.set(dir, "keep", b"3");
    w.rename((dir, b"sub"), (ROOT, b"sub")).unwrap();
    w.check_counts();
    w.put(&mut log, b"123456\n");
    w.set(dir, "limit", b"none");
    assert!(w.rename((ROOT, b"sub"), (dir, b"sub")).is_ok());
    w.put(&mut log, b"123456\n");
    w.set(dir, "limit", b"22");
    w.check_counts();
    assert_eq!(errno(w.write(&mut log, b"12\n")), libc::EDQUOT);
    w.put(&mut log, b"\n");
    w.check_counts();
}
