// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaning passes. Tables are filled in order: that is where the scanning cache is at its best.

use core::sync::atomic::{AtomicBool, Ordering};

use contenders::{Contender, linear};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Prepared, Run, Samples};
use crate::work::{self, Offsets};
use crate::{ours, progress};

/// A pass that finds nothing, against the scanning cache's, at the sizes in [`JUDGED`].
const IDLE_FASTER: f64 = 10.0;
/// A pass that drops all, in times of the scanning cache's.
const EVERYTHING: f64 = 1.0;
/// A pass that drops one table in a hundred, with another thread running.
const SCATTERED_FASTER: f64 = 4.0;
/// One table of so many is unused in the scattered figure.
const SCATTER: u64 = 100;
/// With fewer tables there are so few scattered ones that a call for each is no more than a few calls.
const SCATTER_FROM: usize = 512;
const JUDGED: [usize; 2] = [8192, 32768];

/// See the module.
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

/// Nothing resident.
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

/// All resident, and used since the last pass.
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
    for (line, samples) in ["ours", "linear"].iter().zip(&results) {
        report.point("clean", line, tables as f64, samples.median());
    }
    idle_figures(report, "used", tables, &results);
}

fn idle_figures(report: &mut Report, what: &str, tables: usize, results: &[Samples]) {
    report.info(format!("clean.{what}.{tables}.ours"), "ns", &results[0]);
    report.info(format!("clean.{what}.{tables}.linear"), "ns", &results[1]);
    let target = if JUDGED.contains(&tables) {
        Target::AtLeast(IDLE_FASTER)
    } else {
        Target::None
    };
    report.figure(
        format!("clean.{what}.{tables}.linear_vs_ours"),
        "x",
        target,
        results[1].over(&results[0]),
    );
}

/// All resident and unused.
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
    let per_table = |samples: &Samples| samples.zip(samples, |ns, _| ns / tables as f64);
    report.info(
        format!("clean.everything.{tables}.ours"),
        "ns/table",
        &per_table(&results[0]),
    );
    report.info(
        format!("clean.everything.{tables}.linear"),
        "ns/table",
        &per_table(&results[1]),
    );
    report.figure(
        format!("clean.everything.{tables}.vs_linear"),
        "x",
        Target::AtMost(EVERYTHING),
        results[0].over(&results[1]),
    );
}

/// All resident, one in [`SCATTER`] unused.
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
            run: Box::new(move || assert_eq!(clean(cache), unused, "so many are unused")),
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
    for (line, samples) in ["ours", "linear"].iter().zip(results) {
        let per_table = samples.zip(samples, |ns, _| ns / unused);
        report.info(
            format!("clean.{what}.{tables}.{line}"),
            "ns/table",
            &per_table,
        );
    }
    let target = if judged {
        Target::AtLeast(SCATTERED_FASTER)
    } else {
        Target::None
    };
    report.figure(
        format!("clean.{what}.{tables}.linear_vs_ours"),
        "x",
        target,
        results[1].over(&results[0]),
    );
}

/// Runs `work` on one processor while another thread of this process is busy on the next.
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
