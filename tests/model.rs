//! Does a cask, as long as nothing breaks, do what a filesystem does?
//!
//! The same random operations go to the model and to a cask in memory; both must answer the same
//! errno and look the same after every step, and the cask still after closing and opening.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use caskfs::cask::Cask;
use caskfs::device::MemoryDevice;
use caskfs::device::testing::Rng;
use common::case::Case;
use common::explorer::Plan;
use common::generate::{Generator, Mix, workload};
use common::life::step;
use common::model::ModelFs;
use common::op::{Op, Path};
use common::plans;
use common::subject::{StoreSubject, Subject, differences, time_of};

const MIX: Mix = Mix {
    block_size: 512,
    max_blocks: 6,
    bypass_one_in: 0,
    overwrite_eighths: 0,
    sync_one_in: 20,
    log_eighths: 3,
    value_eighths: 2,
};

/// Every operation survives being written down and read back.
#[test]
fn operations_are_text_and_back() {
    for op in Generator::new(1, MIX).take(3000) {
        let text = op.to_string();
        assert_eq!(text.parse::<Op>().as_ref(), Ok(&op), "{text}");
    }
}

/// The model keeps its own books: link counts, parents, names.
#[test]
fn the_model_agrees_with_itself() {
    let mut errors = 0;
    for seed in 0..20 {
        let mut model = ModelFs::new(0o755, time_of(0));
        for (n, op) in workload(seed, MIX, 400).iter().enumerate() {
            errors += usize::from(model.apply(op, time_of(n + 1)).is_err());
        }
        let dump = model.dump();
        for (path, entry) in &dump {
            if let Some((dir, _)) = path.split() {
                assert!(dump.contains_key(&dir), "{path} stands nowhere");
            }
            let first = entry.same_as.as_ref().unwrap_or(path);
            let is_same =
                |other: &Path| other == first || dump[other].same_as.as_ref() == Some(first);
            let names = dump.keys().filter(|other| is_same(other)).count();
            if entry.kind != caskfs::format::FileKind::Directory {
                assert_eq!(entry.nlink as usize, names, "links of {path}");
            }
        }
    }
    let share = errors * 100 / (20 * 400);
    assert!(
        (5..50).contains(&share),
        "{share} % of the operations fail: no good mix"
    );
}

/// What was seen in the runs of a plan.
#[derive(Default)]
struct Seen {
    /// Operations refused for space, and all.
    lacking: u64,
    of: u64,
    /// Times that a cask was opened again.
    opened: u64,
    /// Cuts by their cause, and what came of them.
    cuts: BTreeMap<String, u64>,
}

impl Seen {
    /// Notes what an operation cut, by cause, and what came of it.
    fn count(&mut self, noted: usize, after: &ModelFs) {
        let lines = after.logs.events.get(noted..).unwrap_or_default();
        let lines = String::from_utf8_lossy(lines);
        let causes = lines.lines().filter_map(|line| line.split(' ').nth(1));
        for cause in causes.chain(after.logs.told.iter().copied()) {
            match self.cuts.get_mut(cause) {
                Some(count) => *count += 1,
                None => _ = self.cuts.insert(cause.to_owned(), 1),
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.lacking += other.lacking;
        self.of += other.of;
        self.opened += other.opened;
        for (what, count) in other.cuts {
            *self.cuts.entry(what).or_default() += count;
        }
    }
}

/// [`comparison`], for which a panic of what is tested is a difference, too.
fn compare(case: &Case, look_every: usize, seen: &mut Seen) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| comparison(case, look_every, seen))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("it panics").to_owned())
    })
}

/// Runs a case, looking at the whole tree after one operation in `look_every`, and opening the cask
/// anew more rarely, too; the first difference is the error.
fn comparison(case: &Case, look_every: usize, seen: &mut Seen) -> Result<(), String> {
    let device = MemoryDevice::new();
    Cask::format(&device, &case.geometry.format_options()).unwrap();
    let open = |now| StoreSubject::open(device.clone(), case.geometry.spacing, now).unwrap();
    let mut model = ModelFs::new(0o755, time_of(0));
    model.fixed = case.geometry.blocks > 0;
    let mut subject = open(time_of(0));
    for (n, op) in case.ops.iter().enumerate() {
        let now = time_of(n + 1);
        let (mut op, noted) = (op.clone(), model.logs.events.len());
        let outcome = step(&mut subject, &mut model, &mut op, now)?;
        seen.lacking += u64::from(outcome == Err(libc::ENOSPC));
        seen.of += 1;
        seen.count(noted, &model);
        if (n + 1) % look_every == 0 || n + 1 == case.ops.len() {
            let found = subject.dump().map_err(|e| format!("after {op}: {e}"))?;
            let wanted = model.dump();
            if found != wanted {
                return Err(format!("after {op}: {}", differences(&found, &wanted)));
            }
        }
        // By what is written and not by its place, so that a case can be shrunk.
        if let Op::Write { data, .. } | Op::Line { data, .. } = &op
            && Rng::derived(case.seed, data.seed).chance(1, 12 + look_every as u64 / 2)
        {
            seen.opened += 1;
            subject.store().close().unwrap();
            model.crash();
            subject = open(now);
            subject.follow(&model);
            subject.look_at(model.now);
            let (found, wanted) = (subject.dump().unwrap(), model.dump());
            if found != wanted {
                return Err(format!("reopened: {}", differences(&found, &wanted)));
            }
        }
    }
    Ok(())
}

/// Leaves operations out as long as a case still fails.
fn shrunk(mut case: Case, look_every: usize, mut what: String) -> String {
    // Where it shows first, if looking more often does not hide it.
    let look_every = match compare(&case, 1, &mut Seen::default()) {
        Err(found) => {
            what = found;
            1
        }
        Ok(()) => look_every,
    };
    let mut chunk = case.ops.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < case.ops.len() {
            let mut smaller = case.clone();
            smaller.ops.drain(at..(at + chunk).min(smaller.ops.len()));
            match compare(&smaller, look_every, &mut Seen::default()) {
                Err(found) => (case, what) = (smaller, found),
                Ok(()) => at += chunk,
            }
        }
        chunk /= 2;
    }
    format!("{what}\n{case}")
}

/// Runs these cases of all plans on all processors; the sums by plan.
fn run(seeds: Range<u64>, ops: usize, look_every: usize) -> Vec<Seen> {
    let next = AtomicU64::new(seeds.start);
    let part = || {
        let mut seen: Vec<Seen> = plans::ALL.iter().map(|_| Seen::default()).collect();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return seen;
            }
            let index = seed as usize % plans::ALL.len();
            let plan = Plan {
                ops,
                ..plans::ALL[index]
            };
            let case = plan.case(seed);
            if let Err(what) = compare(&case, look_every, &mut seen[index]) {
                // The others need not go on.
                next.store(seeds.end, Ordering::Relaxed);
                panic!("seed {seed}: {}", shrunk(case, look_every, what));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads).map(|_| scope.spawn(part)).collect();
        let mut sums: Vec<Seen> = plans::ALL.iter().map(|_| Seen::default()).collect();
        for part in parts {
            let part = part.join().unwrap_or_else(|panic| resume_unwind(panic));
            for (sum, seen) in sums.iter_mut().zip(part) {
                sum.add(seen);
            }
        }
        sums
    })
}

/// Whether the runs were of the kind that proves something, and how many operations they were.
fn judged(sums: &[Seen], is_enough: bool) -> u64 {
    let mut all = BTreeSet::new();
    for (plan, seen) in plans::ALL.iter().zip(sums) {
        let Seen {
            lacking,
            of,
            opened,
            cuts,
        } = seen;
        println!(
            "refused for space {lacking} of {of}; opened {opened} times; cuts, and what came of them: {cuts:?}"
        );
        // A plan on which nothing has room would prove nothing, nor would one that cuts nothing.
        assert!(
            2 * lacking <= *of,
            "{lacking} of {of} operations had no room on {plan:?}"
        );
        all.extend(cuts.keys());
    }
    if is_enough {
        assert!(sums.iter().all(|seen| seen.opened > 0));
        for what in [
            "rename",
            "clock",
            "size",
            "lines",
            "rotate",
            "dropped",
            "carried",
            "saved",
            "swept",
            "over in the way",
        ] {
            assert!(all.contains(&what.to_owned()), "{what} was never seen");
        }
    }
    let ops = sums.iter().map(|seen| seen.of).sum();
    assert!(ops > 0, "nothing was compared");
    ops
}

/// A cask answers and looks like the model after every operation, and the same when opened again.
#[test]
fn a_cask_does_what_the_model_does() {
    let enough = 8 * plans::ALL.len() as u64;
    let runs = std::env::var("CASKFS_MODEL_RUNS").map_or(enough, |n| n.parse().unwrap());
    let ops = judged(&run(0..runs, 250, 1), runs >= enough);
    println!("{ops} operations, the whole tree compared after each");
}

/// A cask answers like the model for millions of operations, and now and then looks like it.
#[test]
fn a_cask_goes_on_doing_what_the_model_does() {
    const OPS: u64 = 250;
    let wanted = std::env::var("CASKFS_MODEL_OPS").map_or(200_000, |n| n.parse().unwrap());
    let first: u64 = std::env::var("CASKFS_MODEL_SEED").map_or(1 << 32, |n| n.parse().unwrap());
    let started = std::time::Instant::now();
    let ops = judged(
        &run(first..first + wanted / OPS, OPS as usize, 125),
        wanted >= 100_000,
    );
    println!(
        "{ops} operations, the whole tree compared after one in 125, {} a second",
        (ops as f64 / started.elapsed().as_secs_f64()) as u64
    );
}
