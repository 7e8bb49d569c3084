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

use std::ops::Range;

use super::checkpoint::write_superblock;
use super::{Cask, State};
use crate::alloc::Run;
use crate::device::{Device, write_zeros};
use crate::error::{Error, Result};
use crate::format::superblock::{FLAG_STALE, SuperblockRecord};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::wal::Mark;

/// Where wiping is in force, a checkpoint is due when something has waited this long, in seconds.
pub(super) const DUE: i64 = 3;
/// Bytes that are overwritten between two times at which somebody else has a turn.
const PIECE: u64 = 16 << 20;
/// Bytes that a tick overwrites.
pub(super) const AT_ONCE: u64 = 64 << 20;
/// Bytes that a sweep looks at while operations wait.
const STEP: u64 = 256 << 10;
/// Bytes that a tick sweeps through.
const SWEEP: u64 = 16 << 20;
/// Bytes that an orderly end waits for a sweep to look at.
const SWEEP_AT_END: u64 = 1 << 30;
/// How long somebody who waits for the wiping waits for a reader to leave.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Whether what the next checkpoint gives up is to be wiped.
pub(super) fn in_force(state: &State) -> bool {
    let frozen = state.frozen.as_ref();
    state.active.wiping || frozen.is_some_and(|it| it.wiping) || is_stale(&state.superblock)
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
    /// wiping is not in force. After ten seconds it does not wait any more for who still reads an old
    /// checkpoint.
    ///
    /// # Errors
    /// As [`Cask::checkpoint`].
    pub fn wipe_now(&self) -> Result<()> {
        if self.read_only.is_some() || !(self.is_wiping() || self.is_to_be_wiped()) {
            return Ok(());
        }
        let wanted = {
            // A checkpoint under way has the log still to wipe.
            let _one = self.checkpointing.lock();
            let state = self.state.read();
            in_force(&state) && (state.active.gives_up || state.frozen.is_some())
        };
        if wanted {
            self.checkpoint()?;
        }
        loop {
            let departed = self.departures.count();
            // Waits for who is wiping just now, too.
            self.release_lingering(u64::MAX);
            self.alive()?;
            let readers = {
                let lingering = self.lingering.lock();
                if !lingering.iter().any(|given| given.wiped) {
                    return Ok(());
                }
                let first = lingering.front();
                first.map_or(0, |given| given.needed_by.strong_count())
            };
            if !self.departures.wait(departed, PATIENCE) {
                log::warn!(
                    "{readers} readers of an old checkpoint have not left for {} s: what was given \
                     up since is wiped when they have",
                    PATIENCE.as_secs()
                );
                return Ok(());
            }
        }
    }

    /// Whether blocks wait for being wiped. Of those that are being wiped the last may not count: to be
    /// sure, hold `releasing`.
    pub(super) fn is_to_be_wiped(&self) -> bool {
        self.lingering.lock().iter().any(|given| given.wiped)
            || !self.abandoned.lock().runs.is_empty()
    }

    /// Frees what checkpoints gave up, as far as no reader is left that may still need it, but no more
    /// than `most` bytes of what is to be overwritten before; answers whether anything was freed.
    pub(super) fn release_lingering(&self, most: u64) -> bool {
        let block = self.geometry.block();
        let before = self.alloc.free();
        let mut turn = self.releasing.lock();
        // Somebody else may have done it while this waited.
        let mut any = self.alloc.free() > before;
        let mut left = most / block;
        while let Some((runs, wiped)) = self.given_up(left.min(PIECE / block)) {
            if wiped && let Err(error) = self.overwrite(runs.clone()) {
                self.fail(&error.to_string());
                return any;
            }
            self.alloc.release(&runs);
            any |= !runs.is_empty();
            if wiped {
                left = left.saturating_sub(runs.iter().map(|run| run.len).sum());
                MutexGuard::bump(&mut turn);
            }
        }
        any
    }

    /// Takes the next blocks that nobody needs any more, and answers whether they are to be wiped;
    /// then they are no more than `most`. Called with `releasing` held until they are free.
    fn given_up(&self, most: u64) -> Option<(Vec<Run>, bool)> {
        let abandoned = take(&mut self.abandoned.lock().runs, most);
        if !abandoned.is_empty() {
            return Some((abandoned, true));
        }
        let mut lingering = self.lingering.lock();
        let given = lingering
            .front_mut()
            .filter(|given| given.needed_by.strong_count() == 0)?;
        if !given.wiped {
            return lingering.pop_front().map(|given| (given.runs, false));
        }
        if most == 0 {
            return None;
        }
        let runs = take(&mut given.runs, most);
        if given.runs.is_empty() {
            lingering.pop_front();
        }
        Some((runs, true))
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
            // What is just being freed is free before the sweep begins.
            let _turn = self.releasing.lock();
            let mark = |given: &mut super::Lingering| given.wiped = true;
            self.lingering.lock().iter_mut().for_each(mark);
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
            // This skips the rest of a unit that the place in the log cuts, as new frames do. It cuts
            // none: the checkpoint that set the flag, and each since, began a unit.
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
            self.release_lingering(u64::MAX);
            self.alive()?;
            self.conclude()?;
        }
        Ok(())
    }

    /// Says that all is wiped, if it is and nothing that is to be wiped has happened since.
    fn conclude(&self) -> Result<()> {
        let _one = self.checkpointing.lock();
        // Nothing is just being overwritten.
        let _turn = self.releasing.lock();
        let over = {
            let state = self.state.read();
            is_stale(&state.superblock) && (state.active.is_empty() || !state.active.wiping)
        };
        if over && self.sweep.lock().is_none() && !self.is_to_be_wiped() {
            self.renew_superblock(false)?;
            let state = self.state.read();
            self.abandoned.lock().wiped = in_force(&state);
        }
        Ok(())
    }

    /// Looks at the next `most` bytes of the container for free blocks that hold anything, and
    /// overwrites them.
    fn sweep(&self, most: u64) -> Result<()> {
        let mut left = most;
        let (mut any, mut over) = (false, false);
        while left > 0 && !over && self.sweep.lock().is_some() {
            match self.sweep_step()? {
                Some(blanked) => any |= blanked,
                None => over = true,
            }
            left = left.saturating_sub(STEP);
        }
        // Nobody waits for this, and at the end it covers what others wrote as well.
        if any || over {
            self.device
                .sync()
                .map_err(Error::io("syncing what was wiped"))
                .inspect_err(|error| self.fail(&error.to_string()))?;
        }
        if over {
            // Unless it began anew meanwhile.
            let blocks = self.alloc.blocks();
            let mut sweep = self.sweep.lock();
            *sweep = sweep.filter(|at| *at < blocks);
        }
        Ok(())
    }

    /// Does a step of the sweep and answers whether it wrote anything; `None` at the end.
    fn sweep_step(&self) -> Result<Option<bool>> {
        let step = (STEP / self.geometry.block()).max(1);
        // Nothing is handed out while these are held.
        let one = self.checkpointing.lock();
        let growth = self.growth.lock();
        let ops = self.ops.lock();
        let at = self.sweep.lock().unwrap_or(u64::MAX);
        let mut any = false;
        if at < self.alloc.blocks() {
            for run in self.alloc.unused(at, step) {
                any |= self
                    .blank(run)
                    .map_err(Error::io("wiping free blocks"))
                    .inspect_err(|error| self.fail(&error.to_string()))?;
            }
            *self.sweep.lock() = Some(at + step);
        }
        // Who waits comes before the next step.
        MutexGuard::unlock_fair(ops);
        MutexGuard::unlock_fair(growth);
        MutexGuard::unlock_fair(one);
        Ok((at < self.alloc.blocks()).then_some(any))
    }

    /// Overwrites those blocks that are not zeros, neighbours at once: the others may be holes of the
    /// host's file. Answers whether there were any.
    fn blank(&self, run: Run) -> std::io::Result<bool> {
        let start = self.geometry.offset(run.start);
        let size = self.geometry.block();
        let mut bytes = vec![0; (run.len * size) as usize];
        self.device.read_at(start, &mut bytes)?;
        let blocks = bytes.chunks_exact(self.geometry.block_len());
        let used = blocks.zip(0..).filter_map(|(block, index)| {
            let at = start + index * size;
            block.iter().any(|byte| *byte != 0).then_some(at)
        });
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for at in used {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end += size,
                _ => ranges.push(at..at + size),
            }
        }
        let any = !ranges.is_empty();
        for range in ranges {
            write_zeros(&*self.device, range)?;
        }
        Ok(any)
    }
}

/// Takes up to `most` blocks off the end.
fn take(runs: &mut Vec<Run>, most: u64) -> Vec<Run> {
    let (mut taken, mut left) = (Vec::new(), most);
    while left > 0
        && let Some(mut run) = runs.pop()
    {
        if run.len > left {
            let rest = Run {
                start: run.start + left,
                len: run.len - left,
            };
            runs.push(rest);
            run.len = left;
        }
        left -= run.len;
        taken.push(run);
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_off_the_end_one_run_in_two_where_it_must() {
        let run = |start, len| Run { start, len };
        let mut runs = vec![run(10, 5), run(30, 4)];
        assert_eq!(take(&mut runs, 6), [run(30, 4), run(10, 2)]);
        assert_eq!(runs, [run(12, 3)]);
        assert_eq!(take(&mut runs, 0), []);
        assert_eq!(take(&mut runs, 9), [run(12, 3)]);
        assert_eq!(runs, []);
    }
}
