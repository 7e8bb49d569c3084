//! Rotation on request: `caskfs rotate`, or a write to `.cask/rotate`.
//!
//! With `roll-on=reopen` it is the second half of a rotation, the "reopen your log" that other systems
//! send to the writer: every open handle that was opened by the name is bound to it again. That is
//! one transaction: the log is made there if it is not, the records that those handles had begun are
//! carried into it, and the files they stood in end before them. With `roll-on=rename` it is a whole
//! roll: the log is renamed to what `roll-name` says, which cuts it.
//!
//! Invariant: when the transaction is over no handle that was opened by the name leads elsewhere, and
//! a write that was under way looks its file up again, within its own transaction.

use std::collections::HashSet;
use std::sync::Arc;

use super::Store;
use super::binding::{Binding, Carried, Predecessor, Tie};
use super::events::Cause;
use super::log::{make_like, predecessor};
use super::roll::{Carry, end_at};
use super::settings::{Effective, Mode};
use super::{Notice, not_the_door};
use crate::cask::{Class, Lsn, Read, Tx};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::inode::{Inode, STICKY, load, load_dir};
use crate::fs::{Caller, data, namespace, segment};
use crate::limits::CARRY_MAX;

/// The log under a name, after its handles were gathered there.
struct Gathered {
    log: Number,
    looks: Predecessor,
    carried: Vec<Carried>,
    /// Files that handles without a name leave; known when they have left.
    left: Vec<Number>,
}

/// Records that were begun, and the bindings of the files they stand in.
type Begun = Vec<(Arc<Binding>, Carry)>;

/// What there is under the name of a log that is to be rotated.
enum Found {
    /// Handles that had gone along with their file are back.
    Gathered(Gathered),
    /// A log whose handles are where they should be, to be cut by a rename.
    Log,
    /// Nothing is to be done.
    Settled,
}

impl<D: Device> Store<D> {
    /// Rotates a log: binds the handles that went along with its last segment to its name again, or,
    /// where a rename cuts, renames it to its next automatic name.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing has the name and no handle was opened by it, unless the store
    /// is of `roll-on=reopen`, where that is how a log is left that nobody writes;
    /// [`Error::Invalid`] for what is no log; [`Error::NotPermitted`] in a sticky directory of others;
    /// those of writing.
    pub fn rotate(&self, caller: &Caller, dir: Number, name: &[u8]) -> Result<()> {
        not_the_door(dir, name)?;
        let (found, lsn) = self.gather(caller, dir, name)?;
        match found {
            Found::Settled => self.confirm_in(dir, lsn),
            Found::Log => self.roll_by_itself(dir, name),
            Found::Gathered(gathered) => {
                for carried in &gathered.carried {
                    self.notify(Notice::InvalidateInode(carried.number));
                }
                for ino in gathered.left {
                    self.let_go(ino)?;
                }
                self.confirm_in(dir, lsn)
            }
        }
    }

    fn gather(&self, caller: &Caller, dir: Number, name: &[u8]) -> Result<(Found, Lsn)> {
        let now = self.now();
        self.cask.transact_then(
            Class::Grow,
            |tx| {
                let log = match namespace::lookup(tx, dir, name) {
                    Ok(inode) if inode.is_dir() => return Err(Error::IsDirectory),
                    Ok(inode) if !inode.is_file() => return Err(no_log()),
                    Ok(inode) => Some(inode),
                    Err(Error::NotFound) => None,
                    Err(error) => return Err(error),
                };
                may_rotate(tx, caller, dir, log.as_ref())?;
                let strays = self.bindings.strays(dir, name);
                if strays.is_empty() {
                    return self.settled(tx, dir, name, log.as_ref());
                }
                let (looks, begun) = self.begun_by(tx, &strays)?;
                let mut log = match log {
                    Some(mut log) => {
                        segment::unmark(tx, &mut log)?;
                        log
                    }
                    None => make_like(tx, dir, name, &looks, now)?,
                };
                let mut carried = Vec::new();
                for (from, carry) in begun {
                    let bytes = self.bytes_of(tx, carry)?;
                    let at = log.size;
                    data::write_bytes(tx, caller, &mut log, at, &bytes, now)?;
                    end_at(tx, carry)?;
                    carried.push(Carried {
                        from,
                        number: carry.number,
                        start: carry.start,
                        at,
                    });
                }
                Ok(Found::Gathered(Gathered {
                    log: log.number,
                    looks,
                    carried,
                    left: Vec::new(),
                }))
            },
            |found| {
                if let Found::Gathered(gathered) = found {
                    let Gathered { log, looks, .. } = gathered;
                    let carried = &gathered.carried;
                    gathered.left = self.bindings.gather(dir, name, *log, looks, carried);
                }
            },
        )
    }

    /// What is to be done with a log that no handle has gone away from.
    fn settled(
        &self,
        r: &impl Read,
        dir: Number,
        name: &[u8],
        log: Option<&Inode>,
    ) -> Result<Found> {
        let settings = match (log, self.bindings.find(dir, name)) {
            (Some(log), _) => self.walk.of(r, log)?,
            // It was cut, and nothing was written since.
            (None, Some(_)) => return Ok(Found::Settled),
            // In a store where a rename cuts nothing, that nobody has to come back is all there is to say.
            (None, None) => match *self.walk.of_dir(r, dir)? {
                Effective {
                    mode: Mode::Log,
                    reopen: true,
                    ..
                } => return Ok(Found::Settled),
                _ => return Err(Error::NotFound),
            },
        };
        match *settings {
            Effective {
                mode: Mode::Log,
                reopen: false,
                ..
            } => Ok(Found::Log),
            Effective {
                mode: Mode::Log, ..
            } => Ok(Found::Settled),
            _ => Err(no_log()),
        }
    }

    /// What a fresh log in place of the file that these handles are on is to look like, and for each
    /// such file the record they have begun at its end.
    fn begun_by(&self, r: &impl Read, strays: &[Arc<Tie>]) -> Result<(Predecessor, Begun)> {
        let ids: HashSet<u64> = strays.iter().map(|tie| tie.id).collect();
        let mut seen = HashSet::new();
        let mut looks = None;
        let mut begun = Begun::new();
        let mut room = CARRY_MAX;
        for tie in strays {
            let binding = tie.binding();
            if !seen.insert(Arc::as_ptr(&binding)) {
                continue;
            }
            let (live, start) = {
                let state = binding.state();
                (state.live, state.boundary_of(|id| ids.contains(&id)))
            };
            let Some(inode) = live.map(|number| load(r, number)).transpose()? else {
                // Cut since its settings were changed, and nothing written since.
                looks.get_or_insert_with(|| binding.state().predecessor.clone());
                continue;
            };
            // Ties come in the order in which they were opened, so the last file was the last here.
            looks = Some(predecessor(r, &inode)?);
            if let Some(carry) = start.and_then(|start| Carry::of(&inode, start))
                && carry.len <= room
                && self.walk.of(r, &inode)?.record.is_some()
            {
                room -= carry.len;
                begun.push((binding, carry));
            }
        }
        looks.map(|looks| (looks, begun)).ok_or(Error::NotFound)
    }

    /// Cuts a log and gives the segment its next automatic name.
    fn roll_by_itself(&self, dir: Number, name: &[u8]) -> Result<()> {
        let lsn = self.cut_when(dir, name, Cause::Rotate, &|_, _| true)?;
        self.confirm_in(dir, lsn)
    }
}

/// What is to be rotated and is no log.
pub fn no_log() -> Error {
    Error::invalid("is no log; only a file in mode=log is rotated")
}

/// Whoever may write in a directory may rotate in it, which the kernel has checked; in a sticky one
/// only as far as they could rename.
fn may_rotate<D: Device>(
    tx: &Tx<'_, D>,
    caller: &Caller,
    dir: Number,
    log: Option<&Inode>,
) -> Result<()> {
    let parent = load_dir(tx, dir)?;
    let owns = |inode: &Inode| inode.uid == caller.uid;
    if parent.mode & STICKY == 0 || caller.uid == 0 || owns(&parent) || log.is_none_or(owns) {
        return Ok(());
    }
    Err(Error::NotPermitted(
        "in a sticky directory only the owner of a log rotates it",
    ))
}
