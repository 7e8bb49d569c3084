//! Does docs/FORMAT.md say what the code does? Its tables of offsets are compared with the structs.

use std::collections::BTreeMap;
use std::mem::{offset_of, size_of};

use caskfs::format::item::{ArrivalsRecord, EventsRecord, InodeRecord, MarkRecord, SegmentRecord};
use caskfs::format::superblock::SuperblockRecord;
use caskfs::format::wal::FrameRecord;

/// Offsets by field of a struct, in order, and its size.
macro_rules! layout {
    ($record:ty: $($field:ident)*) => {
        (
            stringify!($record),
            vec![$((offset_of!($record, $field), stringify!($field))),*],
            size_of::<$record>(),
        )
    };
}

fn tables() -> BTreeMap<String, Vec<(usize, usize, String)>> {
    let text = include_str!("../docs/FORMAT.md");
    let mut tables = BTreeMap::new();
    let mut name = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("<!-- table ") {
            name = rest.strip_suffix(" -->").map(str::to_owned);
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match (&name, cells.as_slice()) {
            (Some(name), ["", offset, bytes, field, ""]) => {
                if let (Ok(offset), Ok(bytes)) = (offset.parse(), bytes.parse()) {
                    let rows: &mut Vec<(usize, usize, String)> =
                        tables.entry(name.clone()).or_default();
                    rows.push((offset, bytes, (*field).to_owned()));
                }
            }
            (Some(found), _) if line.is_empty() && tables.contains_key(found) => name = None,
            _ => {}
        }
    }
    tables
}

#[test]
fn the_tables_are_the_structs() {
    let layouts = [
        layout!(SuperblockRecord: magic version compat ro_compat incompat uuid secret label block_size spacing flags
            height blocks files_limit wal_len generation wal_position wal_lsn wal_digest root_block pages root_crc
            alloc_slot alloc_digest next_number files created wipes digest),
        layout!(InodeRecord: mode uid gid nlink size content parent name_hash atime mtime ctime btime rdev flags
            since),
        layout!(SegmentRecord: log base count),
        layout!(EventsRecord: content size mtime),
        layout!(ArrivalsRecord: content),
        layout!(MarkRecord: file before),
        layout!(FrameRecord: magic len lsn generation unconfirmed records previous digest),
    ];
    let tables = tables();
    assert_eq!(tables.len(), layouts.len());
    for (name, fields, size) in layouts {
        let rows = &tables[name];
        let documented: Vec<(usize, &str)> = rows
            .iter()
            .map(|(offset, _, field)| (*offset, field.as_str()))
            .collect();
        assert_eq!(documented, fields, "{name}");
        let mut end = 0;
        for (offset, bytes, field) in rows {
            assert_eq!(
                *offset, end,
                "{name}.{field} does not follow the field before it"
            );
            end += bytes;
        }
        assert_eq!(end, size, "{name} is {size} bytes long");
    }
}
