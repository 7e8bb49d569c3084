//! One thing to try: a geometry, operations, and the seed that decides where it crashes. As text it
//! is what a failure prints and what tests/regress/ keeps.

use std::fmt;
use std::str::FromStr;

use caskfs::cask::FormatOptions;

use super::generate::Mix;
use super::op::Op;
use super::subject::time_of;

/// The measures of a tiny cask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Geometry {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks in the cask; 0 for one that grows.
    pub blocks: u64,
    /// Blocks of the write-ahead log.
    pub wal_blocks: u64,
    /// Bytes between copies of the superblock.
    pub spacing: u32,
}

impl Geometry {
    pub fn format_options(&self) -> FormatOptions {
        FormatOptions {
            block_size: self.block_size,
            blocks: Some(self.blocks).filter(|blocks| *blocks > 0),
            fill: false,
            files: None,
            label: b"tiny".to_vec(),
            wal_bytes: Some(self.wal_blocks * u64::from(self.block_size)),
            uuid: [7; 16],
            secret: [9; 32],
            superblock_spacing: self.spacing,
            root_mode: 0o755,
            root_uid: 0,
            root_gid: 0,
            now: time_of(0),
        }
    }
}

/// One thing to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub geometry: Geometry,
    /// What later lives, after a crash, go on with.
    pub mix: Mix,
    /// Decides the cuts and the choices.
    pub seed: u64,
    /// Crash states to try.
    pub states: u64,
    pub ops: Vec<Op>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Geometry {
            block_size,
            blocks,
            wal_blocks,
            spacing,
        } = self.geometry;
        let Mix {
            max_blocks,
            bypass_one_in,
            overwrite_eighths,
            sync_one_in,
            log_eighths,
            value_eighths,
            ..
        } = self.mix;
        writeln!(f, "geometry {block_size} {blocks} {wal_blocks} {spacing}")?;
        writeln!(
            f,
            "mix {max_blocks} {bypass_one_in} {overwrite_eighths} {sync_one_in} {log_eighths} \
             {value_eighths}"
        )?;
        writeln!(f, "explore {} {}", self.seed, self.states)?;
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl FromStr for Case {
    type Err = String;

    /// Lines that begin with `#` are for people.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut numbers = |head: &str| -> Result<Vec<u64>, String> {
            let line = lines.next().ok_or(format!("{head} is missing"))?;
            let rest = line
                .strip_prefix(head)
                .ok_or(format!("{line}: {head} expected"))?;
            rest.split_ascii_whitespace()
                .map(|n| n.parse().map_err(|_| line.to_owned()))
                .collect()
        };
        let (geometry, mut mix, explore) =
            (numbers("geometry")?, numbers("mix")?, numbers("explore")?);
        // Older cases know no logs, nor values.
        mix.resize(mix.len().max(6), 0);
        let (
            [block, blocks, wal_blocks, spacing],
            [max, bypass, overwrite, sync, logs, values],
            [seed, states],
        ) = (&geometry[..], &mix[..], &explore[..])
        else {
            return Err("wrong number of numbers".into());
        };
        let geometry = Geometry {
            block_size: *block as u32,
            blocks: *blocks,
            wal_blocks: *wal_blocks,
            spacing: *spacing as u32,
        };
        let mix = Mix {
            block_size: geometry.block_size,
            max_blocks: *max,
            bypass_one_in: *bypass,
            overwrite_eighths: *overwrite,
            sync_one_in: *sync,
            log_eighths: *logs,
            value_eighths: *values,
        };
        let ops = lines.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self {
            geometry,
            mix,
            seed: *seed,
            states: *states,
            ops,
        })
    }
}
