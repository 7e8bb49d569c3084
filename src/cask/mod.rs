//! STUB of the engine's API, replaced whole by the real one: everything lives in memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::format::{Key, Kind};

/// An item's value.
pub type Value = Arc<[u8]>;
/// Number of an operation in the log; operations are totally ordered by it.
pub type Lsn = u64;

/// What an operation asks of the free space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// May be refused for lack of space (`NoSpace`).
    Grow,
    /// Gives space back (unlink, rmdir, truncate to less, removexattr, rename without overwrite...): always goes through.
    Release,
}

/// Reading: shared by the cask (newest committed state) and by an open transaction
/// (its own item changes included; content as it was before the transaction).
pub trait Read {
    fn get(&self, key: &Key) -> Result<Option<Value>>;
    /// Visits the items `from..=to` in order until `visit` answers false.
    fn scan(&self, from: Key, to: Key, visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>) -> Result<()>;
    /// Fills `buf`; what was never written reads as zeros. The caller clips to the file's size.
    fn read_content(&self, content: Number, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// First offset >= `offset` (block granular, clipped to offset) that holds data; None when there is none.
    fn next_data(&self, content: Number, offset: u64) -> Result<Option<u64>>;
    /// First offset >= `offset` (block granular) that holds no data.
    fn next_hole(&self, content: Number, offset: u64) -> Result<u64>;
    /// 61-bit keyed hash of a name, never 0.
    fn name_hash(&self, name: &[u8]) -> u64;
    /// Largest item value in bytes.
    fn max_item(&self) -> usize;
    fn block_size(&self) -> u32;
}

#[derive(Clone, Debug)]
pub struct FormatOptions {
    pub block_size: u32,
    /// None: grows as needed.
    pub blocks: Option<u64>,
    pub fill: bool,
    /// Most inodes, the root included. None: no bound.
    pub files: Option<u64>,
    pub label: Vec<u8>,
    pub wal_bytes: Option<u64>,
    pub uuid: [u8; 16],
    pub secret: [u8; 32],
    /// 65536; tests go down to the block size.
    pub superblock_spacing: u32,
    pub root_mode: u32,
    pub root_uid: u32,
    pub root_gid: u32,
    pub now: crate::clock::Timestamp,
}

#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    pub read_only: bool,
}

#[derive(Clone, Debug)]
pub struct Stats {
    pub block_size: u32,
    /// Blocks a user can fill, in all (statfs f_blocks).
    pub total_blocks: u64,
    /// Blocks that can be written now (statfs f_bfree/f_bavail).
    pub free_blocks: u64,
    /// Most inodes (statfs f_files).
    pub files_max: u64,
    pub files_used: u64,
    pub label: Vec<u8>,
    pub uuid: [u8; 16],
    pub generation: u64,
    pub lsn: Lsn,
    pub durable_lsn: Lsn,
    /// --blocks / --files / --fill as given to mkfs.
    pub blocks_limit: Option<u64>,
    pub files_limit: Option<u64>,
    pub fill: bool,
    pub wal_bytes: u64,
}

pub struct Cask<D: Device> {
    dev: D,
    ops: Mutex<State>,
}

#[derive(Default, Clone)]
struct State {
    items: BTreeMap<Key, Value>,
    content: BTreeMap<Number, Vec<u8>>,
    next: Number,
    files: u64,
    lsn: Lsn,
}

/// Data put where it will stay (or kept by reference when small) before its operation is logged.
pub struct Staged<'a> {
    offset: u64,
    data: &'a [u8],
}

impl<D: Device> Cask<D> {
    pub fn format(_dev: &D, _options: &FormatOptions) -> Result<()> {
        Ok(())
    }
    pub fn open(dev: D, _options: OpenOptions) -> Result<Self> {
        use crate::format::InodeRecord;
        use zerocopy::{FromZeros, IntoBytes};
        let mut root = InodeRecord::new_zeroed();
        root.mode = (0o040755u32).into();
        root.nlink = 2u32.into();
        root.parent = 1u64.into();
        root.content = 1u64.into();
        let mut items: BTreeMap<Key, Value> = BTreeMap::new();
        items.insert(Key::inode(1), Arc::from(root.as_bytes()));
        Ok(Self { dev, ops: Mutex::new(State { items, next: 2, files: 1, ..State::default() }) })
    }
    pub fn device(&self) -> &D {
        &self.dev
    }
    pub fn read_only(&self) -> bool {
        false
    }
    /// Runs one operation: `body` reads and records changes; if it answers Ok they are applied as
    /// one atomic record. `body` may be run again after room was made, so it must not change
    /// anything outside the transaction. Operations are serialised: none runs beside another.
    pub fn transact<T>(&self, class: Class, body: impl FnMut(&mut Tx<'_, D>) -> Result<T>) -> Result<(T, Lsn)> {
        self.transact_then(class, body, |_| ())
    }
    /// Like `transact`; `after` is called once, after the changes are applied and before any
    /// other operation can run: the place to change in-memory tables that must agree.
    pub fn transact_then<T>(
        &self,
        _class: Class,
        mut body: impl FnMut(&mut Tx<'_, D>) -> Result<T>,
        after: impl FnOnce(&mut T),
    ) -> Result<(T, Lsn)> {
        let mut state = self.ops.lock();
        let mut tx = Tx { cask: self, state: state.clone(), content: state.content.clone() };
        let mut out = body(&mut tx)?;
        let mut new = tx.state;
        new.content = tx.content;
        new.lsn += 1;
        *state = new;
        after(&mut out);
        let lsn = state.lsn;
        Ok((out, lsn))
    }
    /// Prepares `data` for `Tx::write_staged` at `offset`. Whole blocks of a large write go to
    /// their final place here, outside every lock.
    pub fn stage<'a>(&self, offset: u64, data: &'a [u8]) -> Result<Staged<'a>> {
        Ok(Staged { offset, data })
    }
    /// Returns when operation `lsn` is in the container file: it survives kill -9 of this process.
    pub fn persist(&self, _lsn: Lsn) -> Result<()> {
        Ok(())
    }
    /// Returns when all operations up to `lsn` are durable.
    pub fn sync(&self, _lsn: Lsn) -> Result<()> {
        Ok(())
    }
    /// The newest operation.
    pub fn lsn(&self) -> Lsn {
        self.ops.lock().lsn
    }
    /// Writes a checkpoint if anything changed since the last.
    pub fn checkpoint(&self) -> Result<()> {
        Ok(())
    }
    /// Background duty, called about ten times a second by the owner's thread: commit timer,
    /// checkpoint when due.
    pub fn tick(&self, _now: crate::clock::Timestamp) -> Result<()> {
        Ok(())
    }
    /// Stops the cask: every later change fails with EIO. Used when a handler panicked.
    pub fn fail(&self, _why: &str) {}
    /// Why the cask stopped, if it did.
    pub fn failure(&self) -> Option<String> {
        None
    }
    /// Last checkpoint; marks the container clean.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }
    pub fn stats(&self) -> Stats {
        let s = self.ops.lock();
        Stats {
            block_size: 4096, total_blocks: 1 << 20, free_blocks: 1 << 19, files_max: 1 << 40, files_used: s.files,
            label: vec![], uuid: [0; 16], generation: 1, lsn: s.lsn, durable_lsn: s.lsn,
            blocks_limit: None, files_limit: None, fill: false, wal_bytes: 1 << 20,
        }
    }
}

/// An operation being put together.
pub struct Tx<'c, D: Device> {
    cask: &'c Cask<D>,
    state: State,
    content: BTreeMap<Number, Vec<u8>>,
}

impl<D: Device> Tx<'_, D> {
    pub fn put(&mut self, key: Key, value: impl Into<Value>) {
        self.state.items.insert(key, value.into());
    }
    pub fn del(&mut self, key: Key) {
        self.state.items.remove(&key);
    }
    pub fn write(&mut self, content: Number, offset: u64, data: &[u8]) {
        let c = self.content.entry(content).or_default();
        let end = offset as usize + data.len();
        if c.len() < end {
            c.resize(end, 0);
        }
        c[offset as usize..end].copy_from_slice(data);
    }
    /// Writes what was staged. Err(offset) is not possible: the offset was fixed by `stage`.
    pub fn write_staged(&mut self, content: Number, staged: &Staged<'_>) {
        self.write(content, staged.offset, staged.data);
    }
    /// Content at and after `len` reads as zeros from now on.
    pub fn truncate(&mut self, content: Number, len: u64) {
        if let Some(c) = self.content.get_mut(&content) {
            c.truncate(len as usize);
        }
    }
    /// The content is gone; its number is never used again.
    pub fn drop_content(&mut self, content: Number) {
        self.content.remove(&content);
    }
    /// A number never used before, for an inode or a content.
    pub fn new_number(&mut self) -> Number {
        self.state.next += 1;
        self.state.next - 1
    }
    /// Counts one inode more; `NoFiles` at the limit.
    pub fn add_file(&mut self) -> Result<()> {
        self.state.files += 1;
        Ok(())
    }
    /// Counts one inode less.
    pub fn remove_file(&mut self) {
        self.state.files -= 1;
    }
    /// Changes the label, at most LABEL_MAX bytes.
    pub fn set_label(&mut self, _label: &[u8]) {}
}

fn hash(name: &[u8]) -> u64 {
    let h = blake3::hash(name);
    (u64::from_le_bytes(*h.as_bytes().first_chunk::<8>().unwrap()) >> 3).max(1)
}

impl<D: Device> Read for Tx<'_, D> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        Ok(self.state.items.get(key).cloned())
    }
    fn scan(&self, from: Key, to: Key, visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>) -> Result<()> {
        for (k, v) in self.state.items.range(from..=to) {
            if !visit(*k, v)? {
                break;
            }
        }
        Ok(())
    }
    fn read_content(&self, content: Number, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.cask_read(content, offset, buf);
        Ok(())
    }
    fn next_data(&self, _content: Number, offset: u64) -> Result<Option<u64>> {
        Ok(Some(offset))
    }
    fn next_hole(&self, content: Number, _offset: u64) -> Result<u64> {
        Ok(self.state.content.get(&content).map_or(0, |c| c.len() as u64))
    }
    fn name_hash(&self, name: &[u8]) -> u64 {
        hash(name)
    }
    fn max_item(&self) -> usize {
        3900
    }
    fn block_size(&self) -> u32 {
        self.cask.block_size()
    }
}

impl<D: Device> Tx<'_, D> {
    fn cask_read(&self, content: Number, offset: u64, buf: &mut [u8]) {
        read(&self.state, content, offset, buf);
    }
}

fn read(state: &State, content: Number, offset: u64, buf: &mut [u8]) {
    buf.fill(0);
    if let Some(c) = state.content.get(&content) {
        let from = (offset as usize).min(c.len());
        let to = (from + buf.len()).min(c.len());
        buf[..to - from].copy_from_slice(&c[from..to]);
    }
}

impl<D: Device> Read for Cask<D> {
    fn get(&self, key: &Key) -> Result<Option<Value>> {
        Ok(self.ops.lock().items.get(key).cloned())
    }
    fn scan(&self, from: Key, to: Key, visit: &mut dyn FnMut(Key, &[u8]) -> Result<bool>) -> Result<()> {
        let s = self.ops.lock().items.clone();
        for (k, v) in s.range(from..=to) {
            if !visit(*k, v)? {
                break;
            }
        }
        Ok(())
    }
    fn read_content(&self, content: Number, offset: u64, buf: &mut [u8]) -> Result<()> {
        read(&self.ops.lock(), content, offset, buf);
        Ok(())
    }
    fn next_data(&self, _content: Number, offset: u64) -> Result<Option<u64>> {
        Ok(Some(offset))
    }
    fn next_hole(&self, content: Number, _offset: u64) -> Result<u64> {
        Ok(self.ops.lock().content.get(&content).map_or(0, |c| c.len() as u64))
    }
    fn name_hash(&self, name: &[u8]) -> u64 {
        hash(name)
    }
    fn max_item(&self) -> usize {
        3900
    }
    fn block_size(&self) -> u32 {
        4096
    }
}

#[allow(dead_code)]
fn unused() -> (Error, Kind) {
    (Error::NotFound, Kind::Ttl)
}
