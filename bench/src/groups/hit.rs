// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hits: get + put of random resident tables, against all other contenders.

use contenders::{Contender, Ops, floor, lru_mutex, quick};

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Rng, Run, Samples};
use crate::work::{self, Offsets};
use crate::{ours, progress};

/// A hit may take this many times the time of the floor's.
const TIMES_FLOOR: f64 = 1.5;
/// The gain of two threads over one must be this part of the floor's gain.
const PARTS_OF_FLOOR_SCALING: f64 = 0.8;
/// A hit of tables at regular distances may take this many times one of scattered tables.
const TIMES_SCATTERED: f64 = 1.5;
/// Regular distances, in tables: neighbours; a slice in each 64 KiB cluster; L2 tables of an image
/// that was written from front to back, with clusters of 64 KiB and of 4 KiB; and two distances at
/// which one round of multiplicative hashing would put thousands of tables into a few places.
const DISTANCES: [u64; 6] = [1, 16, 131_088, 513, 987, 15_456];

/// A contender whose tables are resident. If the caches are small, these are several caches with
/// different sets of tables: in a single small cache, it is a matter of luck how many tables
/// collide in the index.
struct Ready {
    name: &'static str,
    sets: Vec<(Contender, Offsets)>,
}

/// How many caches of `tables` tables make up one figure.
fn sets(tables: usize) -> u64 {
    (512 / tables as u64).clamp(1, 16)
}

impl Ready {
    fn hits(&self, rng: &mut Rng, count: u64) {
        for (cache, offsets) in &self.sets {
            work::hits(cache, offsets, rng, count.div_ceil(self.sets.len() as u64));
        }
    }
}

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    for &tables in work::sizes(setting.effort.quick) {
        progress::show(&format!("hit: {tables} tables, churned"));
        one_thread(setting, report, "churned", tables, &churned(tables));
        progress::show(&format!("hit: {tables} tables, in order"));
        one_thread(setting, report, "ordered", tables, &ordered(tables));
        progress::show(&format!("hit: {tables} tables, at regular distances"));
        regular(setting, report, tables);
        progress::show(&format!("hit: {tables} tables, threads"));
        threads(setting, report, tables, &churned(tables));
    }
    Ok(())
}

/// Creates a cache.
type Make<'a> = &'a dyn Fn() -> Contender;

/// Creates the caches of one figure and has `fill` fill each. The arguments of `fill` are the cache
/// and its number.
fn ready(
    name: &'static str,
    tables: usize,
    make: Make<'_>,
    fill: impl Fn(&Contender, u64) -> Offsets,
) -> Ready {
    let set = |number| {
        let cache = make();
        let offsets = fill(&cache, number);
        (cache, offsets)
    };
    Ready {
        name,
        sets: (0..sets(tables)).map(set).collect(),
    }
}

/// The contenders, filled and churned: see [`work::churn`].
fn churned(tables: usize) -> Vec<Ready> {
    let ready = |name, make: Make<'_>| {
        ready(name, tables, make, |cache, number| {
            work::churn(cache, tables, number)
        })
    };
    let mut all = vec![
        ready("ours", &|| ours::without_io(tables)),
        ready("linear", &|| ours::linear_without_io(tables)),
        ready("lru", &|| lru_mutex::create(tables, ours::load_nothing)),
        // Its shards fill unevenly. With room for twice as many tables, none is evicted.
        ready("quick_cache", &|| {
            quick::create(tables * 2 + 64, ours::load_nothing)
        }),
    ];
    all.push(floor_of(&all[0]));
    all
}

/// The floor, with the tables of another contender.
fn floor_of(other: &Ready) -> Ready {
    let sets = other.sets.iter();
    let same = |(_, offsets): &(Contender, Offsets)| (floor::create(&offsets.all()), *offsets);
    Ready {
        name: "floor",
        sets: sets.map(same).collect(),
    }
}

/// The library, the scanning cache and the floor, filled in order, without an eviction. This is the
/// best case for the scanning cache: its search finds each table after a few entries.
fn ordered(tables: usize) -> Vec<Ready> {
    let ready = |name, make: Make<'_>| {
        ready(name, tables, make, |cache, number| {
            let offsets = Offsets::in_order_from(number * tables as u64, tables);
            work::touch_all(cache, &offsets);
            offsets
        })
    };
    let mut all = vec![
        ready("ours", &|| ours::without_io(tables)),
        ready("linear", &|| ours::linear_without_io(tables)),
    ];
    all.push(floor_of(&all[0]));
    all
}

fn one_thread(setting: &Setting, report: &mut Report, how: &str, tables: usize, ready: &[Ready]) {
    let nothing = nothing();
    let mut rng = Rng::new(1);
    let mut runs: Vec<Run<'_>> = Vec::new();
    for one in ready {
        runs.push(Box::new(move |count| one.hits(&mut rng, count)));
    }
    let any = ready[0].sets[0].1;
    runs.push(Box::new(move |count| {
        work::hits(&nothing, &any, &mut rng, count)
    }));
    let results = setting.effort.interleave(work::warm(tables), &mut runs);
    let of = |name| {
        &results[ready
            .iter()
            .position(|one| one.name == name)
            .expect("is there")]
    };
    for (one, samples) in ready.iter().zip(&results) {
        report.info(format!("hit.{how}.{tables}.{}", one.name), "ns", samples);
        if how == "churned" {
            report.point("hit", one.name, tables as f64, samples.median());
        }
    }
    let empty = results.last().expect("the empty loop is measured last");
    report.info(format!("hit.{how}.{tables}.empty_loop"), "ns", empty);
    report.figure(
        format!("hit.{how}.{tables}.vs_floor"),
        "x",
        Target::AtMost(TIMES_FLOOR),
        of("ours").over(of("floor")),
    );
    report.info(
        format!("hit.{how}.{tables}.linear_vs_ours"),
        "x",
        &of("linear").over(of("ours")),
    );
}

/// Tables at regular distances, like the L2 tables of an image. Which distances are bad depends on
/// the hash; the worst one is judged.
fn regular(setting: &Setting, report: &mut Report, tables: usize) {
    let anywhere = ours::without_io(tables);
    let set = Offsets::scattered(tables, 0);
    work::touch_all(&anywhere, &set);
    let caches: Vec<_> = DISTANCES
        .iter()
        .map(|distance| {
            let cache = ours::without_io(tables);
            let offsets = Offsets::spaced(tables, *distance);
            work::touch_all(&cache, &offsets);
            (cache, offsets)
        })
        .collect();
    let mut rng = Rng::new(2);
    let mut runs: Vec<Run<'_>> = Vec::new();
    runs.push(Box::new(move |count| {
        work::hits(&anywhere, &set, &mut rng, count)
    }));
    for (cache, offsets) in &caches {
        runs.push(Box::new(move |count| {
            work::hits(cache, offsets, &mut rng, count)
        }));
    }
    let results = setting.effort.interleave(work::warm(tables), &mut runs);
    let worst = results[1..].iter().map(|samples| samples.over(&results[0]));
    let worst = worst.max_by(|a, b| a.median().total_cmp(&b.median()));
    report.figure(
        format!("hit.regular.{tables}.vs_scattered"),
        "x",
        Target::AtMost(TIMES_SCATTERED),
        worst.expect("there are distances"),
    );
}

/// A contender whose get and put do nothing. Its time is that of the loop and the calls.
fn nothing() -> Contender {
    use core::ffi::{c_int, c_void};
    unsafe extern "C" fn get(_: *mut c_void, _: u64, _: *mut *mut c_void) -> c_int {
        0
    }
    unsafe extern "C" fn put(_: *mut c_void, _: *mut *mut c_void) -> c_int {
        0
    }
    let ops = Ops {
        get: Some(get),
        put: Some(put),
        ..Ops::NONE
    };
    // SAFETY: these operations use none of their arguments.
    unsafe { Contender::foreign(core::ptr::null_mut(), ops, |_| {}) }
}

fn threads(setting: &Setting, report: &mut Report, tables: usize, ready: &[Ready]) {
    let counts: &[usize] = if setting.effort.quick {
        &[1, 2]
    } else {
        &[1, 2, 3, 4]
    };
    let mut scaling = Vec::new();
    let mut rates = vec![vec![Samples::default(); counts.len()]; ready.len()];
    for _ in 0..setting.effort.rounds {
        for (i, &threads) in counts.iter().enumerate() {
            for (one, rates) in ready.iter().zip(&mut rates) {
                let (cache, offsets) = &one.sets[0];
                let work = |rng: &mut Rng, count| work::hits(cache, offsets, rng, count);
                let (rate, disturbed) =
                    work::throughput(threads, setting.effort.slice, work::warm(tables), &work);
                rates[i].push(rate, disturbed);
            }
        }
    }
    for (one, rates) in ready.iter().zip(&rates) {
        let gain = rates[1].over(&rates[0]);
        report.info(format!("hit.threads.{tables}.{}", one.name), "x", &gain);
        for (i, &threads) in counts.iter().enumerate() {
            let chart = format!("threads_{tables}");
            let rate = rates[i].median() / 1e6;
            report.point(&chart, one.name, threads as f64, rate);
        }
        scaling.push((one.name, gain));
    }
    let of = |name| {
        &scaling
            .iter()
            .find(|(n, _)| *n == name)
            .expect("is there")
            .1
    };
    report.figure(
        format!("hit.threads.{tables}.vs_floor"),
        "x",
        Target::AtLeast(PARTS_OF_FLOOR_SCALING),
        of("ours").over(of("floor")),
    );
}
