//! The pages in memory.
//!
//! A page with many small cells (names, references to pages, extents) is worth more than one with a
//! few large ones (small files with their content): a look-up of a random item needs it so many times
//! more often. So the two have caches of their own, and the many small files that a scan or a storm
//! of look-ups passes by never push the names out. Invariant: a block is in one of them at most. A
//! reader of an old version of the tree may bring a page back after it was given up, so a new page in
//! the block takes its place in both.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quick_cache::sync::Cache;

use super::Node;
use crate::format::page::Page;

/// Bytes that a page in memory takes beside its own, about: its index and links, and its places in
/// the tables of the cache.
const PAGE_OVERHEAD: usize = 384;
/// Bytes that the cells of a page have on the average, at most, for it to be dense.
const DENSE_CELL: usize = 96;
/// The part of all pages that sparse ones have at least: one of so many. What a look-up needs of them
/// is remembered elsewhere.
const SPARSE_SHARE: usize = 16;
/// Insertions of dense pages between two looks at how many there are.
const LOOK_EVERY: usize = 256;

/// Keeps about as many pages as it was made for.
pub(super) struct PageCache {
    /// Dense pages: all but what the others have at least.
    dense: Cache<u64, Arc<Node>>,
    /// The others: what the dense ones leave, a sixteenth at least.
    sparse: Cache<u64, Arc<Node>>,
    pages: usize,
    insertions: AtomicUsize,
}

impl PageCache {
    /// A cache of pages of `block_len` bytes that takes about `bytes` of memory.
    pub fn new(block_len: usize, bytes: usize) -> Self {
        let pages = (bytes / (block_len + PAGE_OVERHEAD)).max(8);
        Self {
            dense: Cache::new(pages - pages / SPARSE_SHARE),
            sparse: Cache::new(pages),
            pages,
            insertions: AtomicUsize::new(0),
        }
    }

    /// The page in `block`.
    pub fn get(&self, block: u64) -> Option<Arc<Node>> {
        self.dense.get(&block).or_else(|| self.sparse.get(&block))
    }

    /// Keeps a page that was just written to `block`, instead of what was there.
    pub fn replace(&self, block: u64, node: Arc<Node>) {
        let other = if is_dense(&node) {
            &self.sparse
        } else {
            &self.dense
        };
        other.remove(&block);
        self.insert(block, node);
    }

    /// Keeps the page that was read from `block`.
    pub fn insert(&self, block: u64, node: Arc<Node>) {
        if !is_dense(&node) {
            self.sparse.insert(block, node);
            return;
        }
        self.dense.insert(block, node);
        let count = self.insertions.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_multiple_of(LOOK_EVERY) {
            let left = self.pages.saturating_sub(self.dense.len());
            self.sparse
                .set_capacity(left.max(self.pages / SPARSE_SHARE) as u64);
        }
    }

    /// Gives up the page in `block`.
    pub fn remove(&self, block: u64) -> Option<Arc<Node>> {
        let held = self.dense.remove(&block);
        held.or_else(|| self.sparse.remove(&block))
            .map(|(_, node)| node)
    }
}

/// Whether it is a page of many small cells.
pub(super) fn is_dense(page: &Page) -> bool {
    page.bytes().len() <= page.len().saturating_mul(DENSE_CELL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Key, Kind};

    fn node(block: u64, cells: u64, value: usize) -> Arc<Node> {
        let value = vec![0; value];
        let cells: Vec<_> = (0..cells)
            .map(|n| (Key::new(1, Kind::Dirent, n), value.as_slice()))
            .collect();
        Node::new(
            Page::build(4096, 0, block, 1, cells.into_iter()).unwrap(),
            0,
        )
    }

    fn held(cache: &PageCache, blocks: std::ops::Range<u64>) -> usize {
        blocks.filter(|block| cache.get(*block).is_some()).count()
    }

    #[test]
    fn large_cells_never_push_out_small_ones() {
        let cache = PageCache::new(4096, 8 << 20);
        let names = cache.pages as u64 / 2;
        (0..names).for_each(|block| cache.insert(block, node(block, 60, 40)));
        let before = held(&cache, 0..names);
        let files = names..names + 20 * cache.pages as u64;
        files.clone().for_each(|block| {
            cache.insert(block, node(block, 12, 300));
            cache.get(block);
        });
        assert_eq!(held(&cache, 0..names), before);
        assert!(before as u64 >= names * 9 / 10, "{before} of {names}");
        let both = before + held(&cache, files);
        assert!(both <= cache.pages + cache.pages / 8, "{both} pages");
    }

    #[test]
    fn a_block_holds_one_page_whatever_its_cells() {
        let cache = PageCache::new(4096, 8 << 20);
        for (cells, value) in [(60, 40), (12, 300), (60, 40), (12, 300)] {
            cache.replace(7, node(7, cells, value));
            assert_eq!(cache.get(7).map(|page| page.len()), Some(cells as usize));
        }
        cache.remove(7);
        assert!(cache.get(7).is_none());
    }

    #[test]
    fn large_cells_use_what_small_ones_leave() {
        let cache = PageCache::new(4096, 8 << 20);
        let pages = cache.pages as u64;
        (0..pages).for_each(|block| cache.insert(block, node(block, 12, 300)));
        assert!(held(&cache, 0..pages) as u64 >= pages * 9 / 10);
        cache.remove(1);
        assert!(cache.get(1).is_none());
    }
}
