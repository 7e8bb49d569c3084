//! `caskfs mount`: returns when the mount answers, with the reason when it does not.
//!
//! The daemon is this program run once more with `--foreground`, never a fork of threads. What
//! became of it comes back through a pipe that is its standard output: a line that it is ready, or
//! its one sentence. Then the caller asks the mount itself before it believes it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::exit::{CliError, shown};
use crate::error::Error;
use crate::fuse::{Mount, MountOptions};

/// What the daemon writes when it serves.
const READY: &str = "ready\n";

/// Mount a cask
///
/// Returns when the mount answers. Exit codes are those of mount(8): 0 mounted, 1 wrong usage,
/// 32 not mounted.
#[derive(Debug, clap::Args)]
pub struct MountArgs {
    /// Container file
    #[arg(value_name = "CONTAINER")]
    source: PathBuf,
    /// Directory on which it appears
    #[arg(value_name = "MOUNTPOINT")]
    target: PathBuf,
    /// Mount options, separated by commas: ro, rw, dev, suid, noexec, sync, dirsync, allow_other,
    /// allow_root, fsname=NAME, threads=N (1 to 64, default 2)
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Mount read-only, like -o ro
    #[arg(short = 'r', long)]
    read_only: bool,
    /// Serve in this process, and return when unmounted
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Append what the daemon has to say to FILE (nowhere by default)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Say on standard output how it went, then serve
    #[arg(long, hide = true)]
    report: bool,
    /// Ignored, for mount(8)
    #[arg(short = 's', hide = true)]
    sloppy: bool,
    /// Ignored, for mount(8)
    #[arg(short = 'n', hide = true)]
    no_mtab: bool,
    /// Ignored, for mount(8)
    #[arg(short = 'v', hide = true)]
    verbose: bool,
    /// Ignored, for mount(8)
    #[arg(short = 't', hide = true)]
    kind: Option<String>,
}

/// Mounts.
pub fn run(args: MountArgs) -> Result<(), CliError> {
    let mut options = MountOptions::new(nix::unistd::geteuid().is_root());
    for list in &args.options {
        options.parse(list).map_err(|error| CliError::usage(error.to_string()))?;
    }
    options.read_only |= args.read_only;
    if args.foreground { serve(&args, &options) } else { start(&args) }
}

/// Mounts and serves in this process.
fn serve(args: &MountArgs, options: &MountOptions) -> Result<(), CliError> {
    if args.report {
        // A session of its own: nothing that happens to the caller's terminal reaches the daemon.
        let _leader_already = nix::unistd::setsid();
    }
    let mount = Mount::new(&args.source, &args.target, options).map_err(|error| failure(args, &error))?;
    if args.report {
        detach(args.log.as_deref())?;
    }
    mount.serve().map_err(|error| CliError::at(shown(&args.source), &error))
}

fn failure(args: &MountArgs, error: &Error) -> CliError {
    match error {
        Error::Unusable { path, .. } if *path == args.target => CliError::at(shown(&args.target), error),
        Error::Io { .. } => CliError::failed(format!("{}: {error}", shown(&args.source))),
        _ => CliError::at(shown(&args.source), error),
    }
}

/// Lets go of the caller: says that all is well and turns to the log.
fn detach(log: Option<&Path>) -> Result<(), CliError> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|error| CliError::io("/dev/null", &error))?;
    let log = match log {
        Some(path) => {
            let file = OpenOptions::new().append(true).create(true).open(path);
            file.map_err(|error| CliError::io(shown(path), &error))?
        }
        None => null.try_clone().map_err(|error| CliError::io("/dev/null", &error))?,
    };
    let mut stdout = std::io::stdout();
    let said = stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush());
    said.map_err(|error| CliError::io("the caller", &error))?;
    let moved = nix::unistd::dup2_stdout(&null).and_then(|()| nix::unistd::dup2_stderr(&log));
    moved.map_err(|errno| CliError::io("standard output", &errno.into()))
}

/// Starts the daemon and waits until its mount answers.
fn start(args: &MountArgs) -> Result<(), CliError> {
    let absolute = |path: &Path| path.canonicalize().map_err(|error| CliError::io(shown(path), &error));
    let (source, target) = (absolute(&args.source)?, absolute(&args.target)?);
    let mut daemon = Command::new("/proc/self/exe");
    daemon.arg0("caskfs").arg("mount").args(["--foreground", "--report"]);
    for list in &args.options {
        daemon.args(["-o", list]);
    }
    if args.read_only {
        daemon.arg("-r");
    }
    if let Some(log) = &args.log {
        let log = std::path::absolute(log).map_err(|error| CliError::io(shown(log), &error))?;
        daemon.arg("--log").arg(log);
    }
    daemon.arg("--").arg(&source).arg(&target);
    daemon.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = daemon.spawn().map_err(|error| CliError::io("the daemon", &error))?;
    let mut said = String::new();
    if let Some(stdout) = &mut child.stdout {
        read_line(stdout, &mut said);
    }
    if said != READY {
        let mut reason = String::new();
        if let Some(stderr) = &mut child.stderr {
            let _read = stderr.read_to_string(&mut reason);
        }
        let status = child.wait().map_err(|error| CliError::io("the daemon", &error))?;
        let reason = reason.trim().trim_start_matches("caskfs: ");
        return Err(match reason {
            "" => CliError::failed(format!("{}: the daemon ended before the mount answered ({status})", shown(&source))),
            reason => CliError::failed(reason),
        });
    }
    // The daemon says it serves; the mount itself has the last word.
    File::open(&target)
        .and_then(|root| root.metadata())
        .map(|_| ())
        .map_err(|error| CliError::io(format!("{}: mounted, but it does not answer", shown(&target)), &error))
}

/// Reads up to the end of the first line.
fn read_line(from: &mut impl Read, line: &mut String) {
    let mut byte = [0];
    while !line.ends_with('\n') && matches!(from.read(&mut byte), Ok(1)) {
        line.push(char::from(byte[0]));
    }
}
