//! After a crash at any moment, is the cask what it was after some operation that is late enough?
//!
//! `CASKFS_CRASH_STATES` says how many crash states to try (20,000 unless told), `CASKFS_CRASH_SEED`
//! where to begin. What ever failed stands in tests/regress/ and is tried first.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use common::case::Case;
use common::explorer::{Failure, explore, explore_many, shrink};
use common::faithless::{Sum, lied_to, rotten};
use common::plans;

fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
        Err(_) => otherwise,
    }
}

/// What failed once never fails again.
#[test]
fn old_failures_stay_fixed() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/regress");
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    for path in paths
        .iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "case"))
    {
        let text = std::fs::read_to_string(path).unwrap();
        let case: Case = text
            .parse()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if let Err(failure) = explore(&case) {
            panic!("{} fails again:\n{failure}", path.display());
        }
    }
}

/// Cases survive being written down and read back.
#[test]
fn cases_are_text_and_back() {
    for (seed, plan) in plans::ALL.iter().enumerate() {
        let case = plan.case(seed as u64);
        assert_eq!(case.to_string().parse().as_ref(), Ok(&case));
    }
}

/// The recovered cask equals the model after k operations, acked ≤ k ≤ issued.
#[test]
fn every_crash_leaves_a_moment_of_the_past() {
    let states = number("CASKFS_CRASH_STATES", 20_000);
    let seed = number("CASKFS_CRASH_SEED", 1);
    let (tried, outcome) = explore_many(&plans::ALL, seed, states, None);
    eprintln!("{tried} crash states tried from seed {seed}");
    if let Err(failure) = outcome {
        eprintln!("shrinking this:\n{failure}");
        let failure = shrink(failure, 300);
        let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/failure.case");
        std::fs::write(path, failure.to_string()).unwrap();
        panic!("a crash did harm; this goes to tests/regress/ (also in {path}):\n{failure}");
    }
    assert!(tried >= states);
}

/// Tries cases of all plans on two threads until so many states are tried; answers what came of them.
fn faithless(what: &str, device: fn(&Case) -> Result<Sum, Box<Failure>>) -> Sum {
    // One state here costs about as much as one there, and needs no more of them.
    let states = number("CASKFS_CRASH_STATES", 20_000) / 10;
    let seed = number("CASKFS_CRASH_SEED", 1);
    let (sum, next) = (Mutex::new(Sum::default()), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while sum.lock().unwrap().states < states {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let plan = &plans::ALL[(number % plans::ALL.len() as u64) as usize];
                    let mut case = plan.case(seed + number);
                    case.states = 250;
                    match device(&case) {
                        Ok(found) => sum.lock().unwrap().add(found),
                        Err(failure) => panic!("{what}:\n{failure}"),
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    println!("{what}: {sum:?}");
    sum
}

/// On a device that confirms flushes and does not do them, what is found is old, or is refused.
#[test]
fn a_flush_that_lies_is_told_or_hides_the_last() {
    let sum = faithless("lying flushes", lied_to);
    // It would prove nothing if nothing were lost, or all.
    assert!(sum.whole > sum.states / 20 && sum.told > 0 && sum.older > 0);
}

/// Bytes that rot, writes that are lost or go astray are told, or hit nothing that counts.
#[test]
fn what_rots_is_told() {
    let sum = faithless("rot", rotten);
    assert!(sum.whole > sum.states / 20 && sum.told > sum.states / 20);
}
