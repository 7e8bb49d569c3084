//! What a power loss can leave of a container.
//!
//! A [`CrashResolver`] walks along a [`Recording`] and keeps two things: the image that is durable
//! at this point, and the *pending* sectors, those written since the last completed flush that
//! covers them. A [`Choice`] then says what became of the pending ones: [`CrashResolver::resolve`]
//! builds the image. The faults are those of the verification plan: any subset of pending writes
//! (M1) persists, torn at pages (M2) or sectors (M3), garbage in pending sectors (M4) and in their
//! neighbours of the same 4 KiB (M5), and lengths, allocations and punched holes persist or not on
//! their own (M6). Choosing that all persist is a mere `kill -9` (M0).
//!
//! Invariant: a byte is in doubt only if it was written and no completed flush has covered it since
//! (but for [`Garbage::Wide`], which is asked for by name). A durable write covers its own sectors
//! and nothing else. A recording and a choice give the same image for ever.

use super::{Event, Recording, Rng, SECTOR};

/// Bytes of the unit in which the host's page cache is written back and a disk may smear a write.
const PAGE: usize = 4096;
const SECTORS_PER_PAGE: u32 = (PAGE / SECTOR) as u32;

/// Of what a subset is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whole calls persist or not (M1).
    Write,
    /// Each 4 KiB page of a call does (M2).
    Page,
    /// Each sector of a call does (M3).
    Sector,
}

/// Which units persist, counted from 0 in the order of the calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// All: the process died, the host did not.
    All,
    /// None.
    None,
    /// The first this many.
    First(u64),
    /// This one.
    Only(u64),
    /// All but this one.
    AllBut(u64),
    /// Each with this many chances in eight.
    Eighths(u8),
    /// Unit `i` if bit `i` is set: for trying all subsets of at most 64.
    Mask(u64),
}

/// Where garbage is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Garbage {
    /// Nowhere.
    None,
    /// In each pending sector with this many chances in sixteen (M4).
    Sectors(u8),
    /// As before, and in all pending sectors of the same 4 KiB (M5).
    Pages(u8),
    /// As before, and in *all* sectors of the same 4 KiB, durable ones too: only for casks whose
    /// every write is of whole 4 KiB.
    Wide(u8),
}

/// What became of the pending sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of what a subset is taken.
    pub unit: Unit,
    /// The subset.
    pub keep: Keep,
    /// Where garbage is found.
    pub garbage: Garbage,
    /// Which of the lengths the container had since the last sync: 0 the newest, 1 the durable one,
    /// then the others, oldest first.
    pub len: usize,
    /// Decides all that the rest leaves open.
    pub seed: u64,
}

impl Choice {
    /// Everything persists: the process died, the host did not (M0).
    pub const KILLED: Self = Self {
        unit: Unit::Write,
        keep: Keep::All,
        garbage: Garbage::None,
        len: 0,
        seed: 0,
    };
}

/// A sector as a pending call left it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// Number of the event.
    call: u32,
    sector: u32,
    /// Where its bytes stand in the arena.
    at: u32,
    /// A hole rather than data: metadata of the host, never garbled.
    hole: bool,
    /// A sync failed since: no later sync covers it.
    doubtful: bool,
}

/// Walks along a recording and tells what a crash could leave at each point.
#[derive(Clone, Debug)]
pub struct CrashResolver<'r> {
    recording: &'r Recording,
    /// Syncs of events from here on do nothing (M7).
    lying_from: usize,
    position: usize,
    /// What readers see; whole sectors.
    current: Vec<u8>,
    current_len: u64,
    /// What is durable; whole sectors.
    durable: Vec<u8>,
    durable_len: u64,
    /// In the order of the calls.
    pending: Vec<Piece>,
    arena: Vec<u8>,
    /// Lengths since the last sync, oldest first.
    lens: Vec<u64>,
}

impl<'r> CrashResolver<'r> {
    /// At the start of the recording.
    pub fn new(recording: &'r Recording) -> Self {
        let mut image = recording.initial.to_vec();
        let len = image.len() as u64;
        image.resize(image.len().next_multiple_of(SECTOR), 0);
        Self {
            recording,
            lying_from: usize::MAX,
            position: 0,
            current: image.clone(),
            current_len: len,
            durable: image,
            durable_len: len,
            pending: Vec::new(),
            arena: Vec::new(),
            lens: Vec::new(),
        }
    }

    /// As [`Self::new`], but the device confirms flushes and does not do them, from event
    /// `lying_from` on (M7).
    pub fn lying(recording: &'r Recording, lying_from: usize) -> Self {
        Self {
            lying_from,
            ..Self::new(recording)
        }
    }

    /// The last position: 2 × the number of events.
    pub fn end(&self) -> usize {
        self.recording.events.len() * 2
    }

    /// Where it stands: events before `position / 2` are done, and the event `position / 2` is
    /// under way if `position` is odd.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Goes on by one position; false at the end. A position whose event cannot be under way (or
    /// changes nothing by it) is passed over.
    pub fn step(&mut self) -> bool {
        let call = self.position / 2;
        let Some(event) = self.recording.events.get(call) else {
            return false;
        };
        let under_way = self.position % 2 == 1;
        match event {
            Event::Write { .. } | Event::WriteDurable { .. } if !under_way => {
                self.begin(call, event);
                self.position += 1;
            }
            _ => {
                self.complete(call, event);
                self.position = (call + 1) * 2;
            }
        }
        true
    }

    /// Goes on to `position`, or to the first after it at which it can stand.
    pub fn advance_to(&mut self, position: usize) {
        while self.position < position && self.step() {}
    }

    /// Whether anything is in doubt here.
    pub fn in_doubt(&self) -> bool {
        !self.pending.is_empty() || !self.lens.is_empty()
    }

    /// How many units there are to choose from.
    pub fn units(&self, unit: Unit) -> u64 {
        let mut count = 0;
        let mut last = None;
        for piece in &self.pending {
            let this = Some(piece.key(unit));
            count += u64::from(this != last);
            last = this;
        }
        count
    }

    /// A choice, such that every kind of damage comes up and the few that most often matter (one
    /// unit lost, one unit alone, a prefix) come up often.
    pub fn choose(&self, rng: &mut Rng) -> Choice {
        let unit = [Unit::Write, Unit::Page, Unit::Sector][rng.index(3)];
        let units = self.units(unit);
        let keep = match rng.below(16) {
            0 => Keep::All,
            1 => Keep::None,
            2 | 3 => Keep::First(rng.below(units + 1)),
            4..=6 => Keep::Only(rng.below(units)),
            7..=10 => Keep::AllBut(rng.below(units)),
            _ => Keep::Eighths([1, 2, 4, 4, 6, 7][rng.index(6)]),
        };
        let garbage = match rng.below(8) {
            0 => Garbage::Sectors(1),
            1 => Garbage::Sectors(8),
            2 => Garbage::Pages([1, 4][rng.index(2)]),
            _ => Garbage::None,
        };
        let len = if rng.chance(1, 2) {
            0
        } else {
            rng.index(self.lens.len() + 2)
        };
        Choice {
            unit,
            keep,
            garbage,
            len,
            seed: rng.next_u64(),
        }
    }

    /// The image that a crash here leaves if this is the choice. `image` is only room to reuse.
    pub fn resolve(&self, choice: &Choice, mut image: Vec<u8>) -> Vec<u8> {
        let len = match choice.len {
            0 => self.current_len,
            1 => self.durable_len,
            other => self
                .lens
                .get(other - 2)
                .copied()
                .unwrap_or(self.current_len),
        };
        image.clear();
        image.extend_from_slice(&self.durable);
        image.resize((len as usize).next_multiple_of(SECTOR), 0);

        let mut rng = Rng::new(choice.seed);
        let mut unit = 0;
        let mut last = None;
        let mut keep = false;
        for piece in &self.pending {
            let this = Some(piece.key(choice.unit));
            if this != last {
                unit += u64::from(last.is_some());
                last = this;
                keep = choice.keep.keeps(unit, &mut rng);
            }
            if keep && let Some(place) = image.get_mut(piece.range()) {
                place.copy_from_slice(self.bytes_of(piece));
            }
        }
        self.garble(choice.garbage, &mut rng, &mut image);
        image.truncate(len as usize);
        image
    }

    /// Spoils what `garbage` says.
    fn garble(&self, garbage: Garbage, rng: &mut Rng, image: &mut [u8]) {
        let sixteenths = match garbage {
            Garbage::None => return,
            Garbage::Sectors(n) | Garbage::Pages(n) | Garbage::Wide(n) => u64::from(n),
        };
        for piece in self.pending.iter().filter(|piece| !piece.hole) {
            if !rng.chance(sixteenths, 16) {
                continue;
            }
            let page = piece.sector / SECTORS_PER_PAGE;
            match garbage {
                Garbage::None => {}
                Garbage::Sectors(_) => self.spoil(piece, rng, image),
                Garbage::Pages(_) => {
                    let near = |other: &&Piece| other.sector / SECTORS_PER_PAGE == page;
                    for other in self.pending.iter().filter(near).filter(|other| !other.hole) {
                        self.spoil(other, rng, image);
                    }
                }
                Garbage::Wide(_) => {
                    let start = page as usize * PAGE;
                    let end = (start + PAGE).min(image.len());
                    if let Some(place) = image.get_mut(start..end) {
                        rng.fill(place);
                    }
                }
            }
        }
    }

    /// Puts into one sector something that was never written there whole.
    fn spoil(&self, piece: &Piece, rng: &mut Rng, image: &mut [u8]) {
        let new = self.bytes_of(piece);
        let stranger = rng.index(image.len() / SECTOR) * SECTOR;
        let stranger: [u8; SECTOR] = match image.get(stranger..stranger + SECTOR) {
            Some(bytes) => std::array::from_fn(|i| bytes[i]),
            None => [0; SECTOR],
        };
        let Some(place) = image.get_mut(piece.range()) else {
            return;
        };
        match rng.below(6) {
            0 => place.fill(0),
            1 => place.fill(0xff),
            2 => rng.fill(place),
            3 => {
                let torn = rng.index(SECTOR);
                place[..torn].copy_from_slice(&new[..torn]);
            }
            4 => {
                place.copy_from_slice(new);
                place[rng.index(SECTOR)] ^= 1 << rng.below(8);
            }
            _ => place.copy_from_slice(&stranger),
        }
    }

    /// The event is under way: what it writes is pending.
    fn begin(&mut self, call: usize, event: &Event) {
        if let Event::Write { offset, data } | Event::WriteDurable { offset, data } = event {
            let start = *offset as usize;
            self.extend(start + data.len());
            self.current[start..start + data.len()].copy_from_slice(data);
            self.push(call, start, start + data.len(), false);
        }
    }

    /// The event is done.
    fn complete(&mut self, call: usize, event: &Event) {
        let lying = call >= self.lying_from;
        match event {
            Event::Write { .. } | Event::Mark(_) => {}
            Event::WriteDurable { offset, data } => {
                if !lying {
                    self.make_durable(*offset as usize, data.len());
                }
            }
            Event::Sync => {
                if !lying {
                    self.sync();
                }
            }
            Event::SyncFailed => {
                for piece in &mut self.pending {
                    piece.doubtful = true;
                }
            }
            Event::SetLen { len } => {
                let (len, old) = (*len as usize, self.current_len as usize);
                if len < old {
                    self.current[len..].fill(0);
                    self.push(call, len, old, true);
                }
                self.set_current_len(len);
            }
            Event::Allocate { offset, len } => self.extend((offset + len) as usize),
            Event::Punch { offset, len } => {
                let end = ((offset + len) as usize).min(self.current_len as usize);
                let start = (*offset as usize).min(end);
                self.current[start..end].fill(0);
                self.push(call, start, end, true);
            }
        }
    }

    /// Notes the sectors of `start..end` as they are now for readers.
    fn push(&mut self, call: usize, start: usize, end: usize, hole: bool) {
        if start >= end {
            return;
        }
        for sector in start / SECTOR..end.div_ceil(SECTOR) {
            let at = self.arena.len();
            self.arena
                .extend_from_slice(&self.current[sector * SECTOR..(sector + 1) * SECTOR]);
            self.pending.push(Piece {
                call: call as u32,
                sector: sector as u32,
                at: at as u32,
                hole,
                doubtful: false,
            });
        }
    }

    /// A flush of this range alone.
    fn make_durable(&mut self, start: usize, len: usize) {
        let end = start + len;
        let sectors = start / SECTOR..end.div_ceil(SECTOR);
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        self.pending
            .retain(|piece| !sectors.contains(&(piece.sector as usize)));
        self.durable.resize(self.durable.len().max(bytes.end), 0);
        self.durable[bytes.clone()].copy_from_slice(&self.current[bytes]);
        // The host's file now reaches at least to the end of the range, whatever it was before.
        let end = end as u64;
        self.durable_len = self.durable_len.max(end);
        self.lens.retain(|len| *len >= end);
    }

    /// A flush of everything, but for what an earlier flush failed to write.
    fn sync(&mut self) {
        self.durable.resize(self.current.len(), 0);
        for index in 0..self.pending.len() {
            let piece = self.pending[index];
            if !piece.doubtful {
                let bytes = piece.at as usize..piece.at as usize + SECTOR;
                if let Some(place) = self.durable.get_mut(piece.range()) {
                    place.copy_from_slice(&self.arena[bytes]);
                }
            }
        }
        self.durable_len = self.current_len;
        self.lens.clear();
        if self.pending.iter().all(|piece| !piece.doubtful) {
            self.pending.clear();
            self.arena.clear();
            return;
        }
        // A doubtful sector stays in doubt until it is written again and that is flushed.
        let covered: Vec<u32> = self
            .pending
            .iter()
            .filter(|p| !p.doubtful)
            .map(|p| p.sector)
            .collect();
        self.pending
            .retain(|piece| piece.doubtful && !covered.contains(&piece.sector));
    }

    fn extend(&mut self, len: usize) {
        if len as u64 > self.current_len {
            self.set_current_len(len);
        }
    }

    fn set_current_len(&mut self, len: usize) {
        if len as u64 != self.current_len {
            self.current.resize(len.next_multiple_of(SECTOR), 0);
            self.current_len = len as u64;
            self.lens.push(len as u64);
        }
    }

    fn bytes_of(&self, piece: &Piece) -> &[u8] {
        &self.arena[piece.at as usize..piece.at as usize + SECTOR]
    }
}

impl Piece {
    fn range(&self) -> std::ops::Range<usize> {
        let start = self.sector as usize * SECTOR;
        start..start + SECTOR
    }

    /// Pieces in a row with the same key are one unit.
    fn key(&self, unit: Unit) -> (u32, u32) {
        match unit {
            Unit::Write => (self.call, 0),
            Unit::Page => (self.call, self.sector / SECTORS_PER_PAGE),
            Unit::Sector => (self.call, self.sector),
        }
    }
}

impl Keep {
    fn keeps(self, unit: u64, rng: &mut Rng) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::First(count) => unit < count,
            Self::Only(one) => unit == one,
            Self::AllBut(one) => unit != one,
            Self::Eighths(eighths) => rng.chance(u64::from(eighths), 8),
            Self::Mask(mask) => unit < 64 && mask >> unit & 1 == 1,
        }
    }
}

#[cfg(test)]
mod tests;
