//! What the tests share: the operations, the reference model, and the way to put both beside a
//! real cask.
#![allow(dead_code)] // Each test file uses its own part of it.
// A mistake in a test shall stop the test at once.
#![allow(clippy::indexing_slicing, clippy::expect_used)]

pub mod case;
pub mod edits;
pub mod exhaust;
pub mod explorer;
pub mod faithless;
pub mod generate;
pub mod life;
pub mod logs;
pub mod model;
pub mod op;
pub mod plans;
pub mod subject;
pub mod values;
