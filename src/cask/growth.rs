//! A container that grows with what is in it: room from the host, and back to it.
//!
//! Invariant: the host has given room for every block that counts as free, so no write of a
//! checkpoint can fail for lack of it; and the file is durably as long as the layout says (I9).

use std::io::ErrorKind;

use super::Cask;
use crate::alloc::Run;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::wal::Change;
use crate::sync::atomic::Ordering;

/// It grows by an eighth of its size, but by no more bytes than this at a time.
const GROWTH_MAX: u64 = 256 << 20;
/// Most free room that a container in use keeps, in bytes, or an eighth of its size: it will be
/// wanted again soon.
const KEEP_MAX: u64 = 64 << 20;
/// Most bytes given back to the host at a time.
const PUNCH_MAX: u64 = 8 << 20;

impl<D: Device> Cask<D> {
    /// Makes a growing container have at least `blocks` more free blocks; false when it cannot.
    pub(super) fn grow(&self, blocks: u64) -> Result<bool> {
        // Whoever finds the container fixed does not wait for one who gives it more blocks.
        if self.is_fixed() {
            return Ok(false);
        }
        let _growth = self.growth.lock();
        if self.is_fixed() {
            return Ok(false);
        }
        self.barren.store(false, Ordering::Relaxed);
        let taken = self.take_back(blocks)?;
        Ok(taken >= blocks || self.extend(blocks - taken)?)
    }

    /// Whether the number of blocks is fixed. Changes only while [`Cask::growth`] is held.
    pub(super) fn is_fixed(&self) -> bool {
        self.state.read().bounds.fixed
    }

    /// Takes room for free chunks that the host was given back; answers how many blocks.
    pub(super) fn take_back(&self, blocks: u64) -> Result<u64> {
        let size = self.geometry.block();
        let mut taken = 0;
        for chunk in self.alloc.absent() {
            if taken >= blocks {
                break;
            }
            // Where the host still holds the room this goes well even on a full one: so all are tried.
            if self.allocate(chunk.start * size, chunk.len * size)? {
                self.alloc.restore(chunk);
                taken += chunk.len;
            }
        }
        Ok(taken)
    }

    /// Extends the container by at least `blocks`; false when it cannot be.
    fn extend(&self, blocks: u64) -> Result<bool> {
        let size = self.geometry.block();
        let old = self.alloc.blocks();
        let step = (old / 8).min(GROWTH_MAX / size);
        let available = self
            .device
            .growth_available()
            .map_err(Error::io("asking the host for space"))?;
        let Some(new) = [step.max(blocks + 64), blocks + 2]
            .iter()
            .map(|more| (old + more).min(self.geometry.max_blocks()))
            .find(|new| available.is_none_or(|bytes| (new - old).saturating_mul(size) <= bytes))
        else {
            return Ok(false);
        };
        Ok(new >= old + blocks && self.extend_to(old, new)?)
    }

    /// Extends the container from `old` to `new` blocks; false when the host has no room.
    pub(super) fn extend_to(&self, old: u64, new: u64) -> Result<bool> {
        let size = self.geometry.block();
        if !self.allocate(old * size, (new - old) * size)? {
            return Ok(false);
        }
        // The new length is durable before any record relies on it (I9).
        if let Err(source) = self.device.sync() {
            self.fail(&format!(
                "syncing the container after extending it: {source}"
            ));
            return self.alive().map(|()| false);
        }
        let _ops = self.ops.lock();
        let mut record = Vec::new();
        Change::Grow(new).encode(&mut record);
        self.alloc.grow(new);
        self.wal.append(&record, false);
        Ok(true)
    }

    /// Asks the host for room; false when it has none.
    fn allocate(&self, offset: u64, len: u64) -> Result<bool> {
        match self.device.allocate(offset, len) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::StorageFull => Ok(false),
            Err(source) => Err(Error::Io {
                what: "extending the container".to_owned(),
                source,
            }),
        }
    }

    /// Gives free chunks of a growing container back to the host, but for what is set aside and,
    /// while it is in use, some room for what comes next.
    pub(super) fn give_back(&self, in_use: bool) {
        let _growth = self.growth.lock();
        if self.is_fixed() || self.read_only.is_some() || self.failure().is_some() {
            return;
        }
        let runs: Vec<Run> = {
            let _ops = self.ops.lock();
            let keep = self.set_aside(&self.state.read());
            let more = match in_use {
                true => (self.alloc.blocks() / 8).min(KEEP_MAX / self.geometry.block()),
                false => 0,
            };
            let given = self.alloc.give_up(keep + more);
            match in_use {
                true => given,
                // Some of these only seemed absent, after a crash: now nobody will ask for them.
                false => joined(self.alloc.absent()),
            }
        };
        let size = self.geometry.block();
        // The host keeps writers waiting for as long as it is at one piece.
        let pieces = runs.iter().flat_map(|run| {
            let starts = (0..run.len).step_by((PUNCH_MAX / size).max(1) as usize);
            starts.map(|at| (run.start + at, (PUNCH_MAX / size).max(1).min(run.len - at)))
        });
        for (start, len) in pieces {
            if let Err(error) = self.device.punch(start * size, len * size) {
                log::warn!("free room was not given back to the host: {error}");
            }
        }
    }
}

/// Neighbouring runs, which ascend, as one.
fn joined(runs: Vec<Run>) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some(last) if last.start + last.len == run.start => last.len += run.len,
            _ => out.push(run),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_given_back_as_one() {
        let run = |start, len| Run { start, len };
        let joined = joined(vec![
            run(2, 3),
            run(5, 1),
            run(6, 4),
            run(11, 2),
            run(22, 1),
        ]);
        assert_eq!(joined, [run(2, 8), run(11, 2), run(22, 1)]);
    }
}
