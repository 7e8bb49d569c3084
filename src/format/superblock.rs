//! The superblock: what a container is, how it is laid out, and where its newest checkpoint stands.
//!
//! Four copies stand at 0, 1, 2 and 3 times the spacing. Generation g is written to copies 2(g&1)
//! and 2(g&1)+1, so the other pair keeps generation g-1 whole while g is being written.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{DIGEST_LEN, Digest};
use super::item::TimeRecord;
use crate::limits::{BLOCK_SIZE_MAX, LABEL_MAX};

/// First bytes of every copy; the line ends show a transfer in text mode.
pub const MAGIC: [u8; 12] = *b"CASKFS\r\n\x1a\n\0\0";
/// Version of the format that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// Bytes of one copy on disk.
pub const SUPERBLOCK_LEN: usize = 512;
/// Number of copies.
pub const SUPERBLOCK_COPIES: u64 = 4;
/// Default distance between copies in bytes.
pub const SPACING: u32 = 65_536;

/// No inode and no content has a number as high as this.
pub const NUMBER_MAX: u64 = 1 << 62;

/// The number of blocks never changes.
pub const FLAG_FIXED: u32 = 1;
/// All blocks were written at mkfs.
pub const FLAG_FILLED: u32 = 2;
/// Free blocks and the retired log may hold what is to be wiped.
pub const FLAG_STALE: u32 = 4;

/// A superblock as it is stored.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct SuperblockRecord {
    /// `MAGIC`.
    pub magic: [u8; 12],
    /// `VERSION`.
    pub version: U32,
    /// Features an older program may ignore.
    pub compat: U64,
    /// Features that an older program may only read beside.
    pub ro_compat: U64,
    /// Features that an older program must refuse.
    pub incompat: U64,
    /// Random identity.
    pub uuid: [u8; 16],
    /// Random secret from which the keys are derived.
    pub secret: [u8; 32],
    /// Label, padded with NULs.
    pub label: [u8; LABEL_MAX],
    /// Bytes in a block and in a page.
    pub block_size: U32,
    /// Bytes between superblock copies.
    pub spacing: U32,
    /// `FLAG_` bits.
    pub flags: U32,
    /// Height of the tree: 0 = empty, 1 = a leaf.
    pub height: U32,
    /// Blocks in the layout.
    pub blocks: U64,
    /// Most inodes, 0 = no bound.
    pub files_limit: U64,
    /// Bytes of the log ring.
    pub wal_len: U64,
    /// Number of this checkpoint.
    pub generation: U64,
    /// Log position (not reduced modulo the ring) of the first frame after this checkpoint.
    pub wal_position: U64,
    /// Number of the first record after this checkpoint.
    pub wal_lsn: U64,
    /// What that frame is chained to.
    pub wal_digest: [u8; DIGEST_LEN],
    /// Block of the root page.
    pub root_block: U64,
    /// Pages in the tree.
    pub pages: U64,
    /// CRC-32C of the root page.
    pub root_crc: U32,
    /// Slot of the allocation root, 0 or 1.
    pub alloc_slot: U32,
    /// Digest of the allocation root.
    pub alloc_digest: [u8; DIGEST_LEN],
    /// The next inode or content number.
    pub next_number: U64,
    /// Inodes in use, the root included.
    pub files: U64,
    /// When the container was made.
    pub created: TimeRecord,
    /// Files and directories on which `wipe` is set to 1.
    pub wipes: U32,
    /// Keyed BLAKE3 of all before, under the secret.
    pub digest: [u8; 32],
}

/// Why a copy is not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// No magic: not a superblock.
    Foreign,
    /// Made by a newer program: its version.
    Newer(u32),
    /// Features this program does not know: the mask.
    Features(u64),
    /// The magic is there but the digest does not verify or a value is out of range.
    Damaged,
}

impl SuperblockRecord {
    const COVERED: usize = size_of::<Self>() - 32;

    fn seal(&self) -> [u8; 32] {
        let bytes = self.as_bytes();
        let covered = bytes.get(..Self::COVERED).unwrap_or(bytes);
        *blake3::keyed_hash(&self.secret, covered).as_bytes()
    }

    /// One copy, ready to be written.
    pub fn encode(mut self) -> [u8; SUPERBLOCK_LEN] {
        self.digest = self.seal();
        let mut out = [0; SUPERBLOCK_LEN];
        if let Some(head) = out.get_mut(..size_of::<Self>()) {
            head.copy_from_slice(self.as_bytes());
        }
        out
    }

    /// Decodes and verifies one copy.
    ///
    /// # Errors
    /// Why the copy cannot be used.
    pub fn decode(bytes: &[u8]) -> Result<Self, Rejected> {
        let (record, _) = Self::read_from_prefix(bytes).map_err(|_| Rejected::Foreign)?;
        if record.magic != MAGIC {
            return Err(Rejected::Foreign);
        }
        if record.version.get() > VERSION {
            return Err(Rejected::Newer(record.version.get()));
        }
        if record.digest != record.seal() || !record.plausible() {
            return Err(Rejected::Damaged);
        }
        if record.incompat.get() != 0 {
            return Err(Rejected::Features(record.incompat.get()));
        }
        Ok(record)
    }

    fn plausible(&self) -> bool {
        let block = self.block_size.get();
        let spacing = self.spacing.get();
        block.is_power_of_two()
            && (512..=BLOCK_SIZE_MAX).contains(&block)
            && spacing.is_power_of_two()
            && (512..=(1 << 20)).contains(&spacing)
            && self.blocks.get() < (1 << 48)
            && self.wal_len.get() < (1 << 40)
            && self.wal_len.get() >= u64::from(block)
            && self.wal_position.get() < (1 << 62)
            && (1..1 << 62).contains(&self.wal_lsn.get())
            && self.next_number.get() >= 2
            && self.next_number.get() < NUMBER_MAX
            && self.height.get() <= 32
            && self.alloc_slot.get() <= 1
            && self.generation.get() < (1 << 62)
    }

    /// The label without its padding.
    pub fn label(&self) -> &[u8] {
        let len = self
            .label
            .iter()
            .rposition(|&b| b != 0)
            .map_or(0, |at| at + 1);
        self.label.get(..len).unwrap_or_default()
    }

    /// The chain digest as the log's type.
    pub fn chain(&self) -> Digest {
        self.wal_digest
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    #[test]
    fn a_label_ends_before_its_padding() {
        let mut superblock = SuperblockRecord::new_zeroed();
        assert_eq!(superblock.label(), b"");
        for label in [&b"x"[..], b"a\0b", &[b'l'; LABEL_MAX]] {
            superblock.label.fill(0);
            superblock.label[..label.len()].copy_from_slice(label);
            assert_eq!(superblock.label(), label);
        }
    }

    fn sound() -> SuperblockRecord {
        let mut superblock = SuperblockRecord::new_zeroed();
        superblock.magic = MAGIC;
        superblock.version = VERSION.into();
        superblock.block_size = 4096.into();
        superblock.spacing = SPACING.into();
        superblock.blocks = 10_000.into();
        superblock.wal_len = (1 << 20).into();
        superblock.wal_lsn = 1.into();
        superblock.next_number = 2.into();
        superblock
    }

    #[test]
    fn each_number_out_of_its_range_is_damage() {
        SuperblockRecord::decode(&sound().encode()).unwrap();
        let spoils: [fn(&mut SuperblockRecord); 17] = [
            |s| s.block_size = 256.into(),
            |s| s.block_size = 4095.into(),
            |s| s.block_size = (2 * BLOCK_SIZE_MAX).into(),
            |s| s.spacing = 256.into(),
            |s| s.spacing = 4095.into(),
            |s| s.spacing = (1 << 21).into(),
            |s| s.blocks = (1 << 48).into(),
            |s| s.wal_len = (1 << 40).into(),
            |s| s.wal_len = 4095.into(),
            |s| s.wal_position = (1 << 62).into(),
            |s| s.wal_lsn = 0.into(),
            |s| s.wal_lsn = (1 << 62).into(),
            |s| s.next_number = 1.into(),
            |s| s.next_number = NUMBER_MAX.into(),
            |s| s.height = 33.into(),
            |s| s.alloc_slot = 2.into(),
            |s| s.generation = (1 << 62).into(),
        ];
        for (index, spoil) in spoils.iter().enumerate() {
            let mut superblock = sound();
            spoil(&mut superblock);
            let decoded = SuperblockRecord::decode(&superblock.encode());
            assert!(matches!(decoded, Err(Rejected::Damaged)), "{index}");
        }
    }
}
