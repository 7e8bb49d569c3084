//! `caskfs ls`: the files of a cask as whio-epfs-ls showed them, by inode number, with their paths.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use super::access::{Access, Links, Need, walk};
use super::exit::{CliError, shown};
use super::out::Out;
use super::stat::JsonAttr;
use super::target::{Casks, Target};
use super::units::{TimeFormat, mode_string};
use crate::format::FileKind;
use crate::fs::Attr;

/// List the files of a cask
///
/// A container is listed whole; of a path in one, what it is or what is directly in it.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Print inode numbers only, one a line
    #[arg(short = '1', conflicts_with_all = ["long", "json"])]
    numbers: bool,
    /// Print mode, links, owner and group too
    #[arg(short, long, conflicts_with = "json")]
    long: bool,
    /// Print the blocks that each file takes too, of 512 bytes as in stat(1)
    #[arg(short, long, conflicts_with_all = ["numbers", "json"])]
    blocks: bool,
    /// Show times in GMT instead of local time
    #[arg(short, long)]
    gmt: bool,
    /// List directories below the named one too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// How times are shown, as in strftime(3)
    #[arg(long, value_name = "FORMAT", default_value = "%Y-%m-%d %H:%M:%S")]
    time_format: String,
    /// Print JSON, one document per file and line
    #[arg(long)]
    json: bool,
    /// What to list
    #[arg(value_name = "CONTAINER[:PATH]")]
    target: OsString,
}

/// Runs the verb.
pub fn run(args: LsArgs) -> Result<(), CliError> {
    let times = TimeFormat::new(&args.time_format, args.gmt).map_err(CliError::usage)?;
    let target = Target::parse(&args.target);
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Read)?;
        let mut listing = Listing {
            out: Out::new(),
            args: &args,
            times,
            totals: Totals::default(),
        };
        listing.print(&*access, &target)
    })
}

struct Listing<'a> {
    out: Out,
    args: &'a LsArgs,
    times: TimeFormat,
    totals: Totals,
}

impl Listing<'_> {
    fn print(&mut self, access: &dyn Access, target: &Target) -> Result<(), CliError> {
        let top = target.path();
        let attr = access.stat(top, Links::Keep)?;
        let whole = top == Path::new("/");
        // Facts come from the container file, which a user of the mount may not be allowed to read.
        let facts = access.facts().ok();
        if !self.args.json && !self.args.numbers {
            if let (true, Some(facts)) = (whole, &facts) {
                if let Target::Container { container, .. } = target {
                    self.out.line(format!("Container: {}", shown(container)))?;
                }
                let label = String::from_utf8_lossy(&facts.label);
                self.out.line(format!("Label: {}", shown(&*label)))?;
            }
            self.head()?;
        }
        if whole || attr.kind != FileKind::Directory {
            self.row(access, top, &attr)?;
        }
        if attr.kind == FileKind::Directory {
            if whole || self.args.recursive {
                walk(access, top, &mut |path, attr| self.row(access, path, attr))?;
            } else {
                for (name, attr) in access.list(top)? {
                    self.row(access, &top.join(name), &attr)?;
                }
            }
        }
        if !self.args.json && !self.args.numbers {
            let limit = facts.and_then(|facts| facts.files_limit);
            self.out.line(self.totals.line(limit))?;
        }
        self.out.finish()
    }

    fn head(&mut self) -> Result<(), CliError> {
        let zone = if self.args.gmt { "GMT" } else { "Local" };
        let time = format!("Mod. Time ({zone})");
        let long = match self.args.long {
            true => format!(
                "{:<10} {:>5} {:>6} {:>6}  ",
                "Mode", "Links", "Owner", "Group"
            ),
            false => String::new(),
        };
        let blocks = match self.args.blocks {
            true => format!("{:>10} ", "Blocks"),
            false => String::new(),
        };
        self.out.line(format!(
            "{:>9} {:>14} {blocks} {time:<19}  {long}Name",
            "Inode #", "Size"
        ))
    }

    fn row(&mut self, access: &dyn Access, path: &Path, attr: &Attr) -> Result<(), CliError> {
        self.totals.count(attr);
        if self.args.numbers {
            return self.out.line(attr.ino.to_string());
        }
        if self.args.json {
            return self.out.json_line(&JsonAttr::new(path, attr));
        }
        let size = match attr.kind {
            FileKind::Directory => "-".to_owned(),
            _ => attr.size.to_string(),
        };
        let time = self.times.format(attr.mtime);
        let long = match self.args.long {
            true => format!(
                "{} {:>5} {:>6} {:>6}  ",
                mode_string(attr),
                attr.nlink,
                attr.uid,
                attr.gid
            ),
            false => String::new(),
        };
        let blocks = match self.args.blocks {
            true => format!("{:>10} ", attr.blocks),
            false => String::new(),
        };
        let start = format!("{:>9} {size:>14} {blocks} {time:<19}  {long}", attr.ino);
        self.out.bytes(start.as_bytes())?;
        self.out.name(&shown_name(path, attr.kind))?;
        if attr.kind == FileKind::Symlink {
            self.out.bytes(b" -> ")?;
            self.out.name(&access.read_link(path)?)?;
        }
        self.out.line("")
    }
}

/// A path as it is listed: without the leading `/`, a directory with one at its end.
fn shown_name(path: &Path, kind: FileKind) -> PathBuf {
    let name = path.strip_prefix("/").unwrap_or(path);
    if kind == FileKind::Directory {
        let mut name = name.as_os_str().to_owned();
        name.push("/");
        name.into()
    } else {
        name.to_path_buf()
    }
}

/// Inodes and their bytes, each inode once however many names it has.
#[derive(Default)]
struct Totals {
    inodes: u64,
    bytes: u64,
    linked: HashSet<u64>,
}

impl Totals {
    fn count(&mut self, attr: &Attr) {
        let several = attr.kind != FileKind::Directory && attr.nlink > 1;
        if several && !self.linked.insert(attr.ino) {
            return;
        }
        self.inodes += 1;
        if attr.kind == FileKind::Regular {
            self.bytes += attr.size;
        }
    }

    fn line(&self, limit: Option<u64>) -> String {
        let of = limit.map_or(String::new(), |limit| format!(" of {limit}"));
        let (inodes, bytes) = (self.inodes, self.bytes);
        format!("Totals: {inodes}{of} inodes take up {bytes} bytes.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn attr(ino: u64, kind: FileKind, nlink: u32, size: u64) -> Attr {
        let zero = Timestamp::default();
        Attr {
            ino,
            kind,
            perm: 0o644,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            blocks: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
        }
    }

    #[test]
    fn the_totals_line_is_that_of_the_original() {
        let mut totals = Totals::default();
        totals.count(&attr(1, FileKind::Directory, 2, 3));
        totals.count(&attr(2, FileKind::Regular, 1, 35_278));
        assert_eq!(
            totals.line(Some(4096)),
            "Totals: 2 of 4096 inodes take up 35278 bytes."
        );
        assert_eq!(totals.line(None), "Totals: 2 inodes take up 35278 bytes.");
    }

    #[test]
    fn a_file_of_two_names_counts_once() {
        let mut totals = Totals::default();
        totals.count(&attr(2, FileKind::Regular, 2, 10));
        totals.count(&attr(2, FileKind::Regular, 2, 10));
        totals.count(&attr(3, FileKind::Symlink, 1, 7));
        assert_eq!((totals.inodes, totals.bytes), (2, 10));
    }

    #[test]
    fn directories_end_in_a_slash() {
        let name = |path: &str, kind| shown_name(Path::new(path), kind).display().to_string();
        assert_eq!(name("/", FileKind::Directory), "/");
        assert_eq!(name("/logs", FileKind::Directory), "logs/");
        assert_eq!(name("/logs/a", FileKind::Regular), "logs/a");
    }
}
