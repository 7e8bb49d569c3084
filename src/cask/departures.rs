//! Tells when the last reader of a checkpoint has left, to those who wait for its blocks.

use std::time::Duration;

use crate::sync::{Condvar, Mutex};

/// Counts checkpoints that nobody reads any more.
#[derive(Debug, Default)]
pub(super) struct Departures {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Departures {
    /// So many so far.
    pub fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// One more.
    pub fn add(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }

    /// Waits until there are more than `seen`; false if that takes longer than `patience`.
    pub fn wait(&self, seen: u64, patience: Duration) -> bool {
        let mut count = self.count.lock();
        !self
            .changed
            .wait_while_for(&mut count, |count| *count <= seen, patience)
            .timed_out()
    }
}
