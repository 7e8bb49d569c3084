//! Wakes those who watch a log through inotify.
//!
//! After a cut the kernel takes what a writer appends for a change of the file that was renamed away,
//! and tells the watchers of that. So the live log's mtime is set through the mount, as `touch -m` does
//! it: for the kernel that is a modification under the right name. The request that comes back from it
//! changes nothing. Invariant: nothing is touched but what is in this mount, whatever is at the
//! mountpoint, and whatever the path leads to, by then.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::fs::{
    AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};

/// The way through the mount.
pub(super) struct Waker {
    mountpoint: PathBuf,
    /// The device of the mount, once it answers.
    device: OnceLock<u64>,
    /// The thread that is on its way; 0 for none.
    thread: AtomicU32,
    over: AtomicBool,
}

impl Waker {
    /// One that does nothing until the mount answers.
    pub fn new(mountpoint: PathBuf) -> Self {
        Self {
            mountpoint,
            device: OnceLock::new(),
            thread: AtomicU32::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// The mount is going: nobody is woken any more.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The mount answers, and is this device.
    pub fn begin(&self, device: u64) {
        let _ = self.device.set(device);
    }

    /// Whether a request of this thread is of the waker's own making.
    pub fn is_waking(&self, tid: u32) -> bool {
        tid != 0 && tid == self.thread.load(Ordering::Acquire)
    }

    /// Wakes the watchers of a file, by its path from the root of the mount.
    ///
    /// # Errors
    /// When nothing is there any more.
    pub fn wake(&self, path: &[u8]) -> io::Result<()> {
        let Some(device) = self.device.get().filter(|_| !self.is_over()) else {
            return Ok(());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.mountpoint, flags, Mode::empty())?;
        if rustix::fs::fstat(&root)?.st_dev != *device {
            return Ok(());
        }
        let only_nsec = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps {
            last_access: only_nsec(UTIME_OMIT),
            last_modification: only_nsec(UTIME_NOW),
        };
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat2(&root, OsStr::from_bytes(path), flags, Mode::empty(), within)?;
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(tid.unsigned_abs(), Ordering::Release);
        let woken = rustix::fs::utimensat(&file, "", &times, AtFlags::EMPTY_PATH);
        self.thread.store(0, Ordering::Release);
        Ok(woken?)
    }
}
