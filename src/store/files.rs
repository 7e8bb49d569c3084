//! Open files: from a call of the kernel to the rules of the file's mode.
//!
//! What a handle's writes mean is decided when it is opened and stays so until it is closed, whatever
//! the settings become meanwhile.

use std::sync::Arc;

use super::handle::{Handle, Kind};
use super::settings::Mode;
use super::{Behind, Entry, NOBODY, Opened, Store, not_behind, not_the_door};
use crate::cask::ImageRead;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;
use crate::fs::{Attr, Caller, OpenFlags, SetAttr, data};

impl<D: Device> Store<D> {
    /// Attributes of an inode; with the handle of a value's writer, of what it is writing.
    ///
    /// # Errors
    /// [`Error::Stale`] when the inode is gone.
    pub fn getattr(&self, ino: Number, fh: Option<u64>) -> Result<Entry> {
        if let Some(behind) = Behind::of(ino) {
            return self.entry_behind(behind);
        }
        let inode = match self.fs.inode(ino) {
            Err(Error::Stale) => return self.ghost(ino),
            found => found?,
        };
        let mut entry = self.entry(&inode)?;
        if let Some(handle) = fh.and_then(|fh| self.handles.get(fh).ok())
            && let Kind::Value(draft) = &handle.kind
            && let Some(size) = draft.size()
        {
            entry.attr.size = size;
            entry.attr.blocks = size.div_ceil(512);
        }
        Ok(entry)
    }

    /// `chmod`, `chown`, `utimensat` and `truncate`; answers the attributes as they are then.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] where the mode forbids to truncate; those of writing.
    pub fn setattr(
        &self,
        caller: &Caller,
        ino: Number,
        fh: Option<u64>,
        set: &SetAttr,
    ) -> Result<Entry> {
        not_behind(ino)?;
        let mut rest = *set;
        if let Some(size) = set.size
            && self.truncate(caller, ino, fh, size)?
        {
            rest.size = None;
        }
        if rest != SetAttr::default() {
            let (inode, lsn) = self.fs.setattr(caller, ino, &rest)?;
            self.was_dated(&inode, &rest)?;
            self.confirm(&*self.walk.of(&*self.cask, &inode)?, lsn, false)?;
        }
        self.getattr(ino, fh)
    }

    /// Opens an existing file. The name that a log's writer is bound to is the one given last.
    ///
    /// # Errors
    /// [`Error::Stale`] when the file is gone, or was renamed a moment ago and the path must be
    /// looked up once more; those of writing for `O_TRUNC`.
    pub fn open(&self, caller: &Caller, ino: Number, flags: OpenFlags) -> Result<Opened> {
        if let Some(behind) = Behind::of(ino) {
            return self.open_behind(behind, flags);
        }
        let inode = self.fs.inode(ino)?;
        let settings = match inode.is_file() {
            true => self.walk.of(&*self.cask, &inode)?,
            false => Arc::default(),
        };
        // It was still there when the kernel found it.
        if self.is_over(&inode, &settings, self.now()) {
            return Err(Error::Stale);
        }
        match settings.mode {
            Mode::Log if flags.write => self.open_log(caller, ino, flags),
            Mode::Value if flags.write || !flags.truncate => self.open_value(ino, flags),
            mode => {
                self.fs.open(ino)?;
                let opened = self.opened(ino, flags, Kind::Plain, mode);
                if flags.truncate && inode.is_file() {
                    let set = SetAttr {
                        size: Some(0),
                        ..SetAttr::default()
                    };
                    if let Err(error) = self.setattr(caller, ino, None, &set) {
                        self.release(ino, opened.fh)?;
                        return Err(error);
                    }
                }
                Ok(opened)
            }
        }
    }

    /// Makes a regular file and opens it; opens it if it is there and `O_EXCL` was not asked for.
    /// The thread that renamed a log takes over the live log that is back under the name.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Stale`] when the file is there after all and only the kernel can
    /// say whether the caller may open it; as [`Store::mknod`].
    pub fn create(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        perm: u32,
        flags: OpenFlags,
    ) -> Result<(Entry, Opened)> {
        not_the_door(dir, name)?;
        let (inode, opened) = self.make_and_open(caller, dir, name, perm, flags)?;
        Ok((self.entry(&inode)?, opened))
    }

    /// Reads into `buf` (cleared first); fewer bytes than `size` only at the end of the file.
    ///
    /// # Errors
    /// [`Error::BadHandle`]; those of reading.
    pub fn read(
        &self,
        _ino: Number,
        fh: u64,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        buf.clear();
        let handle = self.handles.get(fh)?;
        handle.for_reading()?;
        match &handle.kind {
            Kind::Plain => self.read_file(handle.ino, offset, size, buf),
            Kind::Log(log) => self.read_log(&handle, log, offset, size, buf),
            Kind::Value(draft) => self.read_value(&handle, draft, offset, size, buf),
            Kind::Rotate(_) => Ok(()),
            Kind::Events => self.read_events(offset, size, buf),
            Kind::Cat(cat) => self.read_cat(cat, offset, size, buf),
            Kind::Snapshot(image) => read_image(&**image, offset, size, buf),
        }
    }

    /// Answers the number of bytes taken, which is all of them.
    ///
    /// # Errors
    /// [`Error::BadHandle`]; [`Error::NoSpace`]; [`Error::FileTooLarge`]; [`Error::NotPermitted`]
    /// for a write backwards into a log; those of writing.
    pub fn write(
        &self,
        caller: &Caller,
        _ino: Number,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<usize> {
        let handle = self.handles.get(fh)?;
        handle.for_writing()?;
        match &handle.kind {
            Kind::Plain => {
                let offset = (!handle.flags.append).then_some(offset);
                let (inode, lsn, len) =
                    self.fs.write_or_replace(caller, handle.ino, offset, data)?;
                self.confirm(&*self.walk.of(&*self.cask, &inode)?, lsn, handle.flags.sync)?;
                return Ok(len);
            }
            Kind::Log(log) => self.write_log(caller, &handle, log, offset, data)?,
            Kind::Value(draft) => self.write_value(caller, &handle, draft, offset, data)?,
            Kind::Rotate(dir) => self.rotate_all(caller, *dir, data)?,
            Kind::Events | Kind::Cat(_) | Kind::Snapshot(_) => not_behind(handle.ino)?,
        }
        Ok(data.len())
    }

    /// A descriptor of the handle was closed (once per dup): a value that was written is saved,
    /// unless the caller is being killed.
    ///
    /// # Errors
    /// [`Error::BadHandle`]; those of writing.
    pub fn flush(&self, caller: &Caller, _ino: Number, fh: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        match &handle.kind {
            Kind::Value(draft) if draft.is_dirty() && !self.fate.is_killed(caller.tid) => {
                self.save_value(&handle, draft).map(drop)
            }
            Kind::Log(log) => self.push(caller, &handle, log),
            _ => Ok(()),
        }
    }

    /// The last descriptor is gone.
    ///
    /// # Errors
    /// [`Error::BadHandle`]; those of removing what had no name any more.
    pub fn release(&self, _ino: Number, fh: u64) -> Result<()> {
        let handle = self.handles.remove(fh)?;
        match &handle.kind {
            Kind::Plain => self.let_go(handle.ino),
            Kind::Log(log) => self.release_log(&handle, log),
            Kind::Value(draft) => self.discard(draft).and(self.let_go(handle.ino)),
            Kind::Rotate(_) | Kind::Events | Kind::Snapshot(_) => Ok(()),
            Kind::Cat(cat) => self.close_cat(cat),
        }
    }

    /// Everything written so far is durable when this returns; a value is saved first. Where wiping is
    /// in force for the file, what was given up so far is wiped.
    ///
    /// # Errors
    /// Those of writing.
    pub fn fsync(&self, ino: Number, fh: u64, _data_only: bool) -> Result<()> {
        if let Ok(handle) = self.handles.get(fh) {
            match &handle.kind {
                Kind::Value(draft) => drop(self.save_value(&handle, draft)?),
                Kind::Log(log) => self.push(&NOBODY, &handle, log)?,
                _ => {}
            }
        }
        if self.cask.read_only().is_some() {
            return Ok(());
        }
        self.cask.sync(self.cask.lsn())?;
        match Behind::of(ino) {
            None if self.cask.is_wiping() => match self.fs.inode(ino) {
                Ok(inode) if self.walk.of(&*self.cask, &inode)?.wipe => self.cask.wipe_now(),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Everything done so far is durable when this returns, and what was given up is wiped where
    /// wiping is in force.
    ///
    /// # Errors
    /// Those of writing.
    pub fn sync_all(&self) -> Result<()> {
        self.cask.sync(self.cask.lsn())?;
        self.cask.wipe_now()
    }

    /// `fallocate(2)`; `mode` as there.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for what changes or extends a log; [`Error::NoSpace`];
    /// [`Error::NotSupported`].
    pub fn fallocate(&self, _ino: Number, fh: u64, mode: i32, offset: u64, len: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        handle.for_writing()?;
        match &handle.kind {
            Kind::Plain => {
                self.fs.allocate(&NOBODY, handle.ino, mode, offset, len)?;
                let settings = self.walk.of(&*self.cask, &self.fs.inode(handle.ino)?)?;
                self.confirm(&settings, self.cask.lsn(), handle.flags.sync)
            }
            Kind::Log(log) => self.allocate_log(log, mode, offset, len),
            Kind::Value(draft) => self.allocate_value(&handle, draft, mode, offset, len),
            Kind::Rotate(_) | Kind::Events | Kind::Cat(_) | Kind::Snapshot(_) => {
                not_behind(handle.ino)
            }
        }
    }

    /// `SEEK_DATA` when `data`, else `SEEK_HOLE`.
    ///
    /// # Errors
    /// [`Error::NoSuchOffset`]; those of reading.
    pub fn lseek(&self, _ino: Number, fh: u64, offset: u64, data: bool) -> Result<u64> {
        let handle = self.handles.get(fh)?;
        let drafted = match &handle.kind {
            Kind::Snapshot(image) => {
                return image.seek(offset, data).ok_or(Error::NoSuchOffset);
            }
            Kind::Rotate(_) => Some(0),
            Kind::Events | Kind::Cat(_) => Some(self.getattr(handle.ino, None)?.attr.size),
            Kind::Value(draft) => draft.size(),
            _ => None,
        };
        match drafted {
            None => self.fs.seek(handle.ino, offset, data),
            Some(size) if offset >= size => Err(Error::NoSuchOffset),
            Some(_) if data => Ok(offset),
            Some(size) => Ok(size),
        }
    }

    /// What `fstat(2)` tells a log's writer of a file that is gone: the looks of the last one, empty.
    fn ghost(&self, ino: Number) -> Result<Entry> {
        let is_writer = |handle: &Handle| handle.ino == ino && matches!(handle.kind, Kind::Log(_));
        let handle = self.handles.find(is_writer).ok_or(Error::Stale)?;
        let Kind::Log(log) = &handle.kind else {
            return Err(Error::Stale);
        };
        let now = self.now();
        let binding = log.tie.binding();
        let state = binding.state();
        let looks = &state.predecessor;
        let attr = Attr {
            ino,
            kind: FileKind::Regular,
            perm: looks.perm,
            nlink: 0,
            uid: looks.uid,
            gid: looks.gid,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
        };
        Ok(Entry {
            attr,
            cacheable: false,
            left: None,
        })
    }

    /// Makes a handle known, and tells how the kernel shall treat it.
    pub(super) fn opened(&self, ino: Number, flags: OpenFlags, kind: Kind, mode: Mode) -> Opened {
        let fh = self.handles.reserve();
        let opened = Opened {
            fh,
            // The kernel takes every write to have made the inode that was opened longer. In a log
            // it may have gone to another file, in a value to a draft: a reader through the page
            // cache would be given zeros behind the true end until the size is asked for again.
            direct_io: mode != Mode::Plain || !matches!(kind, Kind::Plain),
            keep_cache: mode == Mode::Plain,
            no_flush: match &kind {
                Kind::Value(_) => !flags.write,
                Kind::Log(log) => !self.assembles(log),
                _ => true,
            },
        };
        self.handles.insert(Handle {
            fh,
            ino,
            flags,
            kind,
        });
        opened
    }

    /// Reads a file as it is. What a truncation takes away, or gives back as zeros, while it is being
    /// read is read once more, so that nobody sees zeros that were never in the file.
    pub(super) fn read_file(
        &self,
        ino: Number,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        let mut inode = self.fs.inode(ino)?;
        loop {
            data::read(&*self.cask, &inode, offset, size, buf)?;
            let now = self.fs.inode(ino)?;
            let end = offset.saturating_add(buf.len() as u64);
            if now.content == inode.content && (buf.is_empty() || end <= now.size) {
                return Ok(());
            }
            inode = now;
        }
    }

    /// Uncounts a handle; its inode may be gone for good already.
    pub(super) fn let_go(&self, ino: Number) -> Result<()> {
        match self.fs.release(ino) {
            Err(Error::Stale) => Ok(()),
            done => done,
        }
    }
}

/// Reads from an image, up to its end.
fn read_image(image: &dyn ImageRead, offset: u64, size: u32, buf: &mut Vec<u8>) -> Result<()> {
    let len = image.bytes().saturating_sub(offset).min(size.into());
    buf.resize(len as usize, 0);
    image.read_at(offset, buf)
}
