//! What belongs to every cut, whatever caused it.
//!
//! The log's name has just gone to the segment, in the transaction of the caller. What is left to do
//! there: the begun record becomes the beginning of a fresh log, the segment is marked as one of this
//! log, segments beyond `keep` are dropped, and the record of rolls gets its line. A cut that nobody
//! made by a rename finds the name of the segment here, too.

use super::binding::{Fresh, Name, Predecessor};
use super::door::DOOR;
use super::events::{Cause, Event};
use super::expiry::expires;
use super::log::{make_like, predecessor};
use super::roll::{Carry, end_at};
use super::settings::{Effective, Period, Setting};
use super::{Notice, Store, walk};
use crate::cask::{Class, Read, Staged, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::device::control::{Control, removed};
use crate::error::{Error, Result};
use crate::format::item::{FLAG_ORDERED, SegmentRecord};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load, save};
use crate::fs::{Caller, Place, RenameFlags, namespace, segment};
use crate::limits::NAME_MAX;
use crate::sync::atomic::Ordering;

use jiff::tz::TimeZone;

/// Most segments of one automatic name.
const SAME_NAME_MAX: u32 = 1_000_000;
/// Segments that one cut drops at most; what is beyond waits for the next.
const DROPPED_MAX: usize = 8;
/// What `roll-name` is unless it was set, for a log that is cut each hour.
const HOURLY: &[u8] = b"%n.%Y%m%d%H";

/// Who cuts when nobody does.
const ITSELF: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 0,
};

/// The name of a segment that was dropped, and if somebody is bound to it what a fresh file in its place
/// looks like.
pub(super) type DroppedSegment = (Name, Option<Predecessor>);
type Dropped = Vec<DroppedSegment>;

/// What a cut has done, for the tables in memory.
#[derive(Debug)]
pub(super) struct Cut {
    /// The fresh log that the begun record was carried to.
    pub fresh: Option<Fresh>,
    /// What a fresh log looks like.
    pub looks: Predecessor,
    /// The file that is the segment now.
    pub number: Number,
    /// It has another name, too.
    has_others: bool,
    /// Segments that were dropped.
    pub dropped: Dropped,
    /// What `keep` says, where a test has the cut not heed it.
    late: Option<u64>,
    /// When the segment expires.
    pub expires: Option<Timestamp>,
    /// For the record of rolls.
    pub event: Event,
}

/// How a segment got its name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Naming {
    /// Hash of the name that was asked for; 0 when somebody else chose it.
    base: u64,
    count: u32,
}

/// How a log that nobody renames is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Itself {
    /// Why.
    pub cause: Cause,
    /// The begun record at its end.
    pub carry: Option<Carry>,
    /// `keep` is heeded.
    pub drops: bool,
}

impl<D: Device> Store<D> {
    /// Moves the name of a log, which stands for `inode`, to its next automatic name, and makes the
    /// cut.
    pub(super) fn cut_by_itself(
        &self,
        tx: &mut Tx<'_, D>,
        from: Place<'_>,
        inode: &Inode,
        how: Itself,
        now: Timestamp,
    ) -> Result<Cut> {
        let Itself {
            cause,
            carry,
            drops,
        } = how;
        let settings = self.walk.of(tx, inode)?;
        let looks = predecessor(tx, inode)?;
        // What the clock cuts is named after the time of its last record, if that has a date.
        let dated = |time: &Timestamp| jiff::Timestamp::from_second(time.secs).is_ok();
        let last = Some(inode.mtime).filter(|time| cause == Cause::Clock && dated(time));
        let time = last.unwrap_or(now);
        let (name, naming) = self.free_name(tx, from, inode, &settings, time)?;
        let to = Place {
            dir: from.dir,
            name: &name,
        };
        let flags = RenameFlags {
            no_replace: true,
            ..RenameFlags::default()
        };
        namespace::rename(tx, &ITSELF, from, to, flags, &|_| true, now)?;
        let event = Event {
            cause,
            log: (from.dir, from.name.to_vec()),
            segment: (to.dir, name.clone()),
        };
        self.cut(
            tx,
            inode.number,
            &settings,
            looks,
            carry.map(|carry| (carry, None)),
            naming,
            event,
            drops,
            now,
        )
    }

    /// As [`Store::cut_by_itself`] for an append, which goes through uncut if there is no name for the
    /// segment. That is found out before anything is changed.
    pub(super) fn cut_if_named(
        &self,
        tx: &mut Tx<'_, D>,
        from: Place<'_>,
        inode: &Inode,
        how: Itself,
        now: Timestamp,
    ) -> Result<Option<Cut>> {
        match self.cut_by_itself(tx, from, inode, how, now) {
            Err(error @ (Error::NameTooLong { .. } | Error::Exists | Error::Invalid(_))) => {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let name = String::from_utf8_lossy(from.name);
                    ::log::warn!("the log {name} is not cut, as its segment has no name: {error}");
                }
                Ok(None)
            }
            done => done.map(Some),
        }
    }

    /// The name that a segment gets: what `roll-name` says, with a number after it if that was given
    /// before. Nobody may have it open: a handle of before would change the segment.
    fn free_name(
        &self,
        r: &impl Read,
        log: Place<'_>,
        inode: &Inode,
        settings: &Effective,
        time: Timestamp,
    ) -> Result<(Vec<u8>, Naming)> {
        let (pattern, origin) = walk::find(r, inode, Setting::named(b"roll-name")?)?;
        let pattern = match (origin, settings.roll) {
            (walk::Origin::BuiltIn, Some(Period::Hour)) => HOURLY,
            _ => &pattern,
        };
        let name = segment_name(&String::from_utf8_lossy(pattern), log.name, time)?;
        if [b".".as_slice(), b"..", DOOR].contains(&name.as_slice()) {
            return Err(Error::invalid(
                "roll-name makes a name that no file can have",
            ));
        }
        let base = r.name_hash(&name);
        let same = segment::of_log(r, log.dir, log.name)?
            .into_iter()
            .filter(|(_, record)| record.base.get() == base)
            .map(|(_, record)| record.count.get().saturating_add(1))
            .max();
        for count in same.unwrap_or(0)..SAME_NAME_MAX {
            let mut name = name.clone();
            if count > 0 {
                name.extend_from_slice(format!(".{count}").as_bytes());
            }
            if name.len() > NAME_MAX {
                return Err(Error::NameTooLong { max: NAME_MAX });
            }
            match namespace::find(r, log.dir, &name) {
                Err(Error::NotFound) if self.bindings.find(log.dir, &name).is_none() => {
                    return Ok((name, Naming { base, count }));
                }
                Ok(_) | Err(Error::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Exists)
    }

    /// Makes the cut of a log whose name was moved. `drops` says whether `keep` is heeded: on a cask
    /// without any room it waits for the next cut.
    #[expect(clippy::too_many_arguments, reason = "all that a cut is made of")]
    pub(super) fn cut(
        &self,
        tx: &mut Tx<'_, D>,
        number: Number,
        settings: &Effective,
        looks: Predecessor,
        carry: Option<(Carry, Option<&Staged<'_>>)>,
        naming: Naming,
        event: Event,
        drops: bool,
        now: Timestamp,
    ) -> Result<Cut> {
        let (home, log) = (event.log.0, event.log.1.as_slice());
        let mut fresh = None;
        if let Some((carry, staged)) = carry {
            let mut live = make_like(tx, home, log, &looks, now)?;
            let header = settings.first_line();
            let at = header.len() as u64;
            // A cut goes through whatever the limit is; the record itself only moves.
            tx.allow(1, at);
            match staged.filter(|_| at == 0) {
                Some(staged) => tx.write_staged(live.content, staged),
                None => {
                    let bytes = self.bytes_of(tx, carry)?;
                    tx.write(live.content, at, &bytes);
                }
            }
            tx.write(live.content, 0, &header);
            live.size = at + carry.len as u64;
            live.flags |= load(tx, number)?.flags & FLAG_ORDERED;
            save(tx, &live)?;
            end_at(tx, carry)?;
            fresh = Some(Fresh {
                number: live.number,
                boundary: carry.start,
                at,
            });
        }
        let mut inode = load(tx, number)?;
        if inode.home == 0 {
            let record = SegmentRecord {
                log: tx.name_hash(log).into(),
                base: naming.base.into(),
                count: naming.count.into(),
            };
            segment::mark(tx, &mut inode, home, &record)?;
        }
        let expires = expires(&inode, &*self.walk.of(tx, &inode)?);
        let keep = settings.keep.filter(|_| drops);
        // Only where a cut is alone in its operation could a later one make up for it.
        let alone = matches!(event.cause, Cause::Rename | Cause::Rotate);
        let late = keep.filter(|_| alone && removed(Control::CutIsOneRecord));
        let bounded = keep.is_some() || settings.ttl.is_some();
        let dropped = match drops && bounded && late.is_none() {
            true => self.drop_old(tx, home, log, keep, now)?,
            false => Vec::new(),
        };
        Ok(Cut {
            fresh,
            looks,
            number,
            has_others: inode.nlink > 1,
            dropped,
            late,
            expires,
            event,
        })
    }

    /// Removes the oldest segments of a log, so that with the live one no more than `keep` are left,
    /// and those that have expired.
    fn drop_old(
        &self,
        tx: &mut Tx<'_, D>,
        home: Number,
        log: &[u8],
        keep: Option<u64>,
        now: Timestamp,
    ) -> Result<Dropped> {
        let mut segments = Vec::new();
        for (number, _) in segment::of_log(tx, home, log)? {
            let inode = load(tx, number)?;
            if let Some(name) = name_of_its_own(tx, inode)? {
                segments.push((inode, name));
            }
        }
        let stay = keep.map_or(usize::MAX, |keep| {
            usize::try_from(keep.saturating_sub(1)).unwrap_or(usize::MAX)
        });
        let beyond = segments.len().saturating_sub(stay);
        let mut dropped = Vec::new();
        for (index, (inode, name)) in segments.into_iter().enumerate() {
            if dropped.len() < DROPPED_MAX
                && (index < beyond || self.has_expired(tx, &inode, now)?)
            {
                dropped.push(self.drop_segment(tx, &inode, name, now)?);
            }
        }
        Ok(dropped)
    }

    /// Removes a segment.
    pub(super) fn drop_segment(
        &self,
        tx: &mut Tx<'_, D>,
        inode: &Inode,
        (dir, name): Name,
        now: Timestamp,
    ) -> Result<DroppedSegment> {
        let looks = match self.bindings.find(dir, &name) {
            Some(_) => Some(predecessor(tx, inode)?),
            None => None,
        };
        namespace::unlink(tx, dir, &name, &|ino| self.fs.is_open(ino), now)?;
        Ok(((dir, name), looks))
    }

    /// Drops what is beyond `keep` in an operation of its own, as no cut but that of a test does.
    fn drop_late(&self, (dir, name): &Name, keep: u64) {
        let now = self.now();
        let dropped = self.cask.persist(self.cask.lsn()).and_then(|()| {
            self.cask.transact_then(
                Class::Release,
                |tx| self.drop_old(tx, *dir, name, Some(keep), now),
                |dropped| self.were_dropped(dropped),
            )
        });
        if let Err(error) = dropped {
            ::log::warn!("segments beyond keep stay: {error}");
        }
    }

    /// Tells the kernel what a cut has done that it does not know.
    pub(super) fn tell_of(&self, cut: &Cut) {
        if let Some(keep) = cut.late {
            self.drop_late(&cut.event.log, keep);
        }
        let by_itself = (cut.event.cause != Cause::Rename).then_some(&cut.event.log);
        let dropped = cut.dropped.iter().map(|(name, _)| name);
        for (dir, name) in by_itself.into_iter().chain(dropped) {
            self.notify(Notice::InvalidateEntry(*dir, name.clone()));
        }
        if cut.fresh.is_some() {
            self.notify(Notice::InvalidateInode(cut.number));
        }
    }

    /// Tells the tables in memory what a cut has done. Called when its transaction is over.
    pub(super) fn was_cut(&self, cut: &Cut) {
        let (dir, name) = &cut.event.log;
        self.bindings
            .forget(cut.event.segment.0, &cut.event.segment.1);
        if let Some(binding) = self.bindings.find(*dir, name) {
            binding.state().cut(cut.fresh, cut.looks.clone());
        }
        self.were_dropped(&cut.dropped);
        if cut.has_others {
            self.has_other_place(cut.number);
        }
        if let Some(time) = cut.expires {
            self.expiry.note(time);
        }
    }

    /// Who is bound to the names of segments that were dropped makes them anew.
    pub(super) fn were_dropped(&self, dropped: &[DroppedSegment]) {
        for ((dir, name), looks) in dropped {
            self.bindings.lost(*dir, name, looks.as_ref());
        }
    }
}

/// The name of a segment; `None`, and it is a segment no more, where it was removed and is still open
/// or where somebody has given it a second name: it is theirs.
pub(super) fn name_of_its_own<D: Device>(
    tx: &mut Tx<'_, D>,
    mut inode: Inode,
) -> Result<Option<Name>> {
    match namespace::name_of(tx, &inode)? {
        Some(name) if inode.nlink == 1 => Ok(Some((inode.parent, name))),
        _ => segment::unmark(tx, &mut inode).map(|()| None),
    }
}

/// The name that `roll-name` gives a segment of `name` that is cut now, in UTC.
fn segment_name(pattern: &str, name: &[u8], now: Timestamp) -> Result<Vec<u8>> {
    let time = jiff::Timestamp::from_second(now.secs)
        .map_err(|_| Error::invalid("the time is of a year that has no name"))?;
    let time = TimeZone::UTC.to_datetime(time);
    let mut out = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let part = match (c, if c == '%' { chars.next() } else { None }) {
            ('%', Some('n')) => {
                out.extend_from_slice(name);
                continue;
            }
            ('%', Some('Y')) => format!("{:04}", time.year()),
            ('%', Some('m')) => format!("{:02}", time.month()),
            ('%', Some('d')) => format!("{:02}", time.day()),
            ('%', Some('H')) => format!("{:02}", time.hour()),
            ('%', Some('M')) => format!("{:02}", time.minute()),
            ('%', Some('S')) => format!("{:02}", time.second()),
            (c, _) => c.to_string(),
        };
        out.extend_from_slice(part.as_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_named_after_the_time_in_utc() {
        let now = Timestamp::from_secs(1_117_962_065);
        let named = |pattern| {
            let name = segment_name(pattern, b"a.log", now).unwrap();
            String::from_utf8(name).unwrap()
        };
        assert_eq!(named("%n.%Y%m%d"), "a.log.20050605");
        assert_eq!(named("%Y-%m-%dT%H:%M:%S_%n"), "2005-06-05T09:01:05_a.log");
        assert_eq!(named("100%%"), "100%");
        assert_eq!(segment_name("%n", b"\xff", now).unwrap(), b"\xff");
    }
}
