//! A container as it was at one moment, to be copied while it is in use.
//!
//! An image is the newest checkpoint: its superblock, the root of the allocation and its bitmaps, kept in memory since
//! the next two checkpoints overwrite them, and the blocks that were in use then, which stay where they are as
//! long as the checkpoint is held. The log is empty in it, what was free reads as zeros.
//!
//! Invariant: an image never does harm to those who write. It holds back the blocks that they give up; before
//! an operation is refused or kept waiting for them, all images are given up.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::{Cask, Snapshot};
use crate::alloc::{Bitmap, SLOT_BLOCKS, slots_of};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::superblock::SUPERBLOCK_COPIES;
use crate::sync::Mutex;

/// What keeps the blocks of an image from being used again; `None` when it was given up.
pub(super) type Pin = Mutex<Option<Arc<Snapshot>>>;

/// The blocks of a group that belong to an image.
struct Group {
    start: u64,
    limit: u64,
    /// The slot of its bitmap that counts, and that bitmap.
    slot: u64,
    bitmap: Bitmap,
}

/// A container as it was.
pub struct Image<D: Device> {
    cask: Arc<Cask<D>>,
    pin: Arc<Pin>,
    /// What stands before the log, from the beginning on.
    head: Vec<u8>,
    groups: Vec<Group>,
    blocks: u64,
}

impl<D: Device> std::fmt::Debug for Image<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image")
            .field("blocks", &self.blocks)
            .finish()
    }
}

impl<D: Device> Cask<D> {
    /// An image that holds every operation done so far.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; those of [`Cask::checkpoint`] and of reading.
    pub fn image(self: &Arc<Self>) -> Result<Image<D>> {
        self.checkpoint()?;
        // No other begins while this is held.
        let _one = self.checkpointing.lock();
        let (snapshot, superblock) = {
            let state = self.state.read();
            (Arc::clone(&state.snapshot), state.superblock)
        };
        let geometry = self.geometry;
        let root_at = geometry.alloc_root_offset(superblock.alloc_slot.get());
        let root_end = root_at + geometry.alloc_root_len();
        let mut head = vec![0; root_end as usize];
        let bytes = superblock.encode();
        // As in a cask that was just made, all copies are of one checkpoint.
        for copy in 0..SUPERBLOCK_COPIES {
            let at = geometry.superblock_offset(copy) as usize;
            if let Some(place) = head.get_mut(at..at + bytes.len()) {
                place.copy_from_slice(&bytes);
            }
        }
        let mut root = vec![0; geometry.alloc_root_len() as usize];
        self.device
            .read_at(root_at, &mut root)
            .map_err(Error::io("reading the allocation root"))?;
        overlay(0, &mut head, root_at, &root);
        let mut slots = slots_of(&root);
        let mut groups = Vec::new();
        let blocks = superblock.blocks.get();
        self.alloc.for_each_group(|start, limit, bitmap| {
            // It may have grown since.
            if start < blocks
                && let Some(slot) = slots.next()
            {
                groups.push(Group {
                    start,
                    limit: limit.min(blocks - start),
                    slot,
                    bitmap: bitmap.clone(),
                });
            }
        });
        let pin = Arc::new(Mutex::new(Some(snapshot)));
        let mut images = self.images.lock();
        images.retain(|pin| pin.strong_count() > 0);
        images.push(Arc::downgrade(&pin));
        drop(images);
        Ok(Image {
            cask: Arc::clone(self),
            pin,
            head,
            groups,
            blocks,
        })
    }

    /// Gives up all images if they hold blocks back; answers whether there were any.
    pub(super) fn give_up_images(&self) -> bool {
        let held_back =
            |given: &super::Lingering| !given.runs.is_empty() && given.needed_by.strong_count() > 0;
        if !self.lingering.lock().iter().any(held_back) {
            return false;
        }
        let pins: Vec<_> = std::mem::take(&mut *self.images.lock());
        let held = pins.iter().filter_map(Weak::upgrade);
        let given = held.filter_map(|pin| pin.lock().take()).count();
        if given > 0 {
            log::warn!(
                "a snapshot was given up, as there was no room for what is written meanwhile"
            );
        }
        given > 0
    }
}

/// An image, whatever device it is on.
pub trait ImageRead: std::fmt::Debug + Send + Sync {
    /// Bytes in all.
    fn bytes(&self) -> u64;
    /// Fills `buf` from `offset` on; what lies beyond the end reads as zeros.
    ///
    /// # Errors
    /// [`Error::Stale`] when the image was given up; those of reading.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// First byte at or after `offset` that is data (or, if not `data`, none), found by block.
    fn seek(&self, offset: u64, data: bool) -> Option<u64>;
}

impl<D: Device> ImageRead for Image<D> {
    fn bytes(&self) -> u64 {
        self.cask.geometry.offset(self.blocks)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let held = self.pin.lock().clone().ok_or(Error::Stale)?;
        buf.fill(0);
        let end = offset.saturating_add(buf.len() as u64);
        overlay(offset, buf, 0, &self.head);
        let size = self.cask.geometry.block();
        for group in self.groups_in(offset / size..end.div_ceil(size)) {
            let bitmap_at = self.cask.geometry.offset(group.start + group.slot);
            if bitmap_at < end && bitmap_at + size > offset {
                overlay(offset, buf, bitmap_at, &group.bitmap.encode());
            }
            let first = (offset / size).max(group.start + SLOT_BLOCKS);
            let last = end.div_ceil(size).min(group.start + group.limit);
            let mut at = first;
            while let Some(run) = group.next_run(at, last) {
                let from = self.cask.geometry.offset(run.start).max(offset);
                let to = self.cask.geometry.offset(run.end).min(end);
                let place = (from - offset) as usize..(to - offset) as usize;
                if let Some(place) = buf.get_mut(place) {
                    self.cask
                        .device
                        .read_at(from, place)
                        .map_err(Error::io("reading a block for a snapshot"))?;
                }
                at = run.end;
            }
        }
        drop(held);
        Ok(())
    }

    fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        let size = self.cask.geometry.block();
        let head = (self.head.len() as u64).div_ceil(size);
        let mut at = offset / size;
        let found = loop {
            if at >= self.blocks {
                break self.blocks;
            }
            let range = self.next_data(at, head);
            match data {
                true => break range.start,
                false if at < range.start => break at,
                false => at = range.end,
            }
        };
        match found >= self.blocks {
            // The end is a hole.
            true => (!data && offset <= self.bytes()).then(|| self.bytes().max(offset)),
            false => Some(self.cask.geometry.offset(found).max(offset)),
        }
    }
}

impl<D: Device> Image<D> {
    /// The next blocks at or after `at` that are data.
    fn next_data(&self, at: u64, head: u64) -> Range<u64> {
        if at < head {
            return at..head;
        }
        for group in self.groups_in(at..self.blocks) {
            let bitmap = group.start + group.slot;
            if at <= bitmap {
                return bitmap..bitmap + 1;
            }
            if let Some(run) =
                group.next_run(at.max(group.start + SLOT_BLOCKS), group.start + group.limit)
            {
                return run;
            }
        }
        self.blocks..self.blocks
    }

    fn groups_in(&self, blocks: Range<u64>) -> impl Iterator<Item = &Group> {
        let overlaps = move |group: &&Group| {
            group.start < blocks.end && group.start + group.limit > blocks.start
        };
        self.groups.iter().filter(overlaps)
    }
}

impl Group {
    /// The next neighbouring blocks in use, from block `at` to before `end`.
    fn next_run(&self, at: u64, end: u64) -> Option<Range<u64>> {
        let used = |block: &u64| self.bitmap.get(block - self.start);
        let start = (at..end).find(used)?;
        let stop = (start..end).find(|block| !used(block)).unwrap_or(end);
        Some(start..stop)
    }
}

/// Puts what of `piece`, which stands at `at`, falls into `buf`, which stands at `offset`.
fn overlay(offset: u64, buf: &mut [u8], at: u64, piece: &[u8]) {
    let from = at.max(offset);
    let to = (at + piece.len() as u64).min(offset + buf.len() as u64);
    if from < to
        && let Some(target) = buf.get_mut((from - offset) as usize..(to - offset) as usize)
        && let Some(source) = piece.get((from - at) as usize..(to - at) as usize)
    {
        target.copy_from_slice(source);
    }
}
