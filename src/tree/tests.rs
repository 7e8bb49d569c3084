//! A merge against a sorted map, and within its bound.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::device::MemoryDevice;
use crate::format::Kind;

/// Bytes of the largest value in a page of 512.
const MOST: usize = 512 - crate::format::page::PAGE_HEADER_LEN - CELL_OVERHEAD;

/// Writes pages one after the other, and knows which are in use.
struct Pages {
    device: Arc<MemoryDevice>,
    geometry: Geometry,
    next: u64,
    live: BTreeSet<u64>,
    written: u64,
}

impl PageStore for Pages {
    fn allocate(&mut self) -> Result<u64> {
        self.next += 1;
        self.live.insert(self.next);
        Ok(self.next)
    }

    fn write(&mut self, ptr: PagePtr, page: Page) -> Result<()> {
        self.written += 1;
        self.device
            .write_at(self.geometry.offset(ptr.block), page.bytes())
            .map_err(Error::io("writing"))
    }

    fn free(&mut self, block: u64) {
        assert!(self.live.remove(&block), "block {block} is given up twice");
    }
}

/// Some edits that are merged at once.
#[derive(Clone, Debug)]
enum Step {
    /// This item has a value of this length.
    Put(u64, usize),
    Del(u64),
    /// All items from one to before another.
    Clear(u64, u64),
}

fn key(number: u64) -> Key {
    Key::new(number, Kind::Inode, 0)
}

fn step(most: usize) -> impl Strategy<Value = Step> {
    let len = prop_oneof![
        6 => 0..40_usize,
        2 => 0..most / 3,
        1 => most / 2..=most,
        1 => most - 20..=most,
    ];
    prop_oneof![
        6 => (0..400_u64, len).prop_map(|(at, len)| Step::Put(at, len)),
        2 => (0..400_u64).prop_map(Step::Del),
        1 => (0..400_u64, 0..60_u64).prop_map(|(at, len)| Step::Clear(at, at + len)),
    ]
}

/// The tree beside a map.
struct World {
    tree: Tree<MemoryDevice>,
    pages: Pages,
    root: Root,
    map: BTreeMap<u64, Vec<u8>>,
    generation: u64,
}

impl World {
    fn new(block_size: u32) -> Self {
        let geometry = Geometry {
            block_size,
            spacing: 65_536,
            wal_len: 1 << 16,
        };
        let device = Arc::new(MemoryDevice::new());
        device.allocate(0, 16 << 20).unwrap();
        Self {
            tree: Tree::new(Arc::clone(&device), geometry, 1 << 16),
            pages: Pages {
                device,
                geometry,
                next: geometry.first_block(),
                live: BTreeSet::new(),
                written: 0,
            },
            root: Root::EMPTY,
            map: BTreeMap::new(),
            generation: 1,
        }
    }

    /// Merges, and answers what was written and what was to be expected at most.
    fn merge(&mut self, steps: &[Step]) -> (u64, Bound) {
        let mut edits: BTreeMap<u64, Option<Vec<u8>>> = BTreeMap::new();
        let (mut keys, mut bytes) = (0, 0);
        for step in steps {
            match step {
                Step::Put(at, len) => {
                    keys += 1;
                    bytes += (len + CELL_OVERHEAD) as u64;
                    edits.insert(*at, Some(vec![(*at + self.generation) as u8; *len]));
                }
                Step::Del(at) => {
                    keys += 1;
                    edits.insert(*at, None);
                }
                Step::Clear(from, to) => {
                    keys += 2;
                    let there: Vec<u64> = self.map.range(from..to).map(|(at, _)| *at).collect();
                    let new: Vec<u64> = edits.range(from..to).map(|(at, _)| *at).collect();
                    edits.extend(there.into_iter().chain(new).map(|at| (at, None)));
                }
            }
        }
        for (at, value) in &edits {
            match value {
                Some(value) => drop(self.map.insert(*at, value.clone())),
                None => drop(self.map.remove(at)),
            }
        }
        let edits = edits.into_iter().map(|(at, value)| Edit {
            key: key(at),
            value: value.map(Value::from),
        });
        let bound = bound(&self.pages.geometry, &self.root, keys, bytes);
        self.generation += 1;
        self.pages.written = 0;
        let edits = edits.collect();
        self.root = merge(
            &self.tree,
            &self.root,
            self.generation,
            edits,
            &mut self.pages,
        )
        .unwrap();
        (self.pages.written, bound)
    }

    #[track_caller]
    fn check(&self) {
        let mut cursor = self.tree.range(&self.root, key(0), key(u64::MAX));
        let mut found = BTreeMap::new();
        while let Some((key, value)) = cursor.next().unwrap() {
            found.insert(key.number, value.to_vec());
        }
        assert_eq!(found, self.map);
        assert_eq!(self.root.pages, self.pages.live.len() as u64);
    }
}

#[test]
fn a_save_costs_about_two_pages_of_each_level_at_most() {
    let mut w = World::new(4096);
    w.root.pages = 100_000;
    w.root.height = 4;
    let of = |keys| bound(&w.pages.geometry, &w.root, keys, 100 * keys).written;
    assert!(of(1_000) < 7_000, "{}", of(1_000));
    assert!(of(1) < 30, "{}", of(1));
    // Not more than twice what is there.
    assert!(of(1_000_000) < 320_000, "{}", of(1_000_000));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_merge_is_what_a_map_would_be_and_within_its_bound(
        large in any::<bool>(),
        batches in proptest::collection::vec(proptest::collection::vec(step(MOST), 1..40), 1..30),
    ) {
        let mut w = World::new(if large { 1024 } else { 512 });
        for steps in batches {
            let (written, bound) = w.merge(&steps);
            prop_assert!(written <= bound.written, "{written} pages, {bound:?}");
            prop_assert!(w.root.pages <= bound.pages, "{:?}, {bound:?}", w.root);
            w.check();
        }
    }

    /// A cursor that is sent elsewhere is as good as a new one, wherever it was.
    #[test]
    fn a_cursor_goes_anywhere(
        steps in proptest::collection::vec(step(100), 1..200),
        ways in proptest::collection::vec((0..420_u64, 0..60_u64, 0..8_usize), 1..30),
    ) {
        let mut w = World::new(512);
        w.merge(&steps);
        let mut cursor = w.tree.range(&w.root, FIRST_KEY, FIRST_KEY);
        for (from, len, reads) in ways {
            cursor.go_to(key(from), key(from + len));
            let mut wanted = w.map.range(from..=from + len);
            for _ in 0..reads {
                let found = cursor.next().unwrap().map(|(key, value)| (key.number, value.to_vec()));
                let wanted = wanted.next().map(|(number, value)| (*number, value.clone()));
                prop_assert_eq!(&found, &wanted);
                if found.is_none() {
                    break;
                }
            }
        }
    }

    /// One edit at a time is where a bound for each edit is nearest.
    #[test]
    fn single_edits_are_within_their_bound(
        first in proptest::collection::vec(step(MOST), 1..300),
        steps in proptest::collection::vec(step(MOST), 1..60),
    ) {
        let mut w = World::new(512);
        w.merge(&first);
        for step in steps {
            let (written, bound) = w.merge(std::slice::from_ref(&step));
            prop_assert!(written <= bound.written, "{written} pages, {bound:?}");
            prop_assert!(w.root.pages <= bound.pages, "{:?}, {bound:?}", w.root);
        }
        w.check();
    }
}

/// No page is written for an item that fits in none, and the merge ends.
#[test]
fn an_item_larger_than_a_page_is_refused() {
    for before in [0, 30] {
        let mut w = World::new(512);
        w.merge(&[Step::Put(1, before)]);
        let edits = vec![Edit {
            key: key(2),
            value: Some(Value::from(vec![0; 2 * MOST])),
        }];
        let outcome = merge(&w.tree, &w.root, 9, edits, &mut w.pages);
        assert!(matches!(outcome, Err(Error::Corrupt(_))), "{outcome:?}");
    }
}

/// In a damaged tree several references may lead to one block: the page in memory is what only one of them
/// means.
#[test]
fn a_page_in_memory_is_not_what_another_reference_means() {
    let mut w = World::new(512);
    w.merge(&[Step::Put(1, 30), Step::Put(2, 30)]);
    let ptr = w.root.page.unwrap();
    w.tree.page(ptr, 0).unwrap();
    let other = PagePtr {
        crc: ptr.crc ^ 1,
        ..ptr
    };
    for (ptr, level) in [(other, 0), (ptr, 1)] {
        let outcome = w.tree.page(ptr, level).map(drop);
        assert!(matches!(outcome, Err(Error::Corrupt(_))), "{outcome:?}");
    }
    w.tree.page(ptr, 0).unwrap();
}
