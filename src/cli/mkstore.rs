//! `caskfs mkstore`: `mkdir` and a few settings; nothing that `mkdir` and `setfattr` cannot do.

use std::ffi::OsString;
use std::path::Path;

use clap::{Args, ValueEnum};

use super::access::{Access, Need};
use super::exit::CliError;
use super::setting::{self, Assignment};
use super::target::{Casks, Target};
use super::units::parse_perm;

/// Permissions of a store: logrotate refuses directories that group or others can write to.
pub const PERM: u32 = 0o755;

/// Make a directory with the settings of a kind of store
#[derive(Debug, Args)]
pub struct MkstoreArgs {
    /// The kind of store
    #[arg(long, value_enum, default_value = "flat")]
    like: Kind,
    /// Age at which segments of its logs are removed, such as 30m or 7D
    #[arg(long, value_name = "AGE")]
    ttl: Option<String>,
    /// Another setting; may be given several times
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting::parse_assignment)]
    settings: Vec<Assignment>,
    /// Permissions in octal
    #[arg(short, long, value_name = "MODE", default_value = "755", value_parser = parse_perm)]
    mode: u32,
    /// The directory to make
    #[arg(value_name = "CONTAINER:DIR")]
    target: OsString,
}

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Logs that any program appends to and mv rotates
    Flat,
    /// Files that are replaced in one step when their writer closes
    Session,
    /// Sealed logs
    Audit,
    /// Logger tables
    Table,
    /// Attributes with levels
    Attrs,
}

impl Kind {
    /// The settings that make a directory such a store.
    pub fn settings(self) -> Vec<Assignment> {
        let mode = match self {
            Self::Flat | Self::Audit | Self::Table => "log",
            Self::Session | Self::Attrs => "value",
        };
        vec![Assignment::new("mode", mode)]
    }

    fn is_built(self) -> bool {
        matches!(self, Self::Flat | Self::Session)
    }
}

/// Runs the verb.
pub fn run(args: MkstoreArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Write)?;
        let path = target.path();
        if !args.like.is_built() {
            let kind = args.like.to_possible_value();
            return Err(CliError::failed(format!(
                "{}: this version cannot make {} stores; use --like=flat or --like=session",
                access.shown(path),
                kind.as_ref().map_or("such", |kind| kind.get_name())
            )));
        }
        let mut settings = args.like.settings();
        settings.extend(args.ttl.as_deref().map(|ttl| Assignment::new("ttl", ttl)));
        settings.extend(args.settings.iter().cloned());
        make(&*access, path, args.mode, &settings)
    })
}

/// Makes a store; a directory that would not be one is not left behind.
pub fn make(
    access: &dyn Access,
    path: &Path,
    perm: u32,
    settings: &[Assignment],
) -> Result<(), CliError> {
    setting::check(&access.shown(path), path, settings)?;
    access.make_directory(path, perm)?;
    setting::apply_all(access, path, settings).inspect_err(|_| {
        let _ = access.remove_directory(path);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_a_few_settings() {
        let mode = |kind: Kind| kind.settings().first().unwrap().value.clone();
        assert_eq!(mode(Kind::Flat), "log");
        assert_eq!(mode(Kind::Session), "value");
        assert!(!Kind::Audit.is_built() && !Kind::Table.is_built() && !Kind::Attrs.is_built());
    }
}
