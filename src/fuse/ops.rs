//! What each request of the kernel means for the store, whatever transport brought it.
//!
//! A handler decodes Linux's flag words, asks the store, decides how long the kernel may believe the
//! answer, and turns a failure into an errno. Invariant: no panic leaves a handler; it stops the cask
//! and answers `EIO`, because what it left half done in memory must not be written.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::waker::WakeUps;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::item::MODE_PERM;
use crate::format::key::Number;
use crate::fs::{Attr, Caller, DirEntry, OpenFlags, RenameFlags, SetAttr, StatFs};
use crate::limits::BELIEVED_SECS;
use crate::store::{Entry, Opened, Store};

/// How long the kernel believes what may be cached. Nobody else writes to the cask, and what changes
/// behind the kernel's back is announced by a notice; the hour only bounds the harm of a lost one.
const BELIEVED: Duration = Duration::from_secs(BELIEVED_SECS);

/// How often a request that finds no room is tried again, files whose `ttl` is over being removed before
/// each time.
const ROOM_TRIES: u32 = 64;

/// What a handler answers: the result, or the errno of the failure.
pub(super) type Answer<T> = std::result::Result<T, Errno>;

/// An error number of the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub i32);

/// Attributes, and how long the kernel may believe them and the name they were found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The attributes.
    pub attr: Attr,
    /// From now on.
    pub valid: Duration,
}

impl From<Entry> for Known {
    fn from(entry: Entry) -> Self {
        let valid = match entry.cacheable {
            true => entry.left.map_or(BELIEVED, |left| left.min(BELIEVED)),
            false => Duration::ZERO,
        };
        Self {
            attr: entry.attr,
            valid,
        }
    }
}

/// An extended attribute, or a list of their names, as the two-step protocol of `getxattr(2)` wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sized {
    /// The caller asked for the length only.
    Length(u32),
    /// The bytes, which fit the caller's buffer.
    Bytes(Vec<u8>),
}

/// What the mount was asked to do after each change, beyond what the settings of the cask say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Durability {
    /// Every write is durable before it returns (`-o sync`).
    pub writes: bool,
    /// Every change of a directory is durable before it returns (`-o dirsync`).
    pub names: bool,
}

/// The handlers of a mounted cask.
pub(super) struct Ops<D: Device> {
    store: Arc<Store<D>>,
    durability: Durability,
    wake_ups: Arc<WakeUps>,
}

impl<D: Device> Ops<D> {
    pub fn new(store: Arc<Store<D>>, durability: Durability, wake_ups: Arc<WakeUps>) -> Self {
        Self {
            store,
            durability,
            wake_ups,
        }
    }

    pub fn lookup(&self, caller: &Caller, dir: Number, name: &[u8]) -> Answer<Known> {
        self.serve("lookup", |store| {
            Ok(store.lookup(caller, dir, name)?.into())
        })
    }

    pub fn getattr(&self, ino: Number, fh: Option<u64>) -> Answer<Known> {
        self.serve("getattr", |store| Ok(store.getattr(ino, fh)?.into()))
    }

    pub fn setattr(
        &self,
        caller: &Caller,
        ino: Number,
        fh: Option<u64>,
        set: &SetAttr,
    ) -> Answer<Known> {
        self.serve("setattr", |store| {
            // It was sent so that the kernel tells who watches, and has done so.
            if self.wake_ups.is_waking(caller.tid) {
                return Ok(store.getattr(ino, fh)?.into());
            }
            Ok(store.setattr(caller, ino, fh, set)?.into())
        })
    }

    pub fn readlink(&self, ino: Number) -> Answer<Vec<u8>> {
        self.serve("readlink", |store| store.readlink(ino))
    }

    /// `mode` is a whole `st_mode`; the kernel has applied the umask.
    pub fn mknod(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        mode: u32,
        rdev: u64,
    ) -> Answer<Known> {
        self.change("mknod", |store| {
            let kind = FileKind::from_mode(mode)
                .ok_or_else(|| Error::invalid("a file of an unknown type"))?;
            let entry = store.mknod(caller, dir, name, kind, mode & MODE_PERM, rdev)?;
            Ok(entry.into())
        })
    }

    pub fn mkdir(&self, caller: &Caller, dir: Number, name: &[u8], mode: u32) -> Answer<Known> {
        self.change("mkdir", |store| {
            Ok(store.mkdir(caller, dir, name, mode & MODE_PERM)?.into())
        })
    }

    pub fn symlink(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        target: &[u8],
    ) -> Answer<Known> {
        self.change("symlink", |store| {
            Ok(store.symlink(caller, dir, name, target)?.into())
        })
    }

    pub fn link(&self, caller: &Caller, ino: Number, dir: Number, name: &[u8]) -> Answer<Known> {
        self.change("link", |store| {
            Ok(store.link(caller, ino, dir, name)?.into())
        })
    }

    pub fn unlink(&self, caller: &Caller, dir: Number, name: &[u8]) -> Answer<()> {
        self.change("unlink", |store| store.unlink(caller, dir, name))
    }

    pub fn rmdir(&self, caller: &Caller, dir: Number, name: &[u8]) -> Answer<()> {
        self.change("rmdir", |store| store.rmdir(caller, dir, name))
    }

    /// `flags` as in `renameat2(2)`.
    pub fn rename(
        &self,
        caller: &Caller,
        from: (Number, &[u8]),
        to: (Number, &[u8]),
        flags: u32,
    ) -> Answer<()> {
        self.change("rename", |store| {
            let flags = rename_flags(flags)?;
            store.rename(caller, from.0, from.1, to.0, to.1, flags)
        })
    }

    /// `flags` as in `open(2)`.
    pub fn open(&self, caller: &Caller, ino: Number, flags: i32) -> Answer<Opened> {
        self.serve("open", |store| {
            store.open(caller, ino, self.open_flags(flags))
        })
    }

    /// `mode` and `flags` as in `open(2)`; the kernel has applied the umask.
    pub fn create(
        &self,
        caller: &Caller,
        dir: Number,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> Answer<(Known, Opened)> {
        self.change("create", |store| {
            let flags = self.open_flags(flags);
            let (entry, opened) = store.create(caller, dir, name, mode & MODE_PERM, flags)?;
            Ok((entry.into(), opened))
        })
    }

    pub fn read(
        &self,
        ino: Number,
        fh: u64,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Answer<()> {
        self.serve("read", |store| store.read(ino, fh, offset, size, buf))
    }

    /// Answers the number of bytes taken.
    pub fn write(
        &self,
        caller: &Caller,
        ino: Number,
        fh: u64,
        offset: u64,
        data: &[u8],
    ) -> Answer<u32> {
        self.serve("write", |store| {
            let taken = store.write(caller, ino, fh, offset, data)?;
            Ok(u32::try_from(taken).unwrap_or(u32::MAX))
        })
    }

    pub fn flush(&self, caller: &Caller, ino: Number, fh: u64) -> Answer<()> {
        self.serve("flush", |store| store.flush(caller, ino, fh))
    }

    pub fn release(&self, ino: Number, fh: u64) -> Answer<()> {
        self.serve("release", |store| store.release(ino, fh))
    }

    pub fn fsync(&self, ino: Number, fh: u64, data_only: bool) -> Answer<()> {
        self.serve("fsync", |store| store.fsync(ino, fh, data_only))
    }

    /// Directories have no handles: everything that was changed becomes durable, and what was given up
    /// is wiped where wiping is in force.
    pub fn fsyncdir(&self) -> Answer<()> {
        self.serve("fsyncdir", Store::sync_all)
    }

    /// `visit` answers false when its buffer is full.
    pub fn readdir(
        &self,
        ino: Number,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry) -> bool,
    ) -> Answer<()> {
        self.serve("readdir", |store| {
            store.readdir(ino, cookie, false, &mut |entry, _| visit(entry))
        })
    }

    /// As `readdir`, each entry with its attributes.
    pub fn readdirplus(
        &self,
        ino: Number,
        cookie: u64,
        visit: &mut dyn FnMut(&DirEntry, &Known) -> bool,
    ) -> Answer<()> {
        self.serve("readdirplus", |store| {
            store.readdir(ino, cookie, true, &mut |entry, attrs| match attrs {
                Some(attrs) => visit(entry, &Known::from(*attrs)),
                // The file went while the directory was read.
                None => true,
            })
        })
    }

    pub fn statfs(&self) -> Answer<StatFs> {
        self.serve("statfs", Store::statfs)
    }

    /// `flags` as in `setxattr(2)`.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Number,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Answer<()> {
        let create_only = flags & libc::XATTR_CREATE != 0;
        let replace_only = flags & libc::XATTR_REPLACE != 0;
        self.serve("setxattr", |store| {
            store
                .setxattr(caller, ino, name, value, create_only, replace_only)
                .inspect_err(|error| {
                    // A setting that was refused: errno alone cannot say why.
                    if let Error::Invalid(reason) = error {
                        log::warn!("setxattr {}: {reason}", String::from_utf8_lossy(name));
                    }
                })
        })
    }

    /// `room` is the length of the caller's buffer, 0 to ask for the length.
    pub fn getxattr(&self, ino: Number, name: &[u8], room: u32) -> Answer<Sized> {
        self.serve("getxattr", |store| sized(store.getxattr(ino, name)?, room))
    }

    /// The names, each ended by a NUL; `room` as in `getxattr`.
    pub fn listxattr(&self, ino: Number, room: u32) -> Answer<Sized> {
        self.serve("listxattr", |store| {
            let mut list = Vec::new();
            for name in store.listxattr(ino)? {
                list.extend_from_slice(&name);
                list.push(0);
            }
            sized(list, room)
        })
    }

    pub fn removexattr(&self, caller: &Caller, ino: Number, name: &[u8]) -> Answer<()> {
        self.serve("removexattr", |store| store.removexattr(caller, ino, name))
    }

    /// `mode` as in `fallocate(2)`.
    pub fn fallocate(&self, ino: Number, fh: u64, mode: i32, offset: u64, len: u64) -> Answer<()> {
        self.serve("fallocate", |store| {
            store.fallocate(ino, fh, mode, offset, len)
        })
    }

    /// `whence` as in `lseek(2)`; only `SEEK_DATA` and `SEEK_HOLE` reach a filesystem.
    pub fn lseek(&self, ino: Number, fh: u64, offset: i64, whence: i32) -> Answer<i64> {
        self.serve("lseek", |store| {
            let data = match whence {
                libc::SEEK_DATA => true,
                libc::SEEK_HOLE => false,
                _ => return Err(Error::invalid("an unknown kind of seek")),
            };
            let offset = u64::try_from(offset).map_err(|_| Error::NoSuchOffset)?;
            let found = store.lseek(ino, fh, offset, data)?;
            i64::try_from(found).map_err(|_| Error::NoSuchOffset)
        })
    }

    /// `flags` of `open(2)`. Asking for write access with a read-only access mode is the kernel's to
    /// refuse; mode 3 is Linux's "neither, for ioctl only".
    fn open_flags(&self, flags: i32) -> OpenFlags {
        let access = flags & libc::O_ACCMODE;
        let has = |flag: i32| flags & flag != 0;
        OpenFlags {
            read: access == libc::O_RDONLY || access == libc::O_RDWR,
            write: access == libc::O_WRONLY || access == libc::O_RDWR,
            append: has(libc::O_APPEND),
            truncate: has(libc::O_TRUNC),
            exclusive: has(libc::O_EXCL),
            // O_SYNC holds the bit of O_DSYNC.
            sync: has(libc::O_DSYNC) || self.durability.writes,
        }
    }

    /// Serves a request that changes a directory.
    fn change<T>(
        &self,
        what: &'static str,
        mut body: impl FnMut(&Store<D>) -> Result<T>,
    ) -> Answer<T> {
        self.serve(what, |store| {
            let done = body(store)?;
            if self.durability.names {
                sync_all(store)?;
            }
            Ok(done)
        })
    }

    /// Serves a request. One for which there is no room is tried again when files that are over have
    /// made some.
    fn serve<T>(
        &self,
        what: &'static str,
        mut body: impl FnMut(&Store<D>) -> Result<T>,
    ) -> Answer<T> {
        let mut tries = 0..ROOM_TRIES;
        let attempt = || loop {
            match body(&self.store) {
                Err(error @ (Error::NoSpace | Error::NoFiles | Error::Quota)) => {
                    if tries.next().is_none() || !self.store.make_room()? {
                        return Err(error);
                    }
                }
                done => return done,
            }
        };
        match catch_unwind(AssertUnwindSafe(attempt)) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(report(what, &error)),
            Err(panic) => {
                let why = format!("a panic in {what}: {}", message(panic.as_ref()));
                self.store.cask().fail(&why);
                Err(Errno(libc::EIO))
            }
        }
    }
}

/// Makes everything durable that was done so far.
fn sync_all<D: Device>(store: &Store<D>) -> Result<()> {
    let cask = store.cask();
    cask.sync(cask.lsn())
}

/// The errno of a failure. What the errno hides from the user goes to the log.
fn report(what: &'static str, error: &Error) -> Errno {
    let errno = error.errno();
    match error {
        // Said once, when it stopped.
        Error::Failed(_) => log::debug!("{what}: {error}"),
        Error::Corrupt(_) | Error::Io { .. } => log::error!("{what}: {error}"),
        _ => log::debug!("{what}: {error}"),
    }
    Errno(errno)
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

fn sized(bytes: Vec<u8>, room: u32) -> Result<Sized> {
    let len = u32::try_from(bytes.len()).map_err(|_| Error::AttributeRange)?;
    if room == 0 {
        Ok(Sized::Length(len))
    } else if len > room {
        Err(Error::AttributeRange)
    } else {
        Ok(Sized::Bytes(bytes))
    }
}

fn rename_flags(flags: u32) -> Result<RenameFlags> {
    let has = |flag: libc::c_uint| flags & flag != 0;
    if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
        return Err(Error::invalid("an unknown flag of renameat2"));
    }
    Ok(RenameFlags {
        no_replace: has(libc::RENAME_NOREPLACE),
        exchange: has(libc::RENAME_EXCHANGE),
        whiteout: has(libc::RENAME_WHITEOUT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cask::{Cask, FormatOptions, OpenOptions};
    use crate::clock::SystemClock;
    use crate::device::MemoryDevice;

    fn ops(durability: Durability) -> Ops<MemoryDevice> {
        let device = MemoryDevice::new();
        Cask::format(&device, &FormatOptions::default()).unwrap();
        let cask = Cask::open(device, OpenOptions::default()).unwrap();
        let store = Store::new(Arc::new(cask), Arc::new(SystemClock)).unwrap();
        Ops::new(Arc::new(store), durability, Arc::default())
    }

    #[test]
    fn a_panic_stops_the_cask_and_is_answered_with_eio() {
        let ops = ops(Durability::default());
        let answer: Answer<()> = ops.serve("test", |_| panic!("a bug"));
        assert_eq!(answer, Err(Errno(libc::EIO)));
        let why = ops.store.cask().failure().map(str::to_owned).unwrap();
        assert!(why.contains("a bug"), "{why}");
    }

    #[test]
    fn the_flags_of_open_are_told_apart() {
        let plain = ops(Durability::default());
        let read = plain.open_flags(libc::O_RDONLY | libc::O_EXCL);
        assert!(read.read && !read.write && read.exclusive && !read.sync);
        let both = plain.open_flags(libc::O_RDWR | libc::O_APPEND | libc::O_TRUNC | libc::O_DSYNC);
        assert!(both.read && both.write && both.append && both.truncate && both.sync);
        let write = plain.open_flags(libc::O_WRONLY | libc::O_SYNC);
        assert!(!write.read && write.write && write.sync);
        let neither = plain.open_flags(libc::O_ACCMODE);
        assert!(!neither.read && !neither.write);
        let mounted_sync = ops(Durability {
            writes: true,
            names: true,
        });
        assert!(mounted_sync.open_flags(libc::O_WRONLY).sync);
    }

    #[test]
    fn an_attribute_is_measured_before_it_is_given() {
        let value = || b"value".to_vec();
        assert_eq!(sized(value(), 0).unwrap(), Sized::Length(5));
        assert_eq!(sized(value(), 5).unwrap(), Sized::Bytes(value()));
        assert!(matches!(sized(value(), 4), Err(Error::AttributeRange)));
    }

    #[test]
    fn unknown_rename_flags_are_refused() {
        assert!(rename_flags(8).is_err());
        assert!(rename_flags(libc::RENAME_EXCHANGE).unwrap().exchange);
        assert_eq!(rename_flags(0).unwrap(), RenameFlags::default());
    }
}
