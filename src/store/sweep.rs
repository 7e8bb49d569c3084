//! Removes files that are over, a few at a time.
//!
//! Nobody sees them any more and their space counts as free, so there is no haste: a directory is gone
//! through when its counts say that there is something to remove, and the larger it is the more seldom,
//! so that looking at its names takes a fortieth of a processor at most. Only when somebody would be refused
//! for want of space is it done at once, in his time.
//!
//! Invariant: whether a file is over is asked again in the operation that removes it.

use std::collections::HashMap;

use super::{Notice, Store};
use crate::cask::Class;
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;
use crate::fs::inode::load;
use crate::fs::{StatFs, namespace};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicI64, Ordering};

/// Files removed in one operation: a millisecond or so for whoever waits for it.
const BATCH: usize = 32;
/// Files removed at one time of the timer.
const REMOVED_AT_ONCE: usize = 2_000;
/// Names looked at, or counted, at one time of the timer.
const LOOKED_AT_ONCE: usize = 20_000;
/// Files removed before somebody who was refused tries again, and names looked at, or counted, for them.
const REMOVED_FOR_ROOM: usize = 256;
const LOOKED_FOR_ROOM: usize = 50_000;
/// After a failure it is tried again in so many seconds.
const AGAIN: i64 = 60;
/// A directory is gone through again after a second for so many files.
const FILES_A_SECOND: u64 = 16_384;
/// Names read at a time.
const NAMES: usize = 256;

/// Where the sweep is.
#[derive(Default)]
pub(super) struct Sweep {
    progress: Mutex<HashMap<Number, Progress>>,
    /// Not before this time, in seconds, since something failed.
    after: AtomicI64,
}

/// How far a directory was gone through.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// Where to go on.
    cookie: u64,
    /// Not before this time.
    after: Timestamp,
}

/// How much may be done.
struct Budget {
    names: usize,
    files: usize,
}

impl<D: Device> Store<D> {
    /// Counts, and removes, some of what is over.
    pub(super) fn sweep(&self, now: Timestamp) {
        let after = self.sweep.after.load(Ordering::Relaxed);
        // A clock that was set back is no reason to wait for long.
        if now.secs < after && after - now.secs <= AGAIN {
            return;
        }
        let swept = self.ages.count(&self.cask, LOOKED_AT_ONCE).and_then(|_| {
            let mut budget = Budget {
                names: LOOKED_AT_ONCE,
                files: REMOVED_AT_ONCE,
            };
            self.sweep_all(now, &mut budget, false)
        });
        if let Err(error) = swept {
            ::log::warn!("files whose ttl is over are not removed: {error}");
            let after = now.secs.saturating_add(AGAIN);
            self.sweep.after.store(after, Ordering::Relaxed);
        }
    }

    /// Removes some of what is over because there is no room; answers whether it is worth a try.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn make_room(&self) -> Result<bool> {
        if self.cask.read_only().is_some() {
            return Ok(false);
        }
        self.ages.count(&self.cask, LOOKED_FOR_ROOM)?;
        let mut budget = Budget {
            names: LOOKED_FOR_ROOM,
            files: REMOVED_FOR_ROOM,
        };
        self.sweep_all(self.now(), &mut budget, true)?;
        Ok(budget.files < REMOVED_FOR_ROOM || budget.names == 0)
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
        let (mut cookie, mut removed) = (0, 0);
        loop {
            let mut budget = Budget {
                names: LOOKED_AT_ONCE,
                files: REMOVED_AT_ONCE,
            };
            let next = self.sweep_some(dir, cookie, self.now(), &mut budget)?;
            removed += REMOVED_AT_ONCE - budget.files;
            match next {
                Some(next) => cookie = next,
                None => return Ok(removed),
            }
        }
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
            match self.sweep_some(dir, progress.cookie, now, budget) {
                Ok(Some(cookie)) => progress.cookie = cookie,
                // What is left is open, or came after it was passed; or it cannot be read.
                done => {
                    let least = match &done {
                        Err(_) => AGAIN,
                        Ok(_) if budget.files == before => 1,
                        Ok(_) => 0,
                    };
                    let pause = i64::try_from(files / FILES_A_SECOND).unwrap_or(i64::MAX);
                    *progress = Progress {
                        cookie: 0,
                        after: Timestamp {
                            secs: now.secs.saturating_add(pause.max(least)),
                            ..now
                        },
                    };
                    outcome = outcome.and(done.map(drop));
                }
            }
            if budget.files == 0 || budget.names == 0 {
                break;
            }
        }
        outcome
    }

    /// Removes what is over in a directory from this cookie on, as far as the budget goes; answers where
    /// to go on.
    fn sweep_some(
        &self,
        dir: Number,
        mut cookie: u64,
        now: Timestamp,
        budget: &mut Budget,
    ) -> Result<Option<u64>> {
        while budget.names > 0 && budget.files > 0 {
            let mut names = Vec::new();
            let read = namespace::read_dir(&*self.cask, dir, cookie, &mut |entry| {
                names.push(entry);
                Ok(names.len() < NAMES)
            });
            match read {
                Ok(()) => {}
                Err(Error::Stale | Error::NotDirectory) => return Ok(None),
                Err(error) => return Err(error),
            }
            if names.is_empty() {
                return Ok(None);
            }
            let mut over = Vec::new();
            for entry in names {
                if over.len() >= budget.files.min(BATCH) {
                    self.remove_over(dir, &mut over, now, budget)?;
                }
                if budget.files == 0 {
                    break;
                }
                cookie = entry.cookie;
                budget.names = budget.names.saturating_sub(1);
                if entry.kind != FileKind::Regular {
                    continue;
                }
                match load(&*self.cask, entry.ino) {
                    Ok(inode) if self.hides(&inode)? => over.push(entry.name),
                    Ok(_) | Err(Error::Stale) => {}
                    Err(error) => return Err(error),
                }
            }
            self.remove_over(dir, &mut over, now, budget)?;
        }
        Ok(Some(cookie))
    }

    /// Removes those of the names, taken, whose files are over.
    fn remove_over(
        &self,
        dir: Number,
        names: &mut Vec<Vec<u8>>,
        now: Timestamp,
        budget: &mut Budget,
    ) -> Result<()> {
        if self.cask.is_crowded() {
            self.cask.checkpoint()?;
        }
        let whole = self.cask.transact(Class::Release, |tx| {
            let mut gone = Vec::new();
            for name in names.iter() {
                if self.name_is_over(tx, dir, name, now)? {
                    namespace::unlink(tx, dir, name, &|_| false, now)?;
                    gone.push(name.clone());
                }
            }
            Ok(gone)
        });
        let gone = match whole {
            Ok((gone, _)) => gone,
            // A cask that is full has room to remove one at a time.
            Err(Error::NoSpace) => {
                let mut gone = Vec::new();
                for name in names.iter() {
                    if self.remove_one(dir, name, now)? {
                        gone.push(name.clone());
                    }
                }
                gone
            }
            Err(error) => return Err(error),
        };
        names.clear();
        self.cask.give_way();
        if gone.is_empty() {
            return Ok(());
        }
        budget.files = budget.files.saturating_sub(gone.len());
        // Its times and size are not what the kernel knows.
        self.notify(Notice::InvalidateInode(dir));
        if self.ages.is_told(now) {
            for name in gone {
                self.notify(Notice::InvalidateEntry(dir, name));
            }
        }
        Ok(())
    }

    /// Removes a file that is over with all its attributes, however full the cask is.
    fn remove_one(&self, dir: Number, name: &[u8], now: Timestamp) -> Result<bool> {
        let (removed, _) = self.fs.abandoning(
            Class::Release,
            |tx, keep| {
                let over = self.name_is_over(tx, dir, name, now)?;
                if over {
                    namespace::unlink(tx, dir, name, keep, now)?;
                }
                Ok(over)
            },
            |_| (),
        )?;
        Ok(removed)
    }
}
