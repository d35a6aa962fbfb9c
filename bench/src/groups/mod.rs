// SPDX-License-Identifier: MIT OR Apache-2.0
//! The groups of figures. Each runs in a process of its own.

use std::path::PathBuf;

use crate::figure::Report;
use crate::measure::Effort;

pub mod clean;
pub mod eviction;
pub mod flush;
pub mod hit;
pub mod lifecycle;
pub mod lookup;
pub mod memory;
pub mod miss;
pub mod read;
pub mod resident;
pub mod sharing;
pub mod stalls;
pub mod storage;

/// What a group is given.
pub struct Setting {
    /// How much time to take.
    pub effort: Effort,
    /// Where scratch files and results go.
    pub out: PathBuf,
    /// The example driver's command.
    pub driver: Option<PathBuf>,
    /// Recorded table offsets, for `eviction`.
    pub trace: Option<PathBuf>,
    /// The C test program that measures stops on the coroutine host.
    pub coroutine_stop: Option<PathBuf>,
    /// Option changes in a row, for `lifecycle`.
    pub changes: u64,
}

/// A group.
pub struct Group {
    /// What it is called on the command line and in the names of its figures.
    pub name: &'static str,
    /// What `--help` says.
    pub about: &'static str,
    /// Whether `--quick` runs it.
    pub core: bool,
    /// Measures; an error is something other than a missed target.
    pub run: fn(&Setting, &mut Report) -> Result<(), String>,
}

/// All groups, in the order in which they run.
pub const ALL: &[Group] = &[
    Group {
        name: "hit",
        about: "get + put of a resident table, one and two threads",
        core: true,
        run: hit::run,
    },
    Group {
        name: "read",
        about: "copy of an entry without a pin, one and two threads",
        core: true,
        run: read::run,
    },
    Group {
        name: "miss",
        about: "get + put of an absent table, clean victim, no I/O",
        core: true,
        run: miss::run,
    },
    Group {
        name: "clean",
        about: "a cleaning pass over nothing, over everything, over scattered tables",
        core: true,
        run: clean::run,
    },
    Group {
        name: "stalls",
        about: "the longest hit and the longest miss during cleaning passes",
        core: true,
        run: stalls::run,
    },
    Group {
        name: "flush",
        about: "a flush with nothing, one and many tables dirty; joining and order of its writes",
        core: true,
        run: flush::run,
    },
    Group {
        name: "lookup",
        about: "is_table_offset of an absent table",
        core: true,
        run: lookup::run,
    },
    Group {
        name: "memory",
        about: "memory besides the tables; what a 1 GiB cache costs before it is used",
        core: true,
        run: memory::run,
    },
    Group {
        name: "eviction",
        about: "hit ratios against LRU, CLOCK, SIEVE and S3-FIFO on six workloads",
        core: true,
        run: eviction::run,
    },
    Group {
        name: "sharing",
        about: "what threads with different tables cost each other: cache lines, hits beside misses",
        core: false,
        run: sharing::run,
    },
    Group {
        name: "resident",
        about: "resident memory over time: load, idle, cleaning",
        core: false,
        run: resident::run,
    },
    Group {
        name: "lifecycle",
        about: "stops, idle cleaners, open and close, leaks, fork, option changes in a row",
        core: false,
        run: lifecycle::run,
    },
    Group {
        name: "storage",
        about: "cold and warm reads through the example driver, against qemu-img bench (needs nbdkit, qemu-img)",
        core: false,
        run: storage::run,
    },
];
