// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory of a cache besides its tables, and what a cache costs before it is used.

use contenders::TABLE_SIZE;

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Samples, time};
use crate::{ours, progress, work};

/// Bytes for each table, from [`FROM`] tables on.
const BYTES: f64 = 48.0;
/// With fewer tables, the fixed part decides.
const FROM: usize = 512;
/// ms that creating a cache of 1 GiB may take.
const MILLISECONDS: f64 = 1.0;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    progress::show("memory");
    for &tables in work::sizes(setting.effort.quick) {
        let before = allocated()?;
        let cache = ours::without_io(tables);
        let bytes = (allocated()? - before) as f64 - (tables * TABLE_SIZE) as f64;
        // SAFETY: a living cache of the library.
        let told = unsafe { ours::stats(cache.handle) }.metadata_bytes as f64;
        let target = Target::AtMost(BYTES).when(tables >= FROM);
        report.figure(
            format!("memory.{tables}.besides_tables"),
            "B/table",
            target,
            Samples::exact(bytes / tables as f64),
        );
        report.info(
            format!("memory.{tables}.as_statistics_say"),
            "B/table",
            &Samples::exact(told / tables as f64),
        );
    }
    gigabyte(setting, report)
}

/// A cache of 1 GiB that is never used.
fn gigabyte(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let tables = (1 << 30) / TABLE_SIZE;
    let mut creation = Samples::default();
    let mut resident = Samples::default();
    for _ in 0..setting.effort.rounds {
        let mut cache = None;
        let (taken, disturbed) = time(|| {
            cache = Some(ours::without_io(tables));
        });
        creation.push(taken.as_secs_f64() * 1e3, disturbed);
        let kib = resident_kib_of_mapping(1 << 30)
            .ok_or("memory: the cache's mapping is not in /proc/self/smaps")?;
        resident.push(kib as f64, false);
    }
    report.figure(
        "memory.1GiB.creation",
        "ms",
        Target::AtMost(MILLISECONDS),
        creation,
    );
    report.figure(
        "memory.1GiB.resident_tables",
        "KiB",
        Target::AtMost(0.0),
        resident,
    );
    Ok(())
}

/// Bytes that the C library has handed out from its heap (Rust's allocator is malloc), plus those
/// of all mappings without a name, which malloc and the library make.
fn allocated() -> Result<u64, String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|e| e.to_string())?;
    let nameless = maps.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let range = fields.next()?;
        fields.nth(4).is_none().then(|| parse_range(range))?
    });
    // SAFETY: only reads the allocator's counters.
    let info = unsafe { libc::mallinfo2() };
    Ok(info.uordblks as u64 + nameless.sum::<u64>())
}

/// `Rss` of the mapping that has exactly `bytes` bytes, in KiB.
fn resident_kib_of_mapping(bytes: u64) -> Option<u64> {
    let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let mut inside = false;
    for line in maps.lines() {
        if let Some(range) = line.split(' ').next().and_then(parse_range) {
            inside = range == bytes;
        } else if inside && line.starts_with("Rss:") {
            return line.split_whitespace().nth(1)?.parse().ok();
        }
    }
    None
}

/// The length of an address range, `FROM-TO` in hexadecimal.
fn parse_range(text: &str) -> Option<u64> {
    let (from, to) = text.split_once('-')?;
    let number = |hex| u64::from_str_radix(hex, 16).ok();
    Some(number(to)? - number(from)?)
}
