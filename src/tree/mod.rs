//! The one copy-on-write B+tree: reading it, and merging an overlay into a new version of it.
//!
//! A root and everything below it never changes. A merge writes new pages into free blocks and
//! answers with a new root; the old one stays readable until its pages are released.
//! Invariant: every page that comes from the device is checked against the checksum that its parent
//! holds before any byte of it is believed.

mod bound;
mod cache;
mod cursor;
mod merge;
#[cfg(test)]
mod tests;

pub use bound::{Bound, bound};
pub use cursor::Cursor;
pub use merge::{Edit, FIRST_KEY, PageStore, merge, prune};

use std::ops::Deref;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use cache::PageCache;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::checksum::crc;
use crate::format::page::{CELL_OVERHEAD, CHILD_LEN, Page, PagePtr};
use crate::format::{Geometry, Key};
use crate::sync::Mutex;

/// An item's value.
pub type Value = Arc<[u8]>;

/// Deepest tree that is believed: 32 levels of at least two children hold 2³² pages.
const MAX_HEIGHT: u32 = 32;

/// A version of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The root page; `None` when the tree is empty.
    pub page: Option<PagePtr>,
    /// Levels: 0 when empty, 1 when the root is a leaf.
    pub height: u32,
    /// Pages in the tree.
    pub pages: u64,
}

impl Root {
    /// The empty tree.
    pub const EMPTY: Self = Self {
        page: None,
        height: 0,
        pages: 0,
    };
}

/// One in so many look-ups of a leaf that is linked goes through the cache, which has to know what is
/// in use.
const CACHE_TOLD: u8 = 8;

/// A page in memory.
pub struct Node {
    page: Page,
    /// Of its bytes: a reference with another one does not lead here.
    crc: u32,
    level: u8,
    /// For a page two levels and more above the leaves: the pages below it that were looked at. No
    /// look-up is needed to go on from here, and they stay as long as this page is in use.
    below: OnceLock<Box<[OnceLock<Arc<Node>>]>>,
    /// For a page just above the leaves: those leaves that the cache keeps and others like them.
    leaves: OnceLock<Box<[Mutex<Weak<Node>>]>>,
    /// Look-ups through the link to this page, about.
    uses: AtomicU8,
}

impl Deref for Node {
    type Target = Page;

    fn deref(&self) -> &Page {
        &self.page
    }
}

impl Node {
    fn new(page: Page, crc: u32) -> Arc<Self> {
        Arc::new(Self {
            level: page.level(),
            page,
            crc,
            below: OnceLock::new(),
            leaves: OnceLock::new(),
            uses: AtomicU8::new(0),
        })
    }

    /// Whether a reference to a page of this level means this one. In a damaged tree several may lead to
    /// its block.
    fn is_what(&self, ptr: PagePtr, level: u8) -> bool {
        self.crc == ptr.crc && self.level == level
    }

    /// Where the page below the cell at `index` is kept.
    fn link(&self, index: usize) -> Option<&OnceLock<Arc<Self>>> {
        let links = || (0..self.page.len()).map(|_| OnceLock::new()).collect();
        self.below.get_or_init(links).get(index)
    }

    /// Where the leaf below the cell at `index` was.
    fn leaf_link(&self, index: usize) -> Option<&Mutex<Weak<Self>>> {
        let links = || (0..self.page.len()).map(|_| Mutex::default()).collect();
        self.leaves.get_or_init(links).get(index)
    }

    /// Counts a use; whether the cache has to be told.
    fn is_news(&self) -> bool {
        let uses = self.uses.load(Ordering::Relaxed);
        self.uses.store((uses + 1) % CACHE_TOLD, Ordering::Relaxed);
        uses == 0
    }
}

/// Reads pages, keeping the ones in use in memory.
pub struct Tree<D> {
    device: Arc<D>,
    geometry: Geometry,
    cache: PageCache,
    /// Pages that a tree may have for its pages to be linked: the inner ones, which stay, then take no more
    /// memory than a quarter of the cache, and what is remembered of leaves about as much.
    linked_pages: u64,
}

impl<D: Device> Tree<D> {
    /// A reader that keeps about `cache_bytes` of pages.
    pub fn new(device: Arc<D>, geometry: Geometry, cache_bytes: usize) -> Self {
        Self {
            device,
            geometry,
            cache: PageCache::new(geometry.block_len(), cache_bytes),
            linked_pages: (cache_bytes / (10 * (CELL_OVERHEAD + CHILD_LEN))) as u64,
        }
    }

    /// The page that a reference names.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the page does not verify; I/O errors.
    pub fn page(&self, ptr: PagePtr, level: u8) -> Result<Arc<Node>> {
        let other = match self.cache.get(ptr.block) {
            Some(page) if page.is_what(ptr, level) => {
                page.hasten();
                return Ok(page);
            }
            other => other.is_some(),
        };
        let page = self.read(ptr, level)?;
        match other {
            true => self.cache.replace(ptr.block, Arc::clone(&page)),
            false => self.cache.insert(ptr.block, Arc::clone(&page)),
        }
        Ok(page)
    }

    /// The page that a reference names, for the last time: a merge takes what it holds further.
    /// Otherwise the old pages, in use as they are, would keep the new ones out of the cache.
    fn take(&self, ptr: PagePtr, level: u8) -> Result<Arc<Node>> {
        match self.cache.remove(ptr.block) {
            Some(page) if page.is_what(ptr, level) => Ok(page),
            _ => self.read(ptr, level),
        }
    }

    fn read(&self, ptr: PagePtr, level: u8) -> Result<Arc<Node>> {
        let offset = self.geometry.offset(ptr.block);
        if ptr.block < self.geometry.first_block() {
            return Err(Error::corrupt(
                "a tree page outside the allocation groups",
                offset,
            ));
        }
        let mut bytes = vec![0; self.geometry.block_len()].into_boxed_slice();
        self.device
            .read_at(offset, &mut bytes)
            .map_err(Error::io("reading a tree page"))?;
        let found = crc(&bytes);
        if found != ptr.crc {
            return Err(Error::corrupt(
                "a tree page whose checksum does not verify",
                offset,
            ));
        }
        let page = Page::parse(bytes, ptr.block, offset, level)?;
        Ok(Node::new(page, found))
    }

    /// Keeps a page just written.
    pub fn remember(&self, ptr: PagePtr, page: Page) {
        // It will be searched often, and nobody has to wait for it here.
        if cache::is_dense(&page) {
            page.hasten();
        }
        self.cache.replace(ptr.block, Node::new(page, ptr.crc));
    }

    /// Forgets a block that is no page any more.
    pub fn forget(&self, block: u64) {
        self.cache.remove(block);
    }

    /// The item under `key`.
    ///
    /// # Errors
    /// As [`Tree::page`].
    pub fn get(&self, root: &Root, key: &Key) -> Result<Option<Value>> {
        let Some(ptr) = root.page else {
            return Ok(None);
        };
        let mut level = top_level(root)?;
        let mut held = self.page(ptr, level)?;
        let mut node = &*held;
        let is_linked = root.pages <= self.linked_pages;
        while level > 0 {
            let index = node.child_for(key);
            let Some((_, child)) = node.child(index) else {
                return Ok(None);
            };
            level -= 1;
            let link = if level > 0 && is_linked {
                node.link(index)
            } else {
                None
            };
            node = match link {
                Some(link) => match link.get() {
                    Some(below) => below,
                    None => {
                        let below = self.page(child, level)?;
                        below.hasten();
                        link.get_or_init(|| below)
                    }
                },
                None => {
                    let at = Some(index).filter(|_| is_linked && level == 0);
                    held = self.below(node, at, child, level)?;
                    &held
                }
            };
        }
        Ok(node.find(key).map(Value::from))
    }

    /// A page below `node`; a leaf below its cell at `leaf` that has many small cells is found without the
    /// table of the cache, which in a large tree is three more lines of cold memory.
    fn below(
        &self,
        node: &Node,
        leaf: Option<usize>,
        ptr: PagePtr,
        level: u8,
    ) -> Result<Arc<Node>> {
        let link = leaf.and_then(|index| node.leaf_link(index));
        let linked = link.and_then(|link| link.lock().upgrade());
        if let Some(leaf) = linked.filter(|leaf| !leaf.is_news()) {
            return Ok(leaf);
        }
        let page = self.page(ptr, level)?;
        if let Some(link) = link
            && cache::is_dense(&page)
        {
            *link.lock() = Arc::downgrade(&page);
        }
        Ok(page)
    }

    /// The items `from..=to` in order.
    pub fn range(&self, root: &Root, from: Key, to: Key) -> Cursor<'_, D> {
        Cursor::new(self, *root, from, to)
    }
}

/// Level of the root page.
fn top_level(root: &Root) -> Result<u8> {
    match root.height {
        1..=MAX_HEIGHT => Ok((root.height - 1) as u8),
        _ => Err(Error::corrupt("a tree of impossible height", 0)),
    }
}
