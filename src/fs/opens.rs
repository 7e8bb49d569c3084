//! How often each inode is open, so that one without a name lives until its last handle is closed.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::format::key::Number;

/// Open counts by inode.
#[derive(Debug, Default)]
pub struct Opens(Mutex<HashMap<Number, u64>>);

impl Opens {
    /// One handle more.
    pub fn add(&self, number: Number) {
        *self.0.lock().entry(number).or_insert(0) += 1;
    }

    /// One handle less; answers whether it was the last.
    pub fn remove(&self, number: Number) -> bool {
        let mut counts = self.0.lock();
        match counts.get_mut(&number) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            _ => {
                counts.remove(&number);
                true
            }
        }
    }

    /// Whether any handle is open.
    pub fn is_open(&self, number: Number) -> bool {
        self.0.lock().contains_key(&number)
    }
}
