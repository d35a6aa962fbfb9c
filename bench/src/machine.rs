// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the figures were measured on, and how much of it other processes used meanwhile.

use std::fs::read_to_string;
use std::time::Instant;

use serde_json::{Value, json};

/// Describes processor, kernel and library.
pub fn describe() -> Value {
    let read = |path| read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    // SAFETY: the library returns a constant string.
    let version = unsafe { core::ffi::CStr::from_ptr(crate::ffi::q2c_version()) };
    json!({
        "processor": model,
        "processors": crate::work::cpus(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "load_average": read("/proc/loadavg").trim(),
        "library": version.to_string_lossy(),
    })
}

/// CPU time at one moment, in seconds.
pub struct Usage {
    when: Instant,
    machine: f64,
    ours: f64,
}

impl Usage {
    /// Reads the time of the machine (stolen time included), and that of this process and its
    /// children that have ended.
    pub fn now() -> Self {
        Self {
            when: Instant::now(),
            machine: busy_seconds(),
            ours: children_seconds(),
        }
    }

    /// What other processes have used since then, in processors.
    pub fn others_since(&self) -> f64 {
        let now = Usage::now();
        let others = (now.machine - self.machine) - (now.ours - self.ours);
        others.max(0.0) / (now.when - self.when).as_secs_f64()
    }
}

/// The machine's user + nice + system + irq + softirq + steal.
fn busy_seconds() -> f64 {
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    let busy: f64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|i| ticks.get(*i))
        .sum();
    // SAFETY: only reads a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    busy / per_second as f64
}

/// getrusage(2) of `who`: `RUSAGE_CHILDREN`, `RUSAGE_THREAD`, …
pub fn resource_usage(who: libc::c_int) -> libc::rusage {
    // SAFETY: all-zero is a valid rusage; the call fills in a local one.
    unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        libc::getrusage(who, &mut usage);
        usage
    }
}

fn children_seconds() -> f64 {
    let usage = resource_usage(libc::RUSAGE_CHILDREN);
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime) + crate::process_cpu().as_secs_f64()
}
