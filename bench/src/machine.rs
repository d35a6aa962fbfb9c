// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the figures were measured on, and how much of it somebody else used meanwhile.

use std::fs::read_to_string;
use std::time::Instant;

use serde_json::{Value, json};

/// Processor, kernel, library.
pub fn describe() -> Value {
    let read = |path| read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    // SAFETY: a constant string of the library's.
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
    /// Of the machine (stolen time included), and of this process's children that have ended.
    pub fn now() -> Self {
        Self {
            when: Instant::now(),
            machine: busy_seconds(),
            ours: children_seconds(),
        }
    }

    /// What others used since, in processors.
    pub fn others_since(&self) -> f64 {
        let now = Usage::now();
        let others = (now.machine - self.machine) - (now.ours - self.ours);
        others.max(0.0) / (now.when - self.when).as_secs_f64()
    }
}

/// user + nice + system + irq + softirq + steal.
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
    // SAFETY: reads a constant of the system.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    busy / per_second as f64
}

fn children_seconds() -> f64 {
    // SAFETY: fills a local struct.
    let usage = unsafe {
        let mut usage: libc::rusage = core::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime) + crate::process_cpu().as_secs_f64()
}
