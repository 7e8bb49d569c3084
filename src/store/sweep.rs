//! Removes files that are over, a few at a time.
//!
//! Nobody sees them any more and their space counts as free, so there is no haste: a directory is gone
//! through when its counts say that there is something to remove, and the larger it is the more seldom,
//! so that looking at its names takes a fortieth of a processor at most. Only when somebody would be refused
//! for want of space is it done at once, in his time.
//!
//! Invariant: between two operations of others a few files are removed at most.

use std::collections::HashMap;

use super::course::{Budget, Course, Due, GATHERED, Gone, is_damage};
use super::{Notice, Store};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::Result;
use crate::format::key::Number;
use crate::fs::StatFs;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicI64, Ordering};

/// Files removed at one time of the timer.
const REMOVED_AT_ONCE: usize = 2_000;
/// Names and files looked at, or counted, at one time of the timer.
const LOOKED_AT_ONCE: usize = 20_000;
/// Files removed before somebody who was refused tries again, and names looked at, or counted, for them.
const REMOVED_FOR_ROOM: usize = 256;
const LOOKED_FOR_ROOM: usize = 50_000;
const GATHERED_FOR_ROOM: usize = 4_096;
/// After a failure it is tried again in so many seconds.
const AGAIN: i64 = 60;
/// A directory is gone through again after a second for so many files.
const FILES_A_SECOND: u64 = 16_384;

/// Where the sweep is.
#[derive(Default)]
pub(super) struct Sweep {
    progress: Mutex<HashMap<Number, Progress>>,
    /// Not before this time, in seconds, since something failed.
    after: AtomicI64,
}

/// How far a directory was gone through.
#[derive(Default)]
struct Progress {
    /// Where to go on.
    course: Course,
    /// Not before this time.
    after: Timestamp,
}

impl<D: Device> Store<D> {
    /// Counts, and removes, some of what is over.
    pub(super) fn sweep(&self, now: Timestamp) {
        let after = self.sweep.after.load(Ordering::Relaxed);
        // A clock that was set back is no reason to wait for long.
        if now.secs < after && after - now.secs <= AGAIN {
            return;
        }
        let mut budget = Budget {
            looks: LOOKED_AT_ONCE,
            files: REMOVED_AT_ONCE,
            gathered: GATHERED,
            at_leisure: true,
        };
        // What was counted is removed also where counting does not go on.
        let counted = self.ages.count(&self.cask, LOOKED_AT_ONCE);
        let swept = self.sweep_all(now, &mut budget, false);
        if let Err(error) = counted.and(swept) {
            ::log::warn!("files whose ttl is over are not removed: {error}");
            let after = now.secs.saturating_add(AGAIN);
            self.sweep.after.store(after, Ordering::Relaxed);
        }
    }

    /// Removes some of what is over because there is no room; answers whether it is worth a try.
    ///
    /// # Errors
    /// Those of writing.
    pub fn make_room(&self) -> Result<bool> {
        if self.cask.read_only().is_some() {
            return Ok(false);
        }
        let counted = self.ages.count(&self.cask, LOOKED_FOR_ROOM);
        let mut budget = Budget {
            looks: LOOKED_FOR_ROOM,
            files: REMOVED_FOR_ROOM,
            gathered: GATHERED_FOR_ROOM,
            at_leisure: true,
        };
        let swept = self.sweep_all(self.now(), &mut budget, true);
        let removed = budget.files < REMOVED_FOR_ROOM;
        match counted.and(swept) {
            Ok(()) => Ok(removed || budget.looks == 0),
            // Who was refused for space is no better served by what is wrong with the files of others.
            Err(error) if is_damage(&error) => {
                ::log::warn!("files whose ttl is over are not removed: {error}");
                Ok(removed)
            }
            Err(error) => Err(error),
        }
    }

    /// What `statvfs(3)` tells, with the space of what is over.
    ///
    /// # Errors
    /// Those of writing.
    pub fn statfs(&self) -> Result<StatFs> {
        let mut stats = self.fs.statfs()?;
        let over = self.ages.over(self.now());
        let blocks = over.bytes / u64::from(stats.block_size.max(1));
        stats.blocks_free = stats.blocks_free.saturating_add(blocks).min(stats.blocks);
        stats.files_free = stats.files_free.saturating_add(over.files).min(stats.files);
        Ok(stats)
    }

    /// Removes all that is over in a directory; answers how much that was.
    pub(super) fn sweep_directory(&self, dir: Number) -> Result<usize> {
        let mut budget = Budget {
            at_leisure: true,
            ..Budget::all()
        };
        self.sweep_some(dir, &mut Course::default(), self.now(), &mut budget)?;
        Ok(usize::MAX - budget.files)
    }

    fn sweep_all(&self, now: Timestamp, budget: &mut Budget, at_once: bool) -> Result<()> {
        let over = self.ages.with_over(now);
        let mut sweep = self.sweep.progress.lock();
        let mut outcome = Ok(());
        sweep.retain(|dir, _| over.iter().any(|(other, _)| other == dir));
        for (dir, files) in over {
            let progress = sweep.entry(dir).or_default();
            if now < progress.after && !at_once {
                continue;
            }
            let before = budget.files;
            match self.sweep_some(dir, &mut progress.course, now, budget) {
                Ok(false) => {}
                // What is left is open, or came after it was passed; or it cannot be read.
                done => {
                    let least = match &done {
                        Err(_) => AGAIN,
                        Ok(_) if budget.files == before => 1,
                        Ok(_) => 0,
                    };
                    let pause = i64::try_from(files / FILES_A_SECOND).unwrap_or(i64::MAX);
                    progress.after = Timestamp {
                        secs: now.secs.saturating_add(pause.max(least)),
                        ..now
                    };
                    outcome = outcome.and(done.map(drop));
                }
            }
            if budget.files == 0 || budget.looks == 0 {
                break;
            }
        }
        outcome
    }

    /// Removes what is over in a directory, as far as the budget goes; answers whether it is gone through.
    fn sweep_some(
        &self,
        dir: Number,
        course: &mut Course,
        now: Timestamp,
        budget: &mut Budget,
    ) -> Result<bool> {
        let due = Due {
            file: &|inode, settings| inode.parent == dir && self.is_over(inode, settings, now),
            name: &|_| true,
        };
        self.remove_due(dir, course, budget, &due, &mut |gone| {
            self.tell_gone(dir, gone, now);
        })
    }

    /// Files of a directory are gone, and the kernel may know their names.
    fn tell_gone(&self, dir: Number, gone: Gone, now: Timestamp) {
        // Its times and size are not what the kernel knows.
        self.notify(Notice::InvalidateInode(dir));
        if self.ages.is_told(now) {
            for name in gone.names {
                self.notify(Notice::InvalidateEntry(dir, name));
            }
        }
    }
}
