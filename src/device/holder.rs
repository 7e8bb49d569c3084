//! Who holds the lock of a file, so that "busy" can name the one to ask.
//!
//! Only ever an aid to a message: what is found may be out of date by the time it is printed, and
//! nothing is decided by it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

/// The process that holds a lock on the file with this metadata, as "caskfs (process 4711)".
pub(super) fn describe(file: &Metadata) -> Option<String> {
    let pid = from_lock_table(file).or_else(|| from_open_files(file))?;
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match String::from_utf8_lossy(&name).trim() {
        "" => format!("process {pid}"),
        name => format!("{name} (process {pid})"),
    })
}

/// Asks the kernel's table of locks. It knows no process for locks of an open file description, and
/// the wrong device for files of some stacked filesystems.
fn from_lock_table(file: &Metadata) -> Option<u32> {
    let table = fs::read_to_string("/proc/locks").ok()?;
    let pid = holder_in(
        &table,
        libc::major(file.dev()),
        libc::minor(file.dev()),
        file.ino(),
    )?;
    // The one who took the lock may have left it to a child.
    fs::exists(format!("/proc/{pid}"))
        .unwrap_or(false)
        .then_some(pid)
}

/// The first process that a line of /proc/locks gives for this inode:
/// `7: FLOCK  ADVISORY  WRITE 4711 fe:01:131 0 EOF`, the device in hexadecimal.
fn holder_in(table: &str, major: u32, minor: u32, ino: u64) -> Option<u32> {
    let inode = format!("{major:02x}:{minor:02x}:{ino}");
    table.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        // A line with an arrow is somebody who waits.
        if fields.next()? == "->" {
            return None;
        }
        let pid = fields.nth(2)?.parse::<u32>().ok().filter(|pid| *pid > 0)?;
        (fields.next()? == inode).then_some(pid)
    })
}

/// Looks for another process that has the file open, as fuser(1) does.
fn from_open_files(file: &Metadata) -> Option<u32> {
    let wanted = (file.dev(), file.ino());
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        entry
            .file_name()
            .to_str()?
            .parse::<u32>()
            .ok()
            .filter(|pid| *pid != std::process::id())
    });
    pids.into_iter().find(|pid| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return false;
        };
        descriptors.flatten().any(|descriptor| {
            fs::metadata(descriptor.path()).is_ok_and(|open| (open.dev(), open.ino()) == wanted)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_table_of_locks() {
        let table = "1: OFDLCK ADVISORY  WRITE -1 fe:01:131 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 9 fe:01:131 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 8 fe:01:1310 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 4711 fe:01:131 0 EOF\n\
                     5: POSIX  ADVISORY  READ 12 00:1c:77 128 128\n\
                     6:\n";
        assert_eq!(holder_in(table, 0xfe, 1, 131), Some(4711));
        assert_eq!(holder_in(table, 0, 0x1c, 77), Some(12));
        assert_eq!(holder_in(table, 0, 0x1c, 78), None);
        assert_eq!(holder_in("", 0, 0, 0), None);
    }
}
