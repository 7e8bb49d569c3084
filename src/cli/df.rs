//! `caskfs df`: what is used and free, as df(1) would show it for a mount.

use std::ffi::OsString;

use clap::Args;
use serde::Serialize;

use super::access::Need;
use super::exit::{CliError, shown};
use super::out::Out;
use super::target::{Casks, Target};
use crate::fs::StatFs;

/// Show what is used and free in casks
#[derive(Debug, Args)]
pub struct DfArgs {
    /// Count inodes instead of bytes
    #[arg(short, long)]
    inodes: bool,
    /// Print JSON, one document per cask and line
    #[arg(long)]
    json: bool,
    /// Which casks
    #[arg(value_name = "CONTAINER", required = true)]
    targets: Vec<OsString>,
}

#[derive(Debug, Serialize)]
struct Row {
    filesystem: String,
    block_size: u32,
    blocks: u64,
    blocks_free: u64,
    bytes: u64,
    bytes_used: u64,
    bytes_free: u64,
    inodes: u64,
    inodes_used: u64,
    inodes_free: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mounted_on: Option<String>,
}

impl Row {
    fn new(filesystem: String, mounted_on: Option<String>, space: &StatFs) -> Self {
        let block = u64::from(space.block_size);
        let bytes = space.blocks.saturating_mul(block);
        let bytes_free = space.blocks_free.saturating_mul(block);
        Self {
            filesystem,
            block_size: space.block_size,
            blocks: space.blocks,
            blocks_free: space.blocks_free,
            bytes,
            bytes_used: bytes.saturating_sub(bytes_free),
            bytes_free,
            inodes: space.files,
            inodes_used: space.files.saturating_sub(space.files_free),
            inodes_free: space.files_free,
            mounted_on,
        }
    }

    /// Total, used and free: inodes, or units of 1 KiB.
    fn numbers(&self, inodes: bool) -> [u64; 3] {
        if inodes {
            [self.inodes, self.inodes_used, self.inodes_free]
        } else {
            // Used is rounded up, free down, as nobody can write a part of a unit.
            [
                self.bytes / 1024,
                self.bytes_used.div_ceil(1024),
                self.bytes_free / 1024,
            ]
        }
    }

    fn cells(&self, inodes: bool) -> [String; 6] {
        let [total, used, free] = self.numbers(inodes);
        [
            self.filesystem.clone(),
            total.to_string(),
            used.to_string(),
            free.to_string(),
            percent(used, free),
            self.mounted_on.clone().unwrap_or_else(|| "-".into()),
        ]
    }
}

/// Used of used and free, rounded up as df(1) does.
fn percent(used: u64, free: u64) -> String {
    let (used, free) = (u128::from(used), u128::from(free));
    match used + free {
        0 => "-".into(),
        all => format!("{}%", (used * 100).div_ceil(all)),
    }
}

/// Runs the verb.
pub fn run(args: DfArgs) -> Result<(), CliError> {
    let mut rows = Vec::new();
    let measured = Casks::with(|casks| {
        let mut all = Ok(());
        for typed in &args.targets {
            let target = Target::parse(typed);
            let found = casks
                .open(&target, Need::Read)
                .and_then(|access| Ok((access.space()?, access)));
            match found {
                Ok((space, access)) => {
                    let name = match &target {
                        Target::Container { container, .. } => shown(container),
                        Target::Mounted { mount, .. } => shown(&mount.source),
                        Target::Host(path) => shown(path),
                    };
                    rows.push(Row::new(name, access.mountpoint().map(shown), &space));
                }
                Err(error) => {
                    error.report();
                    all = Err(CliError::said());
                }
            }
        }
        all
    });
    let mut out = Out::new();
    if args.json {
        rows.iter().try_for_each(|row| out.json_line(row))?;
    } else if !rows.is_empty() {
        table(&rows, args.inodes)
            .iter()
            .try_for_each(|line| out.line(line))?;
    }
    out.finish().and(measured)
}

/// The lines of the table, each column as wide as it must be.
fn table(rows: &[Row], inodes: bool) -> Vec<String> {
    let head = if inodes {
        [
            "Filesystem",
            "Inodes",
            "IUsed",
            "IFree",
            "IUse%",
            "Mounted on",
        ]
    } else {
        [
            "Filesystem",
            "1K-blocks",
            "Used",
            "Available",
            "Use%",
            "Mounted on",
        ]
    };
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows.iter().map(|row| row.cells(inodes)));
    let mut widths = [0; 6];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let [name, a, b, c, d, _] = widths;
    lines
        .iter()
        .map(|[w0, w1, w2, w3, w4, w5]| {
            format!("{w0:<name$} {w1:>a$} {w2:>b$} {w3:>c$} {w4:>d$} {w5}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let space = StatFs {
            block_size: 4096,
            blocks: 100,
            blocks_free: 75,
            files: 4096,
            files_free: 4095,
            name_max: 255,
        };
        Row::new("a.cask".into(), None, &space)
    }

    #[test]
    fn columns_are_those_of_df() {
        assert_eq!(
            table(&[row()], false),
            [
                "Filesystem 1K-blocks Used Available Use% Mounted on",
                "a.cask           400  100       300  25% -",
            ]
        );
        assert_eq!(
            table(&[row()], true),
            [
                "Filesystem Inodes IUsed IFree IUse% Mounted on",
                "a.cask       4096     1  4095    1% -",
            ]
        );
    }

    #[test]
    fn percentages_are_rounded_up_and_never_overflow() {
        assert_eq!(percent(0, 0), "-");
        assert_eq!(percent(1, 4095), "1%");
        assert_eq!(percent(0, 1), "0%");
        assert_eq!(percent(u64::MAX, 0), "100%");
    }
}
