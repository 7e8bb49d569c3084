//! Devices that do what a real one does on its worst day.
//!
//! [`RecordingDevice`] notes every call, [`CrashResolver`] builds from such a recording the images
//! a power loss could leave, [`FaultyDevice`] fails the call it is told to. All of it is decided by
//! a seed, so that every failure can be had again.
//!
//! Built only for tests and with the feature `testing`.
#![allow(clippy::indexing_slicing)] // A mistake in a test device shall stop the test at once.

pub mod crash;
pub mod faulty;
pub mod recording;
pub mod rng;

pub use super::control::{Control, Removal};
pub use crash::{Choice, CrashResolver, Garbage, Keep, Unit};
pub use faulty::{Call, Effect, Fault, FaultyDevice};
pub use recording::{Event, Recording, RecordingDevice};
pub use rng::Rng;

/// Bytes that a disk writes as one: what a crash leaves of a larger write is decided per sector.
pub const SECTOR: usize = 512;

/// What a device under test can be told beside what every device can.
pub trait TestDevice: super::Device {
    /// A sync failed: what was written since the last one may never become durable, whatever a
    /// later sync answers.
    fn sync_failed(&self) {}
}

impl TestDevice for super::MemoryDevice {}
