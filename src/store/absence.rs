//! The thread that renamed a log does not see its old name for five seconds.
//!
//! `logrotate` renames a log and then makes the name anew with `O_CREAT|O_EXCL`. A writer at full
//! speed brings the live log back in between; the kernel would answer the create with `EEXIST` after
//! its LOOKUP alone, and logrotate would rotate a second time, to a name nobody looks at. So LOOKUP
//! by that very thread answers that the name is free, until that thread makes it or the time is up.
//! The same five seconds cover the other race of a cut: a program that looked the log up before it
//! and opens it after. Its first open for writing is answered `ESTALE`, on which the kernel looks the
//! path up again and finds what the name means now.
//!
//! Invariant: the tables hold only what is younger than [`SPAN_SECS`], so they stay small.

use std::collections::HashMap;

use crate::clock::Timestamp;
use crate::format::key::Number;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// How long, in seconds, a cut is remembered.
pub const SPAN_SECS: i64 = 5;

/// A name that a thread renamed away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Left {
    tid: u32,
    dir: Number,
    name: Vec<u8>,
}

#[derive(Default)]
struct Tables {
    /// Names renamed away, with the time.
    left: HashMap<Left, Timestamp>,
    /// Files renamed, with the time, and the threads that were already told to look again.
    moved: HashMap<Number, (Timestamp, Vec<u32>)>,
}

/// What was cut in the last five seconds, and by whom.
#[derive(Default)]
pub struct Absences {
    tables: Mutex<Tables>,
    /// Entries in both tables, so that the usual "none" costs no lock.
    len: AtomicUsize,
}

impl Absences {
    /// Thread `tid` renamed the log `(dir, name)`, whose inode is `ino`.
    pub fn begin(&self, now: Timestamp, tid: u32, dir: Number, name: &[u8], ino: Number) {
        let mut tables = self.tables.lock();
        if tid != 0 {
            tables.left.insert(
                Left {
                    tid,
                    dir,
                    name: name.to_vec(),
                },
                now,
            );
        }
        tables.moved.insert(ino, (now, Vec::new()));
        self.count(&tables);
    }

    /// Whether the name is absent in the eyes of thread `tid`.
    pub fn hides(&self, now: Timestamp, tid: u32, dir: Number, name: &[u8]) -> bool {
        if tid == 0 || self.len.load(Ordering::Acquire) == 0 {
            return false;
        }
        let key = Left {
            tid,
            dir,
            name: name.to_vec(),
        };
        self.tables
            .lock()
            .left
            .get(&key)
            .is_some_and(|then| fresh(*then, now))
    }

    /// Thread `tid` made the name: it sees it again.
    pub fn end(&self, tid: u32, dir: Number, name: &[u8]) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut tables = self.tables.lock();
        tables.left.remove(&Left {
            tid,
            dir,
            name: name.to_vec(),
        });
        self.count(&tables);
    }

    /// Whether an open for writing of `ino` by `tid` shall look its path up again: the file was
    /// renamed a moment ago, and the thread may have looked before that. True once per thread and
    /// open; the second time the thread means the file itself.
    pub fn sends_back(&self, now: Timestamp, tid: u32, ino: Number) -> bool {
        if tid == 0 || self.len.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut tables = self.tables.lock();
        let Some((then, told)) = tables.moved.get_mut(&ino) else {
            return false;
        };
        if !fresh(*then, now) {
            return false;
        }
        match told.iter().position(|t| *t == tid) {
            Some(at) => {
                told.swap_remove(at);
                false
            }
            None => {
                told.push(tid);
                true
            }
        }
    }

    /// Forgets what is older than five seconds.
    pub fn expire(&self, now: Timestamp) {
        if self.len.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut tables = self.tables.lock();
        tables.left.retain(|_, then| fresh(*then, now));
        tables.moved.retain(|_, (then, _)| fresh(*then, now));
        self.count(&tables);
    }

    fn count(&self, tables: &Tables) {
        self.len
            .store(tables.left.len() + tables.moved.len(), Ordering::Release);
    }
}

/// Whether `then` is less than five seconds before `now`; a clock set back counts as fresh for no
/// longer than that either.
fn fresh(then: Timestamp, now: Timestamp) -> bool {
    let end = Timestamp {
        secs: then.secs.saturating_add(SPAN_SECS),
        nanos: then.nanos,
    };
    let begin = Timestamp {
        secs: then.secs.saturating_sub(SPAN_SECS),
        nanos: then.nanos,
    };
    (begin..end).contains(&now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Timestamp = Timestamp::from_secs(1000);

    #[test]
    fn only_the_thread_that_renamed_and_only_for_five_seconds() {
        let absences = Absences::default();
        assert!(!absences.hides(T, 7, 1, b"a"));
        absences.begin(T, 7, 1, b"a", 50);
        assert!(absences.hides(T, 7, 1, b"a"));
        assert!(!absences.hides(T, 8, 1, b"a"));
        assert!(!absences.hides(T, 7, 2, b"a"));
        assert!(!absences.hides(T, 7, 1, b"b"));
        assert!(absences.hides(
            Timestamp {
                secs: 1004,
                nanos: 999_999_999
            },
            7,
            1,
            b"a"
        ));
        assert!(!absences.hides(Timestamp::from_secs(1005), 7, 1, b"a"));
        absences.expire(Timestamp::from_secs(1005));
        assert_eq!(absences.len.load(Ordering::Acquire), 0);
    }

    #[test]
    fn making_the_name_ends_it() {
        let absences = Absences::default();
        absences.begin(T, 7, 1, b"a", 50);
        absences.begin(T, 8, 1, b"a", 51);
        absences.end(7, 1, b"a");
        assert!(!absences.hides(T, 7, 1, b"a"));
        assert!(absences.hides(T, 8, 1, b"a"));
    }

    #[test]
    fn nobody_hides_from_requests_without_a_thread() {
        let absences = Absences::default();
        absences.begin(T, 0, 1, b"a", 50);
        assert!(!absences.hides(T, 0, 1, b"a"));
        assert!(!absences.sends_back(T, 0, 50));
    }

    #[test]
    fn an_open_is_sent_back_once_per_thread() {
        let absences = Absences::default();
        absences.begin(T, 7, 1, b"a", 50);
        assert!(absences.sends_back(T, 9, 50));
        assert!(absences.sends_back(T, 10, 50));
        assert!(!absences.sends_back(T, 9, 50));
        assert!(absences.sends_back(T, 9, 50));
        assert!(!absences.sends_back(T, 9, 51));
        assert!(!absences.sends_back(Timestamp::from_secs(1006), 11, 50));
    }
}
