//! Segments of logs that have grown older than their `ttl`.
//!
//! A segment's age is that of its last record, its mtime. Its `ttl` is looked up where it stands now:
//! who moves it out of the reach of one keeps it. Only what is marked as a segment goes, so never a
//! live log. A cut drops what has expired of its log; the timer all of the cask, also for logs that
//! nobody writes any more and after a remount.
//!
//! Invariant: nothing goes before its time; whether it has come is asked again in the transaction that
//! removes it.

use super::cut::name_of_its_own;
use super::settings::{Effective, Mode};
use super::{Notice, Store};
use crate::cask::{Class, Read};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load};
use crate::fs::segment;
use crate::sync::Mutex;

/// At least so often, in seconds, all segments are looked at: one may have been moved or touched.
const LOOK: i64 = 3600;
/// After a failure it is tried again in so many seconds.
const AGAIN: i64 = 60;
/// Segments that are removed at one time of the timer.
const AT_ONCE: usize = 256;

/// When the timer has to look again.
#[derive(Default)]
pub(super) struct Expiry(Mutex<Next>);

#[derive(Clone, Copy, Default)]
struct Next {
    /// The generation of the settings under which that is so; `None` before the first look.
    generation: Option<u64>,
    due: Timestamp,
    /// Where a look goes on that had enough to do: a directory, and a segment of it.
    place: Option<Place>,
}

type Place = (Number, Number);

impl Expiry {
    /// Something expires at this time.
    pub fn note(&self, time: Timestamp) {
        let mut next = self.0.lock();
        next.due = next.due.min(time);
    }

    /// Where to look from now, if it is time to; then nothing more is expected for a while.
    fn is_due(&self, generation: u64, now: Timestamp) -> Option<Place> {
        let mut next = self.0.lock();
        let same = next.generation == Some(generation);
        // What was found in front of that place is still expected.
        if let Some(place) = next.place.take().filter(|_| same) {
            return Some(place);
        }
        // A clock that was set back by more than an hour is no reason to wait.
        let near = next.due.secs.saturating_sub(now.secs) <= LOOK;
        if same && now < next.due && near {
            return None;
        }
        *next = Next {
            generation: Some(generation),
            due: Timestamp {
                secs: now.secs.saturating_add(LOOK),
                nanos: now.nanos,
            },
            place: None,
        };
        Some((0, 0))
    }

    /// The look goes on from there at the next time of the timer.
    fn go_on_from(&self, place: Place) {
        self.0.lock().place = Some(place);
    }
}

/// When a segment with these settings expires.
pub(super) fn expires(segment: &Inode, settings: &Effective) -> Option<Timestamp> {
    let ttl = settings.ttl.filter(|_| settings.mode == Mode::Log)?;
    let ttl = i64::try_from(ttl).unwrap_or(i64::MAX);
    Some(Timestamp {
        secs: segment.mtime.secs.saturating_add(ttl),
        nanos: segment.mtime.nanos,
    })
}

impl<D: Device> Store<D> {
    /// Whether a segment has expired.
    pub(super) fn has_expired(
        &self,
        r: &impl Read,
        segment: &Inode,
        now: Timestamp,
    ) -> Result<bool> {
        let time = expires(segment, &*self.walk.of(r, segment)?);
        Ok(time.is_some_and(|time| time <= now))
    }

    /// Removes the segments that have expired, if it is time to look for any.
    pub(super) fn drop_what_expired(&self, now: Timestamp) {
        if let Some(place) = self.expiry.is_due(self.walk.generation(), now)
            && let Err(error) = self.drop_all_expired(place, now)
        {
            ::log::warn!("segments that have expired are not removed: {error}");
            self.expiry.note(Timestamp {
                secs: now.secs.saturating_add(AGAIN),
                nanos: now.nanos,
            });
        }
    }

    /// Looks at all segments from that place on, until enough are removed. One that cannot be looked at
    /// or removed keeps none of the others; the first error is answered.
    fn drop_all_expired(&self, place: Place, now: Timestamp) -> Result<()> {
        let mut left = AT_ONCE;
        let mut outcome = Ok(());
        for home in segment::homes(&*self.cask)? {
            if home < place.0 {
                continue;
            }
            let first = if home == place.0 { place.1 } else { 0 };
            let segments = match segment::all(&*self.cask, home, first) {
                Ok(segments) => segments,
                Err(error) => {
                    ::log::debug!("segments of directory {home}: {error}");
                    outcome = outcome.and(Err(error));
                    continue;
                }
            };
            if segments.is_empty() {
                let unlisted = self
                    .cask
                    .transact(Class::Release, |tx| segment::unlist(tx, home));
                outcome = outcome.and(unlisted.map(|_| ()));
            }
            for number in segments {
                let looked = self.expiry_of(number).and_then(|time| match time {
                    Some(time) if time > now => {
                        self.expiry.note(time);
                        Ok(true)
                    }
                    Some(_) if left == 0 => Ok(false),
                    Some(_) => {
                        left -= 1;
                        self.drop_expired(number, now).map(|()| true)
                    }
                    None => Ok(true),
                });
                match looked {
                    Ok(true) => {}
                    Ok(false) => {
                        self.expiry.go_on_from((home, number));
                        return outcome;
                    }
                    Err(error) => {
                        ::log::debug!("segment {number}: {error}");
                        outcome = outcome.and(Err(error));
                    }
                }
            }
        }
        outcome
    }

    /// When a segment expires, if it is there still and ever does.
    fn expiry_of(&self, number: Number) -> Result<Option<Timestamp>> {
        match load(&*self.cask, number) {
            Ok(segment) => Ok(expires(&segment, &*self.walk.of(&*self.cask, &segment)?)),
            Err(Error::Stale) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a segment if it is one still and has expired.
    fn drop_expired(&self, number: Number, now: Timestamp) -> Result<()> {
        let (dropped, _) = self.cask.transact_then(
            Class::Release,
            |tx| {
                let inode = match load(tx, number) {
                    Ok(inode) => inode,
                    Err(Error::Stale) => return Ok(None),
                    Err(error) => return Err(error),
                };
                if inode.home == 0 || !self.has_expired(tx, &inode, now)? {
                    return Ok(None);
                }
                match name_of_its_own(tx, inode)? {
                    Some(name) => self.drop_segment(tx, &inode, name, now).map(Some),
                    None => Ok(None),
                }
            },
            |dropped| self.were_dropped(dropped.as_slice()),
        )?;
        if let Some(((dir, name), _)) = dropped {
            self.notify(Notice::InvalidateEntry(dir, name));
        }
        Ok(())
    }
}
