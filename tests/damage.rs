//! Damage of every kind to every part: what still opens, what is lost, and what `fsck` brings back.
//!
//! Never is wrong data shown: what is read is what some save wrote, or an error. After a repair the cask is
//! clean but for contents that are gone, and can be written to. `CASKFS_DAMAGE_CASES` (300) says how many
//! random damages are tried of each sort, `CASKFS_DAMAGE_SEED` where to begin.
#![cfg(feature = "testing")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use common::edits::{Edit, Place};

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use caskfs::Error;
use caskfs::cask::{Cask, Class, FormatOptions, OpenOptions, Read};
use caskfs::clock::{ManualClock, Timestamp};
use caskfs::device::testing::Rng;
use caskfs::device::{Device, MemoryDevice, ScratchDevice};
use caskfs::format::key::{INDEX, ROOT};
use caskfs::format::page::Page;
use caskfs::format::superblock::SuperblockRecord;
use caskfs::format::{FileKind, Geometry, Key, Kind};
use caskfs::fs::inode::Inode;
use caskfs::fs::{Caller, Fs, NewFile};
use caskfs::fsck::{self, Report};

const ME: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 0,
};
const SPACING: u32 = 512;
/// Findings that a repair leaves: contents that are gone, which reading tells.
const IS_LOST: [&str; 2] = ["data", "lost"];
const NOW: Timestamp = Timestamp::from_secs(1_000);

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

fn options(read_only: bool) -> OpenOptions {
    OpenOptions {
        read_only,
        superblock_spacing: Some(SPACING),
        ..OpenOptions::default()
    }
}

fn fs_on(device: &MemoryDevice, read_only: bool) -> Result<Fs<MemoryDevice>, Error> {
    let cask = Arc::new(Cask::open(device.clone(), options(read_only))?);
    Fs::new(cask, Arc::new(ManualClock::new(NOW)))
}

fn new(kind: FileKind) -> NewFile {
    NewFile {
        kind,
        perm: 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
    }
}

/// What a file holds: nobody else writes these bytes.
fn content(name: &str, version: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let seed = name.bytes().fold(u64::from(version) + 1, |seed, byte| {
        seed.wrapping_mul(131).wrapping_add(u64::from(byte))
    });
    Rng::new(seed).fill(&mut bytes);
    bytes
}

/// A cask with all that a filesystem has, and what each file may hold: after every checkpoint or record.
struct World {
    image: Vec<u8>,
    /// The image two checkpoints earlier.
    old: Vec<u8>,
    /// By path, all that the file ever held whole.
    held: BTreeMap<String, Vec<Vec<u8>>>,
}

impl World {
    fn new(log: bool) -> Self {
        let device = MemoryDevice::new();
        let format = FormatOptions {
            block_size: 512,
            blocks: Some(900),
            wal_bytes: Some(32 * 512),
            superblock_spacing: SPACING,
            secret: [5; 32],
            ..FormatOptions::default()
        };
        Cask::format(&device, &format).unwrap();
        let fs = fs_on(&device, false).unwrap();
        let mut held: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        let mut old = Vec::new();
        for version in 0..3_u8 {
            for index in 0..40_usize {
                let name = format!("f{index}");
                let dir_name = format!("d{}", index % 5);
                let dir = *numbers.entry(dir_name.clone()).or_insert_with(|| {
                    let kind = new(FileKind::Directory);
                    fs.make(ROOT, dir_name.as_bytes(), &kind).unwrap().0.number
                });
                let path = format!("{dir_name}/{name}");
                let file = *numbers.entry(path.clone()).or_insert_with(|| {
                    let kind = new(FileKind::Regular);
                    fs.make(dir, name.as_bytes(), &kind).unwrap().0.number
                });
                // Small ones stand in the tree, large ones in blocks, the largest bypass the log.
                let len = [30, 100, 700, 1_500, 3_000][index % 5];
                let bytes = content(&path, version, len);
                if version == 0 || index % 3 == usize::from(version) {
                    fs.write(&ME, file, Some(0), &bytes).unwrap();
                    held.entry(path.clone()).or_default().push(bytes);
                }
                // The log says of these that they are longer, and nothing of what was there.
                if version == 2 && log && index % 7 == 3 {
                    let mut bytes = held[&path].last().unwrap().clone();
                    let more = content(&path, 9, 50);
                    fs.write(&ME, file, Some(bytes.len() as u64), &more)
                        .unwrap();
                    bytes.extend(more);
                    held.entry(path).or_default().push(bytes);
                }
            }
            if version < 2 || !log {
                fs.cask().checkpoint().unwrap();
            }
            if version == 0 {
                old = device.to_bytes();
            }
        }
        fs.cask().sync(fs.cask().lsn()).unwrap();
        let image = device.to_bytes();
        Self { image, old, held }
    }

    /// What can be read of a cask: nothing that was never written.
    fn look(&self, device: &MemoryDevice, read_only: bool) -> Result<Seen, String> {
        let fs = match fs_on(device, read_only) {
            Ok(fs) => fs,
            Err(error) => return Ok(Seen::unopened(&error)),
        };
        let mut seen = Seen::default();
        seen.walk(&fs, ROOT, "", self)?;
        Ok(seen)
    }
}

#[derive(Debug, Default)]
struct Seen {
    refused: Option<String>,
    /// Files that are whole.
    whole: usize,
    /// Files of which a part cannot be read.
    broken: usize,
    /// Directories that cannot be listed, names that lead nowhere.
    unreadable: usize,
}

impl Seen {
    fn unopened(error: &Error) -> Self {
        let sentence = error.to_string();
        assert!(sentence.len() > 10, "no sentence: {sentence}");
        Self {
            refused: Some(sentence),
            ..Self::default()
        }
    }

    fn walk(
        &mut self,
        fs: &Fs<MemoryDevice>,
        dir: u64,
        path: &str,
        world: &World,
    ) -> Result<(), String> {
        let mut names = Vec::new();
        let listed = caskfs::fs::namespace::read_dir(&**fs.cask(), dir, 2, &mut |entry| {
            names.push(entry);
            Ok(names.len() < 1_000)
        });
        self.unreadable += usize::from(listed.is_err());
        for entry in names {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let path = match path {
                "" => name,
                dir => format!("{dir}/{name}"),
            };
            let Ok(inode) = fs.inode(entry.ino) else {
                self.unreadable += 1;
                continue;
            };
            match inode.is_dir() {
                true if path.split('/').count() < 6 => self.walk(fs, entry.ino, &path, world)?,
                true => return Err(format!("{path} has no end")),
                false => self.file(fs, &inode, &path, world)?,
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        fs: &Fs<MemoryDevice>,
        inode: &Inode,
        path: &str,
        world: &World,
    ) -> Result<(), String> {
        let mut buf = Vec::new();
        let len = u32::try_from(inode.size).unwrap_or(u32::MAX).min(1 << 20);
        if fs.read(inode.number, 0, len, &mut buf).is_err() {
            self.broken += 1;
            // The rest is as it was.
            for at in (0..inode.size.min(1 << 16)).step_by(512) {
                if fs.read(inode.number, at, 512, &mut buf).is_ok() {
                    let at = at as usize;
                    let mut all = world.held.values().flatten();
                    let buf = trimmed(&buf, path, at + 512 >= inode.size as usize);
                    let known = all.any(|held| held.get(at..).is_some_and(|h| h.starts_with(buf)));
                    if !known {
                        return Err(format!("{path} shows at byte {at} what nobody wrote"));
                    }
                }
            }
            return Ok(());
        }
        // Under its own name it holds what it held; one that was found again held what some file did.
        let versions = world.held.get(path);
        let buf = trimmed(&buf, path, true);
        let was = |held: &Vec<u8>| *held == buf;
        let known = match versions {
            Some(versions) => versions.iter().any(was) || buf.is_empty(),
            None => world.held.values().flatten().any(was) || buf.is_empty(),
        };
        if !known {
            return Err(format!(
                "{path} shows {} bytes that nobody wrote",
                buf.len()
            ));
        }
        self.whole += usize::from(!buf.is_empty());
        Ok(())
    }
}

fn check(device: &MemoryDevice) -> Result<Report, Error> {
    let cask = Cask::open(device.clone(), options(true))?;
    fsck::check(&cask, true, &mut |_| {})
}

/// Repairs a damaged image; answers what is there before and after, and the codes of what was done.
fn through(world: &World, image: Vec<u8>) -> Result<(Seen, Option<Seen>, Vec<String>), String> {
    let device = MemoryDevice::from_bytes(image.clone());
    let before = world.look(&device, true)?;
    if device.to_bytes() != image {
        return Err("looking changed the image".to_owned());
    }
    let found = check(&device);
    // The plan is made without a touch, and is what is done then.
    let scratch = ScratchDevice::new(device.clone()).unwrap();
    let planned = repaired(scratch);
    if device.to_bytes() != image {
        return Err("planning changed the image".to_owned());
    }
    let done = repaired(device.clone());
    let steps = match (&planned, &done) {
        (Ok(planned), Ok(done)) if planned == done => done.clone(),
        (Err(_), Err(_)) => {
            if found.is_ok_and(|report| report.is_clean()) {
                return Err("clean, but cannot be repaired".to_owned());
            }
            return Ok((before, None, Vec::new()));
        }
        other => return Err(format!("planned and done differ: {other:#?}")),
    };
    let is_clean = found.is_ok_and(|report| report.is_clean());
    if is_clean && !steps.is_empty() {
        return Err(format!("nothing was found, but done: {steps:?}"));
    }
    let report = check(&device).map_err(|error| format!("after the repair: {error}"))?;
    let mut left = report
        .findings
        .iter()
        .filter(|f| !IS_LOST.contains(&f.code));
    if let Some(finding) = left.next() {
        return Err(format!("left after the repair {steps:?}: {finding:?}"));
    }
    match repaired(device.clone()) {
        Ok(again) if again.is_empty() => {}
        other => return Err(format!("a second repair: {other:?}")),
    }
    let after = world.look(&device, false)?;
    if let Some(why) = &after.refused {
        return Err(format!("does not open after the repair: {why}"));
    }
    if after.unreadable > 0 {
        return Err(format!("{after:?} after the repair {steps:?}"));
    }
    alive(&device)?;
    Ok((before, Some(after), steps))
}

/// A repaired cask takes new files.
fn alive(device: &MemoryDevice) -> Result<(), String> {
    let fs = fs_on(device, false).map_err(|error| error.to_string())?;
    let made = fs.make(ROOT, b"fresh", &new(FileKind::Regular));
    let (file, _) = made.map_err(|error| format!("cannot make a file: {error}"))?;
    fs.write(&ME, file.number, Some(0), &[7; 2_000])
        .map_err(|error| format!("cannot write: {error}"))?;
    fs.cask()
        .close()
        .map_err(|error| format!("close: {error}"))?;
    drop(fs);
    let report = check(device).map_err(|error| error.to_string())?;
    match report.findings.iter().find(|f| !IS_LOST.contains(&f.code)) {
        None => Ok(()),
        Some(finding) => Err(format!("after a write: {finding:?}")),
    }
}

fn repaired<D: Device>(device: D) -> Result<Vec<String>, Error> {
    let repair = fsck::repair(device, options(false), true, NOW, &mut |_| {})?;
    let opened = repair
        .opened
        .iter()
        .map(|m| format!("{}: {}", m.code, m.sentence));
    let fixed = repair
        .fixed
        .iter()
        .map(|f| format!("{}: {}", f.code, f.sentence));
    Ok(opened.chain(fixed).collect())
}

/// Of a file that was found again nobody knows where in its last block it ended.
fn trimmed<'b>(buf: &'b [u8], path: &str, is_last: bool) -> &'b [u8] {
    let end = match is_last && path.starts_with("lost+found/") {
        true => buf
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1),
        false => buf.len(),
    };
    &buf[..end]
}

/// The parts of an image, by what they are.
fn parts(world: &World) -> Vec<(&'static str, usize, usize)> {
    let device = MemoryDevice::from_bytes(world.image.clone());
    let cask = Cask::open(device, options(true)).unwrap();
    let pinned = cask.pin();
    let geometry = pinned.geometry();
    let block = geometry.block() as usize;
    let mut parts = Vec::new();
    for (copy, name) in [
        "superblock 0",
        "superblock 1",
        "superblock 2",
        "superblock 3",
    ]
    .into_iter()
    .enumerate()
    {
        parts.push((name, geometry.superblock_offset(copy as u64) as usize, 512));
    }
    for (slot, name) in [(0, "allocation root 0"), (1, "allocation root 1")] {
        parts.push((name, geometry.alloc_root_offset(slot) as usize, block));
    }
    let first = geometry.offset(geometry.first_block()) as usize;
    parts.push(("bitmap 0", first, block));
    parts.push(("bitmap 1", first + block, block));
    let (log, len) = (geometry.wal_offset() as usize, geometry.wal_len as usize);
    let used = world.image[log..log + len]
        .iter()
        .rposition(|byte| *byte != 0);
    let used = used.unwrap_or(0) / block;
    for (name, at) in [
        ("log, head", 0),
        ("log, middle", used / 2),
        ("log, tail", used),
    ] {
        parts.push((name, log + at * block, block));
    }
    let (root, level) = pinned.root().unwrap();
    parts.push(("tree root", geometry.offset(root.block) as usize, block));
    let mut pages = vec![(root, level)];
    let (mut leaves, mut inner, mut extents) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((ptr, level)) = pages.pop() {
        let page = pinned.page(ptr, level).unwrap();
        for index in 0..page.len() {
            if level > 0 {
                let child = page.child(index).unwrap().1;
                pages.push((child, level - 1));
                let list = if level == 1 { &mut leaves } else { &mut inner };
                list.push(geometry.offset(child.block) as usize);
            }
        }
    }
    pinned
        .scan(
            Key::new(0, Kind::Inode, 0),
            Key::new(u64::MAX, Kind::Home, u64::MAX),
            &mut |key, value| {
                if key.kind == Kind::Data
                    && let Ok(caskfs::format::content::ContentRecord::Extent { start, .. }) =
                        caskfs::format::content::ContentRecord::decode(value)
                {
                    extents.push(geometry.offset(start) as usize);
                }
                Ok(true)
            },
        )
        .unwrap();
    for at in [0, inner.len() / 2] {
        parts.extend(inner.get(at).map(|at| ("inner page", *at, block)));
    }
    for at in [0, leaves.len() / 2, leaves.len() - 1] {
        parts.push(("leaf", leaves[at], block));
    }
    for at in [0, extents.len() / 2, extents.len() - 1] {
        parts.push(("extent", extents[at], block));
    }
    parts.push(("end", world.image.len() - block, block));
    parts
}

/// Damages a part.
fn damage(world: &World, kind: &str, at: usize, len: usize, other: usize) -> Vec<u8> {
    let mut image = world.image.clone();
    match kind {
        "zero" => image[at..at + len].fill(0),
        "flip" => image[at + len / 3] ^= 0x10,
        "truncate" => image.truncate(at),
        "stale" => image[at..at + len].copy_from_slice(&world.old[at..at + len]),
        "swap" => {
            let copy = image[other..other + len].to_vec();
            image.copy_within(at..at + len, other);
            image[at..at + len].copy_from_slice(&copy);
        }
        _ => unreachable!(),
    }
    image
}

/// A crash may leave copies that do not verify; a repair writes all anew.
#[test]
fn a_repair_makes_every_superblock_copy_good() {
    let world = World::new(true);
    for copy in 0..4 {
        let mut image = world.image.clone();
        let at = copy * SPACING as usize;
        image[at..at + 512].fill(0);
        let device = MemoryDevice::from_bytes(image);
        repaired(device.clone()).unwrap();
        let bytes = device.to_bytes();
        for other in 0..4 {
            let decoded = SuperblockRecord::decode(&bytes[other * SPACING as usize..]);
            assert!(decoded.is_ok(), "copy {other} after {copy} was lost");
        }
    }
}

/// What is lost of a long file is an error to its last block, however many items mark it.
#[test]
fn a_leaf_of_a_long_file_that_is_lost_leaves_no_zeros() {
    let world = World::new(false);
    let device = MemoryDevice::from_bytes(world.image.clone());
    let fs = fs_on(&device, false).unwrap();
    let kind = new(FileKind::Regular);
    let file = fs.make(ROOT, b"long", &kind).unwrap().0.number;
    let data: Vec<u8> = (0..160).flat_map(|block| [block as u8 | 1; 512]).collect();
    fs.write(&ME, file, Some(0), &data).unwrap();
    fs.cask().checkpoint().unwrap();
    fs.cask().close().unwrap();
    drop(fs);
    let image = device.to_bytes();
    let (mut leaves, mut most) = (0, 0);
    for (block, bytes) in image.chunks_exact(512).enumerate() {
        let first = Geometry {
            block_size: 512,
            spacing: SPACING,
            wal_len: 32 * 512,
        }
        .first_block() as usize;
        let page = Page::parse(bytes.into(), block as u64, 0, 0);
        let holds = |page: &Page| {
            (0..page.len())
                .filter_map(|at| page.key(at))
                .filter(|key| key.number == file && key.kind == Kind::Data)
                .count()
        };
        if block < first || page.as_ref().map_or(0, holds) == 0 {
            continue;
        }
        leaves += 1;
        let device = MemoryDevice::from_bytes(image.clone());
        device
            .write_at(block as u64 * 512 + 100, &[0xa5; 40])
            .unwrap();
        repaired(device.clone()).unwrap();
        let fs = fs_on(&device, true).unwrap();
        let (mut buf, mut lost) = (Vec::new(), 0);
        let Ok(file) = fs.lookup(ROOT, b"long") else {
            continue;
        };
        for (at, wanted) in data.chunks_exact(512).enumerate() {
            match fs.read(file.number, at as u64 * 512, 512, &mut buf) {
                Ok(()) if buf.is_empty() => {}
                Ok(()) => assert!(buf == wanted, "leaf {block}, block {at} of the file"),
                Err(_) => lost += 1,
            }
        }
        most = most.max(lost);
    }
    assert!(
        leaves > 1 && most > 2 * 27,
        "{leaves} leaves, {most} blocks lost"
    );
}

/// Of a file that is found again nobody knows whether something stood between what is left of it.
#[test]
fn a_file_without_inode_is_found_again_and_its_gaps_are_no_zeros() {
    let world = World::new(false);
    let device = MemoryDevice::from_bytes(world.image.clone());
    let fs = fs_on(&device, false).unwrap();
    let kind = new(FileKind::Regular);
    let file = fs.make(ROOT, b"gaps", &kind).unwrap().0;
    for block in [0_u64, 3, 5] {
        let data = vec![block as u8 + 1; 512];
        fs.write(&ME, file.number, Some(block * 512), &data)
            .unwrap();
    }
    fs.cask().checkpoint().unwrap();
    let lose = fs.cask().transact(Class::Replace, |tx| {
        tx.del(Key::inode(file.number));
        Ok(())
    });
    lose.unwrap();
    fs.cask().checkpoint().unwrap();
    drop(fs);
    repaired(device.clone()).unwrap();
    let fs = fs_on(&device, false).unwrap();
    let lost = fs.lookup(ROOT, b"lost+found").unwrap().number;
    let mut found = Vec::new();
    caskfs::fs::namespace::read_dir(&**fs.cask(), lost, 2, &mut |entry| {
        found.push(entry.ino);
        Ok(true)
    })
    .unwrap();
    assert_eq!(found.len(), 1);
    let mut buf = Vec::new();
    for block in 0..6_u64 {
        let read = fs.read(found[0], block * 512, 512, &mut buf);
        match [0, 3, 5].contains(&block) {
            true => assert_eq!((read.unwrap(), &buf), ((), &vec![block as u8 + 1; 512])),
            false => assert!(read.is_err(), "block {block}"),
        }
    }
}

/// A bitmap may say of blocks what the tree does not.
#[test]
fn a_bitmap_that_says_otherwise_is_told() {
    let world = World::new(false);
    for (byte, wanted, other) in [
        (0xff, "block-unused", "block-free"),
        (0, "block-free", "block-unused"),
    ] {
        let mut told = 0;
        for at in 1..100 {
            let mut image = world.image.clone();
            let edit = Edit {
                place: Place::Bitmap(0),
                at,
                bytes: vec![byte],
            };
            edit.apply(&mut image).unwrap();
            let report = check(&MemoryDevice::from_bytes(image)).unwrap();
            let has = |code| report.findings.iter().any(|found| found.code == code);
            told += u32::from(has(wanted));
            assert!(!has(other), "byte {at} is {byte}: {:?}", report.findings);
        }
        assert!(told > 20, "{byte}: {told}");
    }
}

#[test]
fn every_part_and_every_damage() {
    let mut wrong = Vec::new();
    for (log, title) in [(true, "with a log"), (false, "closed in order")] {
        let world = World::new(log);
        let all = world.held.len();
        println!("{title}: {all} files");
        let parts = parts(&world);
        for (index, (name, at, len)) in parts.iter().enumerate() {
            let other = parts[(index + 1) % parts.len()].1;
            for kind in ["zero", "flip", "truncate", "stale", "swap"] {
                let image = damage(&world, kind, *at, *len, other);
                if image == world.image {
                    continue;
                }
                let outcome = catch_unwind(AssertUnwindSafe(|| through(&world, image)));
                let line = match outcome {
                    Ok(Ok((before, after, steps))) => {
                        let whole = |seen: &Seen| format!("{}+{}", seen.whole, seen.broken);
                        let opens = match &before.refused {
                            Some(_) => "refused".to_owned(),
                            None => whole(&before),
                        };
                        let after = after.as_ref().map_or("lost".to_owned(), whole);
                        // One copy of anything that has another costs nothing.
                        let has_copy = ["superblock", "bitmap", "allocation"]
                            .iter()
                            .any(|part| name.starts_with(part));
                        let spared = has_copy && !["truncate", "swap"].contains(&kind);
                        if spared && after != format!("{all}+0") {
                            wrong.push(format!("{title}, {name}, {kind}: {after} of {all}"));
                        }
                        format!("{opens} -> {after} in {} steps", steps.len())
                    }
                    Ok(Err(what)) => {
                        wrong.push(format!("{title}, {name}, {kind}: {what}"));
                        "WRONG".to_owned()
                    }
                    Err(_) => {
                        wrong.push(format!("{title}, {name}, {kind}: a panic"));
                        "PANIC".to_owned()
                    }
                };
                println!("  {name:<18} {kind:<9} {line}");
            }
        }
    }
    assert!(wrong.is_empty(), "{:#?}", &wrong[..wrong.len().min(12)]);
}

/// Tries many cases and tells the first that fails.
fn many(what: &str, case: impl Fn(&mut Rng) -> Result<bool, String>) {
    let (cases, seed) = (
        number("CASKFS_DAMAGE_CASES", 300),
        number("CASKFS_DAMAGE_SEED", 1),
    );
    let mut repaired = 0;
    for number in seed..seed + cases {
        let mut rng = Rng::new(number);
        match catch_unwind(AssertUnwindSafe(|| case(&mut rng))) {
            Ok(Ok(done)) => repaired += u64::from(done),
            Ok(Err(what)) => panic!("seed {number}: {what}"),
            Err(_) => panic!("seed {number}: a panic"),
        }
    }
    println!("{what}: {cases} cases, {repaired} repaired");
    assert!(
        repaired * 4 > cases,
        "only {repaired} of {cases} could be repaired"
    );
}

/// Bytes anywhere.
#[test]
fn random_bytes() {
    let worlds = [World::new(true), World::new(false)];
    many("random bytes", |rng| {
        let world = &worlds[rng.index(2)];
        let mut image = world.image.clone();
        for _ in 0..1 + rng.index(6) {
            let at = rng.index(image.len());
            let end = (at + [1, 1, 8, 64, 512, 2_048][rng.index(6)]).min(image.len());
            match rng.below(3) {
                0 => image[at..end].fill(0),
                1 => image[at] ^= 1 << rng.below(8),
                _ => rng.fill(&mut image[at..end]),
            }
        }
        Ok(through(world, image)?.1.is_some())
    });
}

/// Items that verify and are wrong: as if the program itself had gone mad.
#[test]
fn wrong_items() {
    let world = World::new(false);
    many("wrong items", |rng| {
        let device = MemoryDevice::from_bytes(world.image.clone());
        let cask = Cask::open(device.clone(), options(false)).map_err(|e| e.to_string())?;
        let mut items = Vec::new();
        let last = Key::new(u64::MAX, Kind::Home, u64::MAX);
        cask.scan(Key::new(0, Kind::Inode, 0), last, &mut |key, value| {
            items.push((key, value.to_vec()));
            Ok(true)
        })
        .map_err(|e| e.to_string())?;
        for _ in 0..1 + rng.index(5) {
            let (key, value) = items[rng.index(items.len())].clone();
            let (other, other_value) = items[rng.index(items.len())].clone();
            let spoilt = |rng: &mut Rng| {
                let mut bytes = value.clone();
                if !bytes.is_empty() {
                    let at = rng.index(bytes.len());
                    bytes[at] ^= 1 << rng.below(8);
                }
                bytes
            };
            let flipped = spoilt(rng);
            let kinds = [
                Kind::Inode,
                Kind::Data,
                Kind::Dirent,
                Kind::Xattr,
                Kind::Orphan,
                Kind::Ttl,
                Kind::Segment,
                Kind::Events,
                Kind::Arrivals,
                Kind::Home,
            ];
            let kind = kinds[rng.index(kinds.len())];
            let choice = rng.below(7);
            let place = match kind {
                Kind::Orphan | Kind::Ttl | Kind::Home => Key::new(INDEX, kind, rng.below(60)),
                Kind::Events => Key::new(INDEX, kind, 0),
                _ => Key::new(rng.below(60), kind, rng.below(4)),
            };
            let mut garbage = vec![0; rng.index(120)];
            rng.fill(&mut garbage);
            let done = cask.transact(Class::Replace, |tx| {
                match choice {
                    0 | 1 => tx.del(key),
                    2 | 3 => tx.put(key, flipped.as_slice())?,
                    4 if key.kind == other.kind => tx.put(key, other_value.as_slice())?,
                    4 => tx.del(other),
                    5 => tx.put(place, garbage.as_slice())?,
                    _ => tx.put(place, other_value.as_slice())?,
                }
                Ok(())
            });
            done.map_err(|e| e.to_string())?;
        }
        // It may not even be able to write that.
        let _ = cask.checkpoint();
        drop(cask);
        through_wrong(device.to_bytes())
    });
}

/// What is in a cask of wrong items nobody knows; it becomes one that is clean.
fn through_wrong(image: Vec<u8>) -> Result<bool, String> {
    let device = MemoryDevice::from_bytes(image);
    let steps = match repaired(device.clone()) {
        Ok(steps) => steps,
        Err(Error::NoSpace | Error::Failed(_)) => return Ok(false),
        Err(error) => return Err(format!("repair: {error}")),
    };
    let report = check(&device).map_err(|error| format!("{error}, after {steps:?}"))?;
    if let Some(finding) = report.findings.iter().find(|f| !IS_LOST.contains(&f.code)) {
        return Err(format!("left after {steps:#?}: {finding:?}"));
    }
    alive(&device)?;
    Ok(true)
}
