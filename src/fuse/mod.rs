//! A cask as a mounted filesystem.
//!
//! [`ops`] holds the handlers, in the project's own words; [`dev`] is the decoder that puts the
//! kernel's requests from /dev/fuse before them, and the only file that names its library, so that
//! a second transport can stand beside it. [`session`] owns the life of a mount.

pub mod mounting;
pub mod mounts;
pub mod options;
pub mod session;
pub mod sys;
pub mod waker;
pub mod waking;

mod dev;
mod notifier;
mod ops;
mod workers;
