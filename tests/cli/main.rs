//! Does the command line do what is typed, say in one sentence what it cannot do, and leave alone what
//! it was not asked to change?

// A test that cannot go on ends by a panic, also in what it shares with others.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod bad_input;
mod container;
mod manual;
mod mounted;
mod repair;
mod support;
