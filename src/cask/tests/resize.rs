//! A cask is given other bounds while it is in use.

use super::*;

/// Sets a bound that can be.
pub fn some<D: Device>(cask: &Cask<D>, rng: &mut Rng) -> Result<()> {
    let stats = cask.stats();
    match rng.below(4) {
        0 => cask.resize_files(None),
        1 => cask.resize_files(Some(stats.files_used + rng.below(100))),
        2 => cask.resize_blocks(None),
        _ => cask.resize_blocks(Some(stats.blocks + rng.below(60))),
    }
}

#[test]
fn a_full_cask_that_is_given_blocks_takes_more_and_remembers_it() {
    let (device, cask) = fresh(&tiny(512, 200, 16));
    let more = |cask: &Cask<MemoryDevice>| {
        cask.transact(Class::Grow, |tx| {
            let number = tx.new_number();
            tx.write(number, 0, &[7; 2000]);
            Ok(number)
        })
    };
    while more(&cask).is_ok() {}
    let full = cask.stats();
    cask.resize_blocks(Some(full.blocks + 100)).unwrap();
    assert_eq!(cask.stats().blocks_limit, Some(full.blocks + 100));
    assert!(cask.stats().free_blocks > full.free_blocks + 60);
    let numbers: Vec<_> = (0..10).map(|_| more(&cask).unwrap().0).collect();
    cask.sync(cask.lsn()).unwrap();
    drop(cask);
    let cask = Cask::open(device, spaced()).unwrap();
    assert_eq!(cask.stats().blocks_limit, Some(full.blocks + 100));
    for number in numbers {
        let mut found = vec![0; 2000];
        cask.read_content(number, 0, &mut found).unwrap();
        assert_eq!(found, [7; 2000]);
    }
}

#[test]
fn a_bound_of_files_holds_from_the_next_operation_on() {
    let (device, cask) = fresh(&tiny(512, 400, 16));
    let make = |cask: &Cask<MemoryDevice>| cask.transact(Class::Grow, |tx| tx.add_file());
    for _ in 0..9 {
        make(&cask).unwrap();
    }
    let error = cask.resize_files(Some(9)).unwrap_err();
    assert!(error.to_string().contains("holds 10 files"), "{error}");
    cask.resize_files(Some(10)).unwrap();
    assert!(matches!(make(&cask), Err(Error::NoFiles)));
    cask.resize_files(Some(11)).unwrap();
    make(&cask).unwrap();
    cask.persist(cask.lsn()).unwrap();
    drop(cask);
    let cask = Cask::open(device, spaced()).unwrap();
    assert!(matches!(make(&cask), Err(Error::NoFiles)));
    cask.resize_files(None).unwrap();
    make(&cask).unwrap();
    assert_eq!(cask.stats().files_limit, None);
}

#[test]
fn what_cannot_be_changes_nothing() {
    let device = MemoryDevice::with_max_len(600_000);
    Cask::format(&device, &tiny(512, 400, 16)).unwrap();
    let cask = Cask::open(device.clone(), spaced()).unwrap();
    let before = bounds(&cask);
    let most = cask.geometry.max_blocks();
    for (blocks, word) in [(399, "has 400 blocks"), (most + 1, "at most")] {
        let error = cask.resize_blocks(Some(blocks)).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    for blocks in [3_000, most] {
        let error = cask.resize_blocks(Some(blocks)).unwrap_err();
        assert!(matches!(error, Error::NoSpace), "{error}");
    }
    assert_eq!(bounds(&cask), before);
    cask.resize_blocks(Some(1_000)).unwrap();
    // As many as the host has room for.
    cask.resize_blocks(None).unwrap();
    let numbers = contents(&cask, 8, 5_000);
    drop_all(&cask, &numbers);
    cask.close().unwrap();
    assert!(cask.failure().is_none());
}

#[test]
fn a_growing_cask_that_is_bounded_has_room_for_every_block() {
    let options = FormatOptions {
        blocks: None,
        ..tiny(512, 0, 16)
    };
    let (device, cask) = fresh(&options);
    let numbers = contents(&cask, 60, 5_000);
    drop_all(&cask, &numbers);
    cask.checkpoint().unwrap();
    cask.give_back(true);
    drop(cask);
    // What is free may have gone to the host.
    let cask = Cask::open(device.clone(), spaced()).unwrap();
    let blocks = cask.stats().blocks;
    cask.resize_blocks(Some(blocks + 10)).unwrap();
    assert_eq!(cask.alloc.absent_blocks(), 0);
    // Logged only: the superblock still says that it grows.
    let log_only = {
        let _ops = cask.ops.lock();
        let bounds = super::super::Bounds {
            files: Some(77),
            fixed: true,
        };
        cask.set_bounds(bounds).unwrap();
        cask.lsn()
    };
    cask.persist(log_only).unwrap();
    drop(cask);
    let cask = Cask::open(device, spaced()).unwrap();
    assert_eq!(bounds(&cask), (Some(77), Some(blocks + 10)));
    assert_eq!(cask.alloc.absent_blocks(), 0);
}

#[test]
fn a_filled_cask_has_its_new_blocks_written() {
    let options = FormatOptions {
        fill: true,
        ..tiny(512, 300, 16)
    };
    let (device, cask) = fresh(&options);
    let numbers = contents(&cask, 8, 2_000);
    cask.checkpoint().unwrap();
    assert!(cask.resize_blocks(None).is_err());
    cask.resize_blocks(Some(500)).unwrap();
    assert_eq!(device.to_bytes().len(), 500 * 512);
    assert!(cask.stats().fill);
    for (number, at) in numbers.into_iter().zip(0..) {
        let mut found = vec![0; 2_000];
        cask.read_content(number, 0, &mut found).unwrap();
        assert_eq!(found, vec![at as u8 | 1; 2_000]);
    }
}
