//! Every crash of a small workload: at each moment of its last operations and, as far as they can be
//! counted, with every subset of the writes that were pending.
//!
//! Rule: what is left out is only where in a long line of pending writes which of them are lost, and
//! how they are torn; both are sampled.

use std::collections::HashSet;

use caskfs::device::testing::{Choice, CrashResolver, Garbage, Keep, Unit};

use super::case::{Case, Geometry};
use super::explorer::{Explorer, Failure, tried};
use super::life::Life;
use super::op::Op;
use super::plans;
use super::subject::image_print;

/// Pending writes of which every subset is tried.
const SUBSETS_OF: u64 = 4;
/// Choices beside these that are drawn: torn, garbled, of other lengths.
const DRAWN: usize = 2;

/// A ring that wraps soon on a fixed cask, and a cask that grows.
pub const GEOMETRIES: [Geometry; 2] = [
    Geometry {
        block_size: 512,
        blocks: 300,
        wal_blocks: 16,
        spacing: 512,
    },
    Geometry {
        block_size: 1024,
        blocks: 0,
        wal_blocks: 8,
        spacing: 1024,
    },
];

/// The operations of a text, one a line or divided by semicolons.
pub fn ops(text: &str) -> Vec<Op> {
    let lines = text.lines().flat_map(|line| line.split(';'));
    let lines = lines.map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| line.parse().unwrap_or_else(|e| panic!("{line}: {e}")))
        .collect()
}

/// A case of these operations.
pub fn case(geometry: Geometry, ops: Vec<Op>) -> Case {
    Case {
        geometry,
        mix: plans::plan(geometry.block_size, geometry.blocks, geometry.wal_blocks, 4).mix,
        seed: 1,
        states: 1,
        ops,
    }
}

/// Tries the crashes after the first `setup` operations of a case; answers how many states that were.
pub fn exhaust(case: &Case, setup: usize) -> Result<u64, Box<Failure>> {
    tried(case, 1, |explorer, life| crash_all(explorer, life, setup))
}

fn crash_all(explorer: &mut Explorer<'_>, life: &Life, setup: usize) -> Result<(), String> {
    let resolver = CrashResolver::new(&life.recording);
    // What is the same image, of which the same is demanded, is tried once.
    let mut seen = HashSet::new();
    explorer.at_each_moment(life, resolver, |explorer, resolver, progress| {
        if progress.issued <= setup {
            return Ok(true);
        }
        for choice in choices(explorer, resolver) {
            let killed = choice == Choice::KILLED;
            let least = match killed {
                true => progress.returned,
                false => progress.acked,
            };
            let image = resolver.resolve(&choice, std::mem::take(&mut explorer.room));
            let state = (image_print(&image), killed, least, progress.issued);
            match seen.insert(state) {
                true => explorer.crash_to(image, life, resolver, progress, choice)?,
                false => explorer.room = image,
            }
        }
        Ok(true)
    })
}

/// What may become of the pending writes.
fn choices(explorer: &mut Explorer<'_>, resolver: &CrashResolver<'_>) -> Vec<Choice> {
    let mut all = vec![Choice::KILLED];
    if !resolver.in_doubt() {
        return all;
    }
    let units = resolver.units(Unit::Write);
    let keeps: Vec<Keep> = match units {
        0..=SUBSETS_OF => (0..1 << units).map(Keep::Mask).collect(),
        _ => {
            let each = (0..units).flat_map(|unit| [Keep::Only(unit), Keep::AllBut(unit)]);
            let first = (0..=units).map(Keep::First);
            each.chain(first).collect()
        }
    };
    // The last is told from a death of the process: less is demanded.
    all.extend(keeps.into_iter().map(|keep| Choice {
        unit: Unit::Write,
        keep,
        garbage: Garbage::None,
        len: 0,
        seed: 1,
    }));
    all.extend((0..DRAWN).map(|_| resolver.choose(&mut explorer.rng)));
    all
}
