//! Who holds the lock of a file, so that "busy" can name the one to ask.
//!
//! Only ever an aid to a message: what is found may be out of date by the time it is printed, and
//! nothing is decided by it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

/// The process that holds a lock on the file with this metadata, as "caskfs (process 4711)".
pub(super) fn describe(file: &Metadata) -> Option<String> {
    let inode = Inode {
        major: libc::major(file.dev()),
        minor: libc::minor(file.dev()),
        number: file.ino(),
    };
    let pid = from_lock_table(&inode).or_else(|| from_descriptors(&inode))?;
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(match String::from_utf8_lossy(&name).trim() {
        "" => format!("process {pid}"),
        name => format!("{name} (process {pid})"),
    })
}

/// What the kernel's tables of locks call a file.
#[derive(Debug)]
struct Inode {
    major: u32,
    minor: u32,
    number: u64,
}

/// Asks the kernel's table of all locks. It knows no process for locks of an open file description.
fn from_lock_table(inode: &Inode) -> Option<u32> {
    let table = fs::read_to_string("/proc/locks").ok()?;
    let pid = table
        .lines()
        .filter_map(|line| inode.locked_by(line))
        .find_map(|pid| u32::try_from(pid).ok().filter(|pid| *pid > 0))?;
    // The one who took the lock may have left it to a child.
    fs::exists(format!("/proc/{pid}"))
        .unwrap_or(false)
        .then_some(pid)
}

/// Looks for a process with a descriptor that holds a lock on the file. No file is touched on the
/// way: one on a mount that hangs would hang this, too.
fn from_descriptors(inode: &Inode) -> Option<u32> {
    let mut pids = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
            return false;
        };
        descriptors.flatten().any(|descriptor| {
            fs::read_to_string(descriptor.path()).is_ok_and(|info| {
                let mut locks = info.lines().filter_map(|line| line.strip_prefix("lock:"));
                locks.any(|line| inode.locked_by(line).is_some())
            })
        })
    })
}

impl Inode {
    /// The process that holds a lock on this inode, if this line of a table of locks is about one:
    /// `7: FLOCK  ADVISORY  WRITE 4711 fe:01:131 0 EOF`, the device in hexadecimal. The process is
    /// -1 for a lock of an open file description, and 0 where it cannot be seen from here.
    fn locked_by(&self, line: &str) -> Option<i64> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        // A line with an arrow is somebody who waits.
        if fields.next()? == "->" {
            return None;
        }
        let pid = fields.nth(2)?.parse().ok()?;
        let wanted = format!("{:02x}:{:02x}:{}", self.major, self.minor, self.number);
        (fields.next()? == wanted).then_some(pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_tables_of_locks() {
        let lines = [
            "2: -> FLOCK  ADVISORY  WRITE 9 fe:01:131 0 EOF",
            "3: FLOCK  ADVISORY  WRITE 8 fe:01:1310 0 EOF",
            "4: FLOCK  ADVISORY  WRITE 4711 fe:01:131 0 EOF",
            "\t1: OFDLCK ADVISORY  WRITE -1 fe:01:131 0 EOF",
            "5: POSIX  ADVISORY  READ 12 00:1c:77 128 128",
            "6:",
        ];
        let found = |major, minor, number| {
            let inode = Inode {
                major,
                minor,
                number,
            };
            lines
                .iter()
                .filter_map(|line| inode.locked_by(line))
                .collect::<Vec<_>>()
        };
        assert_eq!(found(0xfe, 1, 131), [4711, -1]);
        assert_eq!(found(0, 0x1c, 77), [12]);
        assert!(found(0, 0x1c, 78).is_empty());
    }

    #[test]
    fn finds_the_descriptor_that_holds_a_lock() {
        let file = tempfile::tempfile().unwrap();
        let metadata = file.metadata().unwrap();
        let inode = Inode {
            major: libc::major(metadata.dev()),
            minor: libc::minor(metadata.dev()),
            number: metadata.ino(),
        };
        assert_eq!(from_descriptors(&inode), None);
        super::super::sys::lock_description(&file, super::super::sys::Sharing::Exclusive).unwrap();
        assert_eq!(from_descriptors(&inode), Some(std::process::id()));
    }
}
