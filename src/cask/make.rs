//! Making a container.
//!
//! Invariant: a container that was made is one that was closed in order; the superblocks come last.

use zerocopy::{FromZeros, IntoBytes};

use super::Cask;
use super::checkpoint::padded;
use crate::alloc::Allocator;
use crate::clock::Timestamp;
use crate::device::{Device, write_zeros};
use crate::error::{Error, Result};
use crate::format::checksum::{Digest, Keys, crc};
use crate::format::item::InodeRecord;
use crate::format::key::ROOT;
use crate::format::superblock::{
    FLAG_FILLED, FLAG_FIXED, MAGIC, SPACING, SUPERBLOCK_COPIES, SuperblockRecord, VERSION,
};
use crate::format::{FileKind, Geometry, Key};
use crate::limits::{WAL_DEFAULT, WAL_MAX, WAL_MIN};

/// A container that grows starts with room for this many bytes beside its log.
const FIRST_ROOM: u64 = 8 << 20;

/// How a container is made.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks in all; `None`: the container grows as needed.
    pub blocks: Option<u64>,
    /// Write every block now.
    pub fill: bool,
    /// Most inodes, the root included; `None`: no bound.
    pub files: Option<u64>,
    /// Label, at most 64 bytes.
    pub label: Vec<u8>,
    /// Bytes of the log ring; `None`: an eighth of the cask, at most 64 MiB.
    pub wal_bytes: Option<u64>,
    /// Random identity.
    pub uuid: [u8; 16],
    /// Random secret.
    pub secret: [u8; 32],
    /// Bytes between superblock copies: 65,536; tests go down to 512.
    pub superblock_spacing: u32,
    /// Permissions of the root directory.
    pub root_mode: u32,
    /// Owner of the root directory.
    pub root_uid: u32,
    /// Group of the root directory.
    pub root_gid: u32,
    /// The time now.
    pub now: Timestamp,
}

impl Default for FormatOptions {
    fn default() -> Self {
        Self {
            block_size: crate::limits::BLOCK_SIZE_DEFAULT,
            blocks: None,
            fill: false,
            files: None,
            label: Vec::new(),
            wal_bytes: None,
            uuid: [0; 16],
            secret: [0; 32],
            superblock_spacing: SPACING,
            root_mode: 0o755,
            root_uid: 0,
            root_gid: 0,
            now: Timestamp::default(),
        }
    }
}

impl FormatOptions {
    fn wal_len(&self) -> u64 {
        let block = u64::from(self.block_size);
        let eighth = self
            .blocks
            .map_or(WAL_DEFAULT, |blocks| blocks.saturating_mul(block) / 8);
        let len = self
            .wal_bytes
            .unwrap_or_else(|| eighth.clamp(WAL_MIN, WAL_DEFAULT));
        len / block.max(4096) * block.max(4096)
    }

    fn check(&self) -> Result<(Geometry, u64)> {
        let tiny = self.superblock_spacing < SPACING;
        let least = if tiny {
            512
        } else {
            crate::limits::BLOCK_SIZE_MIN
        };
        if !self.block_size.is_power_of_two()
            || !(least..=crate::limits::BLOCK_SIZE_MAX).contains(&self.block_size)
        {
            return Err(Error::invalid(format!(
                "a block size of {} bytes is not a power of two from 1024 to 65536",
                self.block_size
            )));
        }
        if self.label.len() > crate::limits::LABEL_MAX {
            return Err(Error::invalid(format!(
                "the label has {} bytes; at most {} fit",
                self.label.len(),
                crate::limits::LABEL_MAX
            )));
        }
        if self.fill && self.blocks.is_none() {
            return Err(Error::invalid(
                "--fill needs --blocks: a cask that grows cannot be filled in advance",
            ));
        }
        if self.files == Some(0) {
            return Err(Error::invalid(
                "a cask holds at least one file: its root directory",
            ));
        }
        if !tiny
            && self
                .wal_bytes
                .is_some_and(|len| !(WAL_MIN..=WAL_MAX).contains(&len))
        {
            return Err(Error::invalid(format!(
                "a log has {WAL_MIN} to {WAL_MAX} bytes"
            )));
        }
        let wal_len = if tiny {
            self.wal_bytes.unwrap_or(8 * u64::from(self.block_size))
        } else {
            self.wal_len()
        };
        let geometry = Geometry {
            block_size: self.block_size,
            spacing: self.superblock_spacing,
            wal_len,
        };
        let blocks = self.blocks.unwrap_or_else(|| {
            let room = if tiny { 0 } else { FIRST_ROOM };
            geometry.first_block() + 2 + room.div_ceil(geometry.block()).max(64)
        });
        geometry.check(blocks)?;
        Ok((geometry, blocks))
    }
}

impl<D: Device> Cask<D> {
    /// Makes a container on `device`, which is empty or may be overwritten.
    ///
    /// # Errors
    /// [`Error::Invalid`] for impossible options; I/O errors, `StorageFull` among them.
    pub fn format(device: &D, options: &FormatOptions) -> Result<()> {
        let (geometry, blocks) = options.check()?;
        let len = geometry.offset(blocks);
        device
            .set_len(0)
            .map_err(Error::io("emptying the container"))?;
        device
            .set_len(len)
            .map_err(Error::io("setting the container's length"))?;
        device
            .allocate(0, len)
            .map_err(Error::io("reserving the container's space"))?;
        // The log is written even where the rest is only reserved: no write to it can fail for space
        // or need a new extent.
        let filled = if options.fill {
            0..len
        } else {
            geometry.wal_offset()..geometry.offset(geometry.first_block())
        };
        write_zeros(device, filled).map_err(Error::io("writing zeros"))?;

        let keys = Keys::derive(&options.secret);
        let alloc = Allocator::empty(geometry, blocks);
        let page_run = alloc.allocate(1).ok_or(Error::NoSpace)?;
        let now = options.now.into();
        let root_inode = InodeRecord {
            mode: (FileKind::Directory.mode_bits() | options.root_mode & 0o7777).into(),
            uid: options.root_uid.into(),
            gid: options.root_gid.into(),
            nlink: 2.into(),
            size: 0.into(),
            content: ROOT.into(),
            parent: ROOT.into(),
            name_hash: 0.into(),
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            rdev: 0.into(),
            flags: 0.into(),
            since: 0.into(),
        };
        let cells = [(Key::inode(ROOT), root_inode.as_bytes())];
        let page = crate::format::page::Page::build(
            geometry.block_len(),
            0,
            page_run.start,
            1,
            cells.into_iter(),
        )?;
        device
            .write_at(geometry.offset(page_run.start), page.bytes())
            .map_err(Error::io("writing the root page"))?;
        let plan = alloc.plan(vec![page_run], Vec::new(), 1, &keys)?;
        alloc.write(device, &plan)?;

        let mut superblock = SuperblockRecord::new_zeroed();
        superblock.magic = MAGIC;
        superblock.version = VERSION.into();
        superblock.uuid = options.uuid;
        superblock.secret = options.secret;
        superblock.label = padded(&options.label);
        superblock.block_size = geometry.block_size.into();
        superblock.spacing = geometry.spacing.into();
        let fixed = if options.blocks.is_some() {
            FLAG_FIXED
        } else {
            0
        };
        superblock.flags = (fixed | if options.fill { FLAG_FILLED } else { 0 }).into();
        superblock.height = 1.into();
        superblock.blocks = blocks.into();
        superblock.files_limit = options.files.unwrap_or(0).into();
        superblock.wal_len = geometry.wal_len.into();
        superblock.generation = 1.into();
        superblock.wal_lsn = 1.into();
        superblock.wal_digest = keys.seed(1, &Digest::default());
        superblock.root_block = page_run.start.into();
        superblock.root_crc = crc(page.bytes()).into();
        superblock.pages = 1.into();
        superblock.alloc_slot = 1.into();
        superblock.alloc_digest = plan.root_digest;
        superblock.next_number = (ROOT + 1).into();
        superblock.files = 1.into();
        superblock.created = now;
        device
            .sync()
            .map_err(Error::io("syncing the new container"))?;
        // Both pairs of copies hold generation 1, so that one damaged pair does not matter.
        for copy in 0..SUPERBLOCK_COPIES {
            device
                .write_at(geometry.superblock_offset(copy), &superblock.encode())
                .map_err(Error::io("writing a superblock"))?;
        }
        device
            .sync()
            .map_err(Error::io("syncing the new container"))
    }
}
