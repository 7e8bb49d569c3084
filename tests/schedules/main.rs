//! What if the threads take their turns in another order?
//!
//! Each body is a few threads on a tiny cask. It runs under one schedule after the other: every lock,
//! every atomic that carries an order and every call to the device is a point at which the scheduler
//! decides who goes on. A schedule in which nobody can go on is a failure. `CASKFS_SCHEDULES` says how
//! many to try in all (2,000), `CASKFS_SCHEDULE_SEED` where to begin (1).
//!
//! That a body can fail is shown by the bodies that must.
#![cfg(feature = "schedules")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod engine;
mod files;
mod harness;
