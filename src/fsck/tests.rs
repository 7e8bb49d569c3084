//! A sound cask has no findings, whatever was done to it; a damaged one has the right ones.

use std::sync::Arc;

use super::*;
use crate::cask::{FormatOptions, OpenOptions};
use crate::clock::{ManualClock, Timestamp};
use crate::device::{Device, MemoryDevice};
use crate::format::FileKind;
use crate::fs::{Caller, Fs, NewFile, Place, RenameFlags};

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
    assert_eq!(report.directories, 31);
    open(&device, false).close().unwrap();
    let report = check(&open(&device, true), true, &mut |_| ()).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.data_blocks > 100 && report.pages > 3);
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
