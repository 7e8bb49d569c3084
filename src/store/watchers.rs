//! Those who watch a log by name, and must be woken for what the kernel reports under another.
//!
//! A record that comes through a handle opened before a cut goes to the live log, but the kernel takes it
//! for a change of the segment and tells the segment's watchers. So the name is marked here, and the
//! next tick has its watchers woken. Invariants: a name is marked once, however many records it got, so
//! this takes no more memory than the bindings do; a mark is taken away before the watchers are woken,
//! so a record that comes meanwhile marks anew; and what could not be passed on stays marked.

use std::sync::Arc;

use super::binding::Binding;

use crate::sync::{Mutex, RwLock};

/// Has those woken who watch the live log with this path, from the root without a slash; must not
/// block. False when there is no room now: the name stays marked until the next [`Store::tick`].
///
/// [`Store::tick`]: super::Store::tick
pub type WakeSink = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// The names whose watchers are to be woken.
#[derive(Default)]
pub(super) struct Watchers {
    marked: Mutex<Vec<Arc<Binding>>>,
    sink: RwLock<Option<WakeSink>>,
}

impl Watchers {
    pub fn set_sink(&self, sink: WakeSink) {
        *self.sink.write() = Some(sink);
    }

    /// A record landed in the live log of this name that the kernel believes to be in another file.
    pub fn mark(&self, binding: Arc<Binding>) {
        if binding.touch() {
            self.marked.lock().push(binding);
        }
    }

    /// Has the watchers of every marked name woken, as long as there is room.
    pub fn wake(&self, path_of: impl Fn(&Binding) -> Option<Vec<u8>>) {
        let marked = std::mem::take(&mut *self.marked.lock());
        if marked.is_empty() {
            return;
        }
        let sink = self.sink.read();
        let wake = |path: Vec<u8>| sink.as_ref().is_none_or(|wake| wake(&path));
        let mut left = Vec::new();
        for binding in marked {
            // Those that could not be passed on are the first of the next tick.
            if !left.is_empty() {
                left.push(binding);
                continue;
            }
            binding.untouch();
            if !path_of(&binding).is_none_or(wake) && binding.touch() {
                left.push(binding);
            }
        }
        if !left.is_empty() {
            let mut marked = self.marked.lock();
            left.append(&mut marked);
            *marked = left;
        }
    }
}
