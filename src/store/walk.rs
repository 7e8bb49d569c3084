//! Where a setting is found: file → directory → parent directories → root → built-in.
//!
//! The first level that has the name wins whole. Levels are found by an inode's `parent`, that is by
//! the name it was given last. What a directory comes to is kept, so that the common question costs
//! one look-up; a single generation number makes all of it void when any setting is changed or a
//! directory is moved. Invariant: an answer kept under the current generation is what a walk now
//! would find.

use std::collections::HashMap;
use std::sync::Arc;

use super::settings::{Bound, Effective, PREFIX, Setting};
use crate::cask::Read;
use crate::error::{Error, Result};
use crate::format::key::{Number, ROOT};
use crate::fs::inode::{Inode, load};
use crate::fs::xattr;
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Most directories whose answers are kept.
const CACHE_MAX: usize = 16_384;
/// Most levels between a directory and the root; deeper ones cannot be reached by a path.
const DEPTH_MAX: usize = 4096;

/// At which level a setting was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the inode itself or on the directory with this number above it.
    Level(Number),
    /// Nowhere: it is the built-in default.
    BuiltIn,
}

/// The settings of directories and files.
#[derive(Default)]
pub struct Walk {
    generation: AtomicU64,
    kept: RwLock<HashMap<Number, (u64, Arc<Effective>)>>,
}

impl Walk {
    /// The current generation of all answers.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes all answers void: a setting was changed, or a directory moved.
    pub fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The settings in force for an inode.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of(&self, r: &impl Read, inode: &Inode) -> Result<Arc<Effective>> {
        if inode.is_dir() {
            return self.of_dir(r, inode.number);
        }
        let above = match inode.parent {
            0 => Arc::default(),
            parent => self.of_dir(r, parent)?,
        };
        let own = own(r, inode)?;
        if own.is_empty() {
            return Ok(above);
        }
        Ok(Arc::new(over((*above).clone(), &own)))
    }

    /// The settings in force for a directory, and for what is made in it.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of_dir(&self, r: &impl Read, dir: Number) -> Result<Arc<Effective>> {
        let generation = self.generation();
        let mut below = Vec::new();
        let mut at = dir;
        let mut found = loop {
            if let Some(kept) = self.kept(at, generation) {
                break kept;
            }
            let inode = match load(r, at) {
                Ok(inode) => inode,
                // A removed directory, whose handles live on, has nothing above it.
                Err(Error::Stale) => break Arc::default(),
                Err(error) => return Err(error),
            };
            at = inode.parent;
            below.push(inode);
            if below.len() > DEPTH_MAX {
                return Err(Error::corrupt("directories that contain each other", 0));
            }
            if below.last().is_some_and(|inode| inode.number == ROOT) || at == 0 {
                break Arc::default();
            }
        };
        for inode in below.iter().rev() {
            let own = own(r, inode)?;
            if !own.is_empty() {
                let mut settings = over((*found).clone(), &own);
                settings.bounds.extend(Bound::of(inode.number, &own));
                found = Arc::new(settings);
            }
            self.keep(inode.number, generation, &found);
        }
        Ok(found)
    }

    fn kept(&self, dir: Number, generation: u64) -> Option<Arc<Effective>> {
        let kept = self.kept.read();
        let (of, settings) = kept.get(&dir)?;
        (*of == generation).then(|| Arc::clone(settings))
    }

    fn keep(&self, dir: Number, generation: u64, settings: &Arc<Effective>) {
        let mut kept = self.kept.write();
        if kept.len() >= CACHE_MAX {
            kept.clear();
        }
        kept.insert(dir, (generation, Arc::clone(settings)));
    }
}

/// The value of one setting for an inode, and where it was found.
///
/// # Errors
/// Those of reading.
pub fn find(r: &impl Read, inode: &Inode, setting: &Setting) -> Result<(Vec<u8>, Origin)> {
    let name = [PREFIX, setting.name.as_bytes()].concat();
    let mut at = *inode;
    for _ in 0..DEPTH_MAX {
        match xattr::get(r, &at, &name) {
            Ok(value) => return Ok((value, Origin::Level(at.number))),
            Err(Error::NoAttribute) => {}
            Err(error) => return Err(error),
        }
        if at.number == ROOT || at.parent == 0 {
            break;
        }
        at = match load(r, at.parent) {
            Ok(inode) => inode,
            Err(Error::Stale) => break,
            Err(error) => return Err(error),
        };
    }
    Ok((setting.default.as_bytes().to_vec(), Origin::BuiltIn))
}

/// The settings that stand on an inode itself: full attribute name and value.
///
/// # Errors
/// Those of reading.
pub fn own(r: &impl Read, inode: &Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let names = xattr::list(r, inode)?;
    let settings = names.into_iter().filter(|name| name.starts_with(PREFIX));
    settings
        .map(|name| xattr::get(r, inode, &name).map(|value| (name, value)))
        .collect()
}

/// `settings` with others over them, given by full attribute name and value.
pub fn over(settings: Effective, own: &[(Vec<u8>, Vec<u8>)]) -> Effective {
    own.iter().fold(settings, |settings, (name, value)| {
        settings.with(name.strip_prefix(PREFIX).unwrap_or_default(), value)
    })
}
