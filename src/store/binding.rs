//! Which file a log's writers write to: handles are bound to a name, not to an inode.
//!
//! A [`Binding`] is a name (directory, bytes) with at least one open write handle. It remembers the
//! file that the name stands for now, what a fresh file of that name shall look like, and where in
//! the live file records are begun that a cut must carry. A [`Tie`] is what a handle has of it.
//!
//! With `roll-on=reopen` a binding goes along with its file, as in POSIX: to the file's new name, or
//! to none when the file loses its name. Its ties remember the name they were opened by, and are
//! gathered there when a rotation is asked for.
//!
//! Invariant: whatever a binding says about the live file is true as long as the caller is inside a
//! transaction. It is changed only there (by `after` of [`transact_then`]), and every change of what
//! a name stands for makes the binding forget; a forgotten live file is looked up again.
//!
//! Locks: the tables here are leaves, taken inside transactions. [`Binding::gate`] is the opposite:
//! it is taken around transactions and never inside one.
//!
//! [`transact_then`]: crate::cask::Cask::transact_then

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::cat::table_of;
use super::settings::Effective;
use crate::format::key::Number;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};

/// What a fresh live log is given: the looks of the file that had the name before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// Permission bits.
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The settings that stood on the file itself: full attribute name and value.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The fresh log that a begun record was carried to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Its inode.
    pub number: Number,
    /// Where the segment ends, and the record began.
    pub boundary: u64,
    /// Where the record begins now.
    pub at: u64,
}

/// A directory and a name in it.
pub type Name = (Number, Vec<u8>);

/// What ties a write handle to a binding.
#[derive(Debug)]
pub struct Tie {
    /// Its number, never used again.
    pub id: u64,
    /// The name that the handle was opened by; `None` when the file had none left.
    opened_by: Option<Name>,
    binding: Mutex<Arc<Binding>>,
}

impl Tie {
    /// The binding. It stays the handle's only as long as the caller is inside a transaction.
    pub fn binding(&self) -> Arc<Binding> {
        Arc::clone(&self.binding.lock())
    }

    /// Whether the handle is still on this binding; to be asked inside a transaction.
    pub fn is_on(&self, binding: &Arc<Binding>) -> bool {
        Arc::ptr_eq(&self.binding.lock(), binding)
    }
}

/// What a binding knows of its live file.
#[derive(Debug)]
pub struct State {
    /// The directory and name; `None` when the file has no name any more.
    name: Option<Name>,
    /// The open write handles.
    ties: BTreeMap<u64, Arc<Tie>>,
    /// It went along with its file, and goes on doing so.
    follows: bool,
    /// The live file; `None` when it must be looked up.
    pub live: Option<Number>,
    /// What the next fresh file of this name looks like.
    pub predecessor: Predecessor,
    /// End of the last record delimiter that was written into the live file by any handle.
    delimited: u64,
    /// For each handle whose last write ended inside a record: where its bytes after the last
    /// delimiter begin.
    begun: BTreeMap<u64, u64>,
    /// For each handle that has read: the end of what it has read without a gap from the start.
    read: BTreeMap<u64, u64>,
    /// How often the content of the live file has been moved.
    shifts: u64,
    /// Resolved settings, with the generation they are true for.
    settings: Option<(u64, Arc<Effective>)>,
    /// How often what had been resolved became void.
    turns: u64,
}

/// A name with open write handles, or an unnamed file with some.
#[derive(Debug)]
pub struct Binding {
    /// Appenders pass it shared; whoever needs the end of the live log to stand still between two
    /// transactions holds it alone.
    pub gate: RwLock<()>,
    /// A wake-up of the watchers of this name is on its way.
    touched: AtomicBool,
    state: Mutex<State>,
}

impl Binding {
    fn new(name: Option<Name>, live: Number, predecessor: Predecessor) -> Self {
        Self {
            gate: RwLock::new(()),
            touched: AtomicBool::new(false),
            state: Mutex::new(State {
                name,
                ties: BTreeMap::new(),
                follows: false,
                live: Some(live),
                predecessor,
                delimited: 0,
                begun: BTreeMap::new(),
                read: BTreeMap::new(),
                shifts: 0,
                settings: None,
                turns: 0,
            }),
        }
    }

    /// The directory and the name.
    pub fn name(&self) -> Option<Name> {
        self.state.lock().name.clone()
    }

    /// The directory whose order of arrival its records have a place in.
    pub fn ordered_in(&self) -> Option<Number> {
        let state = self.state.lock();
        let (dir, name) = state.name.as_ref()?;
        table_of(name).and_then(|(_, shared)| shared.then_some(*dir))
    }

    /// Ties one more handle to it.
    fn tie(self: &Arc<Self>, id: u64, opened_by: Option<Name>) -> Arc<Tie> {
        let tie = Arc::new(Tie {
            id,
            opened_by,
            binding: Mutex::new(Arc::clone(self)),
        });
        self.state.lock().ties.insert(id, Arc::clone(&tie));
        tie
    }

    /// What it knows of its live file.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Marks that watchers are to be woken; true if they were not to be before.
    pub fn touch(&self) -> bool {
        !self.touched.swap(true, Ordering::AcqRel)
    }

    /// Watchers are about to be woken.
    pub fn untouch(&self) {
        self.touched.store(false, Ordering::Release);
    }
}

impl State {
    /// Whether it went along with its file before.
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// The name stands for this file.
    fn is_of(&mut self, live: Number) {
        if self.live != Some(live) {
            self.forget();
            self.live = Some(live);
        }
    }

    /// The handle of a tie is gone from here; answers where its begun record began.
    fn untie(&mut self, id: u64) -> Option<u64> {
        self.ties.remove(&id);
        self.read.remove(&id);
        self.begun.remove(&id)
    }

    /// Settings resolved under `generation`, if they were.
    pub fn settings(&self, generation: u64) -> Option<Arc<Effective>> {
        let (resolved, settings) = self.settings.as_ref()?;
        (*resolved == generation).then(|| Arc::clone(settings))
    }

    /// How often what had been resolved became void.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Remembers settings resolved under `generation`, unless they became void since `turns` was asked
    /// for.
    pub fn set_settings(&mut self, turns: u64, generation: u64, settings: Arc<Effective>) {
        if self.turns == turns {
            self.settings = Some((generation, settings));
        }
    }

    /// The name stands for another file, or for none.
    pub fn forget(&mut self) {
        self.live = None;
        self.delimited = 0;
        self.begun.clear();
        self.void_settings();
    }

    /// Settings resolved until now may be another file's.
    fn void_settings(&mut self) {
        self.turns += 1;
        self.settings = None;
    }

    /// Handle `fh` appended `gap` zeros and then `data` to the live file `live`, which ended at `end`.
    pub fn wrote(
        &mut self,
        fh: u64,
        live: Number,
        end: u64,
        gap: u64,
        data: &[u8],
        delimiter: Option<u8>,
    ) {
        self.is_of(live);
        let Some(delimiter) = delimiter else {
            self.begun.remove(&fh);
            return;
        };
        match data.iter().rposition(|byte| *byte == delimiter) {
            Some(last) => {
                self.delimited = end + gap + last as u64 + 1;
                if last + 1 == data.len() {
                    self.begun.remove(&fh);
                } else {
                    self.begun.insert(fh, self.delimited);
                }
            }
            None if data.is_empty() => {}
            None => {
                let delimited = self.delimited;
                let start = self.begun.entry(fh).or_insert(end);
                if *start < delimited {
                    *start = end;
                }
            }
        }
    }

    /// Where a cut must be made so that begun records go into the new log: the first byte, after the
    /// last delimiter, that a handle still inside its record has written. `None` when no handle is
    /// inside a record at the end of the file.
    pub fn boundary(&self) -> Option<u64> {
        self.boundary_of(|_| true)
    }

    /// As [`State::boundary`], for the handles whose ties `counts` is true for.
    pub fn boundary_of(&self, counts: impl Fn(u64) -> bool) -> Option<u64> {
        self.begun
            .iter()
            .filter(|(id, start)| **start >= self.delimited && counts(**id))
            .map(|(_, start)| *start)
            .min()
    }

    /// What stood from `end` on was carried elsewhere.
    fn cut_off(&mut self, end: u64) {
        self.begun.retain(|_, start| *start < end);
        for read in self.read.values_mut() {
            *read = (*read).min(end);
        }
    }

    /// The live log was cut: what followed is in `fresh` now, or, when there is no fresh file,
    /// nothing followed.
    pub fn cut(&mut self, fresh: Option<Fresh>, predecessor: Predecessor) {
        let begun = std::mem::take(&mut self.begun);
        self.forget();
        self.predecessor = predecessor;
        if let Some(fresh) = fresh {
            self.live = Some(fresh.number);
            self.begun = begun
                .into_iter()
                .filter_map(|(fh, start)| Some((fh, fresh.at + start.checked_sub(fresh.boundary)?)))
                .collect();
        }
    }

    /// The first `dropped` bytes of the live file are gone and the rest has moved to its start.
    pub fn shift(&mut self, dropped: u64) {
        self.shifts += 1;
        self.delimited = self.delimited.saturating_sub(dropped);
        for start in self.begun.values_mut().chain(self.read.values_mut()) {
            *start = start.saturating_sub(dropped);
        }
    }

    /// The live file was emptied: no record is begun in it.
    pub fn emptied(&mut self) {
        self.shift(u64::MAX);
        self.begun.clear();
    }

    /// How often the content of the live file has been moved; for [`State::has_read`].
    pub fn shifts(&self) -> u64 {
        self.shifts
    }

    /// Handle `fh` has read `from..to` of its file, of which it began to read when the content had
    /// been moved `shifts` times.
    pub fn has_read(&mut self, fh: u64, from: u64, to: u64, shifts: u64) {
        let end = self.read.entry(fh).or_insert(0);
        if shifts == self.shifts && from <= *end {
            *end = to.max(*end);
        }
    }

    /// End of what handle `fh` has read without a gap; `None` when it has never read.
    pub fn read_end(&self, fh: u64) -> Option<u64> {
        self.read.get(&fh).copied()
    }
}

/// What there is in one directory, by name.
type ByName<T> = HashMap<Vec<u8>, T>;

#[derive(Default)]
struct Tables {
    /// The bindings by their directory and name.
    names: HashMap<Number, ByName<Arc<Binding>>>,
    /// The ties by the name that their handles were opened by.
    ties: HashMap<Number, ByName<BTreeMap<u64, Arc<Tie>>>>,
}

impl Tables {
    fn put(&mut self, (dir, name): Name, binding: Arc<Binding>) {
        self.names.entry(dir).or_default().insert(name, binding);
    }

    fn take(&mut self, dir: Number, name: &[u8]) -> Option<Arc<Binding>> {
        take(&mut self.names, dir, name)
    }

    /// A binding that has no handle left goes.
    fn drop_if_empty(&mut self, state: &State) {
        if state.ties.is_empty()
            && let Some((dir, name)) = &state.name
        {
            self.take(*dir, name);
        }
    }

    /// The ties opened by a name that are bound elsewhere.
    fn strays(&self, dir: Number, name: &[u8]) -> Vec<Arc<Tie>> {
        let home = self.names.get(&dir).and_then(|of_dir| of_dir.get(name));
        let opened = self.ties.get(&dir).and_then(|of_dir| of_dir.get(name));
        opened
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(|tie| !home.is_some_and(|home| tie.is_on(home)))
            .cloned()
            .collect()
    }
}

/// Takes what there is under a name, and leaves no empty directory.
fn take<T>(tables: &mut HashMap<Number, ByName<T>>, dir: Number, name: &[u8]) -> Option<T> {
    let of_dir = tables.get_mut(&dir)?;
    let taken = of_dir.remove(name);
    if of_dir.is_empty() {
        tables.remove(&dir);
    }
    taken
}

/// A begun record that was carried to the log where its handles are gathered.
#[derive(Debug)]
pub struct Carried {
    /// From where.
    pub from: Arc<Binding>,
    /// The file it stood in.
    pub number: Number,
    /// Its first byte there.
    pub start: u64,
    /// Its first byte now.
    pub at: u64,
}

/// All bindings. Locks: the tables, then a tie or a state; two states only under the tables' lock.
#[derive(Default)]
pub struct Bindings {
    tables: Mutex<Tables>,
    next: AtomicU64,
}

impl Bindings {
    /// The binding of a name that has open write handles.
    pub fn find(&self, dir: Number, name: &[u8]) -> Option<Arc<Binding>> {
        self.tables.lock().names.get(&dir)?.get(name).cloned()
    }

    /// The name lost its file: its writers make it anew, with these looks if it was a regular one.
    pub fn lost(&self, dir: Number, name: &[u8], looks: Option<&Predecessor>) {
        if let Some(binding) = self.find(dir, name) {
            let mut state = binding.state();
            state.forget();
            if let Some(looks) = looks {
                state.predecessor.clone_from(looks);
            }
        }
    }

    /// Other settings are in force for a file, whatever name it is bound by.
    pub fn void_settings_of(&self, live: Number) {
        let tables = self.tables.lock();
        for binding in tables.names.values().flat_map(|of_dir| of_dir.values()) {
            let mut state = binding.state();
            // Where it must be looked up, it may be this one.
            if state.live.is_none_or(|held| held == live) {
                state.void_settings();
            }
        }
    }

    /// All names that have open write handles, in order, so that what is done to them can be repeated.
    pub fn all(&self) -> Vec<Name> {
        let tables = self.tables.lock();
        let of_dir = |(dir, names): (&Number, &ByName<_>)| -> Vec<Name> {
            names.keys().map(|name| (*dir, name.clone())).collect()
        };
        let mut names: Vec<Name> = tables.names.iter().flat_map(of_dir).collect();
        names.sort_unstable();
        names
    }

    /// Binds one more write handle to a name that stands for the file `live` now.
    pub fn bind(
        &self,
        dir: Number,
        name: &[u8],
        live: Number,
        predecessor: Predecessor,
    ) -> Arc<Tie> {
        let mut tables = self.tables.lock();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let of_dir = tables.names.entry(dir).or_default();
        let binding = of_dir.entry(name.to_vec()).or_insert_with(|| {
            Arc::new(Binding::new(Some((dir, name.to_vec())), live, predecessor))
        });
        binding.state().is_of(live);
        let tie = binding.tie(id, Some((dir, name.to_vec())));
        let of_dir = tables.ties.entry(dir).or_default();
        let of_name = of_dir.entry(name.to_vec()).or_default();
        of_name.insert(id, Arc::clone(&tie));
        tie
    }

    /// A binding for one write handle on a file without a name.
    pub fn bind_unnamed(&self, live: Number, predecessor: Predecessor) -> Arc<Tie> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        Arc::new(Binding::new(None, live, predecessor)).tie(id, None)
    }

    /// The handle of a tie is closed. Answers the file without a name that it kept, if it did.
    pub fn unbind(&self, tie: &Tie) -> Option<Number> {
        let mut tables = self.tables.lock();
        if let Some((dir, name)) = &tie.opened_by {
            let of_dir = tables.ties.get_mut(dir);
            let of_name = of_dir.and_then(|of_dir| of_dir.get_mut(name));
            if of_name
                .is_some_and(|of_name| of_name.remove(&tie.id).is_some() && of_name.is_empty())
            {
                take(&mut tables.ties, *dir, name);
            }
        }
        let binding = tie.binding();
        let mut state = binding.state();
        state.untie(tie.id);
        tables.drop_if_empty(&state);
        match state.name {
            None => state.live,
            Some(_) => None,
        }
    }

    /// The name stands for another file now, or for none.
    pub fn forget(&self, dir: Number, name: &[u8]) {
        if let Some(binding) = self.find(dir, name) {
            binding.state().forget();
        }
    }

    /// The file `live` was given another name and takes its writers along. Those who wait for a file
    /// under the new name go on in it.
    pub fn follow(&self, from: (Number, &[u8]), to: (Number, &[u8]), live: Number) {
        let mut tables = self.tables.lock();
        let Some(binding) = tables.take(from.0, from.1) else {
            return;
        };
        let waiting = tables.take(to.0, to.1);
        let name = (to.0, to.1.to_vec());
        let mut state = binding.state();
        state.is_of(live);
        state.name = Some(name.clone());
        state.follows = true;
        state.void_settings();
        if let Some(waiting) = waiting {
            let ties = std::mem::take(&mut waiting.state().ties);
            for tie in ties.values() {
                *tie.binding.lock() = Arc::clone(&binding);
            }
            state.ties.extend(ties);
        }
        drop(state);
        tables.put(name, binding);
    }

    /// The file `live` lost the name and takes its writers along. `keep` is called for each of them:
    /// nothing but they keep the file now.
    pub fn unname(&self, dir: Number, name: &[u8], live: Number, keep: impl Fn()) {
        let mut tables = self.tables.lock();
        let Some(binding) = tables.take(dir, name) else {
            return;
        };
        let mut state = binding.state();
        state.is_of(live);
        state.name = None;
        state.follows = true;
        state.void_settings();
        state.ties.iter().for_each(|_| keep());
    }

    /// The ties of handles that were opened by a name and are bound elsewhere.
    pub fn strays(&self, dir: Number, name: &[u8]) -> Vec<Arc<Tie>> {
        self.tables.lock().strays(dir, name)
    }

    /// Binds the strays of a name to it, which stands for the file `live`. Answers, once for each
    /// handle that kept one, the files without a name that they leave.
    pub fn gather(
        &self,
        dir: Number,
        name: &[u8],
        live: Number,
        predecessor: &Predecessor,
        carried: &[Carried],
    ) -> Vec<Number> {
        let mut tables = self.tables.lock();
        let mut left = Vec::new();
        let strays = tables.strays(dir, name);
        if !strays.is_empty() {
            let of_dir = tables.names.entry(dir).or_default();
            let home = Arc::clone(of_dir.entry(name.to_vec()).or_insert_with(|| {
                let name = Some((dir, name.to_vec()));
                Arc::new(Binding::new(name, live, predecessor.clone()))
            }));
            home.state().is_of(live);
            for tie in strays {
                let from = tie.binding();
                let begun = {
                    let mut state = from.state();
                    let begun = state.untie(tie.id);
                    tables.drop_if_empty(&state);
                    if state.name.is_none() {
                        left.extend(state.live);
                    }
                    begun
                };
                let mut state = home.state();
                if let Some(begun) = begun
                    && let Some(carried) = carried.iter().find(|c| Arc::ptr_eq(&c.from, &from))
                    && let Some(inside) = begun.checked_sub(carried.start)
                {
                    state.begun.insert(tie.id, carried.at + inside);
                }
                state.ties.insert(tie.id, Arc::clone(&tie));
                *tie.binding.lock() = Arc::clone(&home);
            }
        }
        for carried in carried {
            carried.from.state().cut_off(carried.start);
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks() -> Predecessor {
        Predecessor {
            perm: 0o640,
            uid: 1,
            gid: 2,
            settings: vec![],
        }
    }

    fn ties(handles: u64) -> (Bindings, Vec<Arc<Tie>>) {
        let bindings = Bindings::default();
        let bind = |_| bindings.bind(1, b"a.log", 10, looks());
        let ties = (0..handles).map(bind).collect();
        (bindings, ties)
    }

    fn bound(handles: u64) -> (Bindings, Arc<Binding>) {
        let (bindings, ties) = ties(handles);
        let binding = ties.first().unwrap().binding();
        (bindings, binding)
    }

    fn write(state: &mut State, fh: u64, at: u64, data: &[u8]) -> u64 {
        state.wrote(fh, 10, at, 0, data, Some(b'\n'));
        at + data.len() as u64
    }

    #[test]
    fn a_name_is_bound_while_a_handle_is_open() {
        let (bindings, ties) = ties(2);
        assert_eq!(bindings.unbind(&ties[0]), None);
        assert!(bindings.find(1, b"a.log").is_some());
        assert_eq!(bindings.unbind(&ties[1]), None);
        assert!(bindings.find(1, b"a.log").is_none());
        assert!(bindings.tables.lock().names.is_empty());
        assert!(bindings.tables.lock().ties.is_empty());
    }

    #[test]
    fn handles_that_followed_their_file_are_gathered_with_what_they_had_begun() {
        let (bindings, ties) = ties(2);
        let old = ties[0].binding();
        {
            let mut state = old.state();
            let at = write(&mut state, ties[0].id, 0, b"1\nab");
            write(&mut state, ties[1].id, at, b"cd");
        }
        assert!(bindings.strays(1, b"a.log").is_empty());
        bindings.follow((1, b"a.log"), (1, b"a.log.1"), 10);
        assert!(bindings.find(1, b"a.log").is_none());
        assert_eq!(bindings.strays(1, b"a.log").len(), 2);
        let third = bindings.bind(1, b"a.log.1", 10, looks());
        let carried = Carried {
            from: Arc::clone(&old),
            number: 10,
            start: 2,
            at: 7,
        };
        assert!(
            bindings
                .gather(1, b"a.log", 11, &looks(), &[carried])
                .is_empty()
        );
        let home = bindings.find(1, b"a.log").unwrap();
        assert!(ties.iter().all(|tie| tie.is_on(&home)));
        assert!(third.is_on(&old), "it was opened by the other name");
        assert_eq!(home.state().boundary(), Some(7));
        assert_eq!(home.state().begun[&ties[1].id], 9);
        assert_eq!(old.state().boundary(), None);
        ties.iter()
            .chain([&third])
            .for_each(|tie| assert_eq!(bindings.unbind(tie), None));
        assert!(bindings.tables.lock().names.is_empty());
        assert!(bindings.tables.lock().ties.is_empty());
    }

    #[test]
    fn a_file_without_a_name_is_kept_once_for_each_handle() {
        let (bindings, ties) = ties(2);
        let kept = std::cell::Cell::new(0);
        bindings.unname(1, b"a.log", 10, || kept.set(kept.get() + 1));
        assert_eq!(kept.get(), 2);
        assert_eq!(bindings.unbind(&ties[0]), Some(10));
        assert_eq!(bindings.gather(1, b"a.log", 11, &looks(), &[]), [10]);
        assert_eq!(bindings.unbind(&ties[1]), None);
    }

    #[test]
    fn those_who_wait_under_the_new_name_go_on_in_the_file_that_comes() {
        let (bindings, ties) = ties(1);
        let waiting = bindings.bind(1, b"b", 20, looks());
        bindings.forget(1, b"b");
        bindings.follow((1, b"a.log"), (1, b"b"), 10);
        assert!(waiting.is_on(&ties[0].binding()));
        assert_eq!(waiting.binding().state().live, Some(10));
    }

    #[test]
    fn nobody_inside_a_record_means_no_boundary() {
        let (_, binding) = bound(1);
        let mut state = binding.state();
        assert_eq!(state.boundary(), None);
        write(&mut state, 1, 0, b"whole\n");
        assert_eq!(state.boundary(), None);
    }

    #[test]
    fn a_begun_record_in_pieces_begins_at_its_first() {
        let (_, binding) = bound(1);
        let mut state = binding.state();
        let at = write(&mut state, 1, 0, b"one\ntw");
        assert_eq!(state.boundary(), Some(4));
        let at = write(&mut state, 1, at, b"o");
        assert_eq!(state.boundary(), Some(4));
        write(&mut state, 1, at, b"\n");
        assert_eq!(state.boundary(), None);
    }

    #[test]
    fn what_stands_before_a_delimiter_is_not_carried() {
        let (_, binding) = bound(3);
        let mut state = binding.state();
        let at = write(&mut state, 1, 0, b"ab");
        let at = write(&mut state, 2, at, b"c\n");
        assert_eq!(
            state.boundary(),
            None,
            "the begun bytes are part of a whole record now"
        );
        let at = write(&mut state, 3, at, b"e");
        assert_eq!(state.boundary(), Some(4));
        write(&mut state, 1, at, b"d");
        assert_eq!(state.boundary(), Some(4));
        state.begun.remove(&3);
        assert_eq!(state.boundary(), Some(5), "what a closed handle left stays");
    }

    #[test]
    fn a_cut_moves_begun_records_to_the_start() {
        let (_, binding) = bound(2);
        let mut state = binding.state();
        let at = write(&mut state, 1, 0, b"x\nab");
        write(&mut state, 2, at, b"cd");
        let fresh = Fresh {
            number: 11,
            boundary: 2,
            at: 0,
        };
        state.cut(Some(fresh), looks());
        assert_eq!(state.live, Some(11));
        assert_eq!(state.boundary(), Some(0));
        state.wrote(1, 11, 4, 0, b"!\n", Some(b'\n'));
        assert_eq!(state.boundary(), None);
    }

    #[test]
    fn without_records_nothing_is_begun() {
        let (_, binding) = bound(1);
        let mut state = binding.state();
        state.wrote(1, 10, 0, 0, b"abc", None);
        assert_eq!(state.boundary(), None);
    }

    #[test]
    fn reading_counts_only_without_a_gap_and_without_a_shift() {
        let (_, binding) = bound(1);
        let mut state = binding.state();
        assert_eq!(state.read_end(1), None);
        state.has_read(1, 50, 60, 0);
        assert_eq!(state.read_end(1), Some(0));
        state.has_read(1, 0, 10, 0);
        state.has_read(1, 5, 30, 0);
        state.has_read(1, 0, 3, 0);
        assert_eq!(state.read_end(1), Some(30));
        state.shift(20);
        assert_eq!(state.read_end(1), Some(10));
        state.has_read(1, 10, 40, 0);
        assert_eq!(state.read_end(1), Some(10), "read before the shift");
        state.emptied();
        assert_eq!(state.read_end(1), Some(0));
    }

    #[test]
    fn settings_of_a_file_are_void_also_where_it_is_not_looked_up_yet() {
        let bindings = Bindings::default();
        let ties = [(b"a", 10), (b"b", 10), (b"c", 11)]
            .map(|(name, live)| bindings.bind(1, name, live, looks()));
        let [known, unknown, other] = ties.map(|tie| tie.binding());
        unknown.state().forget();
        for binding in [&known, &unknown, &other] {
            let mut state = binding.state();
            let turns = state.turns();
            state.set_settings(turns, 1, Arc::default());
            // What was asked for before is no reason to keep anything.
            state.set_settings(turns.wrapping_sub(1), 2, Arc::default());
        }
        bindings.void_settings_of(10);
        let kept = [known, unknown, other].map(|binding| binding.state().settings(1).is_some());
        assert_eq!(kept, [false, false, true]);
    }
}
