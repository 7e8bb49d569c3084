//! The command line: what was typed → what is meant → what is done.
//!
//! One file per verb. Data goes to standard output, talk to standard error. Verbs see a cask through
//! [`access::Access`], so each works on a container file and beside a live mount. Invariant: this
//! module alone reads argv, and [`exit`] alone decides exit codes.

mod access;
mod checked;
mod exit;
mod invocation;
mod live;
mod offline;
mod out;
mod peek;
mod progress;
mod setting;
mod target;
mod units;

mod cat;
mod cp;
mod df;
mod fields;
mod fsck;
mod get;
mod info;
mod insert;
mod ls;
mod mkfs;
mod mkstore;
mod mount;
mod resize;
mod rm;
mod rotate;
mod salvage;
mod scrub;
mod set;
mod snapshot;
mod stat;
mod umount;
mod wake;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use exit::{CliError, Family, Outcome};

/// Mounts one container file (a cask) in which every session and every flat log is an ordinary
/// file; mv of a live log rotates it.
#[derive(Debug, Parser)]
#[command(
    name = "caskfs",
    version,
    max_term_width = 100,
    after_help = "CONTAINER is the file that holds a cask. Where a verb takes CONTAINER[:PATH] it also takes an \
                  ordinary path below a mountpoint. A container that is mounted is worked on through its mount.\n\n\
                  CASKFS_LOG=debug (or info, warn, error) says what is logged to standard error."
)]
struct CommandLine {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Mkfs(mkfs::MkfsArgs),
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Ls(ls::LsArgs),
    Cp(cp::CpArgs),
    Cat(cat::CatArgs),
    Rm(rm::RmArgs),
    Stat(stat::StatArgs),
    Df(df::DfArgs),
    Info(info::InfoArgs),
    Fsck(fsck::FsckArgs),
    Salvage(salvage::SalvageArgs),
    Scrub(scrub::ScrubArgs),
    Set(set::SetArgs),
    Get(get::GetArgs),
    Mkstore(mkstore::MkstoreArgs),
    Resize(resize::ResizeArgs),
    Snapshot(snapshot::SnapshotArgs),
    Rotate(rotate::RotateArgs),
    Insert(insert::InsertArgs),
    Fields(fields::FieldsArgs),
    #[command(hide = true)]
    WakeWatchers(wake::WakeArgs),
}

/// This program, also when its file was replaced since it was started.
const MYSELF: &str = "/proc/self/exe";

/// Runs the command line.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    // A daemon is run as /proc/self/exe; it shall not be listed as "exe". A mere nicety: it may fail.
    let _ = std::fs::write("/proc/self/comm", "caskfs");
    let args = invocation::spelled_out(args.into_iter().collect());
    let verb = args.get(1).and_then(|verb| verb.to_str());
    let family = Family::of(verb.unwrap_or_default());
    let outcome = match CommandLine::try_parse_from(&args) {
        Ok(line) => {
            start_logging(family);
            execute(line.verb)
        }
        Err(refusal) => invocation::refused(&refusal, verb),
    };
    let outcome = outcome.unwrap_or_else(|error| {
        error.report();
        error.outcome()
    });
    ExitCode::from(family.code(outcome))
}

fn execute(verb: Verb) -> Result<Outcome, CliError> {
    let done = match verb {
        Verb::Fsck(args) => return fsck::run(args),
        Verb::Scrub(args) => return scrub::run(args),
        Verb::Mount(args) => mount::run(args),
        Verb::Umount(args) => umount::run(args),
        Verb::Mkfs(args) => mkfs::run(args),
        Verb::Ls(args) => ls::run(args),
        Verb::Cp(args) => cp::run(args),
        Verb::Cat(args) => cat::run(args),
        Verb::Rm(args) => rm::run(args),
        Verb::Stat(args) => stat::run(args),
        Verb::Df(args) => df::run(args),
        Verb::Info(args) => info::run(args),
        Verb::Salvage(args) => salvage::run(args),
        Verb::Set(args) => set::run(args),
        Verb::Get(args) => get::run(args),
        Verb::Mkstore(args) => mkstore::run(args),
        Verb::Resize(args) => resize::run(args),
        Verb::Snapshot(args) => snapshot::run(args),
        Verb::Rotate(args) => rotate::run(args),
        Verb::Insert(args) => insert::run(args),
        Verb::Fields(args) => fields::run(args),
        Verb::WakeWatchers(args) => wake::run(args),
    };
    done.map(|()| Outcome::Done)
}

/// Sends what the layers below log to standard error, as far as `CASKFS_LOG` asks for it. A daemon has
/// nobody to answer to but its log; any other verb says itself what went wrong.
fn start_logging(family: Family) {
    let quiet = if family == Family::Mount {
        "warn"
    } else {
        "error"
    };
    let wanted = env_logger::Env::new().filter_or("CASKFS_LOG", quiet);
    // That somebody else logs already, as in a test, is fine.
    let _ = env_logger::Builder::from_env(wanted).try_init();
}
