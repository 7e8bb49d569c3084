//! Open files: from the kernel's handle to what it is bound to.
//!
//! The table is split into shards so that thousands of handles do not meet on one lock; a shard's
//! lock is held for a look-up only, never during I/O. Handles are never used again.

use std::collections::HashMap;
use std::sync::Arc;

use super::binding::Tie;
use super::cat::Cat;
use super::value::Draft;
use crate::cask::ImageRead;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::OpenFlags;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};

/// What the writes of a handle mean.
#[derive(Debug)]
pub enum Kind {
    /// They go to the inode, where the kernel says.
    Plain,
    /// They are appended to the live log of a name.
    Log(LogHandle),
    /// They go into a draft that replaces the content at close.
    Value(Draft),
    /// They are names of logs of this directory that are to be rotated.
    Rotate(Number),
    /// There are none; it reads the record of rolls.
    Events,
    /// There are none; it reads a table.
    Cat(Cat),
    /// There are none; it reads the container as it was when it was opened.
    Snapshot(Box<dyn ImageRead>),
}

/// A write handle of a log.
#[derive(Debug)]
pub struct LogHandle {
    /// To which name it is bound.
    pub tie: Arc<Tie>,
    /// Where, in the kernel's eyes, its own last write ended.
    pub position: AtomicU64,
    /// It has read, so its inode is kept for it when the last name goes.
    pub reads: AtomicBool,
    /// With `assemble=1`: what it has written of a record that is not whole yet.
    pub begun: Mutex<Vec<u8>>,
}

/// An open file.
#[derive(Debug)]
pub struct Handle {
    /// The kernel's number of it.
    pub fh: u64,
    /// The inode it was opened on, to which its reads go.
    pub ino: Number,
    /// How it was opened.
    pub flags: OpenFlags,
    /// What its writes mean.
    pub kind: Kind,
}

impl Handle {
    /// What is needed to read.
    ///
    /// # Errors
    /// [`Error::BadHandle`] when it was not opened for reading.
    pub fn for_reading(&self) -> Result<()> {
        if self.flags.read {
            Ok(())
        } else {
            Err(Error::BadHandle)
        }
    }

    /// What is needed to write.
    ///
    /// # Errors
    /// [`Error::BadHandle`] when it was not opened for writing.
    pub fn for_writing(&self) -> Result<()> {
        if self.flags.write {
            Ok(())
        } else {
            Err(Error::BadHandle)
        }
    }
}

/// Shards of the table; a power of two.
const SHARDS: u64 = 64;

/// All open files.
pub struct Handles {
    shards: Vec<RwLock<HashMap<u64, Arc<Handle>>>>,
    next: AtomicU64,
}

impl Default for Handles {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            next: AtomicU64::new(1),
        }
    }
}

impl Handles {
    /// A number for a handle that will be inserted.
    pub fn reserve(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes the handle known under its number.
    pub fn insert(&self, handle: Handle) {
        if let Some(shard) = self.shard(handle.fh) {
            shard.write().insert(handle.fh, Arc::new(handle));
        }
    }

    /// The handle with this number.
    ///
    /// # Errors
    /// [`Error::BadHandle`] when there is none.
    pub fn get(&self, fh: u64) -> Result<Arc<Handle>> {
        let shard = self.shard(fh).ok_or(Error::BadHandle)?;
        shard.read().get(&fh).cloned().ok_or(Error::BadHandle)
    }

    /// Takes the handle out of the table.
    ///
    /// # Errors
    /// [`Error::BadHandle`] when there is none.
    pub fn remove(&self, fh: u64) -> Result<Arc<Handle>> {
        let shard = self.shard(fh).ok_or(Error::BadHandle)?;
        shard.write().remove(&fh).ok_or(Error::BadHandle)
    }

    /// The first handle found that `is` is true for. Looks at all of them.
    pub fn find(&self, mut is: impl FnMut(&Handle) -> bool) -> Option<Arc<Handle>> {
        self.shards
            .iter()
            .find_map(|s| s.read().values().find(|h| is(h)).cloned())
    }

    fn shard(&self, fh: u64) -> Option<&RwLock<HashMap<u64, Arc<Handle>>>> {
        self.shards.get((fh % SHARDS) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_is_found_until_it_is_removed() {
        let handles = Handles::default();
        let numbers: Vec<u64> = (0..1000).map(|_| handles.reserve()).collect();
        for fh in &numbers {
            let flags = OpenFlags {
                read: true,
                ..OpenFlags::default()
            };
            handles.insert(Handle {
                fh: *fh,
                ino: fh + 1,
                flags,
                kind: Kind::Plain,
            });
        }
        for fh in &numbers {
            let handle = handles.get(*fh).unwrap();
            assert_eq!(handle.ino, fh + 1);
            handle.for_reading().unwrap();
            assert!(matches!(handle.for_writing(), Err(Error::BadHandle)));
            handles.remove(*fh).unwrap();
            assert!(matches!(handles.get(*fh), Err(Error::BadHandle)));
        }
    }
}
