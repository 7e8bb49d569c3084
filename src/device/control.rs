//! Named controls: the barriers, checks and bounds on which crash safety rests.
//!
//! A test removes one at a time and must see the crash explorer catch it: so it is proved that each
//! is needed and that the explorer would notice. In builds without the feature `testing` nothing can
//! be removed, and every use of [`removed`] folds to `false`.

/// One control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Control {
    /// `fsync` flushes the device before it answers.
    FlushOnFsync,
    /// A checkpoint's pages, blocks and bitmaps are durable before its superblock is written.
    CheckpointDataBarrier,
    /// The superblock is durable before what it gives up is used again.
    CheckpointSuperblockBarrier,
    /// A log frame must carry the digest of the frame before it.
    DigestChain,
    /// Blocks written past the log are verified when their record was not confirmed.
    BypassChecksums,
    /// Blocks given up are used again only after the checkpoint that gives them up.
    DeferredFree,
    /// Log space is used again only after the checkpoint that retires it.
    WalRetirement,
    /// After a sync the log goes on in a fresh unit.
    FreshBlockAfterAck,
    /// Recovery that replayed or rejected anything writes a checkpoint before serving.
    CheckpointAfterRecovery,
    /// Generations alternate between two pairs of superblock copies.
    TwoSuperblockSlots,
    /// A sync that confirms blocks written past the log flushes the whole device.
    FullFlushWithBypass,
}

impl Control {
    /// All of them.
    pub const ALL: [Self; 11] = [
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
    ];
}

/// Whether a test has removed the control: never, in this build.
#[cfg(not(any(test, feature = "testing")))]
pub const fn removed(_control: Control) -> bool {
    false
}

#[cfg(any(test, feature = "testing"))]
thread_local! {
    static REMOVED: std::cell::Cell<Option<Control>> = const { std::cell::Cell::new(None) };
}

/// Whether the test running in this thread has removed the control.
#[cfg(any(test, feature = "testing"))]
pub fn removed(control: Control) -> bool {
    REMOVED.get() == Some(control)
}

/// Runs `body` in this thread with the control removed.
#[cfg(any(test, feature = "testing"))]
pub fn without<T>(control: Control, body: impl FnOnce() -> T) -> T {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            REMOVED.set(None);
        }
    }
    let _restore = Restore;
    REMOVED.set(Some(control));
    body()
}
