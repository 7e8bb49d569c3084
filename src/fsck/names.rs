//! Checking the filesystem: every inode has its names, every name its inode.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::fix::{Fix, Name};
use super::report::{Report, Severity};
use crate::cask::{Cask, Read};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::content::ContentRecord;
use crate::format::item::{
    ArrivalsRecord, DirentRecord, EventsRecord, FLAG_XATTR, InodeRecord, SegmentRecord, XattrRecord,
};
use crate::format::key::{INDEX, Number, ROOT};
use crate::format::{FileKind, Key, Kind};
use crate::fs::{lifetime, xattr};
use crate::limits::FILE_SIZE_MAX;

/// A number that is so far ahead of the next to be given out was never given out.
const AHEAD_MAX: u64 = 1 << 40;

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
    /// Where its names stand, if it is a directory.
    places: Vec<Name>,
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
        last: 0,
        dangling: Vec::new(),
        missing: HashSet::new(),
        orphans: BTreeMap::new(),
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
    /// The greatest number that was not given out yet; 0 for none.
    last: Number,
    /// Names of inodes that do not exist.
    dangling: Vec<(Number, String, Name)>,
    /// Directories that hold names and do not exist.
    missing: HashSet<Number>,
    /// Contents of no file, and how many bytes they have at least.
    orphans: BTreeMap<Number, u64>,
}

impl<D: Device> Names<'_, D> {
    fn error(&mut self, code: &'static str, sentence: String, fix: impl Into<Option<Fix>>) {
        self.report
            .add_fixable(Severity::Error, code, None, sentence, fix.into());
    }

    fn item(&mut self, pass: Kind, key: Key, value: &[u8]) {
        let is_misplaced = match key.kind {
            Kind::Inode => key.offset != 0 || key.number == INDEX,
            Kind::Orphan | Kind::Ttl | Kind::Home => key.number != INDEX,
            Kind::Events => (key.number, key.offset) != (INDEX, 0),
            Kind::Data | Kind::Dirent | Kind::Xattr | Kind::Segment | Kind::Arrivals => {
                key.number == INDEX
            }
        };
        if is_misplaced {
            if pass == Kind::Inode {
                let text = format!("an item under {key:?} means nothing");
                self.error("item", text, Fix::DropItem(key));
            }
            return;
        }
        match (pass, key.kind) {
            (Kind::Inode, Kind::Inode) => self.inode(key.number, value),
            (Kind::Dirent, Kind::Dirent) => self.entries(key, value),
            (Kind::Dirent, Kind::Segment) => self.segment(key, value),
            (Kind::Inode, Kind::Home) => drop(self.listed.insert(key.offset)),
            (Kind::Inode, Kind::Ttl) => drop(self.listed_mortal.insert(key.offset)),
            (Kind::Inode, Kind::Events) => self.events(key, value),
            (Kind::Inode, Kind::Arrivals) => self.arrivals(key, value),
            (Kind::Dirent, Kind::Xattr) => self.attributes(key, value),
            (Kind::Dirent, Kind::Data) => self.content(key, value),
            (Kind::Dirent, Kind::Orphan) => match self.inodes.get_mut(&key.offset) {
                Some(inode) => inode.orphan = true,
                None => {
                    let text = format!(
                        "inode {} is kept without a name, but does not exist",
                        key.offset
                    );
                    self.error("orphan", text, Fix::DropItem(key));
                }
            },
            _ => {}
        }
    }

    fn inode(&mut self, number: Number, value: &[u8]) {
        let record = match InodeRecord::decode(value) {
            Ok(record) => record,
            Err(error) => {
                let fix = Fix::DropItem(Key::inode(number));
                return self.error("inode", format!("inode {number}: {error}"), fix);
            }
        };
        match record.kind() {
            FileKind::Directory => self.report.directories += 1,
            FileKind::Regular => {
                self.report.files += 1;
                self.report.bytes = self.report.bytes.saturating_add(record.size.get());
            }
            _ => self.report.files += 1,
        }
        if record.kind() != FileKind::Directory
            && let Some((other, size)) = self
                .contents
                .insert(record.content.get(), (number, record.size.get()))
        {
            let text = format!("inodes {other} and {number} claim the same content");
            self.error("content-shared", text, Fix::Empty(number));
            self.contents.insert(record.content.get(), (other, size));
        }
        let next = self.cask.counters().1;
        if number >= next || record.content.get() >= next {
            let most = next.saturating_add(AHEAD_MAX);
            let text = format!("inode {number} has a number that was not given out yet");
            // All of these are counted anew at once, at the end, but for what nobody ever counts to.
            let fix = match (number >= most, record.content.get() >= most) {
                (true, _) => Some(Fix::DropItem(Key::inode(number))),
                (false, true) => Some(Fix::Empty(number)),
                (false, false) => {
                    self.last = self.last.max(number).max(record.content.get());
                    None
                }
            };
            self.error("number", text, fix);
        }
        let seen = Seen {
            kind: record.kind(),
            nlink: record.nlink.get(),
            size: record.size.get(),
            parent: record.parent.get(),
            names: 0,
            entries: 0,
            directories: 0,
            places: Vec::new(),
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
            Err(error) => {
                let text = format!("directory {dir}: {error}");
                return self.error("name", text, Fix::DropItem(key));
            }
        };
        if self
            .inodes
            .get(&dir)
            .is_none_or(|inode| inode.kind != FileKind::Directory)
        {
            let most = self.cask.counters().1.saturating_add(AHEAD_MAX);
            let fix = match self.inodes.contains_key(&dir) || dir >= most {
                true => Fix::DropItem(key),
                false => {
                    self.missing.insert(dir);
                    Fix::MakeDirectory(dir)
                }
            };
            let text = format!("names belong to directory {dir}, which does not exist");
            self.error("name", text, fix);
        }
        for entry in entries {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let place = Name {
                dir,
                hash: key.offset,
                name: entry.name.clone(),
            };
            if self.cask.name_hash(&entry.name) != key.offset {
                let text =
                    format!("directory {dir}: the name {name:?} cannot be found where it stands");
                self.error("name-hash", text, Fix::Rehash(place.clone()));
            }
            match self.inodes.get_mut(&entry.number) {
                None => {
                    let text = format!(
                        "directory {dir}: {name:?} names inode {}, which does not exist",
                        entry.number
                    );
                    self.dangling.push((entry.number, text, place));
                }
                Some(inode) if inode.kind != entry.kind => {
                    let text =
                        format!("directory {dir}: {name:?} is not the kind of file that it says");
                    let fix = Fix::SetNameKind(place, inode.kind);
                    self.error("name-kind", text, fix);
                }
                Some(inode) => {
                    inode.names += 1;
                    if inode.kind == FileKind::Directory {
                        inode.places.push(place);
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
            Err(error) => {
                let text = format!("inode {}: {error}", key.number);
                return self.error("attribute", text, Fix::DropItem(key));
            }
        }
        let inode = self.inodes.get(&key.number);
        if inode.is_none_or(|inode| !inode.attributes) {
            let fix = match inode {
                Some(_) => Fix::SetAttributed(key.number),
                None => Fix::DropItem(key),
            };
            let number = key.number;
            let text = format!("inode {number} has attributes that it does not know of");
            self.error("attribute", text, fix);
        }
    }

    fn segment(&mut self, key: Key, value: &[u8]) {
        let (home, number) = (key.number, key.offset);
        self.homes.insert(home);
        if let Err(error) = SegmentRecord::decode(value) {
            // That it is not listed follows from it.
            if let Some(inode) = self.inodes.get_mut(&number) {
                inode.home = 0;
            }
            let text = format!("directory {home}: {error}");
            return self.error("segment", text, Fix::DropItem(key));
        }
        match self.inodes.get_mut(&number) {
            Some(inode) if inode.home == home => inode.home = 0,
            _ => {
                let text = format!(
                    "inode {number} is listed as a segment of directory {home}, but is none"
                );
                self.error("segment", text, Fix::DropItem(key));
            }
        }
    }

    fn events(&mut self, key: Key, value: &[u8]) {
        match EventsRecord::decode(value) {
            Ok(record) => {
                let found = (INDEX, record.size.get());
                self.contents.insert(record.content.get(), found);
            }
            Err(error) => self.error("events", error.to_string(), Fix::DropItem(key)),
        }
    }

    /// A part of an order of arrival. Its inode comes before it.
    fn arrivals(&mut self, key: Key, value: &[u8]) {
        let dir = key.number;
        let directory = self.inodes.get(&dir);
        if directory.is_none_or(|inode| inode.kind != FileKind::Directory) {
            let text = format!("inode {dir} has an order of arrival, but is no directory");
            self.error("arrivals", text, Fix::DropItem(key));
        }
        match ArrivalsRecord::decode(value) {
            // Where its marks end is known by reading them only.
            Ok(record) => {
                let other = self.contents.insert(record.content.get(), (dir, u64::MAX));
                if let Some((other, _)) = other {
                    let text = format!("inodes {other} and {dir} claim the same content");
                    self.error("content-shared", text, Fix::DropItem(key));
                }
            }
            Err(error) => {
                let text = format!("directory {dir}: {error}");
                self.error("arrivals", text, Fix::DropItem(key));
            }
        }
    }

    fn content(&mut self, key: Key, value: &[u8]) {
        let size = u64::from(self.cask.block_size());
        let owned = self.contents.get(&key.number);
        let inside = owned.is_some_and(|(_, bytes)| key.offset < bytes.div_ceil(size));
        if inside || self.cask.is_hidden(key.number, key.offset) {
            return;
        }
        match owned {
            None => {
                let end = match ContentRecord::decode(value) {
                    Ok(ContentRecord::Inline(bytes)) => key
                        .offset
                        .saturating_mul(size)
                        .saturating_add(bytes.len() as u64),
                    Ok(record) => key
                        .offset
                        .saturating_add(record.blocks())
                        .saturating_mul(size),
                    Err(_) => 0,
                };
                let known = self.orphans.entry(key.number).or_default();
                *known = end.max(*known);
            }
            Some((inode, bytes)) => {
                let fix = Fix::CutContent(key.number, *bytes);
                let text = format!(
                    "inode {inode} has content past its end, at block {}",
                    key.offset
                );
                self.error("content-end", text, fix);
            }
        }
    }

    fn conclude(&mut self) {
        for (number, text, place) in std::mem::take(&mut self.dangling) {
            // A directory that holds names is made anew.
            let fix = Some(Fix::DropName(place)).filter(|_| !self.missing.contains(&number));
            self.error("name-dangling", text, fix);
        }
        for (content, bytes) in std::mem::take(&mut self.orphans) {
            let text = format!("content {content} belongs to no file");
            let fix = match bytes {
                0 => Fix::DropContent(content),
                bytes => Fix::Rescue(content, bytes.min(FILE_SIZE_MAX)),
            };
            self.error("content-orphan", text, fix);
        }
        self.counts();
        self.lists();
        let mut wrong = Vec::new();
        for number in self.inodes.keys() {
            self.inode_is_right(*number, &mut |code, text, fix| {
                wrong.push((code, format!("inode {number}: {text}"), fix));
            });
        }
        wrong.sort();
        for (code, text, fix) in wrong {
            self.error(code, text, fix);
        }
        let root = self.inodes.get(&ROOT);
        if root.is_none_or(|root| root.kind != FileKind::Directory) {
            let text = "there is no root directory".to_owned();
            self.error("root", text, Fix::MakeDirectory(ROOT));
        }
    }

    fn counts(&mut self) {
        let (files, next) = self.cask.counters();
        let (found, wipes) = (self.inodes.len() as u64, self.wipes);
        let recount = Fix::Recount(found, next.max(self.last + 1), wipes);
        if self.last > 0 {
            let text = format!("the next number to give out is {next}, which is in use");
            self.error("number", text, recount.clone());
        }
        if files != found {
            let text = format!("{files} files are counted, but there are {found}");
            self.error("file-count", text, recount.clone());
        }
        if self.cask.wipes() != wipes {
            let text = format!(
                "wiping is counted on {} files and directories, but is set on {wipes}",
                self.cask.wipes(),
            );
            self.error("wipe-count", text, recount);
        }
    }

    /// Who is to be listed is.
    fn lists(&mut self) {
        let mut warn = |code, text, fix| {
            self.report
                .add_fixable(Severity::Warning, code, None, text, Some(fix));
        };
        for home in self.homes.difference(&self.listed) {
            let text = format!(
                "directory {home} is not listed among those with segments: `ttl` does not see them"
            );
            warn("segment-home", text, Fix::ListHome(*home));
        }
        for number in self.mortal.difference(&self.listed_mortal) {
            let text = format!(
                "inode {number} is not listed among those with a `ttl`: files in its reach are removed late"
            );
            warn("ttl-list", text, Fix::ListTtl(*number));
        }
    }

    fn inode_is_right(
        &self,
        number: Number,
        add: &mut dyn FnMut(&'static str, String, Option<Fix>),
    ) {
        let Some(inode) = self.inodes.get(&number) else {
            return;
        };
        let directory = inode.kind == FileKind::Directory;
        let names = if number == ROOT { 1 } else { inode.names };
        if inode.orphan != (names == 0) {
            let fix = match inode.orphan {
                true => Fix::DropItem(Key::new(INDEX, Kind::Orphan, number)),
                false => Fix::Adopt(number),
            };
            let not = if inode.orphan { "" } else { "not " };
            let text = format!("{names} names, but it is {not}kept as an orphan");
            add("nameless", text, Some(fix));
        } else if inode.orphan && inode.entries > 0 {
            let text = "a directory that is to be removed holds names".to_owned();
            add("nameless", text, Some(Fix::Adopt(number)));
        }
        let links = match (directory, names) {
            (_, 0) => 0,
            (true, _) => 2 + inode.directories,
            (false, names) => names,
        };
        if inode.nlink != links {
            let text = format!("it counts {} links, but has {links}", inode.nlink);
            // Without a name it is given one first.
            let fix = Some(Fix::SetLinks(number, links)).filter(|_| names > 0 || inode.orphan);
            add("link-count", text, fix);
        }
        if inode.home != 0 {
            let text = format!(
                "it is a segment of directory {}, which does not list it",
                inode.home
            );
            add("segment", text, Some(Fix::ClearHome(number)));
        }
        // Of several names of a directory that counts to which it leads back.
        let kept = inode
            .places
            .iter()
            .position(|name| name.dir == inode.parent);
        if let (None, Some(place)) = (kept, inode.places.first()) {
            let dir = place.dir;
            let text = format!("it does not lead back to directory {dir}, where its name is");
            add("parent", text, Some(Fix::SetParent(number, place.clone())));
        }
        for (index, place) in inode.places.iter().enumerate() {
            if index != kept.unwrap_or(0) || number == ROOT {
                let text = "a directory with more than one name".to_owned();
                add("directory-twice", text, Some(Fix::DropName(place.clone())));
            }
        }
        if directory && inode.size != inode.entries {
            let text = format!(
                "it counts {} entries, but has {}",
                inode.size, inode.entries
            );
            add(
                "entry-count",
                text,
                Some(Fix::SetEntries(number, inode.entries)),
            );
        }
        if directory
            && names > 0
            && kept.is_some()
            && let Some(ring) = self.ring_of(number)
        {
            let text = "a directory that the root does not lead to".to_owned();
            // One of a ring is taken out of it; then the others have it above them.
            let fix = Some(Fix::Adopt(number)).filter(|_| ring == number);
            add("detached", text, fix);
        }
    }

    /// The least number of the ring of directories that a directory leads to, if it does not lead to the
    /// root.
    fn ring_of(&self, number: Number) -> Option<Number> {
        let mut at = number;
        for _ in 0..=self.inodes.len() {
            if at == ROOT {
                return None;
            }
            // What has no name itself gets one.
            let above = self.inodes.get(&at).filter(|inode| inode.names > 0);
            at = match above {
                Some(inode) => inode.parent,
                None => return Some(0),
            };
        }
        let (mut least, from) = (at, at);
        loop {
            at = self.inodes.get(&at)?.parent;
            least = least.min(at);
            if at == from {
                return Some(least);
            }
        }
    }
}
