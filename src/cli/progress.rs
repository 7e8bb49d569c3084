//! How far long work has come, on a terminal: one line on standard error that is written over.
//!
//! Invariant: when standard error is no terminal nothing is written at all.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time between two updates of the line.
const INTERVAL: Duration = Duration::from_millis(100);

/// A line that tells how far some work has come; it goes away with this.
pub struct Progress {
    what: &'static str,
    terminal: bool,
    next: Instant,
    written: bool,
}

impl Progress {
    /// A line about `what`, such as "checking". Short work never shows it.
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            terminal: io::stderr().is_terminal(),
            next: Instant::now() + 5 * INTERVAL,
            written: false,
        }
    }

    /// `done` of `total` is done.
    pub fn show(&mut self, done: u64, total: u64) {
        if !self.terminal || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + INTERVAL;
        self.written = true;
        let percent = percent(done, total);
        // A line that cannot be shown is no reason to stop the work.
        let _ = write!(io::stderr(), "\r{}: {percent:3}% ", self.what);
    }
}

fn percent(done: u64, total: u64) -> u128 {
    let total = u128::from(total.max(1));
    (u128::from(done) * 100 / total).min(100)
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.written {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_stay_within_bounds() {
        assert_eq!(percent(0, 0), 0);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(5, 3), 100);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
