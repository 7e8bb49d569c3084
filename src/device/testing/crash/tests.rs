//! What the resolver may and may not put in doubt.

use std::collections::BTreeSet;

use super::*;
use crate::device::Device;
use crate::device::testing::{RecordingDevice, TestDevice};

const S: u64 = SECTOR as u64;

fn sector(byte: u8) -> [u8; SECTOR] {
    [byte; SECTOR]
}

/// The first byte of each sector.
fn heads(image: &[u8]) -> Vec<u8> {
    image.chunks(SECTOR).map(|sector| sector[0]).collect()
}

/// Every image without garbage that a crash at the end of the recording can leave.
fn outcomes(recording: &Recording, unit: Unit) -> BTreeSet<Vec<u8>> {
    let mut resolver = CrashResolver::new(recording);
    resolver.advance_to(usize::MAX);
    let mut found = BTreeSet::new();
    for mask in 0..1 << resolver.units(unit) {
        for len in 0..resolver.lens.len() + 2 {
            let keep = Keep::Mask(mask);
            let choice = Choice {
                unit,
                keep,
                len,
                ..Choice::KILLED
            };
            found.insert(heads(&resolver.resolve(&choice, Vec::new())));
        }
    }
    found
}

fn set<const N: usize>(images: [&[u8]; N]) -> BTreeSet<Vec<u8>> {
    images.into_iter().map(<[u8]>::to_vec).collect()
}

#[test]
fn pending_writes_persist_in_any_combination_and_synced_ones_for_sure() {
    let device = RecordingDevice::new(vec![0; 2 * SECTOR]);
    device.write_at(0, &sector(1)).unwrap();
    device.sync().unwrap();
    device.write_at(0, &sector(2)).unwrap();
    device.write_at(S, &sector(3)).unwrap();
    let recording = device.take();
    let found = outcomes(&recording, Unit::Write);
    assert_eq!(found, set([&[1, 0], &[2, 0], &[1, 3], &[2, 3]]));
}

#[test]
fn a_durable_write_covers_its_own_range_and_no_other() {
    let device = RecordingDevice::new(vec![0; 2 * SECTOR]);
    device.write_at(0, &sector(1)).unwrap();
    device.write_at(S, &sector(2)).unwrap();
    device.write_durable_at(S, &sector(3)).unwrap();
    assert_eq!(
        outcomes(&device.take(), Unit::Write),
        set([&[0, 3], &[1, 3]])
    );
}

#[test]
fn a_durable_write_under_way_may_be_torn() {
    let device = RecordingDevice::new(vec![0; 2 * SECTOR]);
    device
        .write_durable_at(0, &[sector(1), sector(2)].concat())
        .unwrap();
    let recording = device.take();
    let mut resolver = CrashResolver::new(&recording);
    resolver.advance_to(1);
    assert_eq!(resolver.position(), 1);
    let choice = Choice {
        unit: Unit::Sector,
        keep: Keep::Only(1),
        ..Choice::KILLED
    };
    assert_eq!(heads(&resolver.resolve(&choice, Vec::new())), [0, 2]);
    resolver.advance_to(2);
    assert_eq!(heads(&resolver.resolve(&choice, Vec::new())), [1, 2]);
    assert!(!resolver.in_doubt());
}

#[test]
fn an_older_pending_version_may_be_the_one_that_persists() {
    let device = RecordingDevice::new(vec![0; SECTOR]);
    device.write_at(0, &sector(1)).unwrap();
    device.write_at(0, &sector(2)).unwrap();
    assert_eq!(
        outcomes(&device.take(), Unit::Sector),
        set([&[0], &[1], &[2]])
    );
}

#[test]
fn lengths_and_holes_persist_on_their_own() {
    let device = RecordingDevice::new(sector(7).to_vec());
    device.punch(0, S).unwrap();
    device.set_len(2 * S).unwrap();
    device.allocate(S, 2 * S).unwrap();
    let found = outcomes(&device.take(), Unit::Write);
    let expected = [&[0][..], &[7], &[0, 0], &[7, 0], &[0, 0, 0], &[7, 0, 0]];
    assert_eq!(found, set(expected));
}

#[test]
fn a_durable_write_beyond_the_end_takes_the_length_with_it() {
    let device = RecordingDevice::new(sector(1).to_vec());
    device.set_len(4 * S).unwrap();
    device.write_durable_at(2 * S, &sector(3)).unwrap();
    assert_eq!(
        outcomes(&device.take(), Unit::Write),
        set([&[1, 0, 3], &[1, 0, 3, 0]])
    );
}

#[test]
fn what_a_failed_sync_covered_stays_in_doubt_until_written_again() {
    let device = RecordingDevice::new(vec![0; 2 * SECTOR]);
    device.write_at(0, &sector(1)).unwrap();
    device.write_at(S, &sector(2)).unwrap();
    device.sync_failed();
    device.write_at(S, &sector(3)).unwrap();
    device.sync().unwrap();
    assert_eq!(
        outcomes(&device.take(), Unit::Write),
        set([&[0, 3], &[1, 3]])
    );
}

#[test]
fn a_lying_device_forgets_what_it_confirmed() {
    let device = RecordingDevice::new(vec![0; SECTOR]);
    device.write_at(0, &sector(1)).unwrap();
    device.sync().unwrap();
    let recording = device.take();
    let mut resolver = CrashResolver::lying(&recording, 0);
    resolver.advance_to(usize::MAX);
    let lost = Choice {
        keep: Keep::None,
        ..Choice::KILLED
    };
    assert_eq!(heads(&resolver.resolve(&lost, Vec::new())), [0]);
}

/// Random recordings: whatever is chosen, a byte that no pending write touches is as it was
/// flushed, and choosing that all persist gives what readers saw.
#[test]
fn only_pending_sectors_are_ever_in_doubt() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let device = RecordingDevice::new(vec![0; 32 * SECTOR]);
        for _ in 0..40 {
            let at = rng.below(30 * S);
            let mut data = vec![0; 1 + rng.index(3 * SECTOR)];
            rng.fill(&mut data);
            match rng.below(12) {
                0..=5 => device.write_at(at, &data),
                6..=8 => device.write_durable_at(at, &data),
                9 => device.punch(at, data.len() as u64),
                10 => device.set_len(16 * S + rng.below(20 * S)),
                _ => device.sync(),
            }
            .unwrap();
        }
        let seen = device.memory().to_bytes();
        let recording = device.take();
        let mut resolver = CrashResolver::new(&recording);
        let mut image = Vec::new();
        while resolver.step() {
            let choice = resolver.choose(&mut rng);
            image = resolver.resolve(&choice, image);
            assert_eq!(
                image,
                resolver.resolve(&choice, Vec::new()),
                "not repeatable"
            );
            for (index, bytes) in image.chunks(SECTOR).enumerate() {
                let pending = resolver.pending.iter().any(|p| p.sector as usize == index);
                let start = index * SECTOR;
                if !pending && (start + bytes.len()) as u64 <= resolver.durable_len {
                    assert_eq!(bytes, &resolver.durable[start..start + bytes.len()]);
                }
            }
        }
        assert_eq!(resolver.resolve(&Choice::KILLED, image), seen);
    }
}
