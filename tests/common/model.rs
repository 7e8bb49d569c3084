//! The reference: what a POSIX filesystem does, as shortly as it can be said.
//!
//! No blocks, no log, no cache; every operation is one step and nothing is ever lost. A cask is right
//! if after each operation it answers the same and looks the same, and after a crash looks like
//! this model did after some number of the operations.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use caskfs::clock::Timestamp;
use caskfs::format::FileKind;
use caskfs::fs::RenameFlags;
use libc::{
    EEXIST, EINVAL, EISDIR, ENAMETOOLONG, ENODATA, ENOENT, ENOTDIR, ENOTEMPTY, EOPNOTSUPP, EPERM,
};

use super::logs::{Logs, Mark, Name};
use super::op::{Op, Path};
use super::subject::{BOUNDS, Dump, DumpEntry, EVENTS, text_entry};
use super::values::{Slot, View};

/// An operation's outcome: nothing, or an errno.
pub type Outcome = Result<(), i32>;

const ROOT: u64 = 1;

#[derive(Clone, Debug)]
pub struct Inode {
    pub kind: FileKind,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    rdev: u64,
    pub nlink: u32,
    pub mtime: Timestamp,
    /// Content of a regular file, target of a symbolic link.
    pub data: Vec<u8>,
    pub entries: BTreeMap<Vec<u8>, u64>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Handles open on it.
    pub opens: u32,
    /// How often a value was saved in it.
    pub saves: u64,
    /// The name given last, as long as it is there.
    pub named: Option<Name>,
    /// It is a segment.
    pub mark: Option<Mark>,
}

impl Inode {
    pub fn new(kind: FileKind, perm: u32, now: Timestamp) -> Self {
        let nlink = if kind == FileKind::Directory { 2 } else { 1 };
        Self {
            kind,
            perm,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink,
            mtime: now,
            data: Vec::new(),
            entries: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            opens: 0,
            saves: 0,
            named: None,
            mark: None,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

/// The reference filesystem.
#[derive(Clone, Debug)]
pub struct ModelFs {
    /// Shared with the moments that were kept of it.
    pub inodes: BTreeMap<u64, Arc<Inode>>,
    next: u64,
    pub slots: HashMap<u8, Slot>,
    pub now: Timestamp,
    pub logs: Logs,
    /// A ttl was given at some time: then nobody knows when directories change by removal.
    pub mortal: bool,
    /// It is not known what is still there of what is over: no ttl may change.
    pub sealed: bool,
    /// The number of blocks is fixed.
    pub fixed: bool,
    /// What the last operation was seen as on its way, if it is not one step.
    pub moments: Vec<ModelFs>,
}

impl ModelFs {
    /// An empty filesystem whose root has these permissions and this time.
    pub fn new(root_perm: u32, now: Timestamp) -> Self {
        let root = Inode::new(FileKind::Directory, root_perm, now);
        Self {
            inodes: BTreeMap::from([(ROOT, Arc::new(root))]),
            next: 2,
            slots: HashMap::new(),
            now,
            logs: Logs::default(),
            mortal: false,
            sealed: false,
            fixed: false,
            moments: Vec::new(),
        }
    }

    /// Does one operation at this time.
    pub fn apply(&mut self, op: &Op, now: Timestamp) -> Outcome {
        self.look_at(now);
        let now = self.now;
        self.moments.clear();
        self.logs.told.clear();
        match op {
            Op::Create { path, perm } => self.make(path, Inode::new(FileKind::Regular, *perm, now)),
            Op::Fifo { path, perm } => self.make(path, Inode::new(FileKind::Fifo, *perm, now)),
            Op::Mkdir { path, perm } => {
                self.make(path, Inode::new(FileKind::Directory, *perm, now))
            }
            Op::Symlink { path, target } => {
                let mut link = Inode::new(FileKind::Symlink, 0o777, now);
                link.data = target.0.clone();
                self.make(path, link)
            }
            Op::Link { from, to } => self.link(from, to),
            Op::Unlink { path } => self.unlink(path),
            Op::Rmdir { path } => self.rmdir(path),
            Op::Rename { from, to, flags } => self.rename(from, to, *flags),
            Op::Write { path, offset, data } => {
                let ino = self.regular(path)?;
                self.write(ino, *offset, &data.bytes());
                self.replaced(ino);
                Ok(())
            }
            Op::Append { path, data } => {
                let ino = self.regular(path)?;
                if self.is_log(ino) {
                    return self.append_once(ino, &data.bytes());
                }
                self.write(ino, self.inodes[&ino].data.len() as u64, &data.bytes());
                self.replaced(ino);
                Ok(())
            }
            Op::Truncate { path, len } => {
                let ino = self.regular(path)?;
                if let Some(name) = self.inodes[&ino].named.clone().filter(|_| *len == 0) {
                    self.begins_anew(&name);
                }
                let inode = self.inode(ino);
                inode.data.resize(*len as usize, 0);
                inode.mtime = now;
                self.replaced(ino);
                Ok(())
            }
            Op::Punch { path, offset, len } => {
                let ino = self.regular(path)?;
                if self.is_value(ino) {
                    return Err(EOPNOTSUPP);
                }
                let inode = self.inode(ino);
                // As ext4: beyond the end there is nothing to do, not even to the time.
                if *offset < inode.data.len() as u64 {
                    let end = offset.saturating_add(*len).min(inode.data.len() as u64);
                    inode.data[*offset as usize..end as usize].fill(0);
                    inode.mtime = now;
                }
                Ok(())
            }
            Op::SetXattr { path, name, value } => {
                let ino = self.attributed(path)?;
                self.inode(ino).xattrs.insert(name.0.clone(), value.bytes());
                Ok(())
            }
            Op::RemoveXattr { path, name } => {
                let ino = self.attributed(path)?;
                self.inode(ino)
                    .xattrs
                    .remove(&name.0)
                    .map(|_| ())
                    .ok_or(ENODATA)
            }
            Op::Chmod { path, perm } => {
                let ino = self.find(path)?;
                if self.inodes[&ino].kind == FileKind::Symlink {
                    return Err(EPERM);
                }
                self.inode(ino).perm = *perm;
                Ok(())
            }
            Op::Chown { path, uid, gid } => {
                let ino = self.find(path)?;
                let inode = self.inode(ino);
                (inode.uid, inode.gid) = (*uid, *gid);
                Ok(())
            }
            Op::Utimens { path, mtime } => {
                let ino = self.find(path)?;
                self.inode(ino).mtime = *mtime;
                Ok(())
            }
            Op::Open { path, slot } => {
                let ino = self.regular(path)?;
                self.inode(ino).opens += 1;
                self.close(*slot);
                self.slots.insert(*slot, self.opened(ino));
                Ok(())
            }
            Op::Close { slot } => {
                self.close(*slot);
                Ok(())
            }
            Op::WriteOpen { slot, offset, data } => {
                self.write_open(*slot, *offset, &data.bytes());
                Ok(())
            }
            Op::Fsync { path } => self.regular(path).map(|_| ()),
            Op::Sync | Op::Checkpoint | Op::Snapshot => Ok(()),
            Op::Fix { .. } => {
                self.fixed = true;
                Ok(())
            }
            Op::Sweep => {
                self.sweep();
                Ok(())
            }
            of_logs => self.log_op(of_logs),
        }
    }

    /// It is this time, and nothing is done.
    pub fn look_at(&mut self, now: Timestamp) {
        self.now = Timestamp {
            secs: now.secs + self.logs.ahead,
            ..now
        };
    }

    /// The process died: all handles are closed, and what had no name is gone.
    pub fn crash(&mut self) {
        let slots: Vec<u8> = self.slots.keys().copied().collect();
        for slot in slots {
            self.let_go(slot);
        }
        self.crash_logs();
    }

    /// The tree as anybody can see it now.
    pub fn dump(&self) -> Dump {
        self.dump_as(View {
            now: self.now,
            closed: false,
            mortal: self.mortal,
        })
    }

    pub fn dump_as(&self, view: View) -> Dump {
        let mut dump = Dump::default();
        self.dump_below(&Path::default(), ROOT, view, &mut dump, &mut HashMap::new());
        if !self.logs.events.is_empty() {
            dump.insert(Path::new(EVENTS), text_entry(self.logs.events.clone()));
        }
        if self.fixed {
            dump.insert(Path::new(BOUNDS), text_entry(b"fixed".to_vec()));
        }
        dump
    }

    fn dump_below(
        &self,
        path: &Path,
        ino: u64,
        view: View,
        dump: &mut Dump,
        first: &mut HashMap<u64, Path>,
    ) {
        let inode = &self.inodes[&ino];
        let same_as = first.get(&ino).cloned();
        first.entry(ino).or_insert_with(|| path.clone());
        dump.insert(
            path.clone(),
            DumpEntry {
                kind: inode.kind,
                perm: inode.perm,
                uid: inode.uid,
                gid: inode.gid,
                rdev: inode.rdev,
                nlink: inode.nlink,
                mtime: view.mtime(inode.is_dir(), inode.mtime),
                data: inode.data.clone(),
                xattrs: inode.xattrs.clone(),
                same_as,
                is_mortal: view.mortal
                    && inode.kind == FileKind::Regular
                    && inode.nlink == 1
                    && inode.named.is_some(),
            },
        );
        for (name, child) in &inode.entries {
            if !self.is_over(*child, view) {
                self.dump_below(&path.join(name), *child, view, dump, first);
            }
        }
    }

    pub fn inode(&mut self, ino: u64) -> &mut Inode {
        let inode = self.inodes.get_mut(&ino);
        Arc::make_mut(inode.expect("the model never loses an inode that has a name"))
    }

    pub fn find(&self, path: &Path) -> Result<u64, i32> {
        path.names()
            .try_fold(ROOT, |dir, name| self.entry(dir, name))
    }

    fn find_dir(&self, path: &Path) -> Result<u64, i32> {
        let ino = self.find(path)?;
        if self.inodes[&ino].is_dir() {
            Ok(ino)
        } else {
            Err(ENOTDIR)
        }
    }

    pub fn entry(&self, dir: u64, name: &[u8]) -> Result<u64, i32> {
        let dir = &self.inodes[&dir];
        if !dir.is_dir() {
            return Err(ENOTDIR);
        }
        if name.len() > 255 {
            return Err(ENAMETOOLONG);
        }
        let ino = dir.entries.get(name).copied().ok_or(ENOENT)?;
        match self.is_over_now(ino) {
            true => Err(ENOENT),
            false => Ok(ino),
        }
    }

    /// The directory that a path's last name stands in, and what the name stands for.
    pub fn place<'p>(&self, path: &'p Path) -> Result<(u64, &'p [u8], Option<u64>), i32> {
        let (dir, name) = path.split().ok_or(EINVAL)?;
        let dir = self.find(&dir)?;
        match self.entry(dir, name) {
            Ok(ino) => Ok((dir, name, Some(ino))),
            Err(ENOENT) => Ok((dir, name, None)),
            Err(errno) => Err(errno),
        }
    }

    fn regular(&self, path: &Path) -> Result<u64, i32> {
        let ino = self.find(path)?;
        match self.inodes[&ino].kind {
            FileKind::Regular => Ok(ino),
            FileKind::Directory => Err(EISDIR),
            _ => Err(EINVAL),
        }
    }

    /// A file that can have attributes of users.
    pub fn attributed(&self, path: &Path) -> Result<u64, i32> {
        let ino = self.find(path)?;
        match self.inodes[&ino].kind {
            FileKind::Regular | FileKind::Directory => Ok(ino),
            _ => Err(EPERM),
        }
    }

    fn make(&mut self, path: &Path, inode: Inode) -> Outcome {
        let (dir, name, None) = self.place(path)? else {
            return Err(EEXIST);
        };
        self.insert(dir, name, inode);
        Ok(())
    }

    pub fn insert(&mut self, dir: u64, name: &[u8], inode: Inode) -> u64 {
        let ino = self.next;
        self.next += 1;
        self.inodes.insert(ino, Arc::new(inode));
        self.attach(dir, name, ino);
        ino
    }

    pub fn attach(&mut self, dir: u64, name: &[u8], ino: u64) {
        let (now, is_dir) = (self.now, self.inodes[&ino].is_dir());
        self.make_way(dir, name);
        self.inode(ino).named = Some((dir, name.to_vec()));
        let dir = self.inode(dir);
        dir.entries.insert(name.to_vec(), ino);
        dir.nlink += u32::from(is_dir);
        dir.mtime = now;
    }

    pub fn detach(&mut self, dir: u64, name: &[u8]) -> u64 {
        let now = self.now;
        let ino = self
            .inode(dir)
            .entries
            .remove(name)
            .expect("looked up before");
        let is_dir = self.inodes[&ino].is_dir();
        let named = &mut self.inode(ino).named;
        *named = named.take().filter(|n| *n != (dir, name.to_vec()));
        let dir = self.inode(dir);
        dir.nlink -= u32::from(is_dir);
        dir.mtime = now;
        ino
    }

    /// One name less; the inode goes with its last name and handle.
    pub fn drop_name(&mut self, ino: u64) {
        let inode = self.inode(ino);
        inode.nlink = if inode.is_dir() { 0 } else { inode.nlink - 1 };
        self.reap(ino);
    }

    pub fn reap(&mut self, ino: u64) {
        if self.inodes[&ino].nlink == 0 && self.inodes[&ino].opens == 0 {
            self.inodes.remove(&ino);
        }
    }

    pub fn write(&mut self, ino: u64, offset: u64, data: &[u8]) {
        let now = self.now;
        let inode = self.inode(ino);
        let end = offset as usize + data.len();
        inode.data.resize(inode.data.len().max(end), 0);
        inode.data[offset as usize..end].copy_from_slice(data);
        inode.mtime = now;
    }

    fn link(&mut self, from: &Path, to: &Path) -> Outcome {
        let ino = self.find(from)?;
        let (dir, name, existing) = self.place(to)?;
        if existing.is_some() {
            return Err(EEXIST);
        }
        if self.inodes[&ino].is_dir() {
            return Err(EPERM);
        }
        // A log that is being written has one name only.
        if (self.inodes[&ino].named.as_ref()).is_some_and(|name| self.is_bound(name)) {
            return Err(EPERM);
        }
        self.inode(ino).nlink += 1;
        self.attach(dir, name, ino);
        Ok(())
    }

    fn unlink(&mut self, path: &Path) -> Outcome {
        let (dir, name, ino) = self.place(path)?;
        if self.inodes[&ino.ok_or(ENOENT)?].is_dir() {
            return Err(EISDIR);
        }
        self.loses(&(dir, name.to_vec()), ino.ok_or(ENOENT)?);
        let ino = self.detach(dir, name);
        self.drop_name(ino);
        Ok(())
    }

    fn rmdir(&mut self, path: &Path) -> Outcome {
        let (dir, name, ino) = self.place(path)?;
        let inode = &self.inodes[&ino.ok_or(ENOENT)?];
        if !inode.is_dir() {
            return Err(ENOTDIR);
        }
        if !self.is_empty(inode) {
            return Err(ENOTEMPTY);
        }
        self.clear(ino.ok_or(ENOENT)?);
        let ino = self.detach(dir, name);
        self.drop_name(ino);
        Ok(())
    }

    /// In the order of checks of Linux.
    fn rename(&mut self, from: &Path, to: &Path, flags: RenameFlags) -> Outcome {
        if flags.exchange && (flags.no_replace || flags.whiteout) {
            return Err(EINVAL);
        }
        let (from_dir, from_name) = from.split().ok_or(EINVAL)?;
        let (to_dir, to_name) = to.split().ok_or(EINVAL)?;
        let (from_dir, to_dir) = (self.find_dir(&from_dir)?, self.find_dir(&to_dir)?);
        let source = self.entry(from_dir, from_name)?;
        let target = match self.entry(to_dir, to_name) {
            Err(ENOENT) => None,
            found => Some(found?),
        };
        if flags.no_replace && target.is_some() {
            return Err(EEXIST);
        }
        if flags.exchange && target.is_none() {
            return Err(ENOENT);
        }
        if from.is_above(to) {
            return Err(EINVAL);
        }
        if to.is_above(from) {
            return Err(if flags.exchange { EINVAL } else { ENOTEMPTY });
        }
        let (log, segment) = ((from_dir, from_name.to_vec()), (to_dir, to_name.to_vec()));
        if flags.exchange && (self.is_bound(&log) || self.is_bound(&segment)) {
            return Err(EINVAL);
        }
        if Some(source) == target {
            return Ok(());
        }
        // The old name of a live log stays free for it.
        if flags.whiteout && self.is_bound(&log) {
            return Err(EINVAL);
        }
        if flags.exchange {
            let (a, b) = (
                self.detach(from_dir, from_name),
                self.detach(to_dir, to_name),
            );
            self.attach(from_dir, from_name, b);
            self.attach(to_dir, to_name, a);
            return Ok(());
        }
        if let Some(target) = target {
            let (old, new) = (&self.inodes[&source], &self.inodes[&target]);
            match (old.is_dir(), new.is_dir()) {
                (true, false) => return Err(ENOTDIR),
                (false, true) => return Err(EISDIR),
                (true, true) if !self.is_empty(new) => return Err(ENOTEMPTY),
                _ => {}
            }
            self.clear(target);
            self.loses(&segment, target);
            self.detach(to_dir, to_name);
            self.drop_name(target);
        }
        let is_cut = self.is_bound(&log) && self.inodes[&source].kind == FileKind::Regular;
        let cut = is_cut.then(|| self.before_cut(&log, source));
        self.detach(from_dir, from_name);
        self.attach(to_dir, to_name, source);
        self.begins_anew(&segment);
        match cut {
            Some(cut) => self.cut("rename", &log, &segment, cut, None),
            None => self.begins_anew(&log),
        }
        if flags.whiteout {
            let ino = self.next;
            self.next += 1;
            let whiteout = Inode::new(FileKind::CharDevice, 0, self.now);
            self.inodes.insert(ino, Arc::new(whiteout));
            self.attach(from_dir, from_name, ino);
        }
        Ok(())
    }
}
