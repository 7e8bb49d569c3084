//! `caskfs snapshot`: a copy of a whole container as it is at one moment, while it is in use.
//!
//! Invariant: under the name that was asked for stands a whole copy or what was there before; a copy that
//! could not be finished is not left behind.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::access::{Access, Need};
use super::exit::{CliError, shown};
use super::progress::Progress;
use super::target::{Casks, Target};

/// Bytes of zeros written to a pipe at a time.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Copy a whole cask as it is at this moment
///
/// It may be mounted and written to. What was done before is in the copy, and nothing is that was done
/// after something that is not. The copy is a cask of its own, with the same UUID and label.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Take the place of a file that is there
    #[arg(short, long)]
    force: bool,
    /// Which cask
    #[arg(value_name = "CONTAINER")]
    target: OsString,
    /// Where to; `-` is standard output
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs the verb.
pub fn run(args: SnapshotArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Write)?;
        if target.path() != Path::new("/") {
            return Err(CliError::usage(
                "a snapshot is of a whole cask; name the container or the mountpoint",
            ));
        }
        if args.file == Path::new("-") {
            return to_stdout(&*access);
        }
        to_file(&*access, &args.file, args.force)
    })
}

fn to_stdout(access: &dyn Access) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        return Err(CliError::usage(
            "a container is not written to a terminal; redirect the output",
        ));
    }
    let at = |error: io::Error| CliError::io("standard output", &error);
    let mut written = 0;
    let zeros = |out: &mut dyn Write, up_to: u64, written: &mut u64| {
        while *written < up_to {
            let len = (up_to - *written).min(ZEROS.len() as u64);
            out.write_all(ZEROS.get(..len as usize).unwrap_or_default())
                .map_err(at)?;
            *written += len;
        }
        Ok(())
    };
    let mut progress = Progress::new("copying");
    let total = access.image(&mut |total, offset, data| {
        zeros(&mut out, offset, &mut written)?;
        out.write_all(data).map_err(at)?;
        written += data.len() as u64;
        progress.show(written, total);
        Ok(())
    })?;
    zeros(&mut out, total, &mut written)?;
    out.flush().map_err(at)
}

fn to_file(access: &dyn Access, path: &Path, force: bool) -> Result<(), CliError> {
    let name = shown(path);
    let at = |error: io::Error| CliError::io(&name, &error);
    if !force && fs::symlink_metadata(path).is_ok() {
        return Err(CliError::failed(format!(
            "{name}: is there already; use --force to put the copy in its place"
        )));
    }
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".caskfs-{}", std::process::id()));
    let part = PathBuf::from(part);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(at)?;
    let copied = fill(access, &file, &name).and_then(|()| {
        let flags = match force {
            true => RenameFlags::empty(),
            false => RenameFlags::NOREPLACE,
        };
        file.sync_all().map_err(at)?;
        renameat_with(CWD, &part, CWD, path, flags).map_err(|error| at(error.into()))?;
        // The new name is as durable as what it names.
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(at)
    });
    if copied.is_err() {
        let _ = fs::remove_file(&part);
    }
    copied
}

fn fill(access: &dyn Access, file: &File, name: &str) -> Result<(), CliError> {
    let at = |error: io::Error| CliError::io(name, &error);
    let mut progress = Progress::new("copying");
    let total = access.image(&mut |total, offset, data| {
        progress.show(offset, total);
        file.write_all_at(data, offset).map_err(at)
    })?;
    file.set_len(total).map_err(at)
}
