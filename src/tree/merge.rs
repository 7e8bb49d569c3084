//! Merging sorted edits into the tree: one pass, copy on write.
//!
//! Cells stream in order through one builder a level. A subtree that no edit touches is passed on
//! by reference as long as no builder below holds less than half a page; otherwise it is opened and
//! its cells flow through the builders too. So every page but the last of each level is at least
//! half full, whatever was deleted, and a merge touches no more pages than it must. Cells wait where
//! they stand: they are copied once, from the old page to the new one.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use super::{Node, Root, Tree, Value, top_level};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::page::{CELL_OVERHEAD, CHILD_LEN, Page, PagePtr};
use crate::format::{Geometry, Key};

/// No key is less.
pub const FIRST_KEY: Key = Key::new(0, crate::format::Kind::Inode, 0);

/// One edit: the item has this value, or is gone. Edits given to [`merge`] ascend strictly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The item.
    pub key: Key,
    /// Its value; `None` when it is gone.
    pub value: Option<Value>,
}

/// Where new pages go and old ones are given up.
pub trait PageStore {
    /// A free block for a page.
    fn allocate(&mut self) -> Result<u64>;
    /// Takes a page to be written.
    fn write(&mut self, ptr: PagePtr, page: Page) -> Result<()>;
    /// A page of the old version that the new one does not use.
    fn free(&mut self, block: u64);
}

/// Old pages, about, of which a builder holds cells before it copies what else it is given: a damaged tree may
/// have but one small cell in each of its pages.
const HELD_MAX: usize = 8;

/// What a cell that waits for a page holds.
enum CellValue {
    /// A new item.
    Item(Value),
    /// What stands at this index of a page of the old version.
    Old(Arc<Node>, usize),
    /// A reference to a page.
    Child([u8; CHILD_LEN]),
}

impl CellValue {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Item(value) => value,
            Self::Old(page, index) => page.cell(*index).map_or(&[], |(_, value)| value),
            Self::Child(bytes) => bytes,
        }
    }
}

/// A cell that waits for a page.
struct Cell {
    key: Key,
    value: CellValue,
    /// Bytes that it takes of a page.
    bytes: usize,
}

/// The cells waiting for a page of one level.
#[derive(Default)]
struct Builder {
    cells: VecDeque<Cell>,
    bytes: usize,
    /// The key that was given last.
    last: Option<Key>,
    /// The old page of which a cell was given last, and how many there were since a page was written.
    newest: Option<Arc<Node>>,
    held: usize,
}

impl Builder {
    /// # Errors
    /// [`Error::Corrupt`] when the keys do not ascend: of a tree that lies about them no page is written that
    /// could not be read.
    fn push(&mut self, key: Key, mut value: CellValue) -> Result<()> {
        if self.last.is_some_and(|last| last >= key) {
            return Err(Error::corrupt("a tree whose keys are out of order", 0));
        }
        self.last = Some(key);
        if let CellValue::Old(page, _) = &value {
            if !self
                .newest
                .as_ref()
                .is_some_and(|newest| Arc::ptr_eq(newest, page))
            {
                self.newest = Some(Arc::clone(page));
                self.held += 1;
            }
            if self.held > HELD_MAX {
                value = CellValue::Item(Value::from(value.bytes()));
            }
        }
        let bytes = CELL_OVERHEAD + value.bytes().len();
        self.bytes += bytes;
        self.cells.push_back(Cell { key, value, bytes });
        Ok(())
    }

    /// How many cells, from the front, fill at most `limit` bytes.
    fn fitting(&self, limit: usize) -> (usize, usize) {
        let (mut count, mut bytes) = (0, 0);
        for cell in &self.cells {
            if bytes + cell.bytes > limit {
                break;
            }
            count += 1;
            bytes += cell.bytes;
        }
        (count, bytes)
    }
}

struct Merger<'a, D, S> {
    tree: &'a Tree<D>,
    geometry: Geometry,
    generation: u64,
    edits: VecDeque<Edit>,
    builders: Vec<Builder>,
    store: &'a mut S,
    pages: u64,
    /// Subtrees that are left out: the block of the page, and the key under which it is referred to.
    bad: HashSet<(u64, Key)>,
}

/// Applies `edits` to the tree under `root`; answers with the new root. `generation` is written into
/// the new pages.
///
/// # Errors
/// As [`Tree::page`], and what the store answers.
pub fn merge<D: Device, S: PageStore>(
    tree: &Tree<D>,
    root: &Root,
    generation: u64,
    edits: Vec<Edit>,
    store: &mut S,
) -> Result<Root> {
    if edits.is_empty() {
        return Ok(*root);
    }
    merge_without(tree, root, generation, edits, HashSet::new(), store)
}

/// The tree under `root` without these subtrees: the block of the page of each, and the key under which it
/// is referred to. Of what is left out nothing is read, nor given up; `instead` are items that it gets in
/// their place. `root` counts the pages of the rest.
///
/// # Errors
/// As [`merge()`].
pub fn prune<D: Device, S: PageStore>(
    tree: &Tree<D>,
    root: &Root,
    generation: u64,
    bad: HashSet<(u64, Key)>,
    instead: Vec<Edit>,
    store: &mut S,
) -> Result<Root> {
    // What is there cannot be found but through the parents, so these are opened.
    let opened = bad.iter().map(|(_, key)| (*key, None));
    let mut edits: BTreeMap<Key, Option<Value>> = opened.collect();
    edits.extend(instead.into_iter().map(|edit| (edit.key, edit.value)));
    let edits = edits.into_iter().map(|(key, value)| Edit { key, value });
    merge_without(tree, root, generation, edits.collect(), bad, store)
}

fn merge_without<D: Device, S: PageStore>(
    tree: &Tree<D>,
    root: &Root,
    generation: u64,
    edits: Vec<Edit>,
    bad: HashSet<(u64, Key)>,
    store: &mut S,
) -> Result<Root> {
    let mut merger = Merger {
        tree,
        geometry: tree.geometry,
        generation,
        edits: edits.into(),
        builders: vec![Builder::default()],
        store,
        pages: root.pages,
        bad,
    };
    if let Some(ptr) = root.page {
        merger.walk(FIRST_KEY, ptr, top_level(root)?, None)?;
    }
    merger.emit_until(None)?;
    merger.finish()
}

impl<D: Device, S: PageStore> Merger<'_, D, S> {
    /// Streams the subtree at `ptr`, whose keys are below `upper`, and the edits that fall into it.
    fn walk(&mut self, lower: Key, ptr: PagePtr, level: u8, upper: Option<Key>) -> Result<()> {
        self.emit_until(Some(lower))?;
        if self.bad.contains(&(ptr.block, lower)) {
            return Ok(());
        }
        let touched = self
            .edits
            .front()
            .is_some_and(|edit| upper.is_none_or(|upper| edit.key < upper));
        if !touched && self.settle(level)? {
            return self.push(
                usize::from(level) + 1,
                lower,
                CellValue::Child(ptr.encode()),
            );
        }
        let page = self.tree.take(ptr, level)?;
        self.store.free(ptr.block);
        self.pages = self.pages.saturating_sub(1);
        for index in 0..page.len() {
            if level == 0 {
                let Some(key) = page.key(index) else {
                    continue;
                };
                self.emit_until(Some(key))?;
                if self.edits.front().is_none_or(|edit| edit.key != key) {
                    self.push(0, key, CellValue::Old(Arc::clone(&page), index))?;
                }
            } else {
                let Some((key, child)) = page.child(index) else {
                    continue;
                };
                let next = page.key(index + 1).or(upper);
                self.walk(key, child, level - 1, next)?;
            }
        }
        Ok(())
    }

    /// Emits the edits before `key`.
    fn emit_until(&mut self, key: Option<Key>) -> Result<()> {
        while let Some(edit) = self
            .edits
            .pop_front_if(|edit| key.is_none_or(|key| edit.key < key))
        {
            if let Some(value) = edit.value {
                self.push(0, edit.key, CellValue::Item(value))?;
            }
        }
        Ok(())
    }

    /// Adds a cell to the builder of `level`, writing out a page when two are full.
    fn push(&mut self, level: usize, key: Key, value: CellValue) -> Result<()> {
        while self.builders.len() <= level {
            self.builders.push(Builder::default());
        }
        let payload = self.geometry.page_payload();
        let Some(builder) = self.builders.get_mut(level) else {
            return Ok(());
        };
        builder.push(key, value)?;
        if builder.bytes > 2 * payload {
            let (count, bytes) = builder.fitting(payload);
            self.write_page(level, count, bytes)?;
        }
        Ok(())
    }

    /// Makes the builders up to `level` empty if each holds at least half a page; answers whether
    /// they are.
    fn settle(&mut self, level: u8) -> Result<bool> {
        let half = self.geometry.page_payload() / 2;
        for level in 0..=usize::from(level) {
            match self.builders.get(level).map_or(0, |b| b.bytes) {
                0 => {}
                bytes if bytes >= half => self.close(level)?,
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Writes out all cells of a level: in one page, or in two of about equal size.
    fn close(&mut self, level: usize) -> Result<()> {
        let payload = self.geometry.page_payload();
        while let Some(builder) = self.builders.get(level).filter(|b| b.bytes > 0) {
            let (count, bytes) = if builder.bytes <= payload {
                (builder.cells.len(), builder.bytes)
            } else {
                let (count, bytes) = builder.fitting(builder.bytes.div_ceil(2).min(payload));
                if count > 0 && builder.bytes - bytes <= payload {
                    (count, bytes)
                } else {
                    builder.fitting(payload)
                }
            };
            self.write_page(level, count, bytes)?;
        }
        Ok(())
    }

    /// Writes the first `count` cells of a level as a page and refers to it from the level above.
    fn write_page(&mut self, level: usize, count: usize, bytes: usize) -> Result<()> {
        let too_large = || Error::corrupt("an item larger than a page", 0);
        let block = self.store.allocate()?;
        let Some(builder) = self.builders.get_mut(level) else {
            return Ok(());
        };
        let mut cells = builder.cells.range(..count).peekable();
        let first = cells.peek().ok_or_else(too_large)?.key;
        let page = Page::build(
            self.geometry.block_len(),
            u8::try_from(level).map_err(|_| too_large())?,
            block,
            self.generation,
            cells.map(|cell| (cell.key, cell.value.bytes())),
        )?;
        builder.cells.drain(..count);
        builder.bytes -= bytes;
        builder.held = 0;
        let ptr = PagePtr {
            block,
            crc: crate::format::checksum::crc(page.bytes()),
        };
        self.store.write(ptr, page)?;
        self.pages += 1;
        self.push(level + 1, first, CellValue::Child(ptr.encode()))
    }

    /// Writes out what is left, level by level; the last single reference is the root.
    fn finish(mut self) -> Result<Root> {
        let mut level = 0;
        loop {
            let top = level + 1 >= self.builders.len();
            let Some(builder) = self.builders.get(level) else {
                break;
            };
            if top && builder.cells.is_empty() {
                break;
            }
            if top && level > 0 && builder.cells.len() == 1 {
                let page = builder
                    .cells
                    .front()
                    .and_then(|cell| PagePtr::decode(cell.value.bytes()));
                return self.shrink(page, level as u32);
            }
            self.close(level)?;
            level += 1;
        }
        Ok(Root::EMPTY)
    }

    /// A root above the leaves with a single child gives way to the child.
    fn shrink(&mut self, mut page: Option<PagePtr>, mut height: u32) -> Result<Root> {
        while let (Some(ptr), 2..) = (page, height) {
            let top = self.tree.page(ptr, (height - 1) as u8)?;
            match (top.len(), top.child(0)) {
                (1, Some((_, child))) => {
                    self.store.free(ptr.block);
                    self.pages -= 1;
                    (page, height) = (Some(child), height - 1);
                }
                _ => break,
            }
        }
        Ok(Root {
            page,
            height,
            pages: self.pages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Kind;

    /// A damaged tree may have one small cell in each of many pages, which must not all stay in memory.
    #[test]
    fn few_old_pages_are_held_whatever_is_in_them() {
        let key = |number| Key::new(number, Kind::Inode, 0);
        let old: Vec<Arc<Node>> = (0..40)
            .map(|number| {
                let cells = [(key(number), b"one".as_slice())];
                Node::new(
                    Page::build(512, 0, number, 1, cells.into_iter()).unwrap(),
                    0,
                )
            })
            .collect();
        let mut builder = Builder::default();
        for (number, page) in (0..).zip(&old) {
            let cell = CellValue::Old(Arc::clone(page), 0);
            builder.push(key(number), cell).unwrap();
        }
        let held = old.iter().filter(|page| Arc::strong_count(page) > 1);
        assert!((2..=HELD_MAX + 1).contains(&held.count()));
        assert!(
            builder
                .cells
                .iter()
                .all(|cell| cell.value.bytes() == b"one")
        );
    }
}
