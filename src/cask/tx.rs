//! Operations: one transaction is one atomic record of the log.
//!
//! Transactions are serialised; each sees all before it. Nothing is changed until the body has
//! answered and room is found; then record and overlay change together. If anything panics in
//! between, the cask stops.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::overlay::Cost;
use super::space::Short;
use super::{Abandoned, Cask, Lsn, Read};
use crate::alloc::{Allocator, Run};
use crate::device::Device;
use crate::device::control::{Control, removed};
use crate::error::{Error, Result};
use crate::format::checksum::crc;
use crate::format::key::Number;
use crate::format::page::CELL_OVERHEAD;
use crate::format::wal::{Change, Changes};
use crate::format::{Geometry, Key, Kind};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::tree::Value;

/// What an operation does to the free space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It may be refused with `NoSpace`.
    Grow,
    /// It puts something in the place of what is there, or takes what it was promised: it goes
    /// through as long as no more stays in the end than was there before.
    Replace,
    /// It gives space back, and goes through however full the cask is.
    Release,
}

/// An operation being put together.
pub struct Tx<'c, D: Device> {
    cask: &'c Cask<D>,
    items: BTreeMap<Key, Option<Value>>,
    content: Vec<u8>,
    cost: Cost,
    next_number: Number,
    files: u64,
    files_limit: Option<u64>,
    wipes: u32,
    label: Option<Vec<u8>>,
    staged: Vec<Arc<Blocks>>,
    counters: (Number, u64),
    wipes_before: u32,
    redeemed: u64,
    allowance: (u64, u64),
}

/// Has a say in every operation, from above.
pub trait Guard<D: Device>: Send + Sync {
    /// Looks at an operation that is complete; what it answers instead of `Ok` is the operation's
    /// answer, and nothing is changed.
    ///
    /// # Errors
    /// Why the operation is refused.
    fn admit(&self, tx: &Tx<'_, D>) -> Result<()>;
    /// The operation looked at last was applied; no other was looked at since.
    fn applied(&self);
}

/// Blocks written before their record; they go back if no record takes them.
struct Blocks {
    alloc: Arc<Allocator>,
    /// First block in the content, and where its blocks stand.
    first: u64,
    runs: Vec<(Run, Vec<u32>)>,
    taken: AtomicBool,
    /// Where they go instead if they are to be wiped first.
    abandoned: Arc<Mutex<Abandoned>>,
}

impl Drop for Blocks {
    fn drop(&mut self) {
        if !self.taken.load(Ordering::Acquire) {
            let runs: Vec<Run> = self.runs.iter().map(|(run, _)| *run).collect();
            // Wiping may have come into force since they were written. While the lock is held it does
            // not, so its sweep finds what is free here.
            let mut abandoned = self.abandoned.lock();
            match abandoned.wiped {
                true => abandoned.runs.extend(runs),
                false => self.alloc.release(&runs),
            }
        }
    }
}

/// Data on its way into a content: whole blocks of a large write stand in their final place
/// already, the rest will go through the log.
pub struct Staged<'a> {
    offset: u64,
    head: &'a [u8],
    blocks: Option<Arc<Blocks>>,
    tail_offset: u64,
    tail: &'a [u8],
}

/// Marks the cask failed if a panic unwinds through a critical section.
pub(super) struct StopOnPanic<'c, D: Device>(pub(super) &'c Cask<D>);

impl<D: Device> Drop for StopOnPanic<'_, D> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("a panic in the middle of an operation");
        }
    }
}

impl<D: Device> Cask<D> {
    /// Runs one operation: `body` reads, and records changes; when it answers `Ok` they are applied
    /// as one atomic record. `body` may run again after room was made, so it changes nothing outside
    /// the transaction.
    ///
    /// # Errors
    /// What `body` answers; [`Error::NoSpace`]; [`Error::ReadOnly`]; [`Error::Failed`].
    pub fn transact<T>(
        &self,
        class: Class,
        body: impl FnMut(&mut Tx<'_, D>) -> Result<T>,
    ) -> Result<(T, Lsn)> {
        self.transact_then(class, body, |_| ())
    }

    /// Like [`Cask::transact`]; `after` is called once, after the changes are applied and before any
    /// other operation runs: the place to change tables in memory that must agree with them.
    ///
    /// # Errors
    /// As [`Cask::transact`].
    pub fn transact_then<T>(
        &self,
        class: Class,
        mut body: impl FnMut(&mut Tx<'_, D>) -> Result<T>,
        after: impl FnOnce(&mut T),
    ) -> Result<(T, Lsn)> {
        let mut attempt = 0;
        loop {
            self.writable()?;
            let short = {
                let _ops = self.ops.lock();
                let _stop = StopOnPanic(self);
                let mut tx = Tx::new(self);
                let mut out = body(&mut tx)?;
                let record = tx.encode();
                if record.is_empty() {
                    after(&mut out);
                    return Ok((out, self.wal.last()));
                }
                let guard = self.guard.read();
                if let Some(guard) = &*guard {
                    guard.admit(&tx)?;
                }
                let admitted = self.admit(
                    &self.state.read(),
                    tx.cost,
                    class,
                    tx.redeemed,
                    record.len(),
                );
                match admitted {
                    Ok(()) => {
                        let lsn = self.commit(tx, &record)?;
                        if let Some(guard) = &*guard {
                            guard.applied();
                        }
                        after(&mut out);
                        return Ok((out, lsn));
                    }
                    Err(short) => short,
                }
            };
            self.make_room(short, class, attempt)?;
            attempt += 1;
        }
    }

    /// Who has a say in every operation from now on.
    pub fn set_guard(&self, guard: Arc<dyn Guard<D>>) {
        *self.guard.write() = Some(guard);
    }

    /// Does something between two operations.
    ///
    /// # Errors
    /// What `look` answers.
    pub fn still<T>(&self, look: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let _ops = self.ops.lock();
        look(self)
    }

    /// Lets those go first who wait for their operation: for who does one after the other that nobody
    /// waits for, and would be the next again each time.
    pub fn give_way(&self) {
        MutexGuard::unlock_fair(self.ops.lock());
    }

    /// Applies and logs a record. Called with operations serialised.
    fn commit(&self, tx: Tx<'_, D>, record: &[u8]) -> Result<Lsn> {
        let mut state = self.state.write();
        let applied = Changes(record).try_for_each(|change| state.active.apply(&change?));
        if let Err(error) = applied {
            self.fail(&format!("an operation that cannot be applied: {error}"));
            return Err(error);
        }
        state.next_number = tx.next_number;
        state.files = tx.files;
        state.wipes = tx.wipes;
        state.promised = state.promised.saturating_sub(tx.redeemed);
        if let Some(label) = tx.label {
            state.label = label;
        }
        if tx.wipes_before == 0 && tx.wipes > 0 {
            self.abandoned.lock().wiped = true;
        }
        let lsn = self.wal.append(record, !tx.staged.is_empty());
        tx.staged
            .iter()
            .for_each(|blocks| blocks.taken.store(true, Ordering::Release));
        if removed(Control::DeferredFree) {
            self.alloc
                .release(&std::mem::take(&mut state.active.dropped));
        }
        Ok(lsn)
    }

    /// Prepares `data` to be written at `offset` of some content. The whole blocks of a large write
    /// are put in their final place here, outside every lock.
    ///
    /// # Errors
    /// [`Error::NoSpace`]; I/O errors.
    pub fn stage<'a>(&self, offset: u64, data: &'a [u8]) -> Result<Staged<'a>> {
        self.stage_for(Class::Grow, 0, offset, data)
    }

    /// Like [`Cask::stage`], for an operation of this class that was promised `redeemed` blocks.
    ///
    /// # Errors
    /// As [`Cask::stage`].
    pub fn stage_for<'a>(
        &self,
        class: Class,
        redeemed: u64,
        offset: u64,
        data: &'a [u8],
    ) -> Result<Staged<'a>> {
        let size = self.geometry.block();
        let end = offset + data.len() as u64;
        let (first, last) = (offset.div_ceil(size), end / size);
        if (data.len() as u64) < self.geometry.bypass_min() || first >= last {
            return Ok(Staged {
                offset,
                head: data,
                blocks: None,
                tail_offset: end,
                tail: &[],
            });
        }
        self.writable()?;
        let (head, rest) = data.split_at((first * size - offset) as usize);
        let (whole, tail) = rest.split_at(((last - first) * size) as usize);
        let runs = self.take_blocks(last - first, class, redeemed)?;
        let mut blocks = Blocks {
            alloc: Arc::clone(&self.alloc),
            first,
            runs,
            taken: AtomicBool::new(false),
            abandoned: Arc::clone(&self.abandoned),
        };
        let mut rest = whole;
        for (run, crcs) in &mut blocks.runs {
            let (bytes, after) = rest.split_at((run.len * size) as usize);
            crcs.extend(bytes.chunks_exact(size as usize).map(crc));
            self.device
                .write_at(self.geometry.offset(run.start), bytes)
                .map_err(|source| {
                    self.fail(&format!("writing data: {source}"));
                    Error::Io {
                        what: "writing data".to_owned(),
                        source,
                    }
                })?;
            rest = after;
        }
        Ok(Staged {
            offset,
            head,
            blocks: Some(Arc::new(blocks)),
            tail_offset: last * size,
            tail,
        })
    }

    /// Takes blocks that nothing is set aside for.
    fn take_blocks(&self, count: u64, class: Class, redeemed: u64) -> Result<Vec<(Run, Vec<u32>)>> {
        let mut attempt = 0;
        loop {
            self.alive()?;
            {
                let _ops = self.ops.lock();
                let spare = self.spare(&self.state.read(), class, redeemed);
                // The record that will refer to them needs a little room, too.
                if spare > count {
                    let mut runs = Vec::new();
                    let mut left = count;
                    while left > 0 {
                        let run = self.alloc.allocate(left).ok_or(Error::NoSpace)?;
                        left -= run.len;
                        runs.push((run, Vec::with_capacity(run.len as usize)));
                    }
                    return Ok(runs);
                }
            }
            let spare = self.spare(&self.state.read(), class, redeemed);
            self.make_room(
                Short::Blocks((count + 1).saturating_sub(spare).max(1)),
                class,
                attempt,
            )?;
            attempt += 1;
        }
    }
}

/// What `len` bytes of a new content may cost, however they get to their blocks.
pub(super) fn fresh_cost(geometry: &Geometry, len: u64) -> Cost {
    let blocks = len.div_ceil(geometry.block());
    if len <= geometry.inline_max() as u64 {
        return Cost {
            keys: 2,
            bytes: len + 64,
            blocks: 0,
        };
    }
    // At worst every block stands apart from the others.
    let bytes = blocks * (4 + 4 * 64);
    Cost {
        keys: 2,
        bytes,
        blocks,
    }
}

impl<'c, D: Device> Tx<'c, D> {
    fn new(cask: &'c Cask<D>) -> Self {
        let state = cask.state.read();
        Self {
            cask,
            items: BTreeMap::new(),
            content: Vec::new(),
            cost: Cost::default(),
            next_number: state.next_number,
            files: state.files,
            files_limit: state.bounds.files,
            wipes: state.wipes,
            label: None,
            staged: Vec::new(),
            counters: (state.next_number, state.files),
            wipes_before: state.wipes,
            redeemed: 0,
            allowance: (0, 0),
        }
    }

    fn geometry(&self) -> Geometry {
        self.cask.geometry
    }

    /// The state before this operation.
    pub fn before(&self) -> &'c Cask<D> {
        self.cask
    }

    /// It may make this much more than the guard would let through: what nobody asked for.
    pub fn allow(&mut self, files: u64, bytes: u64) {
        self.allowance = (self.allowance.0 + files, self.allowance.1 + bytes);
    }

    /// The files and bytes that were allowed.
    pub fn allowance(&self) -> (u64, u64) {
        self.allowance
    }

    /// The inodes that it makes, changes and takes (`None`).
    pub fn inodes(&self) -> impl Iterator<Item = (Number, Option<&[u8]>)> {
        let items = self.items.iter();
        items
            .filter(|(key, _)| key.kind == Kind::Inode)
            .map(|(key, value)| (key.number, value.as_deref()))
    }

    /// The item has this value.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when it is larger than an item can be.
    pub fn put(&mut self, key: Key, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        if value.len() > self.cask.geometry.max_item() {
            return Err(Error::NoSpace);
        }
        self.items.insert(key, Some(value));
        Ok(())
    }

    /// The item is gone.
    pub fn del(&mut self, key: Key) {
        self.items.insert(key, None);
    }

    /// These bytes stand at `offset` of the content. They go through the log: for large data use
    /// [`Cask::stage`] and [`Tx::write_staged`].
    pub fn write(&mut self, content: Number, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let (size, end) = (
            self.geometry().block(),
            offset.saturating_add(data.len() as u64),
        );
        let blocks = end.div_ceil(size) - offset / size;
        self.cost = self.cost.plus(if self.is_fresh(content) && offset == 0 {
            fresh_cost(&self.geometry(), end)
        } else {
            Cost {
                keys: if self.is_fresh(content) {
                    2
                } else {
                    3 * blocks
                },
                bytes: 128 * blocks,
                blocks,
            }
        });
        Change::Write(content, offset, data).encode(&mut self.content);
    }

    /// Whether nothing in the tree or the overlays knows of the content: all it gets comes to stand
    /// side by side, in one place of the tree.
    fn is_fresh(&self, content: Number) -> bool {
        content >= self.counters.0
    }

    /// The operation takes what it was promised by [`Cask::promise`]; once it is done, the promise is
    /// kept.
    pub fn redeem(&mut self, promised: u64) {
        self.redeemed = promised;
    }

    /// What was staged stands at the offset it was staged for.
    pub fn write_staged(&mut self, content: Number, staged: &Staged<'_>) {
        self.write(content, staged.offset, staged.head);
        if let Some(blocks) = &staged.blocks {
            let mut block = blocks.first;
            for (run, crcs) in &blocks.runs {
                let bytes: Vec<u8> = crcs.iter().flat_map(|sum| sum.to_le_bytes()).collect();
                Change::Extent {
                    content,
                    block,
                    start: run.start,
                    crcs: &bytes,
                }
                .encode(&mut self.content);
                let items = run.len / self.geometry().extent_max() + 3;
                self.cost = self.cost.plus(Cost {
                    keys: if self.is_fresh(content) { 0 } else { items },
                    bytes: 4 * run.len + 64 * items,
                    blocks: 0,
                });
                block += run.len;
            }
            if self.is_fresh(content) {
                self.cost.keys += 2;
            }
            self.staged.push(Arc::clone(blocks));
        }
        self.write(content, staged.tail_offset, staged.tail);
    }

    /// The content reads as zeros at and after `len` from now on.
    pub fn truncate(&mut self, content: Number, len: u64) {
        let partial = u64::from(!len.is_multiple_of(self.geometry().block()));
        self.cost = self.cost.plus(Cost {
            keys: 5,
            bytes: 128 * partial,
            blocks: partial,
        });
        Change::Truncate(content, len).encode(&mut self.content);
    }

    /// The content is gone; its number is never used again.
    pub fn drop_content(&mut self, content: Number) {
        self.cost = self.cost.plus(Cost {
            keys: 2,
            bytes: 0,
            blocks: 0,
        });
        Change::Drop(content).encode(&mut self.content);
    }

    /// A number never used before, for an inode or a content.
    pub fn new_number(&mut self) -> Number {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Counts one inode more.
    ///
    /// # Errors
    /// [`Error::NoFiles`] at the limit.
    pub fn add_file(&mut self) -> Result<()> {
        if self.files_limit.is_some_and(|limit| self.files >= limit) {
            return Err(Error::NoFiles);
        }
        self.files += 1;
        Ok(())
    }

    /// Counts one inode more, however many there may be: for a repair.
    pub fn count_file(&mut self) {
        self.files += 1;
    }

    /// Counts one inode less.
    pub fn remove_file(&mut self) {
        self.files = self.files.saturating_sub(1);
    }

    /// Whether wiping is set on a file or directory was `before` and is now `after`.
    pub fn count_wipe(&mut self, before: bool, after: bool) {
        let count = self.wipes.saturating_add(u32::from(after));
        self.wipes = count.saturating_sub(u32::from(before));
    }

    /// The cask counts so many inodes, gives out this number next, and counts so many inodes on which
    /// wiping is set: what it should never have to be told.
    pub fn recount(&mut self, files: u64, next_number: Number, wipes: u32) {
        self.files = files;
        self.next_number = self.next_number.max(next_number);
        self.wipes = wipes;
    }

    /// Changes the cask's label.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is longer than 64 bytes.
    pub fn set_label(&mut self, label: &[u8]) -> Result<()> {
        if label.len() > crate::limits::LABEL_MAX {
            return Err(Error::invalid("a label has at most 64 bytes"));
        }
        self.label = Some(label.to_vec());
        Ok(())
    }

    /// The record; empty when nothing changes.
    fn encode(&mut self) -> Vec<u8> {
        let mut record = Vec::with_capacity(self.content.len() + 256);
        for (key, value) in &self.items {
            let bytes = value.as_ref().map_or(0, |v| v.len() + CELL_OVERHEAD);
            self.cost = self.cost.plus(Cost {
                keys: 1,
                bytes: bytes as u64,
                blocks: 0,
            });
            match value {
                Some(value) => Change::Put(*key, value).encode(&mut record),
                None => Change::Del(*key).encode(&mut record),
            }
        }
        record.extend_from_slice(&self.content);
        if self.counters != (self.next_number, self.files) {
            Change::Counters {
                next_number: self.next_number,
                files: self.files,
            }
            .encode(&mut record);
        }
        if self.wipes != self.wipes_before {
            Change::Wipes(self.wipes).encode(&mut record);
        }
        if let Some(label) = &self.label {
            Change::Label(label).encode(&mut record);
        }
        record
    }
}

impl<D: Device> Read for Tx<'_, D> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        match self.items.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.cask.get(key),
        }
    }

    fn scan(
        &self,
        from: Key,
        to: Key,
        visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut own = self.items.range(from..=to).peekable();
        let mut stopped = false;
        self.cask.scan(from, to, &mut |key, value| {
            while let Some((first, changed)) = own.next_if(|(first, _)| **first < key) {
                if let Some(changed) = changed
                    && !visit(*first, changed)?
                {
                    stopped = true;
                    return Ok(false);
                }
            }
            let go_on = match own.next_if(|(first, _)| **first == key) {
                Some((_, None)) => true,
                Some((_, Some(changed))) => visit(key, changed)?,
                None => visit(key, value)?,
            };
            stopped = !go_on;
            Ok(go_on)
        })?;
        while !stopped && let Some((key, changed)) = own.next() {
            if let Some(changed) = changed {
                stopped = !visit(*key, changed)?;
            }
        }
        Ok(())
    }

    fn read_content(&self, content: Number, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.cask.read_content(content, offset, buf)
    }

    fn next_data(&self, content: Number, offset: u64) -> Result<Option<u64>> {
        self.cask.next_data(content, offset)
    }

    fn next_hole(&self, content: Number, offset: u64) -> Result<u64> {
        self.cask.next_hole(content, offset)
    }

    fn name_hash(&self, name: &[u8]) -> u64 {
        self.cask.name_hash(name)
    }

    fn block_size(&self) -> u32 {
        self.cask.block_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cask::{FormatOptions, OpenOptions};
    use crate::device::MemoryDevice;

    #[test]
    fn what_was_staged_is_admitted_with_each_of_its_checksums() {
        let device = MemoryDevice::new();
        Cask::format(&device, &FormatOptions::default()).unwrap();
        let cask = Cask::open(device, OpenOptions::default()).unwrap();
        let data = vec![7; 800 * 4096];
        let staged = cask.stage(0, &data).unwrap();
        cask.transact(Class::Grow, |tx| {
            let number = tx.new_number();
            tx.write_staged(number, &staged);
            assert!(tx.cost.bytes >= 4 * 800, "{:?}", tx.cost);
            Ok(())
        })
        .unwrap();
    }
}
