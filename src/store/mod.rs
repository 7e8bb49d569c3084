//! What a file means: settings, modes, the rename rule. The whole interface of a mounted cask, in
//! the project's own types.
//!
//! Every operation is one transaction of the cask, which serialises them; the tables in memory
//! (bindings of log names, absences) are changed inside transactions only, so they always agree with
//! the names and contents they speak of. Locks: [`binding::Binding::gate`] and a draft's lock are
//! taken around a transaction, all others are leaves taken within one.

mod absence;
mod attrs;
mod binding;
mod fate;
mod handle;
mod log;
mod names;
mod roll;
pub mod settings;
mod truncate;
mod value;
pub mod walk;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

use crate::cask::{Cask, Lsn};
use crate::clock::{Clock, Timestamp};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;
use crate::fs::{
    Attr, Caller, DirEntry, Fs, Inode, NewFile, OpenFlags, RenameFlags, SetAttr, StatFs, namespace,
};

use absence::Absences;
use binding::{Binding, Bindings};
pub use fate::{Fate, ProcFate};
use handle::{Handle, Handles, Kind};
use settings::{Effective, Mode};
use value::Pending;
use walk::Walk;

/// The name every directory answers to but never lists.
const DOOR: &[u8] = b".cask";

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
    /// A cached name of this directory is out of date.
    InvalidateEntry(Number, Vec<u8>),
    /// The live log of this name in this directory got a record through a handle that the kernel
    /// believes to be on another file: wake the watchers of the name. At most once a
    /// [`Store::tick`] per name.
    Touched(Number, Vec<u8>),
}

/// Takes notices; must not block.
pub type NoticeSink = Box<dyn Fn(Notice) + Send + Sync>;

/// A mounted cask.
pub struct Store<D: Device> {
    cask: Arc<Cask<D>>,
    fs: Fs<D>,
    walk: Walk,
    handles: Handles,
    bindings: Bindings,
    absences: Absences,
    pending: Pending,
    fate: Box<dyn Fate>,
    sink: RwLock<Option<NoticeSink>>,
    /// Names whose watchers are to be woken by the next tick.
    touched: Mutex<Vec<Arc<Binding>>>,
}

impl<D: Device> Store<D> {
    /// A store over an open cask.
    ///
    /// # Errors
    /// Those of reading, and of removing what the last life left without a name.
    pub fn new(cask: Arc<Cask<D>>, clock: Arc<dyn Clock>) -> Result<Self> {
        Self::with_fate(cask, clock, Box::new(ProcFate))
    }

    /// A store that asks `fate` whether the writer of a value was killed.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn with_fate(
        cask: Arc<Cask<D>>,
        clock: Arc<dyn Clock>,
        fate: Box<dyn Fate>,
    ) -> Result<Self> {
        Ok(Self {
            fs: Fs::new(Arc::clone(&cask), clock)?,
            cask,
            walk: Walk::default(),
            handles: Handles::default(),
            bindings: Bindings::default(),
            absences: Absences::default(),
            pending: Pending::default(),
            fate,
            sink: RwLock::new(None),
            touched: Mutex::new(Vec::new()),
        })
    }

    /// Where notices go.
    pub fn set_notice_sink(&self, sink: NoticeSink) {
        *self.sink.write() = Some(sink);
    }

    /// The cask below.
    pub fn cask(&self) -> &Arc<Cask<D>> {
        &self.cask
    }

    /// Finds a name.
    ///
    /// # Errors
    /// [`Error::NotFound`], also for the thread that renamed a log a moment ago and looks for its
    /// old name; [`Error::NotDirectory`]; those of reading.
    pub fn lookup(&self, caller: &Caller, dir: Number, name: &[u8]) -> Result<Entry> {
        if name == DOOR {
            return Err(Error::NotFound);
        }
        let inode = self.fs.lookup(dir, name)?;
        if inode.is_file() && self.absences.hides(self.now(), caller.tid, dir, name) {
            return Err(Error::NotFound);
        }
        self.entry(&inode)
    }

    /// Attributes of an inode; with the handle of a value's writer, of what it is writing.
    ///
    /// # Errors
    /// [`Error::Stale`] when the inode is gone.
    pub fn getattr(&self, ino: Number, fh: Option<u64>) -> Result<Entry> {
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
        let mut rest = *set;
        if let Some(size) = set.size
            && self.truncate(caller, ino, fh, size)?
        {
            rest.size = None;
        }
        if rest != SetAttr::default() {
            let (inode, lsn) = self.fs.setattr(caller, ino, &rest)?;
            self.confirm(&*self.walk.of(&*self.cask, &inode)?, lsn, false)?;
        }
        self.getattr(ino, fh)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is none.
    pub fn readlink(&self, ino: Number) -> Result<Vec<u8>> {
        self.fs.readlink(ino)
    }

    /// Makes a file of any kind but a directory or symbolic link; `perm` holds permission bits only,
    /// umask applied.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::NotPermitted`] for `.cask`; those of writing.
    pub fn mknod(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        kind: FileKind,
        perm: u32,
        rdev: u64,
    ) -> Result<Entry> {
        not_the_door(name)?;
        let new = NewFile {
            kind,
            perm,
            uid: caller.uid,
            gid: caller.gid,
            rdev,
        };
        let inode = self.make_node(caller, dir, name, &new)?;
        self.entry(&inode)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Store::mknod`].
    pub fn mkdir(&self, caller: &Caller, dir: Number, name: &[u8], perm: u32) -> Result<Entry> {
        not_the_door(name)?;
        let kind = FileKind::Directory;
        let new = NewFile {
            kind,
            perm,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
        };
        let (inode, lsn) = self.fs.make(dir, name, &new)?;
        self.confirm_in(dir, lsn)?;
        self.entry(&inode)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`Store::mknod`]; [`Error::NameTooLong`] for the target.
    pub fn symlink(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        target: &[u8],
    ) -> Result<Entry> {
        not_the_door(name)?;
        let (inode, lsn) = self.fs.symlink(caller, dir, name, target)?;
        self.confirm_in(dir, lsn)?;
        self.entry(&inode)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// [`Error::NotPermitted`] for a live log; [`Error::Exists`]; [`Error::TooManyLinks`].
    pub fn link(&self, _caller: &Caller, ino: Number, dir: Number, name: &[u8]) -> Result<Entry> {
        not_the_door(name)?;
        let inode = self.link_unless_live(ino, dir, name)?;
        self.entry(&inode)
    }

    /// Takes a name. A live log frees its space at once; its next record makes the name anew.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::IsDirectory`]; those of writing.
    pub fn unlink(&self, _caller: &Caller, dir: Number, name: &[u8]) -> Result<()> {
        self.unlink_name(dir, name)
    }

    /// Removes an empty directory. Handles bound to a name in it get [`Error::NotFound`] from their
    /// next write.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotDirectory`], [`Error::NotEmpty`]; those of writing.
    pub fn rmdir(&self, _caller: &Caller, dir: Number, name: &[u8]) -> Result<()> {
        let (_, lsn) = self.fs.rmdir(dir, name)?;
        self.confirm_in(dir, lsn)
    }

    /// Moves a name; a live log is cut by it.
    ///
    /// # Errors
    /// Those of `renameat2(2)`; [`Error::Invalid`] to exchange a live log.
    pub fn rename(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        new_dir: Number,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        not_the_door(new_name)?;
        self.roll(
            caller,
            namespace_place(dir, name),
            namespace_place(new_dir, new_name),
            flags,
        )
    }

    /// Opens an existing file. The name that a log's writer is bound to is the one given last.
    ///
    /// # Errors
    /// [`Error::Stale`] when the file is gone, or was renamed a moment ago and the path must be
    /// looked up once more; those of writing for `O_TRUNC`.
    pub fn open(&self, caller: &Caller, ino: Number, flags: OpenFlags) -> Result<Opened> {
        let inode = self.fs.inode(ino)?;
        let settings = match inode.is_file() {
            true => self.walk.of(&*self.cask, &inode)?,
            false => Arc::default(),
        };
        match settings.mode {
            Mode::Log if flags.write => self.open_log(caller, ino, flags),
            Mode::Value if flags.write => self.open_value(ino, flags),
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
        not_the_door(name)?;
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
            Kind::Plain => self.fs.read(handle.ino, offset, size, buf),
            Kind::Log(log) => self.read_log(&handle, log, offset, size, buf),
            Kind::Value(draft) => self.read_value(&handle, draft, offset, size, buf),
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
                let (inode, lsn) = self.fs.write(caller, handle.ino, offset, data)?;
                self.confirm(&*self.walk.of(&*self.cask, &inode)?, lsn, handle.flags.sync)?;
            }
            Kind::Log(log) => self.append(caller, &handle, log, offset, data)?,
            Kind::Value(draft) => self.write_value(caller, &handle, draft, offset, data)?,
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
        }
    }

    /// Everything written so far is durable when this returns; a value is saved first.
    ///
    /// # Errors
    /// Those of writing.
    pub fn fsync(&self, _ino: Number, fh: u64, _data_only: bool) -> Result<()> {
        if let Ok(handle) = self.handles.get(fh)
            && let Kind::Value(draft) = &handle.kind
        {
            self.save_value(&handle, draft)?;
        }
        if self.cask.read_only().is_some() {
            return Ok(());
        }
        self.cask.sync(self.cask.lsn())
    }

    /// Visits entries after `cookie` (0 = from the start) until `visit` answers false (buffer full;
    /// that entry will be asked for again). With `attrs` each entry carries its attributes; one
    /// that goes away meanwhile is left out.
    ///
    /// # Errors
    /// [`Error::NotDirectory`]; those of reading.
    pub fn readdir(
        &self,
        ino: Number,
        cookie: u64,
        attrs: bool,
        visit: &mut dyn FnMut(&DirEntry, Option<&Entry>) -> bool,
    ) -> Result<()> {
        namespace::read_dir(&*self.cask, ino, cookie, &mut |entry| {
            if !attrs {
                return Ok(visit(&entry, None));
            }
            match self
                .fs
                .inode(entry.ino)
                .and_then(|inode| self.entry(&inode))
            {
                Ok(with) => Ok(visit(&entry, Some(&with))),
                Err(Error::Stale) => Ok(true),
                Err(error) => Err(error),
            }
        })
    }

    /// What `statvfs(3)` tells.
    ///
    /// # Errors
    /// Those of writing.
    pub fn statfs(&self) -> Result<StatFs> {
        self.fs.statfs()
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
        }
    }

    /// `SEEK_DATA` when `data`, else `SEEK_HOLE`.
    ///
    /// # Errors
    /// [`Error::NoSuchOffset`]; those of reading.
    pub fn lseek(&self, _ino: Number, fh: u64, offset: u64, data: bool) -> Result<u64> {
        let handle = self.handles.get(fh)?;
        let drafted = match &handle.kind {
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

    /// Commit timer, checkpoints, expiry; called by the owner's thread about ten times a second.
    ///
    /// # Errors
    /// Those of writing.
    pub fn tick(&self) -> Result<()> {
        let now = self.now();
        self.absences.expire(now);
        for binding in std::mem::take(&mut *self.touched.lock()) {
            binding.untouch();
            if let Some((dir, name)) = binding.name() {
                self.notify(Notice::Touched(dir, name.to_vec()));
            }
        }
        self.cask.tick(now)
    }

    /// Ends service: everything committed, last checkpoint written.
    ///
    /// # Errors
    /// Those of writing.
    pub fn close(&self) -> Result<()> {
        self.cask.close()
    }

    fn now(&self) -> Timestamp {
        self.fs.now()
    }

    fn notify(&self, notice: Notice) {
        if let Some(sink) = &*self.sink.read() {
            sink(notice);
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
        let state = log.binding.state();
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
        })
    }

    /// What the kernel is told of an inode.
    fn entry(&self, inode: &Inode) -> Result<Entry> {
        let cacheable = match inode.is_file() {
            false => true,
            true => match self.walk.of(&*self.cask, inode)?.mode {
                Mode::Plain => true,
                Mode::Log => false,
                Mode::Value => !self.fs.is_open(inode.number),
            },
        };
        Ok(Entry {
            attr: self.fs.attr(inode)?,
            cacheable,
        })
    }

    /// Makes a handle known, and tells how the kernel shall treat it.
    fn opened(&self, ino: Number, flags: OpenFlags, kind: Kind, mode: Mode) -> Opened {
        let fh = self.handles.reserve();
        let opened = Opened {
            fh,
            // The kernel takes every write to have made the inode that was opened longer. In a log
            // it may have gone to another file, in a value to a draft: a reader through the page
            // cache would be given zeros behind the true end until the size is asked for again.
            direct_io: mode != Mode::Plain || !matches!(kind, Kind::Plain),
            keep_cache: mode == Mode::Plain,
            no_flush: !matches!(kind, Kind::Value(_)),
        };
        self.handles.insert(Handle {
            fh,
            ino,
            flags,
            kind,
        });
        opened
    }

    /// Uncounts a handle; its inode may be gone for good already.
    fn let_go(&self, ino: Number) -> Result<()> {
        match self.fs.release(ino) {
            Err(Error::Stale) => Ok(()),
            done => done,
        }
    }

    /// Waits until operation `lsn` is as safe as the settings promise.
    fn confirm(&self, settings: &Effective, lsn: Lsn, sync: bool) -> Result<()> {
        if sync || settings.sync {
            self.cask.sync(lsn)
        } else if settings.flush {
            self.cask.persist(lsn)
        } else {
            Ok(())
        }
    }

    /// As [`Store::confirm`], by the settings of a directory.
    fn confirm_in(&self, dir: Number, lsn: Lsn) -> Result<()> {
        self.confirm(&*self.walk.of_dir(&*self.cask, dir)?, lsn, false)
    }
}

/// Somebody without privileges, for changes of which the kernel does not say whose they are.
const NOBODY: Caller = Caller {
    uid: u32::MAX,
    gid: u32::MAX,
    tid: 0,
};

/// Refuses to give anything the name of the door.
fn not_the_door(name: &[u8]) -> Result<()> {
    if name == DOOR {
        Err(Error::NotPermitted(
            "the name .cask is taken in every directory",
        ))
    } else {
        Ok(())
    }
}

fn namespace_place(dir: Number, name: &[u8]) -> crate::fs::Place<'_> {
    crate::fs::Place { dir, name }
}
