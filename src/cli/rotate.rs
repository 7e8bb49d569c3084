//! `caskfs rotate`: rotates logs. It returns when nobody writes into the old part any more.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;

use super::access::{Access, Need};
use super::exit::CliError;
use super::target::{Casks, Target};

/// Rotate logs: with roll-on=reopen bind their writers to the name again, else rename them as roll-name says
#[derive(Debug, Args)]
pub struct RotateArgs {
    /// The logs, by the name that their writers opened; one that was renamed away need not be there
    #[arg(value_name = "CONTAINER:PATH", required = true)]
    targets: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: RotateArgs) -> Result<(), CliError> {
    Casks::with(|casks| {
        let mut all = Ok(());
        for typed in &args.targets {
            let target = Target::parse(typed);
            let rotated = casks
                .open(&target, Need::Write)
                .and_then(|access| rotate(&*access, target.path()));
            if let Err(error) = rotated {
                error.report();
                all = Err(CliError::said());
            }
        }
        all
    })
}

fn rotate(access: &dyn Access, path: &Path) -> Result<(), CliError> {
    if path == Path::new("/") {
        return Err(CliError::failed(format!(
            "{}: is the root of the cask; name a log in it",
            access.shown(path)
        )));
    }
    access.rotate(path)
}
