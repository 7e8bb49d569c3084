//! Tables behind the door: everything once, in order of arrival.

use super::*;

impl World {
    fn door(&self, dir: Number) -> Number {
        self.attr(dir, b".cask").ino
    }

    fn table(&self, dir: Number, table: &[u8]) -> Vec<u8> {
        let cat = self.attr(self.door(dir), b"cat").ino;
        let bytes = self.cat(cat, table);
        assert_eq!(self.attr(cat, table).size, bytes.len() as u64);
        bytes
    }

    /// The logs of two processes of one table.
    fn two(&self, acc: Number) -> (File, File) {
        let open = |name| self.open(acc, name, APPEND);
        (open(b"acc_1.log"), open(b"acc_2.log"))
    }

    /// The same cask with nothing in memory.
    pub(super) fn again(self) -> Self {
        World::over(Arc::clone(&self.store.cask))
    }
}

#[test]
fn records_of_all_processes_stand_in_their_order() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    let mut files: Vec<_> = (1..4)
        .map(|n| w.open(acc, format!("acc_{n}.log").as_bytes(), APPEND))
        .collect();
    let mut expected = Vec::new();
    for n in 0..200usize {
        let line = format!("{n}\n");
        w.put(&mut files[(n * n / 3) % 3], line.as_bytes());
        expected.extend_from_slice(line.as_bytes());
        match n {
            70 => w.mv(acc, b"acc_1.log", b"acc_1.log.1"),
            120 => w.mv(acc, b"acc_2.log", b"acc_2.log.2005"),
            _ => {}
        }
    }
    assert_eq!(w.table(acc, b"acc"), expected);
    assert_eq!(w.names(w.attr(w.door(acc), b"cat").ino), ["acc"]);
}

#[test]
fn one_that_is_not_mentioned_comes_first_and_what_is_left_last() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    let mut one = w.open(acc, b"acc_1.log", APPEND);
    w.put(&mut one, b"1\n");
    w.at(2_000_000_000);
    w.set(acc, "mode", b"plain");
    let mut copy = w.open(acc, b"acc_1.log.0", APPEND);
    w.put(&mut copy, b"0\n");
    w.close(copy);
    let mut gz = w.open(acc, b"acc_1.log.9.gz", APPEND);
    w.put(&mut gz, b"packed");
    w.close(gz);
    w.set(acc, "mode", b"log");
    w.put(&mut one, b"2\n");
    assert_eq!(w.table(acc, b"acc"), b"0\n1\n2\n");
}

#[test]
fn a_stream_is_what_was_there_when_it_was_opened() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    let (mut one, mut two) = w.two(acc);
    w.put(&mut one, b"1\n");
    w.put(&mut two, b"2\n");
    let cat = w.attr(w.door(acc), b"cat").ino;
    let stream = w.open(cat, b"acc", READ);
    w.put(&mut one, b"3\n");
    w.store.unlink(&ROOT_USER, acc, b"acc_2.log").unwrap();
    assert_eq!(w.read(stream, 0, 100), b"1\n2\n");
    assert_eq!(w.read(stream, 3, 100), b"\n");
    assert_eq!(w.read(stream, 1, 2), b"\n2");
    assert_eq!(w.read(stream, 9, 100), b"");
    w.close(stream);
    assert_eq!(w.table(acc, b"acc"), b"1\n3\n");
    assert_eq!(
        errno(w.open_by(&ROOT_USER, cat, b"acc", APPEND)),
        libc::EPERM
    );
    assert_eq!(errno(w.store.lookup(&ROOT_USER, cat, b"acd")), libc::ENOENT);
    let plain = w.dir(b"plain", b"plain");
    let door = w.door(plain);
    assert!(!w.exists(door, b"cat"));
}

#[test]
fn the_order_survives() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    let (mut one, mut two) = w.two(acc);
    w.put(&mut one, b"1\n");
    w.put(&mut two, b"2\n");
    w.put(&mut one, b"3\n");
    let w = w.again();
    let (mut one, mut two) = w.two(acc);
    w.put(&mut one, b"4\n");
    w.put(&mut two, b"5\n");
    w.put(&mut one, b"6\n");
    assert_eq!(w.table(acc, b"acc"), b"1\n2\n3\n4\n5\n6\n");
}

#[test]
fn a_log_that_cuts_itself_within_a_write_stays_in_order() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    w.set(acc, "roll-lines", b"2");
    let (mut one, mut two) = w.two(acc);
    w.put(&mut one, b"1\n2\n3\n4\n5\n");
    w.put(&mut two, b"6\n7\n8\n");
    w.put(&mut one, b"9\n10\n");
    assert_eq!(w.table(acc, b"acc"), b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n");
}

#[test]
fn whose_files_one_may_not_read_their_table_one_may_not_read() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    let (mut one, mut two) = w.two(acc);
    w.put(&mut one, b"1\n");
    w.put(&mut two, b"2\n");
    let cat = w.attr(w.door(acc), b"cat").ino;
    let set = |perm, uid| SetAttr {
        perm: Some(perm),
        uid,
        ..SetAttr::default()
    };
    let file = w.attr(acc, b"acc_1.log").ino;
    w.store
        .setattr(&ROOT_USER, file, None, &set(0o640, None))
        .unwrap();
    assert_eq!(w.attr(cat, b"acc").perm, 0o440);
    w.store
        .setattr(&ROOT_USER, file, None, &set(0o640, Some(77)))
        .unwrap();
    let attr = w.attr(cat, b"acc");
    assert_eq!((attr.uid, attr.perm & 0o404), (0, 0));
    w.store
        .setattr(&ROOT_USER, file, None, &set(0o644, Some(77)))
        .unwrap();
    assert_eq!(w.attr(cat, b"acc").perm, 0o444);
    // Who may not read one of them as its group may not do so as one of the others.
    w.store
        .setattr(&ROOT_USER, file, None, &set(0o604, Some(77)))
        .unwrap();
    assert_eq!(w.attr(cat, b"acc").perm, 0);
}

#[test]
fn an_order_does_not_grow_with_logs_that_are_truncated() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    w.set(acc, "truncate", b"posix");
    let mut files: Vec<_> = (1..3)
        .map(|n| w.open(acc, format!("a_{n}.log").as_bytes(), APPEND))
        .collect();
    for n in 0..700_000u32 {
        w.put(&mut files[(n % 2) as usize], b"x\n");
        if n % 100_000 == 60_000 {
            for file in &files {
                w.ftruncate(*file, 0).unwrap();
            }
        }
    }
    let parts = crate::fs::arrivals::parts(&**w.store.cask(), acc).unwrap();
    assert!(parts.len() <= 6, "{} parts", parts.len());
    assert_eq!(w.table(acc, b"a").len(), 2 * 39_999);
}

#[test]
fn an_order_goes_with_what_it_speaks_of() {
    let w = World::new();
    let acc = w.dir(b"acc", b"log");
    let mut files: Vec<_> = (1..3)
        .map(|n| w.open(acc, format!("a_{n}.log").as_bytes(), APPEND))
        .collect();
    let parts = |w: &World| {
        crate::fs::arrivals::parts(&**w.store.cask(), acc)
            .unwrap()
            .len()
    };
    for round in 0..4u32 {
        for n in 0..70_000u32 {
            w.put(&mut files[(n % 2) as usize], b"x\n");
        }
        for n in 1..3 {
            let name = format!("a_{n}.log");
            w.store.unlink(&ROOT_USER, acc, name.as_bytes()).unwrap();
        }
        assert!(parts(&w) <= 3, "{} parts after {round}", parts(&w));
    }
    for file in files {
        w.close(file);
    }
    w.store.rmdir(&ROOT_USER, ROOT, b"acc").unwrap();
    assert_eq!(parts(&w), 0);
}
