//! `caskfs set`: gives a file, a directory or the whole cask settings of its own.

use std::ffi::OsString;

use clap::Args;

use super::access::Need;
use super::exit::CliError;
use super::setting::{self, Assignment};
use super::target::{Casks, Target};

/// Set settings of a file, a directory or the cask
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Remove a setting, so that the next level above decides; may be given several times
    #[arg(short, long, value_name = "NAME")]
    unset: Vec<String>,
    /// Whose settings; CONTAINER alone is the whole cask
    #[arg(value_name = "CONTAINER[:PATH]")]
    target: OsString,
    /// The settings, such as mode=log
    #[arg(value_name = "NAME=VALUE", required_unless_present = "unset", value_parser = setting::parse_assignment)]
    settings: Vec<Assignment>,
}

/// Runs the verb.
pub fn run(args: SetArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Write)?;
        let path = target.path();
        // All are looked at before one is set, so that a bad one changes nothing.
        setting::check(&access.shown(path), path, &args.settings)?;
        setting::check_names(&access.shown(path), &args.unset)?;
        for name in &args.unset {
            access.remove_attribute(path, &setting::attribute(name))?;
        }
        setting::apply_all(&*access, path, &args.settings)
    })
}
