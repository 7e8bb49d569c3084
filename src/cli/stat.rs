//! `caskfs stat`: what the filesystem keeps about files.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::access::{Access, Links, Need};
use super::exit::CliError;
use super::out::{JsonName, Out};
use super::target::{Casks, Target};
use super::units::{TimeFormat, kind_word, mode_string, rfc3339};
use crate::format::FileKind;
use crate::fs::Attr;

/// Show the attributes of files
#[derive(Debug, Args)]
pub struct StatArgs {
    /// Print JSON, one document per file and line
    #[arg(long)]
    json: bool,
    /// Follow symbolic links
    #[arg(short = 'L', long)]
    dereference: bool,
    /// What to look at
    #[arg(value_name = "CONTAINER[:PATH]", required = true)]
    targets: Vec<OsString>,
}

/// Attributes in JSON.
#[derive(Debug, Serialize)]
pub struct JsonAttr {
    inode: u64,
    #[serde(flatten)]
    name: JsonName,
    kind: &'static str,
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// In 512-byte units.
    blocks: u64,
    atime: String,
    mtime: String,
    ctime: String,
    btime: String,
}

impl JsonAttr {
    /// The attributes of what has this name.
    pub fn new(name: &Path, attr: &Attr) -> Self {
        Self {
            inode: attr.ino,
            name: name.into(),
            kind: kind_word(attr.kind),
            mode: format!("{:04o}", attr.perm),
            links: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            blocks: attr.blocks,
            atime: rfc3339(attr.atime),
            mtime: rfc3339(attr.mtime),
            ctime: rfc3339(attr.ctime),
            btime: rfc3339(attr.btime),
        }
    }
}

/// Runs the verb.
pub fn run(args: StatArgs) -> Result<(), CliError> {
    let links = if args.dereference {
        Links::Follow
    } else {
        Links::Keep
    };
    let mut out = Out::new();
    let times = TimeFormat::new("%Y-%m-%d %H:%M:%S.%9f %z", false).map_err(CliError::usage)?;
    Casks::with(|casks| {
        let mut all = Ok(());
        for typed in &args.targets {
            let target = Target::parse(typed);
            let found = casks
                .open(&target, Need::Read)
                .and_then(|access| Ok((access.stat(target.path(), links)?, access)));
            match found {
                Ok((attr, _)) if args.json => {
                    out.json_line(&JsonAttr::new(target.path(), &attr))?;
                }
                Ok((attr, access)) => print(&mut out, &*access, target.path(), &attr, &times)?,
                Err(error) => {
                    error.report();
                    all = Err(CliError::said());
                }
            }
        }
        out.finish().and(all)
    })
}

fn print(
    out: &mut Out,
    access: &dyn Access,
    path: &Path,
    attr: &Attr,
    times: &TimeFormat,
) -> Result<(), CliError> {
    out.bytes(b"  File: ")?;
    out.name(path)?;
    if attr.kind == FileKind::Symlink {
        out.bytes(b" -> ")?;
        out.name(&access.read_link(path)?)?;
    }
    out.line("")?;
    out.line(format!(
        "  Size: {:<15} Blocks: {:<10} {}",
        attr.size,
        attr.blocks,
        kind_word(attr.kind)
    ))?;
    out.line(format!(" Inode: {:<15} Links: {}", attr.ino, attr.nlink))?;
    out.line(format!(
        "Access: ({:04o}/{})  Uid: {}  Gid: {}",
        attr.perm,
        mode_string(attr),
        attr.uid,
        attr.gid
    ))?;
    out.line(format!("Access: {}", times.format(attr.atime)))?;
    out.line(format!("Modify: {}", times.format(attr.mtime)))?;
    out.line(format!("Change: {}", times.format(attr.ctime)))?;
    out.line(format!(" Birth: {}", times.format(attr.btime)))
}
