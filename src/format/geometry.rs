//! Where everything stands in a container, computed from four numbers of the superblock.
//!
//! Invariant: all regions are disjoint and inside `blocks * block_size`, whatever the numbers.

use super::superblock::SuperblockRecord;
use crate::error::{Error, Result};

/// Bytes of the allocation root's header: magic u32, groups u32.
pub const ALLOC_ROOT_HEADER: usize = 8;
/// Bytes of one group in the allocation root: CRC-32C u32, free blocks u32, slot u8, zero [u8; 7].
pub const ALLOC_ROOT_ENTRY: usize = 16;

/// The layout of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in a block and in a page: a power of two, 512..=65,536.
    pub block_size: u32,
    /// Bytes between superblock copies.
    pub spacing: u32,
    /// Bytes of the log ring, a multiple of the block size.
    pub wal_len: u64,
}

impl Geometry {
    /// The geometry a superblock describes.
    pub fn of(superblock: &SuperblockRecord) -> Self {
        Self {
            block_size: superblock.block_size.get(),
            spacing: superblock.spacing.get(),
            wal_len: superblock.wal_len.get(),
        }
    }

    /// Bytes in a block, as u64.
    pub fn block(&self) -> u64 {
        u64::from(self.block_size)
    }

    /// Bytes in a block, as usize.
    pub fn block_len(&self) -> usize {
        self.block_size as usize
    }

    /// Byte offset of superblock copy `copy`.
    pub fn superblock_offset(&self, copy: u64) -> u64 {
        copy * u64::from(self.spacing)
    }

    /// Byte offset of allocation-root slot `slot`.
    pub fn alloc_root_offset(&self, slot: u32) -> u64 {
        4 * u64::from(self.spacing) + u64::from(slot) * self.alloc_root_len()
    }

    /// Bytes of one allocation-root slot: six spacings.
    pub fn alloc_root_len(&self) -> u64 {
        6 * u64::from(self.spacing)
    }

    /// Most groups that an allocation root can list.
    pub fn max_groups(&self) -> u64 {
        (self.alloc_root_len() - ALLOC_ROOT_HEADER as u64) / ALLOC_ROOT_ENTRY as u64
    }

    /// Byte offset of the log ring.
    pub fn wal_offset(&self) -> u64 {
        16 * u64::from(self.spacing)
    }

    /// Bytes after which a frame written after a sync starts anew: a whole physical sector, so that
    /// writing it cannot harm a durable frame.
    pub fn wal_unit(&self) -> u64 {
        if self.block_size < 1024 {
            512
        } else {
            4096.min(self.wal_len)
        }
    }

    /// First block of the first allocation group.
    pub fn first_block(&self) -> u64 {
        (self.wal_offset() + self.wal_len).div_ceil(self.block())
    }

    /// Blocks in a whole group: one bitmap block's bits.
    pub fn group_blocks(&self) -> u64 {
        self.block() * 8
    }

    /// Blocks in a chunk, in which a container that grows gets and gives room: a MiB; in the tiny
    /// geometries of tests, 8.
    pub fn chunk_blocks(&self) -> u64 {
        if self.spacing < crate::format::superblock::SPACING {
            8
        } else {
            ((1 << 20) / self.block()).max(1)
        }
    }

    /// Chunks in a whole group.
    pub fn group_chunks(&self) -> u64 {
        self.group_blocks() / self.chunk_blocks()
    }

    /// Groups in a container of `blocks` blocks. A last group too small for its two bitmap slots
    /// and one block of use is left out.
    pub fn groups(&self, blocks: u64) -> u64 {
        let space = blocks.saturating_sub(self.first_block());
        let whole = space / self.group_blocks();
        whole + u64::from(space % self.group_blocks() > 2)
    }

    /// Blocks for use in a container of `blocks` blocks: those in groups, without the bitmap slots.
    pub fn usable(&self, blocks: u64) -> u64 {
        let space = blocks.saturating_sub(self.first_block());
        let (whole, rest) = (space / self.group_blocks(), space % self.group_blocks());
        whole * (self.group_blocks() - 2) + rest.saturating_sub(2)
    }

    /// First block of group `group`: the first of its two bitmap slots.
    pub fn group_start(&self, group: u64) -> u64 {
        self.first_block() + group * self.group_blocks()
    }

    /// The group a block stands in, `None` before the first group.
    pub fn group_of(&self, block: u64) -> Option<u64> {
        block
            .checked_sub(self.first_block())
            .map(|at| at / self.group_blocks())
    }

    /// Byte offset of a block.
    pub fn offset(&self, block: u64) -> u64 {
        block.saturating_mul(self.block())
    }

    /// Smallest number of blocks a container can have: room for a root, a checkpoint and reserves.
    pub fn min_blocks(&self) -> u64 {
        self.first_block() + 2 + 32
    }

    /// Most blocks a container can have.
    pub fn max_blocks(&self) -> u64 {
        self.first_block() + self.max_groups() * self.group_blocks()
    }

    /// Whether a block may hold a page or data: the first two of each group are its bitmaps.
    pub fn is_for_use(&self, block: u64) -> bool {
        self.group_of(block)
            .is_some_and(|group| block >= self.group_start(group) + 2)
    }

    /// Bytes of a page that hold cells and their slots.
    pub fn page_payload(&self) -> usize {
        self.block_len() - super::page::PAGE_HEADER_LEN
    }

    /// Largest value of an item in bytes: a page holds at least one.
    pub fn max_item(&self) -> usize {
        self.page_payload() - super::page::CELL_OVERHEAD
    }

    /// Content of at most this many bytes stands in the tree instead of in a block: a third of a page.
    pub fn inline_max(&self) -> usize {
        self.page_payload() / 3
    }

    /// Most blocks in one extent: its checksums take at most a quarter of a page.
    pub fn extent_max(&self) -> u64 {
        ((self.page_payload() / 4 - 16) / 4).min(256) as u64
    }

    /// Writes of at least this many bytes put their whole blocks straight in place.
    pub fn bypass_min(&self) -> u64 {
        if self.block_size < 1024 {
            2 * self.block()
        } else {
            (16 * self.block()).clamp(65_536, 262_144)
        }
    }

    /// Checks that a container of `blocks` blocks can be laid out so.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the reason.
    pub fn check(&self, blocks: u64) -> Result<()> {
        if blocks < self.min_blocks() {
            return Err(Error::invalid(format!(
                "a cask of {}-byte blocks with a log of {} bytes needs at least {} blocks",
                self.block_size,
                self.wal_len,
                self.min_blocks()
            )));
        }
        if blocks > self.max_blocks() {
            return Err(Error::invalid(format!(
                "a cask of {}-byte blocks has at most {} blocks; use a larger --block-size",
                self.block_size,
                self.max_blocks()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_a_mebibyte_of_blocks_whatever_their_size() {
        for (block_size, blocks) in [(512, 2_048), (4_096, 256), (65_536, 16)] {
            let geometry = Geometry {
                block_size,
                spacing: crate::format::superblock::SPACING,
                wal_len: 1 << 20,
            };
            assert_eq!(geometry.chunk_blocks(), blocks);
            assert_eq!(
                geometry.group_chunks() * blocks,
                u64::from(block_size) * 8,
                "{block_size}"
            );
            let bypass = geometry.bypass_min();
            assert!(bypass >= 2 * geometry.block(), "{block_size}: {bypass}");
            assert!(bypass <= 262_144, "{block_size}: {bypass}");
        }
        let tiny = Geometry {
            block_size: 512,
            spacing: 512,
            wal_len: 1 << 16,
        };
        assert_eq!((tiny.chunk_blocks(), tiny.bypass_min()), (8, 1_024));
    }
}
