//! Black-box proofs: the `caskfs` binary, the real kernel, ordinary system calls.
//!
//! Each module asks one question (see docs/TESTING.md). Nothing here knows the engine: what is
//! tested is what a user of the mount meets. Without root or `/dev/fuse` the tests say SKIPPED and
//! pass, unless `CASKFS_REQUIRE_MOUNT` is set.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod guard;
mod ledger;
mod load;
mod writer;

mod badinput;
mod bounds;
mod cat;
mod due;
mod kill9;
mod latency;
mod many;
mod posix;
mod programs;
mod resize;
mod rotate;
mod rule;
mod scale;
mod snapshot;
mod storm;
mod tools;
mod ttl;
mod value;
mod watch;
mod web;
mod wipe;
