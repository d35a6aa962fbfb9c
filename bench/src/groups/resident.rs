// SPDX-License-Identifier: MIT OR Apache-2.0
//! Resident memory over time, of a state whose cleaner runs every second: filled, kept busy, then left alone.

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
/// Of the peak, what may still be resident when the cleaner has had its time.
const LEFT: f64 = 0.02;

/// See the module.
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

/// A hundred gets, of a set that fills the cache.
fn use_tables(state: &OpenState, rng: &mut Rng) {
    // SAFETY: an open state, alone in its use; the cache stays until an option change.
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

fn table_mib(state: &OpenState) -> f64 {
    let mut stats = ffi::CacheStats {
        struct_size: size_of::<ffi::CacheStats>(),
        ..ffi::CacheStats::default()
    };
    // SAFETY: as above.
    unsafe { ffi::q2c_cache_get_stats(ffi::q2c_state_l2_cache(state.0).cast(), &mut stats) };
    stats.resident_bytes as f64 / f64::from(1 << 20)
}

fn resident_mib() -> Result<f64, String> {
    let status = std::fs::read_to_string("/proc/self/statm").map_err(|e| e.to_string())?;
    let pages = status.split(' ').nth(1).and_then(|n| n.parse::<f64>().ok());
    Ok(pages.ok_or("/proc/self/statm has no second number")? / 256.0)
}
