//! Does a cask, as long as nothing breaks, do what a filesystem does?
//!
//! The same random operations go to the model and to a cask in memory; both must answer the same
//! errno and look the same after every step, and the cask still after closing and opening.
#![cfg(feature = "testing")]

mod common;

use common::generate::{Generator, Mix, workload};
use common::model::ModelFs;
use common::op::{Op, Path};
use common::subject::time_of;

const MIX: Mix = Mix {
    block_size: 512,
    max_blocks: 6,
    bypass_one_in: 0,
    sync_one_in: 20,
};

/// Every operation survives being written down and read back.
#[test]
fn operations_are_text_and_back() {
    for op in Generator::new(1, MIX).take(3000) {
        let text = op.to_string();
        assert_eq!(text.parse::<Op>().as_ref(), Ok(&op), "{text}");
    }
}

/// The model keeps its own books: link counts, parents, names.
#[test]
fn the_model_agrees_with_itself() {
    let mut errors = 0;
    for seed in 0..20 {
        let mut model = ModelFs::new(0o755, time_of(0));
        for (n, op) in workload(seed, MIX, 400).iter().enumerate() {
            errors += usize::from(model.apply(op, time_of(n + 1)).is_err());
        }
        let dump = model.dump();
        for (path, entry) in &dump {
            if let Some((dir, _)) = path.split() {
                assert!(dump.contains_key(&dir), "{path} stands nowhere");
            }
            let first = entry.same_as.as_ref().unwrap_or(path);
            let is_same =
                |other: &Path| other == first || dump[other].same_as.as_ref() == Some(first);
            let names = dump.keys().filter(|other| is_same(other)).count();
            if entry.kind != caskfs::format::FileKind::Directory {
                assert_eq!(entry.nlink as usize, names, "links of {path}");
            }
        }
    }
    let share = errors * 100 / (20 * 400);
    assert!(
        (5..50).contains(&share),
        "{share} % of the operations fail: no good mix"
    );
}
