//! Value mode: the content is replaced in one step when the writing handle is closed.
//!
//! A write handle owns a [`Draft`]. Writes, truncations and seeks touch the draft alone; readers see
//! the old content until the draft is saved, which is one transaction: the inode is given a new
//! content number. A draft beyond [`MEMORY_MAX`] lives in the cask, as the content of a *spare*: an
//! inode without a name, which a crash leaves to be removed at the next mount. Saving it exchanges
//! the two content numbers.
//!
//! A reader that has begun goes on in the content it began with (see [`pins`](super::pins)).
//!
//! Invariant: the content of a file in value mode is, at every moment, what some writer had when it
//! saved. What saving a draft takes is set aside when it is written, so that `write(2)` and not
//! `close(2)` says that there is no space. A draft that is cut off to nothing gives space back.

use super::handle::{Handle, Kind};
use super::pins::Replaced;
use super::settings::Mode;
use super::{NOBODY, Notice, Opened, Store};
use crate::cask::{Class, Lsn, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::item::FLAG_SPARSE;
use crate::format::key::Number;
use crate::fs::inode::{Inode, load, save};
use crate::fs::{Caller, OpenFlags, SetAttr, data};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Most bytes of a draft in memory.
const MEMORY_MAX: usize = 1 << 20;
/// Most bytes of all drafts in memory: one more goes into the cask, however small.
const ALL_MEMORY_MAX: u64 = 64 << 20;

/// Bytes of all drafts in memory.
#[derive(Debug, Default)]
pub struct Pending(AtomicU64);

#[cfg(test)]
impl Pending {
    /// Bytes of all drafts in memory.
    pub fn in_memory(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Where the content of a draft is.
#[derive(Debug)]
enum Content {
    /// It is the file's own.
    File,
    /// Here.
    Memory(Vec<u8>),
    /// In the cask, under a spare inode. Its size.
    Spare(Number, u64),
}

impl Content {
    /// Its size, as far as it is not the file's.
    fn held(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spare(_, size) => *size,
            Self::File => 0,
        }
    }
}

#[derive(Debug)]
struct State {
    content: Content,
    /// It differs from what was last saved through this handle.
    dirty: bool,
    /// Content number and mtime of the file when the draft was last changed: if the file has another
    /// mtime but still this content when the draft is saved, somebody set it, and it stays.
    seen: (Number, Timestamp),
    /// Blocks set aside for saving it, while it is in memory.
    promised: u64,
    /// The file as it was when the handle began to read it.
    pin: Option<Inode>,
}

/// What the handle of a value has in hand; for a reader never more than the file itself.
#[derive(Debug)]
pub struct Draft(Mutex<State>);

impl Draft {
    /// A draft that starts with the file's content.
    pub fn of_file() -> Self {
        Self(Mutex::new(State {
            content: Content::File,
            dirty: false,
            seen: (0, Timestamp::default()),
            promised: 0,
            pin: None,
        }))
    }

    /// An empty draft that will replace the content even if nothing is written.
    pub fn empty() -> Self {
        let draft = Self::of_file();
        {
            let mut state = draft.0.lock();
            state.content = Content::Memory(Vec::new());
            state.dirty = true;
        }
        draft
    }

    /// Its size in bytes; `None` while it is the file's own.
    pub fn size(&self) -> Option<u64> {
        match &self.0.lock().content {
            Content::File => None,
            Content::Memory(bytes) => Some(bytes.len() as u64),
            Content::Spare(_, size) => Some(*size),
        }
    }

    /// Whether there is something to save.
    pub fn is_dirty(&self) -> bool {
        self.0.lock().dirty
    }
}

impl<D: Device> Store<D> {
    /// Opens a value, to read or to write.
    pub(super) fn open_value(&self, ino: Number, flags: OpenFlags) -> Result<Opened> {
        let inode = self.fs.open(ino)?;
        let draft = if flags.truncate {
            Draft::empty()
        } else {
            Draft::of_file()
        };
        draft.0.lock().seen = (inode.content, inode.mtime);
        Ok(self.opened(ino, flags, Kind::Value(draft), Mode::Value))
    }

    /// Reads what the handle has in hand.
    pub(super) fn read_value(
        &self,
        handle: &Handle,
        draft: &Draft,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        let mut state = draft.0.lock();
        match &state.content {
            Content::File => self.read_pinned(handle.ino, &mut state.pin, offset, size, buf),
            Content::Spare(spare, _) => self.fs.read(*spare, offset, size, buf),
            Content::Memory(bytes) => {
                let from = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let to = from.saturating_add(size as usize).min(bytes.len());
                buf.clear();
                buf.extend_from_slice(bytes.get(from..to).unwrap_or_default());
                Ok(())
            }
        }
    }

    /// Reads the file as it was when the handle began to. It begins again with a read at the start,
    /// and when it has been told that there is no more.
    fn read_pinned(
        &self,
        ino: Number,
        pin: &mut Option<Inode>,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        if self.cask.read_only().is_some() {
            return self.fs.read(ino, offset, size, buf);
        }
        let inode = match *pin {
            Some(inode) if offset != 0 && self.pins.is_whole(inode.content) => inode,
            _ => {
                self.let_pin_go(pin)?;
                *pin.insert(self.pin(ino)?)
            }
        };
        data::read(&*self.cask, &inode, offset, size, buf)?;
        if buf.is_empty() && size > 0 {
            self.let_pin_go(pin)?;
        }
        Ok(())
    }

    fn let_pin_go(&self, pin: &mut Option<Inode>) -> Result<()> {
        pin.take().map_or(Ok(()), |inode| self.unpin(inode.content))
    }

    /// Writes into the draft.
    pub(super) fn write_value(
        &self,
        caller: &Caller,
        handle: &Handle,
        draft: &Draft,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        self.change_draft(handle, draft, |state| {
            self.load_draft(handle, state)?;
            let offset = match &state.content {
                Content::Memory(content) if handle.flags.append => content.len() as u64,
                Content::Spare(_, size) if handle.flags.append => *size,
                _ => offset,
            };
            let end = data::end_of(offset, bytes.len() as u64)?;
            self.check_limit(handle.ino, state.content.held(), end)?;
            if let Content::Memory(_) = state.content {
                self.resize(state, end, true)?;
            }
            match &mut state.content {
                Content::Memory(content) => {
                    let from = usize::try_from(offset).unwrap_or(usize::MAX);
                    if let Some(target) = content.get_mut(from..from.saturating_add(bytes.len())) {
                        target.copy_from_slice(bytes);
                    }
                }
                Content::Spare(spare, size) => {
                    self.fs.write(caller, *spare, Some(offset), bytes)?;
                    *size = end.max(*size);
                }
                Content::File => {}
            }
            Ok(())
        })
    }

    /// `ftruncate(2)` of a draft.
    pub(super) fn truncate_value(&self, handle: &Handle, draft: &Draft, size: u64) -> Result<()> {
        handle.for_writing()?;
        self.truncate_draft(handle, draft, size)
    }

    /// `truncate(2)` of a value: opened, truncated and saved at once.
    pub(super) fn truncate_and_save(&self, ino: Number, size: u64) -> Result<()> {
        let draft = Draft::of_file();
        let handle = Handle {
            fh: 0,
            ino,
            flags: OpenFlags::default(),
            kind: Kind::Plain,
        };
        let done = self
            .truncate_draft(&handle, &draft, size)
            .and_then(|()| self.save_value(&handle, &draft));
        self.discard(&draft).and(done)
    }

    fn truncate_draft(&self, handle: &Handle, draft: &Draft, size: u64) -> Result<()> {
        data::end_of(size, 0)?;
        self.change_draft(handle, draft, |state| {
            if size == 0 && matches!(state.content, Content::File) {
                state.content = Content::Memory(Vec::new());
            }
            self.check_limit(handle.ino, state.content.held(), size)?;
            self.load_draft(handle, state)?;
            self.resize(state, size, false)
        })
    }

    /// `fallocate(2)` of a draft: it is extended; room beyond its end is not kept.
    pub(super) fn allocate_value(
        &self,
        handle: &Handle,
        draft: &Draft,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let end = data::end_of(offset, len)?;
        match mode {
            0 => {}
            libc::FALLOC_FL_KEEP_SIZE => return Ok(()),
            _ => return Err(Error::NotSupported("this kind of fallocate on a value")),
        }
        self.change_draft(handle, draft, |state| {
            self.check_limit(handle.ino, state.content.held(), end)?;
            self.load_draft(handle, state)?;
            self.resize(state, end, true)
        })
    }

    /// Makes the draft the file's content, if it is dirty.
    pub(super) fn save_value(&self, handle: &Handle, draft: &Draft) -> Result<()> {
        let mut state = draft.0.lock();
        if !state.dirty {
            return Ok(());
        }
        let now = self.now();
        let lsn = match &state.content {
            Content::File => return Ok(()),
            Content::Memory(bytes) => {
                let lsn = self.save_bytes(handle.ino, bytes, state.seen, state.promised, now)?;
                state.promised = 0;
                lsn
            }
            Content::Spare(spare, _) => {
                let (spare, seen) = (*spare, state.seen);
                let (left, lsn) = self.replace_content(Class::Replace, |tx| {
                    let mut inode = load(tx, handle.ino)?;
                    let mut other = load(tx, spare)?;
                    let size = inode.size;
                    saved(&mut inode, seen, now);
                    std::mem::swap(&mut inode.content, &mut other.content);
                    inode.size = std::mem::replace(&mut other.size, size);
                    inode.flags = inode.flags & !FLAG_SPARSE | other.flags & FLAG_SPARSE;
                    save(tx, &inode)?;
                    // What the spare holds now is the old content, and goes with it.
                    save(tx, &other)?;
                    self.leave_to(tx, &other)
                })?;
                state.content = Content::File;
                left.map_or(Ok(()), |spare| self.drop_spare(spare))?;
                lsn
            }
        };
        state.dirty = false;
        let inode = self.fs.inode(handle.ino)?;
        state.seen = (inode.content, inode.mtime);
        drop(state);
        self.notify(Notice::InvalidateInode(handle.ino));
        let settings = self.walk.of(&*self.cask, &inode)?;
        self.confirm(&settings, lsn, handle.flags.sync)
    }

    fn save_bytes(
        &self,
        ino: Number,
        bytes: &[u8],
        seen: (Number, Timestamp),
        promised: u64,
        now: Timestamp,
    ) -> Result<Lsn> {
        let class = if bytes.is_empty() {
            Class::Release
        } else {
            Class::Replace
        };
        let staged = self.cask.stage_for(class, promised, 0, bytes)?;
        let (left, lsn) = self.replace_content(class, |tx| {
            let mut inode = load(tx, ino)?;
            tx.redeem(promised);
            let replaced = self.give_up(tx, &inode, now)?;
            saved(&mut inode, seen, now);
            inode.content = tx.new_number();
            inode.size = bytes.len() as u64;
            inode.flags &= !FLAG_SPARSE;
            tx.write_staged(inode.content, &staged);
            save(tx, &inode)?;
            Ok(replaced)
        })?;
        left.map_or(Ok(()), |spare| self.drop_spare(spare))?;
        Ok(lsn)
    }

    /// An operation that replaces a content; answers the spare that nobody needs any more.
    fn replace_content(
        &self,
        class: Class,
        body: impl FnMut(&mut Tx<'_, D>) -> Result<Replaced>,
    ) -> Result<(Option<Number>, Lsn)> {
        let mut left = None;
        let (_, lsn) = self.cask.transact_then(class, body, |replaced| {
            left = self.tell_readers(*replaced);
        })?;
        Ok((left, lsn))
    }

    /// Drops a draft that will not be saved.
    pub(super) fn discard(&self, draft: &Draft) -> Result<()> {
        let mut state = draft.0.lock();
        self.let_pin_go(&mut state.pin)?;
        self.drop_content(&mut state)
    }

    /// The draft has nothing in hand any more.
    fn drop_content(&self, state: &mut State) -> Result<()> {
        self.pay(state, 0)?;
        match std::mem::replace(&mut state.content, Content::File) {
            Content::File => Ok(()),
            Content::Memory(bytes) => {
                self.pending
                    .0
                    .fetch_sub(bytes.len() as u64, Ordering::AcqRel);
                Ok(())
            }
            Content::Spare(spare, _) => self.drop_spare(spare),
        }
    }

    /// Takes the file's content into the draft, if that was not done yet.
    fn load_draft(&self, handle: &Handle, state: &mut State) -> Result<()> {
        if !matches!(state.content, Content::File) {
            return Ok(());
        }
        self.let_pin_go(&mut state.pin)?;
        let inode = self.pin(handle.ino)?;
        state.content = Content::Memory(Vec::new());
        let loaded = self
            .resize(state, inode.size, true)
            .and_then(|()| match &mut state.content {
                Content::Memory(bytes) => {
                    let size = u32::try_from(inode.size).unwrap_or(u32::MAX);
                    data::read(&*self.cask, &inode, 0, size, bytes)
                }
                Content::Spare(spare, _) => self.copy(&inode, 0, *spare),
                Content::File => Ok(()),
            });
        let unpinned = self.unpin(inode.content);
        loaded.and(unpinned)
    }

    /// Gives the draft this size, or with `grow_only` at least this size. What it grows by is zeros
    /// and is paid for.
    fn resize(&self, state: &mut State, size: u64, grow_only: bool) -> Result<()> {
        let old = state.content.held();
        if let Content::Memory(_) = state.content {
            let size = if grow_only { size.max(old) } else { size };
            // Beyond the most that memory takes, it is the cask that is written to.
            self.pay(state, if size > MEMORY_MAX as u64 { old } else { size })?;
        }
        if size == old || grow_only && size < old {
            return Ok(());
        }
        if let Content::Memory(bytes) = &mut state.content {
            let pending = &self.pending.0;
            if size < old {
                bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
                pending.fetch_sub(old - size, Ordering::AcqRel);
                return Ok(());
            }
            let total = pending.load(Ordering::Acquire).saturating_add(size - old);
            if size <= MEMORY_MAX as u64 && total <= ALL_MEMORY_MAX {
                pending.fetch_add(size - old, Ordering::AcqRel);
                bytes.resize(usize::try_from(size).unwrap_or(MEMORY_MAX), 0);
                return Ok(());
            }
            let spare = self.make_spare()?;
            if let Err(error) = self.fs.write(&NOBODY, spare, Some(0), bytes) {
                self.drop_spare(spare)?;
                return Err(error);
            }
            pending.fetch_sub(old, Ordering::AcqRel);
            state.content = Content::Spare(spare, old);
            self.pay(state, 0)?;
        }
        if let Content::Spare(spare, of) = &mut state.content {
            let set = SetAttr {
                size: Some(size),
                ..SetAttr::default()
            };
            self.fs.setattr(&NOBODY, *spare, &set)?;
            *of = size;
        }
        Ok(())
    }

    /// Sets aside what saving a draft of this size takes.
    fn pay(&self, state: &mut State, size: u64) -> Result<()> {
        let room = self.cask.room_for(size);
        if room != state.promised {
            self.cask.promise(state.promised, room)?;
            state.promised = room;
        }
        Ok(())
    }

    /// Changes a draft. After a failure it is what it was before: what was loaded for the change alone is
    /// dropped, so that the handle goes on to see the file, and what was added is taken back.
    fn change_draft(
        &self,
        handle: &Handle,
        draft: &Draft,
        act: impl FnOnce(&mut State) -> Result<()>,
    ) -> Result<()> {
        let mut state = draft.0.lock();
        let inode = self.fs.inode(handle.ino)?;
        let before = match state.content {
            Content::File => None,
            _ => Some((state.content.held(), state.promised)),
        };
        let Err(error) = act(&mut state) else {
            state.seen = (inode.content, inode.mtime);
            state.dirty = true;
            return Ok(());
        };
        let undone = match before {
            None => self.drop_content(&mut state),
            Some((size, promised)) => self.shrink_back(&mut state, size, promised),
        };
        if let Err(other) = undone {
            ::log::warn!("a session's draft keeps more than was written to it: {other}");
        }
        Err(error)
    }

    /// Takes back what a change that failed had added to a draft.
    fn shrink_back(&self, state: &mut State, size: u64, promised: u64) -> Result<()> {
        if state.content.held() > size {
            self.resize(state, size, false)?;
        }
        if state.promised > promised {
            self.cask.promise(state.promised, promised)?;
            state.promised = promised;
        }
        Ok(())
    }
}

/// The content of a file is being replaced.
fn saved(inode: &mut Inode, seen: (Number, Timestamp), now: Timestamp) {
    let (content, mtime) = seen;
    if inode.content != content || inode.mtime == mtime {
        inode.mtime = now;
    }
    inode.ctime = now;
    inode.drop_set_id(&NOBODY);
}
