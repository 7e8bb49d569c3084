//! Changing how much a cask may hold, while it is in use.
//!
//! Invariant: the host has given room for every block of a container with a fixed number of them
//! before the number is promised; and what was asked for is durable when it is answered. After a crash
//! before that the bounds are the old ones, though the container may be longer.

use super::{Bounds, Cask};
use crate::device::{Device, write_zeros};
use crate::error::{Error, Result};
use crate::format::wal::Change;

/// A bound to set; `None` takes it away.
pub type Bound = Option<u64>;

impl<D: Device> Cask<D> {
    /// Sets how many inodes, the root included, the cask may hold.
    ///
    /// # Errors
    /// [`Error::Invalid`] for fewer than there are; those of [`Cask::checkpoint`].
    pub fn resize_files(&self, files: Bound) -> Result<()> {
        self.writable()?;
        {
            let _growth = self.growth.lock();
            let _ops = self.ops.lock();
            let used = self.state.read().files;
            if files.is_some_and(|files| files < used) {
                return Err(Error::invalid(format!(
                    "the cask holds {used} files, the root among them; it cannot be bounded to fewer"
                )));
            }
            let fixed = self.is_fixed();
            self.set_bounds(Bounds { files, fixed })?;
        }
        self.checkpoint()
    }

    /// Sets how many blocks the container has, or lets it grow as needed. A container whose blocks were
    /// all written when it was made has the new ones written, too.
    ///
    /// # Errors
    /// [`Error::Invalid`] for fewer blocks than there are, as a container never shrinks, or more than can be;
    /// [`Error::NoSpace`] when the host has no room for them, and then nothing is changed; those of [`Cask::checkpoint`].
    pub fn resize_blocks(&self, blocks: Bound) -> Result<()> {
        self.writable()?;
        {
            let _growth = self.growth.lock();
            match blocks {
                Some(new) => self.provide(new)?,
                None if self.stats().fill => {
                    return Err(Error::invalid(
                        "all blocks of the container were written, so that it never grows by itself; give it a number of blocks",
                    ));
                }
                None => {}
            }
            let _ops = self.ops.lock();
            let files = self.state.read().bounds.files;
            let fixed = blocks.is_some();
            self.set_bounds(Bounds { files, fixed })?;
        }
        self.checkpoint()
    }

    /// Has the host give room for all of so many blocks. Called with `growth` held.
    fn provide(&self, new: u64) -> Result<()> {
        let old = self.alloc.blocks();
        let most = self.geometry.max_blocks();
        if new < old {
            return Err(Error::invalid(format!(
                "the container has {old} blocks; it can be given more, not fewer"
            )));
        }
        if new > most {
            return Err(Error::invalid(format!(
                "a container with blocks of this size has at most {most}"
            )));
        }
        let absent = self.alloc.absent_blocks();
        let size = self.geometry.block();
        let available = self
            .device
            .growth_available()
            .map_err(Error::io("asking the host for space"))?;
        let more = (new - old).saturating_mul(size);
        if available.is_some_and(|bytes| more > bytes) || self.take_back(u64::MAX)? < absent {
            return Err(Error::NoSpace);
        }
        if new == old {
            return Ok(());
        }
        if self.stats().fill {
            let range = old * size..new * size;
            if let Err(error) = write_zeros(&self.device, range).and_then(|()| self.device.sync()) {
                // Nothing refers to it: the container is as long as it was.
                let _ = self.device.set_len(old * size);
                return Err(match error.kind() {
                    std::io::ErrorKind::StorageFull => Error::NoSpace,
                    _ => Error::Io {
                        what: "writing new blocks".to_owned(),
                        source: error,
                    },
                });
            }
        }
        match self.extend_to(old, new)? {
            true => Ok(()),
            false => Err(Error::NoSpace),
        }
    }

    /// Logs new bounds. Called with operations serialised.
    pub(super) fn set_bounds(&self, bounds: Bounds) -> Result<()> {
        self.writable()?;
        let mut record = Vec::new();
        Change::Bounds {
            files: bounds.files.unwrap_or(0),
            fixed: bounds.fixed,
        }
        .encode(&mut record);
        self.wal.append(&record, false);
        self.state.write().bounds = bounds;
        Ok(())
    }
}
