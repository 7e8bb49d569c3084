//! Bytes to structs and back: what stands on the disk, and nothing else.
//!
//! Pure: no I/O, no lock, no clock. docs/FORMAT.md is normative; a test compares its tables with
//! these structs. Invariant: every decoder takes any bytes and answers with a value or an error,
//! never with a panic, and allocates nothing larger than its input.

pub mod checksum;
pub mod content;
pub mod geometry;
pub mod item;
pub mod key;
pub mod page;
pub mod superblock;
pub mod wal;

pub use geometry::Geometry;
pub use item::{DirentRecord, FileKind, InodeRecord};
pub use key::{Key, Kind};
