// SPDX-License-Identifier: MIT OR Apache-2.0
//! Misses with a clean victim: get + put of ever new tables, all slots taken, storage without I/O.

use contenders::{linear, lru_mutex, quick};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Run, Samples};
use crate::{ours, progress, work};

/// ns of a miss besides I/O.
const AT_MOST: f64 = 120.0;
/// 32,768 tables against 512.
const FLAT: f64 = 2.0;

/// See the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let mut flat: Vec<(usize, Samples)> = Vec::new();
    for &tables in work::sizes(setting.effort.quick) {
        progress::show(&format!("miss: {tables} tables"));
        let all = [
            ("ours", ours::create(tables, &ours::null_storage())),
            (
                "linear",
                linear::create(tables, ours::load_nothing, ours::store_nothing),
            ),
            ("lru", lru_mutex::create(tables, ours::load_nothing)),
            ("quick_cache", quick::create(tables, ours::load_nothing)),
        ];
        let mut runs: Vec<Run<'_>> = Vec::new();
        for (_, cache) in &all {
            let mut next = 0;
            // All slots taken, and as a run of misses leaves them.
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
        flat.push((tables, results[0].clone()));
    }
    let of = |tables| &flat.iter().find(|(n, _)| *n == tables).expect("measured").1;
    report.figure(
        "miss.flat",
        "x",
        Target::AtMost(FLAT),
        of(32768).over(of(512)),
    );
    Ok(())
}
