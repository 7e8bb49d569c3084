//! After a crash at any moment, is the cask what it was after some operation that is late enough?
//!
//! `CASKFS_CRASH_STATES` says how many crash states to try (20,000 unless told), `CASKFS_CRASH_SEED`
//! where to begin. What ever failed stands in tests/regress/ and is tried first.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use common::case::Case;
use common::explorer::{explore, explore_many, shrink};
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
