//! The record of rolls: one line for each cut, whatever caused it, behind the door of the root.
//!
//! A line holds the time in seconds since 1970, the cause, the path of the log and the path of the
//! segment, with a blank between them; blanks and control characters in names are written as \\ooo. It
//! is part of the transaction of the cut. The record is bounded: when it has grown to 256 KiB it begins
//! anew with the last quarter of it, so for `tail -F` it is a file that was truncated. It counts as no
//! file and belongs to no directory. Invariant: it consists of whole lines.

use zerocopy::IntoBytes;

use super::Store;
use super::binding::Name;
use crate::cask::{Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::Result;
use crate::format::item::EventsRecord;
use crate::format::key::{INDEX, Number};
use crate::format::{Key, Kind};
use crate::fs::namespace;

/// Bytes at which the record begins anew, and how many of them it keeps.
const EVENTS_MAX: u64 = 256 << 10;
const EVENTS_KEPT: u64 = 64 << 10;
/// Most bytes of a directory's path in a line; of a longer one the end is given.
const PATH_MAX: usize = 1024;

/// What made a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `rename(2)` by somebody.
    Rename,
    /// The clock.
    Clock,
    /// The log's size.
    Size,
    /// The number of its records.
    Lines,
    /// `caskfs rotate`, or a write to `.cask/rotate`.
    Rotate,
}

impl Cause {
    fn word(self) -> &'static str {
        match self {
            Self::Rename => "rename",
            Self::Clock => "clock",
            Self::Size => "size",
            Self::Lines => "lines",
            Self::Rotate => "rotate",
        }
    }
}

const KEY: Key = Key::new(INDEX, Kind::Events, 0);

/// Where the lines stand, if there are any.
///
/// # Errors
/// Those of reading.
pub fn record(r: &impl Read) -> Result<Option<EventsRecord>> {
    let value = r.get(&KEY)?;
    value.map(|value| EventsRecord::decode(&value)).transpose()
}

/// One cut.
#[derive(Clone, Debug)]
pub struct Event {
    /// What made it.
    pub cause: Cause,
    /// The log, by directory and name.
    pub log: Name,
    /// What the segment is called.
    pub segment: Name,
}

/// Adds the lines of cuts; to be called once in a transaction, since content reads there as it was
/// before it.
///
/// # Errors
/// Those of reading and writing.
pub fn note<D: Device>(tx: &mut Tx<'_, D>, cuts: &[Event], now: Timestamp) -> Result<()> {
    let mut lines = String::new();
    for Event {
        cause,
        log,
        segment,
    } in cuts
    {
        let (log, segment) = (path(tx, log)?, path(tx, segment)?);
        lines.push_str(&format!("{} {} {log} {segment}\n", now.secs, cause.word()));
    }
    if lines.is_empty() {
        return Ok(());
    }
    let mut events = match record(tx)? {
        Some(events) if events.size.get() < EVENTS_MAX => events,
        Some(full) => begin_anew(tx, &full)?,
        None => empty(tx),
    };
    tx.write(events.content.get(), events.size.get(), lines.as_bytes());
    events.size += lines.len() as u64;
    events.mtime = now.into();
    tx.put(KEY, events.as_bytes())
}

fn empty<D: Device>(tx: &mut Tx<'_, D>) -> EventsRecord {
    EventsRecord {
        content: tx.new_number().into(),
        size: 0.into(),
        mtime: Timestamp::default().into(),
    }
}

/// The last lines of a full record, as the beginning of a new one.
fn begin_anew<D: Device>(tx: &mut Tx<'_, D>, full: &EventsRecord) -> Result<EventsRecord> {
    let mut kept = vec![0; EVENTS_KEPT as usize];
    let from = full.size.get().saturating_sub(EVENTS_KEPT);
    tx.read_content(full.content.get(), from, &mut kept)?;
    let line = kept.iter().position(|byte| *byte == b'\n');
    let kept = kept.get(line.map_or(kept.len(), |end| end + 1)..);
    let kept = kept.unwrap_or_default();
    tx.drop_content(full.content.get());
    let mut events = empty(tx);
    tx.write(events.content.get(), 0, kept);
    events.size = (kept.len() as u64).into();
    Ok(events)
}

/// The path from the mountpoint of what has a name, escaped.
fn path(r: &impl Read, (dir, name): &Name) -> Result<String> {
    let dir = namespace::path_of(r, *dir)?.unwrap_or_default();
    let end = dir.len().saturating_sub(PATH_MAX);
    let mut out = String::new();
    for part in [dir.get(end..).unwrap_or_default(), name.as_slice()] {
        if !part.is_empty() {
            out.push('/');
            out.push_str(&escape(part));
        }
    }
    Ok(out)
}

/// The bytes as text in which every blank, backslash and control character is `\\ooo`.
fn escape(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_whitespace() || c.is_control() || c == '\\' {
                let mut encoded = [0; 4];
                out.extend(c.encode_utf8(&mut encoded).bytes().map(octal));
            } else {
                out.push(c);
            }
        }
        out.extend(chunk.invalid().iter().copied().map(octal));
    }
    out
}

fn octal(byte: u8) -> String {
    format!("\\{byte:03o}")
}

impl<D: Device> Store<D> {
    /// Reads the record of rolls.
    pub(super) fn read_events(&self, offset: u64, size: u32, buf: &mut Vec<u8>) -> Result<()> {
        // Should it begin anew meanwhile, what was read may be gone: then it is read again.
        while let Some(events) = record(&*self.cask)? {
            let left = events.size.get().saturating_sub(offset);
            let len = usize::try_from(left.min(u64::from(size))).unwrap_or_default();
            buf.resize(len, 0);
            let content: Number = events.content.get();
            self.cask.read_content(content, offset, buf)?;
            if record(&*self.cask)?.is_some_and(|now| now.content == events.content) {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_so_that_a_line_has_four_words() {
        assert_eq!(escape(b"acc_1.log"), "acc_1.log");
        assert_eq!(escape(b"a b\n\\"), "a\\040b\\012\\134");
        assert_eq!(escape(b"\xffz"), "\\377z");
        assert_eq!(escape("\u{a0}\u{e9}".as_bytes()), "\\302\\240\u{e9}");
    }
}
