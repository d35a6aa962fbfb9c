// SPDX-License-Identifier: MIT OR Apache-2.0
//! False sharing: what threads that use different tables cost each other, because what they use is
//! in the same cache lines.
//!
//! A slot has 16 bytes, so that four slots share a line; 64 slots share a group's bits.
//! `interleaved`: two threads, of which one pins the even slots and the other the odd ones, against
//! two threads with half of the slots each. `beside_misses`: hits of one thread while another
//! thread always misses in the same cache, against hits while the other misses in another cache.
//! `cold_reads`: two threads that always miss in one small cache, whose storage reads a file in the
//! page cache, against two processes with a cache each.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use contenders::Contender;

use super::Setting;
use crate::figure::{Report, Target};
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
    cold_reads(setting, report)
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

/// Tables of the caches of `cold_reads`.
const COLD_TABLES: usize = 64;
/// Bytes of the file that they read.
const FILE_SIZE: usize = 64 << 20;
/// How fast two threads in one cache must be, of two processes with a cache each.
const OF_PROCESSES: f64 = 0.9;

fn cold_reads(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let path = setting.out.join("sharing.data");
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::write(&path, vec![7; FILE_SIZE]).map_err(failed)?;
    let file = std::fs::File::open(&path).map_err(failed)?;
    for table_size in [4096, 65536] {
        progress::show(&format!("sharing: cold reads, {table_size}"));
        cold_reads_of(setting, report, &file, table_size)?;
    }
    let _ = std::fs::remove_file(&path);
    Ok(())
}

fn cold_reads_of(
    setting: &Setting,
    report: &mut Report,
    file: &std::fs::File,
    table_size: usize,
) -> Result<(), String> {
    let storage = ours::file_storage(file);
    let new_cache = || ours::create_sized(COLD_TABLES, table_size, &storage);
    let misses = |cache: &Contender, rng: &mut Rng, n| {
        let tables = (FILE_SIZE / table_size) as u64;
        for _ in 0..n {
            work::touch(
                cache,
                (1 + rng.below(tables - 1)) * table_size as u64,
                false,
            );
        }
    };
    let (mut threads, mut processes) = (Samples::default(), Samples::default());
    for _ in 0..setting.effort.rounds {
        let cache = new_cache();
        let work: &Work<'_> = &|_, rng, n| misses(&cache, rng, n);
        let (rates, disturbed) = work::rates(2, setting.effort.slice, 0, work);
        threads.push(rates.iter().sum::<f64>() / 1e3, disturbed);
        drop(cache);
        let rates = in_processes(2, setting.effort.slice, new_cache, misses)?;
        processes.push(rates / 1e3, false);
    }
    let name = |what: &str| format!("sharing.cold_reads.{table_size}.{what}");
    report.info(name("two_threads"), "k misses/s", &threads);
    report.info(name("two_processes"), "k misses/s", &processes);
    report.figure(
        name("threads_of_processes"),
        "x",
        // Where the copy of a table takes less than a microsecond, what two threads share decides:
        // the structure lock, and the lines of the tables' memory that the other one wrote.
        Target::AtLeast(OF_PROCESSES).when(table_size > 4096),
        threads.over(&processes),
    );
    Ok(())
}

/// Runs `work` in `count` forked processes at the same time, each on a processor of its own.
/// Returns how many operations all of them make in a second.
fn in_processes(
    count: usize,
    slice: Duration,
    new_cache: impl Fn() -> Contender,
    work: impl Fn(&Contender, &mut Rng, u64),
) -> Result<f64, String> {
    let mut rates = Vec::new();
    for number in 0..count {
        let (reader, mut writer) = UnixStream::pair().map_err(|e| e.to_string())?;
        // SAFETY: this process has no other thread now: those of earlier figures have ended.
        let child = unsafe { libc::fork() };
        match child {
            -1 => return Err("fork failed".into()),
            0 => {
                work::pin_to_cpu(number);
                let cache = new_cache();
                let mut rng = Rng::new(number as u64 + 11);
                let mut rate = 0.0;
                // The first slice warms up.
                for _ in 0..2 {
                    let (begun, mut done) = (Instant::now(), 0);
                    while begun.elapsed() < slice {
                        work(&cache, &mut rng, 256);
                        done += 256;
                    }
                    rate = f64::from(done) / begun.elapsed().as_secs_f64();
                }
                let _ = writer.write_all(&rate.to_ne_bytes());
                // SAFETY: ends the child without running the parent's destructors.
                unsafe { libc::_exit(0) };
            }
            _ => rates.push((child, reader)),
        }
    }
    let mut sum = 0.0;
    for (child, mut reader) in rates {
        let mut bytes = [0; 8];
        reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        sum += f64::from_ne_bytes(bytes);
        // SAFETY: waits for the child that was created above.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    Ok(sum)
}
