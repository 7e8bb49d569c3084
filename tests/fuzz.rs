//! Hostile bytes and hostile calls: nothing panics, hangs or takes memory without bound.
//!
//! Containers are changed so that their checksums verify again (tests/common/edits.rs), then opened, checked,
//! looked at, worked on, repaired and worked on again; decoders get any bytes; the calls that a kernel
//! makes get any arguments. What once went wrong stands in tests/corpus/ and is tried first.
//! `CASKFS_FUZZ_RUNS` (2,000) says how many runs, or `CASKFS_FUZZ_SECONDS` how long; `CASKFS_FUZZ_SEED`
//! where to begin.
#![cfg(feature = "testing")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod common;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use caskfs::Error;
use caskfs::cask::{Cask, OpenOptions};
use caskfs::clock::Timestamp;
use caskfs::device::MemoryDevice;
use caskfs::device::testing::Rng;
use caskfs::format::content::ContentRecord;
use caskfs::format::item::{
    ArrivalsRecord, DirentRecord, EventsRecord, InodeRecord, SegmentRecord, XattrRecord,
};
use caskfs::format::page::Page;
use caskfs::format::superblock::SuperblockRecord;
use caskfs::format::wal::{Changes, records};
use caskfs::format::{FileKind, Key};
use caskfs::fs::{Caller, OpenFlags, RenameFlags, SetAttr, SetTime};
use caskfs::fsck;
use caskfs::store::Store;
use common::case::Geometry;
use common::edits::Edit;
use common::generate::{Generator, Mix, workload};
use common::model::ModelFs;
use common::op::Op;
use common::plans;
use common::subject::{ROOT_CALLER, StoreSubject, Subject, time_of};

/// A run takes no longer than this, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);
/// Address space that the tests may take: who wants more of it fails.
const MEMORY: u64 = 6 << 30;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap())
}

/// A container that is sound, and how to make more of what is in it.
struct Base {
    image: Vec<u8>,
    geometry: Geometry,
    mix: Mix,
}

/// Casks of logs, of values and of anything, with a log to replay.
fn bases() -> Vec<Base> {
    let plans = [
        plans::logging(512, 700, 32, 3),
        plans::values(512, 400, 16, 6),
        plans::values(1024, 0, 16, 4),
        plans::plan(512, 400, 16, 30),
        plans::plan(1024, 220, 32, 40),
        plans::bypassing(512, 0, 16, 8),
    ];
    let made = plans.iter().zip(1..).map(|(plan, seed)| {
        let device = MemoryDevice::new();
        Cask::format(&device, &plan.geometry.format_options()).unwrap();
        let mut subject =
            StoreSubject::open(device.clone(), plan.geometry.spacing, time_of(0)).unwrap();
        let mut model = ModelFs::new(0o755, time_of(0));
        model.fixed = plan.geometry.blocks > 0;
        for (index, op) in workload(seed, plan.mix, 150).iter().enumerate() {
            if model.speaks_of(op) {
                let now = time_of(index + 1);
                let (_, _) = (subject.apply(op, now), model.apply(op, now));
            }
        }
        let _ = subject.apply(&Op::Sync, time_of(200));
        Base {
            image: device.to_bytes(),
            geometry: plan.geometry,
            mix: plan.mix,
        }
    });
    made.collect()
}

fn options(geometry: &Geometry, read_only: bool) -> OpenOptions {
    OpenOptions {
        read_only,
        superblock_spacing: Some(geometry.spacing),
        ..OpenOptions::default()
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    runs: u64,
    opened: u64,
    repaired: u64,
}

/// Opens, checks, looks at, works on and repairs a container of which nothing is known.
fn operate(base: &Base, image: Vec<u8>, rng: &mut Rng) -> Result<Sum, String> {
    let mut sum = Sum {
        runs: 1,
        ..Sum::default()
    };
    let device = || MemoryDevice::from_bytes(image.clone());
    // To look is to change nothing.
    let looked = device();
    if let Ok(cask) = Cask::open(looked.clone(), options(&base.geometry, true)) {
        let _ = fsck::check(&cask, true, &mut |_| {});
        let _ = fsck::scrub(
            &cask,
            fsck::SCRUB_START,
            &mut fsck::Report::default(),
            &mut |_| true,
        );
    }
    if looked.to_bytes() != image {
        return Err("looking changed the container".to_owned());
    }
    sum.opened += u64::from(work(base, &device(), rng));
    let mended = device();
    let repair = fsck::repair(
        mended.clone(),
        options(&base.geometry, false),
        true,
        Timestamp::from_secs(1_000),
        &mut |_| {},
    );
    if let Ok(repair) = repair {
        let found = Cask::open(mended.clone(), options(&base.geometry, true))
            .and_then(|cask| fsck::check(&cask, true, &mut |_| {}))
            .map_err(|error| format!("after a repair: {error}"))?;
        if repair.left.findings != found.findings {
            return Err(format!(
                "a repair left other things than it said: {found:#?}, {repair:#?}"
            ));
        }
        sum.repaired += u64::from(work(base, &mended, rng));
    }
    Ok(sum)
}

/// Does what programs do; answers whether the cask could be opened.
fn work(base: &Base, device: &MemoryDevice, rng: &mut Rng) -> bool {
    let now = time_of(300);
    let Ok(mut subject) = StoreSubject::open(device.clone(), base.geometry.spacing, now) else {
        return false;
    };
    walk(subject.store());
    let mut generator = Generator::new(rng.next_u64(), base.mix);
    for index in 0..10 {
        let Some(op) = generator.next() else { break };
        let _ = subject.apply(&op, time_of(301 + index));
    }
    hostile(subject.store(), rng, 6);
    let _ = subject.apply(&Op::Tick, time_of(320));
    let _ = subject.apply(&Op::Checkpoint, time_of(321));
    walk(subject.store());
    let _ = subject.store().close();
    true
}

/// Reads names, attributes and contents, as far as there is an end to them.
fn walk(store: &Store<MemoryDevice>) {
    let mut dirs = vec![1];
    let mut seen = std::collections::HashSet::new();
    let mut left = 400;
    while let Some(dir) = dirs.pop() {
        if !seen.insert(dir) || left == 0 {
            continue;
        }
        let mut names = Vec::new();
        let _ = store.readdir(dir, 0, true, &mut |entry, _| {
            names.push((entry.name.clone(), entry.ino));
            names.len() < 200
        });
        for (name, _) in names {
            left -= 1;
            if left == 0 {
                return;
            }
            let Ok(entry) = store.lookup(&ROOT_CALLER, dir, &name) else {
                continue;
            };
            let ino = entry.attr.ino;
            let _ = store.listxattr(ino);
            match entry.attr.kind {
                FileKind::Directory if name != b"." && name != b".." => dirs.push(ino),
                FileKind::Symlink => drop(store.readlink(ino)),
                FileKind::Regular => {
                    let flags = OpenFlags {
                        read: true,
                        ..OpenFlags::default()
                    };
                    if let Ok(opened) = store.open(&ROOT_CALLER, ino, flags) {
                        let mut buf = Vec::new();
                        for offset in [0, entry.attr.size.saturating_sub(4096), u64::MAX / 2] {
                            let _ = store.read(ino, opened.fh, offset, 1 << 16, &mut buf);
                        }
                        let _ = store.lseek(ino, opened.fh, 0, true);
                        let _ = store.release(ino, opened.fh);
                    }
                }
                _ => {}
            }
        }
    }
}

/// Numbers as they come, and those near the ends of what can be said.
fn any(rng: &mut Rng) -> u64 {
    match rng.below(6) {
        0 | 1 => rng.below(40),
        2 => u64::MAX - rng.below(3),
        3 => (1 << rng.below(64)) - rng.below(2),
        4 => 1 << 63 | rng.below(40) | rng.below(4) << 61,
        _ => rng.next_u64(),
    }
}

fn name(rng: &mut Rng) -> Vec<u8> {
    match rng.below(8) {
        0 => Vec::new(),
        1 => vec![b'n'; rng.index(300)],
        2 => b".cask".to_vec(),
        3 => [&b".."[..], b".", b"rotate", b"events", b"cat", b"snapshot"][rng.index(6)].to_vec(),
        4 => {
            let mut bytes = vec![0; rng.index(40)];
            rng.fill(&mut bytes);
            bytes
        }
        _ => [&b"a"[..], b"b", b"t_1", b"l", b"v", b"d"][rng.index(6)].to_vec(),
    }
}

/// Calls with any arguments.
fn hostile(store: &Store<MemoryDevice>, rng: &mut Rng, calls: usize) {
    let attributes: [&[u8]; 9] = [
        b"user.a",
        b"user.cask.mode",
        b"user.cask.ttl",
        b"user.cask.label",
        b"user.cask.keep",
        b"user.cask.roll-name",
        b"user.cask.files",
        b"",
        b"security.x",
    ];
    let mut handles = vec![0, u64::MAX];
    for _ in 0..calls {
        let (ino, other, offset, len) = (any(rng), any(rng), any(rng), any(rng));
        let (first, second) = (name(rng), name(rng));
        let caller = Caller {
            uid: rng.below(3) as u32,
            gid: rng.below(3) as u32,
            tid: rng.below(3) as u32,
        };
        let fh = handles[rng.index(handles.len())];
        let flags = OpenFlags {
            read: rng.chance(1, 2),
            write: rng.chance(1, 2),
            append: rng.chance(1, 2),
            truncate: rng.chance(1, 4),
            exclusive: rng.chance(1, 4),
            sync: rng.chance(1, 4),
        };
        let mut buf = Vec::new();
        let data = vec![7; rng.index(3_000)];
        match rng.below(24) {
            0 => drop(store.lookup(&caller, ino, &first)),
            1 => drop(store.getattr(ino, Some(fh).filter(|_| rng.chance(1, 2)))),
            2 => {
                let time = || {
                    SetTime::At(Timestamp {
                        secs: offset as i64,
                        nanos: len as u32,
                    })
                };
                let set = SetAttr {
                    perm: rng.chance(1, 2).then_some(other as u32),
                    uid: rng.chance(1, 4).then_some(other as u32),
                    gid: rng.chance(1, 4).then_some(len as u32),
                    size: rng.chance(1, 2).then_some(len),
                    atime: rng.chance(1, 2).then(time),
                    mtime: rng.chance(1, 2).then(time),
                };
                drop(store.setattr(&caller, ino, Some(fh).filter(|_| rng.chance(1, 2)), &set));
            }
            3 | 4 => {
                if let Ok(opened) = store.open(&caller, ino, flags) {
                    handles.push(opened.fh);
                }
            }
            5 | 6 => {
                if let Ok((_, opened)) = store.create(&caller, ino, &first, other as u32, flags) {
                    handles.push(opened.fh);
                }
            }
            7 => drop(store.read(ino, fh, offset, (len as u32).min(1 << 20), &mut buf)),
            8 | 9 => drop(store.write(&caller, ino, fh, offset, &data)),
            10 => drop(store.flush(&caller, ino, fh)),
            11 => drop(store.release(ino, fh)),
            12 => drop(store.fsync(ino, fh, rng.chance(1, 2))),
            13 => drop(store.fallocate(ino, fh, other as i32, offset, len)),
            14 => drop(store.lseek(ino, fh, offset, rng.chance(1, 2))),
            15 => drop(store.mkdir(&caller, ino, &first, other as u32)),
            16 => {
                let kind = [FileKind::Fifo, FileKind::Regular, FileKind::Socket][rng.index(3)];
                drop(store.mknod(&caller, ino, &first, kind, other as u32, len as u32 as _));
            }
            17 => drop(store.symlink(&caller, ino, &first, &data)),
            18 => drop(store.link(&caller, ino, other, &first)),
            19 => match rng.chance(1, 2) {
                true => drop(store.unlink(&caller, ino, &first)),
                false => drop(store.rmdir(&caller, ino, &first)),
            },
            20 => {
                let flags = RenameFlags {
                    no_replace: rng.chance(1, 4),
                    exchange: rng.chance(1, 4),
                    whiteout: rng.chance(1, 8),
                };
                drop(store.rename(&caller, ino, &first, other, &second, flags));
            }
            21 => {
                let mut left = 100;
                drop(store.readdir(ino, offset, rng.chance(1, 2), &mut |_, _| {
                    left -= 1;
                    left > 0
                }));
            }
            22 => {
                let attribute = attributes[rng.index(attributes.len())];
                let value = &data[..data.len().min(rng.index(400))];
                drop(store.setxattr(&caller, ino, attribute, value, flags.exclusive, flags.sync));
            }
            _ => {
                let attribute = attributes[rng.index(attributes.len())];
                drop(store.getxattr(ino, attribute));
                drop(store.removexattr(&caller, ino, attribute));
            }
        }
    }
    for fh in handles {
        let _ = store.release(1, fh);
    }
}

/// Gives any bytes to all decoders; what is encoded again from what they answer is the same.
fn decode(rng: &mut Rng) -> Result<(), String> {
    let mut bytes = vec![0; rng.index(700)];
    match rng.below(3) {
        0 => {}
        1 => rng.fill(&mut bytes),
        // Lengths that are small, as they are when they are right.
        _ => bytes
            .iter_mut()
            .for_each(|byte| *byte = rng.below(24) as u8),
    }
    for _ in 0..rng.index(20) {
        if !bytes.is_empty() {
            let at = rng.index(bytes.len());
            bytes[at] = rng.below(256) as u8;
        }
    }
    let _ = SuperblockRecord::decode(&bytes);
    let _ = InodeRecord::decode(&bytes);
    let _ = SegmentRecord::decode(&bytes);
    let _ = EventsRecord::decode(&bytes);
    let _ = ArrivalsRecord::decode(&bytes);
    let _ = Page::parse(bytes.clone().into(), rng.below(3), 0, rng.below(3) as u8);
    if let Ok(key) = Key::decode(&bytes)
        && !bytes.starts_with(&key.encode())
    {
        return Err(format!("a key that is not what it was: {bytes:?}"));
    }
    if let Ok(record) = ContentRecord::decode(&bytes)
        && record.encode() != bytes
    {
        return Err(format!("a content that is not what it was: {bytes:?}"));
    }
    if let Ok(names) = DirentRecord::decode_all(&bytes)
        && DirentRecord::encode_all(&names) != bytes
    {
        return Err(format!("names that are not what they were: {bytes:?}"));
    }
    if let Ok(attributes) = XattrRecord::decode_all(&bytes)
        && XattrRecord::encode_all(&attributes) != bytes
    {
        return Err(format!("attributes that are not what they were: {bytes:?}"));
    }
    for record in records(&bytes).unwrap_or_default() {
        let mut again = Vec::new();
        let mut whole = true;
        for change in Changes(record) {
            match change {
                Ok(change) => change.encode(&mut again),
                Err(_) => whole = false,
            }
        }
        if whole && again != record {
            return Err(format!("changes that are not what they were: {record:?}"));
        }
    }
    Ok(())
}

/// The edits of a run: its own, or some of those that once went wrong with another.
fn edits(rng: &mut Rng, corpus: &[Vec<Edit>]) -> Vec<Edit> {
    let mut edits = match rng.chance(1, 4) {
        true if !corpus.is_empty() => corpus[rng.index(corpus.len())].clone(),
        _ => vec![Edit::random(rng)],
    };
    for _ in 0..rng.index(3) {
        edits.push(Edit::random(rng));
    }
    edits
}

/// Counts a thread out.
struct Over<'t>(&'t AtomicU64);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Applies edits to a base and operates; the sum, or what went wrong.
fn run(base: &Base, edits: &[Edit], rng: &mut Rng) -> Result<Sum, String> {
    let mut image = base.image.clone();
    for edit in edits {
        let _ = edit.apply(&mut image);
    }
    let done = catch_unwind(AssertUnwindSafe(|| operate(base, image, rng)));
    done.unwrap_or_else(|_| Err("a panic".to_owned()))
}

/// Text of tests/corpus/: `base N`, then an edit a line.
fn corpus() -> Vec<(String, usize, Vec<Edit>)> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "edits"))
        .collect();
    paths.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let base = lines.next().and_then(|line| line.strip_prefix("base "));
        let base = base.unwrap().parse().unwrap();
        let edits = lines.map(|line| line.parse().unwrap()).collect();
        (path.display().to_string(), base, edits)
    };
    paths.iter().map(read).collect()
}

#[test]
fn edits_are_text_and_back_and_mostly_possible() {
    let bases = bases();
    let mut rng = Rng::new(5);
    let mut applied = 0;
    for turn in 0..1_000 {
        let edit = Edit::random(&mut rng);
        assert_eq!(edit.to_string().parse().as_ref(), Ok(&edit));
        let mut image = bases[turn % bases.len()].image.clone();
        applied += u32::from(edit.apply(&mut image).is_some());
    }
    assert!(applied > 800, "only {applied} of 1000 could be applied");
}

/// An edit that changes nothing leaves the container sound: checksums are made right.
#[test]
fn checksums_verify_after_an_edit() {
    let bases = bases();
    for (index, base) in bases.iter().enumerate() {
        for text in [
            "superblock",
            "page.0.1",
            "page.3",
            "frame.0",
            "frame.5",
            "root",
            "bitmap.0",
        ] {
            let mut image = base.image.clone();
            let edit: Edit = format!("{text} 0 00").parse().unwrap();
            // Nothing: the bytes that are there are put there.
            let edit = Edit {
                bytes: Vec::new(),
                ..edit
            };
            let _ = edit.apply(&mut image);
            let device = MemoryDevice::from_bytes(image);
            let cask = Cask::open(device, options(&base.geometry, true)).unwrap();
            let report = fsck::check(&cask, true, &mut |_| {}).unwrap();
            assert!(report.is_clean(), "base {index}, {text}: {report:?}");
        }
    }
}

#[test]
fn what_once_went_wrong_does_not_again() {
    let bases = bases();
    for (path, base, edits) in corpus() {
        let mut rng = Rng::new(1);
        if let Err(what) = run(&bases[base % bases.len()], &edits, &mut rng) {
            panic!("{path}: {what}");
        }
    }
}

#[test]
fn nothing_panics_hangs_or_takes_all_memory() {
    let limit = rustix::process::Rlimit {
        current: Some(MEMORY),
        maximum: Some(MEMORY),
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
    let bases = bases();
    let known: Vec<Vec<Edit>> = corpus().into_iter().map(|(_, _, edits)| edits).collect();
    let end = number("CASKFS_FUZZ_SECONDS").map(|secs| Instant::now() + Duration::from_secs(secs));
    let runs = number("CASKFS_FUZZ_RUNS").unwrap_or(match end {
        Some(_) => u64::MAX,
        None => 2_000,
    });
    let first = number("CASKFS_FUZZ_SEED").unwrap_or(1);
    let (next, total) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let (under_way, threads) = (Mutex::new(BTreeMap::new()), AtomicU64::new(2));
    let wrong = Mutex::new(None);
    std::thread::scope(|scope| {
        // One that hangs never comes back to be told.
        scope.spawn(|| {
            while threads.load(Ordering::Relaxed) > 0 {
                std::thread::park_timeout(Duration::from_millis(50));
                let late = |(_, begun): &(_, &Instant)| begun.elapsed() > PATIENCE;
                if let Some((text, _)) = under_way.lock().unwrap().iter().find(late) {
                    eprintln!("this does not end: {text}");
                    std::process::abort();
                }
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let _over = Over(&threads);
                while wrong.lock().unwrap().is_none() && end.is_none_or(|end| Instant::now() < end)
                {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= runs {
                        break;
                    }
                    let seed = first + number;
                    let mut rng = Rng::new(seed);
                    let index = rng.index(bases.len());
                    let edits = edits(&mut rng, &known);
                    let text = || {
                        let lines: Vec<String> = edits.iter().map(Edit::to_string).collect();
                        format!("base {index}\n{}\n", lines.join("\n"))
                    };
                    let told = format!("seed {seed}: {}", text());
                    under_way
                        .lock()
                        .unwrap()
                        .insert(told.clone(), Instant::now());
                    let done = catch_unwind(AssertUnwindSafe(|| decode(&mut rng)))
                        .unwrap_or_else(|_| Err("a panic of a decoder".to_owned()))
                        .and_then(|()| run(&bases[index], &edits, &mut rng));
                    under_way.lock().unwrap().remove(&told);
                    match done {
                        Ok(sum) => {
                            let mut total = total.lock().unwrap();
                            total.runs += sum.runs;
                            total.opened += sum.opened;
                            total.repaired += sum.repaired;
                        }
                        Err(what) => {
                            *wrong.lock().unwrap() =
                                Some(format!("seed {seed}: {what}\n{}", text()));
                        }
                    }
                }
            });
        }
    });
    if let Some(what) = wrong.into_inner().unwrap() {
        panic!("{what}");
    }
    let total = total.into_inner().unwrap();
    println!("{total:?} from seed {first}");
    // What is refused at once proves little.
    assert!(total.opened * 4 > total.runs, "{total:?}");
    assert!(total.repaired * 4 > total.runs, "{total:?}");
}

/// A cask in order takes any calls, and is in order afterwards.
#[test]
fn calls_with_any_arguments_leave_a_sound_cask() {
    let runs = number("CASKFS_FUZZ_RUNS").unwrap_or(500).min(2_000);
    let first = number("CASKFS_FUZZ_SEED").unwrap_or(1);
    let bases = bases();
    let mut done = 0;
    for seed in first..first + runs {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let base = &bases[rng.index(bases.len())];
        let device = MemoryDevice::from_bytes(base.image.clone());
        let subject =
            StoreSubject::open(device.clone(), base.geometry.spacing, time_of(300)).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            hostile(subject.store(), &mut rng, 60);
            match subject.store().close() {
                Ok(()) | Err(Error::NoSpace) => Ok(()),
                other => other,
            }
        }));
        let closed = result.unwrap_or_else(|_| panic!("seed {seed}: a panic"));
        closed.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        drop(subject);
        let cask = Cask::open(device, options(&base.geometry, true)).unwrap();
        let report = fsck::check(&cask, true, &mut |_| {}).unwrap();
        assert!(report.is_clean(), "seed {seed}: {report:#?}");
        done += 1;
    }
    println!("{done} casks under 60 calls each");
}
