//! caskfs: one container file (a *cask*), mounted, in which every session and every flat log is an
//! ordinary file.
//!
//! # Layers
//!
//! A module names only modules that stand left of it (plus [`error`], [`limits`], [`clock`] and
//! [`sync`]); a test reads the `use crate::` lines and fails on an upward edge.
//!
//! `format < device < alloc < wal < tree < cask < fs < store < {fsck, fuse} < sessions < cli`
//!
//! Programs that keep sessions without a mount use [`sessions`].

pub mod clock;
pub mod error;
pub mod limits;
pub mod sync;

pub mod format;

pub mod device;

pub mod alloc;

pub mod wal;

pub mod tree;

pub mod cask;

pub mod fs;

pub mod store;

pub mod fsck;

pub mod fuse;

pub mod sessions;

pub mod cli;

pub use error::{Error, Result};
