//! Inodes: loading, saving, and what `stat(2)` tells of them.

use std::ops::Range;

use zerocopy::IntoBytes;

use super::types::{Attr, Caller};
use crate::cask::{Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::{FLAG_SPARSE, InodeRecord, MODE_KIND, MODE_PERM};
use crate::format::key::Number;
use crate::format::{FileKind, Key};

/// Set-user-ID and set-group-ID bits.
pub const SET_ID: u32 = 0o6000;
/// The set-group-ID bit.
pub const SET_GID: u32 = 0o2000;
/// The sticky bit.
pub const STICKY: u32 = 0o1000;

/// An inode in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub number: Number,
    /// File type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub nlink: u32,
    /// Bytes; entries for a directory.
    pub size: u64,
    /// Number of the content.
    pub content: Number,
    /// Directory of the name given last; 0 when that name is gone.
    pub parent: Number,
    /// Hash of that name.
    pub name_hash: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// Device number of a device node.
    pub rdev: u64,
    /// The directory that a segment was cut in; 0 for what is none.
    pub home: Number,
    /// `FLAG_` bits.
    pub flags: u32,
    /// The part of an order of arrival that was the last when the log was truncated; 0 for never.
    pub since: u32,
}

impl Inode {
    /// The kind of file.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == FileKind::Regular
    }

    /// Permission bits.
    pub fn perm(&self) -> u32 {
        self.mode & MODE_PERM
    }

    /// Sets the permission bits.
    pub fn set_perm(&mut self, perm: u32) {
        self.mode = self.mode & MODE_KIND | perm & MODE_PERM;
    }

    /// What a write by somebody else than root takes away: set-user-ID, and set-group-ID of an
    /// executable.
    pub fn drop_set_id(&mut self, caller: &Caller) {
        if caller.uid != 0 {
            self.clear_set_id();
        }
    }

    /// What a change of owner takes away, whoever asks: the same bits.
    pub fn clear_set_id(&mut self) {
        if self.is_file() {
            let group = if self.mode & 0o010 != 0 { SET_GID } else { 0 };
            self.mode &= !(0o4000 | group);
        }
    }

    /// The inode that a record says.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn decode(number: Number, bytes: &[u8]) -> Result<Self> {
        let record = InodeRecord::decode(bytes)?;
        let (home, rdev) = match record.kind() {
            FileKind::Regular => (record.rdev.get(), 0),
            _ => (0, record.rdev.get()),
        };
        Ok(Self {
            number,
            mode: record.mode.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            nlink: record.nlink.get(),
            size: record.size.get(),
            content: record.content.get(),
            parent: record.parent.get(),
            name_hash: record.name_hash.get(),
            atime: record.atime.into(),
            mtime: record.mtime.into(),
            ctime: record.ctime.into(),
            btime: record.btime.into(),
            rdev,
            home,
            flags: record.flags.get(),
            since: record.since.get(),
        })
    }

    fn record(&self) -> InodeRecord {
        InodeRecord {
            mode: self.mode.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            nlink: self.nlink.into(),
            size: self.size.into(),
            content: self.content.into(),
            parent: self.parent.into(),
            name_hash: self.name_hash.into(),
            atime: self.atime.into(),
            mtime: self.mtime.into(),
            ctime: self.ctime.into(),
            btime: self.btime.into(),
            rdev: if self.is_file() { self.home } else { self.rdev }.into(),
            flags: self.flags.into(),
            since: self.since.into(),
        }
    }
}

/// The inode with this number.
///
/// # Errors
/// [`Error::Stale`] when there is none.
pub fn load(r: &impl Read, number: Number) -> Result<Inode> {
    let value = r.get(&Key::inode(number))?.ok_or(Error::Stale)?;
    Inode::decode(number, &value)
}

/// The inode with this number, which must be a directory.
///
/// # Errors
/// [`Error::NotDirectory`]; as [`load`].
pub fn load_dir(r: &impl Read, number: Number) -> Result<Inode> {
    let inode = load(r, number)?;
    if inode.is_dir() {
        Ok(inode)
    } else {
        Err(Error::NotDirectory)
    }
}

/// Writes the inode.
///
/// # Errors
/// None that the size of the record can cause.
pub fn save<D: Device>(tx: &mut Tx<'_, D>, inode: &Inode) -> Result<()> {
    tx.put(Key::inode(inode.number), inode.record().as_bytes())
}

/// A new inode without a name, not yet saved.
///
/// # Errors
/// [`Error::NoFiles`] when the cask holds as many as it was made for.
pub fn new_inode<D: Device>(
    tx: &mut Tx<'_, D>,
    kind: FileKind,
    perm: u32,
    uid: u32,
    gid: u32,
    rdev: u64,
    now: Timestamp,
) -> Result<Inode> {
    tx.add_file()?;
    let number = tx.new_number();
    let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    Ok(Inode {
        number,
        mode: kind.mode_bits() | perm & MODE_PERM,
        uid,
        gid,
        nlink: 0,
        size: 0,
        content: number,
        parent: 0,
        name_hash: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        rdev: if device { rdev } else { 0 },
        home: 0,
        flags: 0,
        since: 0,
    })
}

/// What `stat(2)` tells of the inode.
///
/// # Errors
/// Those of reading.
pub fn attr(r: &impl Read, inode: &Inode) -> Result<Attr> {
    let blocks = match inode.kind() {
        FileKind::Regular if inode.flags & FLAG_SPARSE != 0 => {
            data_blocks(r, inode.content, 0..inode.size)?
        }
        FileKind::Regular | FileKind::Symlink => inode.size.div_ceil(u64::from(r.block_size())),
        _ => 0,
    };
    Ok(Attr {
        ino: inode.number,
        kind: inode.kind(),
        perm: inode.perm(),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        size: inode.size,
        blocks: blocks * u64::from(r.block_size()).div_ceil(512),
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        btime: inode.btime,
    })
}

/// Blocks that hold data, of those that a range of bytes touches.
pub(super) fn data_blocks(r: &impl Read, content: Number, range: Range<u64>) -> Result<u64> {
    let size = u64::from(r.block_size());
    let (mut at, mut blocks) = (range.start, 0);
    while at < range.end
        && let Some(data) = r.next_data(content, at)?.filter(|data| *data < range.end)
    {
        let end = r.next_hole(content, data)?.clamp(data + 1, range.end);
        blocks += end.div_ceil(size) - data / size;
        at = end;
    }
    Ok(blocks)
}
