// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hit ratios: those of the library itself against those of simulated policies, on the same
//! sequences of requests.

use contenders::TABLE_SIZE;

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::Samples;
use crate::workloads::{self, Workload};
use crate::{ours, policies, progress, work};

/// How far below LRU's hit ratio the library's may lie by chance.
const CHANCE: f64 = 0.002;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let sizes: &[usize] = if setting.effort.quick {
        &[64, 1024, 8192]
    } else {
        &[64, 128, 256, 512, 1024, 2048, 4096, 8192]
    };
    let recorded = setting
        .trace
        .as_deref()
        .map(workloads::recorded)
        .transpose()?;
    for &capacity in sizes {
        let length = if setting.effort.quick { 30 } else { 100 } * capacity.max(8192);
        for workload in &workloads::all(capacity, length) {
            compare(report, workload, capacity);
        }
    }
    if let Some(recorded) = &recorded {
        let count = recorded.keys.len() as f64;
        report.info("eviction.driver.requests", "", &Samples::exact(count));
        report.info(
            "eviction.driver.tables",
            "",
            &Samples::exact(recorded.universe as f64),
        );
        // Sizes smaller than the number of tables, so that some have to be evicted.
        let tables = recorded.universe;
        for part in [16, 8, 4, 2] {
            compare(report, recorded, (tables / part).max(2));
        }
    } else {
        progress::clear();
        eprintln!("eviction: no recorded trace given; the figures eviction.driver.* are missing");
    }
    Ok(())
}

fn compare(report: &mut Report, workload: &Workload, capacity: usize) {
    progress::show(&format!("eviction: {} at {capacity} tables", workload.name));
    let chart = format!("eviction_{}", workload.name);
    let name = |policy: &str| format!("eviction.{}.{capacity}.{policy}", workload.name);
    let mut lru = 0.0;
    for (policy, make) in policies::ALL {
        let mut cache = make(capacity, workload.universe);
        let hits = workload
            .keys
            .iter()
            .filter(|key| cache.access(**key))
            .count();
        let ratio = hits as f64 / workload.keys.len() as f64;
        if *policy == "LRU" {
            lru = ratio;
        }
        report.info(name(policy), "", &Samples::exact(ratio));
        report.point(&chart, policy, capacity as f64, ratio);
    }
    let ratio = ours(workload, capacity);
    report.point(&chart, "ours", capacity as f64, ratio);
    // LRU's ratio less CHANCE, rounded down to four places.
    let least = ((lru - CHANCE) * 1e4).floor() / 1e4;
    report.figure(
        name("ours"),
        "",
        Target::AtLeast(least.max(0.0)),
        Samples::exact(ratio),
    );
}

/// The library's hit ratio.
fn ours(workload: &Workload, capacity: usize) -> f64 {
    let cache = ours::without_io(capacity);
    let before = ours::loads();
    for key in &workload.keys {
        work::touch(&cache, (u64::from(*key) + 1) * TABLE_SIZE as u64, false);
    }
    let loads = ours::loads() - before;
    1.0 - loads as f64 / workload.keys.len() as f64
}
