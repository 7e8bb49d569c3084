//! A life of a cask: from one start to its end, recorded, with what the model says of every moment.

use std::sync::Arc;

use caskfs::device::Device;
use caskfs::device::testing::{Event, Recording, RecordingDevice};
use libc::ENOSPC;

use super::model::{ModelFs, Outcome};
use super::op::Op;
use super::subject::{StoreSubject, Subject, differences, fingerprint, time_of};
use super::values::View;
use caskfs::clock::Timestamp;

/// Operations are numbered from this on in each further life, so that no two times are alike.
pub const LIFE_STRIDE: usize = 100_000;

/// What the marks in a recording tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub opened: bool,
    pub issued: usize,
    pub returned: usize,
    pub acked: usize,
}

pub const OPENED: u64 = 1 << 32;
pub const ISSUED: u64 = 2 << 32;
pub const RETURNED: u64 = 3 << 32;
pub const ACKED: u64 = 4 << 32;

impl Progress {
    pub fn note(&mut self, tag: u64) {
        let number = (tag & 0xffff_ffff) as usize;
        match tag & !0xffff_ffff {
            OPENED => self.opened = true,
            ISSUED => self.issued = number,
            RETURNED => self.returned = number,
            _ => self.acked = number,
        }
    }
}

/// From one start of the cask to its end.
pub struct Life {
    pub recording: Recording,
    /// Events before this belong to an earlier life.
    pub from: usize,
    pub depth: u32,
    /// When what is left of it is looked at, and whether files have an end then.
    pub view: View,
    /// What may be found of the earlier life as long as this one has made nothing durable: after a
    /// power loss, after a death of the process.
    pub past_lost: Vec<Seen>,
    pub past_killed: Vec<Seen>,
    /// The earlier life ended without a power loss, so this one began on bytes that were pending.
    pub began_pending: bool,
    /// Operations of earlier lives, those of this one, and their outcomes.
    pub done: usize,
    pub ops: Vec<Op>,
    pub outcomes: Vec<Outcome>,
    /// The model after 0, 1, … operations.
    pub states: Vec<Seen>,
    /// The model in the middle of an operation: a full cask takes an overwrite by parts, each up to
    /// the end of a block.
    pub between: Vec<Vec<Seen>>,
}

/// A moment, and the fingerprint by which it is known when it is looked at after the life.
#[derive(Clone)]
pub struct Seen {
    pub model: Arc<ModelFs>,
    pub print: u64,
}

impl Seen {
    pub fn new(model: Arc<ModelFs>, view: View) -> Self {
        let print = fingerprint(&model.dump_as(view));
        Self { model, print }
    }

    /// The same moment in another view than this.
    pub fn again(&self, old: View, new: View) -> Self {
        match old.mortal || new.mortal {
            true => Self::new(Arc::clone(&self.model), new),
            false => self.clone(),
        }
    }
}

impl Life {
    /// Opens the cask on `device` and does `ops`.
    pub fn live(
        device: &RecordingDevice,
        spacing: u32,
        from: usize,
        model: ModelFs,
        done: usize,
        mut ops: Vec<Op>,
    ) -> Result<Self, String> {
        let mut subject = StoreSubject::open(device.clone(), spacing, time_of(done))
            .map_err(|error| format!("does not open: {error}"))?;
        device.mark(OPENED);
        subject.follow(&model);
        let mut model = model;
        model.look_at(time_of(done));
        subject.look_at(model.now);
        let mut states = vec![Arc::new(model.clone())];
        let mut outcomes = Vec::new();
        let mut between = Vec::new();
        for (index, op) in ops.iter_mut().enumerate() {
            let number = index + 1;
            device.mark(ISSUED | number as u64);
            let now = time_of(done + number);
            let by_place = op.is_write() && !model.writes_value(op);
            let (before, lsn) = (by_place.then(|| model.clone()), subject.lsn());
            let outcome = step(&mut subject, &mut model, op, now)?;
            let by_parts = subject.lsn() > lsn + 1;
            // Nobody waits for what a tick does.
            let is_waited_for = model.moments.is_empty();
            between.push(match before.filter(|_| by_parts && outcome.is_ok()) {
                Some(before) => parts(&before, op, subject.block_size(), now),
                None => std::mem::take(&mut model.moments),
            });
            if is_waited_for {
                device.mark(RETURNED | number as u64);
            }
            if outcome.is_ok() && op.is_durability_point() {
                device.mark(ACKED | number as u64);
            }
            outcomes.push(outcome);
            states.push(Arc::new(model.clone()));
        }
        let dump = subject
            .dump()
            .map_err(|error| format!("cannot be read: {error}"))?;
        if dump != model.dump() {
            return Err(format!(
                "differs uncrashed:\n{}",
                differences(&dump, &model.dump())
            ));
        }
        subject.look_at_image()?;
        let last = time_of(done + ops.len() + 1);
        let view = View {
            now: Timestamp {
                secs: last.secs + model.logs.ahead,
                ..last
            },
            closed: true,
            mortal: model.mortal,
        };
        let past = vec![Seen::new(Arc::clone(&states[0]), view)];
        let seen = |models: Vec<Arc<ModelFs>>| -> Vec<Seen> {
            let models = models.into_iter();
            models.map(|model| Seen::new(model, view)).collect()
        };
        let between = between
            .into_iter()
            .map(|models| seen(models.into_iter().map(Arc::new).collect()))
            .collect();
        Ok(Self {
            view,
            recording: device.take(),
            from,
            depth: 1,
            past_lost: past.clone(),
            past_killed: past,
            began_pending: false,
            done,
            ops,
            outcomes,
            states: seen(states),
            between,
        })
    }

    /// The model after `count` operations and a crash.
    pub fn model_after(&self, count: usize) -> ModelFs {
        let mut model = ModelFs::clone(&self.states[count].model);
        model.crash();
        // What was over when moments were told apart, or stood in times not looked at, is not known of
        // this one.
        if let Some(last) = self.states.last() {
            model.logs.ahead = last.model.logs.ahead;
        }
        model.mortal = self.view.mortal;
        model.sealed |= self
            .states
            .iter()
            .any(|s| s.model.is_any_over_in(self.view));
        model
    }

    /// The moments that may be found.
    pub fn acceptable(&self, progress: Progress, killed: bool) -> Vec<&Seen> {
        let past = if killed {
            &self.past_killed
        } else {
            &self.past_lost
        };
        if !progress.opened {
            return past.iter().collect();
        }
        let least = if killed {
            progress.returned
        } else {
            progress.acked
        };
        let states = &self.states[least..=progress.issued];
        let between = self.between[least..progress.issued].iter().flatten();
        let mut moments: Vec<_> = states.iter().chain(between).collect();
        if self.began_pending && !killed && progress.acked == 0 {
            moments.extend(past);
        }
        moments
    }
}

/// Does one operation on both and compares the outcome. What a cask without room did of it takes the
/// place of the operation.
pub fn step<D: Device>(
    subject: &mut StoreSubject<D>,
    model: &mut ModelFs,
    op: &mut Op,
    now: Timestamp,
) -> Result<Outcome, String> {
    // Shrinking leaves operations where nothing is promised of them.
    if !model.speaks_of(op) {
        return Ok(Ok(()));
    }
    // What a tick cannot do for want of room it puts off, and tells nobody.
    if *op == Op::Tick && subject.is_short() {
        *op = Op::Clock { secs: 0 };
    }
    let found = subject.apply(op, now);
    if found == Err(ENOSPC) && op.may_lack_space() {
        model.moments.clear();
        model.look_at(now);
        return Ok(found);
    }
    if found.is_ok() {
        *op = subject.done(op);
    }
    let past = model.clone();
    let mut wanted = model.apply(op, now);
    // Without room for a line in the record of rolls a log is cut all the same.
    let lines = |model: &ModelFs| model.logs.events.len();
    if lines(model) > lines(&past)
        && subject
            .events()
            .is_ok_and(|events| events.len() == lines(&past))
    {
        *op = Op::Bare {
            op: Box::new(op.clone()),
        };
        *model = past;
        wanted = model.apply(op, now);
    }
    if *op == Op::Snapshot {
        subject.take_image(model)?;
    }
    match found == wanted {
        true => Ok(wanted),
        false => Err(format!("{op}: found {found:?}, wanted {wanted:?}")),
    }
}

/// The model after the beginnings of a write that end at the end of a block.
pub fn parts(model: &ModelFs, op: &Op, block: usize, now: Timestamp) -> Vec<ModelFs> {
    let (Op::Write { offset, data, .. } | Op::WriteOpen { offset, data, .. }) = op else {
        return Vec::new();
    };
    let from = *offset as usize;
    let ends = (from / block + 1..).map(|number| number * block - from);
    ends.take_while(|len| *len < data.len)
        .map(|len| {
            let (mut model, mut op) = (model.clone(), op.clone());
            if let Op::Write { data, .. } | Op::WriteOpen { data, .. } = &mut op {
                data.len = len;
            }
            let _ = model.apply(&op, now);
            model
        })
        .collect()
}

/// The last events before a position, in words.
pub fn story(recording: &Recording, position: usize) -> String {
    let end = position.div_ceil(2).min(recording.events.len());
    let last = &recording.events[end.saturating_sub(24)..end];
    last.iter().fold(String::new(), |text, event| {
        text + "\n  "
            + &match event {
                Event::Write { offset, data } => format!("write {offset} +{}", data.len()),
                Event::WriteDurable { offset, data } => {
                    format!("write durably {offset} +{}", data.len())
                }
                Event::Mark(tag) => {
                    let what = ["", "opened", "issued", "returned", "acked"][(tag >> 32) as usize];
                    format!("{what} {}", tag & 0xffff_ffff)
                }
                other => format!("{other:?}"),
            }
    })
}
