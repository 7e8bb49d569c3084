//! How much is over by when, in the directories where `ttl` is in force.
//!
//! Counted by the time at which files are over, in steps of a four-thousandth of the `ttl`: so `df` knows
//! at once what is over, and the [sweep](super::sweep) where there is something to do, though nobody has
//! looked at a file. Nothing of it is stored. After a mount, and when the settings change, it is counted anew, a
//! few names at a time, and every operation meanwhile brings up to date what was counted.
//!
//! Invariant: what is kept of a directory is what a count of its names below [`Dir::counted_to`] would
//! find, by the settings that were in force when the count began.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::lifetime::end;
use super::walk::Walk;
use crate::cask::{Cask, Guard, Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::item::{FLAG_SPARSE, FLAG_XATTR};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load};
use crate::fs::lifetime;
use crate::fs::namespace;
use crate::limits::BELIEVED_SECS;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Steps that a `ttl` is divided into.
const STEPS: i64 = 4096;
/// The shortest step, in milliseconds.
const STEP_MIN: i64 = 10;
/// Names counted between two operations.
const AT_ONCE: usize = 256;

/// Some files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// How many.
    pub files: u64,
    /// What removing them frees at least, in bytes: whole blocks, and half of what is too small for one.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }

    fn take(&mut self, other: Self) {
        self.files = self.files.saturating_sub(other.files);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// A directory that is counted.
#[derive(Debug)]
struct Dir {
    /// Names whose hash is below this are counted; `None` when all are.
    counted_to: Option<u64>,
    /// Directories in it are counted, too.
    deep: bool,
    /// Milliseconds in a step.
    step: i64,
    /// What is over in each step.
    steps: BTreeMap<i64, Tally>,
    files: u64,
}

impl Dir {
    fn new(step: i64, deep: bool, counted_to: Option<u64>) -> Self {
        Self {
            counted_to,
            deep,
            step,
            steps: BTreeMap::new(),
            files: 0,
        }
    }

    fn step_of(&self, end: Timestamp) -> i64 {
        millis(end).div_euclid(self.step)
    }

    fn add(&mut self, step: i64, tally: Tally) {
        self.steps.entry(step).or_default().add(tally);
        self.files += tally.files;
    }

    fn take(&mut self, step: i64, tally: Tally) {
        if let Some(held) = self.steps.get_mut(&step) {
            held.take(tally);
            if held.files == 0 {
                self.steps.remove(&step);
            }
        }
        self.files = self.files.saturating_sub(tally.files);
    }

    fn over(&self, now: Timestamp) -> Tally {
        let mut sum = Tally::default();
        for tally in self
            .steps
            .range(..self.step_of(now))
            .map(|(_, tally)| tally)
        {
            sum.add(*tally);
        }
        sum
    }
}

/// Milliseconds in a step of a directory with this `ttl`.
fn step_of(ttl: Option<u64>) -> i64 {
    let millis = ttl.map_or(0, |ttl| ttl.saturating_mul(1000));
    (i64::try_from(millis).unwrap_or(i64::MAX) / STEPS).max(STEP_MIN)
}

/// What removing a file frees at least.
fn tally(r: &impl Read, inode: &Inode) -> Tally {
    let block = u64::from(r.block_size());
    let bytes = match inode.size {
        size if size < block => size / 2,
        _ if inode.flags & FLAG_SPARSE != 0 => 0,
        size => size / block * block,
    };
    Tally { files: 1, bytes }
}

/// Inodes under the names of a directory from this hash on, whether each is a directory, and the hash
/// to go on from.
type Names = (Vec<(Number, bool)>, Option<u64>);

fn names_from(r: &impl Read, dir: Number, from: u64) -> Result<Names> {
    let (mut found, mut next) = (Vec::new(), None);
    namespace::names_from(r, dir, from, &mut |hash, entries| {
        if found.len() >= AT_ONCE {
            next = Some(hash);
            return false;
        }
        let kinds = entries.iter().map(|entry| (entry.number, entry.kind));
        found.extend(kinds.map(|(number, kind)| (number, kind == FileKind::Directory)));
        true
    })?;
    Ok((found, next))
}

fn millis(time: Timestamp) -> i64 {
    time.secs
        .saturating_mul(1000)
        .saturating_add(i64::from(time.nanos / 1_000_000))
}

/// What an operation changes.
#[derive(Clone, Copy, Debug)]
enum Change {
    Add(Number, i64, Tally),
    Take(Number, i64, Tally),
    /// A directory, in which a step has so many milliseconds.
    Made(Number, i64),
    Removed(Number),
    /// A file with an end of its own is in this directory, which is not counted.
    Found(Number),
    /// A directory was moved: who knows what is in force below it now.
    Moved,
}

#[derive(Default)]
struct Counted {
    /// The list of what has a `ttl` was read.
    known: bool,
    dirs: HashMap<Number, Dir>,
    /// Directories that are not counted to their end.
    queue: VecDeque<Number>,
    /// What the operation at hand changes.
    pending: Vec<Change>,
    /// Directories in which something that is over was seen, though they are not counted.
    visited: HashSet<Number>,
}

/// The counts of a cask.
pub(super) struct Ages {
    walk: Arc<Walk>,
    counted: Mutex<Counted>,
    /// Something may have an end: operations have to be looked at.
    active: AtomicBool,
    /// Until then, in seconds, the kernel may believe names by settings of before.
    told_until: AtomicI64,
}

impl Ages {
    pub fn new(walk: Arc<Walk>) -> Self {
        Self {
            walk,
            counted: Mutex::default(),
            active: AtomicBool::new(false),
            told_until: AtomicI64::new(i64::MIN),
        }
    }

    /// All counts are void: settings were changed. Called between two operations.
    pub fn reset(&self) {
        let mut counted = self.counted.lock();
        let visited = std::mem::take(&mut counted.visited);
        *counted = Counted {
            visited,
            ..Counted::default()
        };
        self.active.store(false, Ordering::Release);
    }

    /// The `ttl` or mode of a file or directory was changed. Called between two operations.
    pub fn changed(&self, inode: &Inode, now: Timestamp) {
        if inode.is_dir() {
            self.reset();
        } else {
            self.visit(inode.parent);
            // Though nothing is counted yet: where it is renamed to has to be noticed.
            self.active.store(true, Ordering::Release);
        }
        self.tell(now);
    }

    /// From now on the kernel has to be told of what is removed, until it asks by itself.
    pub fn tell(&self, now: Timestamp) {
        let told_until = now.secs.saturating_add(BELIEVED_SECS as i64);
        self.told_until.store(told_until, Ordering::Release);
    }

    /// Whether the kernel may still believe names longer than the settings of today would have it.
    pub fn is_told(&self, now: Timestamp) -> bool {
        now.secs <= self.told_until.load(Ordering::Acquire)
    }

    /// Something that is over was seen in this directory.
    pub fn visit(&self, dir: Number) {
        let mut counted = self.counted.lock();
        if dir != 0 && !counted.dirs.contains_key(&dir) {
            counted.visited.insert(dir);
        }
    }

    /// Whether files in this directory may be over for what stands on themselves.
    ///
    /// # Errors
    /// Those of reading.
    pub fn knows(&self, r: &impl Read, dir: Number) -> Result<bool> {
        {
            let counted = self.counted.lock();
            if counted.dirs.contains_key(&dir) || counted.visited.contains(&dir) {
                return Ok(true);
            }
            if counted.known {
                return Ok(false);
            }
        }
        // Nobody has looked yet which directories those are.
        lifetime::is_any_listed(r)
    }

    /// What is over in all directories.
    pub fn over(&self, now: Timestamp) -> Tally {
        let mut sum = Tally::default();
        if self.active.load(Ordering::Acquire) {
            for dir in self.counted.lock().dirs.values() {
                sum.add(dir.over(now));
            }
        }
        sum
    }

    /// The directories in which something is over, and how many files each has that will be.
    pub fn with_over(&self, now: Timestamp) -> Vec<(Number, u64)> {
        if !self.active.load(Ordering::Acquire) {
            return Vec::new();
        }
        let counted = self.counted.lock();
        let over = counted
            .dirs
            .iter()
            .filter(|(_, dir)| dir.over(now).files > 0);
        over.map(|(number, dir)| (*number, dir.files)).collect()
    }

    /// Counts on, about so many names; answers whether nothing is left to count.
    ///
    /// # Errors
    /// Those of reading. What cannot be read is left out.
    pub fn count<D: Device>(&self, cask: &Cask<D>, names: usize) -> Result<bool> {
        let mut left = names;
        loop {
            let visited = !self.counted.lock().visited.is_empty();
            if !self.counted.lock().known || visited {
                cask.still(|cask| self.begin(cask))?;
            }
            let next = {
                let counted = self.counted.lock();
                let dir = counted.queue.front().copied();
                dir.map(|dir| (dir, counted.dirs.get(&dir).and_then(|dir| dir.counted_to)))
            };
            let Some((dir, from)) = next else {
                return Ok(true);
            };
            if left == 0 {
                return Ok(false);
            }
            // What is read here does not keep operations waiting when it is read again.
            if let Some(from) = from {
                for (number, _) in
                    names_from(cask, dir, from).map_or(Vec::new(), |(found, _)| found)
                {
                    let _ = load(cask, number);
                }
            }
            let done = cask.still(|cask| self.count_some(cask, dir));
            left = left.saturating_sub(AT_ONCE);
            cask.give_way();
            if done.is_err() {
                let mut counted = self.counted.lock();
                counted.dirs.remove(&dir);
                counted.queue.retain(|queued| *queued != dir);
                done?;
            }
        }
    }

    /// Reads where a `ttl` stands. Called between two operations.
    fn begin(&self, r: &impl Read) -> Result<()> {
        let (known, visited) = {
            let counted = self.counted.lock();
            (counted.known, counted.visited.clone())
        };
        for dir in visited {
            let entered = self.enter(r, dir, false);
            self.counted.lock().visited.remove(&dir);
            entered?;
        }
        if known {
            return Ok(());
        }
        let listed = lifetime::listed(r)?;
        if !listed.is_empty() {
            self.active.store(true, Ordering::Release);
        }
        for number in listed {
            match load(r, number) {
                Ok(inode) if inode.is_dir() => self.enter(r, number, true)?,
                Ok(inode) => self.enter(r, inode.parent, false)?,
                Err(Error::Stale) => {}
                Err(error) => return Err(error),
            }
        }
        self.counted.lock().known = true;
        Ok(())
    }

    /// Counts a directory from now on.
    fn enter(&self, r: &impl Read, number: Number, deep: bool) -> Result<()> {
        match load(r, number) {
            Ok(inode) if inode.is_dir() => {}
            Ok(_) | Err(Error::Stale) => return Ok(()),
            Err(error) => return Err(error),
        }
        let ttl = self.walk.of_dir(r, number)?.ttl;
        let mut counted = self.counted.lock();
        let counted = &mut *counted;
        let held = counted
            .dirs
            .get(&number)
            .is_some_and(|dir| dir.deep || !deep);
        if !held {
            counted
                .dirs
                .insert(number, Dir::new(step_of(ttl), deep, Some(0)));
            counted.queue.retain(|queued| *queued != number);
            counted.queue.push_back(number);
        }
        self.active.store(true, Ordering::Release);
        Ok(())
    }

    /// Counts some names of a directory. Called between two operations.
    fn count_some(&self, r: &impl Read, number: Number) -> Result<()> {
        let Some((from, deep)) = self
            .counted
            .lock()
            .dirs
            .get(&number)
            .and_then(|dir| Some((dir.counted_to?, dir.deep)))
        else {
            self.counted.lock().queue.retain(|queued| *queued != number);
            return Ok(());
        };
        let (found, next) = match names_from(r, number, from) {
            Ok(found) => found,
            Err(Error::Stale) => (Vec::new(), None),
            Err(error) => return Err(error),
        };
        let mut adds = Vec::new();
        for (entry, is_dir) in found {
            if is_dir {
                if deep && self.walk.of_dir(r, entry)?.ttl.is_some() {
                    self.enter(r, entry, true)?;
                }
                continue;
            }
            let inode = match load(r, entry) {
                Ok(inode) => inode,
                Err(Error::Stale) => continue,
                Err(error) => return Err(error),
            };
            // Of several names only the one given last counts, and that may not be reached yet.
            let here = inode.parent == number
                && inode.name_hash >= from
                && next.is_none_or(|next| inode.name_hash < next);
            if here && let Some(time) = end(&inode, &*self.walk.of(r, &inode)?) {
                adds.push((time, tally(r, &inode)));
            }
        }
        let mut counted = self.counted.lock();
        if let Some(dir) = counted.dirs.get_mut(&number) {
            for (time, tally) in adds {
                dir.add(dir.step_of(time), tally);
            }
            dir.counted_to = next;
        }
        if next.is_none() {
            counted.queue.retain(|queued| *queued != number);
        }
        Ok(())
    }

    /// Where a file is counted.
    fn place(
        &self,
        r: &impl Read,
        dirs: &HashMap<Number, Dir>,
        inode: &Inode,
    ) -> Result<Option<(Number, i64, Tally)>> {
        let Some(dir) = dirs.get(&inode.parent) else {
            return Ok(None);
        };
        if dir.counted_to.is_some_and(|to| inode.name_hash >= to) {
            return Ok(None);
        }
        let end = end(inode, &*self.walk.of(r, inode)?);
        Ok(end.map(|end| (inode.parent, dir.step_of(end), tally(r, inode))))
    }

    fn look<D: Device>(&self, tx: &Tx<'_, D>, counted: &mut Counted) -> Result<()> {
        let before = tx.before();
        for (number, value) in tx.inodes() {
            let new = value
                .map(|value| Inode::decode(number, value))
                .transpose()?;
            let old = match load(before, number) {
                Ok(old) => Some(old),
                Err(Error::Stale) => None,
                Err(error) => return Err(error),
            };
            match (old, new) {
                (None, Some(new)) if new.is_dir() => {
                    if counted.dirs.get(&new.parent).is_some_and(|dir| dir.deep) {
                        let step = step_of(self.walk.of_dir(before, new.parent)?.ttl);
                        counted.pending.push(Change::Made(number, step));
                    }
                }
                (Some(old), None) if old.is_dir() => counted.pending.push(Change::Removed(number)),
                (Some(old), Some(new)) if old.is_dir() => {
                    if old.parent != new.parent {
                        counted.pending.push(Change::Moved);
                    }
                }
                (old, new) => {
                    if let Some(old) = old
                        && let Some((dir, step, tally)) = self.place(before, &counted.dirs, &old)?
                    {
                        counted.pending.push(Change::Take(dir, step, tally));
                    }
                    if let Some(new) = new
                        && let Some((dir, step, tally)) = self.place(tx, &counted.dirs, &new)?
                    {
                        counted.pending.push(Change::Add(dir, step, tally));
                    }
                    if let Some(new) = new
                        && new.flags & FLAG_XATTR != 0
                        && !counted.dirs.contains_key(&new.parent)
                        && end(&new, &*self.walk.of(tx, &new)?).is_some()
                    {
                        counted.pending.push(Change::Found(new.parent));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl Ages {
    /// What is kept of each directory, step by step.
    pub fn kept(&self) -> BTreeMap<Number, BTreeMap<i64, Tally>> {
        let counted = self.counted.lock();
        let dirs = counted.dirs.iter();
        dirs.map(|(number, dir)| (*number, dir.steps.clone()))
            .collect()
    }

    /// What a count from the beginning finds.
    pub fn found<D: Device>(
        &self,
        cask: &Cask<D>,
    ) -> Result<BTreeMap<Number, BTreeMap<i64, Tally>>> {
        let fresh = Self::new(Arc::clone(&self.walk));
        fresh.count(cask, usize::MAX)?;
        Ok(fresh.kept())
    }
}

impl<D: Device> Guard<D> for Ages {
    fn admit(&self, tx: &Tx<'_, D>) -> Result<()> {
        if !self.active.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut counted = self.counted.lock();
        counted.pending.clear();
        self.look(tx, &mut counted)
    }

    fn applied(&self) {
        if !self.active.load(Ordering::Acquire) {
            return;
        }
        let mut counted = self.counted.lock();
        for change in std::mem::take(&mut counted.pending) {
            match change {
                Change::Add(dir, step, tally) => {
                    if let Some(dir) = counted.dirs.get_mut(&dir) {
                        dir.add(step, tally);
                    }
                }
                Change::Take(dir, step, tally) => {
                    if let Some(dir) = counted.dirs.get_mut(&dir) {
                        dir.take(step, tally);
                    }
                }
                // Empty as it is, all of it is counted.
                Change::Made(dir, step) => {
                    counted.dirs.insert(dir, Dir::new(step, true, None));
                }
                Change::Removed(dir) => {
                    counted.dirs.remove(&dir);
                }
                Change::Found(dir) => {
                    counted.visited.insert(dir);
                }
                Change::Moved => {
                    drop(counted);
                    return self.reset();
                }
            }
        }
    }
}

/// Two that have a say.
pub(super) struct Both<A, B>(pub A, pub B);

impl<D: Device, A: Guard<D>, B: Guard<D>> Guard<D> for Both<Arc<A>, Arc<B>> {
    fn admit(&self, tx: &Tx<'_, D>) -> Result<()> {
        self.0.admit(tx)?;
        self.1.admit(tx)
    }

    fn applied(&self) {
        <A as Guard<D>>::applied(&self.0);
        <B as Guard<D>>::applied(&self.1);
    }
}
