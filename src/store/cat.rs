//! Tables: all the logs of a directory that belong together by their names, as one stream.
//!
//! A table `acc` is every file `acc_PROCESS.log`, whatever follows, and `acc.log`; what was compressed
//! is left out. Behind the door, `cat/acc` is all their bytes: first the files whose order is not known
//! (put there by others), oldest first; then piece by piece in the order in which they were appended;
//! then what is left of each. Invariant: every byte that the files held when the stream was opened is
//! in it once, and the bytes of one file stand in their order; but what is truncated before it is read,
//! and the begun record that a cut carries away, is not there any more.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Store;
use super::settings::Mode;
use crate::cask::Read;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::item::FLAG_ORDERED;
use crate::format::key::Number;
use crate::fs::arrivals::{self, Mark, Part};
use crate::fs::{Inode, data, namespace};
use crate::sync::Mutex;

/// What the names of compressed files end with.
const COMPRESSED: &[&[u8]] = &[b".gz", b".bz2", b".xz", b".zst", b".lz4", b".Z"];
/// Most bytes that are read from one file at a time.
const READ_MAX: u64 = 1 << 20;
/// Most tables that have numbers.
const TABLES_MAX: usize = 65_536;

/// The table that a file belongs to by its name, and whether it is one of several processes.
pub(super) fn table_of(name: &[u8]) -> Option<(&[u8], bool)> {
    let stem = name.split(|byte| *byte == b'.').next()?;
    if stem.is_empty() || COMPRESSED.iter().any(|end| name.ends_with(end)) {
        return None;
    }
    if let Some(at) = stem.iter().rposition(|byte| *byte == b'_') {
        let (table, process) = stem.split_at(at);
        let process = process.get(1..).unwrap_or_default();
        let digits = process.iter().take_while(|b| b.is_ascii_digit()).count();
        let more = process.get(digits).is_some_and(u8::is_ascii_alphanumeric);
        if !table.is_empty() && digits > 0 && !more {
            return Some((table, true));
        }
    }
    Some((stem, false))
}

/// Tables that were looked up, by number. Numbers are never used again; should there be too many, all
/// are given up, and whoever has one looks it up again.
#[derive(Default)]
pub(super) struct Tables(Mutex<Numbers>);

#[derive(Default)]
struct Numbers {
    by_name: HashMap<(Number, Vec<u8>), Number>,
    by_number: HashMap<Number, (Number, Vec<u8>)>,
    next: Number,
}

impl Tables {
    /// The number of a table of a directory.
    pub fn number(&self, dir: Number, table: &[u8]) -> Number {
        let mut numbers = self.0.lock();
        let name = (dir, table.to_vec());
        if let Some(number) = numbers.by_name.get(&name) {
            return *number;
        }
        if numbers.by_name.len() >= TABLES_MAX {
            numbers.by_name.clear();
            numbers.by_number.clear();
        }
        let number = numbers.next;
        numbers.next += 1;
        numbers.by_number.insert(number, name.clone());
        numbers.by_name.insert(name, number);
        number
    }

    /// The table with this number.
    pub fn named(&self, number: Number) -> Result<(Number, Vec<u8>)> {
        let numbers = self.0.lock();
        numbers.by_number.get(&number).cloned().ok_or(Error::Stale)
    }
}

/// A file of a table, as it was when the stream was opened.
#[derive(Debug)]
struct Source {
    file: Number,
    end: u64,
    /// How much of it was passed.
    at: u64,
    ordered: bool,
    since: u32,
}

/// Where a stream stands.
#[derive(Debug)]
struct Stream {
    sources: Vec<Source>,
    by_file: HashMap<Number, usize>,
    parts: Vec<Part>,
    /// Bytes passed.
    position: u64,
    /// The piece that is being read: of which source, and up to where.
    piece: Option<(usize, u64)>,
    /// The next source of those that have no order.
    unordered: usize,
    /// The next part, the next mark in it, and marks read from there.
    part: usize,
    mark: u64,
    marks: std::vec::IntoIter<Mark>,
    /// The file of the last mark, unless it is no source.
    current: Option<usize>,
    /// The next source that may have something left.
    left: usize,
}

/// A table that is being read.
#[derive(Debug)]
pub(super) struct Cat(Mutex<Stream>);

impl Stream {
    fn begin_again(&mut self) {
        self.sources.iter_mut().for_each(|source| source.at = 0);
        self.position = 0;
        self.piece = None;
        (self.unordered, self.part, self.mark, self.left) = (0, 0, 0, 0);
        self.marks = Vec::new().into_iter();
        self.current = None;
    }

    fn next_mark(&mut self, r: &impl Read) -> Result<Option<Mark>> {
        loop {
            if let Some(mark) = self.marks.next() {
                self.mark += 1;
                return Ok(Some(mark));
            }
            let Some(part) = self.parts.get(self.part) else {
                return Ok(None);
            };
            let marks = part.read(r, self.mark)?;
            if marks.is_empty() {
                (self.part, self.mark) = (self.part + 1, 0);
            }
            self.marks = marks.into_iter();
        }
    }

    fn is_void(&self, part: Option<Part>, source: usize) -> bool {
        let source = self.sources.get(source);
        part.zip(source)
            .is_some_and(|(part, source)| part.is_void_for(source.since))
    }

    /// The next piece that is not empty: of which source, and up to where.
    fn next_piece(&mut self, r: &impl Read) -> Result<Option<(usize, u64)>> {
        loop {
            let piece = if let Some(source) = self.sources.get(self.unordered) {
                let end = if source.ordered { 0 } else { source.end };
                self.unordered += 1;
                (self.unordered - 1, end)
            } else if let Some(mark) = self.next_mark(r)? {
                let next = self.by_file.get(&mark.file).copied();
                let part = self.parts.get(self.part).copied();
                match std::mem::replace(&mut self.current, next) {
                    Some(before) if self.is_void(part, before) => continue,
                    Some(before) => (before, mark.before),
                    None => continue,
                }
            } else if let Some(last) = self.current.take() {
                (last, u64::MAX)
            } else if self.left < self.sources.len() {
                self.left += 1;
                (self.left - 1, u64::MAX)
            } else {
                return Ok(None);
            };
            if let Some(source) = self.sources.get(piece.0) {
                let end = piece.1.min(source.end);
                if source.at < end {
                    return Ok(Some((piece.0, end)));
                }
            }
        }
    }
}

impl<D: Device> Store<D> {
    /// Whether a directory holds logs, and so tables.
    pub(super) fn has_tables(&self, dir: Number) -> Result<bool> {
        Ok(self.walk.of_dir(&*self.cask, dir)?.mode == Mode::Log)
    }

    /// The names of the tables of a directory.
    pub(super) fn tables(&self, dir: Number) -> Result<BTreeSet<Vec<u8>>> {
        let mut tables = BTreeSet::new();
        namespace::read_dir(&*self.cask, dir, 0, &mut |entry| {
            if let (FileKind::Regular, Some((table, _))) = (entry.kind, table_of(&entry.name)) {
                tables.insert(table.to_vec());
            }
            Ok(true)
        })?;
        Ok(tables)
    }

    /// The files of a table, oldest first.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none; those of reading.
    pub(super) fn files_of(&self, dir: Number, table: &[u8]) -> Result<Vec<Inode>> {
        if !self.has_tables(dir)? {
            return Err(Error::NotFound);
        }
        let mut files = Vec::new();
        namespace::read_dir(&*self.cask, dir, 0, &mut |entry| {
            let found = table_of(&entry.name).is_some_and(|(of, _)| of == table);
            if found && entry.kind == FileKind::Regular {
                match self.fs.inode(entry.ino) {
                    Ok(inode) => files.push(inode),
                    Err(Error::Stale) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(true)
        })?;
        if files.is_empty() {
            return Err(Error::NotFound);
        }
        files.sort_by_key(|inode| (inode.mtime, inode.number));
        // Two names of one file.
        let mut seen = HashSet::new();
        files.retain(|inode| seen.insert(inode.number));
        Ok(files)
    }

    /// Opens the stream of a table. Its files stay until [`Store::close_cat`].
    pub(super) fn open_cat(&self, dir: Number, table: &[u8]) -> Result<Cat> {
        let mut sources: Vec<Source> = Vec::new();
        let parts = arrivals::parts(&*self.cask, dir)?;
        for inode in self.files_of(dir, table)? {
            match self.fs.open(inode.number) {
                Ok(inode) => sources.push(Source {
                    file: inode.number,
                    end: inode.size,
                    at: 0,
                    ordered: inode.flags & FLAG_ORDERED != 0,
                    since: inode.since,
                }),
                Err(Error::Stale) => {}
                Err(error) => {
                    for source in &sources {
                        self.let_go(source.file)?;
                    }
                    return Err(error);
                }
            }
        }
        let by_file = sources.iter().zip(0..).map(|(s, at)| (s.file, at));
        Ok(Cat(Mutex::new(Stream {
            by_file: by_file.collect(),
            sources,
            parts,
            position: 0,
            piece: None,
            unordered: 0,
            part: 0,
            mark: 0,
            marks: Vec::new().into_iter(),
            current: None,
            left: 0,
        })))
    }

    /// Lets the files of a stream go.
    pub(super) fn close_cat(&self, cat: &Cat) -> Result<()> {
        let stream = cat.0.lock();
        let done = stream.sources.iter().map(|source| self.let_go(source.file));
        done.fold(Ok(()), Result::and)
    }

    /// Reads a stream. Reading on is cheap; going back begins again.
    pub(super) fn read_cat(
        &self,
        cat: &Cat,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        let mut stream = cat.0.lock();
        let stream = &mut *stream;
        if offset < stream.position {
            stream.begin_again();
        }
        let end = offset.saturating_add(u64::from(size));
        let mut bytes = Vec::new();
        while stream.position < end {
            let Some((at, until)) = stream.piece else {
                stream.piece = stream.next_piece(&*self.cask)?;
                if stream.piece.is_none() {
                    break;
                }
                continue;
            };
            let Some(source) = stream.sources.get_mut(at) else {
                break;
            };
            let skips = stream.position < offset;
            let most = if skips { offset } else { end } - stream.position;
            let mut len = (until - source.at).min(most);
            if !skips {
                let inode = self.fs.inode(source.file)?;
                let most = len.min(READ_MAX) as u32;
                data::read(&*self.cask, &inode, source.at, most, &mut bytes)?;
                len = bytes.len() as u64;
                buf.extend_from_slice(&bytes);
                if len == 0 {
                    // It was truncated since.
                    source.at = until;
                }
            }
            source.at += len;
            stream.position += len;
            if source.at >= until {
                stream.piece = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_table() {
        let table = |name: &'static str| {
            table_of(name.as_bytes())
                .map(|(table, shared)| (std::str::from_utf8(table).unwrap(), shared))
        };
        assert_eq!(table("acc_1.log"), Some(("acc", true)));
        assert_eq!(table("acc_12.log.20050605"), Some(("acc", true)));
        assert_eq!(table("acc_1.log-20050605"), Some(("acc", true)));
        assert_eq!(table("acc_1-20050605.log"), Some(("acc", true)));
        assert_eq!(table("e_346_353_1000.log"), Some(("e_346_353", true)));
        assert_eq!(table("missed_calls_3.log"), Some(("missed_calls", true)));
        assert_eq!(table("access.log.1"), Some(("access", false)));
        assert_eq!(table("acc_x.log"), Some(("acc_x", false)));
        assert_eq!(table("acc_1x.log"), Some(("acc_1x", false)));
        assert_eq!(table("_1.log"), Some(("_1", false)));
        assert_eq!(table("acc_1.log.1.gz"), None);
        assert_eq!(table(".hidden"), None);
    }
}
