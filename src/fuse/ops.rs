//! What every transport shares: running a store's operation for the kernel.
//!
//! Nothing here knows how a request arrived. Invariant: whatever an operation does, the caller gets
//! an answer: an error becomes its errno, a panic becomes `EIO` and stops the cask.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crate::cask::Read;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::store::{Entry, Store};

/// How long the kernel may believe a cacheable name and its attributes. Only this mount changes the
/// cask, so the bound matters only where the meaning of a directory changes under open names.
const CACHED: Duration = Duration::from_secs(1);

/// Runs operations of a store.
pub struct Ops<D: Device> {
    store: Arc<Store<D>>,
}

impl<D: Device> Ops<D> {
    /// Operations of this store.
    pub fn new(store: Arc<Store<D>>) -> Self {
        Self { store }
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> u32 {
        self.store.cask().block_size()
    }

    /// Runs one operation; on failure answers the errno for the caller.
    pub fn run<T>(
        &self,
        name: &'static str,
        operation: impl FnOnce(&Store<D>) -> Result<T>,
    ) -> Result<T, i32> {
        // The store's locks do not poison: a panic in a critical section stops the whole cask, so no
        // half-done state is ever served.
        match catch_unwind(AssertUnwindSafe(|| operation(&self.store))) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let errno = error.errno();
                match error {
                    Error::Corrupt(_) | Error::Failed(_) | Error::Io { .. } => {
                        log::error!("{name}: {error}")
                    }
                    _ => log::debug!("{name}: {error}"),
                }
                Err(errno)
            }
            Err(_) => {
                self.store.cask().fail(&format!("a panic in {name}"));
                Err(libc::EIO)
            }
        }
    }
}

/// How long the kernel may believe an entry.
pub fn lifetime(entry: &Entry) -> Duration {
    if entry.cacheable {
        CACHED
    } else {
        Duration::ZERO
    }
}
