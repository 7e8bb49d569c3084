//! The process that wakes those who watch a log, as [`waker`](super::waker) asks it to.
//!
//! It sets the time of the live log through the mount, as `touch -m` does: for the kernel that is a
//! modification under the right name, and the daemon answers it without changing anything. Invariants:
//! nothing is touched but what is in that very mount, whatever is at the mountpoint, and whatever the
//! path leads to, by then; between two batches of orders nothing in the mount is held, and while there
//! is work, as root, not the mount itself but a private copy, so that it can be unmounted at any time;
//! the process has one thread, by whose number the daemon knows it; and it ends with the pipe.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT,
};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

/// Longest order in bytes, its NUL included: the kernel's `PATH_MAX`, and also the `PIPE_BUF` up to
/// which a write to a pipe is never divided.
pub(super) const ORDER_MAX: usize = 4096;
/// Bytes of orders that are taken at a time: what a pipe holds.
const BATCH: usize = 64 << 10;
/// Asks for a number of the mount that is never given again (`STATX_MNT_ID_UNIQUE`, Linux 6.8).
const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// A mount, so that it can be told from whatever is at its mountpoint later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlace {
    /// The directory, by canonical path.
    pub mountpoint: PathBuf,
    /// `st_dev` of what is in it.
    pub device: u64,
    /// The number of the mount; 0 where the kernel does not tell.
    pub mount: u64,
}

impl MountPlace {
    /// The mount that is seen at `mountpoint` now.
    ///
    /// # Errors
    /// What `statx(2)` says.
    pub fn seen_at(mountpoint: &Path) -> io::Result<Self> {
        let (device, mount) = identity(CWD, mountpoint, AtFlags::empty())?;
        Ok(Self {
            mountpoint: mountpoint.to_owned(),
            device,
            mount,
        })
    }

    /// The root of the mount; `None` when it is not there any more.
    fn enter(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.mountpoint, flags, Mode::empty())?;
        if identity(&root, "", AtFlags::EMPTY_PATH)? != (self.device, self.mount) {
            return Ok(None);
        }
        // A mount is busy while it is used, if only for a moment; a copy of it is nobody's concern.
        let copy = rustix::mount::open_tree(
            &root,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH,
        );
        // Only root may have one.
        Ok(Some(copy.unwrap_or(root)))
    }

    fn wake(&self, paths: &BTreeSet<&[u8]>) -> io::Result<()> {
        let Ok(Some(root)) = self.enter() else {
            return Ok(());
        };
        for path in paths {
            // What is gone, or not ours to touch, has no watcher to be woken; but without the calls that
            // it takes there is no use in going on.
            if let Err(errno @ (Errno::NOSYS | Errno::INVAL)) = touch(&root, path) {
                return Err(errno.into());
            }
        }
        Ok(())
    }
}

/// What tells a mount from all others. Asks nobody but the kernel.
fn identity(
    dir: impl AsFd,
    path: impl rustix::path::Arg,
    flags: AtFlags,
) -> rustix::io::Result<(u64, u64)> {
    let flags = flags | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(dir, path, flags, UNIQUE)?;
    let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    let told = stat.stx_mask & UNIQUE.bits() != 0;
    Ok((device, if told { stat.stx_mnt_id } else { 0 }))
}

/// Sets the time of modification, and so wakes who watches, of what this path leads to beneath the
/// root, through no symbolic link and no other mount.
fn touch(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<()> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = OsStr::from_bytes(path);
    let file = rustix::fs::openat2(root, path, flags, Mode::empty(), within)?;
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let times = Timestamps {
        last_access: special(UTIME_OMIT),
        last_modification: special(UTIME_NOW),
    };
    rustix::fs::utimensat(&file, "", &times, AtFlags::EMPTY_PATH)
}

/// Carries out the orders, paths from the root of the mount with a NUL behind each, until there are
/// no more. The process must have no other thread.
///
/// # Errors
/// When the orders cannot be read, or the kernel has not got the calls that it takes (Linux 5.8).
pub fn serve(place: &MountPlace, orders: impl Read) -> io::Result<()> {
    in_batches(orders, |paths| place.wake(paths))
}

fn in_batches(
    mut orders: impl Read,
    mut each: impl FnMut(&BTreeSet<&[u8]>) -> io::Result<()>,
) -> io::Result<()> {
    let mut piece = vec![0; BATCH];
    let mut held = Vec::new();
    loop {
        let taken = match orders.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(taken) => taken,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        held.extend(piece.iter().take(taken));
        let whole = held
            .iter()
            .rposition(|byte| *byte == 0)
            .map_or(0, |at| at + 1);
        let begun = held.split_off(whole);
        if begun.len() >= ORDER_MAX {
            return Err(ErrorKind::InvalidData.into());
        }
        // What was ordered more than once while this was busy is done once.
        let paths: BTreeSet<&[u8]> = held
            .split(|byte| *byte == 0)
            .filter(|path| !path.is_empty())
            .collect();
        if !paths.is_empty() {
            each(&paths)?;
        }
        held = begun;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::time::SystemTime;

    /// Gives away at most so many bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let most = buf.len().min(self.1);
            self.0.read(&mut buf[..most])
        }
    }

    #[test]
    fn orders_are_whole_however_they_come() {
        for step in [1, 2, 7, 1000] {
            let mut seen = Vec::new();
            let orders = b"logs/a\0b\0logs/a\0\0c d\n\0cut o";
            in_batches(Slow(orders, step), |paths| {
                seen.extend(paths.iter().map(|path| path.to_vec()));
                Ok(())
            })
            .unwrap();
            seen.sort();
            seen.dedup();
            assert_eq!(seen, [&b"b"[..], b"c d\n", b"logs/a"], "{step}");
        }
        let mut batches = Vec::new();
        let take = |paths: &BTreeSet<&[u8]>| {
            batches.push(paths.len());
            Ok(())
        };
        in_batches(&b"a\0b\0a\0a\0"[..], take).unwrap();
        assert_eq!(batches, [2], "each once");
        let endless = vec![b'x'; 3 * ORDER_MAX];
        assert!(in_batches(&*endless, |_| Ok(())).is_err());
    }

    #[test]
    fn only_what_is_beneath_that_very_mount_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, old) = (dir.path().join("inner"), SystemTime::UNIX_EPOCH);
        fs::create_dir(&inner).unwrap();
        let make = |path: &Path| {
            let file = File::create(path).unwrap();
            file.set_modified(old).unwrap();
        };
        let (log, outside) = (inner.join("log"), dir.path().join("outside"));
        make(&log);
        make(&outside);
        std::os::unix::fs::symlink("../outside", inner.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inner.join("up")).unwrap();
        let touched = |path: &Path| fs::metadata(path).unwrap().modified().unwrap() != old;
        let place = MountPlace::seen_at(&inner).unwrap();
        for wrong in [
            MountPlace {
                device: place.device + 1,
                ..place.clone()
            },
            MountPlace {
                mount: place.mount + 1,
                ..place.clone()
            },
            MountPlace {
                mountpoint: dir.path().join("none"),
                ..place.clone()
            },
        ] {
            serve(&wrong, &b"log\0"[..]).unwrap();
            assert!(!touched(&log));
        }
        let orders = format!(
            "link\0up/outside\0../outside\0{}\0none\0",
            outside.display()
        );
        serve(&place, orders.as_bytes()).unwrap();
        assert!(!touched(&outside) && !touched(&log));
        serve(&place, &b"log\0"[..]).unwrap();
        assert!(touched(&log));
    }
}
