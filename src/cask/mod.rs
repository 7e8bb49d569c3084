//! The container as a whole: state = checkpoint tree ⊕ frozen overlay ⊕ active overlay.
//!
//! Lock order: checkpointing < growth < operations < releasing < state < lingering, abandoned
//! < allocator, log. No device I/O happens under `state`. Invariant: after any crash the cask equals its state after some prefix
//! of operations that contains every one that was confirmed durable (I8).

mod audit;
mod build;
mod checkpoint;
mod departures;
mod growth;
mod image;
mod make;
mod mend;
mod overlay;
mod records;
mod recovery;
mod resize;
mod space;
mod tx;
mod view;
mod wipe;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};

pub use audit::{GroupBits, Pinned};

pub use crate::tree::Value;
pub use crate::wal::Lsn;
pub use image::{Image, ImageRead};
pub use make::FormatOptions;
pub use mend::Mended;
pub use recovery::{OpenOptions, Unrecovered};
pub use tx::{Class, Guard, Staged, Tx};
pub use view::Read;

use crate::alloc::{Allocator, Run};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::Geometry;
use crate::format::checksum::Keys;
use crate::format::key::Number;
use crate::format::superblock::{FLAG_FILLED, FLAG_FIXED, SuperblockRecord};
use crate::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::tree::{Root, Tree};
use crate::wal::{Outcome, Wal};

use departures::Departures;
use overlay::Overlay;
use records::Records;

/// A checkpoint is due when this much of the log waits for it, or half of the ring.
const LOG_DUE: u64 = 16 << 20;
/// A checkpoint is due when something has waited this long for it, in seconds.
const AGE_DUE: i64 = 30;
/// What is written becomes durable after at most this many nanoseconds.
const COMMIT_INTERVAL: i64 = 1_000_000_000;

/// A checkpoint that can be read.
#[derive(Debug)]
pub struct Snapshot {
    /// Its tree.
    pub root: Root,
    departures: Arc<Departures>,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.departures.add();
    }
}

struct State {
    active: Overlay,
    frozen: Option<Arc<Overlay>>,
    /// What is set aside for the frozen overlay; of the pages, those that it may add.
    frozen_pledge: space::Need,
    /// Blocks set aside for operations to come.
    promised: u64,
    snapshot: Arc<Snapshot>,
    next_number: Number,
    files: u64,
    /// Files and directories on which wiping is set.
    wipes: u32,
    label: Vec<u8>,
    bounds: Bounds,
    /// Of the newest durable checkpoint.
    superblock: SuperblockRecord,
}

/// How much the cask may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    /// Most inodes.
    files: Option<u64>,
    /// The container has the blocks it has, and does not grow by itself.
    fixed: bool,
}

impl Bounds {
    fn of(superblock: &SuperblockRecord) -> Self {
        Self {
            files: Some(superblock.files_limit.get()).filter(|limit| *limit > 0),
            fixed: superblock.flags.get() & FLAG_FIXED != 0,
        }
    }
}

/// What a checkpoint gave up.
struct Lingering {
    /// The checkpoint whose readers may still need it.
    needed_by: Weak<Snapshot>,
    runs: Vec<Run>,
    /// It is overwritten before it is free.
    wiped: bool,
}

/// Blocks that were written for an operation that did not happen.
#[derive(Debug, Default)]
struct Abandoned {
    /// They are overwritten before they are free. True as soon as wiping is in force, until the
    /// superblock says that all is wiped.
    wiped: bool,
    runs: Vec<Run>,
}

/// Numbers about a cask.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks that files can fill, in all.
    pub total_blocks: u64,
    /// Blocks that can be written now.
    pub free_blocks: u64,
    /// Most inodes.
    pub files_max: u64,
    /// Inodes in use, the root included.
    pub files_used: u64,
    /// Label, at most 64 bytes.
    pub label: Vec<u8>,
    /// Random identity.
    pub uuid: [u8; 16],
    /// Number of the newest durable checkpoint.
    pub generation: u64,
    /// Newest operation.
    pub lsn: Lsn,
    /// Newest durable operation.
    pub durable_lsn: Lsn,
    /// Blocks of the container if that is fixed (`--blocks`).
    pub blocks_limit: Option<u64>,
    /// Most inodes if that is bounded (`--files`).
    pub files_limit: Option<u64>,
    /// Whether all blocks were written at mkfs (`--fill`).
    pub fill: bool,
    /// Bytes of the log ring.
    pub wal_bytes: u64,
    /// Blocks of the container.
    pub blocks: u64,
    /// When the container was made.
    pub created: Timestamp,
}

/// An open container.
pub struct Cask<D: Device> {
    device: Arc<D>,
    geometry: Geometry,
    keys: Keys,
    /// Why nothing may be changed.
    read_only: Option<&'static str>,
    checkpointing: Mutex<()>,
    growth: Mutex<()>,
    /// Of readers of old checkpoints.
    departures: Arc<Departures>,
    /// The last checkpoint made for room did not give enough, and it has not grown since.
    barren: AtomicBool,
    ops: Mutex<()>,
    /// Has a say in operations.
    guard: RwLock<Option<Arc<dyn Guard<D>>>>,
    state: RwLock<State>,
    alloc: Arc<Allocator>,
    tree: Tree<D>,
    records: Records,
    wal: Wal<D>,
    /// What checkpoints gave up; oldest first.
    lingering: Mutex<VecDeque<Lingering>>,
    /// Images that hold a checkpoint.
    images: Mutex<Vec<Weak<image::Pin>>>,
    /// Held by who makes it free.
    releasing: Mutex<()>,
    abandoned: Arc<Mutex<Abandoned>>,
    /// The next block to look at for what nobody wiped; `None` when all were.
    sweep: Mutex<Option<u64>>,
    /// The log ring may hold frames of before wiping was in force.
    ring_stale: AtomicBool,
    failed: OnceLock<String>,
    /// Nanoseconds of the owner's clock when the log was synced, and seconds of the last checkpoint.
    last_commit: AtomicI64,
    last_checkpoint: AtomicI64,
    /// What was mended when it was opened.
    mended: Vec<Mended>,
}

impl<D: Device> Cask<D> {
    /// The device below.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The layout.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Why nothing may be changed: the empty string where that is the user's choice; `None` when the
    /// cask is writable.
    pub fn read_only(&self) -> Option<&'static str> {
        self.read_only
    }

    /// The newest operation.
    pub fn lsn(&self) -> Lsn {
        self.wal.last()
    }

    /// Returns when operation `lsn` is in the container file: it survives a kill of this process.
    ///
    /// # Errors
    /// [`Error::Failed`] when the cask has stopped, or stops now.
    pub fn persist(&self, lsn: Lsn) -> Result<()> {
        while self.logged(self.wal.persist(lsn))? == Outcome::RingFull {
            self.advance()?;
        }
        Ok(())
    }

    /// Returns when all operations up to `lsn` are durable.
    ///
    /// # Errors
    /// As [`Cask::persist`].
    pub fn sync(&self, lsn: Lsn) -> Result<()> {
        while self.logged(self.wal.sync(lsn))? == Outcome::RingFull {
            self.advance()?;
        }
        Ok(())
    }

    fn logged(&self, outcome: Result<Outcome>) -> Result<Outcome> {
        if let Some(why) = self.wal.failure() {
            self.fail(&why);
        }
        self.alive()?;
        outcome
    }

    /// Background duty, called by the owner about ten times a second: the commit timer, and
    /// checkpoints when they are due.
    ///
    /// # Errors
    /// As [`Cask::persist`].
    pub fn tick(&self, now: Timestamp) -> Result<()> {
        if self.read_only.is_some() {
            return Ok(());
        }
        let nanos = now
            .secs
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::from(now.nanos));
        let since = nanos.saturating_sub(self.last_commit.load(Ordering::Relaxed));
        let last = self.wal.last();
        if self.wal.durable() >= last {
            self.last_commit.store(nanos, Ordering::Relaxed);
        } else if !(0..COMMIT_INTERVAL).contains(&since) {
            self.sync(last)?;
            self.last_commit.store(nanos, Ordering::Relaxed);
        }
        let (idle, wiping) = {
            let state = self.state.read();
            (state.active.is_empty(), wipe::in_force(&state))
        };
        let age_due = if wiping { wipe::DUE } else { AGE_DUE };
        let age = now
            .secs
            .saturating_sub(self.last_checkpoint.load(Ordering::Relaxed));
        let full = self.wal.live() >= self.log_due()
            || self.state.read().active.memory() >= space::MEMORY_DUE;
        let due = !idle && (full || !(0..age_due).contains(&age));
        if idle || due {
            self.last_checkpoint.store(now.secs, Ordering::Relaxed);
        }
        if due {
            self.advance()?;
        }
        // A part of what is to be wiped: the commit timer must not wait for the rest.
        let freed = (idle || wiping) && self.release_lingering(wipe::AT_ONCE);
        if due || (wiping && freed) {
            self.give_back(true);
        }
        self.go_on_wiping()
    }

    /// Bytes of log for which a checkpoint is due.
    fn log_due(&self) -> u64 {
        LOG_DUE.min(self.geometry.wal_len / 2)
    }

    /// Stops the cask: every later change and sync fails with `EIO`.
    pub fn fail(&self, why: &str) {
        if self.failed.set(why.to_owned()).is_ok() {
            log::error!("the cask stopped: {why}");
        }
        self.wal.fail(why);
    }

    /// Why the cask stopped, if it did.
    pub fn failure(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    fn alive(&self) -> Result<()> {
        self.failure()
            .map_or(Ok(()), |why| Err(Error::Failed(why.to_owned())))
    }

    fn writable(&self) -> Result<()> {
        match self.read_only {
            None => self.alive(),
            Some("") => Err(Error::ReadOnly { why: None }),
            why => Err(Error::ReadOnly { why }),
        }
    }

    /// Writes the last checkpoint, so that the next opening has nothing to replay.
    ///
    /// # Errors
    /// As [`Cask::checkpoint`].
    pub fn close(&self) -> Result<()> {
        if self.read_only.is_some() {
            return Ok(());
        }
        self.checkpoint()?;
        self.finish_wiping()?;
        self.give_back(false);
        Ok(())
    }

    /// Makes what was given up free, so that [`Cask::stats`] counts it.
    ///
    /// # Errors
    /// As [`Cask::checkpoint`].
    pub fn settle(&self) -> Result<()> {
        let releases = {
            let state = self.state.read();
            state.active.releases || state.frozen.is_some()
        };
        if self.read_only.is_some() || self.failure().is_some() {
            return Ok(());
        }
        if releases {
            self.checkpoint()?;
        } else if self.is_to_be_wiped() {
            self.release_lingering(u64::MAX);
        }
        Ok(())
    }

    /// Numbers about the cask as it is now.
    pub fn stats(&self) -> Stats {
        let state = self.state.read();
        let blocks = self.alloc.blocks();
        // What the host was given back it counts itself.
        let room = self.geometry.usable(blocks) - self.alloc.absent_blocks();
        let Bounds {
            files: files_limit,
            fixed,
        } = state.bounds;
        let growth = match fixed {
            true => 0,
            false => {
                let host = self
                    .device
                    .growth_available()
                    .ok()
                    .flatten()
                    .unwrap_or(1 << 50);
                (host / self.geometry.block()).min(self.geometry.max_blocks() - blocks)
            }
        };
        let bounded = (1 << 62) / self.geometry.block();
        let free_blocks = (self.spare(&state, Class::Grow, 0) + growth).min(bounded);
        // Where no bound was asked for, an inode takes at least some tree space: this is what fits.
        let files_room = free_blocks.saturating_mul(self.geometry.block() / 256);
        Stats {
            block_size: self.geometry.block_size,
            total_blocks: (room + growth).min(bounded),
            free_blocks,
            files_max: files_limit.unwrap_or(state.files + files_room),
            files_used: state.files,
            label: state.label.clone(),
            uuid: state.superblock.uuid,
            generation: state.superblock.generation.get(),
            lsn: self.wal.last(),
            durable_lsn: self.wal.durable(),
            blocks_limit: fixed.then_some(blocks),
            files_limit,
            fill: state.superblock.flags.get() & FLAG_FILLED != 0,
            wal_bytes: self.geometry.wal_len,
            blocks,
            created: state.superblock.created.into(),
        }
    }
}
