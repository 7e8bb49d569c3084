//! fsck: being built.
