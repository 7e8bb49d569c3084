//! Does a cask, as long as nothing breaks, do what a filesystem does?
//!
//! The same random operations go to the model and to a cask in memory; both must answer the same
//! errno and look the same after every step, and the cask still after closing and opening.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use caskfs::cask::Cask;
use caskfs::device::MemoryDevice;
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

/// Notes what was cut between two moments, by cause, and what came of it.
fn count_cuts(cuts: &mut BTreeMap<String, u64>, before: &ModelFs, after: &ModelFs) {
    let lines = after.logs.events.get(before.logs.events.len()..);
    let lines = String::from_utf8_lossy(lines.unwrap_or_default()).into_owned();
    let causes = lines.lines().filter_map(|line| line.split(' ').nth(1));
    for cause in causes.chain(after.logs.told.iter().copied()) {
        *cuts.entry(cause.to_owned()).or_default() += 1;
    }
}

/// What was seen in the runs of a plan.
#[derive(Default)]
struct Seen {
    /// Operations refused for space, and all.
    lacking: u64,
    of: u64,
    /// Cuts by their cause, and what came of them.
    cuts: BTreeMap<String, u64>,
}

/// Runs a case; the first difference is the error.
fn compare(case: &Case, seen: &mut Seen) -> Result<(), String> {
    let device = MemoryDevice::new();
    Cask::format(&device, &case.geometry.format_options()).unwrap();
    let open = |now| StoreSubject::open(device.clone(), case.geometry.spacing, now).unwrap();
    let mut model = ModelFs::new(0o755, time_of(0));
    model.fixed = case.geometry.blocks > 0;
    let mut subject = open(time_of(0));
    for (n, op) in case.ops.iter().enumerate() {
        let now = time_of(n + 1);
        let (mut op, before) = (op.clone(), model.clone());
        let outcome = step(&mut subject, &mut model, &mut op, now)?;
        seen.lacking += u64::from(outcome == Err(libc::ENOSPC));
        seen.of += 1;
        count_cuts(&mut seen.cuts, &before, &model);
        let found = subject.dump().map_err(|e| format!("after {op}: {e}"))?;
        let wanted = model.dump();
        if found != wanted {
            return Err(format!("after {op}: {}", differences(&found, &wanted)));
        }
        // By what is written and not by its place, so that a case can be shrunk.
        if matches!(&op, Op::Write { data, .. } | Op::Line { data, .. } if (data.seed >> 8) % 12 == 5)
        {
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
fn shrunk(mut case: Case, mut what: String) -> String {
    let mut chunk = case.ops.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < case.ops.len() {
            let mut smaller = case.clone();
            smaller.ops.drain(at..(at + chunk).min(smaller.ops.len()));
            match compare(&smaller, &mut Seen::default()) {
                Err(found) => (case, what) = (smaller, found),
                Ok(()) => at += chunk,
            }
        }
        chunk /= 2;
    }
    format!("{what}\n{case}")
}

/// A cask answers and looks like the model after every operation, and the same when opened again.
#[test]
fn a_cask_does_what_the_model_does() {
    let enough = 8 * plans::ALL.len() as u64;
    let runs = std::env::var("CASKFS_MODEL_RUNS").map_or(enough, |n| n.parse().unwrap());
    let mut seen: Vec<Seen> = plans::ALL.iter().map(|_| Seen::default()).collect();
    for seed in 0..runs {
        let index = seed as usize % plans::ALL.len();
        let plan = Plan {
            ops: 250,
            ..plans::ALL[index]
        };
        let case = plan.case(seed);
        if let Err(what) = compare(&case, &mut seen[index]) {
            panic!("seed {seed}: {}", shrunk(case, what));
        }
    }
    let mut all = BTreeSet::new();
    for (plan, seen) in plans::ALL.iter().zip(&seen) {
        let Seen { lacking, of, cuts } = seen;
        println!("refused for space {lacking} of {of}; cuts, and what came of them: {cuts:?}");
        // A plan on which nothing has room would prove nothing, nor would one that cuts nothing.
        assert!(
            2 * lacking <= *of,
            "{lacking} of {of} operations had no room on {plan:?}"
        );
        all.extend(cuts.keys());
    }
    if runs >= enough {
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
}
