//! Runs a body under one order of its threads after the other, and what bodies are made of.
//!
//! A batch of schedules has a seed: an even one chooses at random at each point, an odd one gives the
//! threads priorities that change a few times (PCT). The same seed gives the same schedules.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};

use caskfs::cask::{Cask, FormatOptions, OpenOptions};
use caskfs::device::testing::{
    Choice, CrashResolver, Event, FaultyDevice, Recording, RecordingDevice, Rng,
};
use caskfs::device::{Device, MemoryDevice};
use shuttle::scheduler::{
    PctScheduler, Schedule, Scheduler, Task, TaskId, UncontrolledNondeterminismCheckScheduler,
};
use shuttle::{Config, FailurePersistence, Runner};

/// Schedules that share a seed.
const BATCH: u64 = 25;
/// Bodies that share `CASKFS_SCHEDULES`.
const BODIES: u64 = 6;
/// Bytes between the superblocks of a tiny cask.
pub const SPACING: u32 = 512;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

fn config() -> Config {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    // What comes again by its seed need not be written down step by step.
    config.failure_persistence = FailurePersistence::None;
    config.silence_warnings = true;
    // A thread that unwinds waits for nobody.
    config
        .ungraceful_shutdown_config
        .immediately_return_on_panic = true;
    config
}

/// Takes any of those who can go on.
struct AtRandom {
    rng: Rng,
    left: u64,
}

impl AtRandom {
    fn new(seed: u64, schedules: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            left: schedules,
        }
    }
}

impl Scheduler for AtRandom {
    fn new_execution(&mut self) -> Option<Schedule> {
        self.left = self.left.checked_sub(1)?;
        Some(Schedule::new(0))
    }

    fn next_task(&mut self, able: &[&Task], _: Option<TaskId>, _: bool) -> Option<TaskId> {
        Some(able[self.rng.index(able.len())].id())
    }

    fn next_u64(&mut self) -> u64 {
        self.rng.next_u64()
    }
}

fn scheduler(seed: u64, schedules: u64) -> Box<dyn Scheduler + Send> {
    match seed % 2 {
        0 => Box::new(AtRandom::new(seed, schedules)),
        // One change of priority for every odd seed, then two, three, four.
        _ => Box::new(PctScheduler::new_from_seed(
            seed,
            2 + (seed / 2 % 4) as usize,
            schedules as usize,
        )),
    }
}

thread_local! {
    /// This thread runs what is to fail.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one batch; after a failure, how many schedules it took.
fn batch(seed: u64, schedules: u64, body: fn()) -> Result<(), u64> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        // With its first run shuttle puts its own hook there.
        once(|| ());
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !EXPECTED.get() {
                hook(info);
            }
        }));
    });
    let tried = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&tried);
    let run = move || {
        count.fetch_add(1, Ordering::Relaxed);
        body();
    };
    let runner = Runner::new(scheduler(seed, schedules), config());
    panic::catch_unwind(AssertUnwindSafe(|| runner.run(run)))
        .map(drop)
        .map_err(|_| tried.load(Ordering::Relaxed))
}

/// Tries this body's share of all schedules.
pub fn explore(name: &str, body: fn()) {
    let first = number("CASKFS_SCHEDULE_SEED", 1);
    let batches = number("CASKFS_SCHEDULES", 2_000)
        .div_ceil(BODIES)
        .div_ceil(BATCH);
    for seed in first..first + batches {
        if let Err(tried) = batch(seed, BATCH, body) {
            panic!(
                "{name} failed in schedule {tried} of seed {seed}; to see it again: \
                 CASKFS_SCHEDULE_SEED={seed} CASKFS_SCHEDULES=1 \
                 cargo test --features schedules --test schedules -- \
                 --include-ignored --exact {name}"
            );
        }
    }
    println!("{name}: {} schedules", batches * BATCH);
}

/// How many schedules it takes until a body fails that has to.
pub fn must_fail(name: &str, most: u64, body: fn()) {
    EXPECTED.set(true);
    let first = number("CASKFS_SCHEDULE_SEED", 1);
    let failed = (0..most.div_ceil(BATCH)).find_map(|done| {
        let tried = batch(first + done, BATCH, body).err()?;
        Some(done * BATCH + tried)
    });
    EXPECTED.set(false);
    match failed {
        Some(tried) => println!("{name}: noticed in schedule {tried}"),
        None => panic!("{name}: {most} schedules noticed nothing"),
    }
}

/// Whether the same choices lead to the same points again: what is printed of a failure is of no use
/// otherwise.
pub fn repeats(schedules: u64, body: fn()) {
    let checked = UncontrolledNondeterminismCheckScheduler::new(AtRandom::new(1, schedules));
    Runner::new(checked, config()).run(body);
}

/// Does something that needs a scheduler, once.
pub fn once<T: Send + 'static>(make: impl Fn() -> T + Send + Sync + 'static) -> T {
    let made = Arc::new(Mutex::new(None));
    let put = Arc::clone(&made);
    Runner::new(AtRandom::new(0, 1), config()).run(move || {
        let value = make();
        *put.lock().unwrap() = Some(value);
    });
    let value = made.lock().unwrap().take();
    value.unwrap()
}

/// A device each call to which is a point where another thread may go on, before it and after.
pub struct Switching<D> {
    inner: D,
    point: shuttle::sync::atomic::AtomicBool,
}

impl<D> Switching<D> {
    pub fn new(inner: D) -> Arc<Self> {
        Arc::new(Self {
            inner,
            point: Default::default(),
        })
    }

    pub fn inner(&self) -> &D {
        &self.inner
    }

    fn at<T>(&self, call: impl FnOnce(&D) -> T) -> T {
        self.point.load(Ordering::SeqCst);
        let done = call(&self.inner);
        self.point.load(Ordering::SeqCst);
        done
    }
}

impl<D: Device> Device for Switching<D> {
    fn len(&self) -> io::Result<u64> {
        self.at(D::len)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.at(|device| device.read_at(offset, buf))
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.at(|device| device.write_at(offset, data))
    }
    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.at(|device| device.write_durable_at(offset, data))
    }
    fn sync(&self) -> io::Result<()> {
        self.at(D::sync)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.at(|device| device.set_len(len))
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.at(|device| device.allocate(offset, len))
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.at(|device| device.punch(offset, len))
    }
    fn growth_available(&self) -> io::Result<Option<u64>> {
        self.at(D::growth_available)
    }
}

/// A cask of 512-byte blocks on a device that says what it has written.
pub type Recorded = Arc<Switching<RecordingDevice>>;
/// The same on one that fails.
pub type Failing = Arc<Switching<FaultyDevice<RecordingDevice>>>;

pub fn options() -> OpenOptions {
    OpenOptions {
        superblock_spacing: Some(SPACING),
        ..OpenOptions::default()
    }
}

/// A device that holds a new cask.
pub fn formatted(blocks: u64, wal_blocks: u64) -> MemoryDevice {
    let device = MemoryDevice::new();
    let made = FormatOptions {
        block_size: 512,
        blocks: Some(blocks),
        wal_bytes: Some(wal_blocks * 512),
        uuid: [7; 16],
        secret: [9; 32],
        superblock_spacing: SPACING,
        ..FormatOptions::default()
    };
    Cask::format(&device, &made).unwrap();
    device
}

/// Opens a cask for several threads.
pub fn open<D: Device>(device: D) -> Arc<Cask<D>> {
    Arc::new(Cask::open(device, options()).unwrap())
}

/// The cask as it stands in these bytes.
pub fn reopened(bytes: Vec<u8>) -> Arc<Cask<MemoryDevice>> {
    open(MemoryDevice::from_bytes(bytes))
}

/// Opens what a loss of power leaves at each mark of a recording, with the marks so far: once with nothing
/// left that was not durable, and once with some of it. Of the end there are `tries`.
pub fn after_power_loss(
    recording: &Recording,
    tries: u64,
    mut look: impl FnMut(&Cask<MemoryDevice>, &[u64]),
) {
    let nothing = Choice {
        keep: caskfs::device::testing::crash::Keep::None,
        len: 1,
        ..Choice::KILLED
    };
    let mut resolver = CrashResolver::new(recording);
    let (mut marks, mut rng) = (Vec::new(), Rng::new(1));
    for (at, event) in recording.events.iter().enumerate() {
        let Event::Mark(mark) = event else {
            continue;
        };
        resolver.advance_to(2 * at);
        marks.push(*mark);
        for choice in [nothing, resolver.choose(&mut rng)] {
            look(&reopened(resolver.resolve(&choice, Vec::new())), &marks);
        }
    }
    resolver.advance_to(resolver.end());
    for _ in 0..tries {
        let choice = resolver.choose(&mut rng);
        look(&reopened(resolver.resolve(&choice, Vec::new())), &marks);
    }
}
