//! Truncation by mode; above all `copytruncate` without loss.
//!
//! A log is emptied, or extended, never shortened. Who empties a log through a handle that has read
//! it has made a copy of what it read: only that is dropped, and records that came after the last
//! read become the new content, in one transaction.

use std::sync::Arc;

use super::binding::Binding;
use super::handle::{Handle, Kind, LogHandle};
use super::log::{STAGE_MIN, live};
use super::settings::Mode;
use super::{Notice, Store};
use crate::cask::{Class, Lsn, Read};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load, save};
use crate::fs::{Caller, data, namespace};

const SHORTENED: Error = Error::NotPermitted("a log is emptied or extended, never shortened");

/// The part of a log that stays when it is truncated to zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rest {
    live: Number,
    content: Number,
    /// Bytes of the log before the truncation.
    size: u64,
    /// Bytes dropped from its start.
    dropped: u64,
}

impl Rest {
    fn len(&self) -> u64 {
        self.size - self.dropped
    }
}

impl<D: Device> Store<D> {
    /// Truncates by the rules of the file's mode. False when it is for the plain filesystem to do.
    pub(super) fn truncate(
        &self,
        caller: &Caller,
        ino: Number,
        fh: Option<u64>,
        size: u64,
    ) -> Result<bool> {
        if let Some(handle) = fh.and_then(|fh| self.handles.get(fh).ok()) {
            match &handle.kind {
                Kind::Log(log) => {
                    return self.truncate_by(caller, &handle, log, size).map(|()| true);
                }
                Kind::Value(draft) => {
                    return self.truncate_value(&handle, draft, size).map(|()| true);
                }
                Kind::Plain | Kind::Rotate(_) | Kind::Events | Kind::Cat(_) | Kind::Snapshot(_) => {
                }
            }
        }
        let inode = self.fs.inode(ino)?;
        if !inode.is_file() {
            return Ok(false);
        }
        match self.walk.of(&*self.cask, &inode)?.mode {
            Mode::Plain => Ok(false),
            Mode::Log => self.truncate_named(caller, ino, size).map(|()| true),
            Mode::Value => self.truncate_and_save(ino, size).map(|()| true),
        }
    }

    /// `truncate(2)` of a log, through no handle that could have read it.
    fn truncate_named(&self, caller: &Caller, ino: Number, size: u64) -> Result<()> {
        let now = self.now();
        let class = if size == 0 {
            Class::Release
        } else {
            Class::Grow
        };
        let (_, lsn) = self.cask.transact_then(
            class,
            |tx| {
                let mut inode = load(tx, ino)?;
                if size != 0 && size < inode.size {
                    return Err(SHORTENED);
                }
                if size == 0 {
                    self.begins_anew(tx, &mut inode)?;
                }
                data::truncate(tx, caller, &mut inode, size, now)?;
                let name = namespace::name_of(tx, &inode)?;
                Ok(name.and_then(|name| self.bindings.find(inode.parent, &name)))
            },
            |binding| {
                if let Some(binding) = binding.as_ref().filter(|_| size == 0) {
                    binding.state().emptied();
                }
            },
        )?;
        let settings = self.walk.of(&*self.cask, &self.fs.inode(ino)?)?;
        self.confirm(&settings, lsn, false)
    }

    /// `ftruncate(2)` through a write handle of a log.
    fn truncate_by(
        &self,
        caller: &Caller,
        handle: &Handle,
        log: &LogHandle,
        size: u64,
    ) -> Result<()> {
        handle.for_writing()?;
        let binding = &log.tie.binding();
        let settings = self.settings_of(binding)?;
        // With the gate closed the end of the log stands still; only a cut may still come between.
        let _alone = binding.gate.write();
        let lsn = if size > 0 {
            self.extend(caller, handle, log, size)?
        } else {
            let read = settings
                .keep_unread
                .then(|| binding.state().read_end(log.tie.id))
                .flatten();
            match read {
                None => self.empty(caller, log)?,
                Some(end) => loop {
                    let Some(rest) = self.unread(handle, log, binding, end)? else {
                        break self.cask.lsn();
                    };
                    if let Some(lsn) = self.drop_read(caller, log, binding, rest)? {
                        self.notify(Notice::InvalidateInode(rest.live));
                        break lsn;
                    }
                },
            }
        };
        self.confirm(&settings, lsn, handle.flags.sync)
    }

    /// Extends the live log by zeros to `size`.
    fn extend(&self, caller: &Caller, handle: &Handle, log: &LogHandle, size: u64) -> Result<Lsn> {
        let now = self.now();
        let ((), lsn) =
            self.cask
                .transact(Class::Grow, |tx| match live(tx, &log.tie.binding())? {
                    Some(mut inode) if inode.number == handle.ino && size >= inode.size => {
                        data::truncate(tx, caller, &mut inode, size, now)
                    }
                    _ => Err(SHORTENED),
                })?;
        Ok(lsn)
    }

    /// Drops everything in the live log.
    fn empty(&self, caller: &Caller, log: &LogHandle) -> Result<Lsn> {
        let now = self.now();
        let ((), lsn) = self.cask.transact_then(
            Class::Release,
            |tx| match live(tx, &log.tie.binding())? {
                Some(mut inode) => {
                    self.begins_anew(tx, &mut inode)?;
                    data::truncate(tx, caller, &mut inode, 0, now)
                }
                None => Ok(()),
            },
            |()| log.tie.binding().state().emptied(),
        )?;
        Ok(lsn)
    }

    /// What stays when a handle that has read up to `end` truncates. `None` when there is nothing to
    /// drop: the log was cut since, and of the fresh one the handle has read nothing.
    fn unread(
        &self,
        handle: &Handle,
        log: &LogHandle,
        binding: &Arc<Binding>,
        end: u64,
    ) -> Result<Option<Rest>> {
        let inode = match log.tie.is_on(binding) {
            true => live(&*self.cask, binding)?,
            false => None,
        };
        let Some(inode) = inode.filter(|inode| inode.number == handle.ino) else {
            return Ok(None);
        };
        let dropped = end.min(inode.size);
        Ok((dropped > 0).then_some(Rest {
            live: inode.number,
            content: inode.content,
            size: inode.size,
            dropped,
        }))
    }

    /// Drops what was read. `None` when the log changed meanwhile.
    fn drop_read(
        &self,
        caller: &Caller,
        log: &LogHandle,
        binding: &Arc<Binding>,
        rest: Rest,
    ) -> Result<Option<Lsn>> {
        let on = (log, binding);
        if rest.len() == 0 {
            return self.replace(caller, on, rest, Class::Release, &mut |_, _| Ok(0));
        }
        if rest.len() < STAGE_MIN as u64 {
            return self.replace(caller, on, rest, Class::Grow, &mut |tx, _| {
                let mut bytes = vec![0; usize::try_from(rest.len()).unwrap_or_default()];
                tx.read_content(rest.content, rest.dropped, &mut bytes)?;
                let content = tx.new_number();
                tx.write(content, 0, &bytes);
                Ok(content)
            });
        }
        // Too much for one operation: it is copied to a file without a name, which then gives its
        // content away.
        let spare = self.make_spare()?;
        let done = self
            .fs
            .inode(rest.live)
            .and_then(|source| self.copy(&source, rest.dropped, spare))
            .and_then(|()| {
                self.replace(caller, on, rest, Class::Grow, &mut |tx, content| {
                    let mut copy = load(tx, spare)?;
                    let moved = std::mem::replace(&mut copy.content, content);
                    save(tx, &copy)?;
                    Ok(moved)
                })
            });
        self.drop_spare(spare)?;
        done
    }

    /// Gives the live log the rest as its content, whose number `content` answers when it is given
    /// the number of the old. Without a rest the old content is cut off.
    fn replace(
        &self,
        caller: &Caller,
        (log, binding): (&LogHandle, &Arc<Binding>),
        rest: Rest,
        class: Class,
        content: &mut dyn FnMut(&mut crate::cask::Tx<'_, D>, Number) -> Result<Number>,
    ) -> Result<Option<Lsn>> {
        let now = self.now();
        let (done, lsn) = self.cask.transact_then(
            class,
            |tx| {
                let mut inode = match live(tx, binding)? {
                    Some(inode) if log.tie.is_on(binding) && is_still(&inode, rest) => inode,
                    _ => return Ok(false),
                };
                self.begins_anew(tx, &mut inode)?;
                if rest.len() == 0 {
                    data::truncate(tx, caller, &mut inode, 0, now)?;
                    return Ok(true);
                }
                let old = inode.content;
                inode.content = content(tx, old)?;
                if rest.len() < STAGE_MIN as u64 {
                    tx.drop_content(old);
                }
                inode.size = rest.len();
                (inode.mtime, inode.ctime) = (now, now);
                inode.drop_set_id(caller);
                save(tx, &inode)?;
                Ok(true)
            },
            |done| {
                if *done {
                    binding.state().shift(rest.dropped);
                }
            },
        )?;
        Ok(done.then_some(lsn))
    }

    /// `fallocate(2)` on a log: room may be asked for, but nothing is changed and nothing appended.
    pub(super) fn allocate_log(
        &self,
        log: &LogHandle,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let end = data::end_of(offset, len)?;
        let size = live(&*self.cask, &log.tie.binding())?.map_or(0, |inode| inode.size);
        let keeps = mode == libc::FALLOC_FL_KEEP_SIZE || mode == 0 && end <= size;
        if !keeps {
            return Err(Error::NotPermitted("a log grows by appending only"));
        }
        let block = u64::from(self.cask.block_size());
        if end.saturating_sub(size).div_ceil(block) > self.cask.stats().free_blocks {
            return Err(Error::NoSpace);
        }
        Ok(())
    }
}

fn is_still(inode: &Inode, rest: Rest) -> bool {
    (inode.number, inode.content, inode.size) == (rest.live, rest.content, rest.size)
}
