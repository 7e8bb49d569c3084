//! When what is given up is overwritten, and that it is only then.

use super::*;
use crate::device::testing::{Event, RecordingDevice};
use crate::format::superblock::{FLAG_STALE, SUPERBLOCK_LEN};

const SECRET: &[u8] = b"a secret of sixty-four bytes, which nobody else has and can find";

/// Whether the secret stands in these bytes.
fn holds(bytes: &[u8]) -> bool {
    bytes.windows(16).any(|part| part == &SECRET[..16])
}

/// A cask on a device that notes what is done to it; wiping is set on one file of it if `wiped`.
fn recorded(wiped: bool) -> (RecordingDevice, Cask<RecordingDevice>) {
    let memory = MemoryDevice::new();
    Cask::format(&memory, &tiny(512, 600, 32)).unwrap();
    let device = RecordingDevice::over(memory);
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    cask.transact(Class::Grow, |tx| {
        tx.put(Key::new(2, Kind::Inode, 0), b"item".as_slice())?;
        tx.count_wipe(false, wiped);
        Ok(())
    })
    .unwrap();
    (device, cask)
}

/// Makes a content that holds the secret so many times over, and answers its number.
fn put<D: Device>(cask: &Cask<D>, times: usize) -> u64 {
    let data = SECRET.repeat(times);
    let staged = cask.stage(0, &data).unwrap();
    let make = |tx: &mut Tx<'_, D>| {
        let number = tx.new_number();
        tx.write_staged(number, &staged);
        Ok(number)
    };
    cask.transact(Class::Grow, make).unwrap().0
}

fn drop_content<D: Device>(cask: &Cask<D>, number: u64) {
    cask.transact(Class::Release, |tx| {
        tx.drop_content(number);
        Ok(())
    })
    .unwrap();
}

/// Whether a content holds the secret all through.
fn is_whole<D: Device>(cask: &Cask<D>, number: u64, times: usize) -> bool {
    let mut found = vec![0; SECRET.len() * times];
    cask.read_content(number, 0, &mut found).unwrap();
    found == SECRET.repeat(times)
}

#[test]
fn without_it_a_checkpoint_writes_nothing_more_than_itself() {
    let (device, cask) = recorded(false);
    for times in [1, 100] {
        let number = put(&cask, times);
        cask.checkpoint().unwrap();
        drop_content(&cask, number);
        device.take();
        cask.checkpoint().unwrap();
        cask.wipe_now().unwrap();
        cask.tick(Timestamp::from_secs(5)).unwrap();
        let events = device.take().events;
        // Log, page, bitmap and root; two copies of a superblock.
        let kinds: String = events
            .iter()
            .map(|event| match event {
                Event::Write { .. } => 'w',
                Event::Sync => 's',
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, "wwwwswws");
    }
    cask.close().unwrap();
    assert!(holds(&device.memory().to_bytes()));
}

#[test]
fn nothing_is_overwritten_before_both_pairs_of_superblocks_lead_elsewhere() {
    for times in [1, 100] {
        let (device, cask) = recorded(true);
        let number = put(&cask, times);
        cask.checkpoint().unwrap();
        drop_content(&cask, number);
        let before = device.memory().to_bytes();
        device.take();
        cask.checkpoint().unwrap();
        let events = device.take().events;
        let mut image = before;
        let superblocks = |bytes: &[u8]| -> Vec<SuperblockRecord> {
            (0..4)
                .map(|copy| {
                    SuperblockRecord::decode(&bytes[copy * 512..][..SUPERBLOCK_LEN]).unwrap()
                })
                .collect()
        };
        let mut zeros = 0;
        for event in events {
            let Event::Write { offset, data } = event else {
                continue;
            };
            if data.iter().all(|byte| *byte == 0) {
                zeros += 1;
                let [a, b, c, d] = superblocks(&image)[..] else {
                    panic!("four copies");
                };
                assert_eq!((a, c), (b, d), "both copies of each pair");
                assert_eq!(a.generation.get().abs_diff(c.generation.get()), 1);
                assert_eq!(a.root_block, c.root_block);
                assert_eq!(a.alloc_digest, c.alloc_digest);
                assert_eq!(a.wal_position, c.wal_position);
                assert!(a.flags.get() & c.flags.get() & FLAG_STALE != 0);
            }
            image[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        assert!(zeros >= 2, "the log and the blocks");
        assert!(!holds(&image));
        // Either pair alone is enough to open what is left.
        for pair in [0, 2] {
            let mut bytes = image.clone();
            bytes[pair * 512..(pair + 2) * 512].fill(0xff);
            let options = OpenOptions {
                superblock_spacing: Some(512),
                ..OpenOptions::default()
            };
            let cask = Cask::open(MemoryDevice::from_bytes(bytes), options).unwrap();
            assert!(cask.get(&Key::new(2, Kind::Inode, 0)).unwrap().is_some());
        }
    }
}

#[test]
fn who_still_reads_an_old_checkpoint_keeps_it() {
    let (device, cask) = recorded(true);
    let number = put(&cask, 100);
    cask.checkpoint().unwrap();
    let pinned = cask.pin();
    drop_content(&cask, number);
    cask.checkpoint().unwrap();
    assert!(holds(&device.memory().to_bytes()));
    let mut items = 0;
    let (from, to) = (
        Key::new(0, Kind::Inode, 0),
        Key::new(u64::MAX, Kind::Arrivals, 0),
    );
    pinned
        .scan(from, to, &mut |_, _| {
            items += 1;
            Ok(true)
        })
        .unwrap();
    assert!(items > 2);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| cask.wipe_now());
        drop(pinned);
        waits.join().unwrap().unwrap();
    });
    assert!(!holds(&device.memory().to_bytes()));
}

#[test]
fn an_orderly_end_says_that_nothing_is_left_and_a_life_begins_with_the_contrary() {
    let (device, cask) = recorded(true);
    let number = put(&cask, 1);
    cask.close().unwrap();
    drop(cask);
    let newest = |device: &RecordingDevice| {
        let bytes = device.memory().to_bytes();
        let copies = (0..4).map(|copy| &bytes[copy * 512..][..SUPERBLOCK_LEN]);
        copies
            .map(|copy| SuperblockRecord::decode(copy).unwrap())
            .max_by_key(|superblock| superblock.generation.get())
            .unwrap()
    };
    assert_eq!(
        (
            newest(&device).flags.get() & FLAG_STALE,
            newest(&device).wipes.get()
        ),
        (0, 1)
    );
    let read_only = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    device.take();
    drop(Cask::open(device.clone(), read_only).unwrap());
    assert_eq!(device.take().events, []);
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    assert_ne!(newest(&device).flags.get() & FLAG_STALE, 0);
    // Nothing is looked for after an orderly end.
    device.take();
    cask.tick(Timestamp::from_secs(1)).unwrap();
    assert_eq!(device.take().events, []);
    assert!(is_whole(&cask, number, 1));
    drop_content(&cask, number);
    cask.close().unwrap();
    assert!(!holds(&device.memory().to_bytes()));
    assert_eq!(newest(&device).flags.get() & FLAG_STALE, 0);
}

#[test]
fn syncs_and_wiping_at_the_same_time_leave_nothing_in_the_log() {
    let device = MemoryDevice::new();
    Cask::format(&device, &tiny(512, 4000, 64)).unwrap();
    let cask = Cask::open(device.clone(), OpenOptions::default()).unwrap();
    cask.transact(Class::Grow, |tx| {
        tx.put(Key::new(2, Kind::Inode, 0), b"item".as_slice())?;
        tx.count_wipe(false, true);
        Ok(())
    })
    .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let number = put(&cask, 2);
                    cask.sync(cask.lsn()).unwrap();
                    assert!(is_whole(&cask, number, 2));
                    drop_content(&cask, number);
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..100 {
                cask.checkpoint().unwrap();
            }
        });
    });
    cask.wipe_now().unwrap();
    assert!(!holds(&device.to_bytes()));
}
