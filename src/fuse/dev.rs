//! /dev/fuse by way of the fuser library: each request is decoded into a call of [`Ops`], each answer
//! encoded. The only file that names the library.
//!
//! Invariant: nothing is decided here. What a request means stands in [`ops`](super::ops).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};

use super::notifier::Kernel;
use super::ops::{Answer, Errno, Known, Ops, Sized};
use super::options::Audience;
use super::workers::Workers;
use crate::clock::Timestamp;
use crate::device::Device;
use crate::format::FileKind;
use crate::format::item::MODE_PERM;
use crate::format::key::Number;
use crate::fs::{Attr, Caller, SetAttr, SetTime};
use crate::limits::WRITE_MAX;
use crate::store::Opened;

/// Inode numbers are never used again, so one generation is enough.
const GENERATION: Generation = Generation(0);
/// What `stat(2)` recommends for reading and writing; stdio makes its buffers of this size.
const PREFERRED_IO: u32 = 4096;
/// Most requests in the background (read-ahead) at a time.
const BACKGROUND_MAX: u16 = 64;
/// Most requests that wait for the disk side by side.
const SYNCS_MAX: usize = 8;

thread_local! {
    /// What was read, on its way to the kernel; kept, so that a read allocates nothing.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A connection to the kernel that has been greeted and waits to be served.
pub(super) struct Connection<D: Device + 'static> {
    session: fuser::Session<Decoder<D>>,
}

impl<D: Device + 'static> Connection<D> {
    /// Takes over the connection of a fresh mount and answers the kernel's greeting.
    ///
    /// # Errors
    /// When the kernel is too old or the mount is gone.
    pub fn greet(
        ops: Ops<D>,
        connection: OwnedFd,
        audience: Audience,
        threads: usize,
    ) -> io::Result<Self> {
        let decoder = Decoder {
            ops: Arc::new(ops),
            workers: Workers::start(SYNCS_MAX)?,
        };
        let audience = match audience {
            Audience::Owner => SessionACL::Owner,
            Audience::OwnerAndRoot => SessionACL::RootAndOwner,
            Audience::All => SessionACL::All,
        };
        let mut config = fuser::Config::default();
        config.n_threads = Some(threads.max(1));
        config.clone_fd = true;
        let session = fuser::Session::from_fd(decoder, connection, audience, config)?;
        Ok(Self { session })
    }

    /// The way for notices.
    pub fn kernel(&self) -> impl Kernel + use<D> {
        Notifications(self.session.notifier())
    }

    /// Serves until the filesystem is unmounted.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

struct Notifications(fuser::Notifier);

impl Kernel for Notifications {
    fn forget_inode(&self, ino: Number) -> io::Result<()> {
        // From 0, length 0: all of it.
        self.0.inval_inode(INodeNo(ino), 0, 0)
    }

    fn forget_name(&self, dir: Number, name: &[u8]) -> io::Result<()> {
        self.0.inval_entry(INodeNo(dir), OsStr::from_bytes(name))
    }
}

struct Decoder<D: Device> {
    ops: Arc<Ops<D>>,
    workers: Workers,
}

impl<D: Device + 'static> Filesystem for Decoder<D> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without it the kernel truncates before it opens, and a value could be seen half saved.
        let needed = InitFlags::FUSE_ATOMIC_O_TRUNC | InitFlags::FUSE_BIG_WRITES;
        if config.add_capabilities(needed).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        // Each makes things faster; an old kernel that has not got it is served without.
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let write_max = u32::try_from(WRITE_MAX).unwrap_or(u32::MAX);
        let _ = config.set_max_write(write_max);
        if let Err(most) = config.set_max_readahead(write_max) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.ops.lookup(&caller(req), parent.0, name.as_bytes());
        entry(reply, found);
    }

    // The store keeps no state by inode that the kernel would have to release.
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        attr(reply, self.ops.getattr(ino.0, fh.map(|fh| fh.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            perm: mode.map(|mode| mode & MODE_PERM),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
        };
        let fh = fh.map(|fh| fh.0);
        attr(reply, self.ops.setattr(&caller(req), ino.0, fh, &set));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.ops.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (dir, name) = (parent.0, name.as_bytes());
        // The kernel's 32 bits are laid out like the lower 32 of a dev_t.
        let made = self
            .ops
            .mknod(&caller(req), dir, name, mode, u64::from(rdev));
        entry(reply, made);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self
            .ops
            .mkdir(&caller(req), parent.0, name.as_bytes(), mode);
        entry(reply, made);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.ops.unlink(&caller(req), parent.0, name.as_bytes());
        empty(reply, done);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(
            reply,
            self.ops.rmdir(&caller(req), parent.0, name.as_bytes()),
        );
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target) = (link_name.as_bytes(), target.as_os_str().as_bytes());
        entry(
            reply,
            self.ops.symlink(&caller(req), parent.0, name, target),
        );
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (parent.0, name.as_bytes());
        let to = (newparent.0, newname.as_bytes());
        empty(reply, self.ops.rename(&caller(req), from, to, flags.bits()));
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let (dir, name) = (newparent.0, newname.as_bytes());
        entry(reply, self.ops.link(&caller(req), ino.0, dir, name));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.ops.open(&caller(req), ino.0, flags.0) {
            Ok(opened) => reply.opened(FileHandle(opened.fh), fopen_flags(&opened)),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        READ_BUFFER.with_borrow_mut(|buf| match self.ops.read(ino.0, fh.0, offset, size, buf) {
            Ok(()) => reply.data(buf),
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.ops.write(&caller(req), ino.0, fh.0, offset, data) {
            Ok(taken) => reply.written(taken),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn flush(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.ops.flush(&caller(req), ino.0, fh.0));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.ops.release(ino.0, fh.0));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let ops = Arc::clone(&self.ops);
        self.workers
            .run(move || empty(reply, ops.fsync(ino.0, fh.0, datasync)));
    }

    // Cookies are stable, so an open directory needs no state.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let done = self.ops.readdir(ino.0, offset, &mut |entry| {
            let name = OsStr::from_bytes(&entry.name);
            !reply.add(
                INodeNo(entry.ino),
                entry.cookie,
                file_type(entry.kind),
                name,
            )
        });
        match done {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let done = self.ops.readdirplus(ino.0, offset, &mut |entry, known| {
            let name = OsStr::from_bytes(&entry.name);
            let attr = file_attr(&known.attr);
            let cookie = entry.cookie;
            !reply.add(
                INodeNo(entry.ino),
                cookie,
                name,
                &known.valid,
                &attr,
                GENERATION,
            )
        });
        match done {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let ops = Arc::clone(&self.ops);
        self.workers.run(move || empty(reply, ops.fsyncdir()));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match self.ops.statfs() {
            Ok(stat) => reply.statfs(
                stat.blocks,
                stat.blocks_free,
                stat.blocks_free,
                stat.files,
                stat.files_free,
                stat.block_size,
                stat.name_max,
                stat.block_size,
            ),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let name = name.as_bytes();
        let done = self.ops.setxattr(&caller(req), ino.0, name, value, flags);
        empty(reply, done);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        xattr(reply, self.ops.getxattr(ino.0, name.as_bytes(), size));
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        xattr(reply, self.ops.listxattr(ino.0, size));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let done = self.ops.removexattr(&caller(req), ino.0, name.as_bytes());
        empty(reply, done);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (dir, name) = (parent.0, name.as_bytes());
        match self.ops.create(&caller(req), dir, name, mode, flags) {
            Ok((known, opened)) => reply.created(
                &known.valid,
                &file_attr(&known.attr),
                GENERATION,
                FileHandle(opened.fh),
                fopen_flags(&opened),
            ),
            Err(errno) => reply.error(errno.into()),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done = self.ops.fallocate(ino.0, fh.0, mode, offset, length);
        empty(reply, done);
    }

    fn lseek(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.ops.lseek(ino.0, fh.0, offset, whence) {
            Ok(found) => reply.offset(found),
            Err(errno) => reply.error(errno.into()),
        }
    }

    // What follows is answered "not implemented", which the kernel remembers: it checks permissions by
    // default_permissions, copies ranges by itself, and says ENOTTY and "always ready" by itself.

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }
}

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> Self {
        Self::from_i32(errno.0)
    }
}

/// Who asks. What the kernel calls the process id here is the thread's.
fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        tid: req.pid(),
    }
}

fn empty(reply: ReplyEmpty, done: Answer<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno.into()),
    }
}

fn entry(reply: ReplyEntry, found: Answer<Known>) {
    match found {
        Ok(known) => reply.entry(&known.valid, &file_attr(&known.attr), GENERATION),
        Err(errno) => reply.error(errno.into()),
    }
}

fn attr(reply: ReplyAttr, found: Answer<Known>) {
    match found {
        Ok(known) => reply.attr(&known.valid, &file_attr(&known.attr)),
        Err(errno) => reply.error(errno.into()),
    }
}

fn xattr(reply: ReplyXattr, found: Answer<Sized>) {
    match found {
        Ok(Sized::Length(len)) => reply.size(len),
        Ok(Sized::Bytes(bytes)) => reply.data(&bytes),
        Err(errno) => reply.error(errno.into()),
    }
}

fn fopen_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.perm & MODE_PERM) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: u32::try_from(attr.rdev).unwrap_or(0),
        blksize: PREFERRED_IO,
        flags: 0,
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

/// A time for the library, which encodes it rightly, before 1970 too.
fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(u64::from(time.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

/// A time from the library.
fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// Undoes the decoding of the library, which takes the nanoseconds of a time before 1970 from it where
/// they belong on top: (-2 s, 0.8 s) is 1.2 s before 1970 and comes as 2.8 s before.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(before) => {
            let before = before.duration();
            Timestamp {
                secs: 0_i64.saturating_sub_unsigned(before.as_secs()),
                nanos: before.subsec_nanos(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let time = Timestamp {
            secs: -2,
            nanos: 800_000_000,
        };
        let shown = UNIX_EPOCH - Duration::from_millis(1200);
        assert_eq!(system_time(time), shown);
        assert_eq!(Timestamp::from(shown), time);
        // As the library decodes the pair (-2, 800,000,000).
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(timestamp(decoded), time);
        let after = Timestamp { secs: 1, nanos: 5 };
        assert_eq!(timestamp(system_time(after)), after);
        assert_eq!(
            system_time(Timestamp {
                secs: i64::MAX,
                nanos: 999_999_999
            }),
            UNIX_EPOCH + Duration::new(i64::MAX.unsigned_abs(), 999_999_999)
        );
    }

    #[test]
    fn open_flags_follow_what_the_store_says() {
        let opened = Opened {
            fh: 1,
            direct_io: true,
            keep_cache: false,
            no_flush: true,
        };
        assert_eq!(
            fopen_flags(&opened),
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH
        );
    }
}
