//! For which free blocks the host holds room.
//!
//! A container that grows gives whole free chunks back to the host, and takes room for them again
//! before anything stands there. Invariant: an absent chunk is wholly free and marked busy, so that
//! nothing is put there; what counts as free has room on the host.

use super::{Allocator, Group, Inner, Run};

impl Allocator {
    /// Takes every free chunk for absent: on a container just opened nobody knows better, and room
    /// that is there already costs nothing to ask for.
    pub fn assume_absent(&self) {
        self.give_up(0);
    }

    /// Makes free chunks absent, the last first, as long as `keep` blocks stay free; answers the
    /// neighbouring blocks that the host may have back.
    pub fn give_up(&self, keep: u64) -> Vec<Run> {
        let chunk = self.geometry.chunk_blocks();
        let mut inner = self.inner.lock();
        let mut runs: Vec<Run> = Vec::new();
        for index in (0..inner.groups.len()).rev() {
            let start = self.geometry.group_start(index as u64);
            let Some(group) = inner.groups.get(index) else {
                continue;
            };
            let chunks = group.limit / chunk;
            for number in (0..chunks).rev() {
                if inner.free < keep.saturating_add(chunk) {
                    return runs;
                }
                let Some(group) = inner.groups.get_mut(index) else {
                    continue;
                };
                let blocks = number * chunk..(number + 1) * chunk;
                let taken = |at| group.committed.get(at) || group.busy.get(at);
                if blocks.clone().any(taken) {
                    continue;
                }
                blocks.for_each(|at| {
                    group.busy.set(at, true);
                });
                group.absent.set(number, true);
                group.free -= chunk;
                inner.free -= chunk;
                inner.absent += chunk;
                let run = Run {
                    start: start + number * chunk,
                    len: chunk,
                };
                match runs.last_mut() {
                    Some(last) if run.start + run.len == last.start => {
                        last.start = run.start;
                        last.len += run.len;
                    }
                    _ => runs.push(run),
                }
            }
        }
        runs
    }

    /// The absent chunks, the first first.
    pub fn absent(&self) -> Vec<Run> {
        let chunk = self.geometry.chunk_blocks();
        let inner = self.inner.lock();
        if inner.absent == 0 {
            return Vec::new();
        }
        let of_group = |(index, group): (u64, &Group)| {
            let start = self.geometry.group_start(index);
            (0..group.limit / chunk)
                .filter(|number| group.absent.get(*number))
                .map(|number| Run {
                    start: start + number * chunk,
                    len: chunk,
                })
                .collect::<Vec<_>>()
        };
        (0..).zip(&inner.groups).flat_map(of_group).collect()
    }

    /// The host has room for the chunk at `run` again.
    pub fn restore(&self, run: Run) {
        let mut inner = self.inner.lock();
        if let Some(index) = self.geometry.group_of(run.start) {
            let at = run.start - self.geometry.group_start(index);
            self.restore_at(&mut inner, index, at);
        }
    }

    /// Makes the chunk of block `at` of a group present if it is absent.
    pub(super) fn restore_at(&self, inner: &mut Inner, index: u64, at: u64) {
        let chunk = self.geometry.chunk_blocks();
        let number = at / chunk;
        let Some(group) = inner.groups.get_mut(index as usize) else {
            return;
        };
        if number >= group.limit / chunk || !group.absent.set(number, false) {
            return;
        }
        (number * chunk..(number + 1) * chunk).for_each(|at| {
            group.busy.set(at, false);
        });
        group.free += chunk;
        inner.free += chunk;
        inner.absent -= chunk;
    }

    /// Free blocks for which the host holds no room.
    pub fn absent_blocks(&self) -> u64 {
        self.inner.lock().absent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Geometry;

    /// Chunks of 8 blocks.
    const TINY: Geometry = Geometry {
        block_size: 512,
        spacing: 512,
        wal_len: 4096,
    };

    fn allocator() -> Allocator {
        Allocator::empty(TINY, TINY.first_block() + 100)
    }

    #[test]
    fn whole_free_chunks_go_and_come_back() {
        let alloc = allocator();
        let first = TINY.first_block();
        assert_eq!(alloc.free(), 98);
        // Chunk 0 holds the bitmap slots; the last 4 blocks are no whole chunk.
        let runs = alloc.give_up(0);
        let all = Run {
            start: first + 8,
            len: 88,
        };
        assert_eq!(runs, [all]);
        assert_eq!((alloc.free(), alloc.absent_blocks()), (10, 88));
        let mut taken: Vec<u64> = std::iter::from_fn(|| alloc.allocate(1))
            .map(|run| run.start - first)
            .collect();
        taken.sort_unstable();
        assert_eq!(taken, [2, 3, 4, 5, 6, 7, 96, 97, 98, 99]);
        let absent = alloc.absent();
        assert_eq!(absent.len(), 11);
        alloc.restore(absent[3]);
        alloc.restore(absent[3]);
        assert_eq!((alloc.free(), alloc.absent_blocks()), (8, 80));
        assert_eq!(
            alloc.allocate(9),
            Some(Run {
                start: first + 32,
                len: 8
            })
        );
    }

    #[test]
    fn what_shall_stay_and_what_is_in_use_stays() {
        let alloc = allocator();
        let first = TINY.first_block();
        let used = Run {
            start: first + 20,
            len: 1,
        };
        alloc.reserve(used).unwrap();
        let runs = alloc.give_up(80);
        assert_eq!(
            runs,
            [Run {
                start: first + 80,
                len: 16
            }]
        );
        assert_eq!(alloc.free(), 81);
        let rest: u64 = alloc.give_up(0).iter().map(|run| run.len).sum();
        assert_eq!(rest, 64);
        assert_eq!(alloc.free(), 17);
    }

    #[test]
    fn a_logged_extent_shows_that_its_chunk_is_present() {
        let alloc = allocator();
        let run = Run {
            start: TINY.first_block() + 14,
            len: 4,
        };
        alloc.assume_absent();
        alloc.reserve(run).unwrap();
        assert_eq!((alloc.free(), alloc.absent_blocks()), (10 + 16 - 4, 72));
        assert!(alloc.reserve(run).is_err());
    }
}
