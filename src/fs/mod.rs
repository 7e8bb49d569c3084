//! fs: being built.
