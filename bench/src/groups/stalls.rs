// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a hit or a miss can take while a cleaning pass runs. Every operation is timed.
//!
//! An operation during which the kernel preempted the thread is left out: the cache did not cause
//! that. (A thread that waits for a lock leaves the processor voluntarily, which does not count as
//! preemption.) The same operations without passes are the control: if they stall as well, nothing
//! can be said about the cache on this machine.
//!
//! The timed thread's loads do not touch the table. Otherwise the first touch of a page that was
//! released would be timed as well. The kernel takes hundreds of µs for that now and then, with or
//! without a pass (`page_fault`).

use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use contenders::Contender;

use super::Setting;
use crate::figure::{Report, Target};
use crate::measure::Samples;
use crate::work::{self, Offsets};
use crate::{machine, ours, progress};

/// No hit and no miss may take more µs.
const AT_MOST: f64 = 50.0;
const TABLES: usize = 32768;
/// Tables that the timed thread hits, in turn.
const HOT: u64 = 64;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let passes = setting.effort.rounds * 2;
    for what in ["hit", "miss"] {
        progress::show(&format!("stalls: {what}"));
        let cache = ours::create(TABLES, &ours::touching_storage());
        let control = longest(&cache, what, passes, false);
        let longest = longest(&cache, what, passes, true);
        let mut samples = Samples::default();
        let micros = |ns: u64| ns as f64 / 1000.0;
        samples.push(micros(longest), micros(control) > AT_MOST);
        report.info(
            format!("stalls.{what}.without_passes"),
            "us",
            &Samples::exact(micros(control)),
        );
        report.figure(
            format!("stalls.{what}.during_passes"),
            "us",
            Target::AtMost(AT_MOST),
            samples,
        );
    }
    progress::show("stalls: page faults");
    let fault = micros_of_the_longest_page_fault();
    report.info("stalls.page_fault", "us", &Samples::exact(fault));
    Ok(())
}

/// The longest first touch of a page, of as many pages as a cache has, while nothing else runs.
fn micros_of_the_longest_page_fault() -> f64 {
    let cache = ours::create(TABLES, &ours::touching_storage());
    let (in_pass, done) = (AtomicBool::new(true), AtomicBool::new(false));
    let first = Offsets::in_order(TABLES);
    let longest = watch(&in_pass, &done, |i| {
        one(&cache, first.at(i));
        done.store(i + 1 == TABLES as u64, Ordering::Relaxed);
    });
    longest as f64 / 1000.0
}

/// ns of the longest operation while passes run, or, if not `clean`, during pauses in their place.
fn longest(cache: &Contender, what: &str, passes: usize, clean: bool) -> u64 {
    let (in_pass, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let timed = scope.spawn(|| {
            work::pin_to_cpu(1);
            ours::leave_memory_alone();
            if what == "hit" {
                watch(&in_pass, &done, |i| {
                    one(cache, Offsets::in_order(TABLES).at(i % HOT))
                })
            } else {
                watch(&in_pass, &done, |i| {
                    one(cache, Offsets::scattered(1, 1 << 20).at(i))
                })
            }
        });
        work::pin_to_cpu(0);
        for _ in 0..passes {
            // Now all tables are resident and, after one pass, unused, except for those that the
            // other thread uses.
            work::touch_all(cache, &Offsets::in_order(TABLES));
            work::whole(cache, cache.ops.clean);
            in_pass.store(true, Ordering::Release);
            if clean {
                work::whole(cache, cache.ops.clean);
            } else {
                std::thread::sleep(Duration::from_millis(10));
            }
            in_pass.store(false, Ordering::Release);
        }
        done.store(true, Ordering::Relaxed);
        timed.join().expect("no panic")
    })
}

fn one(cache: &Contender, offset: u64) {
    let get = crate::ffi::q2c_cache_get_unlocked;
    let put = cache.ops.put.expect("has put");
    let mut table = null_mut();
    // SAFETY: the cache is alive. An error such as EAGAIN is allowed: only the time counts here.
    unsafe {
        if get(cache.handle, offset, &mut table) == 0 {
            put(cache.handle, &mut table);
        }
    }
}

/// ns of the longest call of `work` while `in_pass` is set, until `done` is.
fn watch(in_pass: &AtomicBool, done: &AtomicBool, work: impl Fn(u64)) -> u64 {
    let (mut longest, mut forced, mut i) = (0, forced_switches(), 0);
    while !done.load(Ordering::Relaxed) {
        if !in_pass.load(Ordering::Acquire) {
            std::hint::spin_loop();
            continue;
        }
        let begun = Instant::now();
        work(i);
        let ns = begun.elapsed().as_nanos() as u64;
        i += 1;
        if ns > longest {
            let now = forced_switches();
            if now == forced {
                longest = ns;
            }
            forced = now;
        }
    }
    longest
}

/// How often the kernel preempted the calling thread: its involuntary context switches.
fn forced_switches() -> i64 {
    machine::resource_usage(libc::RUSAGE_THREAD).ru_nivcsw
}
