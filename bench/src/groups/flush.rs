// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flushes: what they cost, against the scanning cache (`linear`), and which writes they make.

use std::sync::Mutex;

use contenders::{Contender, TABLE_SIZE};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Rng, Run, Samples};
use crate::work::{self, Offsets};
use crate::{ours, progress};

/// A flush with 32,768 tables may take this many times one with 512 tables, with the same number of
/// dirty tables.
const FLAT: f64 = 2.0;
/// Dirty tables in the figure `many`.
const MANY: u64 = 64;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    // For each number of dirty tables: the times by the size of the cache.
    let mut by_size: [Vec<(usize, Samples)>; 3] = Default::default();
    for &tables in work::sizes(setting.effort.quick) {
        progress::show(&format!("flush: {tables} tables"));
        let offsets = Offsets::scattered(tables, 0);
        let caches = [ours::without_io(tables), ours::linear_without_io(tables)];
        for cache in &caches {
            work::touch_all(cache, &offsets);
        }
        let mut runs: Vec<Run<'_>> = Vec::new();
        for cache in &caches {
            for dirty in [0, 1, MANY.min(tables as u64)] {
                let mut rng = Rng::new(9);
                runs.push(Box::new(move |count| {
                    for _ in 0..count {
                        dirty_some(cache, &offsets, &mut rng, dirty);
                        work::whole(cache, cache.ops.flush);
                    }
                }));
            }
        }
        let results = setting.effort.interleave(0, &mut runs);
        for (i, name) in ["ours", "linear"].iter().enumerate() {
            for (j, what) in ["nothing", "one", "many"].iter().enumerate() {
                let samples = &results[3 * i + j];
                report.info(format!("flush.{what}.{tables}.{name}"), "ns", samples);
                if *what != "many" {
                    let line = format!("{name}, {what} dirty");
                    report.point("flush", &line, tables as f64, samples.median());
                }
            }
        }
        for (times, samples) in by_size.iter_mut().zip(&results) {
            times.push((tables, samples.clone()));
        }
    }
    for (i, what) in ["nothing", "one", "many"].iter().enumerate() {
        report.figure(
            format!("flush.{what}.flat"),
            "x",
            Target::AtMost(FLAT),
            work::flatness(&by_size[i]),
        );
    }
    writes(report);
    Ok(())
}

/// Dirties random tables of the set. The time of each get, mark_dirty and put is part of the
/// figure.
fn dirty_some(cache: &Contender, offsets: &Offsets, rng: &mut Rng, count: u64) {
    for _ in 0..count {
        work::touch(cache, offsets.at(rng.below(offsets.count as u64)), true);
    }
}

/// Whether neighbours are joined and in which order writes come, as the storage sees them.
fn writes(report: &mut Report) {
    let recorder = Mutex::new(Vec::new());
    // SAFETY: the cache, made after the recorder, is dropped before it.
    let storage = unsafe { ours::recording_storage(&recorder) };
    let cache = ours::create(4096, &storage);
    let at = |number: u64| (number + 1) * TABLE_SIZE as u64;
    // Sixteen neighbours, dirtied out of order.
    for i in 0..16 {
        work::touch(&cache, at(100 + i * 7 % 16), true);
    }
    work::whole(&cache, cache.ops.flush);
    let joined = std::mem::take(&mut *recorder.lock().unwrap());
    report.figure(
        "flush.16_neighbours.writes",
        "writes",
        Target::AtMost(1.0),
        Samples::exact(joined.len() as f64),
    );
    let offsets = Offsets::scattered(4096, 3);
    let mut rng = Rng::new(4);
    dirty_some(&cache, &offsets, &mut rng, 500);
    work::whole(&cache, cache.ops.flush);
    let writes = std::mem::take(&mut *recorder.lock().unwrap());
    let out_of_order = writes.windows(2).filter(|pair| pair[0].0 >= pair[1].0);
    report.figure(
        "flush.500_random.out_of_order",
        "writes",
        Target::AtMost(0.0),
        Samples::exact(out_of_order.count() as f64),
    );
    let written: usize = writes.iter().map(|(_, tables)| tables).sum();
    report.info(
        "flush.500_random.tables",
        "tables",
        &Samples::exact(written as f64),
    );
}
