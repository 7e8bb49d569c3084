//! Room: what may be admitted, and how room is made.
//!
//! Everything that the next checkpoint may need is set aside *before* an operation is logged, so a
//! checkpoint can never run out of space (I11) and admission is the only place that says `NoSpace`.
//!
//! Two reserves lie beyond: growing leaves both alone, replacing leaves the one for operations that
//! give space back, and those may use all. A checkpoint frees what was replaced or given up, so the
//! next finds its reserve again, reckoned in the tree that what is pending may have made. A
//! replacement that leaves more than it found, as single blocks overwritten inside long extents do,
//! uses its reserve up in the end and is then refused; a release never depends on it.

use std::time::Duration;

use super::overlay::Cost;
use super::{Cask, Class, State};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::sync::atomic::Ordering;
use crate::tree::{Root, bound};

/// The active overlay takes at most about this much memory before writers wait for a checkpoint. The one
/// before may be on its way into the tree then, so it is twice that in all.
const MEMORY_MAX: u64 = 16 << 20;
/// So much memory of the active overlay is worth a checkpoint that nobody waits for.
pub(super) const MEMORY_DUE: u64 = MEMORY_MAX / 4 * 3;
/// What one operation that gives space back may cost.
const RELEASE: Cost = Cost {
    keys: 12,
    bytes: 1024,
    blocks: 2,
};
/// What one operation that puts something in the place of what is there may cost, beside the blocks
/// of [`REPLACE_MAX`].
const REPLACE: Cost = Cost {
    keys: 12,
    bytes: 1024,
    blocks: 3,
};
/// Most bytes of blocks kept for overwriting at a time; a small cask keeps a 64th of itself.
const REPLACE_MAX: u64 = 1 << 20;
/// How long what must go through waits for the readers of an old checkpoint.
const READERS_WAIT: Duration = Duration::from_secs(10);
/// Checkpoints that an operation which may be refused asks for.
const CHECKPOINTS_MAX: u32 = 4;

/// What writing something into the tree needs, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Blocks.
    pub blocks: u64,
    /// Pages of the tree afterwards.
    pub pages: u64,
}

/// What keeps an operation from being admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Short {
    /// The log ring, or memory: a checkpoint helps.
    Log,
    /// This many blocks.
    Blocks(u64),
}

impl<D: Device> Cask<D> {
    /// Most blocks that writing `cost` into a tree of `pages` pages can take.
    fn need(&self, pages: u64, height: u32, cost: Cost) -> Need {
        if cost == Cost::default() {
            return Need { blocks: 0, pages };
        }
        let root = Root {
            page: None,
            height,
            pages,
        };
        let bound = bound(&self.geometry, &root, cost.keys, cost.bytes);
        Need {
            blocks: cost.blocks + bound.written,
            pages: bound.pages,
        }
    }

    /// What is set aside for what is in memory, and the pages of the tree when it is written.
    fn pledged(&self, state: &State, more: Cost) -> Need {
        let root = &state.snapshot.root;
        let frozen = state.frozen_pledge;
        let active = self.need(
            root.pages.saturating_add(frozen.pages),
            root.height,
            state.active.cost.plus(more),
        );
        Need {
            blocks: active.blocks + frozen.blocks,
            pages: active.pages,
        }
    }

    /// Blocks kept, from an operation of this class, for those that are to go through, in a tree of
    /// `pages` pages.
    fn reserve(&self, state: &State, pages: u64, class: Class) -> u64 {
        let height = state.snapshot.root.height;
        let release = self.need(pages, height, RELEASE);
        let data = (REPLACE_MAX / self.geometry.block()).min(self.alloc.blocks() / 64);
        match class {
            Class::Release => 0,
            Class::Replace => release.blocks,
            Class::Grow => release.blocks + self.need(release.pages, height, REPLACE).blocks + data,
        }
    }

    /// Blocks that an operation with this cost and class leaves for others to be admitted.
    fn wanted(&self, state: &State, cost: Cost, class: Class, redeemed: u64) -> u64 {
        let promised = state.promised.saturating_sub(redeemed);
        let pledged = self.pledged(state, cost);
        pledged.blocks + promised + self.reserve(state, pledged.pages + promised, class)
    }

    /// Blocks that an operation of this class, which was promised `redeemed`, can still take.
    pub(super) fn spare(&self, state: &State, class: Class, redeemed: u64) -> u64 {
        let kept = self.wanted(state, Cost::default(), class, redeemed);
        self.alloc.free().saturating_sub(kept)
    }

    /// Blocks set aside, the reserves included.
    pub(super) fn set_aside(&self, state: &State) -> u64 {
        self.wanted(state, Cost::default(), Class::Grow, 0)
    }

    /// Whether an operation may be logged now.
    pub(super) fn admit(
        &self,
        state: &State,
        cost: Cost,
        class: Class,
        redeemed: u64,
        record: usize,
    ) -> Result<(), Short> {
        let idle = state.active.is_empty() && state.frozen.is_none();
        if !idle && (!self.wal.fits(record) || state.active.memory() > MEMORY_MAX) {
            return Err(Short::Log);
        }
        let wanted = self.wanted(state, cost, class, redeemed);
        let free = self.alloc.free();
        if free < wanted {
            Err(Short::Blocks(wanted - free))
        } else {
            Ok(())
        }
    }

    /// Whether what is pending takes half of what is free: who has time for a checkpoint takes it now,
    /// so that nobody has to wait for one.
    pub fn is_crowded(&self) -> bool {
        let state = self.state.read();
        !state.active.is_empty()
            && 2 * self.pledged(&state, Cost::default()).blocks > self.alloc.free()
    }

    /// Freezing adds what the frozen overlay may need to what is set aside.
    pub(super) fn freeze_pledge(&self, state: &State) -> Need {
        let root = &state.snapshot.root;
        let need = self.need(root.pages, root.height, state.active.cost);
        Need {
            blocks: need.blocks,
            pages: need.pages - root.pages,
        }
    }

    /// Blocks that saving `len` bytes as a new content takes for good, at most: see [`Tx::redeem`].
    ///
    /// [`Tx::redeem`]: super::Tx::redeem
    pub fn room_for(&self, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let cost = super::tx::fresh_cost(&self.geometry, len).plus(Cost {
            blocks: 0,
            ..REPLACE
        });
        cost.blocks + 2 * cost.bytes.div_ceil(self.geometry.page_payload() as u64)
    }

    /// Changes what is promised to an operation to come from `from` to `to` blocks.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when that many cannot be set aside; then nothing changes.
    pub fn promise(&self, from: u64, to: u64) -> Result<()> {
        let mut attempt = 0;
        loop {
            let short = {
                let _ops = self.ops.lock();
                let mut state = self.state.write();
                let more = Cost {
                    blocks: to.saturating_sub(from),
                    ..Cost::default()
                };
                let admitted = match to <= from {
                    true => Ok(()),
                    false => self.admit(&state, more, Class::Grow, 0, 0),
                };
                match admitted {
                    Ok(()) => {
                        state.promised = (state.promised + to).saturating_sub(from);
                        return Ok(());
                    }
                    Err(short) => short,
                }
            };
            self.writable()?;
            self.make_room(short, Class::Grow, attempt)?;
            attempt += 1;
        }
    }

    /// Makes room for an operation that was not admitted.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when nothing can help.
    pub(super) fn make_room(&self, short: Short, class: Class, attempt: u32) -> Result<()> {
        let Short::Blocks(blocks) = short else {
            return self.advance();
        };
        // What only waits for its overwriting is room already.
        if self.is_to_be_wiped() && self.release_lingering(u64::MAX) {
            return Ok(());
        }
        let (pending, releases) = {
            let state = self.state.read();
            let pending = !state.active.is_empty() || state.frozen.is_some();
            (pending, state.active.releases)
        };
        // A checkpoint that gives blocks back keeps a container small; but it grows after one that
        // did not give enough: one for every few operations would cost more than the blocks are worth.
        let worth = releases && !self.barren.load(Ordering::Relaxed);
        if !worth && self.grow(blocks)? {
            return Ok(());
        }
        // What must go through is not given up because others were faster.
        if pending && (class != Class::Grow || attempt < CHECKPOINTS_MAX) {
            let before = self.alloc.free();
            self.checkpoint()?;
            let given = self.alloc.free().saturating_sub(before);
            self.barren.store(given < blocks, Ordering::Relaxed);
            return Ok(());
        }
        let departed = self.departures.count();
        if self.release_lingering(u64::MAX) || self.grow(blocks)? {
            return Ok(());
        }
        if self.give_up_images() {
            return Ok(());
        }
        let waits = class != Class::Grow && !self.lingering.lock().is_empty();
        if waits && self.departures.wait(departed, READERS_WAIT) {
            return Ok(());
        }
        // Somebody else may have made room since.
        if attempt == 0 {
            return Ok(());
        }
        Err(Error::NoSpace)
    }
}
