//! Spares, and contents that a reader is in the middle of.
//!
//! A spare is an inode without a name that holds content for a while: what is being written and not
//! saved yet, or what was replaced and is still being read. A crash leaves it to be removed at the
//! next mount.
//!
//! Reading a value takes several calls, and between two of them it may be saved. So that no reader
//! gets the beginning of one and the end of another, a handle pins the content that it begins to
//! read. A save that replaces a pinned content hands it to a spare, which goes when the last reader is through.
//!
//! Invariant: pins are set, and looked at by saves, within transactions; so a content is dropped only
//! if nobody had pinned it, unless there was no inode left for a spare: then the pin is *lost*, and
//! its reader begins to read anew.

use std::collections::HashMap;

use super::{NOBODY, Store};
use crate::cask::{Class, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::key::Number;
use crate::fs::inode::{Inode, load, new_inode};
use crate::fs::{data, namespace};
use crate::sync::Mutex;

/// A content being read.
#[derive(Debug, Default)]
struct Pinned {
    /// Handles in the middle of it.
    readers: u64,
    /// The spare that holds it since it was replaced.
    spare: Option<Number>,
    /// It was dropped in spite of its readers.
    lost: bool,
}

/// All contents being read, by number.
#[derive(Debug, Default)]
pub struct Pins(Mutex<HashMap<Number, Pinned>>);

impl Pins {
    /// Whether somebody is in the middle of reading the content.
    fn is_pinned(&self, content: Number) -> bool {
        self.0.lock().contains_key(&content)
    }

    /// Whether what was pinned is still what the number holds.
    pub fn is_whole(&self, content: Number) -> bool {
        self.0
            .lock()
            .get(&content)
            .is_some_and(|pinned| !pinned.lost)
    }

    /// What became of a replaced content. False when the last reader left meanwhile, so that the
    /// spare is for the caller to remove.
    fn replaced(&self, content: Number, spare: Option<Number>) -> bool {
        match self.0.lock().get_mut(&content) {
            Some(pinned) => {
                pinned.spare = spare;
                pinned.lost = spare.is_none();
                true
            }
            None => false,
        }
    }
}

/// What a save did with the content that it replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// Nobody was reading it: it is gone.
    Dropped,
    /// Somebody is reading it: this spare has it, if there was one to be had.
    Kept(Number, Option<Number>),
}

impl<D: Device> Store<D> {
    /// Pins the content of an inode; answers the inode as it is at this moment.
    pub(super) fn pin(&self, ino: Number) -> Result<Inode> {
        let (inode, _) = self.cask.transact_then(
            Class::Release,
            |tx| load(tx, ino),
            |inode| self.pins.0.lock().entry(inode.content).or_default().readers += 1,
        )?;
        Ok(inode)
    }

    /// A reader is through with a content.
    pub(super) fn unpin(&self, content: Number) -> Result<()> {
        let spare = {
            let mut pins = self.pins.0.lock();
            let Some(pinned) = pins.get_mut(&content) else {
                return Ok(());
            };
            pinned.readers = pinned.readers.saturating_sub(1);
            match pinned.readers {
                0 => pins.remove(&content).and_then(|pinned| pinned.spare),
                _ => None,
            }
        };
        spare.map_or(Ok(()), |spare| self.drop_spare(spare))
    }

    /// Within a transaction, gives up the content of an inode for another.
    pub(super) fn give_up(
        &self,
        tx: &mut Tx<'_, D>,
        inode: &Inode,
        now: Timestamp,
    ) -> Result<Replaced> {
        let content = inode.content;
        if !self.pins.is_pinned(content) {
            tx.drop_content(content);
            return Ok(Replaced::Dropped);
        }
        match new_inode(tx, FileKind::Regular, 0o600, 0, 0, 0, now) {
            Ok(mut spare) => {
                (spare.content, spare.size) = (content, inode.size);
                namespace::keep_orphan(tx, &spare)?;
                Ok(Replaced::Kept(content, Some(spare.number)))
            }
            Err(Error::NoFiles) => {
                tx.drop_content(content);
                Ok(Replaced::Kept(content, None))
            }
            Err(error) => Err(error),
        }
    }

    /// Within a transaction, leaves a content with the spare that has it, if it is being read.
    pub(super) fn leave_to(&self, tx: &mut Tx<'_, D>, spare: &Inode) -> Result<Replaced> {
        if self.pins.is_pinned(spare.content) {
            return Ok(Replaced::Kept(spare.content, Some(spare.number)));
        }
        namespace::reap(tx, spare.number)?;
        Ok(Replaced::Dropped)
    }

    /// Right after the transaction, tells the readers. What is answered is for
    /// [`Store::drop_spare`].
    pub(super) fn tell_readers(&self, replaced: Replaced) -> Option<Number> {
        match replaced {
            Replaced::Kept(content, spare) if !self.pins.replaced(content, spare) => spare,
            _ => None,
        }
    }

    /// Makes an inode without a name, to hold content for a while.
    pub(super) fn make_spare(&self) -> Result<Number> {
        let now = self.now();
        let (spare, _) = self.cask.transact(Class::Grow, |tx| {
            let kind = FileKind::Regular;
            let inode = new_inode(tx, kind, 0o600, 0, 0, 0, now)?;
            namespace::keep_orphan(tx, &inode)?;
            Ok(inode.number)
        })?;
        Ok(spare)
    }

    /// Removes it, with what it holds.
    pub(super) fn drop_spare(&self, spare: Number) -> Result<()> {
        self.cask
            .transact(Class::Release, |tx| namespace::reap(tx, spare))
            .map(drop)
    }

    /// Copies what a file holds from `from` on to the start of a spare.
    pub(super) fn copy(&self, source: &Inode, from: u64, spare: Number) -> Result<()> {
        let mut piece = Vec::new();
        let mut at = from;
        while at < source.size {
            data::read(&*self.cask, source, at, 1 << 20, &mut piece)?;
            self.fs.write(&NOBODY, spare, Some(at - from), &piece)?;
            at += (piece.len() as u64).max(1);
        }
        Ok(())
    }
}
