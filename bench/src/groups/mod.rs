// SPDX-License-Identifier: MIT OR Apache-2.0
//! The groups of figures. Each runs in a separate process.

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
pub mod waiters;

/// What a group needs to know.
pub struct Setting {
    /// How much time the group may take.
    pub effort: Effort,
    /// Where scratch files and results go.
    pub out: PathBuf,
    /// The example driver's command, for `storage`.
    pub driver: Option<PathBuf>,
    /// Recorded table offsets, for `eviction`.
    pub trace: Option<PathBuf>,
    /// The C test program that measures stops on the coroutine host, for `lifecycle`.
    pub coroutine_stop: Option<PathBuf>,
    /// The C test program that measures gets that wait, for `waiters`.
    pub coroutine_waiters: Option<PathBuf>,
    /// Option changes in a row, for `lifecycle`.
    pub changes: u64,
}

/// A group.
pub struct Group {
    /// Its name on the command line and in the names of its figures.
    pub name: &'static str,
    /// What `--help` says.
    pub about: &'static str,
    /// Whether `--quick` runs it.
    pub core: bool,
    /// Measures. Returns an error if something failed; a missed target is not an error.
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
        about: "a cleaning pass that drops nothing, all, or scattered tables",
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
        about: "a flush of no, one and many dirty tables; its writes",
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
        about: "memory besides the tables; the cost of an unused 1 GiB cache",
        core: true,
        run: memory::run,
    },
    Group {
        name: "eviction",
        about: "hit ratios against LRU, CLOCK, SIEVE and S3-FIFO, six loads",
        core: true,
        run: eviction::run,
    },
    Group {
        name: "sharing",
        about: "false sharing between threads; hits beside another's misses",
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
        about: "stops, idle cleaners, leaks, fork, option changes (minutes)",
        core: false,
        run: lifecycle::run,
    },
    Group {
        name: "waiters",
        about: "gets that wait: 16 to 16,384 coroutines in one cache",
        core: false,
        run: waiters::run,
    },
    Group {
        name: "storage",
        about: "reads through the example driver, against qemu-img bench",
        core: false,
        run: storage::run,
    },
];
