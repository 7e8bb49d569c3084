//! A cask, driven by the same operations as the model and seen through the same eyes.
//!
//! The adapter plays the part of the kernel: it walks paths by lookup, opens before it writes, and
//! makes the checks that the kernel makes before a filesystem is asked.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use caskfs::Error;
use caskfs::cask::{Cask, Image, ImageRead, OpenOptions};
use caskfs::clock::{Clock, ManualClock, Timestamp};
use caskfs::device::testing::Rng;
use caskfs::device::{Device, MemoryDevice};
use caskfs::format::FileKind;
use caskfs::fs::inode::load;
use caskfs::fs::{Caller, OpenFlags, SetAttr, SetTime};
use caskfs::fsck;
use caskfs::store::{Entry, Store};

use super::model::{ModelFs, Outcome};
use super::op::{Op, Path};
use super::values::{TTL, View};

/// All that can be seen of one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DumpEntry {
    pub kind: FileKind,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub nlink: u32,
    pub mtime: Timestamp,
    /// Content of a regular file, target of a symbolic link.
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path that names the same inode, if this is not it.
    pub same_as: Option<Path>,
    /// It can be over some time: its only name is the one it was given last. Said only where files have an end.
    pub is_mortal: bool,
}

/// A whole tree, path by path.
pub type Dump = BTreeMap<Path, DumpEntry>;

/// Under this name the record of rolls stands in a dump.
pub const EVENTS: &str = ".cask";

/// Under this name it stands in a dump that the number of blocks is fixed.
pub const BOUNDS: &str = ".bounds";

/// What is no file, in a dump.
pub fn text_entry(lines: Vec<u8>) -> DumpEntry {
    DumpEntry {
        kind: FileKind::Regular,
        perm: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        nlink: 1,
        mtime: Timestamp::default(),
        data: lines,
        xattrs: BTreeMap::new(),
        same_as: None,
        is_mortal: false,
    }
}

/// A number that tells trees apart; quick, for it is computed after every crash.
pub fn fingerprint(dump: &Dump) -> u64 {
    let mut hasher = QuickHasher(0);
    dump.hash(&mut hasher);
    hasher.finish()
}

/// A number that tells images apart.
pub fn image_print(image: &[u8]) -> u64 {
    let (front, back) = image.split_at(image.len() / 2);
    u64::from(crc32c::crc32c(front)) << 32 | u64::from(crc32c::crc32c(back))
}

struct QuickHasher(u64);

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// In words, the first few differences of two trees.
pub fn differences(found: &Dump, wanted: &Dump) -> String {
    let mut lines = Vec::new();
    for (path, entry) in wanted {
        match found.get(path) {
            None => lines.push(format!("{path}: missing")),
            Some(other) if other != entry => {
                lines.push(format!(
                    "{path}: found {} wanted {}",
                    brief(other),
                    brief(entry)
                ));
                if let Some(at) = other.data.iter().zip(&entry.data).position(|(a, b)| a != b) {
                    lines.push(format!("  the first byte that differs is {at}"));
                }
            }
            Some(_) => {}
        }
    }
    let more = found.keys().filter(|path| !wanted.contains_key(*path));
    lines.extend(more.map(|path| format!("{path}: should not be there")));
    lines.truncate(12);
    lines.join("\n")
}

fn brief(entry: &DumpEntry) -> String {
    let DumpEntry {
        kind,
        perm,
        uid,
        gid,
        nlink,
        mtime,
        ..
    } = entry;
    format!(
        "{kind:?} {perm:o} {uid}:{gid} links {nlink} bytes {} mtime {}.{} xattrs {} same {:?} mortal {}",
        entry.data.len(),
        mtime.secs,
        mtime.nanos,
        entry.xattrs.len(),
        entry.same_as,
        entry.is_mortal,
    )
}

/// What is tested beside the model.
pub trait Subject {
    /// Does one operation at this time.
    fn apply(&mut self, op: &Op, now: Timestamp) -> Outcome;
    /// The tree as anybody can see it.
    fn dump(&self) -> Result<Dump, Error>;
}

/// Who asks in these tests: root, from nowhere.
pub const ROOT_CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    tid: 0,
};

/// A cask under the model's operations.
pub struct StoreSubject<D: Device> {
    store: Store<D>,
    clock: Arc<ManualClock>,
    slots: HashMap<u8, (u64, u64)>,
    /// Writers of logs.
    writers: HashMap<u8, (u64, u64)>,
    /// Seconds that the clock was moved on.
    pub ahead: i64,
    /// A ttl was given at some time.
    mortal: bool,
    spacing: u32,
    /// An image, and the model when it was taken.
    image: Option<(Image<D>, ModelFs)>,
    /// Bytes that the last write took.
    taken: Cell<usize>,
}

impl<D: Device> StoreSubject<D> {
    /// Opens (and recovers) the cask on `device`, whose superblock copies stand `spacing` apart.
    pub fn open(device: D, spacing: u32, now: Timestamp) -> Result<Self, Error> {
        let clock = Arc::new(ManualClock::new(now));
        let options = OpenOptions {
            read_only: false,
            superblock_spacing: Some(spacing),
            ..OpenOptions::default()
        };
        let cask = Arc::new(Cask::open(device, options)?);
        let store = Store::new(cask, Arc::clone(&clock) as Arc<dyn Clock>)?;
        Ok(Self {
            store,
            clock,
            slots: HashMap::new(),
            writers: HashMap::new(),
            ahead: 0,
            mortal: false,
            spacing,
            image: None,
            taken: Cell::new(0),
        })
    }

    /// Goes on where the model is.
    pub fn follow(&mut self, model: &ModelFs) {
        self.ahead = model.logs.ahead;
        self.mortal = model.mortal;
    }

    /// Sets the clock: nothing is done.
    pub fn look_at(&mut self, now: Timestamp) {
        self.clock.set(now);
    }

    /// What of `op`, which was done last and went well, was done: a full cask may take only the
    /// beginning of a write that goes over what is there.
    pub fn done(&self, op: &Op) -> Op {
        let mut op = op.clone();
        if let Op::Write { data, .. } | Op::Append { data, .. } | Op::WriteOpen { data, .. } =
            &mut op
        {
            data.len = data.len.min(self.taken.get());
        }
        op
    }

    /// Number of the last record.
    pub fn lsn(&self) -> u64 {
        self.store.cask().lsn()
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> usize {
        self.store.cask().stats().block_size as usize
    }

    /// Whether there may be no room for a few cuts.
    pub fn is_short(&self) -> bool {
        self.store.statfs().is_ok_and(|stat| stat.blocks_free < 300)
    }

    /// Takes an image of the cask as it is, with what the model says of it, and looks at the one before.
    pub fn take_image(&mut self, model: &ModelFs) -> Result<(), String> {
        self.look_at_image()?;
        let image = self.store.cask().image();
        let image = image.map_err(|error| format!("no image: {error}"))?;
        self.image = Some((image, model.clone()));
        Ok(())
    }

    /// Whether the cask in the image is whole and what the model was then.
    pub fn look_at_image(&mut self) -> Result<(), String> {
        let Some((image, model)) = self.image.take() else {
            return Ok(());
        };
        let mut bytes = vec![0; image.bytes() as usize];
        match image.read_at(0, &mut bytes) {
            // It was given up for those who write.
            Err(Error::Stale) => return Ok(()),
            read => read.map_err(|error| format!("an image cannot be read: {error}"))?,
        }
        let now = self.clock.now();
        let device = MemoryDevice::from_bytes(bytes);
        let mut copy = StoreSubject::open(device, self.spacing, now)
            .map_err(|error| format!("an image does not open: {error}"))?;
        copy.follow(&model);
        let found = copy.dump().map_err(|error| format!("an image: {error}"))?;
        let wanted = model.dump_as(View {
            closed: true,
            ..copy.view()
        });
        if found != wanted {
            return Err(format!("an image: {}", differences(&found, &wanted)));
        }
        let report = fsck::check(copy.store().cask(), true, &mut |_| {});
        let report = report.map_err(|error| format!("fsck of an image: {error}"))?;
        match report.findings.as_slice() {
            [] => Ok(()),
            findings => Err(format!("fsck of an image: {findings:#?}")),
        }
    }

    fn view(&self) -> View {
        View {
            now: self.clock.now(),
            closed: false,
            mortal: self.mortal,
        }
    }

    /// Notes what a write took.
    fn taken(&self, written: Result<usize, Error>) -> Result<(), Error> {
        written.map(|taken| self.taken.set(taken))
    }

    pub fn store(&self) -> &Store<D> {
        &self.store
    }

    fn find(&self, path: &Path) -> Result<Entry, Error> {
        let mut entry = self.store.getattr(1, None)?;
        for name in path.names() {
            self.check_dir(&entry)?;
            entry = self.store.lookup(&ROOT_CALLER, entry.attr.ino, name)?;
        }
        Ok(entry)
    }

    /// The kernel looks nothing up in what is no directory.
    fn check_dir(&self, entry: &Entry) -> Result<(), Error> {
        if entry.attr.kind == FileKind::Directory {
            Ok(())
        } else {
            Err(Error::NotDirectory)
        }
    }

    fn place<'p>(&self, path: &'p Path) -> Result<(u64, &'p [u8]), Error> {
        let (dir, name) = path.split().ok_or(Error::invalid("the root"))?;
        let dir = self.find(&dir)?;
        self.check_dir(&dir)?;
        Ok((dir.attr.ino, name))
    }

    /// As the kernel does before it asks to make a name.
    fn free_place<'p>(&self, path: &'p Path) -> Result<(u64, &'p [u8]), Error> {
        let (dir, name) = self.place(path)?;
        match self.store.lookup(&ROOT_CALLER, dir, name) {
            Ok(_) => Err(Error::Exists),
            Err(Error::NotFound) => Ok((dir, name)),
            Err(other) => Err(other),
        }
    }

    fn regular(&self, path: &Path) -> Result<u64, Error> {
        let attr = self.find(path)?.attr;
        match attr.kind {
            FileKind::Regular => Ok(attr.ino),
            FileKind::Directory => Err(Error::IsDirectory),
            _ => Err(Error::invalid("not a regular file")),
        }
    }

    fn attributed(&self, path: &Path) -> Result<u64, Error> {
        let attr = self.find(path)?.attr;
        match attr.kind {
            FileKind::Regular | FileKind::Directory => Ok(attr.ino),
            _ => Err(Error::NotPermitted("no user attributes here")),
        }
    }

    /// Opens for writing, runs `body`, closes.
    fn with_open<T>(
        &self,
        path: &Path,
        append: bool,
        body: impl FnOnce(u64, u64) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let ino = self.regular(path)?;
        let flags = OpenFlags {
            read: true,
            write: true,
            append,
            ..OpenFlags::default()
        };
        let fh = self.store.open(&ROOT_CALLER, ino, flags)?.fh;
        let result = body(ino, fh);
        self.store.flush(&ROOT_CALLER, ino, fh)?;
        self.store.release(ino, fh)?;
        result
    }

    fn set(&self, ino: u64, set: SetAttr) -> Result<(), Error> {
        self.store
            .setattr(&ROOT_CALLER, ino, None, &set)
            .map(|_| ())
    }

    fn close(&mut self, slot: u8) -> Result<(), Error> {
        let Some((ino, fh)) = self.slots.remove(&slot) else {
            return Ok(());
        };
        self.store.flush(&ROOT_CALLER, ino, fh)?;
        self.store.release(ino, fh)
    }

    fn close_log(&mut self, slot: u8) -> Result<(), Error> {
        let Some((ino, fh)) = self.writers.remove(&slot) else {
            return Ok(());
        };
        self.store.flush(&ROOT_CALLER, ino, fh)?;
        self.store.release(ino, fh)
    }

    /// What stands behind the root's door in `events`.
    pub fn events(&self) -> Result<Vec<u8>, Error> {
        let door = self.store.lookup(&ROOT_CALLER, 1, b".cask")?.attr.ino;
        let attr = self.store.lookup(&ROOT_CALLER, door, b"events")?.attr;
        self.content(attr.ino, attr.size)
    }

    fn run(&mut self, op: &Op) -> Result<(), Error> {
        let store = &self.store;
        let caller = &ROOT_CALLER;
        match op {
            Op::Create { path, perm } => {
                let (dir, name) = self.free_place(path)?;
                let flags = OpenFlags {
                    write: true,
                    exclusive: true,
                    ..OpenFlags::default()
                };
                let (entry, opened) = store.create(caller, dir, name, *perm, flags)?;
                store.flush(caller, entry.attr.ino, opened.fh)?;
                store.release(entry.attr.ino, opened.fh)
            }
            Op::Fifo { path, perm } => {
                let (dir, name) = self.free_place(path)?;
                store
                    .mknod(caller, dir, name, FileKind::Fifo, *perm, 0)
                    .map(|_| ())
            }
            Op::Mkdir { path, perm } => {
                let (dir, name) = self.free_place(path)?;
                store.mkdir(caller, dir, name, *perm).map(|_| ())
            }
            Op::Symlink { path, target } => {
                let (dir, name) = self.free_place(path)?;
                store.symlink(caller, dir, name, &target.0).map(|_| ())
            }
            Op::Link { from, to } => {
                let attr = self.find(from)?.attr;
                let (dir, name) = self.free_place(to)?;
                if attr.kind == FileKind::Directory {
                    return Err(Error::NotPermitted("a link to a directory"));
                }
                store.link(caller, attr.ino, dir, name).map(|_| ())
            }
            Op::Unlink { path } => {
                let (dir, name) = self.place(path)?;
                store.lookup(caller, dir, name)?;
                store.unlink(caller, dir, name)
            }
            Op::Rmdir { path } => {
                let (dir, name) = self.place(path)?;
                store.lookup(caller, dir, name)?;
                store.rmdir(caller, dir, name)
            }
            Op::Rename { from, to, flags } => {
                if flags.exchange && (flags.no_replace || flags.whiteout) {
                    return Err(Error::invalid("flags"));
                }
                let ((from_dir, from_name), (to_dir, to_name)) =
                    (self.place(from)?, self.place(to)?);
                store.lookup(caller, from_dir, from_name)?;
                match store.lookup(caller, to_dir, to_name) {
                    Ok(_) if flags.no_replace => return Err(Error::Exists),
                    Err(error) if flags.exchange || !matches!(error, Error::NotFound) => {
                        return Err(error);
                    }
                    _ => {}
                }
                if from.is_above(to) || (flags.exchange && to.is_above(from)) {
                    return Err(Error::invalid("a directory below itself"));
                }
                if to.is_above(from) {
                    return Err(Error::NotEmpty);
                }
                store.rename(caller, from_dir, from_name, to_dir, to_name, *flags)
            }
            Op::Write { path, offset, data } => self.with_open(path, false, |ino, fh| {
                self.taken(store.write(caller, ino, fh, *offset, &data.bytes()))
            }),
            Op::Append { path, data } => self.with_open(path, true, |ino, fh| {
                let end = store.getattr(ino, Some(fh))?.attr.size;
                self.taken(store.write(caller, ino, fh, end, &data.bytes()))
            }),
            Op::Truncate { path, len } => {
                let ino = self.regular(path)?;
                self.set(
                    ino,
                    SetAttr {
                        size: Some(*len),
                        ..SetAttr::default()
                    },
                )
            }
            Op::Punch { path, offset, len } => self.with_open(path, false, |ino, fh| {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                store.fallocate(ino, fh, mode, *offset, *len)
            }),
            Op::SetXattr { path, name, value } => {
                let ino = self.attributed(path)?;
                store.setxattr(caller, ino, &name.0, &value.bytes(), false, false)
            }
            Op::RemoveXattr { path, name } => {
                let ino = self.attributed(path)?;
                store.removexattr(caller, ino, &name.0)
            }
            Op::Chmod { path, perm } => {
                let attr = self.find(path)?.attr;
                if attr.kind == FileKind::Symlink {
                    return Err(Error::NotPermitted(
                        "links have no permissions of their own",
                    ));
                }
                self.set(
                    attr.ino,
                    SetAttr {
                        perm: Some(*perm),
                        ..SetAttr::default()
                    },
                )
            }
            Op::Chown { path, uid, gid } => {
                let ino = self.find(path)?.attr.ino;
                self.set(
                    ino,
                    SetAttr {
                        uid: Some(*uid),
                        gid: Some(*gid),
                        ..SetAttr::default()
                    },
                )
            }
            Op::Utimens { path, mtime } => {
                let ino = self.find(path)?.attr.ino;
                let mtime = Some(SetTime::At(*mtime));
                self.set(
                    ino,
                    SetAttr {
                        mtime,
                        ..SetAttr::default()
                    },
                )
            }
            Op::Open { path, slot } => {
                let ino = self.regular(path)?;
                let flags = OpenFlags {
                    read: true,
                    write: true,
                    ..OpenFlags::default()
                };
                let fh = store.open(caller, ino, flags)?.fh;
                self.close(*slot)?;
                self.slots.insert(*slot, (ino, fh));
                Ok(())
            }
            Op::Close { slot } => self.close(*slot),
            Op::WriteOpen { slot, offset, data } => match self.slots.get(slot) {
                Some((ino, fh)) => {
                    self.taken(store.write(caller, *ino, *fh, *offset, &data.bytes()))
                }
                None => self.taken(Ok(data.len)),
            },
            Op::Fsync { path } => {
                self.with_open(path, false, |ino, fh| store.fsync(ino, fh, false))
            }
            Op::Sync => store.cask().sync(store.cask().lsn()),
            Op::Checkpoint => store.cask().checkpoint(),
            Op::Tick => store.tick(),
            Op::Set { path, name, value } => {
                let ino = self.attributed(path)?;
                let name = [b"user.cask.".as_slice(), &name.0].concat();
                store.setxattr(caller, ino, &name, &value.0, false, false)?;
                self.mortal |= name == TTL;
                Ok(())
            }
            Op::LogOpen { path, slot } => {
                let (dir, name) = self.place(path)?;
                let flags = OpenFlags {
                    write: true,
                    append: true,
                    ..OpenFlags::default()
                };
                let opened = match store.lookup(caller, dir, name) {
                    Ok(_) => {
                        let ino = self.regular(path)?;
                        (ino, store.open(caller, ino, flags)?.fh)
                    }
                    Err(Error::NotFound) => {
                        let (entry, opened) = store.create(caller, dir, name, 0o644, flags)?;
                        (entry.attr.ino, opened.fh)
                    }
                    Err(error) => return Err(error),
                };
                self.close_log(*slot)?;
                self.writers.insert(*slot, opened);
                Ok(())
            }
            Op::Line { slot, data } => match self.writers.get(slot) {
                Some((ino, fh)) => store
                    .write(caller, *ino, *fh, 0, &data.text())
                    .map(|taken| assert_eq!(taken, data.len, "a record was torn")),
                None => Ok(()),
            },
            Op::LogClose { slot } => self.close_log(*slot),
            Op::Rotate { path } => {
                let (dir, name) = self.place(path)?;
                store.rotate(caller, dir, name)
            }
            Op::Clock { secs } => {
                self.ahead += secs;
                Ok(())
            }
            Op::Sweep => store.make_room().map(drop),
            Op::Fix { more } => {
                let blocks = store.cask().stats().blocks + more;
                store.cask().resize_blocks(Some(blocks))
            }
            // See `take_image`.
            Op::Snapshot => store.cask().checkpoint(),
            Op::Bare { op } => self.run(op),
        }
    }

    fn dump_below(
        &self,
        path: &Path,
        entry: &Entry,
        dump: &mut Dump,
        first: &mut HashMap<u64, Path>,
    ) -> Result<(), Error> {
        let attr = entry.attr;
        let known = first.get(&attr.ino).cloned();
        first.entry(attr.ino).or_insert_with(|| path.clone());
        let data = match attr.kind {
            FileKind::Regular => self.content(attr.ino, attr.size)?,
            FileKind::Symlink => self.store.readlink(attr.ino)?,
            _ => Vec::new(),
        };
        let mut xattrs = BTreeMap::new();
        for name in self.store.listxattr(attr.ino)? {
            let value = self.store.getxattr(attr.ino, &name)?;
            xattrs.insert(name, value);
        }
        let entry = DumpEntry {
            kind: attr.kind,
            perm: attr.perm,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            nlink: attr.nlink,
            mtime: self
                .view()
                .mtime(attr.kind == FileKind::Directory, attr.mtime),
            data,
            xattrs,
            same_as: known,
            is_mortal: self.mortal
                && attr.kind == FileKind::Regular
                && attr.nlink == 1
                && load(&**self.store.cask(), attr.ino)?.parent != 0,
        };
        dump.insert(path.clone(), entry);
        if attr.kind == FileKind::Directory {
            let mut names = Vec::new();
            self.store.readdir(attr.ino, 0, false, &mut |entry, _| {
                if entry.name != b"." && entry.name != b".." {
                    names.push((entry.name.clone(), entry.ino, entry.kind));
                }
                true
            })?;
            names.sort();
            for (name, ino, kind) in names {
                let child = self.store.lookup(&ROOT_CALLER, attr.ino, &name)?;
                if (child.attr.ino, child.attr.kind) != (ino, kind) {
                    return Err(Error::corrupt("a listed entry is not what lookup finds", 0));
                }
                self.dump_below(&path.join(&name), &child, dump, first)?;
            }
        }
        Ok(())
    }

    fn content(&self, ino: u64, size: u64) -> Result<Vec<u8>, Error> {
        let flags = OpenFlags {
            read: true,
            ..OpenFlags::default()
        };
        let fh = self.store.open(&ROOT_CALLER, ino, flags)?.fh;
        let mut buf = Vec::new();
        let len = u32::try_from(size).map_err(|_| Error::corrupt("an absurd size", size))?;
        let result = self.store.read(ino, fh, 0, len, &mut buf);
        self.store.release(ino, fh)?;
        result?;
        if buf.len() as u64 == size {
            Ok(buf)
        } else {
            Err(Error::corrupt("a short read", size))
        }
    }
}

impl<D: Device> Subject for StoreSubject<D> {
    fn apply(&mut self, op: &Op, now: Timestamp) -> Outcome {
        self.clock.set(Timestamp {
            secs: now.secs + self.ahead,
            ..now
        });
        self.run(op).map_err(|error| error.errno())
    }

    fn dump(&self) -> Result<Dump, Error> {
        let mut dump = Dump::new();
        let root = self.store.getattr(1, None)?;
        self.dump_below(&Path::default(), &root, &mut dump, &mut HashMap::new())?;
        if self.store.cask().stats().blocks_limit.is_some() {
            dump.insert(Path::new(BOUNDS), text_entry(b"fixed".to_vec()));
        }
        let events = self.events()?;
        if !events.is_empty() {
            dump.insert(Path::new(EVENTS), text_entry(events));
        }
        Ok(dump)
    }
}

/// The time at which operation number `op` is done: no two alike, so that none goes unseen.
pub fn time_of(op: usize) -> Timestamp {
    let nanos = Rng::derived(7, op as u64).below(1_000_000_000) as u32;
    Timestamp {
        secs: 1_000_000 + op as i64,
        nanos,
    }
}
