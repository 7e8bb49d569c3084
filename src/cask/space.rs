//! Room: what may be admitted, and how room is made.
//!
//! Everything that the next checkpoint may need is set aside *before* an operation is logged, so a
//! checkpoint can never run out of space (I11) and admission is the only place that says `NoSpace`.
//! A reserve beyond that is kept for operations that give space back: they always go through.

use super::overlay::Cost;
use super::{Cask, Class, State};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::wal::Change;

/// The active overlay takes at most about this much memory before writers wait for a checkpoint.
const MEMORY_MAX: u64 = 64 << 20;
/// What one operation that gives space back may cost.
const RELEASE: Cost = Cost {
    keys: 12,
    bytes: 1024,
    blocks: 2,
};
/// A growing container grows by a quarter of its size, but by no more bytes than this at a time.
const GROWTH_MAX: u64 = 1 << 30;

/// What keeps an operation from being admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// The log ring, or memory: a checkpoint helps.
    Log,
    /// This many blocks.
    Blocks(u64),
}

impl<D: Device> Cask<D> {
    /// Most blocks that writing `cost` into the tree of `state` can take.
    fn need(&self, state: &State, cost: Cost) -> u64 {
        if cost == Cost::default() {
            return 0;
        }
        let root = &state.snapshot.root;
        let height = u64::from(root.height) + 1;
        let payload = self.geometry.page_payload() as u64;
        // A touched leaf may split and may take in its neighbour; so may the pages above it. No more
        // pages can be rewritten than there are.
        let rewritten = (2 * cost.keys * height).min(root.pages);
        cost.blocks + 2 * rewritten + 2 * cost.bytes.div_ceil(payload) + height + 3
    }

    /// Blocks set aside for what is in memory, and for operations that give space back.
    fn pledged(&self, state: &State, more: Cost) -> u64 {
        self.need(state, state.active.cost.plus(more)) + state.frozen_pledge
    }

    /// Blocks kept for operations that give space back.
    fn reserve(&self, state: &State) -> u64 {
        self.need(state, RELEASE)
    }

    /// Blocks that data can still be written to.
    pub(super) fn spare(&self, state: &State) -> u64 {
        let kept = self.pledged(state, Cost::default()) + self.reserve(state);
        self.alloc.free().saturating_sub(kept)
    }

    /// Whether an operation may be logged now.
    pub(super) fn admit(
        &self,
        state: &State,
        cost: Cost,
        class: Class,
        record: usize,
    ) -> Result<(), Short> {
        let idle = state.active.is_empty() && state.frozen.is_none();
        if !idle && (!self.wal.fits(record) || state.active.memory() > MEMORY_MAX) {
            return Err(Short::Log);
        }
        let reserve = match class {
            Class::Grow => self.reserve(state),
            Class::Release => 0,
        };
        let wanted = self.pledged(state, cost) + reserve;
        let free = self.alloc.free();
        if free < wanted {
            Err(Short::Blocks(wanted - free))
        } else {
            Ok(())
        }
    }

    /// Freezing adds what the frozen overlay may need to what is set aside.
    pub(super) fn freeze_pledge(&self, state: &State) -> u64 {
        self.need(state, state.active.cost)
    }

    /// Makes room for an operation that was not admitted.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when nothing can help.
    pub(super) fn make_room(&self, short: Short, attempt: u32) -> Result<()> {
        let Short::Blocks(blocks) = short else {
            return self.checkpoint();
        };
        let pending = {
            let state = self.state.read();
            !state.active.is_empty() || state.frozen.is_some()
        };
        let releasing = pending && self.state.read().active.releases;
        if !releasing && self.grow(blocks)? {
            return Ok(());
        }
        if pending && attempt < 4 {
            return self.checkpoint();
        }
        if self.release_lingering() || self.grow(blocks)? {
            return Ok(());
        }
        Err(Error::NoSpace)
    }

    /// Extends a growing container by at least `blocks`; false when it cannot.
    fn grow(&self, blocks: u64) -> Result<bool> {
        if self.fixed {
            return Ok(false);
        }
        let _growth = self.growth.lock();
        let size = self.geometry.block();
        let old = self.alloc.blocks();
        let step = (old / 4).min(GROWTH_MAX / size);
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
        if new < old + blocks {
            return Ok(false);
        }
        match self.device.allocate(old * size, (new - old) * size) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(false),
            Err(source) => {
                return Err(Error::Io {
                    what: "extending the container".to_owned(),
                    source,
                });
            }
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
}
