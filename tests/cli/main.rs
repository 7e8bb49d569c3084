//! Does the command line do what is typed, say in one sentence what it cannot do, and leave alone what
//! it was not asked to change?

mod bad_input;
mod container;
mod mounted;
mod support;
