//! What a file means: settings, modes, the rename rule. The whole interface of a mounted cask, in
//! the project's own types.
#![allow(unused_variables)] // STUB: only the signatures are meant; bodies follow.

pub mod settings;

use std::sync::Arc;

use crate::cask::Cask;
use crate::clock::Clock;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;
use crate::fs::{Attr, Caller, DirEntry, OpenFlags, RenameFlags, SetAttr, StatFs};

/// A name found, and how long the kernel may believe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Attributes of the inode.
    pub attr: Attr,
    /// Whether name and attributes may be cached; never for files of a log store.
    pub cacheable: bool,
}

/// An open file, and how the kernel shall treat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The handle.
    pub fh: u64,
    /// The page cache is bypassed (`FOPEN_DIRECT_IO`).
    pub direct_io: bool,
    /// Cached pages of an earlier open stay valid (`FOPEN_KEEP_CACHE`).
    pub keep_cache: bool,
    /// Closing owes nothing, so no flush need be sent (`FOPEN_NOFLUSH`).
    pub no_flush: bool,
}

/// Something the kernel must be told; delivered by a thread of its own, never with a lock held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Cached attributes and pages of the inode are out of date.
    InvalidateInode(Number),
    /// A cached name is out of date.
    InvalidateEntry(Number, Vec<u8>),
    /// The live log of this name got a record through a handle bound to its name: wake watchers.
    Touched(Number, Vec<u8>),
}

/// Takes notices; must not block.
pub type NoticeSink = Box<dyn Fn(Notice) + Send + Sync>;

/// A mounted cask.
pub struct Store<D: Device> {
    cask: Arc<Cask<D>>,
    clock: Arc<dyn Clock>,
}

impl<D: Device> Store<D> {
    /// A store over an open cask.
    pub fn new(cask: Arc<Cask<D>>, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self { cask, clock })
    }
    /// Where notices go.
    pub fn set_notice_sink(&self, sink: NoticeSink) {}
    /// The cask below.
    pub fn cask(&self) -> &Arc<Cask<D>> {
        &self.cask
    }
    pub fn lookup(&self, caller: &Caller, dir: Number, name: &[u8]) -> Result<Entry> {
        Err(Error::NotSupported("stub"))
    }
    pub fn getattr(&self, ino: Number, fh: Option<u64>) -> Result<Entry> {
        Err(Error::NotSupported("stub"))
    }
    pub fn setattr(
        &self,
        caller: &Caller,
        ino: Number,
        fh: Option<u64>,
        set: &SetAttr,
    ) -> Result<Entry> {
        Err(Error::NotSupported("stub"))
    }
    pub fn readlink(&self, ino: Number) -> Result<Vec<u8>> {
        Err(Error::NotSupported("stub"))
    }
    /// `mode` holds permission bits only, umask applied.
    pub fn mknod(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        kind: FileKind,
        perm: u32,
        rdev: u64,
    ) -> Result<Entry> {
        Err(Error::NotSupported("stub"))
    }
    pub fn mkdir(&self, caller: &Caller, dir: Number, name: &[u8], perm: u32) -> Result<Entry> {
        Err(Error::NotSupported("stub"))
    }
    pub fn symlink(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        target: &[u8],
    ) -> Result<Entry> {
        Err(Error::NotSupported("stub"))
    }
    pub fn link(&self, caller: &Caller, ino: Number, dir: Number, name: &[u8]) -> Result<Entry> {
        Err(Error::NotSupported("stub"))
    }
    pub fn unlink(&self, caller: &Caller, dir: Number, name: &[u8]) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    pub fn rmdir(&self, caller: &Caller, dir: Number, name: &[u8]) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    pub fn rename(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        new_dir: Number,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    pub fn open(&self, caller: &Caller, ino: Number, flags: OpenFlags) -> Result<Opened> {
        Err(Error::NotSupported("stub"))
    }
    pub fn create(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        perm: u32,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened)> {
        Err(Error::NotSupported("stub"))
    }
    /// Reads into `buf` (cleared first); fewer bytes than `size` only at the end of the file.
    pub fn read(
        &self,
        ino: Number,
        fh: u64,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    /// Answers the number of bytes taken, which is all of them.
    pub fn write(
        &self,
        caller: &Caller,
        ino: Number,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<usize> {
        Err(Error::NotSupported("stub"))
    }
    /// A descriptor of the handle was closed (once per dup).
    pub fn flush(&self, caller: &Caller, ino: Number, fh: u64) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    /// The last descriptor is gone.
    pub fn release(&self, ino: Number, fh: u64) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    pub fn fsync(&self, ino: Number, fh: u64, data_only: bool) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    /// Visits entries after `cookie` (0 = from the start) until `visit` answers false (buffer full;
    /// that entry will be asked for again). With `attrs` each entry carries its attributes.
    pub fn readdir(
        &self,
        ino: Number,
        cookie: u64,
        attrs: bool,
        visit: &mut dyn FnMut(&DirEntry, Option<&Entry>) -> bool,
    ) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    pub fn statfs(&self) -> Result<StatFs> {
        Err(Error::NotSupported("stub"))
    }
    /// `create_only` = XATTR_CREATE, `replace_only` = XATTR_REPLACE.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Number,
        name: &[u8],
        value: &[u8],
        create_only: bool,
        replace_only: bool,
    ) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    pub fn getxattr(&self, ino: Number, name: &[u8]) -> Result<Vec<u8>> {
        Err(Error::NoAttribute)
    }
    pub fn listxattr(&self, ino: Number) -> Result<Vec<Vec<u8>>> {
        Ok(vec![])
    }
    pub fn removexattr(&self, caller: &Caller, ino: Number, name: &[u8]) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    /// `mode` as in fallocate(2).
    pub fn fallocate(&self, ino: Number, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        Err(Error::NotSupported("stub"))
    }
    /// `SEEK_DATA` when `data`, else `SEEK_HOLE`.
    pub fn lseek(&self, ino: Number, fh: u64, offset: u64, data: bool) -> Result<u64> {
        Err(Error::NotSupported("stub"))
    }
    /// Commit timer, checkpoints, expiry; called by the owner's thread about ten times a second.
    pub fn tick(&self) -> Result<()> {
        Ok(())
    }
    /// Ends service: everything committed, last checkpoint written.
    pub fn close(&self) -> Result<()> {
        self.cask.close()
    }
}
