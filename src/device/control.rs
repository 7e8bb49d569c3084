//! The named controls: every step the engine takes only so that a crash cannot hurt.
//!
//! Each is passed by a question, `removed(Control::X)`, which a release build answers with a
//! constant `false`. A build with the feature `testing` can take one away on the asking thread, and
//! the crash explorer must then find a crash state that breaks the promise: a control whose
//! removal nobody notices is either not tested or not needed.
//!
//! Invariant: without the feature `testing` nothing in this file can change what the engine does.

/// A step taken for the sake of crash safety alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Control {
    /// The flush before an fsync is acknowledged.
    FlushOnFsync = 1 << 0,
    /// A checkpoint's flush between its data and pages and its superblock.
    CheckpointDataBarrier = 1 << 1,
    /// A checkpoint's flush between its superblock and the reuse of what it retires.
    CheckpointSuperblockBarrier = 1 << 2,
    /// A frame's digest covers the digest of the frame before it.
    DigestChain = 1 << 3,
    /// Replay verifies bypassed data that no later frame confirms to be durable.
    BypassChecksums = 1 << 4,
    /// A freed block is not allocated again before the checkpoint that frees it is durable.
    DeferredFree = 1 << 5,
    /// The write-ahead log is not overwritten before the checkpoint that retires it is durable.
    WalRetirement = 1 << 6,
    /// After an acknowledged sync the log goes on in a block it has not written to yet.
    FreshBlockAfterAck = 1 << 7,
    /// Recovery ends with a checkpoint of a fresh seed, before anything new is logged.
    CheckpointAfterRecovery = 1 << 8,
    /// Generations alternate between two sets of superblock copies.
    TwoSuperblockSlots = 1 << 9,
    /// A sync that covers bypassed data flushes the whole device, not only the log.
    FullFlushWithBypass = 1 << 10,
    /// A cut is one record: what `keep` drops goes in the record that moves the name.
    CutIsOneRecord = 1 << 11,
    /// What is given up is wiped only after the checkpoint that gives it up is durable.
    WipeAfterCommit = 1 << 12,
    /// A checkpoint waits for the log's flush under way, which may be told of what the checkpoint wrote.
    FlushOfTheLog = 1 << 13,
}

impl Control {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::FlushOnFsync,
        Self::CheckpointDataBarrier,
        Self::CheckpointSuperblockBarrier,
        Self::DigestChain,
        Self::BypassChecksums,
        Self::DeferredFree,
        Self::WalRetirement,
        Self::FreshBlockAfterAck,
        Self::CheckpointAfterRecovery,
        Self::TwoSuperblockSlots,
        Self::FullFlushWithBypass,
        Self::CutIsOneRecord,
        Self::WipeAfterCommit,
        Self::FlushOfTheLog,
    ];
}

/// Whether a test took this control away: never, in this build.
#[cfg(not(any(test, feature = "testing")))]
#[inline(always)]
pub const fn removed(_control: Control) -> bool {
    false
}

#[cfg(any(test, feature = "testing"))]
pub use switch::{Removal, removed};

#[cfg(any(test, feature = "testing"))]
mod switch {
    use std::cell::Cell;
    use std::marker::PhantomData;

    use super::Control;

    thread_local! {
        static REMOVED: Cell<u16> = const { Cell::new(0) };
    }

    /// Whether a test took this control away on this thread.
    #[inline]
    pub fn removed(control: Control) -> bool {
        REMOVED.get() & control as u16 != 0
    }

    impl Control {
        /// Takes this control away on this thread until the answer is dropped.
        #[must_use = "the control is back as soon as this is dropped"]
        pub fn remove(self) -> Removal {
            let before = REMOVED.get();
            REMOVED.set(before | self as u16);
            Removal {
                before,
                this_thread: PhantomData,
            }
        }
    }

    /// Keeps a control away on the thread that removed it; see [`Control::remove`].
    #[derive(Debug)]
    pub struct Removal {
        before: u16,
        this_thread: PhantomData<*const ()>,
    }

    impl Drop for Removal {
        fn drop(&mut self) {
            REMOVED.set(self.before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_is_away_while_its_removal_lives_and_on_this_thread_only() {
        assert!(Control::ALL.iter().all(|control| !removed(*control)));
        let outer = Control::DigestChain.remove();
        {
            let _inner = Control::DeferredFree.remove();
            assert!(removed(Control::DigestChain) && removed(Control::DeferredFree));
            let elsewhere = std::thread::spawn(|| removed(Control::DigestChain)).join();
            assert!(matches!(elsewhere, Ok(false)));
        }
        assert!(removed(Control::DigestChain) && !removed(Control::DeferredFree));
        drop(outer);
        assert!(!removed(Control::DigestChain));
    }
}
