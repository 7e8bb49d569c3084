//! `caskfs umount`: returns when the container is free again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::exit::{CliError, shown};
use super::mountinfo;

/// Unmount a cask
///
/// Returns when everything is in the container and nobody holds it any more. Exit codes are those of
/// umount(8): 0 unmounted, 1 wrong usage, 32 not unmounted.
#[derive(Debug, clap::Args)]
pub struct UmountArgs {
    /// Directory on which the cask is mounted, or its container file
    #[arg(value_name = "MOUNTPOINT|CONTAINER")]
    target: PathBuf,
    /// Take it out of sight at once; it ends when nothing uses it any more
    #[arg(short = 'l', long)]
    lazy: bool,
}

/// Unmounts.
pub fn run(args: UmountArgs) -> Result<(), CliError> {
    let name = shown(&args.target);
    let path = args.target.canonicalize().map_err(|error| CliError::io(&name, &error))?;
    let mount = mountinfo::mount_of(&path)
        .or_else(|| mountinfo::mount_above(&path).filter(|mount| mount.mountpoint == path))
        .ok_or_else(|| CliError::failed(format!("{name}: no cask is mounted there")))?;
    let flags = if args.lazy { MntFlags::MNT_DETACH } else { MntFlags::UMOUNT_NOFOLLOW };
    match umount2(&mount.mountpoint, flags) {
        Ok(()) => {}
        Err(Errno::EPERM) => helper(&mount.mountpoint, args.lazy)?,
        Err(Errno::EBUSY) => {
            return Err(CliError::failed(format!(
                "{name}: in use; `fuser -vm {name}` shows by whom, and -l unmounts when they are done"
            )));
        }
        Err(errno) => return Err(CliError::io(&name, &errno.into())),
    }
    if !args.lazy {
        wait_for(&mount.source);
    }
    Ok(())
}

/// Lets the setuid helper of FUSE unmount for a user who is not root.
fn helper(mountpoint: &Path, lazy: bool) -> Result<(), CliError> {
    let mut helper = Command::new("fusermount3");
    helper.arg("-u");
    if lazy {
        helper.arg("-z");
    }
    let ran = helper.arg("--").arg(mountpoint).status();
    match ran {
        Ok(status) if status.success() => Ok(()),
        // It has said why.
        Ok(_) => Err(CliError::said()),
        Err(error) => Err(CliError::io("fusermount3", &error)),
    }
}

/// Waits until the daemon has let go of the container: its lock is the sign.
fn wait_for(container: &Path) {
    // A source that is no file we may open was named by fsname= and cannot be waited for.
    if let Ok(file) = File::open(container) {
        let _locked = file.lock_shared();
    }
}
