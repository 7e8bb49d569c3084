//! `caskfs cp`: copies into a cask, out of one, and between two; with `-x` by inode number.
//!
//! Both ends are an [`Access`]: the host is one whose mountpoint is `/`. Invariant: a file in a cask
//! is replaced in one step, so that nobody sees a part of the copy.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::Args;

use super::access::{Access, Links, Need, Source, pump, read_file, replace, walk};
use super::exit::{CliError, Outcome, shown};
use super::live::Live;
use super::out::Out;
use super::target::{Casks, Target};
use super::units::kind_word;
use crate::error::Error;
use crate::format::FileKind;
use crate::format::key::ROOT;
use crate::fs::Attr;

/// Copy files into a cask, out of one or between two
///
/// What is no CONTAINER:PATH is a file of the host; `-` is standard input or output.
#[derive(Debug, Args)]
pub struct CpArgs {
    /// Copy directories with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// Export the file of this inode number, to FILE or under its own name; may be given several times
    #[arg(short = 'x', long = "export", value_name = "NUMBER[=FILE]", value_parser = parse_export, conflicts_with = "recursive")]
    exports: Vec<Export>,
    /// Export all files of a cask, with their directories, to the directory named last or the current one
    #[arg(short = 'A', long, conflicts_with_all = ["exports", "recursive"])]
    all: bool,
    /// Copy into the cask: what is done without it, too
    #[arg(short = 'i', long = "import", conflicts_with_all = ["exports", "all"])]
    _import: bool,
    /// Print the inode number in the cask of each file that was copied, and its path there
    #[arg(long)]
    show_id: bool,
    /// What to copy, and last where to; with -x the container alone
    #[arg(value_name = "FILE", required = true)]
    paths: Vec<OsString>,
}

/// A file to export by number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Export {
    number: u64,
    file: Option<String>,
}

fn parse_export(text: &str) -> Result<Export, String> {
    let (number, file) = match text.split_once('=') {
        Some((number, file)) if !file.is_empty() => (number, Some(file.to_owned())),
        Some(_) => return Err(format!("`{text}` names no file after the `=`")),
        None => (text, None),
    };
    match number.parse() {
        Ok(0) | Err(_) => Err(format!("`{number}` is not an inode number")),
        Ok(ROOT) => Err("inode 1 is the root directory, which holds the names".into()),
        Ok(number) => Ok(Export { number, file }),
    }
}

/// Runs the verb.
pub fn run(args: CpArgs) -> Result<(), CliError> {
    if !args.exports.is_empty() {
        return export(&args);
    }
    if args.all {
        return export_all(&args);
    }
    let Some((last, sources)) = args.paths.split_last().filter(|(_, s)| !s.is_empty()) else {
        return Err(CliError::usage(
            "cp takes what to copy and where to; try `caskfs cp --help`",
        ));
    };
    Casks::with(|casks| {
        // Where to comes first: what is written to must be opened for writing.
        let to = End::open(casks, last, Need::Write)?;
        let mut all = Ok(());
        let mut ids = Ids::new(args.show_id);
        for source in sources {
            let copied = End::open(casks, source, Need::Read)
                .and_then(|from| copy(&from, &to, &args, sources.len() > 1, &mut ids));
            if let Err(error) = copied {
                if error.outcome() != Outcome::Failed {
                    return Err(error);
                }
                error.report();
                all = Err(CliError::said());
            }
        }
        ids.finish().and(all)
    })
}

/// What was copied, told by inode number where that is asked for.
struct Ids(Option<Out>);

impl Ids {
    fn new(wanted: bool) -> Self {
        Self(wanted.then(Out::new))
    }

    fn tell(&mut self, number: u64, path: &Path) -> Result<(), CliError> {
        let Some(out) = &mut self.0 else {
            return Ok(());
        };
        out.bytes(format!("{number} ").as_bytes())?;
        out.name(path.strip_prefix("/").unwrap_or(path))?;
        out.line("")
    }

    fn finish(mut self) -> Result<(), CliError> {
        self.0.as_mut().map_or(Ok(()), Out::finish)
    }
}

/// One end of a copy.
enum End {
    /// Standard input or output.
    Standard,
    /// A file, of the host or in a cask.
    File(Place),
}

/// A path and how to get at it.
struct Place {
    access: Rc<dyn Access>,
    path: PathBuf,
    /// It lies outside of every cask.
    host: bool,
    /// What was typed ends in `/`, so it names a directory.
    directory: bool,
}

impl End {
    fn open(casks: &mut Casks, typed: &OsStr, need: Need) -> Result<Self, CliError> {
        if typed == "-" {
            return Ok(Self::Standard);
        }
        let directory = typed.as_encoded_bytes().ends_with(b"/");
        let (access, path, host) = match Target::parse_any(typed) {
            Target::Host(path) => {
                let path = std::path::absolute(&path)
                    .map_err(|error| CliError::io(shown(&path), &error))?;
                (host(), path, true)
            }
            target => (
                casks.open(&target, need)?,
                target.path().to_path_buf(),
                false,
            ),
        };
        Ok(Self::File(Place {
            access,
            path,
            host,
            directory,
        }))
    }
}

/// The host's own files, as if they were those of a cask mounted at the root.
fn host() -> Rc<dyn Access> {
    Rc::new(Live::new("/".into(), "/".into()))
}

fn copy(from: &End, to: &End, args: &CpArgs, several: bool, ids: &mut Ids) -> Result<(), CliError> {
    match (from, to) {
        (End::File(from), End::Standard) if !from.host => to_stdout(&*from.access, &from.path),
        (End::Standard, End::File(to)) if !to.host => {
            if to.directory || is_directory(to)? {
                return Err(CliError::at(to.access.shown(&to.path), &Error::IsDirectory));
            }
            replace(&*to.access, &to.path, 0o666 & !umask(), &mut |sink| {
                pump(&mut io::stdin().lock(), "standard input", sink)
            })?;
            let number = to.access.stat(&to.path, Links::Keep)?.ino;
            ids.tell(number, &to.path)
        }
        (End::File(from), End::File(to)) if !(from.host && to.host) => {
            let path = destination(from, to, several)?;
            copy_all(from, to, &path, args.recursive, ids)
        }
        _ => Err(CliError::usage(
            "neither what to copy nor where to lies in a cask; use cp(1)",
        )),
    }
}

/// Where a source goes: into a directory under its own name, else under the name given.
fn destination(from: &Place, to: &Place, several: bool) -> Result<PathBuf, CliError> {
    if is_directory(to)? {
        return match from.path.file_name() {
            Some(name) => Ok(to.path.join(name)),
            // The root of a cask has no name: what is in it goes where it is to go.
            None => Ok(to.path.clone()),
        };
    }
    if several || to.directory {
        let name = to.access.shown(&to.path);
        return Err(CliError::failed(format!(
            "{name}: is no directory; make it first"
        )));
    }
    Ok(to.path.clone())
}

fn is_directory(place: &Place) -> Result<bool, CliError> {
    match place.access.stat(&place.path, Links::Follow) {
        Ok(attr) => Ok(attr.kind == FileKind::Directory),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies one source; a directory with all that is in it.
fn copy_all(
    from: &Place,
    to: &Place,
    path: &Path,
    recursive: bool,
    ids: &mut Ids,
) -> Result<(), CliError> {
    let links = if recursive {
        Links::Keep
    } else {
        Links::Follow
    };
    let attr = from.access.stat(&from.path, links)?;
    let (from_name, to_name) = (from.access.shown(&from.path), to.access.shown(path));
    if attr.kind != FileKind::Directory {
        return copy_one(from, &from.path, &attr, to, path, ids);
    }
    if !recursive {
        return Err(CliError::failed(format!(
            "{from_name}: is a directory; use -r to copy it and what is in it"
        )));
    }
    if Path::new(&to_name).starts_with(&from_name) {
        return Err(CliError::failed(format!(
            "{from_name}: cannot be copied into itself, to {to_name}"
        )));
    }
    make_directory(&*to.access, path, attr.perm)?;
    let mut all = Ok(());
    walk(&*from.access, &from.path, &mut |below, attr| {
        let target = path.join(below.strip_prefix(&from.path).unwrap_or(below));
        let copied = match attr.kind {
            FileKind::Directory => return make_directory(&*to.access, &target, attr.perm),
            _ => copy_one(from, below, attr, to, &target, ids),
        };
        if let Err(error) = copied {
            error.report();
            all = Err(CliError::said());
        }
        Ok(())
    })?;
    all
}

/// Makes a directory unless it is there.
fn make_directory(access: &dyn Access, path: &Path, perm: u32) -> Result<(), CliError> {
    match access.stat(path, Links::Follow) {
        Ok(attr) if attr.kind == FileKind::Directory => Ok(()),
        Ok(_) => Err(CliError::at(access.shown(path), &Error::NotDirectory)),
        // Who copies must be able to fill it.
        Err(error) if error.is_not_found() => {
            access.make_directory(path, (perm & 0o777 & !umask()) | 0o700)
        }
        Err(error) => Err(error),
    }
}

fn copy_one(
    from: &Place,
    path: &Path,
    attr: &Attr,
    to: &Place,
    target: &Path,
    ids: &mut Ids,
) -> Result<(), CliError> {
    let source: Source<'_> = &mut |sink| from.access.read(path, sink);
    let perm = attr.perm & 0o777 & !umask();
    match attr.kind {
        FileKind::Regular if to.host => write_host(target, perm, source)?,
        FileKind::Regular => replace(&*to.access, target, perm, source)?,
        FileKind::Symlink => to.access.make_link(target, &from.access.read_link(path)?)?,
        other => {
            return Err(CliError::failed(format!(
                "{}: is a {}; not copied",
                from.access.shown(path),
                kind_word(other)
            )));
        }
    }
    if to.host {
        ids.tell(attr.ino, path)
    } else if ids.0.is_some() {
        ids.tell(to.access.stat(target, Links::Keep)?.ino, target)
    } else {
        Ok(())
    }
}

/// Writes a file of the host as cp(1) does: into what is there, be it a device or a pipe.
fn write_host(path: &Path, perm: u32, source: Source<'_>) -> Result<(), CliError> {
    let name = shown(path);
    let at = |error: io::Error| CliError::io(&name, &error);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(perm)
        .open(path)
        .map_err(at)?;
    source(&mut |data| file.write_all(data).map_err(at))
}

fn to_stdout(access: &dyn Access, path: &Path) -> Result<(), CliError> {
    let mut out = Out::new();
    read_file(access, path, &mut |data| out.bytes(data))?;
    out.finish()
}

/// The bits that new files of this process do without.
fn umask() -> u32 {
    // It can only be read by setting it; this program has one thread here.
    let all = rustix::fs::Mode::from_raw_mode(0o077);
    let mask = rustix::process::umask(all);
    rustix::process::umask(mask);
    mask.as_raw_mode()
}

/// Exports files by number.
fn export(args: &CpArgs) -> Result<(), CliError> {
    let [container] = args.paths.as_slice() else {
        return Err(CliError::usage(
            "with -x cp takes the container alone; try `caskfs cp --help`",
        ));
    };
    let target = Target::parse(container);
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Read)?;
        let mut ids = Ids::new(args.show_id);
        for wanted in &args.exports {
            let path = find(&*access, wanted.number)?;
            let own_name = path.file_name().unwrap_or_default();
            let file = wanted.file.as_deref().map_or(own_name, OsStr::new);
            if file == "-" {
                to_stdout(&*access, &path)?;
            } else {
                write_host(Path::new(file), 0o666, &mut |sink| {
                    read_file(&*access, &path, sink)
                })?;
                ids.tell(wanted.number, &path)?;
            }
        }
        ids.finish()
    })
}

/// Exports all that is in a cask.
fn export_all(args: &CpArgs) -> Result<(), CliError> {
    let (cask, to) = match args.paths.as_slice() {
        [cask] => (cask, OsStr::new(".")),
        [cask, to] => (cask, to.as_os_str()),
        _ => {
            return Err(CliError::usage(
                "with -A cp takes a container and a directory; try `caskfs cp --help`",
            ));
        }
    };
    let target = Target::parse(cask);
    Casks::with(|casks| {
        let from = Place {
            access: casks.open(&target, Need::Read)?,
            path: target.path().to_path_buf(),
            host: false,
            directory: true,
        };
        let to = match End::open(casks, to, Need::Write)? {
            End::File(to) if to.host => to,
            _ => return Err(CliError::usage("-A exports to a directory of the host")),
        };
        let mut ids = Ids::new(args.show_id);
        let path = to.path.clone();
        let copied = copy_all(&from, &to, &path, true, &mut ids);
        ids.finish().and(copied)
    })
}

/// A path to the file of this inode number.
fn find(access: &dyn Access, number: u64) -> Result<PathBuf, CliError> {
    let mut found = None;
    walk(access, Path::new("/"), &mut |path, attr| {
        if attr.ino == number && found.is_none() {
            found = Some((path.to_path_buf(), attr.kind));
        }
        Ok(())
    })?;
    let name = || access.shown(Path::new("/"));
    match found {
        Some((path, FileKind::Regular)) => Ok(path),
        Some((path, kind)) => Err(CliError::failed(format!(
            "{}: inode {number} is a {}; only files can be exported",
            access.shown(&path),
            kind_word(kind)
        ))),
        None => Err(CliError::failed(format!(
            "{}: there is no inode {number}",
            name()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_numbers_with_or_without_a_file() {
        let export = |number, file: Option<&str>| Export {
            number,
            file: file.map(str::to_owned),
        };
        assert_eq!(parse_export("2=-"), Ok(export(2, Some("-"))));
        assert_eq!(parse_export("17"), Ok(export(17, None)));
        assert_eq!(parse_export("17=a=b"), Ok(export(17, Some("a=b"))));
        for text in ["", "0", "-1", "x", "2=", "=f", "1", "1=-"] {
            assert!(parse_export(text).is_err(), "{text}");
        }
    }
}
