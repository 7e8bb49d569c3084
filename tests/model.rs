//! Does a cask, as long as nothing breaks, do what a filesystem does?
//!
//! The same random operations go to the model and to a cask in memory; both must answer the same
//! errno and look the same after every step, and the cask still after closing and opening.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use caskfs::cask::Cask;
use caskfs::device::MemoryDevice;
use common::explorer::Plan;
use common::generate::{Generator, Mix, workload};
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

/// A cask answers and looks like the model after every operation, and the same when opened again.
#[test]
fn a_cask_does_what_the_model_does() {
    let runs = std::env::var("CASKFS_MODEL_RUNS").map_or(40, |n| n.parse().unwrap());
    let mut refused = vec![(0, 0); plans::ALL.len()];
    for seed in 0..runs {
        let plan = Plan {
            ops: 250,
            ..plans::ALL[seed as usize % plans::ALL.len()]
        };
        let case = plan.case(seed);
        let device = MemoryDevice::new();
        Cask::format(&device, &case.geometry.format_options()).unwrap();
        let mut model = ModelFs::new(0o755, time_of(0));
        let mut subject =
            StoreSubject::open(device.clone(), case.geometry.spacing, time_of(0)).unwrap();
        let mut past = Vec::new();
        for (n, op) in case.ops.iter().enumerate() {
            past.push(op.to_string());
            let story = || format!("seed {seed}:\n{}", past.join("\n"));
            let now = time_of(n + 1);
            let found = subject.apply(op, now);
            let (lacking, of) = &mut refused[seed as usize % plans::ALL.len()];
            *lacking += u64::from(found == Err(libc::ENOSPC));
            *of += 1;
            if found != Err(libc::ENOSPC) || !op.may_lack_space() {
                let op = if found.is_ok() { &subject.done(op) } else { op };
                assert_eq!(found, model.apply(op, now), "answer; {}", story());
            }
            let (seen, wanted) = (subject.dump().unwrap(), model.dump());
            assert!(
                seen == wanted,
                "{}\n{}",
                differences(&seen, &wanted),
                story()
            );
            if n % 50 == 49 {
                subject.store().close().unwrap();
                model.crash();
                subject = StoreSubject::open(device.clone(), case.geometry.spacing, now).unwrap();
                let seen = subject.dump().unwrap();
                let wanted = model.dump();
                assert!(
                    seen == wanted,
                    "reopened: {}\n{}",
                    differences(&seen, &wanted),
                    story()
                );
            }
        }
    }
    // A plan on which nothing has room would prove nothing.
    println!("refused for space, of all: {refused:?}");
    for (plan, (lacking, of)) in plans::ALL.iter().zip(refused) {
        assert!(
            2 * lacking <= of,
            "{lacking} of {of} operations had no room on {plan:?}"
        );
    }
}
