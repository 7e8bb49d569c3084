//! Which file a log's writers write to: handles are bound to a name, not to an inode.
//!
//! A [`Binding`] is a name (directory, bytes) with at least one open write handle. It remembers the
//! file that the name stands for now, what a fresh file of that name shall look like, and where in
//! the live file records are begun that a cut must carry.
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
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};

use super::settings::Effective;
use crate::format::key::Number;

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

/// What a binding knows of its live file.
#[derive(Debug)]
pub struct State {
    /// Open write handles.
    handles: usize,
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
}

/// A name with open write handles, or an unnamed file with some.
#[derive(Debug)]
pub struct Binding {
    /// The directory and name; `None` when the file had no name left as it was opened.
    name: Option<(Number, Vec<u8>)>,
    /// Appenders pass it shared; whoever needs the end of the live log to stand still between two
    /// transactions holds it alone.
    pub gate: RwLock<()>,
    /// A wake-up of the watchers of this name is on its way.
    touched: AtomicBool,
    state: Mutex<State>,
}

impl Binding {
    fn new(name: Option<(Number, Vec<u8>)>, live: Number, predecessor: Predecessor) -> Self {
        Self {
            name,
            gate: RwLock::new(()),
            touched: AtomicBool::new(false),
            state: Mutex::new(State {
                handles: 0,
                live: Some(live),
                predecessor,
                delimited: 0,
                begun: BTreeMap::new(),
                read: BTreeMap::new(),
                shifts: 0,
                settings: None,
            }),
        }
    }

    /// The directory and the name.
    pub fn name(&self) -> Option<(Number, &[u8])> {
        self.name
            .as_ref()
            .map(|(dir, name)| (*dir, name.as_slice()))
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
    /// Settings resolved under `generation`, if they were.
    pub fn settings(&self, generation: u64) -> Option<Arc<Effective>> {
        let (resolved, settings) = self.settings.as_ref()?;
        (*resolved == generation).then(|| Arc::clone(settings))
    }

    /// Remembers settings resolved under `generation`.
    pub fn set_settings(&mut self, generation: u64, settings: Arc<Effective>) {
        self.settings = Some((generation, settings));
    }

    /// The name stands for another file, or for none.
    pub fn forget(&mut self) {
        if self.live.take().is_some() {
            self.delimited = 0;
            self.begun.clear();
            self.settings = None;
        }
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
        if self.live != Some(live) {
            self.forget();
            self.live = Some(live);
        }
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
        self.begun
            .values()
            .filter(|start| **start >= self.delimited)
            .min()
            .copied()
    }

    /// The live log was cut at `boundary`: what followed is now the beginning of `fresh`, or, when
    /// there is no fresh file, nothing followed.
    pub fn cut(&mut self, fresh: Option<(Number, u64)>, predecessor: Predecessor) {
        let begun = std::mem::take(&mut self.begun);
        self.forget();
        self.predecessor = predecessor;
        if let Some((live, boundary)) = fresh {
            self.live = Some(live);
            self.begun = begun
                .into_iter()
                .filter_map(|(fh, start)| Some((fh, start.checked_sub(boundary)?)))
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

/// The bindings in one directory, by name.
type InDirectory = HashMap<Vec<u8>, Arc<Binding>>;

/// All bindings.
#[derive(Default)]
pub struct Bindings {
    names: Mutex<HashMap<Number, InDirectory>>,
}

impl Bindings {
    /// The binding of a name that has open write handles.
    pub fn find(&self, dir: Number, name: &[u8]) -> Option<Arc<Binding>> {
        self.names.lock().get(&dir)?.get(name).cloned()
    }

    /// Binds one more write handle to a name that stands for the file `live` now.
    pub fn bind(
        &self,
        dir: Number,
        name: &[u8],
        live: Number,
        predecessor: Predecessor,
    ) -> Arc<Binding> {
        let mut names = self.names.lock();
        let of_dir = names.entry(dir).or_default();
        let binding = Arc::clone(of_dir.entry(name.to_vec()).or_insert_with(|| {
            Arc::new(Binding::new(Some((dir, name.to_vec())), live, predecessor))
        }));
        let mut state = binding.state.lock();
        state.handles += 1;
        if state.live != Some(live) {
            state.forget();
            state.live = Some(live);
        }
        drop(state);
        binding
    }

    /// A binding for one write handle on a file without a name.
    pub fn bind_unnamed(live: Number, predecessor: Predecessor) -> Arc<Binding> {
        Arc::new(Binding::new(None, live, predecessor))
    }

    /// Handle `fh` is closed.
    pub fn unbind(&self, binding: &Binding, fh: u64) {
        let mut names = self.names.lock();
        let mut state = binding.state.lock();
        state.begun.remove(&fh);
        state.read.remove(&fh);
        let Some((dir, name)) = &binding.name else {
            return;
        };
        state.handles = state.handles.saturating_sub(1);
        if state.handles == 0
            && let Some(of_dir) = names.get_mut(dir)
        {
            of_dir.remove(name);
            if of_dir.is_empty() {
                names.remove(dir);
            }
        }
    }

    /// The name stands for another file now, or for none.
    pub fn forget(&self, dir: Number, name: &[u8]) {
        if let Some(binding) = self.find(dir, name) {
            binding.state().forget();
        }
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

    fn bound(handles: u64) -> (Bindings, Arc<Binding>) {
        let bindings = Bindings::default();
        let binding = bindings.bind(1, b"a.log", 10, looks());
        (1..handles).for_each(|_| drop(bindings.bind(1, b"a.log", 10, looks())));
        (bindings, binding)
    }

    fn write(state: &mut State, fh: u64, at: u64, data: &[u8]) -> u64 {
        state.wrote(fh, 10, at, 0, data, Some(b'\n'));
        at + data.len() as u64
    }

    #[test]
    fn a_name_is_bound_while_a_handle_is_open() {
        let (bindings, binding) = bound(2);
        bindings.unbind(&binding, 1);
        assert!(bindings.find(1, b"a.log").is_some());
        bindings.unbind(&binding, 2);
        assert!(bindings.find(1, b"a.log").is_none());
        assert!(bindings.names.lock().is_empty());
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
        state.cut(Some((11, 2)), looks());
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
}
