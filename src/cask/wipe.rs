//! Overwriting what is given up, where the setting `wipe` asks for it.
//!
//! A page of the tree and a frame of the log hold content of many files, so wiping is a matter of the
//! whole cask: from the moment that it is set on any file or directory, all that a checkpoint gives
//! up is overwritten with zeros, blocks and log alike, before it is used again.
//!
//! Invariants: nothing is overwritten that a superblock or a reader leads to: the checkpoint that
//! gives it up is durable, in both pairs of superblock copies, and the last reader has left. While a
//! superblock does not say `FLAG_STALE`, no free block and nothing of the log that is retired holds
//! what was to be wiped; so what a crash left undone, a sweep through all free blocks does.

use std::sync::atomic::Ordering;

use super::checkpoint::write_superblock;
use super::{Cask, State};
use crate::alloc::Run;
use crate::device::{Device, write_zeros};
use crate::error::{Error, Result};
use crate::format::superblock::{FLAG_STALE, SuperblockRecord};
use crate::wal::Mark;

/// Where wiping is in force, a checkpoint is due when something has waited this long, in seconds.
pub(super) const DUE: i64 = 3;
/// Bytes that a sweep looks at while operations wait.
const STEP: u64 = 1 << 20;
/// Bytes that a sweep looks at in one go beside operations.
const SWEEP: u64 = 64 << 20;
/// Bytes that an orderly end waits for a sweep to look at.
const SWEEP_AT_END: u64 = 1 << 30;
/// How often somebody who waits for the wiping waits for readers to leave.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Whether what the next checkpoint gives up is to be wiped.
pub(super) fn in_force(state: &State) -> bool {
    state.active.wiping || is_stale(&state.superblock)
}

fn is_stale(superblock: &SuperblockRecord) -> bool {
    superblock.flags.get() & FLAG_STALE != 0
}

impl<D: Device> Cask<D> {
    /// Whether what is given up now will be wiped.
    pub fn is_wiping(&self) -> bool {
        in_force(&self.state.read())
    }

    /// Files and directories on which wiping is set.
    pub fn wipes(&self) -> u32 {
        self.state.read().wipes
    }

    /// Returns when nothing that was given up until now is left in the container: removed, cut off or
    /// replaced. What was overwritten in place goes with the next checkpoint. Does nothing where
    /// wiping is not in force.
    ///
    /// # Errors
    /// As [`Cask::checkpoint`].
    pub fn wipe_now(&self) -> Result<()> {
        let wanted = {
            let state = self.state.read();
            in_force(&state) && (state.active.gives_up || state.frozen.is_some())
        };
        if self.read_only.is_some() || !(wanted || self.is_to_be_wiped()) {
            return Ok(());
        }
        if wanted {
            self.checkpoint()?;
        }
        loop {
            let departed = self.departures.count();
            self.release_lingering();
            self.alive()?;
            if !self.is_to_be_wiped() || !self.departures.wait(departed, PATIENCE) {
                return Ok(());
            }
        }
    }

    /// Whether blocks wait for being wiped.
    fn is_to_be_wiped(&self) -> bool {
        self.lingering.lock().iter().any(|given| given.wiped) || !self.abandoned.lock().is_empty()
    }

    /// Frees what checkpoints gave up, as far as no reader is left that may still need it; answers
    /// whether anything was freed.
    pub(super) fn release_lingering(&self) -> bool {
        let before = self.alloc.free();
        let _turn = self.releasing.lock();
        // Somebody else may have done it while this waited.
        let mut any = self.alloc.free() > before;
        loop {
            let mut wiped = true;
            let mut runs = std::mem::take(&mut *self.abandoned.lock());
            if runs.is_empty() {
                let mut lingering = self.lingering.lock();
                let free = |given: &mut super::Lingering| given.needed_by.strong_count() == 0;
                let Some(given) = lingering.pop_front_if(free) else {
                    return any;
                };
                (runs, wiped) = (given.runs, given.wiped);
            }
            if wiped && let Err(error) = self.overwrite(runs.clone()) {
                self.fail(&error.to_string());
                return any;
            }
            self.alloc.release(&runs);
            any |= !runs.is_empty();
        }
    }

    /// Overwrites blocks, durably.
    pub(super) fn overwrite(&self, mut runs: Vec<Run>) -> Result<()> {
        let wiping = || Error::io("wiping what was given up");
        runs.sort_unstable();
        let mut runs = runs.into_iter().filter(|run| run.len > 0).peekable();
        let mut any = false;
        while let Some(mut run) = runs.next() {
            while let Some(next) = runs.next_if(|next| next.start == run.start + run.len) {
                run.len += next.len;
            }
            let range = self.geometry.offset(run.start)..self.geometry.offset(run.start + run.len);
            write_zeros(&*self.device, range).map_err(wiping())?;
            any = true;
        }
        match any {
            true => self.device.sync().map_err(wiping()),
            false => Ok(()),
        }
    }

    /// Notes in a superblock to be written that what it gives up is not wiped yet. If that is new, so
    /// is the wish: what was given up before is wiped, too.
    pub(super) fn expect_wiping(&self, superblock: &mut SuperblockRecord) {
        if !is_stale(superblock) {
            superblock.flags = (superblock.flags.get() | FLAG_STALE).into();
            *self.sweep.lock() = Some(0);
            self.ring_stale.store(true, Ordering::Release);
        }
    }

    /// At the beginning of a life: notes that it may end without having wiped everything, and wipes
    /// what the last one left in the log.
    pub(super) fn begin_wiping(&self) -> Result<()> {
        if !self.is_wiping() {
            return Ok(());
        }
        let _one = self.checkpointing.lock();
        // If a checkpoint was written just now, it has seen to both.
        let left = self.ring_stale.swap(false, Ordering::AcqRel);
        let fresh = !is_stale(&self.state.read().superblock);
        if left || fresh {
            self.renew_superblock(true)?;
        }
        if left {
            let superblock = self.state.read().superblock;
            let mark = Mark {
                position: superblock.wal_position.get(),
                next: superblock.wal_lsn.get(),
                chain: superblock.wal_digest,
            };
            self.wal.wipe(&mark, true)?;
        }
        Ok(())
    }

    /// Writes a superblock that differs from the newest only in whether anything is left to be wiped.
    /// Called with checkpoints stopped.
    fn renew_superblock(&self, stale: bool) -> Result<()> {
        let mut next = self.state.read().superblock;
        let others = next.flags.get() & !FLAG_STALE;
        next.flags = (others | if stale { FLAG_STALE } else { 0 }).into();
        next.generation = (next.generation.get() + 1).into();
        write_superblock(&*self.device, &self.geometry, &next)
            .inspect_err(|error| self.fail(&error.to_string()))?;
        self.state.write().superblock = next;
        self.wal.renew(next.generation.get());
        Ok(())
    }

    /// Goes on with a sweep; and when wiping is not in force any more, says so when it is done.
    pub(super) fn go_on_wiping(&self) -> Result<()> {
        self.sweep(SWEEP)?;
        let over = {
            let state = self.state.read();
            is_stale(&state.superblock) && !state.active.wiping
        };
        if over {
            self.conclude()?;
        }
        Ok(())
    }

    /// At the end of a life: wipes what is left.
    pub(super) fn finish_wiping(&self) -> Result<()> {
        if is_stale(&self.state.read().superblock) {
            self.sweep(SWEEP_AT_END)?;
            self.release_lingering();
            self.alive()?;
            self.conclude()?;
        }
        Ok(())
    }

    /// Says that all is wiped, if it is and nothing that is to be wiped has happened since.
    fn conclude(&self) -> Result<()> {
        let _one = self.checkpointing.lock();
        let over = {
            let state = self.state.read();
            is_stale(&state.superblock) && (state.active.is_empty() || !state.active.wiping)
        };
        if over && self.sweep.lock().is_none() && !self.is_to_be_wiped() {
            self.renew_superblock(false)?;
        }
        Ok(())
    }

    /// Looks at the next `most` bytes of the container for free blocks that hold anything, and
    /// overwrites them.
    fn sweep(&self, most: u64) -> Result<()> {
        let block = self.geometry.block();
        let step = (STEP / block).max(1);
        let mut left = most;
        while left > 0 && self.sweep.lock().is_some() {
            // Nothing is handed out while these are held.
            let _one = self.checkpointing.lock();
            let _growth = self.growth.lock();
            let _ops = self.ops.lock();
            let Some(at) = *self.sweep.lock() else {
                return Ok(());
            };
            if at >= self.alloc.blocks() {
                self.device
                    .sync()
                    .map_err(Error::io("syncing what was wiped"))
                    .inspect_err(|error| self.fail(&error.to_string()))?;
                *self.sweep.lock() = None;
                return Ok(());
            }
            for run in self.alloc.unused(at, step) {
                self.blank(run)
                    .map_err(Error::io("wiping free blocks"))
                    .inspect_err(|error| self.fail(&error.to_string()))?;
            }
            *self.sweep.lock() = Some(at + step);
            left = left.saturating_sub(STEP);
        }
        Ok(())
    }

    /// Overwrites those blocks that are not zeros: the others may be holes of the host's file.
    fn blank(&self, run: Run) -> std::io::Result<()> {
        let start = self.geometry.offset(run.start);
        let mut bytes = vec![0; (run.len * self.geometry.block()) as usize];
        self.device.read_at(start, &mut bytes)?;
        let blocks = bytes.chunks_exact(self.geometry.block_len());
        for (block, at) in blocks.zip((start..).step_by(self.geometry.block_len())) {
            if block.iter().any(|byte| *byte != 0) {
                write_zeros(&*self.device, at..at + self.geometry.block())?;
            }
        }
        Ok(())
    }
}
