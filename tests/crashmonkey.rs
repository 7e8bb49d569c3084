//! The workloads on which other filesystems failed after a crash, each a test of its own; they stand in
//! tests/crashmonkey.txt with what went wrong there.
#![cfg(feature = "testing")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod common;

use common::exhaust::{GEOMETRIES, case, exhaust, ops};
use common::model::ModelFs;
use common::subject::time_of;

const WORKLOADS: &str = include_str!("crashmonkey.txt");

/// Name, operations before, operations that are crashed in.
fn workloads() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    WORKLOADS.split("\n\n").filter_map(|entry| {
        let (_, rest) = entry.split_once("name: ")?;
        let (name, rest) = rest.split_once('\n')?;
        let (setup, crashed) = match rest.strip_prefix("---\n") {
            Some(crashed) => ("", crashed),
            None => rest.split_once("\n---\n")?,
        };
        Some((name, setup, crashed))
    })
}

fn crash_in(wanted: &str) {
    let (_, setup, crashed) = workloads().find(|(name, ..)| *name == wanted).unwrap();
    let (setup, crashed) = (ops(setup), ops(crashed));
    let all = [setup.clone(), crashed].concat();
    // A workload that does nothing proves nothing.
    let mut model = ModelFs::new(0o755, time_of(0));
    for (number, op) in all.iter().enumerate() {
        let done = model.apply(op, time_of(number + 1));
        assert_eq!(done, Ok(()), "{op}");
    }
    for geometry in GEOMETRIES {
        let states = exhaust(&case(geometry, all.clone()), setup.len());
        let states = states.unwrap_or_else(|failure| panic!("a crash did harm:\n{failure}"));
        assert!(states > 0);
    }
}

macro_rules! known {
    ($($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                crash_in(stringify!($name));
            }
        )+

        #[test]
        fn none_is_left_out() {
            let tried = [$(stringify!($name)),+];
            let all: Vec<_> = workloads().map(|(name, ..)| name).collect();
            assert_eq!(all, tried);
        }
    };
}

known! {
    emptied_directory_cannot_be_removed
    dangling_entry_of_removed_link
    many_links_name_removed_and_reused
    synced_data_lost_after_link
    small_hole_lost
    removed_xattr_comes_back
    removed_xattr_comes_back_by_other_fsync
    growth_after_link_lost
    link_count_of_unsynced_neighbour_wrong
    removed_link_kept_after_eviction
    removed_link_kept_in_other_directory
    overlapping_holes_replayed_wrong
    synced_new_directory_lost
    move_into_new_directory_lost
    moved_file_with_xattr_stops_replay
    renamed_synced_file_lost
    write_before_rename_lost
    second_ranged_sync_does_nothing
    file_moved_out_of_subdirectory_lost
    moved_file_lost_after_neighbour_unlinked
    renamed_directory_lost_to_its_successor
    renamed_file_lost_to_its_successor
    moved_entries_in_both_directories
    symlink_replayed_empty
    successor_lost_when_renamed_file_synced
    blocks_beyond_end_lost
    size_zero_after_direct_write
    reused_name_of_link_stops_replay
    renamed_symlink_linked_under_old_name
    renamed_fifo_linked_under_old_name
    renamed_file_linked_under_old_name
    inode_number_given_twice
    hole_across_extents_lost
    size_does_not_fit_extents
    stale_data_after_punch
    link_count_step_by_step
    open_file_overwritten_by_rename
    directory_overwritten_by_rename
    xattr_replacement_not_atomic
    rename_over_synced_file_loses_both
    moved_file_in_both_after_directory_swap
    synced_directory_lost_after_link_below
    rename_of_synced_directory_lost
    link_synced_by_its_own_name_lost
    file_lost_though_directory_synced
    other_name_of_synced_file_lost
    blocks_beyond_end_lost_at_fsync
    size_grows_by_zeroing_beyond_end
    synced_file_under_old_directory_name
    append_lost_after_fdatasync
    many_links_counted_too_few
    synced_append_lost_after_link
    links_in_synced_directory_miscounted
    append_lost_after_unrelated_move
    cut_into_hole_forgotten
    old_data_back_after_cut_and_growth
    size_time_and_hole_not_recovered
    xattrs_lost_at_second_fsync
    data_over_the_end_lost
    shifted_links_stop_replay
    nameless_file_stops_replay
    moved_file_has_two_parents
    small_file_lost_by_growth
    sibling_synced_after_link
    names_rotated_by_rename_and_link
    name_of_deleted_file_reused_by_link
    names_exchanged_with_links
    cut_forgotten_after_rename
    permissions_not_recovered
    data_lost_after_rename_of_evicted_file
    unlinked_file_comes_back
    moved_file_lost_by_unrelated_fsync
    renamed_symlink_replayed_empty
    hole_beside_hole_lost
    synced_nameless_file_comes_back
    extents_of_nameless_file_stop_replay
    rename_of_synced_symlink_lost
    new_directory_lost_after_link_into_it
    file_in_place_of_moved_directory
    new_directory_lost_after_neighbour_renamed
}
