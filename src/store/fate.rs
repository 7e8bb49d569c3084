//! Whether the thread that closes a file is being killed.
//!
//! A writer that dies by a signal has not finished what it was saving, so its close must not be
//! taken for a save. The kernel sends the same FLUSH for both; only `/proc` tells them apart. The
//! question stands behind a trait so that tests answer it.
//!
//! Invariant: asking never waits for the thread that is asked about, since that thread waits for us.
//! `/proc/TID/stat` takes a lock that `execve(2)` holds while it closes descriptors; `statm` takes
//! none, and shows no memory only for a thread on its way out, which can no longer be in `execve`.
//! Following `/proc/TID/fd/N` waits for `execve` as well, so whether a duplicate of what is closed is
//! left cannot be looked up there.

use std::fs;

/// Answers how a thread is faring.
pub trait Fate: Send + Sync {
    /// Whether the thread `tid` is on its way out because of a signal. False when it lives, when it
    /// leaves by `exit` and when nothing can be learnt about it.
    fn is_killed(&self, tid: u32) -> bool;
}

/// Asks `/proc/TID/statm`, and `/proc/TID/stat` of a thread that has no memory any more.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcFate;

impl Fate for ProcFate {
    fn is_killed(&self, tid: u32) -> bool {
        let read = |file| fs::read_to_string(format!("/proc/{tid}/{file}"));
        tid != 0
            && read("statm").is_ok_and(|statm| has_no_memory(&statm))
            && read("stat").is_ok_and(|stat| killed(&stat))
    }
}

/// Whether a line of `/proc/TID/statm` is that of a task without an address space. A thread gives it
/// up before it closes its files.
fn has_no_memory(statm: &str) -> bool {
    statm.split_ascii_whitespace().next() == Some("0")
}

/// The task is leaving (`PF_EXITING`).
const EXITING: u64 = 0x4;

/// Whether a line of `/proc/TID/stat` shows a task that is leaving because of a signal.
///
/// The exit code decides, not `PF_SIGNALED`: the kernel sets that flag also on the other threads of
/// a process that calls `exit`. The code's low seven bits are the signal of a death by one.
fn killed(stat: &str) -> bool {
    // The command name may hold spaces and parentheses; what follows the last one does not.
    let Some((_, fields)) = stat.rsplit_once(')') else {
        return false;
    };
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // proc_pid_stat(5) counts from 1 and the state, first here, is field 3.
    let field = |number: usize| fields.get(number - 3).and_then(|f| f.parse::<u64>().ok());
    let leaving = field(9).is_some_and(|flags| flags & EXITING != 0);
    leaving && field(52).is_some_and(|code| code & 0x7f != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line as Linux 6 writes it, with these flags and this exit code.
    fn line(name: &str, flags: u64, code: u64) -> String {
        let zeros = "0 ".repeat(42);
        format!("4711 ({name}) R 1 4711 4711 0 -1 {flags} {zeros}{code}")
    }

    #[test]
    fn only_a_death_by_signal_counts() {
        assert!(killed(&line("sh", 0x40_0404, 9)));
        assert!(killed(&line("a) R 1 (b", 0x404, 0x80 | 11)));
        assert!(!killed(&line("sh", 0x40_0000, 0)), "alive");
        assert!(!killed(&line("sh", 0x4, 256)), "exit(1)");
        assert!(
            !killed(&line("sh", 0x404, 0)),
            "a sibling thread called exit(0)"
        );
        assert!(!killed(&line("sh", 0x400, 9)), "signalled, not leaving yet");
        assert!(!killed(""));
        assert!(!killed("1 (x) R"));
    }

    #[test]
    fn memory_tells_who_is_leaving() {
        assert!(has_no_memory("0 0 0 0 0 0 0\n"));
        assert!(!has_no_memory("701 312 280 5 0 110 0\n"));
        assert!(!has_no_memory(""));
    }

    #[test]
    fn this_thread_is_well() {
        assert!(!ProcFate.is_killed(std::process::id()));
        assert!(!ProcFate.is_killed(0));
    }
}
