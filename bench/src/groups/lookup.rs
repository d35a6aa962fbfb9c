// SPDX-License-Identifier: MIT OR Apache-2.0
//! `is_table_offset` of a table that is not resident, in a full cache, against the scanning cache
//! (`linear`).

use core::ptr::null_mut;

use contenders::Contender;

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::{Rng, Run, Samples};
use crate::work::{self, Offsets};
use crate::{ours, progress};

/// A lookup in the largest cache may take this many times one in the smallest.
const FLAT: f64 = 2.0;

fn absent(on: &Contender, offsets: &Offsets, rng: &mut Rng, count: u64) {
    let lookup = on.ops.lookup.expect("has lookup");
    let mut found = 0;
    for _ in 0..count {
        let mut table = null_mut();
        let offset = offsets.at(rng.below(offsets.count as u64));
        // SAFETY: the contender is alive.
        found |= unsafe { lookup(on.handle, offset, &mut table) };
    }
    assert!(found == 0, "an absent table was found");
}

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let sizes = work::sizes(setting.effort.quick);
    let mut ours_by_size: Vec<Samples> = Vec::new();
    for &tables in sizes {
        progress::show(&format!("lookup: {tables} tables"));
        let cache = ours::without_io(tables);
        let scan = ours::linear_without_io(tables);
        let resident = Offsets::scattered(tables, 0);
        work::touch_all(&cache, &resident);
        work::touch_all(&scan, &resident);
        let others = Offsets::scattered(tables, 1);
        let mut rng = Rng::new(5);
        let results = setting.effort.interleave(
            work::warm(tables),
            &mut [
                Box::new(|count| absent(&cache, &others, &mut rng, count)) as Run<'_>,
                Box::new(|count| absent(&scan, &others, &mut Rng::new(5), count)),
            ],
        );
        report.info(format!("lookup.absent.{tables}.ours"), "ns", &results[0]);
        report.info(format!("lookup.absent.{tables}.linear"), "ns", &results[1]);
        for (line, samples) in ["ours", "linear"].iter().zip(&results) {
            report.point("lookup", line, tables as f64, samples.median());
        }
        ours_by_size.push(results[0].clone());
    }
    let last = &ours_by_size[sizes.len() - 1];
    report.figure(
        "lookup.flat",
        "x",
        Target::AtMost(FLAT),
        last.over(&ours_by_size[0]),
    );
    Ok(())
}
