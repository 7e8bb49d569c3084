//! How often each inode is open, so that one without a name lives until its last handle is closed.
//!
//! Whoever takes a file's last name asks here, inside the operation, whether to keep the inode. The
//! last handle may go between the answer and the commit. Invariant: the last close is told that
//! somebody was answered "open", and so looks, as an operation of its own, after that one.

use std::collections::HashMap;

use crate::format::key::Number;
use crate::sync::Mutex;

/// Open counts by inode.
#[derive(Debug, Default)]
pub struct Opens(Mutex<HashMap<Number, Open>>);

#[derive(Debug, Default)]
struct Open {
    handles: u64,
    asked: bool,
}

/// What a close leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Other handles.
    Others,
    /// No handle.
    Last {
        /// Somebody was told that the inode is open, and may have kept it because of that.
        asked: bool,
    },
}

impl Opens {
    /// One handle more.
    pub fn add(&self, number: Number) {
        self.0.lock().entry(number).or_default().handles += 1;
    }

    /// One handle less.
    pub fn remove(&self, number: Number) -> Closed {
        let mut counts = self.0.lock();
        match counts.get_mut(&number) {
            Some(open) if open.handles > 1 => {
                open.handles -= 1;
                Closed::Others
            }
            _ => Closed::Last {
                asked: counts.remove(&number).is_some_and(|open| open.asked),
            },
        }
    }

    /// Whether any handle is open, for who keeps the inode anyway or has somebody look again.
    pub fn has(&self, number: Number) -> bool {
        self.0.lock().contains_key(&number)
    }

    /// Whether any handle is open. If so, the last close will look whether the inode has a name.
    pub fn is_open(&self, number: Number) -> bool {
        match self.0.lock().get_mut(&number) {
            Some(open) => {
                open.asked = true;
                true
            }
            None => false,
        }
    }
}
