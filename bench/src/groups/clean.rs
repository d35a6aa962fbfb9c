// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaning passes, against the scanning cache (`linear`). The tables are filled in order, which is
//! the best case for the scanning cache.

use core::sync::atomic::{AtomicBool, Ordering};

use contenders::{Contender, linear};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Prepared, Run, Samples};
use crate::work::{self, Offsets};
use crate::{ours, progress};

/// A pass that drops nothing must be this many times as fast as the scanning cache's, at the sizes
/// in [`JUDGED`].
const IDLE_FASTER: f64 = 10.0;
/// A pass that drops all tables may take this many times the time of the scanning cache's.
const EVERYTHING: f64 = 1.0;
/// A pass that drops one table in a hundred while another thread runs must be this many times as
/// fast as the scanning cache's.
const SCATTERED_FASTER: f64 = 4.0;
/// In the figures `scattered`, one table in this many is unused.
const SCATTER: u64 = 100;
/// The figure `scattered` has a target from this many tables on. With fewer there are so few
/// scattered ones that one system call for each makes only a few calls.
const SCATTER_FROM: usize = 512;
/// The sizes at which a pass that drops nothing has a target.
const JUDGED: [usize; 2] = [8192, 32768];
/// Names of the two caches, in the order of the results.
const LINES: [&str; 2] = ["ours", "linear"];

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    for &tables in work::sizes(setting.effort.quick) {
        progress::show(&format!("clean: {tables} tables"));
        let caches = [
            ours::create(tables, &ours::touching_storage()),
            linear::create(tables, ours::load_touching, ours::store_nothing),
        ];
        empty(setting, report, tables, &caches);
        used(setting, report, tables, &caches);
        everything(setting, report, tables, &caches);
        if tables as u64 >= SCATTER {
            let alone = scattered(setting, tables, &caches);
            print_scattered(report, "scattered_alone", tables, &alone, false);
            let running = beside_a_running_thread(|| scattered(setting, tables, &caches));
            print_scattered(
                report,
                "scattered",
                tables,
                &running,
                tables >= SCATTER_FROM,
            );
        }
    }
    Ok(())
}

fn clean(cache: &Contender) -> i32 {
    work::whole(cache, cache.ops.clean)
}

/// No table is resident.
fn empty(setting: &Setting, report: &mut Report, tables: usize, caches: &[Contender; 2]) {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for cache in caches {
        runs.push(Box::new(move |count| {
            for _ in 0..count {
                clean(cache);
            }
        }));
    }
    let results = setting.effort.interleave(0, &mut runs);
    idle_figures(report, "empty", tables, &results);
}

/// All tables are resident, and were used since the last pass.
fn used(setting: &Setting, report: &mut Report, tables: usize, caches: &[Contender; 2]) {
    let offsets = Offsets::in_order(tables);
    let mut runs: Vec<Prepared<'_>> = Vec::new();
    for cache in caches {
        runs.push(Prepared {
            prepare: Box::new(move || work::touch_all(cache, &offsets)),
            run: Box::new(move || assert_eq!(clean(cache), 0, "all tables are in use")),
        });
    }
    let results = setting.effort.interleave_prepared(&mut runs);
    for (line, samples) in LINES.iter().zip(&results) {
        report.point("clean", line, tables as f64, samples.median());
    }
    idle_figures(report, "used", tables, &results);
}

fn idle_figures(report: &mut Report, what: &str, tables: usize, results: &[Samples]) {
    times(report, what, tables, "ns", results);
    let target = Target::AtLeast(IDLE_FASTER).when(JUDGED.contains(&tables));
    linear_vs_ours(report, what, tables, results, target);
}

/// All tables are resident and unused.
fn everything(setting: &Setting, report: &mut Report, tables: usize, caches: &[Contender; 2]) {
    let offsets = Offsets::in_order(tables);
    let mut runs: Vec<Prepared<'_>> = Vec::new();
    for cache in caches {
        runs.push(Prepared {
            prepare: Box::new(move || {
                work::touch_all(cache, &offsets);
                clean(cache);
            }),
            run: Box::new(move || assert_eq!(clean(cache), tables as i32, "all are unused")),
        });
    }
    let results = setting.effort.interleave_prepared(&mut runs);
    times_per_table(report, "everything", tables, tables as f64, &results);
    report.figure(
        format!("clean.everything.{tables}.vs_linear"),
        "x",
        Target::AtMost(EVERYTHING),
        results[0].over(&results[1]),
    );
}

/// All tables are resident, one in [`SCATTER`] is unused.
fn scattered(setting: &Setting, tables: usize, caches: &[Contender; 2]) -> Vec<Samples> {
    let offsets = Offsets::in_order(tables);
    let unused = (tables as u64).div_ceil(SCATTER) as i32;
    let mut runs: Vec<Prepared<'_>> = Vec::new();
    for cache in caches {
        runs.push(Prepared {
            prepare: Box::new(move || {
                work::touch_all(cache, &offsets);
                clean(cache);
                let used = (0..tables as u64).filter(|i| i % SCATTER != 0);
                used.for_each(|i| work::touch(cache, offsets.at(i), false));
            }),
            run: Box::new(move || assert_eq!(clean(cache), unused, "one in SCATTER is unused")),
        });
    }
    setting.effort.interleave_prepared(&mut runs)
}

fn print_scattered(
    report: &mut Report,
    what: &str,
    tables: usize,
    results: &[Samples],
    judged: bool,
) {
    let unused = (tables as u64).div_ceil(SCATTER) as f64;
    times_per_table(report, what, tables, unused, results);
    let target = Target::AtLeast(SCATTERED_FASTER).when(judged);
    linear_vs_ours(report, what, tables, results, target);
}

/// Adds the times of both caches.
fn times(report: &mut Report, what: &str, tables: usize, unit: &'static str, results: &[Samples]) {
    for (line, samples) in LINES.iter().zip(results) {
        report.info(format!("clean.{what}.{tables}.{line}"), unit, samples);
    }
}

/// Adds the times of both caches, divided by the number of tables that were dropped.
fn times_per_table(
    report: &mut Report,
    what: &str,
    tables: usize,
    dropped: f64,
    results: &[Samples],
) {
    let results: Vec<Samples> = results.iter().map(|one| one.per(dropped)).collect();
    times(report, what, tables, "ns/table", &results);
}

/// Adds how many times as fast as the scanning cache the library is.
fn linear_vs_ours(
    report: &mut Report,
    what: &str,
    tables: usize,
    results: &[Samples],
    target: Target,
) {
    report.figure(
        format!("clean.{what}.{tables}.linear_vs_ours"),
        "x",
        target,
        results[1].over(&results[0]),
    );
}

/// Runs `work` on one processor while another thread of this process is busy on the next. Each
/// `madvise` has to interrupt that one.
fn beside_a_running_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            work::pin_to_cpu(1);
            while !done.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        let worker = scope.spawn(|| {
            work::pin_to_cpu(0);
            work()
        });
        let result = worker.join();
        done.store(true, Ordering::Relaxed);
        result.expect("no panic")
    })
}
