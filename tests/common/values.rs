//! The reference for values and life times, written from SEMANTICS.md: a value changes in one step when
//! its handle is closed; what is over is as if it were gone.

use caskfs::clock::Timestamp;
use caskfs::format::FileKind;

use super::model::{Inode, ModelFs};
use super::op::Op;

/// The attribute that gives files an end.
pub const TTL: &[u8] = b"user.cask.ttl";

/// How a tree is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub now: Timestamp,
    /// Nobody has anything open.
    pub closed: bool,
    /// Files have an end, and who removes them changes the times of directories.
    pub mortal: bool,
}

impl View {
    /// A time as far as anything is said of it.
    pub fn mtime(self, is_dir: bool, mtime: Timestamp) -> Timestamp {
        match self.mortal && is_dir {
            true => Timestamp::default(),
            false => mtime,
        }
    }
}

/// An open handle.
#[derive(Clone, Debug)]
pub struct Slot {
    pub ino: u64,
    /// It writes a value.
    is_value: bool,
    draft: Option<Draft>,
}

/// What a handle has in hand.
#[derive(Clone, Debug)]
struct Draft {
    data: Vec<u8>,
    /// How often the file had been saved, and its time, when this was changed.
    seen: (u64, Timestamp),
}

impl ModelFs {
    pub fn is_value(&self, ino: u64) -> bool {
        self.inodes[&ino].kind == FileKind::Regular && self.settings_of(ino).is_value
    }

    /// Whether an operation that writes at a place writes a value, which is done in one step.
    pub fn writes_value(&self, op: &Op) -> bool {
        match op {
            Op::Write { path, .. } => self.find(path).is_ok_and(|ino| self.is_value(ino)),
            Op::WriteOpen { slot, .. } => self.slots.get(slot).is_some_and(|slot| slot.is_value),
            _ => false,
        }
    }

    /// The content was replaced, if it is a value.
    pub fn replaced(&mut self, ino: u64) {
        if self.is_value(ino) {
            self.inode(ino).saves += 1;
        }
    }

    pub fn opened(&self, ino: u64) -> Slot {
        Slot {
            ino,
            is_value: self.is_value(ino),
            draft: None,
        }
    }

    pub fn write_open(&mut self, slot: u8, offset: u64, data: &[u8]) {
        let Some(mut handle) = self.slots.remove(&slot) else {
            return;
        };
        if handle.is_value {
            let inode = &self.inodes[&handle.ino];
            let seen = (inode.saves, inode.mtime);
            let draft = handle.draft.get_or_insert_with(|| Draft {
                data: inode.data.clone(),
                seen,
            });
            draft.seen = seen;
            let end = offset as usize + data.len();
            draft.data.resize(draft.data.len().max(end), 0);
            draft.data[offset as usize..end].copy_from_slice(data);
        } else {
            self.write(handle.ino, offset, data);
        }
        self.slots.insert(slot, handle);
    }

    /// Saves what was written, and lets go.
    pub fn close(&mut self, slot: u8) {
        let now = self.now;
        if let Some(handle) = self.slots.get_mut(&slot)
            && let Some(draft) = handle.draft.take()
        {
            let ino = handle.ino;
            let inode = self.inode(ino);
            // A time that somebody gave the file meanwhile stays.
            if inode.saves != draft.seen.0 || inode.mtime == draft.seen.1 {
                inode.mtime = now;
            }
            inode.saves += 1;
            inode.data = draft.data;
            self.logs.told.push("saved");
        }
        self.let_go(slot);
    }

    /// The handle is gone, and what was not saved.
    pub fn let_go(&mut self, slot: u8) {
        if let Some(handle) = self.slots.remove(&slot) {
            self.inode(handle.ino).opens -= 1;
            self.reap(handle.ino);
        }
    }

    pub fn is_over(&self, ino: u64, view: View) -> bool {
        let inode = &self.inodes[&ino];
        let is_found = inode.nlink == 1 && inode.named.is_some();
        if inode.kind != FileKind::Regular || !is_found || !view.mortal {
            return false;
        }
        let is_open = inode.opens > 0 && !view.closed;
        let ttl = self.settings_of(ino).ttl.filter(|_| !self.is_log(ino));
        ttl.is_some_and(|ttl| {
            let Timestamp { secs, nanos } = inode.mtime;
            let end = Timestamp {
                secs: secs + ttl,
                nanos,
            };
            !is_open && end <= view.now
        })
    }

    pub fn is_over_now(&self, ino: u64) -> bool {
        self.is_over_at(ino, self.now)
    }

    fn is_over_at(&self, ino: u64, now: Timestamp) -> bool {
        let view = View {
            now,
            closed: false,
            mortal: self.mortal,
        };
        self.is_over(ino, view)
    }

    pub fn is_any_over_in(&self, view: View) -> bool {
        self.inodes.keys().any(|ino| self.is_over(*ino, view))
    }

    /// Whether what is over now would be back if its ttl changed, or may be.
    pub fn may_come_back(&self) -> bool {
        self.sealed || self.inodes.keys().any(|ino| self.is_over_now(*ino))
    }

    /// Whether nothing is in a directory that can be seen.
    pub fn is_empty(&self, dir: &Inode) -> bool {
        dir.entries.values().all(|ino| self.is_over_now(*ino))
    }

    /// What is over under this name goes.
    pub fn make_way(&mut self, dir: u64, name: &[u8]) {
        let there = self.inodes[&dir].entries.get(name).copied();
        if there.is_some_and(|ino| self.is_over_now(ino)) {
            let ino = self.detach(dir, name);
            self.drop_name(ino);
            self.logs.told.push("over in the way");
        }
    }

    /// What is over in a directory goes.
    pub fn clear(&mut self, dir: u64) {
        let names: Vec<_> = self.inodes[&dir].entries.keys().cloned().collect();
        for name in names {
            self.make_way(dir, &name);
        }
    }

    /// All that has been over for some time goes; what is over only now may stay for a while.
    pub fn sweep(&mut self) {
        let least = |ino: &u64| 2 + self.settings_of(*ino).ttl.unwrap_or_default() / 1000;
        let earlier = |ino: &u64| Timestamp {
            secs: self.now.secs - least(ino),
            ..self.now
        };
        let over: Vec<u64> = self
            .inodes
            .keys()
            .copied()
            .filter(|ino| self.is_over_at(*ino, earlier(ino)))
            .collect();
        for ino in over {
            if let Some((dir, name)) = self.inodes[&ino].named.clone() {
                let ino = self.detach(dir, &name);
                self.drop_name(ino);
                self.logs.told.push("swept");
            }
        }
    }
}
