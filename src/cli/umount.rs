//! `caskfs umount`: returns when the container is closed, so that whatever comes next finds it free.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::exit::CliError;
use crate::fuse::mounting::{self, Detach};
use crate::fuse::mounts::{self, CaskMount};
use crate::fuse::session;

/// Unmount a cask
#[derive(Debug, clap::Args)]
pub struct UmountArgs {
    /// Take it from the tree at once; it ends when the last program has closed its files
    #[arg(short = 'l', long, conflicts_with = "force")]
    pub lazy: bool,
    /// Cut the connection first: for a mount that hangs
    #[arg(short = 'f', long)]
    pub force: bool,
    /// The mountpoint, or the container that is mounted
    #[arg(value_name = "MOUNTPOINT|CONTAINER")]
    pub target: PathBuf,

    /// What umount(8) also passes to its helpers, and means nothing here
    #[arg(short = 'n', hide = true)]
    pub no_mtab: bool,
    /// As `no_mtab`
    #[arg(short = 'v', hide = true)]
    pub verbose: bool,
    /// As `no_mtab`
    #[arg(short = 'r', hide = true)]
    pub read_only: bool,
    /// As `no_mtab`
    #[arg(short = 't', value_name = "TYPE", hide = true)]
    pub fstype: Option<String>,
}

/// Unmounts and waits for the daemon to close the container; with `--lazy` it does not wait.
///
/// # Errors
/// When nothing is mounted there, or it is in use.
pub fn run(args: UmountArgs) -> Result<(), CliError> {
    let typed = args.target.display();
    let mount = find(&args.target)?
        .ok_or_else(|| CliError::failed(format!("{typed}: no cask is mounted there")))?;
    let how = match (args.lazy, args.force) {
        (true, _) => Detach::Lazy,
        (_, true) => Detach::Force,
        _ => Detach::WhenIdle,
    };
    let place = mount.mountpoint.display();
    mounting::detach(&mount.mountpoint, how).map_err(|error| match error.kind() {
        ErrorKind::ResourceBusy => CliError::failed(format!(
            "{place} is in use; end the programs that use it (`fuser -vm {place}` shows them), or take \
             it away from under them with `caskfs umount -l {place}`"
        )),
        _ => CliError::io(place, &error),
    })?;
    if how == Detach::Lazy {
        return Ok(());
    }
    session::wait_until_released(&mount.source).map_err(|error| CliError::at(typed, &error))
}

fn find(target: &Path) -> Result<Option<CaskMount>, CliError> {
    let shown = target.display();
    let path = session::resolve(target).map_err(|error| CliError::io(shown, &error))?;
    let mounts = mounts::all().map_err(|error| CliError::io("/proc/self/mountinfo", &error))?;
    Ok(mounts::at(&mounts, &path).or_else(|| mounts::of(&mounts, &path)))
}
