//! A sound cask has no findings, whatever was done to it; a damaged one has the right ones.

use std::sync::Arc;

use super::*;
use crate::cask::{Class, FormatOptions, ImageRead, OpenOptions, Read};
use crate::clock::{ManualClock, Timestamp};
use crate::device::{Device, MemoryDevice};
use crate::format::{FileKind, Key, Kind};
use crate::fs::{Caller, Fs, NewFile, OpenFlags, Place, RenameFlags};
use crate::store::Store;

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 0,
};

fn open(device: &MemoryDevice, read_only: bool) -> Cask<MemoryDevice> {
    let options = OpenOptions {
        read_only,
        ..OpenOptions::default()
    };
    Cask::open(device.clone(), options).unwrap()
}

fn busy_cask() -> MemoryDevice {
    let device = MemoryDevice::new();
    let options = FormatOptions {
        blocks: Some(6000),
        secret: [5; 32],
        ..FormatOptions::default()
    };
    Cask::format(&device, &options).unwrap();
    let cask = Arc::new(open(&device, false));
    let fs = Fs::new(cask, Arc::new(ManualClock::new(Timestamp::from_secs(5)))).unwrap();
    let new = |kind| NewFile {
        kind,
        perm: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
    };
    for i in 0..300u64 {
        let dir = match i % 10 {
            0 => {
                fs.make(1, format!("d{i}").as_bytes(), &new(FileKind::Directory))
                    .unwrap()
                    .0
                    .number
            }
            _ => 1,
        };
        let (file, _) = fs
            .make(dir, format!("f{i}").as_bytes(), &new(FileKind::Regular))
            .unwrap();
        let data: Vec<u8> = (0..i * 97).map(|b| (b ^ i) as u8 | 1).collect();
        fs.write(&ME, file.number, Some(0), &data).unwrap();
        if i % 7 == 0 {
            fs.cask().checkpoint().unwrap();
        }
        if i % 5 == 0 && i > 20 {
            let old = format!("f{}", i - 3);
            let (from, to) = (
                Place {
                    dir: 1,
                    name: old.as_bytes(),
                },
                Place {
                    dir: 1,
                    name: b"moved",
                },
            );
            fs.rename(&ME, from, to, RenameFlags::default()).unwrap();
        }
    }
    fs.cask().close().unwrap();
    fs.unlink(1, b"moved").unwrap();
    let lsn = fs.cask().lsn();
    fs.cask().persist(lsn).unwrap();
    device
}

#[test]
fn a_sound_cask_is_clean_with_and_without_its_log() {
    let device = busy_cask();
    let report = check(&open(&device, true), true, &mut |_| ()).unwrap();
    assert_eq!(report.findings, []);
    assert!(!report.has_errors());
    assert_eq!(report.directories, 31);
    open(&device, false).close().unwrap();
    let report = check(&open(&device, true), true, &mut |_| ()).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.data_blocks > 100 && report.pages > 3);
}

/// Two directories that contain each other lead nowhere; the one with the least number is taken out.
#[test]
fn a_ring_of_directories_is_told_and_opened() {
    use crate::fs::{directory, inode, namespace};
    let device = busy_cask();
    let cask = Arc::new(open(&device, false));
    let clock = Arc::new(ManualClock::new(Timestamp::from_secs(5)));
    let fs = Fs::new(Arc::clone(&cask), clock).unwrap();
    let outer = fs.lookup(1, b"d10").unwrap().number;
    let new = NewFile {
        kind: FileKind::Directory,
        perm: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
    };
    let inner = fs.make(outer, b"inner", &new).unwrap().0.number;
    cask.transact(Class::Replace, |tx| {
        let mut moved = inode::load(tx, outer)?;
        directory::remove(tx, 1, b"d10")?;
        directory::insert(tx, inner, b"d10", &mut moved)?;
        inode::save(tx, &moved)
    })
    .unwrap();
    cask.close().unwrap();
    drop((fs, cask));
    let detached = |device: &MemoryDevice| {
        let report = check(&open(device, true), false, &mut |_| ()).unwrap();
        let found = report.findings.iter().filter(|f| f.code == "detached");
        found.count()
    };
    assert_eq!(detached(&device), 2);
    let options = OpenOptions::default();
    let now = Timestamp::from_secs(9);
    let repair = repair(device.clone(), options, true, now, &mut |_| ()).unwrap();
    assert_eq!(repair.left.findings, []);
    assert_eq!(detached(&device), 0);
    let cask = open(&device, true);
    let lost = namespace::find(&cask, 1, b"lost+found").unwrap().0;
    let found = namespace::path_of(&cask, inner).unwrap().unwrap();
    assert!(found.starts_with(b"lost+found/") && found.ends_with(b"/inner"));
    assert_eq!(inode::load(&cask, outer).unwrap().parent, lost);
}

/// A counter that fell behind is no reason to give up files.
#[test]
fn a_file_with_a_number_not_given_out_yet_is_kept() {
    use crate::fs::inode;
    let device = busy_cask();
    let cask = open(&device, false);
    let number = cask.counters().1 + 3;
    cask.transact(Class::Replace, |tx| {
        let like = crate::fs::namespace::lookup(tx, 1, b"f1")?;
        let late = inode::Inode {
            number,
            content: number,
            size: 0,
            ..like
        };
        inode::save(tx, &late)
    })
    .unwrap();
    cask.close().unwrap();
    drop(cask);
    let options = OpenOptions::default();
    let now = Timestamp::from_secs(9);
    let repair = repair(device.clone(), options, true, now, &mut |_| ()).unwrap();
    assert!(repair.fixed.iter().any(|found| found.code == "number") || repair.is_needed());
    assert_eq!(repair.left.findings, []);
    let cask = open(&device, true);
    let kept = inode::load(&cask, number).unwrap();
    assert_eq!((kept.nlink, kept.size), (1, 0));
    assert!(cask.counters().1 > number);
}

#[test]
fn only_an_image_that_is_gone_is_given_up() {
    let io = |error| Error::io("reading")(std::io::Error::from_raw_os_error(error));
    assert!(is_given_up(&Error::Stale) && is_given_up(&io(libc::ESTALE)));
    assert!(!is_given_up(&Error::NotFound) && !is_given_up(&io(libc::EIO)));
}

#[test]
fn every_damaged_block_is_found() {
    let device = busy_cask();
    open(&device, false).close().unwrap();
    let cask = open(&device, true);
    let pinned = cask.pin();
    let geometry = pinned.geometry();
    let used: Vec<u64> = pinned
        .groups
        .iter()
        .flat_map(|group| {
            (2..group.limit)
                .filter(|at| group.bits.get(*at))
                .map(|at| group.start + at)
        })
        .collect();
    for block in used.into_iter().step_by(5) {
        let at = geometry.offset(block) + 77;
        let mut byte = [0];
        device.read_at(at, &mut byte).unwrap();
        device.write_at(at, &[byte[0] ^ 0x40]).unwrap();
        let report = check(&open(&device, true), true, &mut |_| ()).unwrap();
        assert!(report.has_errors(), "block {block}");
        device.write_at(at, &byte).unwrap();
    }
}

#[test]
fn segments_and_the_record_of_rolls_are_checked() {
    let device = MemoryDevice::new();
    let options = FormatOptions {
        blocks: Some(6000),
        secret: [5; 32],
        ..FormatOptions::default()
    };
    Cask::format(&device, &options).unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_secs(5)));
    let store = Store::new(Arc::new(open(&device, false)), clock).unwrap();
    let logs = store.mkdir(&ME, 1, b"logs", 0o755).unwrap().attr.ino;
    for (name, value) in [("mode", "log"), ("roll-lines", "2"), ("keep", "4")] {
        let name = format!("user.cask.{name}");
        store
            .setxattr(&ME, logs, name.as_bytes(), value.as_bytes(), false, false)
            .unwrap();
    }
    let flags = OpenFlags {
        write: true,
        append: true,
        ..OpenFlags::default()
    };
    let (entry, opened) = store.create(&ME, logs, b"a", 0o644, flags).unwrap();
    let put = |data: &[u8]| {
        store
            .write(&ME, entry.attr.ino, opened.fh, 0, data)
            .unwrap()
    };
    put(b"1\n2\n3\n4\n5\n");
    let to = RenameFlags::default();
    store.rename(&ME, logs, b"a", 1, b"out", to).unwrap();
    put(b"6\n7\n8\n9\n");
    store.unlink(&ME, 1, b"out").unwrap();
    put(b"10\n");
    let (_, shared) = store.create(&ME, logs, b"acc_1", 0o644, flags).unwrap();
    store.write(&ME, 0, shared.fh, 0, b"1\n").unwrap();
    let cask = store.cask();
    let findings = || {
        let report = check(&**cask, true, &mut |_| ()).unwrap();
        let codes: Vec<_> = report.findings.iter().map(|f| f.code).collect();
        codes
    };
    assert_eq!(findings(), [""; 0]);
    cask.checkpoint().unwrap();
    assert_eq!(findings(), [""; 0]);

    let change = |key: Key, value: Option<&[u8]>| {
        let old = cask.get(&key).unwrap();
        cask.transact(Class::Grow, |tx| {
            match value {
                Some(value) => tx.put(key, value)?,
                None => tx.del(key),
            }
            Ok(())
        })
        .unwrap();
        let found = findings();
        cask.transact(Class::Grow, |tx| {
            match &old {
                Some(old) => tx.put(key, &**old)?,
                None => tx.del(key),
            }
            Ok(())
        })
        .unwrap();
        found
    };
    let mut segments = Vec::new();
    let (from, to) = (
        Key::new(logs, Kind::Segment, 0),
        Key::new(logs, Kind::Segment, u64::MAX),
    );
    cask.scan(from, to, &mut |key, _| {
        segments.push(key);
        Ok(true)
    })
    .unwrap();
    assert_eq!(segments.len(), 2);
    assert_eq!(change(segments[0], None), ["segment"]);
    assert_eq!(change(segments[0], Some(b"short")), ["segment"]);
    let stray = Key::new(logs, Kind::Segment, logs);
    assert_eq!(change(stray, Some(&[0; 20])), ["segment"]);
    let events = Key::new(0, Kind::Events, 0);
    assert!(change(events, Some(b"short")).contains(&"events"));
    assert!(change(events, None).contains(&"content-orphan"));
    let order = Key::new(logs, Kind::Arrivals, 1);
    assert!(change(order, Some(b"short")).contains(&"arrivals"));
    assert!(change(order, None).contains(&"content-orphan"));
    let other = cask.get(&order).unwrap().unwrap();
    let stray = Key::new(entry.attr.ino, Kind::Arrivals, 1);
    assert_eq!(change(stray, Some(&other)), ["arrivals", "content-shared"]);
    assert_eq!(findings(), [""; 0]);
}

#[test]
fn an_image_taken_under_writers_is_sound() {
    let cask = Arc::new(open(&busy_cask(), false));
    let clock = || Arc::new(ManualClock::new(Timestamp::from_secs(9)));
    let fs = Fs::new(Arc::clone(&cask), clock()).unwrap();
    let new = NewFile {
        kind: FileKind::Regular,
        perm: 0o600,
        uid: 0,
        gid: 0,
        rdev: 0,
    };
    let make = |number: u64| {
        let (file, _) = fs.make(1, format!("g{number}").as_bytes(), &new).unwrap();
        let data = vec![number as u8 | 1; (number * 37 % 9000) as usize];
        fs.write(&ME, file.number, Some(0), &data).unwrap();
    };
    (0..100).for_each(make);
    let image = cask.image().unwrap();
    let mut bytes = vec![0; image.bytes() as usize];
    for (piece, number) in bytes.chunks_mut(1 << 20).zip(100..) {
        image.read_at((number - 100) << 20, piece).unwrap();
        make(number);
        cask.checkpoint().unwrap();
    }
    let copy = open(&MemoryDevice::from_bytes(bytes), true);
    let report = check(&copy, true, &mut |_| ()).unwrap();
    assert_eq!(report.findings, []);
    let copy = Fs::new(Arc::new(copy), clock()).unwrap();
    for number in 0..100 {
        let found = copy.lookup(1, format!("g{number}").as_bytes()).unwrap();
        let mut data = Vec::new();
        copy.read(found.number, 0, 10_000, &mut data).unwrap();
        assert_eq!(data, vec![number as u8 | 1; (number * 37 % 9000) as usize]);
    }
    assert!(copy.lookup(1, b"g100").is_err());
}

/// A scrub of the smallest pieces reads each data block once, and tells of damage once.
#[test]
fn a_scrub_in_pieces_misses_nothing_and_says_nothing_twice() {
    let device = busy_cask();
    let whole = check(&open(&device, true), true, &mut |_| {}).unwrap();
    let in_pieces = |device: &MemoryDevice| {
        let cask = open(device, true);
        let (mut report, mut next, mut pieces) = (Report::default(), Some(SCRUB_START), 0);
        while let Some(from) = next {
            next = scrub(&cask, from, &mut report, &mut |_| false).unwrap();
            assert!(next.is_none_or(|next| next > from), "{from:?}");
            pieces += 1;
        }
        assert!(pieces > 300, "only {pieces} pieces");
        report
    };
    let report = in_pieces(&device);
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.data_blocks, whole.data_blocks);
    let first: Vec<u8> = (0..4096_u64).map(|b| (b ^ 299) as u8 | 1).collect();
    let bytes = device.to_bytes();
    let at = bytes.chunks(4096).position(|block| block == first).unwrap();
    device.write_at(at as u64 * 4096 + 5, &[0]).unwrap();
    let report = in_pieces(&device);
    let [finding] = report.findings.as_slice() else {
        panic!("{report:?}");
    };
    // Two files begin with these bytes.
    let path = finding.path.as_deref().unwrap();
    assert!(["f43", "f299"].contains(&path), "{finding:?}");
    assert_eq!(finding.sentence.matches(path).count(), 1, "{finding:?}");
}
