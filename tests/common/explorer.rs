//! The crash explorer: records a workload, cuts it everywhere, builds what a crash could leave there,
//! recovers, and compares with the model.
//!
//! The rule it checks: the recovered cask *equals* the model after k operations, where k is at least
//! the number acknowledged as durable (after a power loss) or returned (after a mere death of the
//! process), and at most the number issued. Some of the recovered casks live on, do more, and crash
//! again, also in the middle of recovery.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use caskfs::cask::Cask;
use caskfs::clock::Timestamp;
use caskfs::device::testing::{
    Choice, Control, CrashResolver, Event, Recording, RecordingDevice, Rng,
};
use caskfs::device::{Device, MemoryDevice};
use caskfs::fsck;
use libc::ENOSPC;

use super::case::{Case, Geometry};
use super::generate::{Mix, workload, workload_on};
use super::life::{ISSUED, LIFE_STRIDE, Life, Progress, Seen, story};
use super::model::ModelFs;
use super::op::{Data, Op, Path};
use super::subject::{
    BOUNDS, EVENTS, ROOT_CALLER, StoreSubject, Subject, differences, fingerprint, time_of,
};

/// How many lives a cask is followed through.
const DEPTH_MAX: u32 = 3;

/// What came out wrong, with all that is needed to have it again.
#[derive(Debug)]
pub struct Failure {
    pub case: Case,
    pub what: String,
    /// Crash states tried before it was found.
    pub states: u64,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.what.replace('\n', "\n# ");
        write!(
            f,
            "# {text}\n# after {} states of this case\n{}",
            self.states, self.case
        )
    }
}

/// Tries crash states of one case.
pub(super) struct Explorer<'c> {
    pub case: &'c Case,
    pub rng: Rng,
    pub states: u64,
    /// Room for images, reused.
    pub room: Vec<u8>,
    /// Free blocks of the empty cask, or those in use if it grows.
    when_empty: u64,
    /// How many lives a cask is followed through.
    depth_max: u32,
}

/// Explores one case; answers the number of states tried.
pub fn explore(case: &Case) -> Result<u64, Box<Failure>> {
    tried(case, DEPTH_MAX, |explorer, life| {
        while explorer.states < case.states {
            let before = explorer.states;
            explorer.walk(life)?;
            if explorer.states == before {
                break;
            }
        }
        Ok(())
    })
}

/// Lets a cask live through the operations of a case and tries what `walk` does with its recording;
/// answers the number of states tried.
pub(super) fn tried(
    case: &Case,
    depth_max: u32,
    walk: impl FnOnce(&mut Explorer<'_>, &Life) -> Result<(), String>,
) -> Result<u64, Box<Failure>> {
    let mut explorer = Explorer {
        case,
        rng: Rng::new(case.seed),
        states: 0,
        room: Vec::new(),
        when_empty: 0,
        depth_max,
    };
    let run = |explorer: &mut Explorer<'_>| {
        let life = explorer.live()?;
        walk(explorer, &life)
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut explorer))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text
            .or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(format!("panic: {text}"))
    });
    match outcome {
        Ok(()) => Ok(explorer.states),
        Err(what) => Err(Box::new(Failure {
            case: case.clone(),
            what,
            states: explorer.states,
        })),
    }
}

impl Explorer<'_> {
    /// The first life.
    fn live(&mut self) -> Result<Life, String> {
        let made = MemoryDevice::new();
        Cask::format(&made, &self.case.geometry.format_options())
            .map_err(|error| format!("cannot be made: {error}"))?;
        let image = made.into_bytes();
        self.when_empty = when_empty(&image, self.case.geometry)?;
        let device = RecordingDevice::new(image);
        let mut model = ModelFs::new(0o755, time_of(0));
        model.fixed = self.case.geometry.blocks > 0;
        Life::live(
            &device,
            self.case.geometry.spacing,
            0,
            model,
            0,
            self.case.ops.clone(),
        )
    }

    /// Crashes once or more at every point of a life.
    fn walk(&mut self, life: &Life) -> Result<(), String> {
        let mut resolver = CrashResolver::new(&life.recording);
        resolver.advance_to(life.from * 2);
        self.at_each_moment(life, resolver, |explorer, resolver, progress| {
            if explorer.states >= explorer.case.states {
                return Ok(false);
            }
            explorer.crash(life, resolver, progress, Choice::KILLED)?;
            if resolver.in_doubt() {
                for _ in 0..3 {
                    let choice = resolver.choose(&mut explorer.rng);
                    explorer.crash(life, resolver, progress, choice)?;
                }
            }
            Ok(true)
        })
    }

    /// Stops at every point of a life at which a crash has something to show, until `act` has enough.
    pub fn at_each_moment<'r>(
        &mut self,
        life: &'r Life,
        mut resolver: CrashResolver<'r>,
        mut act: impl FnMut(&mut Self, &CrashResolver<'r>, Progress) -> Result<bool, String>,
    ) -> Result<(), String> {
        let events = &life.recording.events;
        let mut progress = Progress::default();
        let mut noted = life.from;
        while resolver.step() {
            let done = resolver.position() / 2;
            let mut last = None;
            while noted < done {
                last = events.get(noted);
                if let Some(Event::Mark(tag)) = last {
                    progress.note(*tag);
                }
                noted += 1;
            }
            // Between a change and the mark that reports it there is less to be demanded.
            let reports = |event: Option<&Event>| matches!(event, Some(Event::Mark(tag)) if tag & !0xffff_ffff != ISSUED);
            let issues = matches!(last, Some(Event::Mark(tag)) if tag & !0xffff_ffff == ISSUED);
            if issues || (resolver.position() % 2 == 0 && reports(events.get(done))) {
                continue;
            }
            if !act(self, &resolver, progress)? {
                break;
            }
        }
        Ok(())
    }

    /// One crash state.
    fn crash(
        &mut self,
        life: &Life,
        resolver: &CrashResolver<'_>,
        progress: Progress,
        choice: Choice,
    ) -> Result<(), String> {
        let image = resolver.resolve(&choice, std::mem::take(&mut self.room));
        self.crash_to(image, life, resolver, progress, choice)
    }

    /// One crash state, the image of which is there.
    pub fn crash_to(
        &mut self,
        image: Vec<u8>,
        life: &Life,
        resolver: &CrashResolver<'_>,
        progress: Progress,
        choice: Choice,
    ) -> Result<(), String> {
        self.states += 1;
        let killed = choice == Choice::KILLED;
        let wanted = life.acceptable(progress, killed);
        let lives_on = progress.opened && life.depth < self.depth_max && self.rng.chance(1, 8);
        let kept = lives_on.then(|| image.clone());
        let result = self.recover(image, &wanted, life, progress);
        let found = result.map_err(|what| {
            let Progress {
                opened,
                issued,
                returned,
                acked,
            } = progress;
            format!(
                "{what}\nlife {}, position {} of {}, {choice:?}\n\
                 opened {opened}, issued {issued}, returned {returned}, acked {acked}",
                life.depth,
                resolver.position(),
                resolver.end(),
            ) + &story(&life.recording, resolver.position())
        })?;
        let issued = life.states.get(..=progress.issued).unwrap_or_default();
        let k = issued.iter().rposition(|seen| seen.print == found);
        let (Some(image), Some(k)) = (kept, k) else {
            return Ok(());
        };
        self.next_life(life, resolver, progress, image, k, killed)
    }

    /// Opens what the crash left and compares; answers the fingerprint.
    fn recover(
        &mut self,
        image: Vec<u8>,
        wanted: &[&Seen],
        life: &Life,
        progress: Progress,
    ) -> Result<u64, String> {
        let memory = MemoryDevice::from_bytes(image);
        let spacing = self.case.geometry.spacing;
        let mut subject = StoreSubject::open(memory.clone(), spacing, life.view.now)
            .map_err(|error| format!("does not open: {error}"))?;
        if let Some(last) = life.states.last() {
            subject.follow(&last.model);
        }
        let dump = subject
            .dump()
            .map_err(|error| format!("cannot be read: {error}"))?;
        let found = fingerprint(&dump);
        if !wanted.iter().any(|seen| seen.print == found) {
            let k = life.states.iter().position(|seen| seen.print == found);
            let nearest = life.states[progress.issued].model.dump_as(life.view);
            return Err(match k {
                Some(k) => format!("is as after {k} operations"),
                None => {
                    format!(
                        "is as never before; beside all issued:\n{}",
                        differences(&dump, &nearest)
                    )
                }
            });
        }
        if self.states.is_multiple_of(4) {
            checked(subject.store().cask())?;
        }
        if self.states % 8 == 1 && subject.store().cask().wipes() > 0 {
            wiped(&subject, &memory)?;
        }
        drop(subject);
        if self.states.is_multiple_of(16) {
            let blocks = drained(memory.clone(), self.case.geometry)?;
            if let Some(blocks) = blocks.filter(|blocks| *blocks != self.when_empty) {
                let wanted = self.when_empty;
                return Err(format!(
                    "leaks: {blocks} blocks free (in use, if it grows) when empty, should be {wanted}"
                ));
            }
        }
        self.room = memory.into_bytes();
        Ok(found)
    }

    /// Lets what was recovered live on and crash again.
    fn next_life(
        &mut self,
        life: &Life,
        resolver: &CrashResolver<'_>,
        progress: Progress,
        image: Vec<u8>,
        k: usize,
        killed: bool,
    ) -> Result<(), String> {
        let (device, from) = if killed {
            let events = &life.recording.events;
            let from = resolver.position().div_ceil(2);
            let past = Recording {
                initial: life.recording.initial.clone(),
                events: events[..from.min(events.len())].to_vec(),
            };
            let device = RecordingDevice::resume(past).map_err(|error| error.to_string())?;
            (device, from)
        } else {
            (RecordingDevice::new(image), 0)
        };
        let model = life.model_after(k);
        let done = LIFE_STRIDE * life.depth as usize + self.rng.index(LIFE_STRIDE / 2);
        let len = self.rng.index(8);
        let ops = workload_on(model.clone(), done, self.rng.next_u64(), self.case.mix, len);
        let printed: Vec<String> = ops.iter().map(Op::to_string).collect();
        let run = |explorer: &mut Self| -> Result<(), String> {
            let mut next = Life::live(
                &device,
                explorer.case.geometry.spacing,
                from,
                model,
                done,
                ops,
            )?;
            next.depth = life.depth + 1;
            // Recovery is repeatable: dying in it changes nothing, but what was pending before it.
            let again = |seen: &Seen| seen.again(life.view, next.view);
            let found = again(&life.states[k]);
            next.past_lost = if killed {
                let past = life.acceptable(progress, false);
                past.into_iter().map(again).collect()
            } else {
                vec![found.clone()]
            };
            next.past_killed = vec![found];
            next.began_pending = killed;
            explorer.sample(&next)
        };
        run(self).map_err(|what| {
            let Progress { issued, acked, .. } = progress;
            format!(
                "{what}\nin a life after one that ended {} at position {} with k {k} \
                 (acked {acked}, issued {issued}); then: {}",
                if killed { "by kill" } else { "by power loss" },
                resolver.position(),
                printed.join("; "),
            )
        })
    }

    /// Crashes at a few points of a life.
    fn sample(&mut self, life: &Life) -> Result<(), String> {
        let events = &life.recording.events;
        let start = life.from * 2;
        let span = (events.len() * 2).saturating_sub(start);
        for _ in 0..4 {
            let mut resolver = CrashResolver::new(&life.recording);
            resolver.advance_to(start + self.rng.index(span + 1));
            let mut progress = Progress::default();
            let done = resolver.position() / 2;
            for event in &events[life.from..done.max(life.from)] {
                if let Event::Mark(tag) = event {
                    progress.note(*tag);
                }
            }
            let choice = match self.rng.below(4) {
                0 => Choice::KILLED,
                _ => resolver.choose(&mut self.rng),
            };
            self.crash(life, &resolver, progress, choice)?;
        }
        Ok(())
    }
}

/// What fsck finds, where anything is too much.
fn checked<D: Device>(cask: &Cask<D>) -> Result<(), String> {
    let report = fsck::check(cask, true, &mut |_| {}).map_err(|error| format!("fsck: {error}"))?;
    match report.findings.as_slice() {
        [] => Ok(()),
        findings => Err(format!("fsck: {findings:#?}")),
    }
}

/// After an orderly end of a cask that wipes, its free blocks and its log hold nothing.
fn wiped<D: Device>(subject: &StoreSubject<D>, memory: &MemoryDevice) -> Result<(), String> {
    let store = subject.store();
    store.close().map_err(|error| format!("close: {error}"))?;
    let (bytes, pinned) = (memory.to_bytes(), store.cask().pin());
    let geometry = pinned.geometry();
    let is_blank = |at: u64, len: u64| {
        let range = at as usize..(at + len) as usize;
        bytes[range].iter().all(|byte| *byte == 0)
    };
    if !is_blank(geometry.wal_offset(), geometry.wal_len) {
        return Err("the log is not wiped".to_owned());
    }
    for group in &pinned.groups {
        for at in (0..group.limit).filter(|at| !group.bits.get(*at)) {
            let block = group.start + at;
            if !is_blank(geometry.offset(block), geometry.block()) {
                return Err(format!("block {block} is free and not wiped"));
            }
        }
    }
    Ok(())
}

/// What [`drained`] answers for an empty cask: the same for all of a geometry.
fn when_empty(image: &[u8], geometry: Geometry) -> Result<u64, String> {
    static KNOWN: Mutex<BTreeMap<Geometry, u64>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().expect("no panic under the lock");
    if let Some(blocks) = known().get(&geometry) {
        return Ok(*blocks);
    }
    let blocks = drained(MemoryDevice::from_bytes(image.to_vec()), geometry)?
        .ok_or("an empty cask with a high tree")?;
    known().insert(geometry, blocks);
    Ok(blocks)
}

/// Fills the cask until it has no room, deletes everything, and answers the free blocks then. One
/// that grows is only made to grow, and the answer is what is in use. None if
/// the record of rolls is too long to compare; lost blocks are fsck's to find then.
fn drained<D: Device>(device: D, geometry: Geometry) -> Result<Option<u64>, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("liveness: {what}: {error}");
    let now = time_of(LIFE_STRIDE * 10);
    let mut subject =
        StoreSubject::open(device, geometry.spacing, now).map_err(|e| failed("open", &e))?;
    let grows = subject.store().cask().stats().blocks_limit.is_none();
    let block = u64::from(subject.store().cask().stats().block_size);
    let mut full = false;
    for number in 0..if grows { 100 } else { 10_000 } {
        let path = Path::new(format!("filler-{}", number / 64));
        let op = if number % 64 == 0 {
            Op::Create { path, perm: 0o600 }
        } else {
            Op::Append {
                path,
                data: Data {
                    len: block as usize * 2,
                    seed: number + 1,
                },
            }
        };
        match subject.apply(&op, now) {
            Ok(()) => {}
            Err(ENOSPC) => {
                full = true;
                break;
            }
            Err(errno) => return Err(failed("fill", &std::io::Error::from_raw_os_error(errno))),
        }
    }
    if full == grows {
        return Err(failed("fill", &"full or never full"));
    }
    let dump = subject.dump().map_err(|e| failed("dump when full", &e))?;
    let bounds = (geometry.blocks > 0).then_some(geometry.blocks);
    let is_resized = subject.store().cask().stats().blocks_limit != bounds;
    for (path, entry) in dump.iter().rev() {
        let is_file = ![EVENTS, BOUNDS]
            .map(str::as_bytes)
            .contains(&path.0.as_slice());
        let Some((dir, name)) = path.split().filter(|_| is_file) else {
            continue;
        };
        let store = subject.store();
        let dir = dir.names().try_fold(1, |dir, name| {
            store
                .lookup(&ROOT_CALLER, dir, name)
                .map(|entry| entry.attr.ino)
        });
        let dir = dir.map_err(|e| failed("lookup when full", &e))?;
        match entry.kind {
            caskfs::format::FileKind::Directory => store.rmdir(&ROOT_CALLER, dir, name),
            _ => store.unlink(&ROOT_CALLER, dir, name),
        }
        .map_err(|e| failed(&format!("delete {path} when full"), &e))?;
    }
    // What is over cannot be deleted by name.
    let late = Timestamp::from_secs(time_of(0).secs << 12);
    subject.look_at(late);
    let swept = subject.apply(&Op::Sweep, late);
    swept.map_err(|errno| failed("sweep", &std::io::Error::from_raw_os_error(errno)))?;
    let cask = subject.store().cask();
    for _ in 0..2 {
        cask.checkpoint().map_err(|e| failed("checkpoint", &e))?;
    }
    let stats = cask.stats();
    let found = fsck::check(cask, true, &mut |_| {}).map_err(|e| failed("fsck", &e))?;
    if !found.findings.is_empty() {
        return Err(failed("delete", &format!("{:?}", found.findings)));
    }
    if (found.files, found.directories) != (0, 1) {
        return Err(failed("delete", &"a file is left"));
    }
    // The record of rolls stays, in blocks of its own or in the pages of the tree.
    let events = subject.events().map_err(|e| failed("events", &e))?.len() as u64;
    let rest = found.pages + found.data_blocks - 1;
    if rest > events.div_ceil(block) * 2 + u64::from(events > 0) {
        let what = format!("{rest} blocks for {events} bytes of the record of rolls");
        return Err(failed("delete", &what));
    }
    // What is set aside for writing depends on the height of the tree.
    if found.pages > 1 || is_resized {
        return Ok(None);
    }
    Ok(Some(match grows {
        // The larger it is, the more it keeps for overwriting.
        true => stats.total_blocks - stats.free_blocks - stats.blocks / 64 - rest,
        false => stats.free_blocks + rest,
    }))
}

/// What to make cases from.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub geometry: Geometry,
    pub mix: Mix,
    /// Operations in a workload.
    pub ops: usize,
    /// Crash states of a workload.
    pub states_per_case: u64,
    /// Wiping is set and unset on the way.
    pub wipes: bool,
}

impl Plan {
    pub fn case(&self, seed: u64) -> Case {
        let mut ops = workload(seed, self.mix, self.ops);
        if self.wipes {
            // From behind, so that the places stay what they are.
            for (eighth, path, wipe) in [
                (7, "b", true),
                (6, "", true),
                (5, "", false),
                (4, "a", true),
                (2, "b", true),
                (0, "", true),
            ] {
                let op = Op::SetXattr {
                    path: Path::new(path),
                    name: Path::new("user.cask.wipe"),
                    value: Data::digit(wipe),
                };
                ops.insert(self.ops * eighth / 8, op);
            }
        }
        Case {
            geometry: self.geometry,
            mix: self.mix,
            seed,
            states: self.states_per_case,
            ops,
        }
    }
}

/// Explores case after case on two threads until so many states are tried or one fails. With a
/// control, each thread works without it. Answers how many were tried.
pub fn explore_many(
    plans: &[Plan],
    first_seed: u64,
    states: u64,
    control: Option<Control>,
) -> (u64, Result<(), Box<Failure>>) {
    let tried = AtomicU64::new(0);
    let next = AtomicU64::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let _away = control.map(Control::remove);
                while tried.load(Ordering::Relaxed) < states
                    && failure.lock().expect("no panic under the lock").is_none()
                {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let plan = &plans[(number % plans.len() as u64) as usize];
                    match explore(&plan.case(first_seed + number)) {
                        Ok(count) => {
                            tried.fetch_add(count.max(1), Ordering::Relaxed);
                        }
                        Err(found) => {
                            tried.fetch_add(found.states, Ordering::Relaxed);
                            *failure.lock().expect("no panic under the lock") = Some(found);
                        }
                    }
                }
            });
        }
    });
    let failure = failure.into_inner().expect("no panic under the lock");
    (tried.into_inner(), failure.map_or(Ok(()), Err))
}

/// Makes the operations of a failing case fewer as long as it still fails, within `tries`.
pub fn shrink(mut failure: Box<Failure>, mut tries: u32) -> Box<Failure> {
    let mut chunk = failure.case.ops.len() / 2;
    while chunk > 0 && tries > 0 {
        let mut at = 0;
        while at < failure.case.ops.len() && tries > 0 {
            tries -= 1;
            let mut smaller = failure.case.clone();
            let end = (at + chunk).min(smaller.ops.len());
            smaller.ops.drain(at..end);
            match explore(&smaller) {
                Err(found) => failure = found,
                Ok(_) => at += chunk,
            }
        }
        chunk /= 2;
    }
    failure
}
