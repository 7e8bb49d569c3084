//! The engine against a plain map: items and contents, across checkpoints and re-openings.

mod image;
mod resize;
mod wipe;

use std::collections::BTreeMap;

use super::*;
use crate::device::MemoryDevice;
use crate::format::{Key, Kind};

/// Splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn tiny(block_size: u32, blocks: u64, ring: u64) -> FormatOptions {
    FormatOptions {
        block_size,
        blocks: Some(blocks),
        wal_bytes: Some(ring * u64::from(block_size)),
        superblock_spacing: 512,
        secret: [7; 32],
        ..FormatOptions::default()
    }
}

fn fresh(options: &FormatOptions) -> (MemoryDevice, Cask<MemoryDevice>) {
    let device = MemoryDevice::new();
    Cask::format(&device, options).unwrap();
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    (device, cask)
}

#[derive(Default, Clone, PartialEq, Debug)]
struct Model {
    items: BTreeMap<Key, Vec<u8>>,
    contents: BTreeMap<u64, Vec<u8>>,
}

fn compare<D: Device>(cask: &Cask<D>, model: &Model) {
    let mut items = BTreeMap::new();
    let last = Key::new(u64::MAX, Kind::Ttl, u64::MAX);
    cask.scan(Key::new(2, Kind::Inode, 0), last, &mut |key, value| {
        if key.kind != Kind::Data {
            items.insert(key, value.to_vec());
        }
        Ok(true)
    })
    .unwrap();
    assert_eq!(items, model.items);
    for (number, expected) in &model.contents {
        let mut found = vec![1; expected.len() + 100];
        cask.read_content(*number, 0, &mut found).unwrap();
        let (body, rest) = found.split_at(expected.len());
        if body != expected {
            let at = body.iter().zip(expected).position(|(a, b)| a != b);
            panic!(
                "content {number} of {} bytes differs at {at:?}",
                expected.len()
            );
        }
        assert!(
            rest.iter().all(|b| *b == 0),
            "bytes past the end of content {number}"
        );
    }
}

fn step<D: Device>(
    cask: &Cask<D>,
    model: &mut Model,
    rng: &mut Rng,
    numbers: &mut Vec<u64>,
) -> Result<Lsn> {
    let mut next = model.clone();
    let pick = |rng: &mut Rng| {
        numbers
            .get(rng.below(numbers.len() as u64 + 1) as usize)
            .copied()
    };
    let size = u64::from(cask.block_size());
    let kind = rng.below(10);
    let class = if matches!(kind, 7..=9) {
        Class::Release
    } else {
        Class::Grow
    };
    let target = pick(rng);
    let seed = rng.next();
    let data: Vec<u8> = {
        let most = if rng.below(4) == 0 {
            6 * size
        } else {
            size / 2
        };
        (0..=rng.below(most))
            .map(|i| (seed >> (i % 8)) as u8 | 1)
            .collect()
    };
    let offset = match (target, rng.below(3)) {
        (Some(number), 0) => next.contents.get(&number).map_or(0, |c| c.len() as u64),
        _ => rng.below(8 * size),
    };
    let staged = cask.stage(offset, &data)?;
    let ((number, made), lsn) = cask.transact(class, |tx| {
        let mut number = target;
        if number.is_none() {
            number = Some(tx.new_number());
        }
        let number = number.unwrap();
        match kind {
            0..=2 => tx.put(
                Key::new(number, Kind::Inode, seed % 3),
                data.get(..data.len().min(100)).unwrap(),
            )?,
            3..=6 => tx.write_staged(number, &staged),
            7 => tx.truncate(number, offset),
            8 => tx.drop_content(number),
            _ => tx.del(Key::new(number, Kind::Inode, seed % 3)),
        }
        Ok((number, target.is_none()))
    })?;
    if made {
        numbers.push(number);
    }
    match kind {
        0..=2 => {
            next.items.insert(
                Key::new(number, Kind::Inode, seed % 3),
                data[..data.len().min(100)].to_vec(),
            );
        }
        3..=6 => {
            let content = next.contents.entry(number).or_default();
            let end = offset as usize + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[offset as usize..end].copy_from_slice(&data);
        }
        7 => {
            if let Some(content) = next.contents.get_mut(&number) {
                content.truncate(offset as usize);
            }
        }
        8 => {
            next.contents.remove(&number);
            numbers.retain(|n| *n != number);
        }
        _ => {
            next.items.remove(&Key::new(number, Kind::Inode, seed % 3));
        }
    }
    *model = next;
    Ok(lsn)
}

fn run(seed: u64, options: &FormatOptions, steps: u64) {
    let mut rng = Rng(seed);
    let (device, mut cask) = fresh(options);
    let mut model = Model::default();
    let mut numbers = Vec::new();
    let mut full = 0;
    for at in 0..steps {
        match step(&cask, &mut model, &mut rng, &mut numbers) {
            Ok(lsn) => match rng.below(12) {
                0 => cask.sync(lsn).unwrap(),
                1 => cask.checkpoint().unwrap(),
                2 => {
                    cask.persist(lsn).unwrap();
                    drop(cask);
                    cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
                }
                _ => cask.persist(lsn).unwrap(),
            },
            Err(Error::NoSpace) => {
                full += 1;
                for number in std::mem::take(&mut numbers) {
                    cask.transact(Class::Release, |tx| {
                        tx.drop_content(number);
                        Ok(())
                    })
                    .unwrap();
                    model.contents.remove(&number);
                }
            }
            Err(error) => panic!("seed {seed}, step {at}: {error}"),
        }
        if rng.below(8) == 0 {
            compare(&cask, &model);
        }
    }
    compare(&cask, &model);
    cask.close().unwrap();
    let _ = full;
    drop(cask);
    let cask = Cask::open(
        device,
        OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    compare(&cask, &model);
}

#[test]
fn random_operations_on_tiny_casks() {
    for seed in 0..60 {
        run(seed, &tiny(512, 200 + 40 * (seed % 7), 4 + seed % 9), 300);
    }
    for seed in 100..130 {
        run(seed, &tiny(1024, 300, 16), 300);
    }
}

#[test]
fn random_operations_on_an_ordinary_cask() {
    let options = FormatOptions {
        blocks: Some(4096),
        secret: [3; 32],
        ..FormatOptions::default()
    };
    for seed in 0..4 {
        run(seed, &options, 1500);
    }
}

#[test]
fn space_comes_back_when_everything_is_deleted() {
    let (_, cask) = fresh(&tiny(512, 400, 8));
    cask.checkpoint().unwrap();
    let before = cask.stats().free_blocks;
    let mut numbers = Vec::new();
    for round in 0..20u64 {
        loop {
            let data = vec![round as u8 + 1; 700 + 61 * (numbers.len() % 30)];
            let made = cask.stage(0, &data).and_then(|staged| {
                cask.transact(Class::Grow, |tx| {
                    let number = tx.new_number();
                    tx.put(Key::inode(number), vec![1; 112])?;
                    tx.write_staged(number, &staged);
                    Ok(number)
                })
            });
            match made {
                Ok((number, _)) => numbers.push(number),
                Err(Error::NoSpace) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(
            numbers.len() > 10,
            "round {round}: only {} files fit",
            numbers.len()
        );
        for number in numbers.drain(..) {
            cask.transact(Class::Release, |tx| {
                tx.drop_content(number);
                tx.del(Key::inode(number));
                Ok(())
            })
            .unwrap();
        }
        cask.checkpoint().unwrap();
        cask.checkpoint().unwrap();
        assert_eq!(cask.stats().free_blocks, before, "round {round}");
    }
}

#[test]
fn a_growing_cask_grows() {
    let options = FormatOptions {
        secret: [3; 32],
        wal_bytes: Some(1 << 20),
        ..FormatOptions::default()
    };
    let (device, cask) = fresh(&options);
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i >> 7) as u8).collect();
    let mut numbers = Vec::new();
    for _ in 0..40 {
        let staged = cask.stage(0, &data).unwrap();
        let (number, lsn) = cask
            .transact(Class::Grow, |tx| {
                let number = tx.new_number();
                tx.write_staged(number, &staged);
                Ok(number)
            })
            .unwrap();
        cask.sync(lsn).unwrap();
        numbers.push(number);
    }
    // By an eighth at once, so seldom; and to the host's end nothing is refused.
    let blocks = cask.alloc.blocks();
    assert!(cask.grow(1).unwrap());
    assert!(cask.alloc.blocks() >= blocks + blocks / 8, "{blocks}");
    assert!(cask.stats().free_blocks > 1 << 20);
    drop(cask);
    let cask = Cask::open(device, OpenOptions::default()).unwrap();
    for number in numbers {
        let mut found = vec![0; data.len()];
        cask.read_content(number, 0, &mut found).unwrap();
        assert!(found == data);
    }
}

#[test]
fn a_cask_is_crowded_when_what_is_pending_takes_half_of_what_is_free() {
    let options = FormatOptions {
        blocks: Some(6000),
        secret: [3; 32],
        ..FormatOptions::default()
    };
    let (_, cask) = fresh(&options);
    let write = || {
        cask.transact(Class::Grow, |tx| {
            let number = tx.new_number();
            tx.write(number, 0, &[1; 60_000]);
            Ok(())
        })
        .unwrap();
    };
    assert!(!cask.is_crowded());
    write();
    assert!(!cask.is_crowded());
    let free = cask.alloc.free();
    let mut blocks = 15;
    while !cask.is_crowded() {
        write();
        blocks += 15;
        assert!(blocks < free, "{blocks} of {free}");
    }
    assert!(blocks > free / 8, "{blocks} of {free}");
    cask.checkpoint().unwrap();
    assert!(!cask.is_crowded());
}

#[test]
fn what_a_reader_held_is_free_when_he_is_gone_though_nobody_writes() {
    let options = FormatOptions {
        blocks: Some(6000),
        secret: [3; 32],
        ..FormatOptions::default()
    };
    let (_, cask) = fresh(&options);
    let (number, _) = cask
        .transact(Class::Grow, |tx| {
            let number = tx.new_number();
            tx.write(number, 0, &[1; 60_000]);
            Ok(number)
        })
        .unwrap();
    cask.checkpoint().unwrap();
    let reader = cask.snapshot();
    cask.transact(Class::Release, |tx| {
        tx.drop_content(number);
        Ok(())
    })
    .unwrap();
    cask.checkpoint().unwrap();
    let now = Timestamp::from_secs(5);
    cask.tick(now).unwrap();
    let free = cask.alloc.free();
    drop(reader);
    cask.tick(now).unwrap();
    assert!(cask.alloc.free() >= free + 15, "{free}");
}

/// The older superblock leads to blocks that may have been used again since.
#[test]
fn a_log_of_a_checkpoint_whose_superblock_is_lost_is_not_believed() {
    let options = tiny(512, 300, 16);
    let (device, cask) = fresh(&options);
    let put = |value: u8| {
        let (_, lsn) = cask
            .transact(Class::Grow, |tx| tx.put(Key::inode(9), [value].as_slice()))
            .unwrap();
        cask.sync(lsn).unwrap();
    };
    put(1);
    cask.checkpoint().unwrap();
    put(2);
    cask.checkpoint().unwrap();
    put(3);
    let generation = cask.stats().generation;
    let geometry = cask.geometry;
    drop(cask);
    Cask::open(MemoryDevice::from_bytes(device.to_bytes()), spaced()).unwrap();
    for copy in [2 * (generation & 1), 2 * (generation & 1) + 1] {
        let at = geometry.superblock_offset(copy);
        device.write_at(at, &[0; 512]).unwrap();
    }
    let error = Cask::open(device, spaced())
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(error.contains("the newer superblock is lost"), "{error}");
}

/// A later frame calls what is damaged durable.
#[test]
fn damage_of_a_record_that_was_durable_is_told() {
    let options = tiny(512, 300, 16);
    let (device, cask) = fresh(&options);
    let before = device.to_bytes();
    let mut starts = Vec::new();
    for value in 0..4_u8 {
        let (_, lsn) = cask
            .transact(Class::Grow, |tx| {
                tx.put(Key::inode(9), [value; 40].as_slice())
            })
            .unwrap();
        cask.sync(lsn).unwrap();
        let (wal, bytes) = (cask.geometry.wal_offset() as usize, device.to_bytes());
        let ring = wal..wal + cask.geometry.wal_len as usize;
        let last = bytes[ring.clone()].iter().rposition(|b| *b != 0).unwrap();
        starts.push(wal + last);
        assert!(before[ring].iter().all(|b| *b == 0));
    }
    drop(cask);
    let mut bytes = device.to_bytes();
    // In the second: the third says that it was durable, the fourth that the third was.
    bytes[starts[1]] ^= 1;
    let opened = Cask::open(MemoryDevice::from_bytes(bytes), spaced()).unwrap();
    let why = opened.read_only().unwrap().to_owned();
    assert!(why.contains("confirmed durable does not verify"), "{why}");
    // What nobody called durable was cut off by the crash.
    let mut bytes = device.to_bytes();
    bytes[starts[3]] ^= 1;
    let opened = Cask::open(MemoryDevice::from_bytes(bytes), spaced()).unwrap();
    assert!(opened.read_only().is_none());
}

#[test]
fn what_is_pending_is_set_aside() {
    let (_, cask) = fresh(&tiny(512, 600, 16));
    let idle = cask.set_aside(&cask.state.read());
    cask.transact(Class::Grow, |tx| {
        let number = tx.new_number();
        tx.write(number, 0, &[1; 20 * 512]);
        Ok(())
    })
    .unwrap();
    let busy = cask.set_aside(&cask.state.read());
    assert!(idle > 1 && busy >= idle + 20, "{idle}, then {busy}");
    // Nobody wants anything overwritten.
    assert!(!cask.abandoned.lock().wiped);
}

#[test]
fn a_block_with_no_more_than_fits_stands_in_the_tree() {
    let (_, cask) = fresh(&tiny(512, 600, 16));
    let most = cask.geometry.inline_max();
    for (len, is_inline) in [(most, true), (most + 1, false)] {
        let (number, _) = cask
            .transact(Class::Grow, |tx| {
                let number = tx.new_number();
                tx.write(number, 0, &vec![1; len]);
                Ok(number)
            })
            .unwrap();
        cask.checkpoint().unwrap();
        let item = cask.get(&Key::new(number, Kind::Data, 0)).unwrap().unwrap();
        let record = crate::format::content::ContentRecord::decode(&item).unwrap();
        let found = matches!(record, crate::format::content::ContentRecord::Inline(_));
        assert_eq!(found, is_inline, "{len} bytes");
    }
}

#[test]
fn what_is_allowed_adds_up() {
    let (_, cask) = fresh(&tiny(512, 300, 16));
    cask.transact(Class::Grow, |tx| {
        assert_eq!(tx.allowance(), (0, 0));
        tx.allow(1, 10);
        tx.allow(2, 20);
        assert_eq!(tx.allowance(), (3, 30));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_tiny_cask_has_a_log_of_eight_blocks() {
    let options = FormatOptions {
        block_size: 512,
        superblock_spacing: 512,
        blocks: Some(500),
        ..FormatOptions::default()
    };
    let device = MemoryDevice::new();
    Cask::format(&device, &options).unwrap();
    let cask = Cask::open(device, spaced()).unwrap();
    assert_eq!(cask.geometry.wal_len, 8 * 512);
}

fn spaced() -> OpenOptions {
    OpenOptions {
        superblock_spacing: Some(512),
        ..OpenOptions::default()
    }
}

/// Most inodes, and blocks.
type Bounds = (Option<u64>, Option<u64>);

fn bounds<D: Device>(cask: &Cask<D>) -> Bounds {
    let stats = cask.stats();
    (stats.files_limit, stats.blocks_limit)
}

/// What a cask holds and may hold, as one number; contents without the zeros at their end.
fn digest(
    items: &BTreeMap<Key, Vec<u8>>,
    contents: &BTreeMap<u64, Vec<u8>>,
    bounds: Bounds,
) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{bounds:?}").as_bytes());
    for (key, value) in items {
        hasher
            .update(&key.encode())
            .update(&(value.len() as u32).to_le_bytes())
            .update(value);
    }
    for (number, bytes) in contents {
        let len = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        if len > 0 {
            hasher
                .update(&number.to_le_bytes())
                .update(&(len as u32).to_le_bytes())
                .update(&bytes[..len]);
        }
    }
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().unwrap())
}

fn digest_of<D: Device>(cask: &Cask<D>, numbers: u64) -> Result<u64> {
    let mut items = BTreeMap::new();
    let last = Key::new(u64::MAX, Kind::Ttl, u64::MAX);
    cask.scan(Key::new(2, Kind::Inode, 0), last, &mut |key, value| {
        if key.kind != Kind::Data {
            items.insert(key, value.to_vec());
        }
        Ok(true)
    })?;
    let mut contents = BTreeMap::new();
    for number in 2..numbers {
        let mut bytes = vec![0; 100 * cask.block_size() as usize];
        cask.read_content(number, 0, &mut bytes)?;
        contents.insert(number, bytes);
    }
    Ok(digest(&items, &contents, bounds(cask)))
}

/// Runs a workload, then crashes it everywhere, `tries` times at each point; answers how many states
/// were seen, or the first that is no state the cask ever was in.
fn crash(
    seed: u64,
    options: &FormatOptions,
    steps: u64,
    tries: u64,
) -> std::result::Result<u64, String> {
    use crate::device::testing::{CrashResolver, Event, RecordingDevice};
    let memory = MemoryDevice::new();
    Cask::format(&memory, options).unwrap();
    let device = RecordingDevice::over(memory);
    let mut rng = Rng(seed);
    let mut cask = Cask::open(device.clone(), spaced()).unwrap();
    let mut model = Model::default();
    let mut numbers = Vec::new();
    let state = |model: &Model, cask: &Cask<_>| digest(&model.items, &model.contents, bounds(cask));
    let mut states = vec![state(&model, &cask)];
    for at in 1..=steps {
        device.mark(2 * at);
        if rng.below(12) == 0 {
            resize::some(&cask, &mut rng)
                .map_err(|error| format!("seed {seed}, step {at}: {error}"))?;
            states.push(state(&model, &cask));
            device.mark(2 * at + 1);
            continue;
        }
        let done = step(&cask, &mut model, &mut rng, &mut numbers);
        if matches!(done, Err(Error::NoSpace)) && !numbers.is_empty() {
            let number = numbers.remove(rng.below(numbers.len() as u64) as usize);
            let freed = cask.transact(Class::Release, |tx| {
                tx.drop_content(number);
                Ok(())
            });
            freed.map_err(|error| format!("seed {seed}: a release was refused: {error}"))?;
            model.contents.remove(&number);
        } else if let Err(error) = &done
            && !matches!(error, Error::NoSpace)
        {
            return Err(format!("seed {seed}, step {at}: {error}"));
        }
        states.push(state(&model, &cask));
        let lsn = cask.lsn();
        match rng.below(10) {
            0..=2 => {
                cask.sync(lsn).unwrap();
                device.mark(2 * at + 1);
            }
            3 => cask.checkpoint().unwrap(),
            4 if rng.below(3) == 0 => {
                cask.persist(lsn).unwrap();
                drop(cask);
                cask = match Cask::open(device.clone(), spaced()) {
                    Ok(cask) => cask,
                    Err(error) => {
                        return Err(format!("seed {seed}, step {at}: opening again: {error}"));
                    }
                };
            }
            _ => cask.persist(lsn).unwrap(),
        }
    }
    drop(cask);
    let recording = device.take();
    let mut resolver = CrashResolver::new(&recording);
    let mut pick = crate::device::testing::Rng::new(seed);
    let (mut issued, mut acked, mut seen) = (0, 0, 0);
    let top = numbers.iter().max().copied().unwrap_or(2).max(steps + 2) + 1;
    let mut image = Vec::new();
    let mut passed = 0;
    loop {
        for event in &recording.events[passed..resolver.position() / 2] {
            if let Event::Mark(tag) = event {
                let at = (tag / 2) as usize;
                if tag % 2 == 0 {
                    issued = at
                } else {
                    acked = at
                }
            }
        }
        passed = resolver.position() / 2;
        let tries = if resolver.in_doubt() { tries } else { 1 };
        for _ in 0..tries {
            let choice = resolver.choose(&mut pick);
            image = resolver.resolve(&choice, image);
            let copy = MemoryDevice::from_bytes(image.clone());
            let place = format!(
                "seed {seed}, event {} of {}, {choice:?}",
                resolver.position(),
                resolver.end()
            );
            let found = Cask::open(copy.clone(), spaced()).map_err(|e| format!("{place}: {e}"))?;
            let state = digest_of(&found, top).map_err(|e| format!("{place}: {e}"))?;
            if found.read_only().is_some() {
                return Err(format!("{place}: read-only: {:?}", found.read_only()));
            }
            if !states
                .get(acked..=issued)
                .unwrap_or_default()
                .contains(&state)
            {
                let known = states.iter().position(|s| *s == state);
                return Err(format!(
                    "{place}: state {known:?}, but acked {acked}, issued {issued}"
                ));
            }
            // Once recovered, it stays so.
            drop(found);
            let again = Cask::open(copy, spaced()).map_err(|e| format!("{place}, again: {e}"))?;
            if digest_of(&again, top).map_err(|e| format!("{place}, again: {e}"))? != state {
                return Err(format!("{place}: another state when opened again"));
            }
            seen += 1;
        }
        if !resolver.step() {
            break;
        }
    }
    Ok(seen)
}

#[test]
fn every_crash_leaves_a_prefix() {
    let wanted = 1_000;
    let mut seen = 0;
    for seed in 0.. {
        let options = match seed % 4 {
            0 => tiny(512, 120 + seed % 90, 4),
            1 => tiny(512, 160, 5 + seed % 10),
            2 => tiny(1024, 130, 8),
            _ => tiny(512, 400, 32),
        };
        match crash(seed, &options, 12 + seed % 20, 4) {
            Ok(states) => seen += states,
            Err(why) => panic!("after {seen} states: {why}"),
        }
        if seen >= wanted {
            break;
        }
    }
    println!("{seen} crash states");
}

/// Writes `count` contents of `len` bytes and notes them; answers their numbers.
fn contents<D: Device>(cask: &Cask<D>, count: u64, len: usize) -> Vec<u64> {
    (0..count)
        .map(|at| {
            let data = vec![at as u8 | 1; len];
            let staged = cask.stage(0, &data).unwrap();
            cask.transact(Class::Grow, |tx| {
                let number = tx.new_number();
                tx.write_staged(number, &staged);
                Ok(number)
            })
            .unwrap()
            .0
        })
        .collect()
}

fn drop_all<D: Device>(cask: &Cask<D>, numbers: &[u64]) {
    for number in numbers {
        cask.transact(Class::Release, |tx| {
            tx.drop_content(*number);
            Ok(())
        })
        .unwrap();
    }
}

/// Bytes of the container that are not zeros, in blocks: what the host still holds, about.
fn blocks_held(device: &MemoryDevice, block: usize) -> usize {
    let bytes = device.to_bytes();
    let held = bytes
        .chunks(block)
        .filter(|b| b.iter().any(|byte| *byte != 0));
    held.count()
}

#[test]
fn a_growing_cask_gives_room_back_and_takes_it_again() {
    let options = FormatOptions {
        blocks: None,
        ..tiny(512, 0, 16)
    };
    let device = MemoryDevice::new();
    Cask::format(&device, &options).unwrap();
    let mut largest = 0;
    for round in 0..6 {
        let cask = Cask::open(device.clone(), spaced()).unwrap();
        let kept = contents(&cask, 1, 700);
        let numbers = contents(&cask, 40, 5000);
        cask.checkpoint().unwrap();
        let full = blocks_held(&device, 512);
        assert!(full > 400, "{full} blocks held");
        drop_all(&cask, &numbers);
        cask.close().unwrap();
        let held = blocks_held(&device, 512);
        assert!(
            held < full / 2,
            "round {round}: {held} of {full} blocks held after deleting"
        );
        let mut found = vec![0; 700];
        cask.read_content(kept[0], 0, &mut found).unwrap();
        assert_eq!(found, vec![1; 700]);
        let len = device.to_bytes().len();
        assert!(
            round == 0 || len <= largest,
            "it grows without end: {len} after {largest}"
        );
        largest = largest.max(len);
        drop(cask);
    }
}

#[test]
fn a_host_without_room_is_no_space_and_loses_nothing() {
    let options = FormatOptions {
        blocks: None,
        ..tiny(512, 0, 16)
    };
    let device = MemoryDevice::with_max_len(600_000);
    Cask::format(&device, &options).unwrap();
    let cask = Cask::open(device.clone(), spaced()).unwrap();
    let numbers = contents(&cask, 40, 5000);
    let mut more = Vec::new();
    let refused = loop {
        let data = vec![9; 5000];
        let made = cask.stage(0, &data).and_then(|staged| {
            cask.transact(Class::Grow, |tx| {
                let number = tx.new_number();
                tx.write_staged(number, &staged);
                Ok(number)
            })
        });
        match made {
            Ok((number, _)) => more.push(number),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    assert!(more.len() > 20, "{} more", more.len());
    cask.sync(cask.stats().lsn).unwrap();
    drop(cask);
    // As if killed there; the host is still full, and what it holds it holds.
    let cask = Cask::open(device, spaced()).unwrap();
    let mut found = vec![0; 5000];
    for number in &more {
        cask.read_content(*number, 0, &mut found).unwrap();
        assert_eq!(found, vec![9; 5000]);
    }
    drop_all(&cask, &numbers);
    drop_all(&cask, &more);
    cask.close().unwrap();
    assert!(cask.failure().is_none());
}

#[test]
fn the_older_checkpoint_is_the_one_before_the_newest() {
    let (device, cask) = fresh(&tiny(512, 400, 16));
    let older = || {
        let options = OpenOptions {
            older: true,
            read_only: true,
            ..spaced()
        };
        Cask::open(device.clone(), options).map(|cask| cask.stats().generation)
    };
    for _ in 0..4 {
        let (_, lsn) = cask
            .transact(Class::Grow, |tx| {
                tx.write(9, 0, b"a");
                Ok(())
            })
            .unwrap();
        cask.persist(lsn).unwrap();
        cask.checkpoint().unwrap();
        assert_eq!(older().unwrap() + 1, cask.stats().generation);
    }
}

/// New data alone lets a cask grow; a checkpoint would give nothing back.
#[test]
fn a_cask_that_grows_writes_no_checkpoint_for_room() {
    let options = FormatOptions {
        blocks: None,
        wal_bytes: Some(8 << 20),
        ..tiny(4096, 0, 16)
    };
    let (_, cask) = fresh(&options);
    let before = cask.stats();
    for number in 20..50 {
        cask.transact(Class::Grow, |tx| {
            tx.write(number, 0, &[7; 100_000]);
            Ok(())
        })
        .unwrap();
    }
    let after = cask.stats();
    assert!(after.blocks >= before.blocks + 64, "{after:?}");
    assert_eq!(after.generation, before.generation);
}

#[test]
fn what_is_written_in_one_go_stands_in_one_extent() {
    let (_, cask) = fresh(&tiny(512, 4_000, 256));
    cask.transact(Class::Grow, |tx| {
        tx.write(9, 0, &[7; 40 * 512]);
        Ok(())
    })
    .unwrap();
    cask.checkpoint().unwrap();
    let mut items = 0;
    let (from, to) = (
        Key::new(9, Kind::Data, 0),
        Key::new(9, Kind::Data, u64::MAX),
    );
    cask.scan(from, to, &mut |_, _| {
        items += 1;
        Ok(true)
    })
    .unwrap();
    assert!(
        items <= 40_u64.div_ceil(cask.geometry.extent_max()) + 1,
        "{items}"
    );
}
