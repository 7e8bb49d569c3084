//! The locks and atomics on which threads of the engine meet.
//!
//! They stand in a module of their own so that a test can decide who goes first: with the feature
//! `schedules` each of them asks shuttle's scheduler, which tries one order after the other.
//!
//! Invariant: without that feature these are parking_lot's and the standard library's own types. The
//! unit tests of the engine run on threads of the system and have those, too.

#[cfg(all(feature = "schedules", not(test)))]
mod scheduled;

#[cfg(all(feature = "schedules", not(test)))]
pub use scheduled::{Condvar, Mutex, MutexGuard, RwLock, atomic};

#[cfg(not(all(feature = "schedules", not(test))))]
pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

/// Atomics that carry an order between threads; a mere counter or hint need not be one of these.
#[cfg(not(all(feature = "schedules", not(test))))]
pub mod atomic {
    pub use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
}
