//! Requests from `/dev/fuse`: decoded from fuser's types into ours, answered back in fuser's.
//!
//! The only file that names fuser. It decides nothing: what a request means is the store's.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, Notifier, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};

use super::notifier::Kernel;
use super::ops::{Ops, lifetime};
use super::options::{Audience, MountOptions};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::item::MODE_PERM;
use crate::fs::{Attr, Caller, OpenFlags, RenameFlags, SetAttr, SetTime};
use crate::limits::WRITE_MAX;
use crate::store::{Entry, Opened};

/// What is asked of the kernel. Each is relied on and tested; nothing else is.
const CAPABILITIES: [InitFlags; 5] = [
    // Look-ups and creations in one directory go on beside each other.
    InitFlags::FUSE_PARALLEL_DIROPS,
    // O_TRUNC arrives with the open: without it no save could be atomic.
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_CACHE_SYMLINKS,
];

/// A mounted filesystem that serves requests when run.
pub struct Mounted<D: Device + 'static> {
    session: Session<Decoder<D>>,
}

impl<D: Device + 'static> Mounted<D> {
    /// Mounts; the kernel's first request is answered when this returns.
    ///
    /// # Errors
    /// What the kernel or the mount helper says.
    pub fn new(ops: Ops<D>, source: &Path, target: &Path, options: &MountOptions) -> Result<Self> {
        let mut config = fuser::Config::default();
        let name = options
            .fsname
            .clone()
            .unwrap_or_else(|| source.display().to_string());
        config.mount_options = vec![
            MountOption::FSName(name),
            // As a plain option, so that the kernel itself shows the type as fuse.caskfs.
            MountOption::CUSTOM("subtype=caskfs".to_owned()),
            MountOption::DefaultPermissions,
        ];
        let flags = [
            (options.read_only, MountOption::RO),
            (options.dev, MountOption::Dev),
            (options.suid, MountOption::Suid),
            (options.noexec, MountOption::NoExec),
            (options.noatime, MountOption::NoAtime),
            (options.dirsync, MountOption::DirSync),
            (options.sync, MountOption::Sync),
        ];
        config.mount_options.extend(
            flags
                .into_iter()
                .filter_map(|(on, option)| on.then_some(option)),
        );
        config.acl = match options.audience {
            Audience::Everyone => SessionACL::All,
            Audience::Root => SessionACL::RootAndOwner,
            Audience::Owner => SessionACL::Owner,
        };
        config.n_threads = Some(options.threads);
        config.clone_fd = true;
        let session = Session::new(Decoder { ops }, target, &config)
            .map_err(Error::io(format!("mounting on {}", target.display())))?;
        Ok(Self { session })
    }

    /// A way to tell the kernel things.
    pub fn kernel(&self) -> Box<dyn Kernel> {
        Box::new(DevNotifier(self.session.notifier()))
    }

    /// A way to unmount from another thread.
    pub fn unmounter(&mut self) -> Box<dyn FnMut() -> io::Result<()> + Send> {
        let mut unmounter = self.session.unmount_callable();
        Box::new(move || unmounter.unmount())
    }

    /// Serves requests until the filesystem is unmounted.
    ///
    /// # Errors
    /// Those of the device.
    pub fn run(self) -> Result<()> {
        self.session
            .run()
            .map_err(Error::io("serving requests of the kernel"))
    }
}

struct DevNotifier(Notifier);

impl Kernel for DevNotifier {
    fn invalidate_inode(&self, ino: u64) -> io::Result<()> {
        self.0.inval_inode(INodeNo(ino), 0, 0)
    }

    fn invalidate_entry(&self, dir: u64, name: &[u8]) -> io::Result<()> {
        self.0.inval_entry(INodeNo(dir), OsStr::from_bytes(name))
    }
}

struct Decoder<D: Device> {
    ops: Ops<D>,
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        tid: request.pid(),
    }
}

fn errno(code: i32) -> Errno {
    Errno::from_i32(code)
}

fn system_time(time: Timestamp) -> SystemTime {
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    match u64::try_from(time.secs) {
        Ok(secs) => UNIX_EPOCH.checked_add(Duration::from_secs(secs) + nanos),
        Err(_) => UNIX_EPOCH
            .checked_sub(Duration::from_secs(time.secs.unsigned_abs()))
            .and_then(|second| second.checked_add(nanos)),
    }
    .unwrap_or(UNIX_EPOCH)
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time.into()),
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

fn file_attr(attr: &Attr, block_size: u32) -> FileAttr {
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
        rdev: attr.rdev as u32,
        blksize: block_size,
        flags: 0,
    }
}

fn open_flags(flags: i32) -> OpenFlags {
    let mode = flags & libc::O_ACCMODE;
    OpenFlags {
        read: mode != libc::O_WRONLY,
        write: mode != libc::O_RDONLY,
        append: flags & libc::O_APPEND != 0,
        truncate: flags & libc::O_TRUNC != 0,
        exclusive: flags & libc::O_EXCL != 0,
        sync: flags & libc::O_DSYNC != 0,
    }
}

fn fopen_flags(opened: &Opened) -> FopenFlags {
    let flags = [
        (opened.direct_io, FopenFlags::FOPEN_DIRECT_IO),
        (opened.keep_cache, FopenFlags::FOPEN_KEEP_CACHE),
        (opened.no_flush, FopenFlags::FOPEN_NOFLUSH),
    ];
    flags
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(FopenFlags::empty(), |all, (_, flag)| all | flag)
}

impl<D: Device> Decoder<D> {
    fn attr(&self, entry: &Entry) -> FileAttr {
        file_attr(&entry.attr, self.ops.block_size())
    }

    fn entry(&self, answer: Result<Entry, i32>, reply: ReplyEntry) {
        match answer {
            Ok(entry) => reply.entry(&lifetime(&entry), &self.attr(&entry), Generation(0)),
            Err(code) => reply.error(errno(code)),
        }
    }
}

fn empty(answer: Result<(), i32>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(code) => reply.error(errno(code)),
    }
}

/// Answers a request for an attribute: its size where no buffer is offered.
fn sized(answer: Result<Vec<u8>, i32>, size: u32, reply: ReplyXattr) {
    match answer {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(code) => reply.error(errno(code)),
    }
}

impl<D: Device + 'static> Filesystem for Decoder<D> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                log::warn!("this kernel does not offer {capability:?}");
            }
        }
        // The default of 16 MiB would have every loop hold that much; a write is one append up to this.
        let _previous = config.set_max_write(WRITE_MAX as u32);
        let _previous = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let answer = self.ops.run("lookup", |s| {
            s.lookup(&caller(request), parent.0, name.as_bytes())
        });
        self.entry(answer, reply);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        match self
            .ops
            .run("getattr", |s| s.getattr(ino.0, fh.map(|fh| fh.0)))
        {
            Ok(entry) => reply.attr(&lifetime(&entry), &self.attr(&entry)),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn setattr(
        &self,
        request: &Request,
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
        match self.ops.run("setattr", |s| {
            s.setattr(&caller(request), ino.0, fh.map(|fh| fh.0), &set)
        }) {
            Ok(entry) => reply.attr(&lifetime(&entry), &self.attr(&entry)),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.ops.run("readlink", |s| s.readlink(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.ops.run("mknod", |s| {
            // A mode without a type means a regular file, as in mknod(2).
            let kind = match mode & libc::S_IFMT {
                0 => FileKind::Regular,
                _ => FileKind::from_mode(mode)
                    .ok_or_else(|| Error::invalid("an unknown file type"))?,
            };
            s.mknod(
                &caller(request),
                parent.0,
                name.as_bytes(),
                kind,
                mode & MODE_PERM,
                u64::from(rdev),
            )
        });
        self.entry(answer, reply);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let answer = self.ops.run("mkdir", |s| {
            s.mkdir(
                &caller(request),
                parent.0,
                name.as_bytes(),
                mode & MODE_PERM,
            )
        });
        self.entry(answer, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(
            self.ops.run("unlink", |s| {
                s.unlink(&caller(request), parent.0, name.as_bytes())
            }),
            reply,
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(
            self.ops.run("rmdir", |s| {
                s.rmdir(&caller(request), parent.0, name.as_bytes())
            }),
            reply,
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let answer = self.ops.run("symlink", |s| {
            s.symlink(
                &caller(request),
                parent.0,
                link_name.as_bytes(),
                target.as_os_str().as_bytes(),
            )
        });
        self.entry(answer, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let flags = RenameFlags {
            no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
            whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
        };
        let answer = self.ops.run("rename", |s| {
            s.rename(
                &caller(request),
                parent.0,
                name.as_bytes(),
                newparent.0,
                newname.as_bytes(),
                flags,
            )
        });
        empty(answer, reply);
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let answer = self.ops.run("link", |s| {
            s.link(&caller(request), ino.0, newparent.0, newname.as_bytes())
        });
        self.entry(answer, reply);
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: fuser::OpenFlags, reply: ReplyOpen) {
        match self.ops.run("open", |s| {
            s.open(&caller(request), ino.0, open_flags(flags.0))
        }) {
            Ok(opened) => reply.opened(FileHandle(opened.fh), fopen_flags(&opened)),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let answer = self.ops.run("create", |s| {
            s.create(
                &caller(request),
                parent.0,
                name.as_bytes(),
                mode & MODE_PERM,
                open_flags(flags),
            )
        });
        match answer {
            Ok((entry, opened)) => reply.created(
                &lifetime(&entry),
                &self.attr(&entry),
                Generation(0),
                FileHandle(opened.fh),
                fopen_flags(&opened),
            ),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buf = Vec::new();
        match self
            .ops
            .run("read", |s| s.read(ino.0, fh.0, offset, size, &mut buf))
        {
            Ok(()) => reply.data(&buf),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.ops.run("write", |s| {
            s.write(&caller(request), ino.0, fh.0, offset, data)
        }) {
            Ok(taken) => reply.written(taken as u32),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        empty(
            self.ops
                .run("flush", |s| s.flush(&caller(request), ino.0, fh.0)),
            reply,
        );
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: fuser::OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        empty(self.ops.run("release", |s| s.release(ino.0, fh.0)), reply);
    }

    fn fsync(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(
            self.ops.run("fsync", |s| s.fsync(ino.0, fh.0, datasync)),
            reply,
        );
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(
            self.ops.run("fsyncdir", |s| s.cask().sync(s.cask().lsn())),
            reply,
        );
    }

    fn readdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let answer = self.ops.run("readdir", |s| {
            s.readdir(ino.0, offset, false, &mut |entry, _| {
                let name = OsStr::from_bytes(&entry.name);
                !reply.add(
                    INodeNo(entry.ino),
                    entry.cookie,
                    file_type(entry.kind),
                    name,
                )
            })
        });
        match answer {
            Ok(()) => reply.ok(),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let answer = self.ops.run("readdirplus", |s| {
            s.readdir(ino.0, offset, true, &mut |entry, known| {
                // A file that went in between is left out; the next page goes on after it.
                let Some(known) = known else { return true };
                let name = OsStr::from_bytes(&entry.name);
                let attr = self.attr(known);
                !reply.add(
                    INodeNo(entry.ino),
                    entry.cookie,
                    name,
                    &lifetime(known),
                    &attr,
                    Generation(0),
                )
            })
        });
        match answer {
            Ok(()) => reply.ok(),
            Err(code) => reply.error(errno(code)),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.ops.run("statfs", |s| s.statfs()) {
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
            Err(code) => reply.error(errno(code)),
        }
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (create, replace) = (
            flags & libc::XATTR_CREATE != 0,
            flags & libc::XATTR_REPLACE != 0,
        );
        let answer = self.ops.run("setxattr", |s| {
            s.setxattr(
                &caller(request),
                ino.0,
                name.as_bytes(),
                value,
                create,
                replace,
            )
        });
        empty(answer, reply);
    }

    fn getxattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        sized(
            self.ops
                .run("getxattr", |s| s.getxattr(ino.0, name.as_bytes())),
            size,
            reply,
        );
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let answer = self.ops.run("listxattr", |s| {
            let mut list = Vec::new();
            for name in s.listxattr(ino.0)? {
                list.extend_from_slice(&name);
                list.push(0);
            }
            Ok(list)
        });
        sized(answer, size, reply);
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(
            self.ops.run("removexattr", |s| {
                s.removexattr(&caller(request), ino.0, name.as_bytes())
            }),
            reply,
        );
    }

    fn fallocate(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(
            self.ops.run("fallocate", |s| {
                s.fallocate(ino.0, fh.0, mode, offset, length)
            }),
            reply,
        );
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let answer = self.ops.run("lseek", |s| {
            let offset = u64::try_from(offset).map_err(|_| Error::NoSuchOffset)?;
            match whence {
                libc::SEEK_DATA => s.lseek(ino.0, fh.0, offset, true),
                libc::SEEK_HOLE => s.lseek(ino.0, fh.0, offset, false),
                _ => Err(Error::invalid(
                    "only SEEK_DATA and SEEK_HOLE are asked of a filesystem",
                )),
            }
        });
        match answer {
            Ok(offset) => reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
            Err(code) => reply.error(errno(code)),
        }
    }
}
