// SPDX-License-Identifier: MIT OR Apache-2.0
//! False sharing: what threads that use different tables cost each other, because what they use is
//! in the same cache lines.
//!
//! A slot has 16 bytes, so that four slots share a line; 64 slots share a group's bits.
//! `interleaved`: two threads, of which one pins the even slots and the other the odd ones, against
//! two threads with half of the slots each. `beside_misses`: hits of one thread while another
//! thread always misses in the same cache, against hits while the other misses in another cache.

use super::Setting;
use crate::figure::Report;
use crate::measure::{Rng, Samples};
use crate::work::{self, Offsets, Work};
use crate::{ours, progress};

const SIZES: [usize; 2] = [512, 32768];

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    for tables in SIZES {
        progress::show(&format!("sharing: {tables} tables"));
        interleaved(setting, report, tables);
        beside_misses(setting, report, tables);
    }
    Ok(())
}

fn interleaved(setting: &Setting, report: &mut Report, tables: usize) {
    let cache = ours::without_io(tables);
    let offsets = Offsets::in_order(tables);
    work::touch_all(&cache, &offsets);
    let half = tables as u64 / 2;
    let hits = |rng: &mut Rng, count, number: &dyn Fn(u64) -> u64| {
        work::hits_of(&cache, rng, count, |random| {
            offsets.at(number(random.below(half)))
        });
    };
    let halves: &Work<'_> = &|thread, rng, n| hits(rng, n, &|i| thread as u64 * half + i);
    let every_other: &Work<'_> = &|thread, rng, n| hits(rng, n, &|i| 2 * i + thread as u64);
    let (mut apart, mut together) = (Samples::default(), Samples::default());
    for _ in 0..setting.effort.rounds {
        for (work, samples) in [(halves, &mut apart), (every_other, &mut together)] {
            let (rates, disturbed) = work::rates(2, setting.effort.slice, work::warm(tables), work);
            samples.push(rates.iter().sum::<f64>() / 1e6, disturbed);
        }
    }
    report.info(format!("sharing.halves.{tables}"), "M hits/s", &apart);
    report.info(
        format!("sharing.interleaved.{tables}"),
        "M hits/s",
        &together,
    );
    report.info(
        format!("sharing.interleaved.{tables}.of_halves"),
        "x",
        &together.over(&apart),
    );
}

fn beside_misses(setting: &Setting, report: &mut Report, tables: usize) {
    let [same, other] = [0, 1].map(|_| ours::without_io(tables));
    let hot = Offsets::in_order(tables / 4);
    let mut samples = [Samples::default(), Samples::default()];
    for round in 0..setting.effort.rounds {
        for (cold, samples) in [&other, &same].iter().zip(&mut samples) {
            // Hit often enough that the other thread's misses do not evict these tables.
            (0..4).for_each(|_| work::touch_all(&same, &hot));
            let work: &Work<'_> = &|thread, rng, n| {
                if thread == 0 {
                    work::hits(&same, &hot, rng, n);
                } else {
                    let mut next = (1 + round as u64) << 22 | rng.below(1 << 21);
                    work::misses(cold, &mut next, n);
                }
            };
            let (rates, disturbed) = work::rates(2, setting.effort.slice, work::warm(tables), work);
            samples.push(rates[0] / 1e6, disturbed);
        }
    }
    let [in_another, in_the_same] = &samples;
    report.info(
        format!("sharing.hits_beside_misses_elsewhere.{tables}"),
        "M hits/s",
        in_another,
    );
    report.info(
        format!("sharing.hits_beside_misses.{tables}"),
        "M hits/s",
        in_the_same,
    );
    report.info(
        format!("sharing.hits_beside_misses.{tables}.of_elsewhere"),
        "x",
        &in_the_same.over(in_another),
    );
}
