//! Room: what may be admitted, and how room is made.
//!
//! Everything that the next checkpoint may need is set aside *before* an operation is logged, so a
//! checkpoint can never run out of space (I11) and admission is the only place that says `NoSpace`.
//! A reserve beyond that is kept for operations that give space back: they always go through.

use std::sync::atomic::Ordering;

use super::overlay::Cost;
use super::{Cask, Class, State};
use crate::device::Device;
use crate::error::{Error, Result};

/// The active overlay takes at most about this much memory before writers wait for a checkpoint.
const MEMORY_MAX: u64 = 64 << 20;
/// What one operation that gives space back may cost.
const RELEASE: Cost = Cost {
    keys: 12,
    bytes: 1024,
    blocks: 2,
};

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
        self.alloc.free().saturating_sub(self.set_aside(state))
    }

    /// Blocks set aside, the reserve included.
    pub(super) fn set_aside(&self, state: &State) -> u64 {
        self.pledged(state, Cost::default()) + self.reserve(state)
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
        let (pending, releases) = {
            let state = self.state.read();
            let pending = !state.active.is_empty() || state.frozen.is_some();
            (pending, state.active.releases)
        };
        // A checkpoint that gives blocks back keeps a container small; but one for every few
        // operations would cost more than the blocks are worth, so it grows once in between.
        let worth = releases && self.grown.load(Ordering::Relaxed);
        if !worth && self.grow(blocks)? {
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
}
