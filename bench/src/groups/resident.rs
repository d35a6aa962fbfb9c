// SPDX-License-Identifier: MIT OR Apache-2.0
//! Resident memory over time, of a state whose cleaner runs every second. The state is filled, kept
//! busy, then left alone.

use core::ptr::null_mut;
use std::time::{Duration, Instant};

use contenders::TABLE_SIZE;

use super::Setting;
use crate::figure::{Report, Target};
use crate::image_state::{OpenState, Opener};
use crate::measure::{Rng, Samples};
use crate::{ffi, ours, progress};

const TABLES: u64 = 16384;
const LOAD: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(5);
const STEP: Duration = Duration::from_millis(50);
/// The part of the peak that may still be resident at the end of the idle time.
const LEFT: f64 = 0.02;

/// Runs the group: see the module.
pub fn run(_: &Setting, report: &mut Report) -> Result<(), String> {
    let state = Opener {
        l2_cache_size: TABLES * TABLE_SIZE as u64,
        clean_interval_ns: 1_000_000_000,
        ..Opener::on_threads(ours::filling_storage())
    }
    .open();
    let at_first = resident_mib()?;
    let begun = Instant::now();
    let mut rng = Rng::new(31);
    let mut peak = 0.0;
    let mut next = begun;
    while begun.elapsed() < LOAD + IDLE {
        let now = resident_mib()? - at_first;
        let seconds = begun.elapsed().as_secs_f64();
        report.point("resident", "process, above the start", seconds, now);
        report.point(
            "resident",
            "tables, by statistics",
            seconds,
            table_mib(&state),
        );
        peak = f64::max(peak, now);
        let loading = begun.elapsed() < LOAD;
        progress::show(&format!(
            "resident: {} {now:.0} MiB",
            if loading { "load" } else { "idle" }
        ));
        next += STEP;
        while loading && Instant::now() < next {
            use_tables(&state, &mut rng);
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let left = resident_mib()? - at_first;
    report.info("resident.peak", "MiB", &Samples::exact(peak));
    report.info("resident.after_idle", "MiB", &Samples::exact(left));
    report.figure(
        "resident.after_idle.of_peak",
        "x",
        Target::AtMost(LEFT),
        Samples::exact(left.max(0.0) / peak),
    );
    Ok(())
}

/// Gets and puts a hundred random tables, of a set that fills the cache.
fn use_tables(state: &OpenState, rng: &mut Rng) {
    // SAFETY: the state is open; its cache lives until an option change, and there is none.
    unsafe {
        let cache = ffi::q2c_state_l2_cache(state.0).cast();
        for _ in 0..100 {
            let mut table = null_mut();
            let offset = (rng.below(TABLES) + 1) * TABLE_SIZE as u64;
            if ffi::q2c_cache_get_unlocked(cache, offset, &mut table) == 0 {
                ffi::q2c_cache_put(cache, &mut table);
            }
        }
    }
    std::thread::sleep(Duration::from_micros(500));
}

/// Resident memory of the L2 cache's tables, by its statistics.
fn table_mib(state: &OpenState) -> f64 {
    // SAFETY: the state is open; its cache lives until an option change, and there is none.
    let stats = unsafe { ours::stats(ffi::q2c_state_l2_cache(state.0).cast()) };
    stats.resident_bytes as f64 / f64::from(1 << 20)
}

/// Resident memory of the process.
fn resident_mib() -> Result<f64, String> {
    let status = std::fs::read_to_string("/proc/self/statm").map_err(|e| e.to_string())?;
    let pages = status.split(' ').nth(1).and_then(|n| n.parse::<f64>().ok());
    Ok(pages.ok_or("/proc/self/statm has no second number")? / 256.0)
}
