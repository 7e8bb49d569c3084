//! Is every step that guards against a crash needed, and would it be missed?
//!
//! Each named control is taken away in turn; the crash explorer must find the harm. An explorer that
//! does not is no witness for the rest either. What only several threads need is taken away in
//! tests/schedules.
#![cfg(feature = "testing")]
#![allow(clippy::panic, clippy::unwrap_used)]

mod common;

use caskfs::device::testing::Control;
use common::explorer::{Plan, explore, explore_many};
use common::plans::{bypassing, logging, overwriting, plan, wiping};

/// Crash states within which a missing control must show; `CASKFS_CONTROL_STATES` says otherwise.
const STATES: u64 = 400_000;

/// Controls that one thread does not need: tests/schedules takes them away.
const OF_THREADS: [Control; 1] = [Control::FlushOfTheLog];

/// The explorer finds harm when this control is away, in casks of these plans.
fn is_missed(control: Control, plans: &[Plan]) {
    let states = std::env::var("CASKFS_CONTROL_STATES").map_or(STATES, |n| n.parse().unwrap());
    let (tried, outcome) = explore_many(plans, 1, states, Some(control));
    match outcome {
        Err(failure) => {
            // Harm that the control has nothing to do with proves nothing.
            if let Err(other) = explore(&failure.case) {
                panic!("harm with {control:?} in place, too:\n{other}");
            }
            let what = failure.what.lines().next().unwrap_or_default().to_owned();
            eprintln!("{control:?}: missed after {tried} crash states: {what}");
        }
        Ok(()) => panic!("{control:?} was away and {tried} crash states did not show it"),
    }
}

macro_rules! controls {
    ($($test:ident: $control:ident in [$($plan:expr),+];)+) => {
        $(
            #[test]
            fn $test() {
                is_missed(Control::$control, &[$($plan),+]);
            }
        )+

        /// No control is left out above, but for what only several threads need.
        #[test]
        fn all_are_tried() {
            let tried = [$(Control::$control),+];
            let schedules = include_str!("schedules/engine.rs");
            for control in Control::ALL {
                let removal = format!("Control::{control:?}.remove()");
                let is_of_threads = OF_THREADS.contains(&control) && schedules.contains(&removal);
                assert!(tried.contains(&control) || is_of_threads, "{control:?} is not tried");
            }
        }
    };
}

controls! {
    flush_on_fsync: FlushOnFsync in [plan(512, 208, 8, 4)];
    checkpoint_data_barrier: CheckpointDataBarrier in [plan(512, 204, 4, 6)];
    checkpoint_superblock_barrier: CheckpointSuperblockBarrier in [plan(512, 204, 4, 6)];
    digest_chain: DigestChain in [plan(512, 204, 4, 6), plan(512, 208, 8, 12)];
    bypass_checksums: BypassChecksums in [bypassing(1024, 400, 8, 12), bypassing(512, 400, 8, 12)];
    deferred_free: DeferredFree in [overwriting(512, 214, 32, 4)];
    wal_retirement: WalRetirement in [plan(512, 204, 4, 6)];
    fresh_block_after_ack: FreshBlockAfterAck in [plan(512, 208, 8, 2), plan(1024, 188, 8, 2)];
    checkpoint_after_recovery: CheckpointAfterRecovery in [plan(512, 208, 8, 6)];
    two_superblock_slots: TwoSuperblockSlots in [plan(512, 204, 4, 4)];
    cut_is_one_record: CutIsOneRecord in [logging(512, 700, 32, 3)];
    full_flush_with_bypass: FullFlushWithBypass in [bypassing(1024, 400, 8, 3)];
    wipe_after_commit: WipeAfterCommit in [wiping(plan(512, 230, 8, 6))];
}

/// The list in docs/TESTING.md is that of src/device/control.rs.
#[test]
fn the_list_in_the_documents_is_made_from_the_source() {
    let source = include_str!("../src/device/control.rs");
    let enumeration = source.split_once("pub enum Control {").unwrap().1;
    let enumeration = enumeration.split_once("\n}").unwrap().0;
    let (mut rows, mut said) = (String::new(), String::new());
    for line in enumeration.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            said += text;
        } else if let Some((name, _)) = line.split_once(" = ") {
            rows += &format!("| {name} |{said} |\n");
            said.clear();
        }
    }
    assert_eq!(rows.lines().count(), Control::ALL.len());
    let table = format!("| control | step |\n|---|---|\n{rows}");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/TESTING.md");
    let document = std::fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once("<!-- controls -->\n").unwrap();
    let (found, after) = rest.split_once("<!-- /controls -->").unwrap();
    if std::env::var_os("CASKFS_WRITE_CONTROLS").is_some() {
        let document = format!("{before}<!-- controls -->\n{table}<!-- /controls -->{after}");
        std::fs::write(path, document).unwrap();
    } else {
        assert_eq!(found, table, "the list of controls is out of date");
    }
}
