//! Looking at a checkpoint as a whole: for checking, copying and counting.
//!
//! A pinned checkpoint stays as it is, beside running operations, for as long as the pin is held:
//! none of its blocks is used again.

use std::ops::Range;
use std::sync::Arc;

use super::{Cask, Snapshot};
use crate::alloc::Bitmap;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::checksum::crc;
use crate::format::key::Number;
use crate::format::page::PagePtr;
use crate::format::{Geometry, Key};
use crate::tree::Node;

/// The committed bits of one allocation group.
#[derive(Debug)]
pub struct GroupBits {
    /// First block of the group.
    pub start: u64,
    /// Blocks of the group inside the layout.
    pub limit: u64,
    /// Set where the checkpoint holds the block.
    pub bits: Bitmap,
}

/// A checkpoint that cannot change.
pub struct Pinned<'c, D: Device> {
    cask: &'c Cask<D>,
    snapshot: Arc<Snapshot>,
    /// What the checkpoint says is allocated.
    pub groups: Vec<GroupBits>,
    /// Inodes in use, by its superblock.
    pub files: u64,
    /// The next number to give out, by its superblock.
    pub next_number: Number,
    /// Pages in the tree, by its superblock.
    pub pages: u64,
}

impl<D: Device> Cask<D> {
    /// Pins the newest durable checkpoint.
    pub fn pin(&self) -> Pinned<'_, D> {
        let _one = self.checkpointing.lock();
        let state = self.state.read();
        let mut groups = Vec::new();
        self.alloc.for_each_group(|start, limit, bits| {
            groups.push(GroupBits {
                start,
                limit,
                bits: bits.clone(),
            });
        });
        Pinned {
            cask: self,
            snapshot: Arc::clone(&state.snapshot),
            groups,
            files: state.superblock.files.get(),
            next_number: state.superblock.next_number.get(),
            pages: state.snapshot.root.pages,
        }
    }

    /// Whether operations after the newest checkpoint took a block of a content away.
    pub fn is_hidden(&self, content: Number, block: u64) -> bool {
        let state = self.state.read();
        let layers = [Some(&state.active), state.frozen.as_deref()];
        layers
            .into_iter()
            .flatten()
            .filter_map(|layer| layer.contents.get(&content))
            .any(|layer| layer.hides(block))
    }

    /// Inodes in use, and the next number to give out.
    pub fn counters(&self) -> (u64, Number) {
        let state = self.state.read();
        (state.files, state.next_number)
    }

    /// Whether anything happened after the newest checkpoint.
    pub fn is_settled(&self) -> bool {
        let state = self.state.read();
        state.active.is_empty() && state.frozen.is_none()
    }
}

impl<D: Device> Pinned<'_, D> {
    /// The layout.
    pub fn geometry(&self) -> Geometry {
        self.cask.geometry
    }

    /// The root page with its level; `None` when the tree is empty.
    pub fn root(&self) -> Option<(PagePtr, u8)> {
        let level = self.snapshot.root.height.checked_sub(1)?;
        Some((self.snapshot.root.page?, u8::try_from(level).ok()?))
    }

    /// A page of the tree, verified.
    ///
    /// # Errors
    /// [`Error::Corrupt`]; I/O errors.
    pub fn page(&self, ptr: PagePtr, level: u8) -> Result<Arc<Node>> {
        self.cask.tree.page(ptr, level)
    }

    /// Visits the items of the checkpoint in order until `visit` answers false.
    ///
    /// # Errors
    /// As [`Pinned::page`], and what `visit` answers.
    pub fn scan(
        &self,
        from: Key,
        to: Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut cursor = self.cask.tree.range(&self.snapshot.root, from, to);
        while let Some((key, value)) = cursor.next()? {
            if !visit(key, value)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads data blocks and compares their checksums; answers the blocks that do not verify.
    ///
    /// # Errors
    /// I/O errors.
    pub fn verify(
        &self,
        blocks: Range<u64>,
        crcs: &mut dyn Iterator<Item = u32>,
    ) -> Result<Vec<u64>> {
        let geometry = self.cask.geometry;
        let count = blocks.end.saturating_sub(blocks.start);
        let mut bytes = vec![0; geometry.block_len().saturating_mul(count as usize)];
        self.cask
            .device
            .read_at(geometry.offset(blocks.start), &mut bytes)
            .map_err(Error::io("reading data"))?;
        let sums = bytes.chunks_exact(geometry.block_len()).map(crc);
        Ok(sums
            .zip(crcs)
            .zip(blocks)
            .filter_map(|((found, wanted), block)| (found != wanted).then_some(block))
            .collect())
    }
}
