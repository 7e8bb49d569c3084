//! `caskfs cat`: contents to standard output.

use std::ffi::OsString;

use clap::Args;

use super::access::{Need, read_file};
use super::exit::{CliError, Outcome};
use super::out::Out;
use super::target::{Casks, Target};

/// Print files of a cask
#[derive(Debug, Args)]
pub struct CatArgs {
    /// What to print
    #[arg(value_name = "CONTAINER:PATH", required = true)]
    targets: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: CatArgs) -> Result<(), CliError> {
    let mut out = Out::new();
    Casks::with(|casks| {
        let mut all = Ok(());
        for typed in &args.targets {
            let target = Target::parse(typed);
            let printed = casks
                .open(&target, Need::Read)
                .and_then(|access| read_file(&*access, target.path(), &mut |data| out.bytes(data)));
            match printed {
                Ok(()) => {}
                Err(gone) if gone.outcome() == Outcome::Done => return Err(gone),
                Err(error) => {
                    error.report();
                    all = Err(CliError::said());
                }
            }
        }
        out.finish().and(all)
    })
}
