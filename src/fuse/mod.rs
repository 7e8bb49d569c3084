//! fuse: being built.
