// SPDX-License-Identifier: MIT OR Apache-2.0
//! `q2c_cache_read` of an 8-byte entry of a random resident table, against the floor's bare probe
//! and its probe and copy.
//!
//! The figures with a target read one fixed entry of each table. `read.anywhere` reads any entry,
//! so that all 128 MiB of the largest cache are read at random. There the machine's memory decides,
//! as its `probe_and_copy` shows.

use contenders::{Contender, floor};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Rng, Run, Samples};
use crate::work::{self, Entry, Offsets};
use crate::{ours, progress};

/// A read may take this many times the time of the bare probe.
const TIMES_PROBE: f64 = 5.0;
/// Two threads must read this many times as much as one.
const SCALING: f64 = 1.8;
/// A read from the largest cache may take this many times one from the smallest.
const FLAT: f64 = 2.0;

/// A filled cache of the library, and the floor with the same tables.
struct Ready {
    tables: usize,
    cache: Contender,
    floor: Contender,
    offsets: Offsets,
}

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    // The caches of all sizes exist at the same time, so that the largest is compared with the
    // smallest within a round.
    let ready: Vec<Ready> = work::sizes(setting.effort.quick)
        .iter()
        .map(|&tables| {
            progress::show(&format!("read: filling {tables} tables"));
            let cache = ours::create(tables, &ours::touching_storage());
            let offsets = work::churn(&cache, tables, 0);
            Ready {
                tables,
                cache,
                floor: floor::create(&offsets.all()),
                offsets,
            }
        })
        .collect();
    progress::show("read: one thread");
    one_thread(setting, report, &ready, Entry::OneEach);
    progress::show("read: one thread, all of the memory");
    one_thread(setting, report, &ready, Entry::Any);
    for one in &ready {
        progress::show(&format!("read: {} tables, threads", one.tables));
        threads(setting, report, one);
    }
    Ok(())
}

fn one_thread(setting: &Setting, report: &mut Report, ready: &[Ready], entry: Entry) {
    let mut rng = Rng::new(3);
    let mut runs: Vec<Run<'_>> = Vec::new();
    for one in ready {
        let (cache, floor, offsets) = (&one.cache, &one.floor, &one.offsets);
        runs.push(Box::new(move |n| {
            work::reads(cache, offsets, entry, &mut rng, n)
        }));
        runs.push(Box::new(move |n| work::probes(floor, offsets, &mut rng, n)));
        runs.push(Box::new(move |n| {
            work::reads(floor, offsets, entry, &mut rng, n)
        }));
    }
    let most = ready.iter().map(|one| one.tables).max().unwrap_or(0);
    let results = setting.effort.interleave(work::warm(most), &mut runs);
    let judged = entry == Entry::OneEach;
    let what = if judged { "read" } else { "read.anywhere" };
    for (one, three) in ready.iter().zip(results.chunks(3)) {
        let [ours, probe, copy] = three else {
            unreachable!("three subjects a size");
        };
        let tables = one.tables;
        report.info(format!("{what}.{tables}.ours"), "ns", ours);
        if judged {
            report.info(format!("{what}.{tables}.probe"), "ns", probe);
            for (line, samples) in [("ours", ours), ("probe", probe), ("probe and copy", copy)] {
                report.point("read", line, tables as f64, samples.median());
            }
        }
        report.info(format!("{what}.{tables}.probe_and_copy"), "ns", copy);
        report.figure(
            format!("{what}.{tables}.vs_probe"),
            "x",
            Target::AtMost(TIMES_PROBE).when(judged),
            ours.over(probe),
        );
        report.info(
            format!("{what}.{tables}.vs_probe_and_copy"),
            "x",
            &ours.over(copy),
        );
    }
    let last = 3 * (ready.len() - 1);
    report.figure(
        format!("{what}.flat"),
        "x",
        Target::AtMost(FLAT).when(judged),
        results[last].over(&results[0]),
    );
    report.info(
        format!("{what}.flat.probe_and_copy"),
        "x",
        &results[last + 2].over(&results[2]),
    );
}

fn threads(setting: &Setting, report: &mut Report, one: &Ready) {
    let (cache, floor, offsets) = (&one.cache, &one.floor, &one.offsets);
    let read = |rng: &mut Rng, n| work::reads(cache, offsets, Entry::OneEach, rng, n);
    let find = |rng: &mut Rng, n| work::probes(floor, offsets, rng, n);
    let (slice, warm) = (setting.effort.slice, work::warm(one.tables));
    let [mut ours, mut probe] = [Samples::default(), Samples::default()];
    for _ in 0..setting.effort.rounds {
        let [one, two] = [1, 2].map(|threads| work::throughput(threads, slice, warm, &read));
        ours.push(two.0 / one.0, one.1 || two.1);
        let [one, two] = [1, 2].map(|threads| work::throughput(threads, slice, warm, &find));
        probe.push(two.0 / one.0, one.1 || two.1);
    }
    let tables = one.tables;
    report.figure(
        format!("read.threads.{tables}.ours"),
        "x",
        Target::AtLeast(SCALING),
        ours,
    );
    report.info(format!("read.threads.{tables}.probe"), "x", &probe);
}
