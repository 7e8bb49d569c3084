//! The tiny casks that the crash tests run on. Small rings and few blocks make everything happen
//! often: the log wraps, checkpoints come, blocks are used again.

use super::case::Geometry;
use super::explorer::Plan;
use super::generate::Mix;

/// A plan without writes that bypass the log.
pub const fn plan(block_size: u32, blocks: u64, wal_blocks: u64, sync_one_in: u64) -> Plan {
    Plan {
        geometry: Geometry {
            block_size,
            blocks,
            wal_blocks,
            spacing: block_size,
        },
        mix: Mix {
            block_size,
            max_blocks: 5,
            bypass_one_in: 0,
            overwrite_eighths: 0,
            sync_one_in,
            log_eighths: 0,
            value_eighths: 0,
        },
        ops: 60,
        states_per_case: 2000,
        wipes: false,
    }
}

/// A plan in which one write in four bypasses the log.
pub const fn bypassing(block_size: u32, blocks: u64, wal_blocks: u64, sync_one_in: u64) -> Plan {
    let mut plan = plan(block_size, blocks, wal_blocks, sync_one_in);
    plan.mix.bypass_one_in = 4;
    plan.ops = 30;
    plan
}

/// A plan that overwrites whole blocks most of the time.
pub const fn overwriting(block_size: u32, blocks: u64, wal_blocks: u64, sync_one_in: u64) -> Plan {
    let mut plan = plan(block_size, blocks, wal_blocks, sync_one_in);
    plan.mix.overwrite_eighths = 6;
    plan
}

/// A plan of logs that are cut for every reason there is.
pub const fn logging(block_size: u32, blocks: u64, wal_blocks: u64, sync_one_in: u64) -> Plan {
    let mut plan = plan(block_size, blocks, wal_blocks, sync_one_in);
    plan.mix.max_blocks = 2;
    plan.mix.log_eighths = 6;
    plan
}

/// A plan of values that have an end, of snapshots and of casks that are made larger.
pub const fn values(block_size: u32, blocks: u64, wal_blocks: u64, sync_one_in: u64) -> Plan {
    let mut plan = plan(block_size, blocks, wal_blocks, sync_one_in);
    plan.mix.max_blocks = 2;
    plan.mix.value_eighths = 6;
    plan
}

/// A plan in which what is given up is wiped.
pub const fn wiping(mut plan: Plan) -> Plan {
    plan.wipes = true;
    plan
}

/// All of them, in turn.
pub const ALL: [Plan; 24] = [
    values(512, 400, 16, 6),
    values(1024, 260, 16, 4),
    values(512, 0, 16, 6),
    values(1024, 0, 8, 4),
    logging(512, 700, 32, 3),
    logging(1024, 0, 16, 4),
    logging(1024, 0, 32, 4),
    logging(512, 0, 16, 3),
    overwriting(512, 214, 32, 4),
    plan(512, 200, 4, 6),
    plan(512, 230, 8, 12),
    plan(512, 400, 16, 30),
    plan(1024, 160, 4, 6),
    plan(1024, 180, 8, 20),
    plan(1024, 220, 16, 4),
    bypassing(1024, 400, 8, 8),
    bypassing(512, 400, 8, 8),
    // These grow.
    plan(512, 0, 16, 10),
    bypassing(1024, 0, 8, 8),
    wiping(overwriting(512, 230, 32, 4)),
    wiping(plan(512, 200, 8, 6)),
    wiping(plan(1024, 220, 16, 4)),
    wiping(bypassing(512, 400, 8, 8)),
    wiping(bypassing(1024, 0, 8, 8)),
];
