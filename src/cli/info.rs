//! `caskfs info`: what a cask is, how it was made, and the command that would make another like it.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::access::{Access, Facts, Links, Need};
use super::exit::{CliError, shown};
use super::out::Out;
use super::target::{Casks, Target};
use super::units::{TimeFormat, rfc3339, shell_word, uuid_string};
use crate::fs::StatFs;
use crate::limits::{FILE_SIZE_MAX, NAME_MAX};

/// Show what a cask is and how it was made
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Print the command that would make another cask like it, without the container's name
    #[arg(long, conflicts_with = "json")]
    mkfs_command: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Which cask
    #[arg(value_name = "CONTAINER")]
    target: OsString,
}

#[derive(Debug, Serialize)]
struct Info {
    container: String,
    label: String,
    uuid: String,
    format: u32,
    created: String,
    block_size: u32,
    blocks: Option<u64>,
    fill: bool,
    files: Option<u64>,
    files_used: u64,
    wal_bytes: u64,
    generation: u64,
    features: Features,
    bytes: u64,
    bytes_free: u64,
    name_max: usize,
    file_size_max: u64,
    mounted_on: Option<String>,
}

#[derive(Debug, Serialize)]
struct Features {
    compat: u64,
    ro_compat: u64,
    incompat: u64,
}

impl Info {
    fn new(container: String, facts: &Facts, space: &StatFs, mounted_on: Option<&Path>) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(space.block_size.into());
        let [compat, ro_compat, incompat] = facts.features;
        Self {
            container,
            label: String::from_utf8_lossy(&facts.label).into_owned(),
            uuid: uuid_string(&facts.uuid),
            format: facts.version,
            created: rfc3339(facts.created),
            block_size: facts.block_size,
            blocks: facts.blocks_limit,
            fill: facts.fill,
            files: facts.files_limit,
            files_used: space.files.saturating_sub(space.files_free),
            wal_bytes: facts.wal_bytes,
            generation: facts.generation,
            features: Features {
                compat,
                ro_compat,
                incompat,
            },
            bytes: bytes(space.blocks),
            bytes_free: bytes(space.blocks_free),
            name_max: NAME_MAX,
            file_size_max: FILE_SIZE_MAX,
            mounted_on: mounted_on.map(shown),
        }
    }

    fn lines(&self, created: &str) -> Vec<String> {
        let blocks = match (self.blocks, self.fill) {
            (None, _) => "grows as needed".to_owned(),
            (Some(blocks), false) => blocks.to_string(),
            (Some(blocks), true) => format!("{blocks}, all written"),
        };
        let files = self
            .files
            .map_or_else(|| "without bound".to_owned(), |files| files.to_string());
        let features = match &self.features {
            Features {
                compat: 0,
                ro_compat: 0,
                incompat: 0,
            } => "none".to_owned(),
            Features {
                compat,
                ro_compat,
                incompat,
            } => format!("compat {compat:#x}, ro_compat {ro_compat:#x}, incompat {incompat:#x}"),
        };
        [
            ("Container", self.container.clone()),
            ("Label", shown(&self.label)),
            ("UUID", self.uuid.clone()),
            ("Format", self.format.to_string()),
            ("Features", features),
            ("Created", created.to_owned()),
            ("Block size", format!("{} bytes", self.block_size)),
            ("Blocks", blocks),
            ("Files", format!("{files}, {} used", self.files_used)),
            ("Log", format!("{} bytes", self.wal_bytes)),
            ("Checkpoint", self.generation.to_string()),
            (
                "Space",
                format!("{} bytes, {} free", self.bytes, self.bytes_free),
            ),
            (
                "Limits",
                format!(
                    "names of {} bytes, files of {} bytes",
                    self.name_max, self.file_size_max
                ),
            ),
            (
                "Mounted on",
                self.mounted_on.clone().unwrap_or_else(|| "-".into()),
            ),
        ]
        .into_iter()
        .map(|(name, value)| {
            format!("{:<12} {value}", format!("{name}:"))
                .trim_end()
                .to_owned()
        })
        .collect()
    }
}

/// Runs the verb.
pub fn run(args: InfoArgs) -> Result<(), CliError> {
    let target = Target::parse(&args.target);
    let mut out = Out::new();
    Casks::with(|casks| {
        let access = casks.open(&target, Need::Read)?;
        let facts = access.facts()?;
        if args.mkfs_command {
            out.line(mkfs_command(&facts, is_bare(&*access)?))?;
            return out.finish();
        }
        let container = match &target {
            Target::Container { container, .. } => shown(container),
            Target::Mounted { mount, .. } => shown(&mount.source),
            Target::Host(path) => shown(path),
        };
        let info = Info::new(container, &facts, &access.space()?, access.mountpoint());
        if args.json {
            out.json(&info)?;
        } else {
            let times = TimeFormat::new("%Y-%m-%d %H:%M:%S %z", false).map_err(CliError::usage)?;
            info.lines(&times.format(facts.created))
                .iter()
                .try_for_each(|line| out.line(line))?;
        }
        out.finish()
    })
}

/// Whether the stores that mkfs makes are missing.
fn is_bare(access: &dyn Access) -> Result<bool, CliError> {
    for name in ["/logs", "/sessions"] {
        match access.stat(Path::new(name), Links::Keep) {
            Ok(_) => {}
            Err(error) if error.is_not_found() => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn mkfs_command(facts: &Facts, bare: bool) -> String {
    let label = String::from_utf8_lossy(&facts.label);
    let mut words = vec!["caskfs".to_owned(), "mkfs".to_owned()];
    words.extend(facts.files_limit.map(|files| format!("--files={files}")));
    words.push(format!("--block-size={}", facts.block_size));
    words.extend(
        facts
            .blocks_limit
            .map(|blocks| format!("--blocks={blocks}")),
    );
    words.extend(facts.fill.then(|| "--fill".to_owned()));
    words.push(format!("--wal={}", facts.wal_bytes));
    words.extend((!label.is_empty()).then(|| format!("--label={}", shell_word(&label))));
    words.extend(bare.then(|| "--bare".to_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn facts() -> Facts {
        Facts {
            label: b"edge-3 storage".to_vec(),
            uuid: [0; 16],
            version: 1,
            block_size: 16_384,
            blocks: 100,
            blocks_limit: None,
            fill: false,
            files_limit: Some(4096),
            wal_bytes: 1 << 20,
            generation: 1,
            created: Timestamp::default(),
            features: [0; 3],
        }
    }

    #[test]
    fn the_command_makes_another_like_it() {
        assert_eq!(
            mkfs_command(&facts(), false),
            "caskfs mkfs --files=4096 --block-size=16384 --wal=1048576 --label='edge-3 storage'"
        );
        let fixed = Facts {
            label: Vec::new(),
            blocks_limit: Some(1000),
            fill: true,
            files_limit: None,
            ..facts()
        };
        assert_eq!(
            mkfs_command(&fixed, true),
            "caskfs mkfs --block-size=16384 --blocks=1000 --fill --wal=1048576 --bare"
        );
    }

    #[test]
    fn lines_name_what_they_tell() {
        let space = StatFs {
            block_size: 4096,
            blocks: 10,
            blocks_free: 5,
            files: 4096,
            files_free: 4093,
            name_max: 255,
        };
        let info = Info::new("a.cask".into(), &facts(), &space, None);
        let lines = info.lines("then");
        assert!(
            lines.contains(&"Label:       edge-3 storage".to_owned()),
            "{lines:?}"
        );
        assert!(lines.contains(&"Files:       4096, 3 used".to_owned()));
        assert!(lines.contains(&"Space:       40960 bytes, 20480 free".to_owned()));
        assert!(lines.contains(&"Mounted on:  -".to_owned()));
    }
}
