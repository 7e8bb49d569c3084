//! Writing a checkpoint: freeze, build ([`super::build`]), make durable, publish.
//!
//! Invariants: a superblock is written only after all it reaches is durable (I2); what a checkpoint
//! gives up is used again only after it is durable and no reader of an older one is left (I3, I4).

use std::collections::HashSet;
use std::sync::Arc;

use super::build::Build;
use super::overlay::Overlay;
use super::space::Need;
use super::tx::StopOnPanic;
use super::{Cask, Lingering, Snapshot, wipe};
use crate::alloc::Run;
use crate::device::Device;
use crate::device::control::{Control, removed};
use crate::error::{Error, Result};
use crate::format::page::PagePtr;
use crate::format::superblock::{FLAG_FIXED, SuperblockRecord};
use crate::format::{Geometry, Key};
use crate::sync::atomic::Ordering;
use crate::tree::{Edit, Root, merge, prune};
use crate::wal::Mark;

/// What a checkpoint is made of.
struct Frozen {
    overlay: Arc<Overlay>,
    snapshot: Arc<Snapshot>,
    superblock: SuperblockRecord,
    mark: Mark,
    /// What it gives up is wiped.
    wipes: bool,
    /// What of the tree is left out, and given up.
    pruned: Option<Pruned>,
}

/// What is wrong with a checkpoint.
pub(super) struct Pruned {
    /// See [`prune()`].
    pub bad: HashSet<(u64, Key)>,
    /// Items that say what of contents is lost.
    pub lost: Vec<Edit>,
    /// Pages in the rest of the tree.
    pub pages: u64,
    /// Blocks that nothing uses.
    pub leaked: Vec<Run>,
}

impl<D: Device> Cask<D> {
    /// Writes a checkpoint if anything changed since the last, and frees what it gives up: where that
    /// is to be wiped, after it is.
    ///
    /// # Errors
    /// [`Error::Failed`] when the cask has stopped, or stops now because a write or sync failed.
    pub fn checkpoint(&self) -> Result<()> {
        self.advance()?;
        self.release_lingering(u64::MAX);
        self.alive()
    }

    /// Like [`Cask::checkpoint`], but leaves blocks that are to be wiped to others: who waits for
    /// room in the log need not wait for that.
    pub(super) fn advance(&self) -> Result<()> {
        self.writable()?;
        {
            let _one = self.checkpointing.lock();
            self.alive()?;
            if let Some(frozen) = self.freeze()? {
                self.write_checkpoint(frozen)
                    .inspect_err(|error| self.fail(&format!("writing a checkpoint: {error}")))?;
            }
        }
        self.release_lingering(0);
        Ok(())
    }

    /// Sets the active overlay aside; `None` when there is nothing in it.
    fn freeze(&self) -> Result<Option<Frozen>> {
        let _ops = self.ops.lock();
        let wipes = wipe::in_force(&self.state.read());
        let mark = self.wal.freeze(wipes)?;
        let mut state = self.state.write();
        let here = (state.superblock.wal_lsn.get(), state.superblock.wal_digest);
        if state.active.is_empty() && (mark.next, mark.chain) == here {
            return Ok(None);
        }
        state.frozen_pledge = self.freeze_pledge(&state);
        let mut fresh = Overlay::new(self.geometry, state.next_number);
        fresh.wiping = state.wipes > 0;
        let overlay = Arc::new(std::mem::replace(&mut state.active, fresh));
        state.frozen = Some(Arc::clone(&overlay));
        let mut superblock = state.superblock;
        superblock.next_number = state.next_number.into();
        superblock.files = state.files.into();
        superblock.wipes = state.wipes.into();
        superblock.label = padded(&state.label);
        superblock.files_limit = state.bounds.files.unwrap_or(0).into();
        let others = superblock.flags.get() & !FLAG_FIXED;
        superblock.flags = (others | if state.bounds.fixed { FLAG_FIXED } else { 0 }).into();
        Ok(Some(Frozen {
            overlay,
            snapshot: Arc::clone(&state.snapshot),
            superblock,
            mark,
            wipes,
            pruned: None,
        }))
    }

    /// Writes the newest checkpoint anew, without what is wrong with it. What the log adds stays there.
    pub(super) fn write_pruned(&self, pruned: Pruned) -> Result<()> {
        let _one = self.checkpointing.lock();
        let frozen = {
            let state = self.state.read();
            let superblock = state.superblock;
            Frozen {
                overlay: Arc::new(Overlay::new(self.geometry, superblock.next_number.get())),
                snapshot: Arc::clone(&state.snapshot),
                superblock,
                mark: Mark {
                    position: superblock.wal_position.get(),
                    next: superblock.wal_lsn.get(),
                    chain: superblock.wal_digest,
                },
                wipes: false,
                pruned: Some(pruned),
            }
        };
        self.write_checkpoint(frozen)
    }

    fn write_checkpoint(&self, frozen: Frozen) -> Result<()> {
        // Memory and superblock may not agree half-way.
        let _stop = StopOnPanic(self);
        let Frozen {
            overlay,
            snapshot,
            superblock,
            mark,
            wipes,
            pruned,
        } = frozen;
        let mut generation = superblock.generation.get() + 1;
        let mut build = Build::new(self);
        let root = match pruned {
            None => {
                let edits = build.edits(&overlay, &snapshot)?;
                let root = merge(&self.tree, &snapshot.root, generation, edits, &mut build)?;
                #[cfg(any(test, feature = "testing"))]
                self.check_pledge(&overlay, &build.adds);
                root
            }
            Some(pruned) => {
                build.frees.extend(pruned.leaked);
                let pages = pruned.pages;
                let old = Root {
                    pages,
                    ..snapshot.root
                };
                prune(
                    &self.tree,
                    &old,
                    generation,
                    pruned.bad,
                    pruned.lost,
                    &mut build,
                )?
            }
        };
        build.flush()?;
        let ahead = build.ahead;
        let Build {
            adds,
            frees,
            mut unused,
            ..
        } = build;
        unused.push(ahead);

        let slot = superblock.alloc_slot.get() ^ 1;
        let plan = self.alloc.plan(adds, frees.clone(), slot, &self.keys)?;
        self.alloc.write(&*self.device, &plan)?;
        let mut next = superblock;
        next.generation = generation.into();
        next.blocks = plan.blocks.into();
        next.wal_position = mark.position.into();
        next.wal_lsn = mark.next.into();
        next.wal_digest = mark.chain;
        next.height = root.height.into();
        next.root_block = root.page.map_or(0, |p| p.block).into();
        next.root_crc = root.page.map_or(0, |p| p.crc).into();
        next.pages = root.pages.into();
        next.alloc_slot = slot.into();
        next.alloc_digest = plan.root_digest;
        if !removed(Control::CheckpointDataBarrier) {
            self.device
                .sync()
                .map_err(Error::io("syncing a checkpoint"))?;
            // What of it did not get there may have been told to the log.
            self.wal.settled()?;
        }
        if wipes {
            self.expect_wiping(&mut next);
        }
        if wipes && removed(Control::WipeAfterCommit) {
            self.overwrite(frees.clone())?;
        }
        write_superblock(&*self.device, &self.geometry, &next)?;
        self.wal.settled()?;
        if wipes {
            // No superblock is left that leads to what will be wiped.
            generation += 1;
            next.generation = generation.into();
            write_superblock(&*self.device, &self.geometry, &next)?;
        }

        // From here on the new checkpoint counts.
        self.alloc.publish(plan);
        self.records.follow(&overlay);
        for run in &frees {
            (run.start..run.start + run.len).for_each(|block| self.tree.forget(block));
        }
        let mut released = unused;
        released.extend(frees);
        released.extend_from_slice(&overlay.dropped);
        if wipes {
            // They are wiped from the end on.
            released.sort_unstable_by(|a, b| b.cmp(a));
        }
        {
            let mut state = self.state.write();
            state.snapshot = Arc::new(Snapshot {
                root,
                departures: Arc::clone(&self.departures),
            });
            state.frozen = None;
            state.frozen_pledge = Need::default();
            state.superblock = next;
            self.lingering.lock().push_back(Lingering {
                needed_by: Arc::downgrade(&snapshot),
                runs: released,
                wiped: wipes,
            });
        }
        drop((snapshot, overlay));
        if wipes {
            let all = self.ring_stale.swap(false, Ordering::AcqRel);
            self.wal.wipe(&mark, all)?;
        }
        self.wal.retire(&mark, generation);
        Ok(())
    }

    /// What a checkpoint took must be within what was set aside for it.
    #[cfg(any(test, feature = "testing"))]
    fn check_pledge(&self, overlay: &Overlay, adds: &[Run]) {
        let in_place = overlay.contents.values().flat_map(|c| c.extents.values());
        let placed: u64 = in_place.map(|extent| extent.len()).sum();
        let taken: u64 = adds.iter().map(|run| run.len).sum();
        let pledge = self.state.read().frozen_pledge.blocks;
        assert!(
            taken <= pledge + placed,
            "a checkpoint took {taken} blocks of {pledge} set aside and {placed} in place"
        );
    }
}

/// Writes both copies of a superblock and makes them durable.
pub(super) fn write_superblock<D: Device>(
    device: &D,
    geometry: &Geometry,
    next: &SuperblockRecord,
) -> Result<()> {
    let pair = if removed(Control::TwoSuperblockSlots) {
        0
    } else {
        2 * (next.generation.get() & 1)
    };
    let bytes = next.encode();
    // A container that lied about its counters is as it was; one that nobody can open is lost.
    if SuperblockRecord::decode(&bytes).is_err() {
        return Err(Error::corrupt("counters beyond all bounds", 0));
    }
    for copy in [pair, pair + 1] {
        device
            .write_at(geometry.superblock_offset(copy), &bytes)
            .map_err(Error::io("writing a superblock"))?;
    }
    if !removed(Control::CheckpointSuperblockBarrier) {
        device.sync().map_err(Error::io("syncing a superblock"))?;
    }
    Ok(())
}

/// A label as it stands in a superblock.
pub(super) fn padded(label: &[u8]) -> [u8; crate::limits::LABEL_MAX] {
    let mut out = [0; crate::limits::LABEL_MAX];
    out.iter_mut().zip(label).for_each(|(to, from)| *to = *from);
    out
}

/// The root a superblock names.
pub(super) fn root_of(superblock: &SuperblockRecord) -> Root {
    let height = superblock.height.get();
    let page = (height > 0).then(|| PagePtr {
        block: superblock.root_block.get(),
        crc: superblock.root_crc.get(),
    });
    Root {
        page,
        height,
        pages: superblock.pages.get().min(superblock.blocks.get()),
    }
}
