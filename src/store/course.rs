//! Goes through the files of a directory and removes those that are due.
//!
//! Names stand in the order of their hashes, files in that of their numbers: who followed the one would come to
//! another page of the other with every step. So some hundred thousand names are read, and their files are
//! looked at in the order of their numbers: then what a checkpoint takes away is gathered in few pages of files,
//! and not in many more of names.
//!
//! Invariant: whether a file is due is asked again in the operation that removes it.

use super::Store;
use super::settings::Effective;
use crate::cask::{Class, Lsn, Read, Tx};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::key::Number;
use crate::fs::inode::{Inode, load};
use crate::fs::namespace;

/// Names read before their files are looked at: 16 bytes of memory each.
pub(super) const GATHERED: usize = 1 << 18;
/// Names read at a time.
const NAMES: usize = 256;
/// Files removed in one operation: a millisecond or so for whoever waits for it.
const BATCH: usize = 32;

/// How far a directory was gone through.
#[derive(Default)]
pub(super) struct Course {
    /// Hash of the name to go on from.
    from: u64,
    /// All names were read.
    ended: bool,
    /// Files to look at, with the hashes of their names.
    files: Vec<(Number, u64)>,
    /// They are in order, the first last.
    ordered: bool,
    /// What a file, or names, could not be read for. It keeps no other from being removed that was found.
    failed: Option<Error>,
}

/// How much may be done.
pub(super) struct Budget {
    /// Names read, and files looked at.
    pub looks: usize,
    /// Files removed.
    pub files: usize,
    /// Names read before their files are looked at.
    pub gathered: usize,
    /// Others go first, and room is made before they need it.
    pub at_leisure: bool,
}

impl Budget {
    /// As much as there is.
    pub fn all() -> Self {
        Self {
            looks: usize::MAX,
            files: usize::MAX,
            gathered: GATHERED,
            at_leisure: false,
        }
    }
}

/// Which files are due. What is open is not, whatever this says.
pub(super) struct Due<'a> {
    /// By the file.
    pub file: &'a dyn Fn(&Inode, &Effective) -> bool,
    /// By the name.
    pub name: &'a dyn Fn(&[u8]) -> bool,
}

/// What was removed by one operation.
pub(super) struct Gone {
    /// Names.
    pub names: Vec<Vec<u8>>,
    /// The last operation.
    pub lsn: Lsn,
}

/// Whether it says something of what was to be read, and nothing of what else can be done: that the cask cannot
/// be written any more is [`Error::Failed`].
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Corrupt(_) | Error::Io { .. })
}

impl<D: Device> Store<D> {
    /// Removes files of a directory that are due, as far as the budget goes; `tell` hears of each operation.
    /// Answers whether the directory is gone through; then the course begins anew.
    ///
    /// # Errors
    /// Those of writing; that something could not be read is said at the end.
    pub(super) fn remove_due(
        &self,
        dir: Number,
        course: &mut Course,
        budget: &mut Budget,
        due: &Due<'_>,
        tell: &mut dyn FnMut(Gone),
    ) -> Result<bool> {
        loop {
            if !course.ordered {
                if !self.read_names(dir, course, budget) {
                    return Ok(false);
                }
                course.files.sort_unstable_by(|a, b| b.cmp(a));
                course.ordered = true;
            }
            while !course.files.is_empty() {
                if budget.looks == 0 || budget.files == 0 {
                    return Ok(false);
                }
                let batch = self.pick(course, budget, due);
                if !batch.is_empty() {
                    if budget.at_leisure && self.cask.is_crowded() {
                        self.cask.checkpoint()?;
                    }
                    let (gone, failed) = self.remove_files(dir, &batch, due);
                    budget.files = budget.files.saturating_sub(gone.names.len());
                    if !gone.names.is_empty() {
                        tell(gone);
                    }
                    match failed {
                        Some(error) if !is_damage(&error) => return Err(error),
                        Some(error) => course.failed = Some(error),
                        None => {}
                    }
                    if budget.at_leisure {
                        self.cask.give_way();
                    }
                }
            }
            if course.ended {
                let failed = std::mem::take(course).failed;
                return failed.map_or(Ok(true), Err);
            }
            course.ordered = false;
        }
    }

    /// Reads names until there are enough, or no more; answers whether it is so.
    fn read_names(&self, dir: Number, course: &mut Course, budget: &mut Budget) -> bool {
        while !course.ended && course.files.len() < budget.gathered {
            if budget.looks == 0 {
                return false;
            }
            let most = budget.looks.min(NAMES);
            budget.looks -= most;
            match namespace::files_from(&*self.cask, dir, course.from, most, &mut course.files) {
                Ok(Some(next)) => course.from = next,
                Ok(None) => course.ended = true,
                // Those before them go.
                Err(error) => {
                    course.failed = Some(error);
                    course.ended = true;
                }
            }
        }
        true
    }

    /// The next files that are due, as far as one can see.
    fn pick(&self, course: &mut Course, budget: &mut Budget, due: &Due<'_>) -> Vec<(Number, u64)> {
        let mut batch = Vec::new();
        while batch.len() < BATCH.min(budget.files)
            && budget.looks > 0
            && let Some((number, hash)) = course.files.pop()
        {
            budget.looks -= 1;
            match self.is_due(&*self.cask, number, due) {
                Ok(true) => batch.push((number, hash)),
                Ok(false) => {}
                Err(error) => course.failed = Some(error),
            }
        }
        batch
    }

    fn is_due(&self, r: &impl Read, number: Number, due: &Due<'_>) -> Result<bool> {
        match load(r, number) {
            Ok(inode) => Ok(inode.is_file()
                && (due.file)(&inode, &*self.walk.of(r, &inode)?)
                && !self.fs.opens().has(number)),
            Err(Error::Stale) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes those of the files that are due; what was removed, and what some were not removed for.
    fn remove_files(
        &self,
        dir: Number,
        files: &[(Number, u64)],
        due: &Due<'_>,
    ) -> (Gone, Option<Error>) {
        let whole = self.cask.transact(Class::Release, |tx| {
            let mut names = Vec::new();
            for file in files {
                names.extend(self.remove_file(tx, dir, *file, due, &|_| false)?);
            }
            Ok(names)
        });
        if let Ok((names, lsn)) = whole {
            return (Gone { names, lsn }, None);
        }
        // A cask that is full has room to remove one at a time, however many attributes it has; and one that
        // cannot be read keeps no other.
        let (mut names, mut lsn, mut failed) = (Vec::new(), Lsn::default(), None);
        for file in files {
            let removed = self.fs.abandoning(
                Class::Release,
                |tx, keep| self.remove_file(tx, dir, *file, due, keep),
                |_| (),
            );
            match removed {
                Ok((name, last)) => {
                    names.extend(name);
                    lsn = last;
                }
                Err(error) => {
                    let stop = !is_damage(&error);
                    failed = Some(error);
                    if stop {
                        break;
                    }
                }
            }
        }
        (Gone { names, lsn }, failed)
    }

    /// Removes a file if it is due; answers its name.
    fn remove_file(
        &self,
        tx: &mut Tx<'_, D>,
        dir: Number,
        (number, hash): (Number, u64),
        due: &Due<'_>,
        keep: &dyn Fn(Number) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        if !self.is_due(tx, number, due)? {
            return Ok(None);
        }
        let Some(named) = namespace::named_by(tx, dir, hash, number)? else {
            return Ok(None);
        };
        let name = &named.entry.name;
        if !(due.name)(name) || self.bindings.find(dir, name).is_some() {
            return Ok(None);
        }
        namespace::unlink_named(tx, &named, keep, self.now())?;
        Ok(Some(named.entry.name))
    }
}
