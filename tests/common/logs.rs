//! The reference for logs, written from SEMANTICS.md: who is bound to a name, what cuts a log, what a
//! cut does.
//!
//! A cut is one step here whatever caused it: the segment gets its name and ends with a whole record,
//! what was begun goes on in a fresh log after the header, segments beyond `keep` go, and the event is
//! noted. There is no counting, no caching, and nothing of the engine's.

use std::collections::BTreeMap;
use std::sync::Arc;

use caskfs::clock::Timestamp;
use caskfs::format::FileKind;
use libc::{EINVAL, EISDIR, ENAMETOOLONG, ENOENT, EPERM};

use super::model::{Inode, ModelFs, Outcome};
use super::op::{Op, Path};
use super::values::TTL;

/// A directory and a name in it.
pub type Name = (u64, Vec<u8>);

/// One write is divided between segments at most so many times.
const CUTS_MAX: usize = 32;
/// One cut drops so many segments at most.
const DROPPED_MAX: usize = 8;
/// The slot of a writer that opens, appends and closes.
const PASSING: u8 = 255;

/// An open write handle of a log.
#[derive(Clone, Debug)]
struct Writer {
    name: Name,
    /// Where its bytes after the last delimiter begin.
    begun: Option<usize>,
}

/// What a fresh log has of the old one.
#[derive(Clone, Debug)]
struct Looks {
    perm: u32,
    uid: u32,
    gid: u32,
    settings: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Of which log a file is a segment, and the name and number that it was given.
#[derive(Clone, Debug)]
pub struct Mark {
    log: Name,
    given: Option<(Vec<u8>, u32)>,
}

/// What there is to logs beside files.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    writers: BTreeMap<u8, Writer>,
    /// Of the file that a bound name stood for last.
    looks: BTreeMap<Name, Looks>,
    /// The record of rolls.
    pub events: Vec<u8>,
    /// Seconds that the clock was moved on.
    pub ahead: i64,
    /// The hour of the last tick.
    hour: Option<i64>,
    /// The cask has no room for what a cut need not do.
    pub bare: bool,
    /// What the cuts of the last operation did beside cutting, for those who count it.
    pub told: Vec<&'static str>,
}

/// The settings of a log.
pub struct Settings {
    is_log: bool,
    pub is_value: bool,
    /// Seconds.
    pub ttl: Option<i64>,
    record: Option<u8>,
    roll: Vec<u8>,
    lines: usize,
    size: usize,
    keep: Option<usize>,
    roll_name: Vec<u8>,
    /// With its delimiter.
    header: Vec<u8>,
}

impl ModelFs {
    /// Whether the model says anything of an operation: what SEMANTICS.md leaves open, it does not.
    pub fn speaks_of(&self, op: &Op) -> bool {
        let is_log = |path: &Path| self.find(path).is_ok_and(|ino| self.is_log(ino));
        match op {
            Op::Write { path, .. } | Op::Punch { path, .. } | Op::Open { path, .. } => {
                !is_log(path)
            }
            Op::Truncate { path, len } => *len == 0 || !is_log(path),
            Op::WriteOpen { slot, .. } => self.slots.get(slot).is_none_or(|s| !self.is_log(s.ino)),
            // What is over is removed some time, under the ttl that it is over by.
            Op::Set { name, .. } => name.0 != b"ttl" || !self.may_come_back(),
            Op::RemoveXattr { name, .. } => name.0 != TTL || !self.may_come_back(),
            Op::Rename { from, .. } if self.mortal => {
                let is_dir = |ino: u64| self.inodes[&ino].is_dir();
                !self.find(from).is_ok_and(is_dir) || !self.may_come_back()
            }
            // A file whose name given last is gone is bound to none.
            Op::Append { path, .. } => self
                .find(path)
                .is_ok_and(|ino| !self.is_log(ino) || self.inodes[&ino].named.is_some()),
            Op::LogOpen { path, .. } => match self.place(path) {
                Ok((_, _, Some(ino))) => self.is_log(ino) && self.inodes[&ino].named.is_some(),
                Ok((dir, _, None)) => self.settings(&BTreeMap::new(), Some(dir)).is_log,
                Err(_) => true,
            },
            Op::Line { slot, .. } | Op::LogClose { slot } => self.logs.writers.contains_key(slot),
            _ => true,
        }
    }

    pub fn log_op(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Set { path, name, value } => {
                let ino = self.attributed(path)?;
                let name = [b"user.cask.".as_slice(), &name.0].concat();
                self.mortal |= name == TTL;
                self.inode(ino).xattrs.insert(name, value.0.clone());
                Ok(())
            }
            Op::LogOpen { path, slot } => {
                let ino = match self.place(path)? {
                    (_, _, Some(ino)) if self.inodes[&ino].is_dir() => return Err(EISDIR),
                    (_, _, Some(ino)) if self.inodes[&ino].kind != FileKind::Regular => {
                        return Err(EINVAL);
                    }
                    (_, _, Some(ino)) => ino,
                    (dir, name, None) => {
                        let file = Inode::new(FileKind::Regular, 0o644, self.now);
                        self.insert(dir, name, file)
                    }
                };
                self.close_log(*slot);
                self.open_log(*slot, ino);
                Ok(())
            }
            Op::Line { slot, data } => self.append_log(*slot, &data.text()),
            Op::LogClose { slot } => {
                self.close_log(*slot);
                Ok(())
            }
            Op::Rotate { path } => self.rotate(path),
            Op::Clock { secs } => {
                self.logs.ahead += secs;
                Ok(())
            }
            Op::Tick => {
                self.tick();
                Ok(())
            }
            Op::Bare { op } => {
                self.logs.bare = true;
                let now = Timestamp {
                    secs: self.now.secs - self.logs.ahead,
                    ..self.now
                };
                let outcome = self.apply(op, now);
                self.logs.bare = false;
                outcome
            }
            other => unreachable!("{other} has nothing to do with logs"),
        }
    }

    /// All writers are gone; what they had begun is as good as any record.
    pub fn crash_logs(&mut self) {
        self.logs.writers.clear();
        self.logs.looks.clear();
        self.logs.hour = None;
    }

    /// Opens, appends, closes.
    pub fn append_once(&mut self, ino: u64, data: &[u8]) -> Outcome {
        self.open_log(PASSING, ino);
        let outcome = self.append_log(PASSING, data);
        self.close_log(PASSING);
        outcome
    }

    fn open_log(&mut self, slot: u8, ino: u64) {
        let name = self.inodes[&ino].named.clone().expect("it has a name");
        if !self.is_bound(&name) {
            self.logs.looks.insert(name.clone(), self.looks(ino));
        }
        let writer = Writer { name, begun: None };
        self.logs.writers.insert(slot, writer);
    }

    fn close_log(&mut self, slot: u8) {
        if let Some(Writer { name, .. }) = self.logs.writers.remove(&slot)
            && !self.is_bound(&name)
        {
            self.logs.looks.remove(&name);
        }
    }

    /// A log is live as long as a write handle is bound to its name.
    pub fn is_bound(&self, name: &Name) -> bool {
        self.logs.writers.values().any(|w| w.name == *name)
    }

    /// The name stands for something else now, or for nothing: nobody is inside a record there.
    pub fn begins_anew(&mut self, name: &Name) {
        for writer in self.logs.writers.values_mut() {
            if writer.name == *name {
                writer.begun = None;
            }
        }
    }

    /// A regular file is about to lose a name: who is bound to it makes one like it.
    pub fn loses(&mut self, name: &Name, ino: u64) {
        if self.is_bound(name) && self.inodes[&ino].kind == FileKind::Regular {
            self.logs.looks.insert(name.clone(), self.looks(ino));
        }
        self.begins_anew(name);
    }

    pub fn is_log(&self, ino: u64) -> bool {
        self.inodes[&ino].kind == FileKind::Regular && self.settings_of(ino).is_log
    }

    fn looks(&self, ino: u64) -> Looks {
        let inode = &self.inodes[&ino];
        let own = inode.xattrs.iter();
        let settings = own.filter(|(name, _)| name.starts_with(b"user.cask."));
        Looks {
            perm: inode.perm,
            uid: inode.uid,
            gid: inode.gid,
            settings: settings.map(|(n, v)| (n.clone(), v.clone())).collect(),
        }
    }

    pub fn settings_of(&self, ino: u64) -> Settings {
        let inode = &self.inodes[&ino];
        self.settings(&inode.xattrs, inode.named.as_ref().map(|(dir, _)| *dir))
    }

    /// The settings of what has these attributes in this directory: the first level that has a name
    /// wins.
    fn settings(&self, own: &BTreeMap<Vec<u8>, Vec<u8>>, dir: Option<u64>) -> Settings {
        let find = |name: &str| {
            let name = [b"user.cask.", name.as_bytes()].concat();
            let mut at = dir;
            let mut found = own.get(&name);
            while let (None, Some(level)) = (found, at.and_then(|dir| self.inodes.get(&dir))) {
                found = level.xattrs.get(&name);
                at = level.named.as_ref().map(|(dir, _)| *dir);
            }
            found.cloned()
        };
        let number = |name| {
            let text = String::from_utf8(find(name)?).expect("settings are text");
            text.parse::<usize>().ok()
        };
        let record = match find("record").as_deref() {
            Some(b"none") => None,
            Some([byte]) => Some(*byte),
            _ => Some(b'\n'),
        };
        let roll = find("roll").unwrap_or_default();
        let named = match roll.as_slice() {
            b"hour" => b"%n.%Y%m%d%H".as_slice(),
            _ => b"%n.%Y%m%d",
        };
        let mut header = find("header").filter(|line| line != b"none");
        if let Some(line) = &mut header {
            line.extend(record);
        }
        Settings {
            is_log: find("mode").as_deref() == Some(b"log"),
            is_value: find("mode").as_deref() == Some(b"value"),
            ttl: number("ttl").map(|secs| secs as i64),
            record,
            lines: number("roll-lines").unwrap_or_default(),
            size: number("roll-size").unwrap_or_default(),
            keep: number("keep"),
            roll_name: find("roll-name").unwrap_or(named.to_vec()),
            header: header.unwrap_or_default(),
            roll,
        }
    }

    fn append_log(&mut self, slot: u8, data: &[u8]) -> Outcome {
        let name = self.logs.writers[&slot].name.clone();
        if !self.inodes.contains_key(&name.0) {
            return Err(ENOENT);
        }
        let known = self.entry(name.0, &name.1).ok();
        match known.map(|ino| self.inodes[&ino].kind) {
            Some(FileKind::Directory) => return Err(EISDIR),
            Some(FileKind::Regular) | None => {}
            Some(_) => return Err(EPERM),
        }
        let mut ino = known.unwrap_or_else(|| self.make_fresh(&name));
        let settings = self.settings_of(ino);
        // A record of another period than the last one begins a fresh log.
        if settings.is_log
            && self.period_is_over(ino, &settings)
            && self.cut_by_itself(&name, "clock").is_ok()
        {
            ino = self.live(&name);
        }
        self.inode(ino).mark = None;
        let mut rest = data;
        for cuts in 0.. {
            self.begin(ino, &settings);
            let divides = settings.is_log && cuts < CUTS_MAX;
            let (len, cause) = match divides {
                true => self.room(ino, &settings, rest),
                false => (rest.len(), None),
            };
            self.put(slot, ino, &rest[..len], settings.record);
            rest = &rest[len..];
            let Some(cause) = cause else { break };
            if self.cut_by_itself(&name, cause).is_err() {
                // A log whose segment can have no name is not cut.
                self.put(slot, ino, rest, settings.record);
                break;
            }
            if rest.is_empty() {
                break;
            }
            ino = self.live(&name);
        }
        Ok(())
    }

    /// How much goes into a log until it is full, and what it is full of.
    fn room(&self, ino: u64, settings: &Settings, data: &[u8]) -> (usize, Option<&'static str>) {
        let (there, all) = (&self.inodes[&ino].data, (data.len(), None));
        let Some(delimiter) = settings.record else {
            // At the byte; one that was full before takes one write more.
            return match settings.size {
                0 => all,
                size if there.len() >= size => (data.len(), Some("size")),
                size if there.len() + data.len() >= size => (size - there.len(), Some("size")),
                _ => all,
            };
        };
        // The header is no record, whatever it holds.
        let records = there
            .strip_prefix(settings.header.as_slice())
            .unwrap_or(there);
        let mut lines = records.iter().filter(|byte| **byte == delimiter).count();
        for (at, _) in data.iter().enumerate().filter(|(_, b)| **b == delimiter) {
            lines += 1;
            if settings.lines > 0 && lines >= settings.lines {
                return (at + 1, Some("lines"));
            }
            if settings.size > 0 && there.len() + at + 1 >= settings.size {
                return (at + 1, Some("size"));
            }
        }
        all
    }

    /// Appends, and notes who is inside a record then.
    fn put(&mut self, slot: u8, ino: u64, data: &[u8], delimiter: Option<u8>) {
        if data.is_empty() {
            return;
        }
        let end = self.inodes[&ino].data.len();
        self.write(ino, end as u64, data);
        let last = data.iter().rposition(|byte| Some(*byte) == delimiter);
        if last.is_some() {
            let name = self.logs.writers[&slot].name.clone();
            self.begins_anew(&name);
        }
        let writer = self.logs.writers.get_mut(&slot).expect("it writes");
        writer.begun = match (delimiter, last) {
            (None, _) => None,
            (_, None) => writer.begun.or(Some(end)),
            (_, Some(last)) => Some(end + last + 1).filter(|_| last + 1 < data.len()),
        };
    }

    /// An empty log begins with the header.
    fn begin(&mut self, ino: u64, settings: &Settings) {
        if self.inodes[&ino].data.is_empty() && !settings.header.is_empty() {
            self.write(ino, 0, &settings.header);
        }
    }

    /// The file under a bound name, made if it is not there.
    fn live(&mut self, name: &Name) -> u64 {
        match self.entry(name.0, &name.1) {
            Ok(ino) => ino,
            Err(_) => self.make_fresh(name),
        }
    }

    fn make_fresh(&mut self, name: &Name) -> u64 {
        let looks = self.logs.looks[name].clone();
        let mut file = Inode::new(FileKind::Regular, looks.perm, self.now);
        (file.uid, file.gid, file.xattrs) = (looks.uid, looks.gid, looks.settings);
        self.insert(name.0, &name.1, file)
    }

    fn period_is_over(&self, ino: u64, settings: &Settings) -> bool {
        let Inode { mtime, data, .. } = &*self.inodes[&ino];
        let period = |time: &Timestamp| {
            let (year, month, _) = date(time.secs.div_euclid(86_400));
            match settings.roll.as_slice() {
                b"hour" => time.secs.div_euclid(3600),
                b"day" => time.secs.div_euclid(86_400),
                b"month" => year * 12 + month,
                b"year" => year,
                _ => 0,
            }
        };
        !data.is_empty() && period(mtime) < period(&self.now)
    }

    /// Cuts what is open, silent and over. Each cut is one step, all of them are not.
    fn tick(&mut self) {
        let hour = Some(self.now.secs.div_euclid(3600));
        if std::mem::replace(&mut self.logs.hour, hour) == hour {
            return;
        }
        let mut names: Vec<Name> = self.logs.writers.values().map(|w| w.name.clone()).collect();
        names.sort();
        names.dedup();
        for name in names {
            if !self.inodes.contains_key(&name.0) {
                continue;
            }
            if let Ok(ino) = self.entry(name.0, &name.1)
                && self.is_log(ino)
                && self.period_is_over(ino, &self.settings_of(ino))
                && self.cut_by_itself(&name, "clock").is_ok()
            {
                let mut moment = self.clone();
                moment.moments.clear();
                self.moments.push(moment);
            }
        }
    }

    /// A rename by itself.
    fn rotate(&mut self, path: &Path) -> Outcome {
        let (dir, name, ino) = self.place(path)?;
        let name = (dir, name.to_vec());
        let Some(ino) = ino else {
            // It was cut, and not written since.
            return if self.is_bound(&name) {
                Ok(())
            } else {
                Err(ENOENT)
            };
        };
        if self.inodes[&ino].is_dir() {
            return Err(EISDIR);
        }
        if !self.is_log(ino) {
            return Err(EINVAL);
        }
        self.cut_by_itself(&name, "rotate")
    }

    fn cut_by_itself(&mut self, log: &Name, cause: &str) -> Outcome {
        let ino = self.entry(log.0, &log.1)?;
        let settings = self.settings_of(ino);
        let time = match cause {
            "clock" => self.inodes[&ino].mtime,
            _ => self.now,
        };
        let base = expand(&settings.roll_name, &log.1, time.secs);
        // What was given is not given again while one with a higher number is there.
        let given = self
            .inodes
            .values()
            .filter_map(|inode| inode.mark.as_ref().filter(|mark| mark.log == *log))
            .filter_map(|mark| mark.given.as_ref().filter(|(name, _)| *name == base))
            .map(|(_, count)| *count);
        let mut count = given.max().map_or(0, |count| count + 1);
        let name = loop {
            let mut name = base.clone();
            if count > 0 {
                name.extend_from_slice(format!(".{count}").as_bytes());
            }
            if name.len() > 255 {
                return Err(ENAMETOOLONG);
            }
            let taken = self.entry(log.0, &name).is_ok();
            if !taken && !self.is_bound(&(log.0, name.clone())) {
                break name;
            }
            count += 1;
        };
        let cut = self.before_cut(log, ino);
        self.detach(log.0, &log.1);
        self.attach(log.0, &name, ino);
        self.cut(cause, log, &(log.0, name), cut, Some((base, count)));
        Ok(())
    }

    /// What a cut must know of a log, and the name takes along.
    pub fn before_cut(&self, log: &Name, ino: u64) -> BeforeCut {
        let begun = self.logs.writers.values().filter(|w| w.name == *log);
        BeforeCut {
            ino,
            settings: self.settings_of(ino),
            begun: begun.filter_map(|w| w.begun).min(),
        }
    }

    /// What belongs to every cut, when the name has gone to the segment.
    pub fn cut(
        &mut self,
        cause: &str,
        log: &Name,
        segment: &Name,
        before: BeforeCut,
        given: Option<(Vec<u8>, u32)>,
    ) {
        let BeforeCut {
            ino,
            settings,
            begun,
        } = before;
        let looks = self.looks(ino);
        self.logs.looks.insert(log.clone(), looks);
        let start = begun
            .filter(|start| settings.record.is_some() && *start < self.inodes[&ino].data.len());
        match start {
            Some(start) => {
                let carried = self.inode(ino).data.split_off(start);
                let fresh = self.make_fresh(log);
                self.logs.told.push("carried");
                self.inode(fresh).data = [settings.header.as_slice(), &carried].concat();
                for writer in self.logs.writers.values_mut() {
                    if writer.name == *log {
                        let moved = |begun: usize| begun - start + settings.header.len();
                        writer.begun = writer.begun.map(moved);
                    }
                }
            }
            None => self.begins_anew(log),
        }
        if !self.is_bound(log) {
            self.logs.looks.remove(log);
        }
        let mark = Mark {
            log: log.clone(),
            given,
        };
        self.inode(ino).mark.get_or_insert(mark);
        if self.logs.bare {
            return;
        }
        let line = format!(
            "{} {cause} {} {}\n",
            self.now.secs,
            self.path_of(log),
            self.path_of(segment)
        );
        self.logs.events.extend_from_slice(line.as_bytes());
        if let Some(keep) = settings.keep {
            self.drop_beyond(log, keep);
        }
    }

    /// The oldest segments go, so that with the live log no more than `keep` are left.
    fn drop_beyond(&mut self, log: &Name, keep: usize) {
        let mut segments = Vec::new();
        for (ino, inode) in &mut self.inodes {
            if inode.mark.as_ref().is_some_and(|mark| mark.log == *log) {
                // What was given a second name is somebody's own.
                match inode.named.clone().filter(|_| inode.nlink == 1) {
                    Some(name) => segments.push((*ino, name)),
                    None => Arc::make_mut(inode).mark = None,
                }
            }
        }
        let beyond = segments.len().saturating_sub(keep - 1).min(DROPPED_MAX);
        for (ino, name) in segments.drain(..beyond) {
            self.loses(&name, ino);
            self.detach(name.0, &name.1);
            self.drop_name(ino);
            self.logs.told.push("dropped");
        }
    }

    fn path_of(&self, name: &Name) -> String {
        let mut path = match self.inodes[&name.0].named.clone() {
            Some(dir) => self.path_of(&dir),
            None => String::new(),
        };
        path.push('/');
        for byte in &name.1 {
            match byte {
                0..=b' ' | b'\\' | 0x7f.. => path.push_str(&format!("\\{byte:03o}")),
                plain => path.push(char::from(*plain)),
            }
        }
        path
    }
}

/// See [`ModelFs::before_cut`].
pub struct BeforeCut {
    ino: u64,
    settings: Settings,
    begun: Option<usize>,
}

/// The name that `roll-name` says, in UTC.
fn expand(pattern: &[u8], name: &[u8], secs: i64) -> Vec<u8> {
    let (year, month, day) = date(secs.div_euclid(86_400));
    let second = secs.rem_euclid(86_400);
    let mut out = Vec::new();
    let mut bytes = pattern.iter();
    while let Some(byte) = bytes.next() {
        let part = match (byte, (*byte == b'%').then(|| bytes.next()).flatten()) {
            (_, Some(b'n')) => name.to_vec(),
            (_, Some(b'Y')) => format!("{year:04}").into_bytes(),
            (_, Some(b'm')) => format!("{month:02}").into_bytes(),
            (_, Some(b'd')) => format!("{day:02}").into_bytes(),
            (_, Some(b'H')) => format!("{:02}", second / 3600).into_bytes(),
            (_, Some(b'M')) => format!("{:02}", second / 60 % 60).into_bytes(),
            (_, Some(b'S')) => format!("{:02}", second % 60).into_bytes(),
            (byte, _) => vec![*byte],
        };
        out.extend(part);
    }
    out
}

/// Year, month and day of a day since 1970-01-01, counted year by year and month by month.
fn date(mut day: i64) -> (i64, i64, i64) {
    let mut year = 1970;
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let len = |year: i64| 365 + i64::from(leap(year));
    while day < 0 {
        year -= 1;
        day += len(year);
    }
    while day >= len(year) {
        day -= len(year);
        year += 1;
    }
    let february = 28 + i64::from(leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for len in months {
        if day < len {
            break;
        }
        day -= len;
        month += 1;
    }
    (year, month, day + 1)
}
