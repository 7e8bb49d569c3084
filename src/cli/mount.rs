//! `caskfs mount`: returns when the mount answers, with the reason when it does not.
//!
//! The daemon is this program anew, in a session of its own; its standard output is a pipe to the one
//! who called `mount`, on which it says one line: that it is ready, or why not. Invariant: nobody is
//! told that a mount is there before a request through its mountpoint was answered, and nobody is left
//! waiting: a daemon that dies closes the pipe.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::MYSELF;
use super::exit::CliError;
use super::wake;
use crate::fuse::options::Options;
use crate::fuse::session::{self, Target};

/// What the allocator is told, where the user says nothing else: freed memory goes back to the kernel
/// after ten milliseconds, but by whole huge pages only. Given back in pieces it would
/// lose them, and with them a sixth of what a look-up in a large directory takes.
const ALLOCATOR: [(&str, &str); 2] = [
    ("MIMALLOC_PURGE_DELAY", "10"),
    ("MIMALLOC_MINIMAL_PURGE_SIZE", "2M"),
];
/// What the daemon says when the mount answers.
const READY: &str = "ready";
/// What stands before the reason why it does not.
const FAILED: &str = "failed: ";

/// Mount a cask
#[derive(Debug, clap::Args)]
pub struct MountArgs {
    /// Mount options, as in /etc/fstab; may be given several times
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Mount read-only
    #[arg(short = 'r', long)]
    pub read_only: bool,
    /// Serve from this process, until the cask is unmounted or a signal comes
    #[arg(long)]
    pub foreground: bool,
    /// Append what the daemon logs to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// The file or block device that holds the cask
    pub container: PathBuf,
    /// The directory to mount it on
    pub mountpoint: PathBuf,

    /// Check what was asked for, and mount nothing; for mount(8)
    #[arg(short = 'f', hide = true)]
    pub fake: bool,
    /// Pass over options that are not known; for mount(8)
    #[arg(short = 's', hide = true)]
    pub sloppy: bool,
    /// What mount(8) also passes to its helpers, and means nothing here
    #[arg(short = 'n', hide = true)]
    pub no_mtab: bool,
    /// As `no_mtab`
    #[arg(short = 'v', hide = true)]
    pub verbose: bool,
    /// As `-o rw`
    #[arg(short = 'w', hide = true)]
    pub read_write: bool,
    /// As `no_mtab`
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    pub fstype: Option<OsString>,
    /// Says on standard output when the mount answers, and gives up the terminal
    #[arg(long, hide = true)]
    pub ready_on_stdout: bool,
}

/// Mounts, as a daemon unless `--foreground`.
///
/// # Errors
/// Usage errors for options that are not known; otherwise why it could not be mounted.
pub fn run(args: MountArgs) -> Result<(), CliError> {
    if args.ready_on_stdout {
        return be_daemon(&args);
    }
    let options = args.meant()?;
    let target = Target::check(&args.container, &args.mountpoint).map_err(failed)?;
    if args.fake {
        return Ok(());
    }
    if args.foreground {
        if let Some(log) = &args.log {
            log_to(log)?;
        }
        return session::serve(&target, &options, wake::command, || Ok(())).map_err(failed);
    }
    start_daemon(&args, &target)
}

impl MountArgs {
    /// What the options mean together.
    fn meant(&self) -> Result<Options, CliError> {
        let mut options = Options::default();
        for option in self.options.iter().flat_map(|list| list.split(',')) {
            match options.add(option) {
                Err(error) if !self.sloppy => return Err(CliError::usage(error.to_string())),
                _ => {}
            }
        }
        if self.read_only {
            options.read_only = true;
        }
        Ok(options)
    }
}

/// Starts the daemon and waits for its word.
fn start_daemon(args: &MountArgs, target: &Target) -> Result<(), CliError> {
    let cannot = |error: io::Error| CliError::failed(format!("cannot start the daemon: {error}"));
    let log = args.log.as_deref().map(std::path::absolute).transpose();
    let log = log.map_err(cannot)?;
    let (pipe, theirs) = io::pipe().map_err(cannot)?;
    crate::fuse::sys::keep_open_files_to_ourselves().map_err(cannot)?;
    let mut daemon = Command::new(MYSELF);
    daemon
        .arg0("caskfs")
        .args(["mount", "--foreground", "--ready-on-stdout"])
        .args(args.options.iter().flat_map(|list| ["-o", list]))
        .args(args.read_only.then_some("-r"))
        .args(args.sloppy.then_some("-s"));
    if let Some(log) = log {
        daemon.arg("--log").arg(log);
    }
    let unsaid = |(name, _): &(&str, &str)| std::env::var_os(name).is_none();
    daemon.envs(ALLOCATOR.into_iter().filter(unsaid));
    let mut daemon = daemon
        .arg("--")
        .args([&target.container, &target.mountpoint])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(theirs)
        .spawn()
        .map_err(cannot)?;

    let mut line = String::new();
    let heard = BufReader::new(pipe).read_line(&mut line);
    let line = line.trim_end();
    if line == READY {
        return Ok(());
    }
    let end = end_of(&mut daemon);
    match line.strip_prefix(FAILED) {
        Some(reason) => Err(CliError::failed(reason)),
        None => Err(CliError::failed(match heard {
            Err(error) => format!("the daemon cannot be heard: {error}"),
            Ok(_) => format!("the daemon ended before the mount answered ({end})"),
        })),
    }
}

/// How the daemon ended; when this is known, the container is free again.
fn end_of(daemon: &mut Child) -> String {
    match daemon.wait() {
        Err(error) => error.to_string(),
        Ok(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => format!("signal {signal}"),
            (_, Some(code)) => format!("exit code {code}"),
            (None, None) => status.to_string(),
        },
    }
}

/// Serves, and tells the one who waits at the other end of standard output how it went.
fn be_daemon(args: &MountArgs) -> Result<(), CliError> {
    let mut ready = false;
    let served = become_daemon(args, &mut ready);
    match served {
        Err(error) if !ready => {
            let reason = error.sentence().unwrap_or_default();
            // Who does not wait any more does not want to know.
            let _ = tell(&format!("{FAILED}{}", reason.replace('\n', " ")));
            Err(CliError::said())
        }
        Err(error) => {
            log::error!("{}", error.sentence().unwrap_or_default());
            Err(error)
        }
        Ok(()) => Ok(()),
    }
}

fn become_daemon(args: &MountArgs, ready: &mut bool) -> Result<(), CliError> {
    // Signals of the terminal are for the programs there. That it leads a session already is fine.
    let _ = rustix::process::setsid();
    let options = args.meant()?;
    if let Some(log) = &args.log {
        log_to(log)?;
    }
    let target = Target::check(&args.container, &args.mountpoint).map_err(failed)?;
    let is_ready = || {
        tell(READY)?;
        *ready = true;
        let null = File::options().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        if args.log.is_none() {
            rustix::stdio::dup2_stderr(&null)?;
        }
        Ok(())
    };
    session::serve(&target, &options, wake::command, is_ready).map_err(failed)
}

fn tell(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Appends everything that goes to standard error, the log above all, to a file.
fn log_to(path: &Path) -> Result<(), CliError> {
    let opened = File::options().append(true).create(true).open(path);
    opened
        .and_then(|file| Ok(rustix::stdio::dup2_stderr(file)?))
        .map_err(|error| CliError::failed(format!("cannot log to {}: {error}", path.display())))
}

fn failed(error: crate::Error) -> CliError {
    CliError::failed(error.to_string())
}
