//! `caskfs resize`: how much a cask may hold, while it is mounted or not.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;

use super::access::{Access, Need};
use super::exit::{CliError, shown};
use super::out::Out;
use super::setting::attribute;
use super::target::{Casks, Target};
use crate::error::Error;

/// Change how many files and blocks a cask may hold
///
/// It may be in use. Without an option it tells what is in force.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Most files, the root directory included, or `none`
    #[arg(long, value_name = "N", value_parser = parse_bound)]
    files: Option<Bound>,
    /// Blocks in all, no fewer than there are, or `none` to grow as needed
    #[arg(long, value_name = "N", value_parser = parse_bound)]
    blocks: Option<Bound>,
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// Which cask
    #[arg(value_name = "CONTAINER")]
    target: OsString,
}

/// A number from 1, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound(Option<u64>);

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(bound) => bound.fmt(f),
            None => f.write_str("none"),
        }
    }
}

fn parse_bound(text: &str) -> Result<Bound, String> {
    match text {
        "none" => Ok(Bound(None)),
        _ => match text.parse() {
            Ok(0) | Err(_) => Err("it is neither a number from 1 nor `none`".into()),
            Ok(bound) => Ok(Bound(Some(bound))),
        },
    }
}

/// Runs the verb.
pub fn run(args: ResizeArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    let need = match (args.files, args.blocks) {
        (None, None) => Need::Read,
        _ => Need::Write,
    };
    Casks::with(|casks| {
        let access = casks.open(&target, need)?;
        let root = Path::new("/");
        let name = access.shown(root);
        if target.path() != root {
            let error = Error::invalid("only the cask as a whole is resized");
            return Err(CliError::at(access.shown(target.path()), &error));
        }
        check(&*access, &name, &args)?;
        for (which, bound) in [("files", args.files), ("blocks", args.blocks)] {
            if let Some(bound) = bound {
                access.set_attribute(root, &attribute(which), bound.to_string().as_bytes())?;
            }
        }
        if !args.quiet {
            tell(&*access, &name)?;
        }
        Ok(())
    })
}

/// Says what will be refused, with the numbers that count: through a mount only an errno would come back.
fn check(access: &dyn Access, name: &str, args: &ResizeArgs) -> Result<(), CliError> {
    let refused = |why: String| Err(CliError::at(name, &Error::invalid(why)));
    let space = access.space()?;
    let used = space.files.saturating_sub(space.files_free);
    if let Some(Bound(Some(files))) = args.files
        && files < used
    {
        return refused(format!(
            "the cask holds {used} files, the root among them; it cannot be bounded to {files}"
        ));
    }
    let facts = access.facts()?;
    match args.blocks {
        Some(Bound(Some(blocks))) if blocks < facts.blocks => refused(format!(
            "the container has {} blocks; it can be given more, not fewer",
            facts.blocks
        )),
        Some(Bound(None)) if facts.fill => refused(
            "all blocks of the container were written, so that it never grows by itself; give it a number of blocks"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

fn tell(access: &dyn Access, name: &str) -> Result<(), CliError> {
    let bound = |which: &str| -> Result<String, CliError> {
        let value = access.attribute(Path::new("/"), &attribute(which))?;
        Ok(String::from_utf8_lossy(&value.unwrap_or_default()).into_owned())
    };
    let files = match bound("files")?.as_str() {
        "none" => "files without bound".to_owned(),
        files => format!("{files} files (1 for the root)"),
    };
    let blocks = match bound("blocks")?.as_str() {
        "none" => "grows as needed".to_owned(),
        blocks => format!("{blocks} blocks"),
    };
    let mut out = Out::new();
    out.line(format!("{}: {files}, {blocks}", shown(name)))?;
    out.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_number_or_none() {
        assert_eq!(parse_bound("none"), Ok(Bound(None)));
        assert_eq!(parse_bound("4096"), Ok(Bound(Some(4096))));
        assert_eq!(parse_bound("4096").unwrap().to_string(), "4096");
        for text in ["", "0", "-1", "1k", "None"] {
            assert!(parse_bound(text).is_err(), "{text}");
        }
    }
}
