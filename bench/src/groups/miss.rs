// SPDX-License-Identifier: MIT OR Apache-2.0
//! Misses with a clean victim: get + put of tables that were never used before. All slots are
//! taken, and the storage makes no I/O.

use contenders::{lru_mutex, quick};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Run, Samples};
use crate::{ours, progress, work};

/// ns that a miss may take, without I/O.
const AT_MOST: f64 = 120.0;
/// A miss with 32,768 tables may take this many times one with 512 tables.
const FLAT: f64 = 2.0;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let mut by_size: Vec<(usize, Samples)> = Vec::new();
    for &tables in work::sizes(setting.effort.quick) {
        progress::show(&format!("miss: {tables} tables"));
        let all = [
            ("ours", ours::without_io(tables)),
            ("linear", ours::linear_without_io(tables)),
            ("lru", lru_mutex::create(tables, ours::load_nothing)),
            ("quick_cache", quick::create(tables, ours::load_nothing)),
        ];
        let mut runs: Vec<Run<'_>> = Vec::new();
        for (_, cache) in &all {
            let mut next = 0;
            // Takes all slots, and leaves the cache as a run of misses does.
            work::misses(cache, &mut next, tables as u64 * 2);
            runs.push(Box::new(move |count| work::misses(cache, &mut next, count)));
        }
        let results = setting.effort.interleave(tables as u64, &mut runs);
        for ((name, _), samples) in all.iter().zip(&results) {
            report.point("miss", name, tables as f64, samples.median());
            if *name != "ours" {
                report.info(format!("miss.{tables}.{name}"), "ns", samples);
            }
        }
        report.figure(
            format!("miss.{tables}.ours"),
            "ns",
            Target::AtMost(AT_MOST),
            results[0].clone(),
        );
        by_size.push((tables, results[0].clone()));
    }
    report.figure(
        "miss.flat",
        "x",
        Target::AtMost(FLAT),
        work::flatness(&by_size),
    );
    Ok(())
}
