//! `caskfs insert`: appends one record of fields to a log, whatever is in them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Args;

use super::access::{Access, Need};
use super::exit::CliError;
use super::target::{Casks, Target};
use crate::error::Error;
use crate::store::record::Dialect;

/// Permission bits of a log that is made.
const PERM: u32 = 0o644;

/// Append a record of fields to a log, delimiters in the data hidden as the setting escape says
#[derive(Debug, Args)]
pub struct InsertArgs {
    /// A field that is just this is NULL, and written like an empty one
    #[arg(long, value_name = "TEXT", default_value = "\\N")]
    null: OsString,
    /// The log; it is made if it is not there
    #[arg(value_name = "CONTAINER:PATH")]
    target: OsString,
    /// The fields, in order
    #[arg(value_name = "FIELD", required = true, allow_hyphen_values = true)]
    fields: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: InsertArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Write)?;
        let path = target.path();
        let fields = args.fields.iter().map(|field| {
            let given = field != &args.null;
            given.then_some(field.as_bytes())
        });
        let record = dialect(&*access, path)?
            .encode(fields)
            .map_err(|why| CliError::at(access.shown(path), &why))?;
        access.append(path, PERM, &record)
    })
}

/// How the records of a log are made of fields; of one that is not there, of those made beside it.
pub fn dialect(access: &dyn Access, path: &Path) -> Result<Dialect, CliError> {
    let beside = path.parent().unwrap_or(path);
    let setting = |name: &str| {
        let name = format!("user.cask.{name}");
        let value = match access.attribute(path, &name) {
            Err(error) if error.is_not_found() => access.attribute(beside, &name),
            other => other,
        };
        Ok::<_, CliError>(String::from_utf8_lossy(&value?.unwrap_or_default()).into_owned())
    };
    let (field, record, escape) = (setting("field")?, setting("record")?, setting("escape")?);
    Dialect::new(&field, &record, &escape)
        .map_err(|why: Error| CliError::at(access.shown(path), &why))
}
