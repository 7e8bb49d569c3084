//! Segments of logs that have grown older than their `ttl`.
//!
//! A segment's age is that of its last record, its mtime. Its `ttl` is looked up where it stands now:
//! who moves it out of the reach of one keeps it. Only what is marked as a segment goes, so never a
//! live log. A cut drops what has expired of its log; the timer all of the cask, also for logs that
//! nobody writes any more and after a remount.
//!
//! Invariant: nothing goes before its time; whether it has come is asked again in the transaction that
//! removes it.

use parking_lot::Mutex;

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
}

impl Expiry {
    /// Something expires at this time.
    pub fn note(&self, time: Timestamp) {
        let mut next = self.0.lock();
        next.due = next.due.min(time);
    }

    /// Whether to look now; then nothing is expected for a while.
    fn is_due(&self, generation: u64, now: Timestamp) -> bool {
        let mut next = self.0.lock();
        // A clock that was set back by more than an hour is no reason to wait.
        let near = next.due.secs.saturating_sub(now.secs) <= LOOK;
        if next.generation == Some(generation) && now < next.due && near {
            return false;
        }
        *next = Next {
            generation: Some(generation),
            due: Timestamp {
                secs: now.secs.saturating_add(LOOK),
                nanos: now.nanos,
            },
        };
        true
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
        if self.expiry.is_due(self.walk.generation(), now)
            && let Err(error) = self.drop_all_expired(now)
        {
            ::log::warn!("segments that have expired are not removed: {error}");
            self.expiry.note(Timestamp {
                secs: now.secs.saturating_add(AGAIN),
                nanos: now.nanos,
            });
        }
    }

    fn drop_all_expired(&self, now: Timestamp) -> Result<()> {
        let mut left = AT_ONCE;
        for home in segment::homes(&*self.cask)? {
            let segments = segment::all(&*self.cask, home)?;
            if segments.is_empty() {
                self.cask
                    .transact(Class::Release, |tx| segment::unlist(tx, home))?;
            }
            for number in segments {
                let segment = match load(&*self.cask, number) {
                    Ok(segment) => segment,
                    Err(Error::Stale) => continue,
                    Err(error) => return Err(error),
                };
                match expires(&segment, &*self.walk.of(&*self.cask, &segment)?) {
                    Some(time) if time > now || left == 0 => self.expiry.note(time),
                    Some(_) => {
                        self.drop_expired(number, now)?;
                        left -= 1;
                    }
                    None => {}
                }
            }
        }
        Ok(())
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
