//! Devices that break their word: flushes that are confirmed and not done (M7), and durable bytes that
//! rot, are lost, or stand where others should (M8).
//!
//! Rule: whatever such a device did, what is found is refused or unreadable with an error, or equals the
//! model after some number of operations. Never is it something that never was.

use caskfs::device::MemoryDevice;
use caskfs::device::testing::{Choice, CrashResolver, Rng, SECTOR};

use super::case::Case;
use super::explorer::{Explorer, Failure, tried};
use super::life::{Life, Progress};
use super::subject::{StoreSubject, Subject, differences, fingerprint};

/// What came of the states that were tried.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    pub states: u64,
    /// Opened and readable: a moment of the past.
    pub whole: u64,
    /// Of these, without something that was acknowledged as durable.
    pub older: u64,
    /// Refused or unreadable.
    pub told: u64,
}

impl Sum {
    pub fn add(&mut self, other: Self) {
        self.states += other.states;
        self.whole += other.whole;
        self.older += other.older;
        self.told += other.told;
    }
}

/// The device stops to flush at some time of the life, and power fails later (M7).
pub fn lied_to(case: &Case) -> Result<Sum, Box<Failure>> {
    let mut sum = Sum::default();
    tried(case, 1, |explorer, life| {
        while sum.states < case.states {
            let from = explorer.rng.index(life.recording.events.len() + 1);
            let mut resolver = CrashResolver::lying(&life.recording, from);
            resolver.advance_to(from * 2);
            let after = sum.states;
            explorer.at_each_moment(life, resolver, |explorer, resolver, progress| {
                for _ in 0..2 {
                    let choice = resolver.choose(&mut explorer.rng);
                    let image = resolver.resolve(&choice, std::mem::take(&mut explorer.room));
                    look(explorer, life, progress, image, &mut sum)
                        .map_err(|what| format!("{what}\nlying from {from}, {choice:?}"))?;
                }
                Ok(sum.states < after + case.states / 8)
            })?;
        }
        Ok(())
    })?;
    Ok(sum)
}

/// After the process died, sectors are flipped, lost, or another's (M8).
pub fn rotten(case: &Case) -> Result<Sum, Box<Failure>> {
    let mut sum = Sum::default();
    tried(case, 1, |explorer, life| {
        while sum.states < case.states {
            let resolver = CrashResolver::new(&life.recording);
            explorer.at_each_moment(life, resolver, |explorer, resolver, progress| {
                let mut image = std::mem::take(&mut explorer.room);
                image = resolver.resolve(&Choice::KILLED, image);
                let done = rot(&mut explorer.rng, &mut image, &life.recording.initial);
                look(explorer, life, progress, image, &mut sum)
                    .map_err(|what| format!("{what}\nposition {}, {done}", resolver.position()))?;
                Ok(sum.states < case.states)
            })?;
        }
        Ok(())
    })?;
    Ok(sum)
}

/// Spoils a few sectors that hold something; tells which and how.
fn rot(rng: &mut Rng, image: &mut [u8], initial: &[u8]) -> String {
    let mut done = String::new();
    let sectors = image.len() / SECTOR;
    let is_blank = |at: usize, image: &[u8]| {
        let sector = &image[at * SECTOR..(at + 1) * SECTOR];
        sector.iter().all(|byte| *byte == 0)
    };
    for _ in 0..1 + rng.index(3) {
        // What holds nothing is spoilt seldom.
        let mut at = rng.index(sectors);
        for _ in 0..20 {
            if !is_blank(at, image) {
                break;
            }
            at = rng.index(sectors);
        }
        let range = at * SECTOR..(at + 1) * SECTOR;
        let other = rng.index(sectors) * SECTOR;
        let how = rng.below(5);
        match how {
            0 => image[at * SECTOR + rng.index(SECTOR)] ^= 1 << rng.below(8),
            1 => image[range].fill(0),
            2 => rng.fill(&mut image[range]),
            // A write that was lost: what was there at the start.
            3 => match initial.get(range.clone()) {
                Some(old) => image[range].copy_from_slice(old),
                None => image[range].fill(0),
            },
            // A write that went astray: its own place has the old bytes, the other's the new.
            _ => {
                let bytes = image[range.clone()].to_vec();
                image[other..other + SECTOR].copy_from_slice(&bytes);
                match initial.get(range.clone()) {
                    Some(old) => image[range].copy_from_slice(old),
                    None => image[range].fill(0),
                }
            }
        }
        done += &format!("sector {at} way {how} (other {}); ", other / SECTOR);
    }
    done
}

/// Opens an image and looks at it: it is told to be damaged, or it is a moment of the past.
fn look(
    explorer: &mut Explorer<'_>,
    life: &Life,
    progress: Progress,
    image: Vec<u8>,
    sum: &mut Sum,
) -> Result<(), String> {
    explorer.states += 1;
    sum.states += 1;
    let memory = MemoryDevice::from_bytes(image);
    let spacing = explorer.case.geometry.spacing;
    let dump =
        StoreSubject::open(memory.clone(), spacing, life.view.now).and_then(|mut subject| {
            if let Some(last) = life.states.last() {
                subject.follow(&last.model);
            }
            subject.dump()
        });
    explorer.room = memory.into_bytes();
    let dump = match dump {
        Err(error) => {
            assert!(error.to_string().len() > 10, "no sentence: {error:?}");
            sum.told += 1;
            return Ok(());
        }
        Ok(dump) => dump,
    };
    let print = fingerprint(&dump);
    let known = |seen: &super::life::Seen| seen.print == print;
    let states = &life.states[..=progress.issued];
    let between = life.between[..progress.issued].iter().flatten();
    match states.iter().rposition(known) {
        Some(k) => sum.older += u64::from(k < progress.acked),
        None if life.past_lost.iter().chain(between).any(known) => {}
        None => {
            let nearest = life.states[progress.issued].model.dump_as(life.view);
            return Err(format!(
                "is as never before; beside all issued:\n{}",
                differences(&dump, &nearest)
            ));
        }
    }
    sum.whole += 1;
    Ok(())
}
