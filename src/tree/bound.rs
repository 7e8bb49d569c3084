//! How much a merge writes at most, known before it begins.
//!
//! A merge writes *runs*: pages that stood side by side are opened and what is left of them is filled into
//! new pages, each as full as it gets. So a run makes no more pages than any other way to divide it:
//!
//! * Leaves. Where an edit falls a leaf is divided in two, or in three if the new item is larger than half
//!   a page: at most two pages for an edit, and two for each page of items that are added. Those opened
//!   without an edit, since what came before is less than half a page, make one page at most with the
//!   last of them.
//! * Above. A page with an edit below is divided in two at most, but for a page's worth of new references;
//!   the next one may be opened with it, when the leaves were not settled at its end.
//!
//! Neither makes more than two pages for each that is there, but for one at the end.
//! Invariant: what [`merge`](super::merge()) takes is within this; test builds check it at every checkpoint.

use super::Root;
use crate::format::Geometry;
use crate::format::page::{CELL_OVERHEAD, CHILD_LEN};

/// What a merge may do to a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Pages that it writes.
    pub written: u64,
    /// Pages of the tree afterwards.
    pub pages: u64,
}

/// What merging edits at `keys` places that add `bytes` bytes may do at most to a tree of this height and
/// number of pages. Taking away all items of a range is done at two places.
pub fn bound(geometry: &Geometry, root: &Root, keys: u64, bytes: u64) -> Bound {
    let payload = geometry.page_payload() as u64;
    // Pages above the leaves are at least half full, but for the last of each level.
    let cell = (CELL_OVERHEAD + CHILD_LEN) as u64;
    let children = (payload / (2 * cell)).saturating_sub(1).max(4);
    let added = 2 * bytes.div_ceil(payload);
    let mut divided = (2 * keys).min(2 * root.pages + 1);
    let mut made = divided + added;
    let mut all = divided;
    let (mut level, mut there) = (1, root.pages);
    while level < root.height || there > 1 {
        there = there / children + 1;
        divided = (3 * keys).min(2 * there + 1);
        let more = made / children;
        all += divided + more;
        made = divided + more;
        level += 1;
    }
    // The root may be divided, and all that was added stand under new pages of all levels.
    let fresh = added + u64::from(level) + 4;
    Bound {
        written: all + fresh,
        pages: root.pages + all + fresh,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bound far above what happens would refuse operations that have room.
    #[test]
    fn an_edit_of_a_large_tree_is_bound_to_its_path() {
        let geometry = Geometry {
            block_size: 4096,
            spacing: 65_536,
            wal_len: 1 << 20,
        };
        for (pages, height) in [(1, 1), (100, 2), (10_000, 3), (1_000_000, 4)] {
            let root = Root {
                pages,
                height,
                ..Root::EMPTY
            };
            let one = bound(&geometry, &root, 1, 0);
            let path = 3 * (u64::from(height) + 1) + 8;
            assert!(one.written <= path, "{pages} pages: {one:?}");
            // Spread over all leaves, each is written, and the pages above are few.
            let many = bound(&geometry, &root, pages, 0);
            assert!(
                many.written <= 2 * pages + pages / 4 + path,
                "{pages} pages: {many:?}"
            );
        }
    }
}
