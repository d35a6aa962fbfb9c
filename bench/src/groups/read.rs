// SPDX-License-Identifier: MIT OR Apache-2.0
//! `q2c_cache_read`: an 8-byte entry of a random resident table, anywhere in it.

use contenders::floor;

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Rng, Run, Samples};
use crate::{ours, progress, work};

/// A read, in times of the bare probe.
const TIMES_PROBE: f64 = 5.0;
/// Two threads against one.
const SCALING: f64 = 1.8;
/// The largest cache against the smallest.
const FLAT: f64 = 2.0;

/// See the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let sizes = work::sizes(setting.effort.quick);
    // The caches of all sizes live at once, so that the largest is compared with the smallest within a round.
    let ready: Vec<_> = sizes
        .iter()
        .map(|&tables| {
            progress::show(&format!("read: filling {tables} tables"));
            let cache = ours::create(tables, &ours::touching_storage());
            let offsets = work::churn(&cache, tables);
            let floor = floor::create(&offsets.all());
            (tables, cache, offsets, floor)
        })
        .collect();
    progress::show("read: one thread");
    let mut rng = Rng::new(3);
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (_, cache, offsets, floor) in &ready {
        runs.push(Box::new(move |count| {
            work::reads(cache, offsets, &mut rng, count)
        }));
        runs.push(Box::new(move |count| {
            work::probes(floor, offsets, &mut rng, count)
        }));
        runs.push(Box::new(move |count| {
            work::reads(floor, offsets, &mut rng, count)
        }));
    }
    let results = setting.effort.interleave(&mut runs);
    for ((tables, ..), three) in ready.iter().zip(results.chunks(3)) {
        let [ours, probe, copy] = three else {
            unreachable!("three subjects a size");
        };
        report.info(format!("read.{tables}.ours"), "ns", ours);
        report.info(format!("read.{tables}.probe"), "ns", probe);
        report.info(format!("read.{tables}.probe_and_copy"), "ns", copy);
        report.figure(
            format!("read.{tables}.vs_probe"),
            "x",
            Target::AtMost(TIMES_PROBE),
            ours.over(probe),
        );
        report.info(
            format!("read.{tables}.vs_probe_and_copy"),
            "x",
            &ours.over(copy),
        );
        for (line, samples) in [("ours", ours), ("probe", probe), ("probe and copy", copy)] {
            report.point("read", line, *tables as f64, samples.median());
        }
    }
    let of = |size: usize| &results[3 * size];
    report.figure(
        "read.flat",
        "x",
        Target::AtMost(FLAT),
        of(sizes.len() - 1).over(of(0)),
    );
    report.info(
        "read.flat.probe_and_copy",
        "x",
        &results[3 * (sizes.len() - 1) + 2].over(&results[2]),
    );
    for (tables, cache, offsets, floor) in &ready {
        progress::show(&format!("read: {tables} tables, threads"));
        let [mut ours, mut probe] = [Samples::default(), Samples::default()];
        for _ in 0..setting.effort.rounds {
            let read = |rng: &mut Rng, count| work::reads(cache, offsets, rng, count);
            let find = |rng: &mut Rng, count| work::probes(floor, offsets, rng, count);
            let [one, two, one_probe, two_probe] = [
                work::throughput(1, setting.effort.slice, &read),
                work::throughput(2, setting.effort.slice, &read),
                work::throughput(1, setting.effort.slice, &find),
                work::throughput(2, setting.effort.slice, &find),
            ];
            ours.push(two.0 / one.0, one.1 || two.1);
            probe.push(two_probe.0 / one_probe.0, one_probe.1 || two_probe.1);
        }
        report.figure(
            format!("read.threads.{tables}.ours"),
            "x",
            Target::AtLeast(SCALING),
            ours,
        );
        report.info(format!("read.threads.{tables}.probe"), "x", &probe);
    }
    Ok(())
}
