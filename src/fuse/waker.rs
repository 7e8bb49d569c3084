//! The daemon's side of waking those who watch a log; [`waking`](super::waking) is the other one.
//!
//! The kernel tells watchers of a change that comes through it, and what a writer appends after a cut
//! came to it under another name. So somebody must touch the live log through the mount. That cannot be
//! a thread of the daemon: killed while it waits for an answer that the daemon owes it, it would keep the
//! connection open, and everybody else would wait, too. A process of its own does it, which has nothing
//! of the daemon's but the end of a pipe.
//!
//! Invariants: whoever asks for a wake-up never waits, not for the pipe either; what that process
//! changes through the mount is not done; its number counts as its own only until it is reaped; and it is
//! started when it is first needed, and again at most once a minute.

use std::io::{self, ErrorKind, PipeWriter, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::OFlags;
use rustix::process::{Pid, WaitId, WaitIdOptions};

use super::sys;
use super::waking::{MountPlace, ORDER_MAX};

/// The command that runs [`waking::serve`](super::waking::serve) for a mount.
pub type Helper = fn(&MountPlace) -> Command;

/// Least time from one start of the process to the next.
const RESTART: Duration = Duration::from_secs(60);
/// How long it may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(5);

/// Wake-ups on their way to the process.
#[derive(Default)]
pub(super) struct WakeUps {
    state: Mutex<State>,
    changed: Condvar,
    /// The process; 0 for none.
    pid: AtomicU32,
}

#[derive(Default)]
enum State {
    /// Nobody was to be woken yet.
    #[default]
    Idle,
    /// The process is to be started.
    Wanted,
    /// It reads from the other end of this.
    Running(PipeWriter),
    /// It ended, and the next one must not be started yet.
    Resting,
    /// The mount is going.
    Over,
}

impl WakeUps {
    /// Asks for the watchers of this path to be woken. False when there is no room now: ask again.
    pub fn ask(&self, path: &[u8]) -> bool {
        let mut state = self.state.lock();
        match &mut *state {
            State::Idle => {
                *state = State::Wanted;
                self.changed.notify_all();
                false
            }
            State::Wanted => false,
            State::Running(pipe) => send(pipe, path),
            State::Resting | State::Over => true,
        }
    }

    /// Whether a request of this process is of the waking process's making.
    pub fn is_waking(&self, pid: u32) -> bool {
        pid != 0 && pid == self.pid.load(Ordering::Acquire)
    }

    /// Waits until the process is wanted; false at the end.
    fn wait_until_wanted(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            match *state {
                State::Wanted => return true,
                State::Over => return false,
                _ => self.changed.wait(&mut state),
            }
        }
    }

    /// Changes the state, but for its last.
    fn become_unless_over(&self, next: State) {
        let mut state = self.state.lock();
        if !matches!(*state, State::Over) {
            *state = next;
        }
    }

    /// Waits until a process may be started again.
    fn rest_until(&self, time: Instant) {
        let mut state = self.state.lock();
        while !matches!(*state, State::Over) {
            if self.changed.wait_until(&mut state, time).timed_out() {
                *state = State::Idle;
                return;
            }
        }
    }

    fn is_over(&self) -> bool {
        matches!(*self.state.lock(), State::Over)
    }

    fn end(&self) {
        // Closes the pipe, and so ends the process.
        *self.state.lock() = State::Over;
        self.changed.notify_all();
    }
}

/// Puts an order into the pipe, whole or not at all.
fn send(pipe: &mut PipeWriter, path: &[u8]) -> bool {
    if path.len() >= ORDER_MAX {
        // No system call would take such a path.
        return true;
    }
    let order = [path, b"\0"].concat();
    // When nobody reads any more, the thread below learns of it in a moment.
    pipe.write(&order).is_ok()
}

/// The thread that starts the process and reaps it.
pub(super) struct Waker {
    wake_ups: Arc<WakeUps>,
    thread: Option<JoinHandle<()>>,
    gone: Receiver<()>,
}

impl Waker {
    /// Begins to pass on what is asked of `wake_ups`.
    ///
    /// # Errors
    /// When the operating system has no more threads.
    pub fn start(wake_ups: Arc<WakeUps>, place: MountPlace, helper: Helper) -> io::Result<Self> {
        let (going, gone) = channel();
        let asked = Arc::clone(&wake_ups);
        let thread = thread::Builder::new().name("waker".into()).spawn(move || {
            keep_running(&asked, || helper(&place));
            drop(going);
        })?;
        Ok(Self {
            wake_ups,
            thread: Some(thread),
            gone,
        })
    }

    /// Ends the process and waits for its end. The mount must be served until then, or be gone.
    pub fn end(&mut self) {
        self.wake_ups.end();
        let Some(thread) = self.thread.take() else {
            return;
        };
        match self.gone.recv_timeout(GRACE) {
            // It ends by itself when the kernel gives up on its request, with this process at the latest.
            Err(RecvTimeoutError::Timeout) => {
                log::warn!("the process that wakes watchers does not end; going on without it");
            }
            _ => drop(thread.join()),
        }
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.end();
    }
}

fn keep_running(wake_ups: &WakeUps, command: impl Fn() -> Command) {
    while wake_ups.wait_until_wanted() {
        let started = Instant::now();
        let ended = start(command()).and_then(|(child, pipe)| {
            wake_ups.pid.store(child.id(), Ordering::Release);
            wake_ups.become_unless_over(State::Running(pipe));
            reap(child, &wake_ups.pid)
        });
        wake_ups.become_unless_over(State::Resting);
        if wake_ups.is_over() {
            return;
        }
        match ended {
            Ok(status) => log::warn!("the process that wakes watchers ended ({status})"),
            Err(error) => log::warn!("cannot run the process that wakes watchers: {error}"),
        }
        wake_ups.rest_until(started + RESTART);
    }
}

fn start(mut command: Command) -> io::Result<(Child, PipeWriter)> {
    let (orders, pipe) = io::pipe()?;
    let flags = rustix::fs::fcntl_getfl(&pipe)?;
    rustix::fs::fcntl_setfl(&pipe, flags | OFlags::NONBLOCK)?;
    // What a caller left open in this process is nothing for that one.
    sys::keep_open_files_to_ourselves()?;
    let child = command.stdin(orders).stdout(Stdio::null()).spawn()?;
    Ok((child, pipe))
}

/// Waits for the end. As long as it is not reaped nobody else has its number.
fn reap(mut child: Child, pid: &AtomicU32) -> io::Result<ExitStatus> {
    if let Some(id) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let end = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(error) =
            rustix::process::waitid(WaitId::Pid(id), end).map_err(io::Error::from)
            && error.kind() == ErrorKind::Interrupted
        {}
    }
    pid.store(0, Ordering::Release);
    child.wait()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};

    fn wait_for(mut met: impl FnMut() -> bool) {
        let start = Instant::now();
        while !met() {
            assert!(start.elapsed() < Duration::from_secs(20), "waited in vain");
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn place(path: &Path) -> MountPlace {
        MountPlace {
            mountpoint: path.to_owned(),
            device: 1,
            mount: 2,
        }
    }

    /// Copies its orders to the file that is called the mountpoint here.
    fn copies(place: &MountPlace) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"exec cat > "$0""#])
            .arg(&place.mountpoint);
        command
    }

    /// Takes no order, as one that is stopped.
    fn stalls(_: &MountPlace) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "while ! read -r line; do :; done"]);
        command
    }

    fn running(wake_ups: &WakeUps) -> bool {
        matches!(*wake_ups.state.lock(), State::Running(_))
    }

    fn begin(helper: Helper, path: PathBuf) -> (Arc<WakeUps>, Waker) {
        let wake_ups = Arc::new(WakeUps::default());
        let waker = Waker::start(Arc::clone(&wake_ups), place(&path), helper).unwrap();
        (wake_ups, waker)
    }

    #[test]
    fn it_is_started_when_needed_and_ends_with_the_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("orders");
        let (wake_ups, mut waker) = begin(copies, file.clone());
        assert!(matches!(*wake_ups.state.lock(), State::Idle));
        wait_for(|| wake_ups.ask(b"logs/a"));
        assert!(wake_ups.ask(b"logs/b"));
        assert!(wake_ups.ask(&[b'x'; ORDER_MAX]), "is not worth a try");
        let pid = wake_ups.pid.load(Ordering::Acquire);
        assert!(wake_ups.is_waking(pid) && !wake_ups.is_waking(0) && !wake_ups.is_waking(1));
        waker.end();
        assert_eq!(std::fs::read(&file).unwrap(), b"logs/a\0logs/b\0");
        assert!(!wake_ups.is_waking(pid) && !wake_ups.is_waking(0));
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is reaped");
        assert!(wake_ups.ask(b"logs/c"), "nobody is woken any more");
    }

    #[test]
    fn one_that_takes_nothing_makes_nobody_wait() {
        let (wake_ups, waker) = begin(stalls, PathBuf::new());
        wait_for(|| wake_ups.ask(b"first") || running(&wake_ups));
        // Fills a pipe of 64 KiB, then says no; `read -r` takes a byte at a time and finds no newline.
        let path = [b'p'; 4000];
        let start = Instant::now();
        let mut refused = 0;
        for _ in 0..1000 {
            refused += u32::from(!wake_ups.ask(&path));
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        assert!(refused > 0, "a pipe without end");
        let pid = wake_ups.pid.load(Ordering::Acquire);
        let id = Pid::from_raw(pid.cast_signed()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
        wait_for(|| !wake_ups.is_waking(pid));
        drop(waker);
    }

    #[test]
    fn one_that_ends_is_not_started_again_at_once() {
        let (wake_ups, waker) = begin(|_| Command::new("true"), PathBuf::new());
        wake_ups.ask(b"a");
        wait_for(|| matches!(*wake_ups.state.lock(), State::Resting));
        assert!(wake_ups.ask(b"a"), "there is nobody to keep it for");
        assert_eq!(wake_ups.pid.load(Ordering::Acquire), 0);
        drop(waker);
        // What cannot be started is treated alike.
        let (wake_ups, waker) = begin(|_| Command::new("/nonexistent"), PathBuf::new());
        wake_ups.ask(b"a");
        wait_for(|| matches!(*wake_ups.state.lock(), State::Resting));
        drop(waker);
        // And after a while it may be.
        let wake_ups = WakeUps::default();
        *wake_ups.state.lock() = State::Resting;
        wake_ups.rest_until(Instant::now());
        assert!(matches!(*wake_ups.state.lock(), State::Idle));
    }

    #[test]
    fn its_number_is_its_own_until_it_is_reaped() {
        let pid = AtomicU32::new(7);
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let status = reap(child, &pid).unwrap();
        assert_eq!((status.code(), status.signal()), (Some(3), None));
        assert_eq!(pid.load(Ordering::Acquire), 0);
    }
}
