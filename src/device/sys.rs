//! The system calls that std does not offer, each behind a safe function.
//!
//! Invariant: every `unsafe` block of the device layer is in this file; each function takes a
//! borrowed [`File`], so the descriptor is open for the whole call, and reports failure as the
//! [`io::Error`] of its errno.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, IntoRawFd};

/// Whether a lock lets others share the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Any number of readers, no writer.
    Shared,
    /// Nobody else.
    Exclusive,
}

/// `flock(2)` without waiting; `WouldBlock` when somebody else holds it.
pub(super) fn flock(file: &File, sharing: Sharing) -> io::Result<()> {
    let operation = match sharing {
        Sharing::Shared => libc::LOCK_SH,
        Sharing::Exclusive => libc::LOCK_EX,
    };
    retry(|| {
        // SAFETY: takes no pointer; the descriptor is open while `file` is borrowed.
        unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) }
    })
}

/// `close(2)`, which tells what a filesystem could not write after all.
pub(super) fn close(file: File) -> io::Result<()> {
    // SAFETY: takes no pointer; the descriptor is open, and nobody uses it after this.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes an open-file-description lock on the whole file without waiting; `WouldBlock` when
/// somebody else holds it. Unlike a classic POSIX lock it is not lost when this process closes
/// another descriptor of the file.
pub(super) fn lock_description(file: &File, sharing: Sharing) -> io::Result<()> {
    // SAFETY: `flock` is a C struct of integers, for which all zeros are a valid value.
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    // The casts go from small constants to the width that this platform's struct has.
    lock.l_type = match sharing {
        Sharing::Shared => libc::F_RDLCK as libc::c_short,
        Sharing::Exclusive => libc::F_WRLCK as libc::c_short,
    };
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    retry(|| {
        // SAFETY: `lock` is a valid `flock` that outlives the call; F_OFD_SETLK only reads it, and
        // its l_pid is 0 as the call demands.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }
    })
}

/// Writes a prefix of `data` at `offset` and makes it durable (`RWF_DSYNC`); answers its length.
pub(super) fn write_durable(file: &File, offset: u64, data: &[u8]) -> io::Result<usize> {
    let vector = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: `vector` describes exactly `data`, which is borrowed for the whole call and only read
    // by a write; the count of vectors is 1.
    let written = unsafe {
        libc::pwritev2(
            file.as_raw_fd(),
            &raw const vector,
            1,
            signed(offset)?,
            libc::RWF_DSYNC,
        )
    };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// Reserves room for a range, extending the file over it.
pub(super) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, 0, offset, len)
}

/// Gives the room of a range back; it reads as zeros then. The length stays.
pub(super) fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(
        file,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        offset,
        len,
    )
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (signed(offset)?, signed(len)?);
    retry(|| {
        // SAFETY: takes no pointer; the descriptor is open while `file` is borrowed.
        unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }
    })
}

/// Bytes that an ordinary user can still store on the filesystem that holds `file`.
pub(super) fn available(file: &File) -> io::Result<u64> {
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    retry(|| {
        // SAFETY: `stat` is writable room for one `statvfs` and outlives the call.
        unsafe { libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) }
    })?;
    // SAFETY: the call succeeded and so filled the whole struct, which holds integers only.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes a call that answers -1 for failure, again while a signal interrupts it.
fn retry(mut call: impl FnMut() -> libc::c_int) -> io::Result<()> {
    loop {
        if call() != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// An offset as the kernel takes it; `EFBIG` where it cannot be one.
fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
