//! `caskfs wake-watchers`: the process by which a daemon wakes those who watch its logs. Not for people,
//! so it is in no help.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::MYSELF;
use super::exit::CliError;
use crate::fuse::waking::{self, MountPlace};

/// Whether the allocator asks for huge pages. One of them is more than this process ever needs (0.7 MB of
/// memory of its own instead of 6.4).
const HUGE_PAGES: &str = "MIMALLOC_ALLOW_THP";
/// The verb, as `ps` shows it.
const VERB: &str = "wake-watchers";

/// Wake those who watch the logs of a mounted cask, as the daemon asks on standard input
#[derive(Debug, clap::Args)]
#[command(name = VERB)]
pub struct WakeArgs {
    /// The mountpoint
    pub mountpoint: PathBuf,
    /// The device number of what is mounted
    #[arg(long)]
    pub device: u64,
    /// The kernel's number of the mount; 0 where it does not tell
    #[arg(long)]
    pub mount: u64,
}

/// Wakes until standard input ends.
///
/// # Errors
/// When the kernel cannot do it.
pub fn run(args: WakeArgs) -> Result<(), CliError> {
    let place = MountPlace {
        mountpoint: args.mountpoint,
        device: args.device,
        mount: args.mount,
    };
    waking::serve(&place, io::stdin().lock())
        .map_err(|error| CliError::failed(format!("cannot wake the watchers of logs: {error}")))
}

/// The command line of the process for this mount.
pub fn command(place: &MountPlace) -> Command {
    let mut command = Command::new(MYSELF);
    command
        .arg0("caskfs")
        .arg(VERB)
        .arg(&place.mountpoint)
        .arg(format!("--device={}", place.device))
        .arg(format!("--mount={}", place.mount))
        .env(HUGE_PAGES, "0")
        .current_dir("/")
        // A Ctrl-C is for the one who serves in the foreground; this ends with him.
        .process_group(0);
    command
}
