//! Log mode: every write is an append to the live log of the name that its handle is bound to.
//!
//! The kernel goes on naming the inode that was opened, and offsets in it, long after that file was
//! renamed away; both are ignored here. One write is one transaction: find the live file, or make it
//! with the looks of its predecessor, and append. So a write is never torn, two never interleave, and
//! a cut falls between two writes or before one, never inside.

use std::ops::Range;
use std::sync::Arc;

use super::arrivals;
use super::binding::{Binding, Name, Predecessor, Tie};
use super::cut::{Cut, Itself};
use super::due::{self, Room};
use super::events::{self, Cause, Event};
use super::handle::{Handle, Kind, LogHandle};
use super::settings::{Effective, Mode};
use super::{NOBODY, Opened, Store, walk};
use crate::cask::{Class, Lsn, Read, Tx};
use crate::clock::Timestamp;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::FileKind;
use crate::format::item::FLAG_ORDERED;
use crate::format::key::Number;
use crate::fs::inode::{Inode, load, save};
use crate::fs::xattr::{self, SetMode};
use crate::fs::{Caller, NewFile, OpenFlags, Place, data, namespace, segment};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// From this many bytes on, data is put in its place before its operation is logged.
pub const STAGE_MIN: usize = 64 << 10;
/// How often one append cuts its log at most; what is left then goes to the last one whole.
const PIECES_MAX: usize = 32;
/// How often a large append tries that before it goes through the log. Only cuts and truncations can
/// be in its way, as the gate keeps other appends out.
const STAGE_TRIES: u32 = 4;

/// A write to a log.
#[derive(Clone, Copy)]
struct Append<'a> {
    caller: &'a Caller,
    handle: &'a Handle,
    log: &'a LogHandle,
    binding: &'a Arc<Binding>,
    /// Where the kernel says, in the file that it believes the handle to be on.
    offset: u64,
    data: &'a [u8],
    settings: &'a Effective,
    /// Of the settings.
    generation: u64,
    /// Of the binding, when they were resolved.
    turns: u64,
    /// The directory in whose order of arrival it has its place; found within the transaction.
    ordered_in: Option<Number>,
}

/// A part of an append that went to one file.
#[derive(Debug)]
struct Piece {
    live: Number,
    /// Where the file ended, and how many zeros come between.
    end: u64,
    gap: u64,
    /// The part of the data.
    data: Range<usize>,
    /// Records in the file then, if they are counted.
    records: Option<u64>,
}

impl Piece {
    /// Where the file ends now.
    fn ends(&self) -> u64 {
        self.end + self.gap + self.data.len() as u64
    }
}

/// What an append has done.
#[derive(Debug, Default)]
struct Appended {
    /// The clock cut the log before anything was written.
    before: Option<Cut>,
    /// What filled a log, which was then cut.
    filled: Vec<(Piece, Cut)>,
    last: Option<Piece>,
    /// Where the order of arrival of a directory ends then.
    order: Option<(Number, arrivals::End)>,
}

impl Appended {
    /// The files that were appended to, each with the size that it got.
    fn files(&self) -> impl Iterator<Item = (Number, u64)> {
        let filled = self.filled.iter().map(|(piece, _)| piece);
        filled
            .chain(&self.last)
            .map(|piece| (piece.live, piece.ends()))
    }

    fn cuts(&self) -> impl Iterator<Item = &Cut> {
        let filled = self.filled.iter().map(|(_, cut)| cut);
        self.before.iter().chain(filled)
    }

    fn events(&self) -> Option<Vec<Event>> {
        let mut cuts = self.cuts().map(|cut| cut.event.clone()).peekable();
        cuts.peek().is_some().then(|| cuts.collect())
    }
}

/// What became of an attempt to append.
enum Outcome {
    /// It is in this live file.
    Landed(Number),
    /// The data was staged for a place that is not the end of the log any more.
    Elsewhere,
    /// The handle was bound to another log meanwhile, or its log is a file with other settings.
    Moved,
}

impl Append<'_> {
    /// Where the data would land now.
    fn place(&self, r: &impl Read) -> Result<u64> {
        let inode = live(r, self.binding)?;
        let gap = self.gap(r, inode.as_ref())?;
        let end = match inode.map_or(0, |inode| inode.size) {
            0 => self.settings.first_line().len() as u64,
            size => size,
        };
        data::end_of(end, gap)
    }

    /// Begins an empty log with its first line, if it is to have one; answers whether it did.
    fn begin<D: Device>(
        &self,
        tx: &mut Tx<'_, D>,
        inode: &mut Inode,
        now: Timestamp,
    ) -> Result<bool> {
        if inode.size > 0 || self.settings.header.is_none() {
            return Ok(false);
        }
        let line = self.settings.first_line();
        data::write_bytes(tx, self.caller, inode, 0, &line, now)?;
        Ok(true)
    }

    /// A part of the data that goes to the end of this file.
    fn piece(&self, inode: &Inode, gap: u64, data: Range<usize>) -> Piece {
        Piece {
            live: inode.number,
            end: inode.size,
            gap,
            data,
            records: None,
        }
    }

    fn write<D: Device>(
        &self,
        tx: &mut Tx<'_, D>,
        inode: &mut Inode,
        piece: &Piece,
        now: Timestamp,
    ) -> Result<()> {
        let data = self.data.get(piece.data.clone()).unwrap_or_default();
        let at = data::end_of(piece.end, piece.gap)?;
        self.order(inode);
        data::write_bytes(tx, self.caller, inode, at, data, now)
    }

    /// Notes in an inode, which is saved with the write, that its bytes have places in an order.
    fn order(&self, inode: &mut Inode) {
        if self.ordered_in.is_some() {
            inode.flags |= FLAG_ORDERED;
        }
    }

    /// Tells the binding what was written.
    fn wrote(&self, piece: &Piece) {
        let data = self.data.get(piece.data.clone()).unwrap_or_default();
        let delimiter = self.settings.record;
        let (fh, Piece { live, end, gap, .. }) = (self.log.tie.id, piece);
        let mut state = self.binding.state();
        state.wrote(fh, *live, *end, *gap, data, delimiter);
    }

    /// The zeros that stand between the end of the live log and the data.
    ///
    /// None for `O_APPEND`; none for a handle that writes on where its own last write ended,
    /// whatever has happened to the file since; none at the end of the live log or of the file that
    /// the kernel believes the handle to be on (`lseek(2)` to the end).
    fn gap(&self, r: &impl Read, live: Option<&Inode>) -> Result<u64> {
        let position = self.log.position.load(Ordering::Acquire);
        let size = live.map_or(0, |inode| inode.size);
        if self.handle.flags.append || self.offset == position || self.offset == size {
            return Ok(0);
        }
        if live.map(|inode| inode.number) != Some(self.handle.ino)
            && load(r, self.handle.ino).is_ok_and(|inode| inode.size == self.offset)
        {
            return Ok(0);
        }
        self.offset
            .checked_sub(position)
            .ok_or(Error::NotPermitted("a log is not written backwards"))
    }
}

impl<D: Device> Store<D> {
    /// Opens a log for writing: binds the handle to the name that the inode was given last.
    pub(super) fn open_log(
        &self,
        caller: &Caller,
        ino: Number,
        flags: OpenFlags,
    ) -> Result<Opened> {
        let now = self.now();
        if self.absences.sends_back(now, caller.tid, ino) {
            return Err(Error::Stale);
        }
        let ((inode, .., tie), lsn) = self.cask.transact_then(
            Class::Release,
            |tx| {
                let mut inode = load(tx, ino)?;
                if flags.truncate && inode.size > 0 {
                    self.begins_anew(tx, &mut inode)?;
                    data::truncate(tx, caller, &mut inode, 0, now)?;
                }
                let name = namespace::name_of(tx, &inode)?;
                Ok((inode, name, predecessor(tx, &inode)?, None))
            },
            |(inode, name, predecessor, tie)| {
                let bound = self.bind(inode, name.as_deref(), predecessor.clone());
                if flags.truncate {
                    bound.binding().state().emptied();
                }
                *tie = Some(bound);
            },
        )?;
        let tie = tie.ok_or(Error::Stale)?;
        let settings = self.settings_of(&tie.binding());
        let opened = self.opened_log(&inode, inode.size, flags, tie);
        let confirmed = match flags.truncate {
            true => settings.and_then(|settings| self.confirm(&settings, lsn, false)),
            false => Ok(()),
        };
        if let Err(error) = confirmed {
            self.release(ino, opened.fh)?;
            return Err(error);
        }
        Ok(opened)
    }

    /// Binds a write handle to the name of an inode. Called within a transaction.
    pub(super) fn bind(
        &self,
        inode: &Inode,
        name: Option<&[u8]>,
        predecessor: Predecessor,
    ) -> Arc<Tie> {
        match name {
            Some(name) => self
                .bindings
                .bind(inode.parent, name, inode.number, predecessor),
            None => {
                // Nothing but its handles keeps a file without a name.
                self.fs.opens().add(inode.number);
                self.bindings.bind_unnamed(inode.number, predecessor)
            }
        }
    }

    /// Makes the handle of a bound writer known, which for the kernel stands at `position`.
    pub(super) fn opened_log(
        &self,
        inode: &Inode,
        position: u64,
        flags: OpenFlags,
        tie: Arc<Tie>,
    ) -> Opened {
        let kind = Kind::Log(LogHandle {
            tie,
            position: AtomicU64::new(position),
            reads: AtomicBool::new(false),
            begun: Mutex::default(),
        });
        self.opened(inode.number, flags, kind, Mode::Log)
    }

    /// Appends `data`, after a gap of zeros if the handle has sought forward.
    pub(super) fn append(
        &self,
        caller: &Caller,
        handle: &Handle,
        log: &LogHandle,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        loop {
            let binding = log.tie.binding();
            let generation = self.walk.generation();
            let turns = binding.state().turns();
            let settings = self.settings_of(&binding)?;
            if data.is_empty() {
                return Ok(());
            }
            let append = Append {
                caller,
                handle,
                log,
                binding: &binding,
                offset,
                data,
                settings: &settings,
                generation,
                turns,
                ordered_in: None,
            };
            let (Outcome::Landed(landed), lsn) = self.append_here(&append)? else {
                continue;
            };
            log.position
                .store(offset.saturating_add(data.len() as u64), Ordering::Release);
            if landed != handle.ino {
                self.watchers.mark(binding);
            }
            return self.confirm(&settings, lsn, handle.flags.sync);
        }
    }

    /// Appends through one binding, however its log is cut meanwhile.
    fn append_here(&self, append: &Append<'_>) -> Result<(Outcome, Lsn)> {
        if append.data.len() < STAGE_MIN {
            let _shared = append.binding.gate.read();
            return self.try_append(append, None);
        }
        let _alone = append.binding.gate.write();
        let mut tries = 0;
        loop {
            // What may be cut within goes through the log.
            let place = match tries < STAGE_TRIES && !append.settings.is_cut_by_amount() {
                true => Some(append.place(&*self.cask)?),
                false => None,
            };
            match self.try_append(append, place)? {
                (Outcome::Elsewhere, _) => tries += 1,
                done => return Ok(done),
            }
        }
    }

    /// One transaction of an append, of data staged for `place` if there is one.
    fn try_append(&self, append: &Append<'_>, place: Option<u64>) -> Result<(Outcome, Lsn)> {
        let now = self.now();
        let Append {
            log,
            binding,
            data,
            settings,
            ..
        } = *append;
        let staged = match place {
            Some(at) => Some((at, self.cask.stage(at, data)?)),
            None => None,
        };
        let ((outcome, done), lsn) = self.cask.transact_then(
            Class::Grow,
            |tx| {
                let mut done = Appended::default();
                let append = &Append {
                    ordered_in: binding.ordered_in(),
                    ..*append
                };
                if !log.tie.is_on(binding) {
                    return Ok((Outcome::Moved, done));
                }
                let turned = binding.state().turns() != append.turns;
                let mut inode = match live(tx, binding)? {
                    Some(inode) if turned && *self.walk.of(tx, &inode)? != *settings => {
                        return Ok((Outcome::Moved, done));
                    }
                    Some(inode) => inode,
                    None => make_live(tx, binding, now)?,
                };
                let gap = append.gap(tx, Some(&inode))?;
                let by_itself = self.cuts_itself(binding, settings);
                if let Some(name) = &by_itself
                    && due::is_over(&inode, settings, now)
                {
                    let place = place_of(name);
                    let how = Itself {
                        cause: Cause::Clock,
                        carry: self.begun_record(tx, place)?,
                        drops: true,
                    };
                    let cut = self.cut_if_named(tx, place, &inode, how, now)?;
                    if let Some(cut) = &cut {
                        inode = after(tx, name, cut, now)?;
                    }
                    done.before = cut;
                }
                // A segment that somebody writes to again is a log of its own.
                segment::unmark(tx, &mut inode)?;
                let begun = append.begin(tx, &mut inode, now)? || done.before.is_some();
                let outcome = match (&staged, by_itself) {
                    (Some((place, _)), _) if *place != data::end_of(inode.size, gap)? => {
                        Outcome::Elsewhere
                    }
                    (Some((_, staged)), _) => {
                        let piece = append.piece(&inode, gap, 0..data.len());
                        let (at, len) = (data::end_of(inode.size, gap)?, data.len() as u64);
                        append.order(&mut inode);
                        data::write(tx, append.caller, &mut inode, at, len, staged, now)?;
                        done.last = Some(piece);
                        Outcome::Landed(inode.number)
                    }
                    (None, Some(name)) if settings.is_cut_by_amount() => {
                        self.fill(tx, append, &name, (inode, begun), gap, &mut done, now)?
                    }
                    (None, _) => {
                        let piece = append.piece(&inode, gap, 0..data.len());
                        append.write(tx, &mut inode, &piece, now)?;
                        done.last = Some(piece);
                        Outcome::Landed(inode.number)
                    }
                };
                if let Some(events) = done.events() {
                    events::note(tx, &events, now)?;
                }
                if let Some(dir) = append.ordered_in
                    && matches!(outcome, Outcome::Landed(_))
                {
                    done.order = Some((dir, self.arrive(tx, dir, done.files())?));
                }
                Ok((outcome, done))
            },
            |(_, done)| {
                if let Some(cut) = &done.before {
                    self.was_cut(cut);
                }
                for (piece, cut) in &done.filled {
                    append.wrote(piece);
                    self.was_cut(cut);
                }
                if let Some(piece) = &done.last {
                    append.wrote(piece);
                    if let Some(records) = piece.records {
                        let end = piece.ends();
                        self.counts
                            .know(piece.live, append.generation, end, records);
                    }
                }
                if let Some((dir, end)) = done.order {
                    self.arrivals.know(dir, end);
                }
            },
        )?;
        done.cuts().for_each(|cut| self.tell_of(cut));
        Ok((outcome, lsn))
    }

    /// The name of a log that is cut without anybody asking for it.
    fn cuts_itself(&self, binding: &Binding, settings: &Effective) -> Option<Name> {
        let due = settings.roll.is_some() || settings.is_cut_by_amount();
        if !due || settings.mode != Mode::Log || settings.reopen || binding.state().follows() {
            return None;
        }
        binding.name()
    }

    /// Appends record by record, and cuts the log whenever it is full.
    #[expect(clippy::too_many_arguments, reason = "all that an append is made of")]
    fn fill(
        &self,
        tx: &mut Tx<'_, D>,
        append: &Append<'_>,
        name: &Name,
        (mut inode, begun): (Inode, bool),
        mut gap: u64,
        done: &mut Appended,
        now: Timestamp,
    ) -> Result<Outcome> {
        let settings = append.settings;
        let mut records = match settings.roll_lines {
            0 => None,
            // What this transaction has put there, it cannot read; it holds no whole record.
            _ if begun => Some(0),
            _ => Some(self.counts.of(tx, &inode, settings, append.generation)?),
        };
        let mut from = 0;
        loop {
            let rest = append.data.get(from..).unwrap_or_default();
            let size = inode.size.saturating_add(gap);
            let room = Room {
                bytes: (settings.roll_size > 0).then(|| settings.roll_size.saturating_sub(size)),
                records: records.map(|records| settings.roll_lines.saturating_sub(records)),
            };
            let (len, full) = match done.filled.len() < PIECES_MAX {
                true => room.take(rest, settings.record),
                false => (rest.len(), None),
            };
            let mut piece = append.piece(&inode, gap, from..from + len);
            append.write(tx, &mut inode, &piece, now)?;
            if let (Some(records), Some(delimiter)) = (&mut records, settings.record) {
                *records += due::delimiters(rest.get(..len).unwrap_or_default(), delimiter);
            }
            piece.records = records;
            let Some(cause) = full else {
                done.last = Some(piece);
                return Ok(Outcome::Landed(inode.number));
            };
            from += len;
            let how = Itself {
                cause,
                carry: None,
                drops: true,
            };
            let cut = self.cut_if_named(tx, place_of(name), &inode, how, now)?;
            let Some(cut) = cut else {
                // The rest goes to the same log, whole.
                piece.data.end = append.data.len();
                let rest = append.piece(&inode, 0, from..append.data.len());
                append.write(tx, &mut inode, &rest, now)?;
                piece.records = None;
                done.last = Some(piece);
                return Ok(Outcome::Landed(inode.number));
            };
            let landed = Outcome::Landed(inode.number);
            if from < append.data.len() {
                inode = after(tx, name, &cut, now)?;
                append.begin(tx, &mut inode, now)?;
            }
            done.filled.push((piece, cut));
            if from >= append.data.len() {
                return Ok(landed);
            }
            gap = 0;
            records = records.map(|_| 0);
        }
    }

    /// Reads the file that a log's handle was opened on. Its first read keeps that file from going
    /// with its last name; before that nobody would miss it.
    pub(super) fn read_log(
        &self,
        handle: &Handle,
        log: &LogHandle,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<()> {
        if !log.reads.swap(true, Ordering::AcqRel)
            && let Err(error) = self.fs.open(handle.ino)
        {
            log.reads.store(false, Ordering::Release);
            return if matches!(error, Error::Stale) {
                Ok(())
            } else {
                Err(error)
            };
        }
        let binding = log.tie.binding();
        let shifts = binding.state().shifts();
        self.read_file(handle.ino, offset, size, buf)?;
        let end = offset.saturating_add(buf.len() as u64);
        binding.state().has_read(log.tie.id, offset, end, shifts);
        Ok(())
    }

    /// Unbinds a handle.
    pub(super) fn release_log(&self, handle: &Handle, log: &LogHandle) -> Result<()> {
        let pushed = self.push(&NOBODY, handle, log);
        let nameless = self.bindings.unbind(&log.tie);
        if log.reads.load(Ordering::Acquire) {
            self.let_go(handle.ino)?;
        }
        nameless.map_or(Ok(()), |ino| self.let_go(ino))?;
        pushed
    }

    /// The settings in force for what is written under a name.
    pub(super) fn settings_of(&self, binding: &Binding) -> Result<Arc<Effective>> {
        let generation = self.walk.generation();
        let turns = {
            let state = binding.state();
            if let Some(settings) = state.settings(generation) {
                return Ok(settings);
            }
            state.turns()
        };
        let Some(inode) = live(&*self.cask, binding)? else {
            // Not kept: nobody tells the binding when the name stands for a file again.
            let above = match binding.name() {
                Some((dir, _)) => self.walk.of_dir(&*self.cask, dir)?,
                None => Arc::default(),
            };
            let own = binding.state().predecessor.settings.clone();
            return Ok(Arc::new(walk::over((*above).clone(), &own)));
        };
        let settings = self.walk.of(&*self.cask, &inode)?;
        let known = Arc::clone(&settings);
        binding.state().set_settings(turns, generation, known);
        Ok(settings)
    }
}

fn place_of((dir, name): &Name) -> Place<'_> {
    Place { dir: *dir, name }
}

/// The log that is live after a cut; made if nothing was carried to it.
fn after<D: Device>(
    tx: &mut Tx<'_, D>,
    (dir, name): &Name,
    cut: &Cut,
    now: Timestamp,
) -> Result<Inode> {
    match cut.fresh {
        Some(fresh) => load(tx, fresh.number),
        None => make_like(tx, *dir, name, &cut.looks, now),
    }
}

/// The live file of a binding, if there is one.
pub fn live(r: &impl Read, binding: &Binding) -> Result<Option<Inode>> {
    let known = binding.state().live;
    if let Some(number) = known {
        match load(r, number) {
            // Outside a transaction the binding may lag behind a name that just went.
            Err(Error::Stale) => {}
            found => return found.map(Some),
        }
    }
    let Some((dir, name)) = binding.name() else {
        return Err(Error::Stale);
    };
    match namespace::find(r, dir, &name) {
        Ok((number, FileKind::Regular)) => load(r, number).map(Some),
        Ok((_, FileKind::Directory)) => Err(Error::IsDirectory),
        Ok(_) => Err(Error::NotPermitted(
            "the log's name stands for what is no regular file",
        )),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a fresh live file of a binding's name, with the looks of the file that had it before.
///
/// # Errors
/// [`Error::NotFound`] when the directory was removed.
pub fn make_live<D: Device>(
    tx: &mut Tx<'_, D>,
    binding: &Binding,
    now: Timestamp,
) -> Result<Inode> {
    let Some((dir, name)) = binding.name() else {
        return Err(Error::Stale);
    };
    let looks = binding.state().predecessor.clone();
    make_like(tx, dir, &name, &looks, now)
}

/// Makes a file with the looks of another.
pub fn make_like<D: Device>(
    tx: &mut Tx<'_, D>,
    dir: Number,
    name: &[u8],
    looks: &Predecessor,
    now: Timestamp,
) -> Result<Inode> {
    let new = NewFile {
        kind: FileKind::Regular,
        perm: looks.perm,
        uid: looks.uid,
        gid: looks.gid,
        rdev: 0,
    };
    let mut inode = match namespace::make(tx, dir, name, &new, now) {
        Err(Error::Stale) => return Err(Error::NotFound),
        made => made?,
    };
    if inode.gid != looks.gid {
        inode.gid = looks.gid;
        save(tx, &inode)?;
    }
    for (name, value) in &looks.settings {
        xattr::set(tx, inode.number, name, value, SetMode::Any, now)?;
    }
    load(tx, inode.number)
}

/// What a fresh log in place of what is gone is to look like: what is no file is no pattern for one.
pub fn pattern(r: &impl Read, inode: &Inode) -> Result<Option<Predecessor>> {
    inode.is_file().then(|| predecessor(r, inode)).transpose()
}

/// What a fresh file in place of this one is to look like.
pub fn predecessor(r: &impl Read, inode: &Inode) -> Result<Predecessor> {
    Ok(Predecessor {
        perm: inode.perm(),
        uid: inode.uid,
        gid: inode.gid,
        settings: walk::own(r, inode)?,
    })
}
