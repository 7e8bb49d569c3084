//! The way up: ancestors of a directory, the name of a file, the path to it.
//!
//! Nothing but the inodes is needed, as each knows its directory and the hash of its name. Trees may
//! be as deep as anybody makes them; invariant: a walk ends even where directories of a damaged cask
//! contain each other.

use super::directory::named_by;
use super::inode::{Inode, load, load_dir};
use crate::cask::Read;
use crate::error::{Error, Result};
use crate::format::key::{Number, ROOT};

/// The directories from one up to the root, both included.
struct Upward<'r, R> {
    r: &'r R,
    next: Option<Number>,
    /// Brent: a cycle is found when the walk comes back to a mark, which is moved on after 1, 2, 4 …
    /// steps.
    mark: Number,
    steps: u64,
    until: u64,
}

impl<'r, R: Read> Upward<'r, R> {
    fn from(r: &'r R, dir: Number) -> Self {
        Self {
            r,
            next: Some(dir),
            mark: dir,
            steps: 0,
            until: 1,
        }
    }

    fn above(&mut self, inode: &Inode) -> Result<Option<Number>> {
        if inode.number == ROOT {
            return Ok(None);
        }
        if inode.parent == self.mark {
            return Err(Error::corrupt("directories that contain each other", 0));
        }
        self.steps += 1;
        if self.steps == self.until {
            (self.mark, self.steps, self.until) = (inode.parent, 0, self.until * 2);
        }
        Ok(Some(inode.parent))
    }
}

impl<R: Read> Iterator for Upward<'_, R> {
    type Item = Result<Inode>;

    fn next(&mut self) -> Option<Self::Item> {
        let dir = self.next.take()?;
        Some(load_dir(self.r, dir).and_then(|inode| {
            self.next = self.above(&inode)?;
            Ok(inode)
        }))
    }
}

/// Whether `dir` is `ancestor` or stands somewhere below it.
pub(super) fn is_below(r: &impl Read, dir: Number, ancestor: Number) -> Result<bool> {
    for inode in Upward::from(r, dir) {
        if inode?.number == ancestor {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The name that an inode was given last, if it still has it.
///
/// # Errors
/// Those of reading.
pub fn name_of(r: &impl Read, inode: &Inode) -> Result<Option<Vec<u8>>> {
    if inode.parent == 0 || inode.number == ROOT {
        return Ok(None);
    }
    let named = named_by(r, inode.parent, inode.name_hash, inode.number)?;
    Ok(named.map(|named| named.entry.name))
}

/// The path from the root, without a leading slash, by the names given last; `None` when one of
/// them is gone.
///
/// # Errors
/// [`Error::Stale`] when there is no such inode; those of reading.
pub fn path_of(r: &impl Read, number: Number) -> Result<Option<Vec<u8>>> {
    let mut parts = Vec::new();
    if number != ROOT {
        let inode = load(r, number)?;
        let Some(name) = name_of(r, &inode)? else {
            return Ok(None);
        };
        parts.push(name);
        for dir in Upward::from(r, inode.parent) {
            let dir = dir?;
            if dir.number == ROOT {
                break;
            }
            let Some(name) = name_of(r, &dir)? else {
                return Ok(None);
            };
            parts.push(name);
        }
    }
    parts.reverse();
    Ok(Some(parts.join(&b'/')))
}
