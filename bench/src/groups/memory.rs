// SPDX-License-Identifier: MIT OR Apache-2.0
//! The memory of a cache besides its tables, and what a cache costs before it is used.

use contenders::TABLE_SIZE;

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Samples, time};
use crate::{ours, progress, work};

/// Bytes for each table, from [`FROM`] tables on.
const BYTES: f64 = 48.0;
/// With fewer tables, the fixed part decides, and that it is made of whole pages.
const FROM: usize = 2048;
/// ms that creating a cache of 1 GiB may take.
const MILLISECONDS: f64 = 1.0;
/// How much more time the creation of the largest cache may take than that of the smallest.
const FLAT: f64 = 1.5;
/// KiB that the creation of a cache of any size may make resident: its fixed part.
const RESIDENT: f64 = 8.0;
/// Numbers of tables of caches that are created and not used.
const CREATED: [usize; 4] = [16, 512, 8192, 262_144];
/// Caches that are created in a row: with one, a page more or less would decide.
const IN_A_ROW: usize = 64;

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
    creation(setting, report)?;
    gigabyte(setting, report)
}

/// Time and resident memory of a creation, by the number of tables.
fn creation(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let mut times: [Samples; CREATED.len()] = Default::default();
    let mut sizes: [Samples; CREATED.len()] = Default::default();
    for _ in 0..setting.effort.rounds {
        for ((tables, time_samples), size_samples) in
            CREATED.into_iter().zip(&mut times).zip(&mut sizes)
        {
            let mut caches = Vec::with_capacity(IN_A_ROW);
            let before = resident_kib()?;
            let (taken, disturbed) =
                time(|| caches.extend((0..IN_A_ROW).map(|_| ours::without_io(tables))));
            let kib = resident_kib()? - before;
            time_samples.push(taken.as_secs_f64() * 1e6 / IN_A_ROW as f64, disturbed);
            size_samples.push(kib.max(0) as f64 / IN_A_ROW as f64, false);
        }
    }
    for (n, tables) in CREATED.into_iter().enumerate() {
        report.info(format!("memory.creation.{tables}.time"), "us", &times[n]);
        report.figure(
            format!("memory.creation.{tables}.resident"),
            "KiB",
            Target::AtMost(RESIDENT),
            std::mem::take(&mut sizes[n]),
        );
    }
    let (small, large) = (CREATED[0], CREATED[CREATED.len() - 1]);
    report.figure(
        format!("memory.creation.{large}.time.of_{small}"),
        "x",
        Target::AtMost(FLAT),
        times[CREATED.len() - 1].over(&times[0]),
    );
    Ok(())
}

/// Resident memory of the process.
fn resident_kib() -> Result<i64, String> {
    let statm = std::fs::read_to_string("/proc/self/statm").map_err(|e| e.to_string())?;
    let pages: i64 = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .ok_or("memory: /proc/self/statm has no second number")?;
    // SAFETY: reads a constant of the system.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    Ok(pages * page / 1024)
}

/// A cache of 1 GiB that is never used.
fn gigabyte(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let tables = (1 << 30) / TABLE_SIZE;
    let mut creation = Samples::default();
    let mut resident = Samples::default();
    for _ in 0..setting.effort.rounds {
        let mut cache = None;
        let before = resident_kib()?;
        let (taken, disturbed) = time(|| {
            cache = Some(ours::without_io(tables));
        });
        creation.push(taken.as_secs_f64() * 1e3, disturbed);
        let kib = resident_kib()? - before;
        resident.push(kib as f64, false);
    }
    report.figure(
        "memory.1GiB.creation",
        "ms",
        Target::AtMost(MILLISECONDS),
        creation,
    );
    report.figure(
        "memory.1GiB.resident",
        "KiB",
        Target::AtMost(64.0),
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

/// The length of an address range, `FROM-TO` in hexadecimal.
fn parse_range(text: &str) -> Option<u64> {
    let (from, to) = text.split_once('-')?;
    let number = |hex| u64::from_str_radix(hex, 16).ok();
    Some(number(to)? - number(from)?)
}
