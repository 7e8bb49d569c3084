//! What is given up where `wipe` is set is nowhere in the container afterwards.

use super::*;
use crate::device::Device;

/// A cask that is small enough to be searched, with wiping set on its directory `d`.
fn wiping(mode: &[u8]) -> (World, Number) {
    let w = World::with(FormatOptions {
        blocks: Some(3072),
        wal_bytes: Some(1 << 20),
        secret: [3; 32],
        ..FormatOptions::default()
    });
    let dir = w.dir(b"d", mode);
    w.set(dir, "wipe", b"1");
    (w, dir)
}

/// Text that is found in no other test, of this length, each 16 bytes of it.
fn secret(tag: &str, len: usize) -> Vec<u8> {
    let word = format!("<{tag:-^14}>");
    word.bytes().cycle().take(len).collect()
}

/// How often `tag`'s text stands in the container.
fn found(device: &MemoryDevice, tag: &str) -> usize {
    let (bytes, word) = (device.to_bytes(), secret(tag, 12));
    let first = word[1];
    (0..bytes.len() - word.len())
        .filter(|at| bytes[at + 1] == first && bytes[*at..].starts_with(&word))
        .count()
}

impl World {
    fn found(&self, tag: &str) -> usize {
        found(self.store.cask().device(), tag)
    }

    fn save(&self, dir: Number, name: &[u8], data: &[u8]) -> Number {
        let mut file = self.open(dir, name, TRUNCATE);
        self.put(&mut file, data);
        self.close(file);
        file.ino
    }

    fn checkpoint(&self) {
        self.store.cask().checkpoint().unwrap();
    }

    /// The same bytes in another life, after an orderly end or without one.
    fn reborn(self, orderly: bool) -> Self {
        if orderly {
            self.store.close().unwrap();
        }
        let bytes = self.store.cask().device().to_bytes();
        let device = MemoryDevice::from_bytes(bytes);
        Self::over(Arc::new(
            Cask::open(device, OpenOptions::default()).unwrap(),
        ))
    }
}

#[test]
fn an_unlinked_file_leaves_nothing_whatever_its_size_and_age() {
    for (mode, sizes) in [
        (b"plain".as_slice(), [200, 1300, 5000, 1 << 20]),
        (b"value", [200, 1300, 5000, 1 << 20]),
        (b"log", [200, 1300, 5000, 1 << 20]),
    ] {
        for len in sizes {
            for checkpoints in 0..3 {
                let (w, dir) = wiping(mode);
                w.save(dir, b"neighbour", b"stays");
                w.save(dir, b"f", &secret("unlinked", len));
                assert!(w.found("unlinked") > 0);
                for round in 0..checkpoints {
                    // Moves the pages of the tree.
                    w.save(dir, b"neighbour", format!("stays {round}").as_bytes());
                    w.checkpoint();
                }
                w.store.unlink(&WRITER, dir, b"f").unwrap();
                w.store.sync_all().unwrap();
                assert_eq!(w.found("unlinked"), 0, "{len} bytes, {checkpoints}");
                assert!(w.cat(dir, b"neighbour").starts_with(b"stays"));
            }
        }
    }
}

#[test]
fn an_open_file_goes_with_its_last_handle() {
    let (w, dir) = wiping(b"plain");
    w.save(dir, b"f", &secret("handle", 300_000));
    let file = w.open(dir, b"f", READ);
    w.store.unlink(&WRITER, dir, b"f").unwrap();
    w.store.sync_all().unwrap();
    assert_eq!(w.read(file, 0, 16), secret("handle", 16));
    w.close(file);
    w.store.sync_all().unwrap();
    assert_eq!(w.found("handle"), 0);
}

#[test]
fn what_is_cut_off_overwritten_replaced_or_punched_goes() {
    let (w, dir) = wiping(b"plain");
    let block = 4096;
    let cut = w.save(dir, b"cut", &secret("cut off", 100_000));
    w.save(dir, b"over", &secret("overwritten", 40_000));
    w.save(dir, b"punched", &secret("punched", 10 * block));
    w.save(dir, b"old", &secret("renamed over", 9000));
    w.save(dir, b"new", b"new");
    w.checkpoint();
    w.truncate(cut, 10).unwrap();
    let mut file = w.open(dir, b"over", WRITE);
    w.put(&mut file, &vec![b'x'; 40_000]);
    w.close(file);
    let file = w.open(dir, b"punched", WRITE);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    w.store
        .fallocate(file.ino, file.fh, mode, 0, 10 * block as u64)
        .unwrap();
    w.close(file);
    w.mv(dir, b"new", b"old");
    w.checkpoint();
    for tag in ["overwritten", "punched", "renamed over"] {
        assert_eq!(w.found(tag), 0, "{tag}");
    }
    assert_eq!(w.cat(dir, b"cut"), secret("cut off", 10));
    assert_eq!(w.found("cut off"), 0, "10 bytes are not 12");
    assert_eq!(w.cat(dir, b"old"), b"new");
}

#[test]
fn a_value_replaced_and_an_attribute_removed_go() {
    for len in [200, 100_000] {
        let (w, dir) = wiping(b"value");
        w.save(dir, b"s", &secret("value", len));
        w.checkpoint();
        w.save(dir, b"s", b"another value");
        w.store.sync_all().unwrap();
        assert_eq!(w.found("value"), 0);
    }
    let (w, dir) = wiping(b"plain");
    let ino = w.save(dir, b"f", b"text");
    let set = |value: &[u8]| {
        let done = w
            .store
            .setxattr(&ROOT_USER, ino, b"user.note", value, false, false);
        done.unwrap();
    };
    set(&secret("attribute", 500));
    w.checkpoint();
    set(&secret("another", 500));
    w.checkpoint();
    assert_eq!(w.found("attribute"), 0);
    w.store.removexattr(&ROOT_USER, ino, b"user.note").unwrap();
    w.store.sync_all().unwrap();
    assert_eq!(w.found("another"), 0);
}

#[test]
fn a_segment_that_keep_removes_goes() {
    let (w, dir) = wiping(b"log");
    w.set(dir, "keep", b"2");
    let mut file = w.open(dir, b"n", APPEND);
    for round in 0..3 {
        let tag = format!("segment {round}");
        for _ in 0..10 {
            let record = [secret(&tag, 160).as_slice(), b"\n"].concat();
            w.put(&mut file, &record);
        }
        w.checkpoint();
        w.mv(dir, b"n", format!("n.{round}").as_bytes());
    }
    w.put(&mut file, b"live\n");
    w.close(file);
    w.store.sync_all().unwrap();
    assert_eq!(w.found("segment 0"), 0);
    assert!(w.found("segment 2") > 0);
}

#[test]
fn a_file_that_is_wiped_alone_counts_as_well() {
    let (w, dir) = wiping(b"plain");
    w.store
        .removexattr(&ROOT_USER, dir, b"user.cask.wipe")
        .unwrap();
    let ino = w.save(dir, b"f", &secret("alone", 9000));
    w.set(ino, "wipe", b"1");
    assert_eq!(w.store.cask().wipes(), 1);
    w.checkpoint();
    w.store.unlink(&WRITER, dir, b"f").unwrap();
    assert_eq!(w.store.cask().wipes(), 0);
    w.store.sync_all().unwrap();
    assert_eq!(w.found("alone"), 0);
}

#[test]
fn time_alone_wipes_too() {
    let (w, dir) = wiping(b"plain");
    w.save(dir, b"f", &secret("time", 9000));
    w.store.tick().unwrap();
    w.at(1_010);
    w.store.tick().unwrap();
    w.at(1_020);
    w.store.tick().unwrap();
    w.store.unlink(&WRITER, dir, b"f").unwrap();
    for secs in 1_020..=1_023 {
        w.at(secs);
        w.store.tick().unwrap();
    }
    assert_eq!(w.found("time"), 0);
}

#[test]
fn what_was_given_up_before_wiping_was_set_is_swept_away() {
    let (w, dir) = wiping(b"plain");
    w.store
        .removexattr(&ROOT_USER, dir, b"user.cask.wipe")
        .unwrap();
    let w = w.reborn(true);
    assert!(!w.store.cask().is_wiping());
    let dir = w.attr(ROOT, b"d").ino;
    for len in [300, 200_000] {
        w.save(dir, b"f", &secret("before", len));
        w.checkpoint();
        w.store.unlink(&WRITER, dir, b"f").unwrap();
        w.checkpoint();
    }
    w.store.sync_all().unwrap();
    assert!(w.found("before") > 0, "it is not wiped yet");
    w.set(dir, "wipe", b"1");
    w.checkpoint();
    w.store.tick().unwrap();
    assert_eq!(w.found("before"), 0);
}

#[test]
fn when_it_is_set_nowhere_any_more_nothing_is_wiped() {
    let (w, dir) = wiping(b"plain");
    w.checkpoint();
    w.set(dir, "wipe", b"0");
    w.checkpoint();
    for _ in 0..2 {
        w.store.tick().unwrap();
    }
    assert!(!w.store.cask().is_wiping());
    w.save(dir, b"f", &secret("after", 9000));
    w.checkpoint();
    w.store.unlink(&WRITER, dir, b"f").unwrap();
    w.checkpoint();
    assert!(w.found("after") > 0);
}

#[test]
fn a_crash_between_commit_and_wiping_is_made_good() {
    // The bytes as they were before a life are what a crash may bring back into free blocks.
    let (w, dir) = wiping(b"plain");
    w.save(dir, b"small", &secret("crash small", 300));
    w.save(dir, b"large", &secret("crash large", 300_000));
    w.checkpoint();
    let before = w.store.cask().device().to_bytes();
    w.store.unlink(&WRITER, dir, b"small").unwrap();
    w.store.unlink(&WRITER, dir, b"large").unwrap();
    w.store.sync_all().unwrap();
    let device = w.store.cask().device();
    // As if no zero had reached the disk: each block that is zeros is as it was.
    for (at, old) in (0..).step_by(512).zip(before.chunks(512)) {
        let mut now = [0; 512];
        device.read_at(at, &mut now).unwrap();
        if now == [0; 512] {
            device.write_at(at, old).unwrap();
        }
    }
    assert!(w.found("crash small") > 0 && w.found("crash large") > 0);
    let w = w.reborn(false);
    w.store.tick().unwrap();
    assert_eq!((w.found("crash small"), w.found("crash large")), (0, 0));
    let w = w.reborn(true);
    assert_eq!(w.names(ROOT), ["d"]);
}

#[test]
fn a_crash_before_the_commit_is_made_good_as_well() {
    let (w, dir) = wiping(b"plain");
    for (name, len) in [(b"a", 300), (b"b", 300_000)] {
        w.save(dir, name, &secret("uncommitted", len));
        w.store.unlink(&WRITER, dir, name).unwrap();
    }
    // What was written for an operation that never came to be.
    let bytes = secret("never", 300_000);
    let staged = w.store.cask().stage(0, &bytes).unwrap();
    assert!(w.found("uncommitted") > 0 && w.found("never") > 0);
    let copy = w.store.cask().device().to_bytes();
    drop(staged);
    let device = MemoryDevice::from_bytes(copy);
    let twin = World::over(Arc::new(
        Cask::open(device, OpenOptions::default()).unwrap(),
    ));
    twin.store.tick().unwrap();
    assert_eq!((twin.found("uncommitted"), twin.found("never")), (0, 0));
    w.store.sync_all().unwrap();
    assert_eq!((w.found("uncommitted"), w.found("never")), (0, 0));
}

#[test]
fn a_growing_cask_wipes_what_it_gives_back() {
    let w = World::with(FormatOptions {
        wal_bytes: Some(1 << 20),
        ..FormatOptions::default()
    });
    w.set(ROOT, "wipe", b"1");
    for orderly in [true, false] {
        let w = World::over(Arc::clone(w.store.cask()));
        w.save(ROOT, b"f", &secret("growing", 3 << 20));
        w.checkpoint();
        w.store.unlink(&WRITER, ROOT, b"f").unwrap();
        let w = w.reborn(orderly);
        w.store.tick().unwrap();
        assert_eq!(w.found("growing"), 0, "orderly {orderly}");
    }
}

#[test]
fn a_full_log_ring_is_wiped_all_the_way() {
    let (w, dir) = wiping(b"log");
    let mut file = w.open(dir, b"n", APPEND);
    let record = [secret("ring", 1000).as_slice(), b"\n"].concat();
    // Three times around.
    for _ in 0..3000 {
        w.put(&mut file, &record);
    }
    assert!(w.found("ring") > 0);
    w.close(file);
    w.store.unlink(&WRITER, dir, b"n").unwrap();
    w.store.sync_all().unwrap();
    assert_eq!(w.found("ring"), 0);
}
