//! `caskfs fields`: the fields of records, with what was hidden shown again.

use std::ffi::OsString;

use clap::Args;

use super::access::{Need, read_file};
use super::exit::CliError;
use super::insert::dialect;
use super::out::Out;
use super::target::{Casks, Target};
use crate::store::record::Dialect;

/// Print the fields of a log's records, with delimiters in the data shown again
#[derive(Debug, Args)]
pub struct FieldsArgs {
    /// Only this record, counted from 1
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    record: Option<u64>,
    /// Only this field of each record, counted from 1, byte for byte and a newline
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    field: Option<u64>,
    /// Print a JSON array for each record
    #[arg(long)]
    json: bool,
    /// The log
    #[arg(value_name = "CONTAINER:PATH")]
    target: OsString,
}

/// Runs the verb.
pub fn run(args: FieldsArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    let mut out = Out::new();
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Read)?;
        let dialect = dialect(&*access, target.path())?;
        let mut number = 0;
        let mut print = |record: &[u8]| {
            number += 1;
            match args.record {
                Some(wanted) if wanted != number => Ok(()),
                _ => show(&mut out, &args, &dialect, record),
            }
        };
        // What of a record has been read so far.
        let mut begun = Vec::new();
        read_file(&*access, target.path(), &mut |data| {
            let mut parts = data.split_inclusive(|byte| *byte == dialect.delimiter());
            parts.try_for_each(|part| {
                begun.extend_from_slice(part);
                if part.last() != Some(&dialect.delimiter()) {
                    return Ok(());
                }
                print(&std::mem::take(&mut begun))
            })
        })?;
        if !begun.is_empty() {
            print(&begun)?;
        }
        out.finish()
    })
}

fn show(
    out: &mut Out,
    args: &FieldsArgs,
    dialect: &Dialect,
    record: &[u8],
) -> Result<(), CliError> {
    let mut fields = dialect.decode(record);
    if let Some(wanted) = args.field {
        let index = usize::try_from(wanted - 1).unwrap_or(usize::MAX);
        // A record without it has an empty line, so that lines and records agree.
        fields = vec![fields.into_iter().nth(index).unwrap_or_default()];
    }
    if args.json {
        let text = |field: &Vec<u8>| String::from_utf8_lossy(field).into_owned();
        return out.json_line(&fields.iter().map(text).collect::<Vec<_>>());
    }
    out.bytes(&fields.join(&b'\t'))?;
    out.bytes(b"\n")
}
