//! `caskfs rm`: removes files, and with `-r` whole directories.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;

use super::access::{Access, Links, Need};
use super::exit::CliError;
use super::target::{Casks, Target};
use crate::error::Error;
use crate::format::FileKind;

/// Remove files of a cask
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Remove directories and what is in them
    #[arg(short, long)]
    recursive: bool,
    /// That a file is not there is no failure
    #[arg(short, long)]
    force: bool,
    /// What to remove
    #[arg(value_name = "CONTAINER:PATH", required = true)]
    targets: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: RmArgs) -> Result<(), CliError> {
    Casks::with(|casks| {
        let mut all = Ok(());
        for typed in &args.targets {
            let target = Target::parse(typed);
            let removed = casks
                .open(&target, Need::Write)
                .and_then(|access| remove(&*access, target.path(), &args));
            if let Err(error) = removed {
                error.report();
                all = Err(CliError::said());
            }
        }
        all
    })
}

fn remove(access: &dyn Access, path: &Path, args: &RmArgs) -> Result<(), CliError> {
    if path == Path::new("/") {
        return Err(CliError::failed(format!(
            "{}: is the root of the cask, which stays; remove the container to remove all",
            access.shown(path)
        )));
    }
    let attr = match access.stat(path, Links::Keep) {
        Err(error) if error.is_not_found() && args.force => return Ok(()),
        other => other?,
    };
    match (attr.kind, args.recursive) {
        (FileKind::Directory, true) => remove_tree(access, path),
        (FileKind::Directory, false) => Err(CliError::at(
            access.shown(path),
            &Error::invalid("is a directory; use -r to remove it and what is in it"),
        )),
        _ => access.remove(path),
    }
}

/// Empties and removes a directory, without following links and without a call per level.
fn remove_tree(access: &dyn Access, top: &Path) -> Result<(), CliError> {
    let mut pending = vec![top.to_path_buf()];
    while let Some(dir) = pending.pop() {
        let mut deeper = Vec::new();
        for (name, attr) in access.list(&dir)? {
            let path = dir.join(name);
            match attr.kind {
                FileKind::Directory => deeper.push(path),
                _ => access.remove(&path)?,
            }
        }
        if deeper.is_empty() {
            access.remove_directory(&dir)?;
        } else {
            // It comes up again when what is in it is gone.
            pending.push(dir);
            pending.extend(deeper);
        }
    }
    Ok(())
}
