//! Small workloads, all of them: every sequence of one and two operations over two directories, their
//! files, a log and a value, with a crash at every moment (the way of ACE), and every workload on which
//! another filesystem once failed (the list of CrashMonkey).
//!
//! `CASKFS_ACE` (2,000) says how many sequences of two are tried, evenly spread over all of them; `all`
//! tries all. Those of one always are.
#![cfg(feature = "testing")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use common::case::Case;
use common::exhaust::{GEOMETRIES, case, exhaust, ops};
use common::explorer::Failure;

/// What there is before: two directories with a file each, a log that somebody writes, a value.
const SETUP: &str = "
    mkdir a 755
    mkdir b 755
    create a/f 644
    write a/f 0 700 11
    setxattr a/f user.y 20 12
    create b/g 600
    append b/g 100 13
    mkdir l 755
    set l mode log
    logopen l/a 0
    line 0 60 14
    mkdir v 755
    set v mode value
    set v ttl 3600
    create v/a 600
    write v/a 0 300 15
    sync";

/// What is done: one operation a line, or a few that are nothing without each other.
const STEPS: &str = "
    create a/n 644
    create b/n 600
    mkdir a/d 700
    fifo b/n 600
    symlink a/n a/f
    link a/f b/n
    link a/f a/n
    link b/g a/n
    unlink a/f
    unlink b/g
    rmdir b
    rename a/f b/g 0
    rename b/g a/f 0
    rename a/f a/n 0
    rename a/n b/n 0
    rename a/f b/g 2
    rename a b/d 0
    rename b a/d 0
    rename a b 2
    write a/f 0 512 21
    write a/f 500 100 22
    write a/f 3000 50 23
    write b/g 0 2000 24
    append a/f 300 25
    append b/g 900 26
    append a/n 40 27
    truncate a/f 0
    truncate a/f 300
    truncate a/f 2000
    truncate b/g 512
    punch a/f 0 512
    punch a/f 512 1048576
    setxattr a/f user.x 40 28
    setxattr a/f user.y 60 29
    removexattr a/f user.y
    setxattr b user.x 30 30
    chmod a/f 400
    chown b/g 1 2
    utimens a/f 5000 7
    open a/f 0; unlink a/f; writeopen 0 100 300 31
    open b/g 1; rename a/f b/g 0; close 1
    fsync a/f
    fsync b/g
    sync
    checkpoint
    line 0 30 41
    line 0 130 42
    logclose 0
    logopen l/b 1; line 1 50 43
    rename l/a l/a.1 0
    rename l/a b/s 0
    rename l/a a/f 0
    rename a/f l/a 0
    rotate l/a
    unlink l/a
    truncate l/a 0
    append l/a 70 44
    chmod l/a 600
    set l roll-size 50
    set l roll-lines 1
    set l keep 1
    set l roll day
    set l header top
    removexattr l user.cask.mode
    clock 86400; tick
    write v/a 0 600 51
    append v/a 100 52
    open v/a 1; writeopen 1 0 200 53; close 1
    open v/a 1; writeopen 1 0 900 54
    truncate v/a 0
    create v/n 600
    unlink v/a
    rename v/a v/n 0
    rename a/f v/a 0
    rename v/a a/n 0
    link v/a v/n
    utimens v/a 100 0
    set v ttl 60
    set v/a ttl none
    clock 4000
    clock 4000; sweep
    sweep
    snapshot";

/// Tries cases on two threads; answers how many states those were.
fn try_all(cases: &(dyn Fn(usize) -> Option<Case> + Sync), setup: usize) -> u64 {
    let (states, next) = (AtomicU64::new(0), AtomicUsize::new(0));
    let failure: Mutex<Option<Box<Failure>>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while failure.lock().unwrap().is_none() {
                    let Some(case) = cases(next.fetch_add(1, Ordering::Relaxed)) else {
                        break;
                    };
                    match exhaust(&case, setup) {
                        Ok(tried) => {
                            states.fetch_add(tried, Ordering::Relaxed);
                        }
                        Err(found) => *failure.lock().unwrap() = Some(found),
                    }
                }
            });
        }
    });
    match failure.into_inner().unwrap() {
        Some(failure) => panic!("a crash did harm:\n{failure}"),
        None => states.into_inner(),
    }
}

#[test]
fn every_sequence_of_one() {
    let (setup, steps) = (ops(SETUP), STEPS.trim().lines().collect::<Vec<_>>());
    let states = try_all(
        &|number| {
            let geometry = GEOMETRIES[number % 2];
            let step = steps.get(number / 2)?;
            let last = ops("checkpoint");
            Some(case(geometry, [setup.clone(), ops(step), last].concat()))
        },
        setup.len(),
    );
    println!(
        "{} sequences of one: {states} crash states",
        steps.len() * 2
    );
    assert!(states > 20 * steps.len() as u64);
}

#[test]
fn every_sequence_of_two() {
    let (setup, steps) = (ops(SETUP), STEPS.trim().lines().collect::<Vec<_>>());
    // The first is durable before the second begins, or is not; on each of the casks.
    let all = steps.len() * steps.len() * 2;
    let wanted = match std::env::var("CASKFS_ACE") {
        Ok(text) if text == "all" => all,
        Ok(text) => text.parse().unwrap(),
        Err(_) => 2_000,
    };
    let wanted = wanted.clamp(1, all);
    let states = try_all(
        &|number| {
            let number = (number < wanted).then(|| number * all / wanted)?;
            let (pair, durable) = (number / 2, number % 2 == 1);
            let (first, second) = (pair / steps.len(), pair % steps.len());
            // Each pair on one of the casks each way, and each step on both.
            let geometry = GEOMETRIES[(first + second + usize::from(durable)) % 2];
            let between = ops(if durable { "sync" } else { "" });
            let last = ops(if durable { "sync" } else { "checkpoint" });
            let (first, second) = (ops(steps[first]), ops(steps[second]));
            let ops = [setup.clone(), first, between, second, last].concat();
            Some(case(geometry, ops))
        },
        setup.len(),
    );
    println!("{wanted} of {all} sequences of two: {states} crash states");
    assert!(states > 20 * wanted as u64);
}
