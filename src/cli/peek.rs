//! What a container says about itself, read without a lock and without opening the cask.
//!
//! A superblock carries its own digest, so it may be read beside a live mount: a copy that is being
//! written just then does not verify, and another does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::superblock::{
    MAGIC, SPACING, SUPERBLOCK_COPIES, SUPERBLOCK_LEN, SuperblockRecord,
};

/// A copy that does not verify is looked at so many times, after a pause each.
const LOOKS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// The newest superblock of a container.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read; [`Error::Invalid`] when no copy verifies.
pub fn superblock(container: &Path) -> Result<SuperblockRecord> {
    let reading = || Error::io("reading the superblock");
    let file = File::open(container).map_err(reading())?;
    let first = copy_at(&file, 0).map_err(reading())?;
    let spacing = first.map_or(SPACING, |superblock| superblock.spacing.get());
    let mut best = first;
    for copy in 1..SUPERBLOCK_COPIES {
        let found = copy_at(&file, copy * u64::from(spacing)).map_err(reading())?;
        best = best
            .into_iter()
            .chain(found)
            .max_by_key(|s| s.generation.get());
    }
    best.ok_or_else(|| Error::invalid("not a cask that this program can read"))
}

/// Offsets of the copies of the superblock that do not verify. One that is being written just then is
/// looked at again.
///
/// # Errors
/// As [`superblock`].
pub fn damaged_copies(container: &Path) -> Result<Vec<u64>> {
    let reading = || Error::io("reading the superblock");
    let spacing = superblock(container)?.spacing.get();
    let file = File::open(container).map_err(reading())?;
    let mut damaged = Vec::new();
    for copy in 0..SUPERBLOCK_COPIES {
        let offset = copy * u64::from(spacing);
        let mut looks = 0;
        while copy_at(&file, offset).map_err(reading())?.is_none() {
            looks += 1;
            if looks == LOOKS {
                damaged.push(offset);
                break;
            }
            thread::park_timeout(PAUSE);
        }
    }
    Ok(damaged)
}

fn copy_at(file: &File, offset: u64) -> io::Result<Option<SuperblockRecord>> {
    let mut bytes = [0; SUPERBLOCK_LEN];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(SuperblockRecord::decode(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `head`, the first bytes of a file, are those of a cask of any version.
pub fn is_cask(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}
