//! `caskfs mkfs`: makes a container.
//!
//! Invariants: nothing that is there is overwritten without `--force`, and what somebody holds the
//! lock of never; a container that could not be made whole is not left behind.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::access::{Access, Need};
use super::exit::{CliError, shown};
use super::mkstore::{self, Kind};
use super::offline::Offline;
use super::out::Out;
use super::peek;
use super::units::{parse_size, uuid_string};
use crate::cask::{Cask, FormatOptions};
use crate::clock::{Clock, SystemClock};
use crate::device::Device;
use crate::device::file::{Access as Opening, FileDevice};
use crate::error::Error;
use crate::limits::{BLOCK_SIZE_DEFAULT, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, LABEL_MAX};

/// Bytes at the start of a block device that must be zero for it to count as empty.
const HEAD: u64 = 1 << 20;

/// Make a cask
#[derive(Debug, Args)]
pub struct MkfsArgs {
    /// Most files, the root directory included [default: no bound]
    #[arg(long, value_name = "N", alias = "inode-count", value_parser = clap::value_parser!(u64).range(1..))]
    files: Option<u64>,
    /// Bytes in a block: a power of two from 1k to 64k
    #[arg(long, value_name = "BYTES", default_value_t = BLOCK_SIZE_DEFAULT, value_parser = parse_block_size)]
    block_size: u32,
    /// Blocks in all [default: grows as needed]
    #[arg(long, value_name = "N", alias = "block-count", value_parser = clap::value_parser!(u64).range(1..))]
    blocks: Option<u64>,
    /// Write all blocks now, so that the container never changes its size; needs --blocks
    #[arg(long, alias = "fill-blocks")]
    fill: bool,
    /// A label of at most 64 bytes
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: OsString,
    /// Accepted for those who come from whio_epfs; only `ht`
    #[arg(long, value_name = "NAME", value_parser = parse_namer)]
    namer: Option<String>,
    /// Make no directories: neither logs nor sessions
    #[arg(long)]
    bare: bool,
    /// Bytes of the write-ahead log, 256k to 1g [default: an eighth of the cask, at most 64m]
    #[arg(long, value_name = "BYTES", value_parser = parse_size)]
    wal: Option<u64>,
    /// Overwrite what is there
    #[arg(short, long)]
    force: bool,
    /// Say nothing
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The file or block device to make a cask in
    container: PathBuf,
}

fn parse_block_size(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    u32::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two())
        .filter(|size| (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(size))
        .ok_or_else(|| {
            format!("{size} is not a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}")
        })
}

fn parse_namer(text: &str) -> Result<String, String> {
    match text {
        "ht" => Ok(text.to_owned()),
        _ => Err("a cask always keeps names itself, by hash: only `ht` fits".into()),
    }
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    container: String,
    uuid: String,
    label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<u64>,
    block_size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<u64>,
    fill: bool,
    stores: Vec<&'static str>,
}

impl Made {
    /// `acc.cask: 4096 files (1 for the root), 16384-byte blocks, grows as needed`
    fn line(&self) -> String {
        let files = self.files.map_or_else(
            || "files without bound".to_owned(),
            |files| format!("{files} files (1 for the root)"),
        );
        let room = match (self.blocks, self.fill) {
            (None, _) => "grows as needed".to_owned(),
            (Some(blocks), false) => format!("{blocks} of them"),
            (Some(blocks), true) => format!("{blocks} of them, all written"),
        };
        let (container, block_size) = (&self.container, self.block_size);
        format!("{container}: {files}, {block_size}-byte blocks, {room}")
    }
}

/// Runs the verb.
pub fn run(args: MkfsArgs) -> Result<(), CliError> {
    let container = &args.container;
    let name = shown(container);
    let label = args.label.clone().into_vec();
    if label.len() > LABEL_MAX {
        return Err(CliError::usage(format!(
            "{name}: the label has {} bytes; at most {LABEL_MAX} fit",
            label.len()
        )));
    }
    if args.fill && args.blocks.is_none() {
        return Err(CliError::usage(format!(
            "{name}: --fill needs --blocks, as a cask that grows cannot be filled in advance"
        )));
    }
    let mut options = FormatOptions {
        block_size: args.block_size,
        blocks: args.blocks,
        fill: args.fill,
        files: args.files,
        label,
        wal_bytes: args.wal,
        root_uid: rustix::process::geteuid().as_raw(),
        root_gid: rustix::process::getegid().as_raw(),
        now: SystemClock.now(),
        ..FormatOptions::default()
    };
    randomise(&mut options).map_err(|why| CliError::failed(format!("{name}: {why}")))?;

    let (device, claim) = claim(container, args.force)?;
    if claim.on_block_device && options.blocks.is_none() {
        // It has the size it has.
        let len = device.len().map_err(|error| CliError::io(&name, &error))?;
        options.blocks = Some(len / u64::from(options.block_size));
    }
    let stores = make(device, container, &options, args.bare)?;
    claim.keep();

    if args.fill && overwriting_allocates(container) {
        let _ = writeln!(
            io::stderr(),
            "caskfs: {name}: the host's filesystem writes to a new place each time, so even a filled cask can find it full"
        );
    }
    let made = Made {
        container: name,
        uuid: uuid_string(&options.uuid),
        label: String::from_utf8_lossy(&options.label).into_owned(),
        files: options.files,
        block_size: options.block_size,
        blocks: options.blocks,
        fill: options.fill,
        stores,
    };
    let mut out = Out::new();
    if args.json {
        out.json(&made)?;
    } else if !args.quiet {
        out.line(made.line())?;
    }
    out.finish()
}

/// A random identity (UUID version 4) and secret.
fn randomise(options: &mut FormatOptions) -> Result<(), String> {
    let failed = |why: getrandom::Error| format!("the system has no random numbers: {why}");
    getrandom::fill(&mut options.secret).map_err(failed)?;
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(failed)?;
    let number = u128::from_be_bytes(random);
    let version = number & !(0xf << 76) | (4 << 76);
    options.uuid = (version & !(0b11 << 62) | (0b10 << 62)).to_be_bytes();
    Ok(())
}

fn make(
    device: FileDevice,
    container: &Path,
    options: &FormatOptions,
    bare: bool,
) -> Result<Vec<&'static str>, CliError> {
    let at = |error: Error| match error {
        // Formatting finds nothing invalid but the options.
        Error::Invalid(why) => CliError::usage(format!("{}: {why}", shown(container))),
        other => CliError::at(shown(container), &other),
    };
    Cask::format(&device, options).map_err(at)?;
    if bare {
        return Ok(Vec::new());
    }
    let access = Offline::over(device, container, Need::Write)
        .map_err(|error| CliError::at(shown(container), &error))?;
    let stores = [("logs", Kind::Flat), ("sessions", Kind::Session)];
    for (name, kind) in stores {
        let path = Path::new("/").join(name);
        mkstore::make(&access, &path, mkstore::PERM, &kind.settings())?;
    }
    access.close()?;
    Ok(stores.map(|(name, _)| name).to_vec())
}

/// The right to make a cask in a place. Dropped without [`Claim::keep`], it leaves the place as it
/// was, unless it was to be overwritten.
struct Claim {
    undo: Option<Undo>,
    on_block_device: bool,
}

enum Undo {
    Remove(PathBuf),
    Empty(PathBuf),
}

impl Claim {
    fn keep(mut self) {
        self.undo = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The failure that led here is being reported; a second one would only hide it.
        let _ = match &self.undo {
            None => Ok(()),
            Some(Undo::Remove(path)) => fs::remove_file(path),
            Some(Undo::Empty(path)) => fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(path)
                .map(drop),
        };
    }
}

/// Opens and locks the place for a new container.
fn claim(container: &Path, force: bool) -> Result<(FileDevice, Claim), CliError> {
    let name = shown(container);
    let at = |error: Error| CliError::at(&name, &error);
    let found = match fs::metadata(container) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let device = FileDevice::create_new(container).map_err(at)?;
            let claim = Claim {
                undo: Some(Undo::Remove(container.to_path_buf())),
                on_block_device: false,
            };
            return Ok((device, claim));
        }
        other => other.map_err(|error| CliError::io(&name, &error))?,
    };
    let device = FileDevice::open(container, Opening::ReadWrite).map_err(at)?;
    let on_block_device = found.file_type().is_block_device();
    let content = content(&device, on_block_device).map_err(|error| CliError::io(&name, &error))?;
    let refused =
        |what: &str| CliError::failed(format!("{name}: {what}; use --force to overwrite it"));
    match content {
        Content::Cask if !force => return Err(refused("is a cask already")),
        Content::Other if !force => return Err(refused("is not empty")),
        _ => {}
    }
    let undo = matches!(content, Content::Nothing)
        .then(|| Undo::Empty(container.to_path_buf()))
        .filter(|_| !on_block_device);
    Ok((
        device,
        Claim {
            undo,
            on_block_device,
        },
    ))
}

enum Content {
    Nothing,
    Cask,
    Other,
}

fn content(device: &FileDevice, on_block_device: bool) -> io::Result<Content> {
    let len = device.len()?;
    let mut head = vec![0; usize::try_from(len.min(HEAD)).unwrap_or(0)];
    device.read_at(0, &mut head)?;
    Ok(match len {
        0 => Content::Nothing,
        _ if peek::is_cask(&head) => Content::Cask,
        _ if on_block_device && head.iter().all(|byte| *byte == 0) => Content::Nothing,
        _ => Content::Other,
    })
}

/// Whether the filesystem that the container stands on takes new space for an overwrite.
fn overwriting_allocates(container: &Path) -> bool {
    const BTRFS: u64 = 0x9123_683e;
    const ZFS: u64 = 0x2fc1_2fc1;
    const BCACHEFS: u64 = 0xca45_1a4e;
    // The type is a signed word of the machine's size.
    rustix::fs::statfs(container)
        .is_ok_and(|found| matches!(found.f_type as u64 & 0xffff_ffff, BTRFS | ZFS | BCACHEFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_powers_of_two_in_bounds() {
        assert_eq!(parse_block_size("16k"), Ok(16_384));
        assert_eq!(parse_block_size("1024"), Ok(1024));
        assert_eq!(parse_block_size("64K"), Ok(65_536));
        for text in ["512", "128k", "4095", "3k", "0", "many", "4g"] {
            assert!(parse_block_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_line_says_what_was_made() {
        let mut made = Made {
            container: "acc.cask".into(),
            uuid: String::new(),
            label: String::new(),
            files: Some(4096),
            block_size: 16_384,
            blocks: None,
            fill: false,
            stores: Vec::new(),
        };
        assert_eq!(
            made.line(),
            "acc.cask: 4096 files (1 for the root), 16384-byte blocks, grows as needed"
        );
        made.files = None;
        made.blocks = Some(1000);
        made.fill = true;
        assert_eq!(
            made.line(),
            "acc.cask: files without bound, 16384-byte blocks, 1000 of them, all written"
        );
    }

    #[test]
    fn an_identity_is_a_version_4_uuid() {
        let mut options = FormatOptions::default();
        randomise(&mut options).unwrap();
        let text = uuid_string(&options.uuid);
        assert_eq!(text.as_bytes()[14], b'4', "{text}");
        assert!(b"89ab".contains(&text.as_bytes()[19]), "{text}");
        assert_ne!(options.secret, [0; 32]);
    }
}
