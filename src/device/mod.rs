//! Where the container's bytes live.
//!
//! Nothing above this layer sees a file. What is assumed of a device: a write that returned is seen
//! by every later read; it survives the process but not a power loss; after [`Device::sync`]
//! returned everything written before it survives a power loss; after
//! [`Device::write_durable_at`] returned those bytes do, and nothing is promised of any other.
//! Without a sync, any 512-byte sector written since may hold the old bytes, the new or garbage.

use std::io;
use std::ops::Range;
use std::sync::Arc;

pub mod control;
pub mod file;
mod holder;
pub mod memory;
pub mod scratch;
mod sys;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use file::{Access, FileDevice};
pub use memory::MemoryDevice;
pub use scratch::ScratchDevice;

/// Random access to the bytes of a container.
///
/// Offsets and lengths are in bytes. Implementations retry interrupted and short transfers: a call
/// does all of its work or fails.
#[allow(clippy::len_without_is_empty)] // The length of a container, not of a collection.
pub trait Device: Send + Sync + 'static {
    /// Length of the container.
    fn len(&self) -> io::Result<u64>;
    /// Fills `buf` from `offset`; `UnexpectedEof` when the container ends before that.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`, extending the container if it ends before that.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset` and makes this range durable; no other range need be. What
    /// cannot be made durable is told to every later [`Device::sync`] too.
    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes everything written so far durable, the length included. Once it has failed it goes on to fail.
    fn sync(&self) -> io::Result<()>;
    /// Sets the length; new bytes read as zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves room on the host for a range, extending the container over it; new bytes read as
    /// zeros. `StorageFull` when the host has none.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Gives a range back to the host where it can; the range then reads as zeros or as before.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Bytes by which the host could let the container grow; `None` where there is no such bound.
    fn growth_available(&self) -> io::Result<Option<u64>>;
}

/// Closes a file and tells what only its closing told: dropping one does not.
///
/// # Errors
/// Those of `close(2)`; the descriptor is gone all the same.
pub fn close(file: std::fs::File) -> io::Result<()> {
    sys::close(file)
}

/// Overwrites a range with zeros.
///
/// # Errors
/// Those of [`Device::write_at`].
pub fn write_zeros<D: Device + ?Sized>(device: &D, range: Range<u64>) -> io::Result<()> {
    const STEP: u64 = 1 << 20;
    let zeros = vec![0; range.end.saturating_sub(range.start).min(STEP) as usize];
    let mut at = range.start;
    while at < range.end {
        let take = STEP.min(range.end - at);
        device.write_at(at, zeros.get(..take as usize).unwrap_or_default())?;
        at += take;
    }
    Ok(())
}

impl<D: Device + ?Sized> Device for Arc<D> {
    fn len(&self) -> io::Result<u64> {
        (**self).len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write_at(offset, data)
    }
    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        (**self).write_durable_at(offset, data)
    }
    fn sync(&self) -> io::Result<()> {
        (**self).sync()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        (**self).set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).allocate(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        (**self).punch(offset, len)
    }
    fn growth_available(&self) -> io::Result<Option<u64>> {
        (**self).growth_available()
    }
}
