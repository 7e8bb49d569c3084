//! Checking the filesystem: every inode has its names, every name its inode.

use std::collections::{HashMap, HashSet};

use super::report::{Report, Severity};
use crate::cask::{Cask, Read};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::{
    ArrivalsRecord, DirentRecord, EventsRecord, FLAG_XATTR, InodeRecord, SegmentRecord, XattrRecord,
};
use crate::format::key::{INDEX, Number, ROOT};
use crate::format::{FileKind, Key, Kind};
use crate::fs::{lifetime, xattr};

/// What is known of an inode.
struct Seen {
    kind: FileKind,
    nlink: u32,
    size: u64,
    parent: Number,
    /// Names found.
    names: u32,
    /// Names in it found, if it is a directory; and directories among them.
    entries: u64,
    directories: u32,
    orphan: bool,
    attributes: bool,
    /// The directory it is to be a segment of and was not found listed in; 0 for none.
    home: Number,
}

/// Checks inodes, names, attributes and contents against each other.
pub(super) fn check<D: Device>(cask: &Cask<D>, report: &mut Report) -> Result<()> {
    let mut names = Names {
        cask,
        report,
        inodes: HashMap::new(),
        contents: HashMap::new(),
        wipes: 0,
        homes: HashSet::new(),
        listed: HashSet::new(),
        mortal: HashSet::new(),
        listed_mortal: HashSet::new(),
    };
    let last = Key::new(u64::MAX, Kind::Arrivals, u64::MAX);
    // Inodes first, so that names can come before what they name.
    for pass in [Kind::Inode, Kind::Dirent] {
        let read = cask.scan(Key::new(0, Kind::Inode, 0), last, &mut |key, value| {
            names.item(pass, key, value);
            Ok(true)
        });
        match read {
            Err(Error::Corrupt(what)) => {
                names.report.add(
                    Severity::Error,
                    "items",
                    Some(what.offset),
                    format!("{what}: the files cannot all be read"),
                );
                return Ok(());
            }
            other => other?,
        }
    }
    names.conclude();
    Ok(())
}

struct Names<'a, D: Device> {
    cask: &'a Cask<D>,
    report: &'a mut Report,
    inodes: HashMap<Number, Seen>,
    /// Contents and the inodes they belong to.
    contents: HashMap<Number, (Number, u64)>,
    /// Inodes on which wiping is set.
    wipes: u32,
    /// Directories with segments, and those that are listed as such.
    homes: HashSet<Number>,
    listed: HashSet<Number>,
    /// Inodes on which a `ttl` stands, and those that are listed as such.
    mortal: HashSet<Number>,
    listed_mortal: HashSet<Number>,
}

impl<D: Device> Names<'_, D> {
    fn error(&mut self, code: &'static str, sentence: String) {
        self.report.add(Severity::Error, code, None, sentence);
    }

    fn item(&mut self, pass: Kind, key: Key, value: &[u8]) {
        match (pass, key.kind) {
            (Kind::Inode, Kind::Inode) => self.inode(key.number, value),
            (Kind::Dirent, Kind::Dirent) => self.entries(key, value),
            (Kind::Dirent, Kind::Segment) => self.segment(key, value),
            (Kind::Inode, Kind::Home) => drop(self.listed.insert(key.offset)),
            (Kind::Inode, Kind::Ttl) => drop(self.listed_mortal.insert(key.offset)),
            (Kind::Inode, Kind::Events) => self.events(value),
            (Kind::Inode, Kind::Arrivals) => self.arrivals(key, value),
            (Kind::Dirent, Kind::Xattr) => self.attributes(key, value),
            (Kind::Dirent, Kind::Data) => self.content(key),
            (Kind::Dirent, Kind::Orphan) => match self.inodes.get_mut(&key.offset) {
                Some(inode) => inode.orphan = true,
                None => self.error(
                    "orphan",
                    format!(
                        "inode {} is kept without a name, but does not exist",
                        key.offset
                    ),
                ),
            },
            _ => {}
        }
    }

    fn inode(&mut self, number: Number, value: &[u8]) {
        let record = match InodeRecord::decode(value) {
            Ok(record) => record,
            Err(error) => return self.error("inode", format!("inode {number}: {error}")),
        };
        match record.kind() {
            FileKind::Directory => self.report.directories += 1,
            FileKind::Regular => {
                self.report.files += 1;
                self.report.bytes += record.size.get();
            }
            _ => self.report.files += 1,
        }
        if record.kind() != FileKind::Directory
            && let Some((other, _)) = self
                .contents
                .insert(record.content.get(), (number, record.size.get()))
        {
            self.error(
                "content-shared",
                format!("inodes {other} and {number} claim the same content"),
            );
        }
        let next = self.cask.counters().1;
        if number >= next || record.content.get() >= next {
            self.error(
                "number",
                format!("inode {number} has a number that was not given out yet"),
            );
        }
        let seen = Seen {
            kind: record.kind(),
            nlink: record.nlink.get(),
            size: record.size.get(),
            parent: record.parent.get(),
            names: 0,
            entries: 0,
            directories: 0,
            orphan: false,
            attributes: record.flags.get() & FLAG_XATTR != 0,
            home: match record.kind() {
                FileKind::Regular => record.rdev.get(),
                _ => 0,
            },
        };
        self.inodes.insert(number, seen);
    }

    fn entries(&mut self, key: Key, value: &[u8]) {
        let dir = key.number;
        let entries = match DirentRecord::decode_all(value) {
            Ok(entries) => entries,
            Err(error) => return self.error("name", format!("directory {dir}: {error}")),
        };
        if self
            .inodes
            .get(&dir)
            .is_none_or(|inode| inode.kind != FileKind::Directory)
        {
            self.error(
                "name",
                format!("names belong to directory {dir}, which does not exist"),
            );
        }
        for entry in entries {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            if self.cask.name_hash(&entry.name) != key.offset {
                self.error(
                    "name-hash",
                    format!("directory {dir}: the name {name:?} cannot be found where it stands"),
                );
            }
            match self.inodes.get_mut(&entry.number) {
                None => {
                    self.error(
                        "name-dangling",
                        format!(
                            "directory {dir}: {name:?} names inode {}, which does not exist",
                            entry.number
                        ),
                    );
                }
                Some(inode) if inode.kind != entry.kind => {
                    self.error(
                        "name-kind",
                        format!("directory {dir}: {name:?} is not the kind of file that it says"),
                    );
                }
                Some(inode) => {
                    inode.names += 1;
                    if inode.kind == FileKind::Directory && inode.parent != dir {
                        self.error("parent", format!("directory {} does not lead back to directory {dir}, where its name is", entry.number));
                    }
                }
            }
            if let Some(parent) = self.inodes.get_mut(&dir) {
                parent.entries += 1;
                parent.directories += u32::from(entry.kind == FileKind::Directory);
            }
        }
    }

    fn attributes(&mut self, key: Key, value: &[u8]) {
        match XattrRecord::decode_all(value) {
            Ok(entries) => {
                self.wipes += u32::from(xattr::wipes(&entries));
                if entries.iter().any(lifetime::is_mortal) {
                    self.mortal.insert(key.number);
                }
            }
            Err(error) => self.error("attribute", format!("inode {}: {error}", key.number)),
        }
        if self
            .inodes
            .get(&key.number)
            .is_none_or(|inode| !inode.attributes)
        {
            self.error(
                "attribute",
                format!(
                    "inode {} has attributes that it does not know of",
                    key.number
                ),
            );
        }
    }

    fn segment(&mut self, key: Key, value: &[u8]) {
        let (home, number) = (key.number, key.offset);
        self.homes.insert(home);
        if let Err(error) = SegmentRecord::decode(value) {
            self.error("segment", format!("directory {home}: {error}"));
        }
        match self.inodes.get_mut(&number) {
            Some(inode) if inode.home == home => inode.home = 0,
            _ => {
                let text = format!(
                    "inode {number} is listed as a segment of directory {home}, but is none"
                );
                self.error("segment", text);
            }
        }
    }

    fn events(&mut self, value: &[u8]) {
        match EventsRecord::decode(value) {
            Ok(record) => {
                let found = (INDEX, record.size.get());
                self.contents.insert(record.content.get(), found);
            }
            Err(error) => self.error("events", error.to_string()),
        }
    }

    /// A part of an order of arrival. Its inode comes before it.
    fn arrivals(&mut self, key: Key, value: &[u8]) {
        let dir = key.number;
        let directory = self.inodes.get(&dir);
        if directory.is_none_or(|inode| inode.kind != FileKind::Directory) {
            let text = format!("inode {dir} has an order of arrival, but is no directory");
            self.error("arrivals", text);
        }
        match ArrivalsRecord::decode(value) {
            // Where its marks end is known by reading them only.
            Ok(record) => {
                let other = self.contents.insert(record.content.get(), (dir, u64::MAX));
                if let Some((other, _)) = other {
                    let text = format!("inodes {other} and {dir} claim the same content");
                    self.error("content-shared", text);
                }
            }
            Err(error) => self.error("arrivals", format!("directory {dir}: {error}")),
        }
    }

    fn content(&mut self, key: Key) {
        let size = u64::from(self.cask.block_size());
        let owned = self.contents.get(&key.number);
        let inside = owned.is_some_and(|(_, bytes)| key.offset < bytes.div_ceil(size));
        if inside || self.cask.is_hidden(key.number, key.offset) {
            return;
        }
        match owned {
            None => self.error(
                "content-orphan",
                format!("content {} belongs to no file", key.number),
            ),
            Some((inode, _)) => {
                let text = format!(
                    "inode {inode} has content past its end, at block {}",
                    key.offset
                );
                self.error("content-end", text);
            }
        }
    }

    fn conclude(&mut self) {
        let (files, _) = self.cask.counters();
        if files != self.inodes.len() as u64 {
            let text = format!(
                "{files} files are counted, but there are {}",
                self.inodes.len()
            );
            self.error("file-count", text);
        }
        if self.cask.wipes() != self.wipes {
            let text = format!(
                "wiping is counted on {} files and directories, but is set on {}",
                self.cask.wipes(),
                self.wipes
            );
            self.error("wipe-count", text);
        }
        for home in self.homes.difference(&self.listed) {
            let text = format!(
                "directory {home} is not listed among those with segments: `ttl` does not see them"
            );
            self.report
                .add(Severity::Warning, "segment-home", None, text);
        }
        for number in self.mortal.difference(&self.listed_mortal) {
            let text = format!(
                "inode {number} is not listed among those with a `ttl`: files in its reach are removed late"
            );
            self.report.add(Severity::Warning, "ttl-list", None, text);
        }
        let mut wrong = Vec::new();
        for (number, inode) in &self.inodes {
            let mut add =
                |code, what: String| wrong.push((code, format!("inode {number}: {what}")));
            let directory = inode.kind == FileKind::Directory;
            let names = if *number == ROOT { 1 } else { inode.names };
            if inode.orphan != (names == 0) {
                add(
                    "nameless",
                    format!(
                        "{names} names, but it is {}kept as an orphan",
                        if inode.orphan { "" } else { "not " }
                    ),
                );
            }
            let links = match (directory, names) {
                (_, 0) => 0,
                (true, _) => 2 + inode.directories,
                (false, names) => names,
            };
            if inode.nlink != links {
                add(
                    "link-count",
                    format!("it counts {} links, but has {links}", inode.nlink),
                );
            }
            if inode.home != 0 {
                let home = inode.home;
                add(
                    "segment",
                    format!("it is a segment of directory {home}, which does not list it"),
                );
            }
            if directory && names > 1 {
                add(
                    "directory-twice",
                    "a directory with more than one name".to_owned(),
                );
            }
            if directory && inode.size != inode.entries {
                add(
                    "entry-count",
                    format!(
                        "it counts {} entries, but has {}",
                        inode.size, inode.entries
                    ),
                );
            }
            if directory && names > 0 && !self.reaches_root(*number) {
                add(
                    "detached",
                    "a directory that the root does not lead to".to_owned(),
                );
            }
        }
        wrong.sort();
        for (code, text) in wrong {
            self.error(code, text);
        }
        if self
            .inodes
            .get(&ROOT)
            .is_none_or(|root| root.kind != FileKind::Directory)
        {
            self.error("root", "there is no root directory".to_owned());
        }
    }

    fn reaches_root(&self, number: Number) -> bool {
        let mut at = number;
        for _ in 0..self.inodes.len() {
            if at == ROOT {
                return true;
            }
            match self.inodes.get(&at) {
                Some(inode) => at = inode.parent,
                None => return false,
            }
        }
        at == ROOT
    }
}
