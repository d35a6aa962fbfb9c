// SPDX-License-Identifier: MIT OR Apache-2.0
//! Flushes: what they cost, and which writes they make.

use std::sync::Mutex;

use contenders::{Contender, TABLE_SIZE, linear};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Rng, Run, Samples};
use crate::work::{self, Offsets};
use crate::{ours, progress};

/// 32,768 tables against 512, as many of them dirty.
const FLAT: f64 = 2.0;
/// Dirty tables of the figure `many`.
const MANY: u64 = 64;

/// See the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let mut by_size: Vec<(usize, Vec<Samples>)> = Vec::new();
    for &tables in work::sizes(setting.effort.quick) {
        progress::show(&format!("flush: {tables} tables"));
        let offsets = Offsets::scattered(tables, 0);
        let caches = [
            ours::create(tables, &ours::null_storage()),
            linear::create(tables, ours::load_nothing, ours::store_nothing),
        ];
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
        by_size.push((tables, results[..3].to_vec()));
    }
    let of = |tables| {
        &by_size
            .iter()
            .find(|(n, _)| *n == tables)
            .expect("measured")
            .1
    };
    for (i, what) in ["nothing", "one", "many"].iter().enumerate() {
        let ratio = of(32768)[i].over(&of(512)[i]);
        report.figure(
            format!("flush.{what}.flat"),
            "x",
            Target::AtMost(FLAT),
            ratio,
        );
    }
    writes(report);
    Ok(())
}

/// The figure includes the get, mark_dirty and put of each.
fn dirty_some(cache: &Contender, offsets: &Offsets, rng: &mut Rng, count: u64) {
    for _ in 0..count {
        work::touch(cache, offsets.at(rng.below(offsets.count as u64)), true);
    }
}

/// Joined neighbours and the order of writes, as storage sees them.
fn writes(report: &mut Report) {
    let recorder = Mutex::new(Vec::new());
    // SAFETY: the cache below is dropped first.
    let storage = unsafe { ours::recording_storage(&recorder) };
    let cache = ours::create(4096, &storage);
    let at = |number: u64| (number + 1) * TABLE_SIZE as u64;
    // Sixteen neighbours, dirtied in an order that is not theirs.
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
