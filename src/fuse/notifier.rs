//! Tells the kernel what changed behind its back, from a thread of its own.
//!
//! The kernel takes locks of its own for a notice, locks that it may hold while it waits for an answer
//! of ours; so whoever serves a request only leaves a notice here and goes on. Invariant: leaving a
//! notice never waits for the kernel, and each notice that was left is delivered after it was left.
//! A notice that is waiting already is not kept twice: memory is bounded by the number of different
//! names and inodes that change while the kernel takes one notice.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use crate::format::key::Number;
use crate::store::Notice;

/// The kernel's side of it.
pub(super) trait Kernel: Send {
    /// Forgets cached attributes and pages of an inode.
    fn forget_inode(&self, ino: Number) -> io::Result<()>;
    /// Forgets a cached name.
    fn forget_name(&self, dir: Number, name: &[u8]) -> io::Result<()>;
}

/// Notices on their way to the kernel.
#[derive(Default)]
pub(super) struct Notices {
    state: Mutex<State>,
    changed: Condvar,
}

/// What the kernel shall forget.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stale {
    Inode(Number),
    Name(Number, Vec<u8>),
}

#[derive(Default)]
struct State {
    queue: VecDeque<Stale>,
    waiting: HashSet<Stale>,
    ended: bool,
}

impl Notices {
    /// Leaves a notice.
    pub fn leave(&self, notice: Notice) {
        let stale = match notice {
            Notice::InvalidateInode(ino) => Stale::Inode(ino),
            Notice::InvalidateEntry(dir, name) => Stale::Name(dir, name),
        };
        let mut state = self.state.lock();
        if !state.ended && state.waiting.insert(stale.clone()) {
            state.queue.push_back(stale);
            self.changed.notify_one();
        }
    }

    fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_one();
    }

    /// The next to deliver; `None` at the end.
    fn next(&self) -> Option<Stale> {
        let mut state = self.state.lock();
        loop {
            if state.ended {
                return None;
            }
            if let Some(stale) = state.queue.pop_front() {
                // Taken out before it is delivered: what is left from now on is a new change.
                state.waiting.remove(&stale);
                return Some(stale);
            }
            self.changed.wait(&mut state);
        }
    }
}

/// The thread that delivers.
pub(super) struct Notifier {
    notices: Arc<Notices>,
    thread: Option<JoinHandle<()>>,
}

impl Notifier {
    /// Starts to deliver `notices` to `kernel`.
    ///
    /// # Errors
    /// When the operating system has no more threads.
    pub fn start(notices: Arc<Notices>, kernel: impl Kernel + 'static) -> io::Result<Self> {
        let queue = Arc::clone(&notices);
        let thread = thread::Builder::new()
            .name("notifier".into())
            .spawn(move || {
                while let Some(stale) = queue.next() {
                    deliver(&kernel, &stale);
                }
            })?;
        Ok(Self {
            notices,
            thread: Some(thread),
        })
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.notices.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn deliver(kernel: &impl Kernel, stale: &Stale) {
    let told = match stale {
        Stale::Inode(ino) => kernel.forget_inode(*ino),
        Stale::Name(dir, name) => kernel.forget_name(*dir, name),
    };
    match told.map_err(|error| (error.raw_os_error(), error)) {
        // The kernel does not know the inode or the name, or there is no mount any more.
        Ok(()) | Err((Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENOTCONN), _)) => {}
        Err((_, error)) => log::warn!("the kernel did not take a notice ({stale:?}): {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// A kernel that waits for a go before it takes each notice.
    struct SlowKernel {
        taken: Sender<String>,
        go: Mutex<Receiver<()>>,
    }

    impl SlowKernel {
        fn take(&self, what: String) -> io::Result<()> {
            self.taken.send(what).unwrap();
            let _ = self.go.lock().recv();
            Ok(())
        }
    }

    impl Kernel for SlowKernel {
        fn forget_inode(&self, ino: Number) -> io::Result<()> {
            self.take(format!("inode {ino}"))
        }
        fn forget_name(&self, dir: Number, name: &[u8]) -> io::Result<()> {
            self.take(format!("{dir}/{}", String::from_utf8_lossy(name)))
        }
    }

    #[test]
    fn a_slow_kernel_makes_nobody_wait_and_gets_each_change_once() {
        let (taken, took) = channel();
        let (go, may_go) = channel();
        let notices = Arc::new(Notices::default());
        let kernel = SlowKernel {
            taken,
            go: Mutex::new(may_go),
        };
        let notifier = Notifier::start(Arc::clone(&notices), kernel).unwrap();
        notices.leave(Notice::InvalidateInode(7));
        assert_eq!(took.recv().unwrap(), "inode 7");
        // The kernel is busy with it: the same change again is new, and then it is one with its likes.
        for _ in 0..1000 {
            notices.leave(Notice::InvalidateInode(7));
            notices.leave(Notice::InvalidateEntry(1, b"log".to_vec()));
        }
        for expected in ["inode 7", "1/log"] {
            go.send(()).unwrap();
            assert_eq!(took.recv().unwrap(), expected);
        }
        notices.leave(Notice::InvalidateInode(8));
        go.send(()).unwrap();
        assert_eq!(took.recv().unwrap(), "inode 8");
        drop(go);
        drop(notifier);
        assert!(took.try_recv().is_err());
    }
}
