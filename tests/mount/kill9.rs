//! kill -9 of the daemon under the full load, again and again: is anything gone whose call returned?
//!
//! `CASKFS_KILLS` (30) times: writers, cuts, compression and deletion as in the storm; SIGKILL at a
//! random moment; `fsck` of the container as it was left; mount. In the end every line whose write
//! had returned is there once, whole, in order; every cut and deletion that had returned is done.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::guard::{Cask, Dice, pace, setting};
use super::ledger::Ledger;
use super::load::{Cutter, How, Load, Written};

#[test]
fn a_returned_write_survives_kill_9() {
    let Some(mut cask) = Cask::mounted_with(&["--label=storm"]) else {
        return;
    };
    let kills = setting("CASKFS_KILLS", 30) as u32;
    let seed = setting("CASKFS_SEED", 1);
    let mut dice = Dice::new(seed ^ 0x9E37);
    let (logs, work) = (cask.path("logs"), cask.outside("work"));
    let mut cutter = Cutter::new(&logs, &work.join("archive"), How::Rename, seed);
    let mut written = Written::new();
    let mut names = BTreeSet::new();
    let mut slowest = Duration::ZERO;
    let start = Instant::now();
    for epoch in 1..=kills {
        let load = Load::start(&logs, &work, epoch, 0);
        let killed = AtomicBool::new(false);
        let patience = Duration::from_millis(dice.below(400));
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                load.wait_for(20);
                pace(patience);
                cask.kill_daemon();
                killed.store(true, Ordering::Release);
            });
            let start = Instant::now();
            cutter.run(load.names(), |_| {
                !killed.load(Ordering::Acquire) && start.elapsed() < Duration::from_secs(120)
            })
        });
        if let Err(error) = outcome {
            assert!(
                killed.load(Ordering::Acquire),
                "a cut failed before the kill: {error}"
            );
        }
        names.extend(load.names().iter().cloned());
        written.extend(load.broken_off());
        cask.clear_dead_mount();
        cask.fsck();
        slowest = slowest.max(cask.mount());
        cutter.take_stock();
    }
    let names: Vec<String> = names.into_iter().collect();
    let mut ledger = Ledger::default();
    let changed = cutter.read_back(&names, &mut ledger, |name| name.starts_with("half-"));
    let report = ledger.close(&written);
    println!(
        "kill -9 (seed {seed}): {kills} kills, {} cuts in {:.1?}, slowest mount {slowest:.0?}; {report}, {} operations undone, {changed} segments changed",
        cutter.count(),
        start.elapsed(),
        cutter.undone
    );
    report.assert_clean();
    assert_eq!(
        cutter.undone, 0,
        "cuts or deletions that had returned were undone"
    );
    assert_eq!(changed, 0, "segments changed after rename had returned");
    cask.unmount();
}
