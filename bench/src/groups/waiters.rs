// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a get that has to wait costs, with few and with many that wait in the same cache.
//!
//! A C program measures, since coroutines are needed: see
//! `c-tests/coroutine/bench-coroutine-waiters.c`. Its case `bare`, without the library, shows what
//! the coroutines themselves cost. It grows with their number, too, since many stacks do not fit
//! into the processor's caches. So the others are judged in units of it.

use std::process::Command;

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::Samples;
use crate::{programs, progress};

const WAITERS: [u32; 4] = [16, 256, 4096, 16384];
const CASES: [&str; 4] = ["bare", "own_table", "any_slot", "one_table"];
/// How many times as much a get may cost with the most waiters as with the fewest, in units of
/// `bare` with as many coroutines.
const FLAT: f64 = 1.5;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let Some(program) = &setting.coroutine_waiters else {
        progress::clear();
        eprintln!("waiters: no --coroutine-waiters given; there is nothing to measure");
        return Ok(());
    };
    let shown = program.display().to_string();
    let mut samples: [[Samples; 4]; 4] = Default::default();
    for round in 1..=setting.effort.rounds {
        for (count, of_count) in WAITERS.iter().zip(&mut samples) {
            progress::show(&format!("waiters: {count}, round {round}"));
            let text = programs::output(Command::new(program).arg(count.to_string()))?;
            for (case, samples) in CASES.iter().zip(of_count) {
                let value = programs::field(&shown, &text, &format!("{case}_ns"))?;
                samples.push(value, false);
            }
        }
    }
    for (n, case) in CASES.iter().enumerate() {
        for (count, of_count) in WAITERS.iter().zip(&samples) {
            report.info(format!("waiters.{case}.{count}"), "ns", &of_count[n]);
            report.point("waiters", case, f64::from(*count), of_count[n].median());
        }
    }
    let [fewest, .., most] = &samples;
    report.info("waiters.bare.flat", "x", &most[0].over(&fewest[0]));
    for (n, case) in CASES.iter().enumerate().skip(1) {
        let [with_fewest, with_most] = [fewest, most].map(|of| of[n].over(&of[0]));
        report.figure(
            format!("waiters.{case}.flat"),
            "x",
            Target::AtMost(FLAT),
            with_most.over(&with_fewest),
        );
    }
    Ok(())
}
