//! Files and names over the cask: inodes, directories, content, attributes. No FUSE type in sight.

pub mod types;

pub use types::{Attr, Caller, DirEntry, OpenFlags, RenameFlags, SetAttr, SetTime, StatFs};
