//! Limits: how many bytes and files may stand below a directory.
//!
//! Every operation is asked, before it is applied, which inodes it makes, changes and takes, and what
//! that adds below each directory that has a limit. What stands there is counted once, when it is first
//! asked for, and kept up from then on; so a cask without limits pays next to nothing, and nothing about
//! limits is stored but the settings. A file counts where the name given last stands. Invariant: what
//! is kept of a directory is what a count would find, as long as the directory has a limit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::Store;
use super::settings::Bound;
use super::walk::Walk;
use crate::cask::{Guard, Read, Tx};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::{Number, ROOT};
use crate::fs::inode::{Inode, load};
use crate::fs::namespace;
use crate::sync::Mutex;

/// What stands below a directory, or is added there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    bytes: i128,
    files: i128,
}

impl Amount {
    fn of(inode: &Inode) -> Self {
        let bytes = match inode.is_dir() {
            true => 0,
            false => i128::from(inode.size),
        };
        Self { bytes, files: 1 }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes + other.bytes,
            files: self.files + other.files,
        }
    }

    fn minus(self) -> Self {
        Self {
            bytes: -self.bytes,
            files: -self.files,
        }
    }

    /// Whether adding this to what is there goes beyond a bound.
    fn breaks(self, there: Self, bound: &Bound) -> bool {
        let beyond = |added: i128, there: i128, most: Option<u64>| {
            added > 0 && most.is_some_and(|most| there + added > i128::from(most))
        };
        beyond(self.bytes, there.bytes, bound.bytes) || beyond(self.files, there.files, bound.files)
    }
}

/// What is counted.
#[derive(Default)]
struct Counted {
    /// Generation of the settings that the counts are of.
    generation: u64,
    below: HashMap<Number, Amount>,
    /// What the operation at hand adds.
    pending: Vec<(Number, Amount)>,
}

/// The limits of a cask.
pub(super) struct Quotas {
    walk: Arc<Walk>,
    counted: Mutex<Counted>,
}

impl Quotas {
    pub fn new(walk: Arc<Walk>) -> Self {
        Self {
            walk,
            counted: Mutex::default(),
        }
    }

    /// The bounds that what stands in a directory is under.
    fn bounds(&self, r: &impl Read, dir: Number) -> Result<Vec<Bound>> {
        match dir {
            0 => Ok(Vec::new()),
            _ => Ok(self.walk.of_dir(r, dir)?.bounds.clone()),
        }
    }

    /// What stands below a directory.
    fn below(&self, r: &impl Read, dir: Number) -> Result<Amount> {
        if let Some(amount) = self.counted.lock().below.get(&dir) {
            return Ok(*amount);
        }
        let amount = count(r, dir)?;
        self.counted.lock().below.insert(dir, amount);
        Ok(amount)
    }

    /// Forgets the counts of directories that have no limit any more, as nobody keeps them up. Answers
    /// whether there are any left.
    fn refresh(&self, r: &impl Read) -> Result<bool> {
        let generation = self.walk.generation();
        let known: Vec<Number> = {
            let mut counted = self.counted.lock();
            counted.pending.clear();
            if counted.generation == generation {
                return Ok(!counted.below.is_empty());
            }
            counted.below.keys().copied().collect()
        };
        let mut gone = Vec::new();
        for dir in known {
            if !self.bounds(r, dir)?.iter().any(|bound| bound.dir == dir) {
                gone.push(dir);
            }
        }
        let mut counted = self.counted.lock();
        counted.generation = generation;
        counted.below.retain(|dir, _| !gone.contains(dir));
        Ok(!counted.below.is_empty())
    }
}

#[cfg(test)]
impl Quotas {
    /// What is kept of directories that have a limit, and what a count finds.
    pub fn kept_and_found(
        &self,
        r: &impl Read,
    ) -> Result<(BTreeMap<Number, Amount>, BTreeMap<Number, Amount>)> {
        self.refresh(r)?;
        let kept: BTreeMap<_, _> = self.counted.lock().below.clone().into_iter().collect();
        let found = kept.keys().map(|dir| Ok((*dir, count(r, *dir)?)));
        let found = found.filter(|found| !matches!(found, Err(Error::Stale)));
        let found = found.collect::<Result<BTreeMap<_, _>>>()?;
        Ok((kept, found))
    }
}

impl<D: Device> Guard<D> for Quotas {
    fn admit(&self, tx: &Tx<'_, D>) -> Result<()> {
        let before = tx.before();
        let counting = self.refresh(before)?;
        let mut changed = Vec::new();
        let mut bounded = counting;
        for (number, value) in tx.inodes() {
            let new = value
                .map(|value| Inode::decode(number, value))
                .transpose()?;
            let bounds = self.bounds(before, new.map_or(0, |new| new.parent))?;
            bounded |= !bounds.is_empty();
            changed.push((number, new, bounds));
        }
        if !bounded {
            return Ok(());
        }
        let mut added: BTreeMap<Number, (Bound, Amount)> = BTreeMap::new();
        let mut add = |bounds: Vec<Bound>, amount: Amount| {
            for bound in bounds {
                let (_, sum) = added.entry(bound.dir).or_insert((bound, Amount::default()));
                *sum = sum.plus(amount);
            }
        };
        for (number, new, bounds) in changed {
            if number == ROOT {
                continue;
            }
            let old = match load(before, number) {
                Ok(old) => Some(old),
                Err(Error::Stale) => None,
                Err(error) => return Err(error),
            };
            let left = self.bounds(before, old.map_or(0, |old| old.parent))?;
            // A directory that moves takes with it what stands below it.
            let with = match (&old, &new) {
                (Some(old), Some(new)) if new.is_dir() && old.parent != new.parent => {
                    count(before, number)?
                }
                _ => Amount::default(),
            };
            if let Some(old) = &old {
                add(left, Amount::of(old).plus(with).minus());
            }
            if let Some(new) = &new {
                add(bounds, Amount::of(new).plus(with));
            }
        }
        let mut pending = Vec::new();
        for (dir, (bound, amount)) in added {
            if amount == Amount::default() {
                continue;
            }
            let (files, bytes) = tx.allowance();
            let asked = Amount {
                bytes: amount.bytes - i128::from(bytes),
                files: amount.files - i128::from(files),
            };
            if asked.breaks(self.below(before, dir)?, &bound) {
                return Err(Error::Quota);
            }
            pending.push((dir, amount));
        }
        self.counted.lock().pending = pending;
        Ok(())
    }

    fn applied(&self) {
        let mut counted = self.counted.lock();
        for (dir, amount) in std::mem::take(&mut counted.pending) {
            if let Some(below) = counted.below.get_mut(&dir) {
                *below = below.plus(amount);
            }
        }
    }
}

/// Counts what stands below a directory.
fn count(r: &impl Read, dir: Number) -> Result<Amount> {
    let mut sum = Amount::default();
    let mut dirs = vec![dir];
    // A damaged directory may contain one that contains it.
    let mut seen = HashSet::from([dir, ROOT]);
    while let Some(dir) = dirs.pop() {
        let mut entries = Vec::new();
        namespace::read_dir(r, dir, 0, &mut |entry| {
            if entry.name != b"." && entry.name != b".." {
                entries.push((entry.ino, r.name_hash(&entry.name)));
            }
            Ok(true)
        })?;
        for (number, hash) in entries {
            let inode = load(r, number)?;
            // Of several names only the one given last counts.
            if inode.parent == dir && inode.name_hash == hash {
                sum = sum.plus(Amount::of(&inode));
                if inode.is_dir() && seen.insert(number) {
                    dirs.push(number);
                }
            }
        }
    }
    Ok(sum)
}

impl<D: Device> Store<D> {
    /// Refuses to let a value, which is `held` bytes long, get so long: who writes it is told, as few heed what closing answers.
    pub(super) fn check_limit(&self, ino: Number, held: u64, size: u64) -> Result<()> {
        let inode = self.fs.inode(ino)?;
        let bounds = self.quotas.bounds(&*self.cask, inode.parent)?;
        if size <= inode.size.max(held) || bounds.is_empty() {
            return Ok(());
        }
        let added = Amount {
            bytes: i128::from(size.saturating_sub(inode.size)),
            files: 0,
        };
        self.cask.still(|cask| {
            self.quotas.refresh(cask)?;
            for bound in &bounds {
                if added.breaks(self.quotas.below(cask, bound.dir)?, bound) {
                    return Err(Error::Quota);
                }
            }
            Ok(())
        })
    }
}
