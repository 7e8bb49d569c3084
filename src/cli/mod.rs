//! The command line: argv in, stdout, stderr and an exit code out.

mod exit;
mod mount;
mod umount;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{CliError, Family, Outcome};

/// Mounts one container file (a cask).
#[derive(Debug, Parser)]
#[command(name = "caskfs", version)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
}

/// Runs the command line.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match CommandLine::try_parse_from(args) {
        Ok(line) => line,
        Err(refusal) => {
            let _ = refusal.print();
            return ExitCode::from(Family::Mount.code(Outcome::Usage));
        }
    };
    let wanted = env_logger::Env::new().filter_or("CASKFS_LOG", "warn");
    let _ = env_logger::Builder::from_env(wanted).try_init();
    let done: Result<(), CliError> = match line.verb {
        Verb::Mount(args) => mount::run(args),
        Verb::Umount(args) => umount::run(args),
    };
    let outcome = done.map(|()| Outcome::Done).unwrap_or_else(|error| {
        error.report();
        error.outcome()
    });
    ExitCode::from(Family::Mount.code(outcome))
}
