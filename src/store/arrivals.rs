//! Orders of arrival in memory: who was appended to last in each directory.
//!
//! Only logs that share a table with others, by their names, have places in an order. Invariant: what
//! is kept here is what the tree says, as long as the caller is inside a transaction.

use std::collections::HashMap;

use super::Store;
use crate::cask::{Read, Tx};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::FLAG_ORDERED;
use crate::format::key::Number;
use crate::fs::arrivals::{self, Mark, Tail};
use crate::fs::inode::{Inode, load};
use crate::sync::Mutex;

/// The end of an order.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    tail: Option<Tail>,
    /// How long the file that was appended to last is.
    size: u64,
}

/// The ends that are known.
#[derive(Default)]
pub(super) struct Arrivals(Mutex<HashMap<Number, End>>);

impl Arrivals {
    fn end(&self, r: &impl Read, dir: Number) -> Result<End> {
        if let Some(end) = self.0.lock().get(&dir) {
            return Ok(*end);
        }
        let tail = arrivals::tail(r, dir)?;
        let size = match tail.map(|tail| load(r, tail.file)) {
            Some(Ok(inode)) => inode.size,
            None | Some(Err(Error::Stale)) => 0,
            Some(Err(error)) => return Err(error),
        };
        Ok(End { tail, size })
    }

    /// The order of this directory ends so.
    pub fn know(&self, dir: Number, end: End) {
        self.0.lock().insert(dir, end);
    }
}

impl<D: Device> Store<D> {
    /// What is known of the order of a log's bytes is void: it is being truncated. To be called before
    /// the inode is saved.
    pub(super) fn begins_anew(&self, tx: &Tx<'_, D>, inode: &mut Inode) -> Result<()> {
        if inode.flags & FLAG_ORDERED != 0 && inode.parent != 0 {
            let tail = self.arrivals.end(tx, inode.parent)?.tail;
            inode.since = tail.map_or(0, |tail| tail.since());
        }
        Ok(())
    }

    /// Notes in what order files of a directory were appended to, each with the size that it has now.
    /// Answers where the order ends; to be called once in a transaction.
    pub(super) fn arrive(
        &self,
        tx: &mut Tx<'_, D>,
        dir: Number,
        files: impl Iterator<Item = (Number, u64)>,
    ) -> Result<End> {
        let End { tail, mut size } = self.arrivals.end(tx, dir)?;
        let mut last = tail.map_or(0, |tail| tail.file);
        let mut marks = Vec::new();
        for (file, end) in files {
            if file != last {
                marks.push(Mark { file, before: size });
                last = file;
            }
            size = end;
        }
        let tail = arrivals::push(tx, dir, tail, &marks)?;
        Ok(End { tail, size })
    }
}
