//! The rename storm: is anything lost when logs are cut at full speed, compressed and deleted?
//!
//! 8 processes append to one name, 8 to names of their own, 4 more need two writes for a line; at
//! least `CASKFS_STORM_CUTS` (1,000) cuts at random moments, some two within one millisecond; each
//! segment is compressed and deleted at once. Then 0 lost, 0 torn, 0 doubled, order kept, every
//! segment whole and as long as it was when `rename` returned.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::guard::{Cask, Share, setting};
use super::ledger::{Ledger, Report};
use super::load::{Cutter, How, Load};

/// How a storm ended.
struct Outcome {
    report: Report,
    /// Segments that were not as long in the end as when `rename` had returned.
    changed: u64,
    /// Errors of compressing and deleting.
    troubles: Vec<String>,
}

/// A storm of at least `cuts` cuts in `logs`, with at least `pairs` of them within a millisecond, by
/// writers of `lines` lines each, or without end when 0.
fn storm(logs: &Path, work: &Path, how: How, (cuts, pairs): (usize, u64), lines: u64) -> Outcome {
    let seed = setting("CASKFS_SEED", 1);
    let start = Instant::now();
    let load = Load::start(logs, work, 0, lines);
    let mut cutter = Cutter::new(logs, &work.join("archive"), how, seed);
    let names = load.names().to_vec();
    cutter
        .run(&names, |so_far| {
            so_far.count() < cuts || (so_far.pairs < pairs && so_far.count() < 4 * cuts)
        })
        .unwrap();
    load.wait_for(2);
    let written = load.finish();
    let took = start.elapsed();
    assert!(
        cutter.pairs >= pairs,
        "only {} pairs of cuts within a millisecond",
        cutter.pairs
    );
    let mut ledger = Ledger::default();
    let changed = cutter.read_back(&names, &mut ledger, |_| false);
    let report = ledger.close(&written);
    println!(
        "storm (seed {seed}): {} cuts in {took:.1?}, {} pairs within 1 ms; {report}, {changed} segments changed after the cut",
        cutter.count(),
        cutter.pairs
    );
    Outcome {
        report,
        changed,
        troubles: cutter.troubles,
    }
}

/// A storm in which nothing may be lost.
fn loses_nothing(cask: &Cask, how: How, pairs: u64) {
    let cuts = setting("CASKFS_STORM_CUTS", 1000) as usize;
    let (logs, work) = (cask.path("logs"), cask.outside("work"));
    let outcome = storm(&logs, &work, how, (cuts, pairs), 0);
    assert_eq!(
        outcome.troubles,
        Vec::<String>::new(),
        "compressing or deleting failed"
    );
    outcome.report.assert_clean();
    assert_eq!(
        outcome.changed, 0,
        "segments changed after rename had returned"
    );
}

#[test]
fn nothing_is_lost_in_a_rename_storm() {
    if let Some(cask) = Cask::mounted_with(&["--label=storm"]) {
        loses_nothing(&cask, How::Rename, 10);
    }
}

#[test]
fn nothing_is_lost_in_a_storm_of_rotations() {
    if let Some(cask) = Cask::mounted_with(&["--label=storm"]) {
        cask.set("logs", "roll-on=reopen");
        loses_nothing(&cask, How::Reopen, 0);
    }
}

/// The checker itself: on an ordinary filesystem the same storm must be seen to lose.
#[test]
fn the_storm_sees_the_loss_of_an_ordinary_filesystem() {
    let _share = Share::one();
    let dir = tempfile::tempdir().unwrap();
    for (how, name) in [(How::CopyTruncate, "copytruncate"), (How::Rename, "rename")] {
        let logs = dir.path().join(name);
        fs::create_dir(&logs).unwrap();
        // A renamed log never comes back there, so there are 13 cuts by rename at most; and its
        // writers go on in it, so they must have an end for gzip to come to one.
        let work = dir.path().join(format!("{name}.work"));
        let outcome = storm(&logs, &work, how, (10, 0), 50_000);
        assert!(
            outcome.report.lost > 0,
            "{name} loses lines: {}",
            outcome.report
        );
        assert!(
            how == How::CopyTruncate || outcome.changed > 0,
            "writers go on in a renamed file"
        );
    }
}
