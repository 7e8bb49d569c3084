//! The kernel's side: requests in, answers out.
//!
//! `ops` runs operations in our own types; `dev` decodes `/dev/fuse`; `session` is the life of a
//! mount. A second transport stands beside `dev` and shares everything else.

pub mod notifier;
pub mod ops;
pub mod options;
pub mod session;

mod dev;

pub use options::MountOptions;
pub use session::{Mount, open_container};
