//! The one system call for mounting that no safe crate offers.
#![allow(unsafe_code)]

use std::io;

/// Closes every descriptor but standard input, output and error in the programs that this process will
/// start, so that a daemon does not keep what its caller happened to have open, a lock for instance.
///
/// # Errors
/// What `close_range(2)` says; on Linux before 5.11, which has not got it, nothing is done.
pub fn keep_open_files_to_ourselves() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: takes no pointer, and closes nothing in this process: it only sets the close-on-exec flag.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}
