//! What the tests share: the operations, the reference model, and the way to put both beside a
//! real cask.
#![allow(dead_code)] // Each test file uses its own part of it.

pub mod generate;
pub mod model;
pub mod op;
pub mod subject;
