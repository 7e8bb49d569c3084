//! tree: being built.
