// SPDX-License-Identifier: MIT OR Apache-2.0
//! Timing. The contenders take turns, one time slice each, round after round, so that whatever else
//! the machine does affects all of them alike. A figure is the median of the rounds; a ratio is
//! computed within each round.
//!
//! Before each slice come operations that are not timed. The previous contender filled the
//! processor's caches with its own memory, and what it costs to fill them again is not to be
//! measured. A cache of 32,768 tables needs many slices for that.
//!
//! A slice during which the thread was off the processors for more than [`MAX_AWAY`] of the time
//! says little about the code. It is repeated a few times, and counts as disturbed if that does not
//! help.

use std::time::{Duration, Instant};

/// Share of a slice's wall time during which the thread may be off the processors.
const MAX_AWAY: f64 = 0.03;
/// The operations that are not timed take no longer than this number of slices.
const WARM_SLICES: u32 = 4;
/// How often a disturbed slice is repeated.
const RETRIES: usize = 3;

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    cpu_clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// CPU time of the process.
pub fn process_cpu() -> Duration {
    cpu_clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec; the clocks named above exist in every process.
    unsafe { libc::clock_gettime(clock, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Wall time of `work`, and whether the thread was kept from running for too long meanwhile.
pub fn time(work: impl FnOnce()) -> (Duration, bool) {
    let cpu = thread_cpu();
    let begun = Instant::now();
    work();
    let wall = begun.elapsed();
    let ran = thread_cpu() - cpu;
    let away = wall.saturating_sub(ran);
    // Below 20 µs, the difference is mostly the cost of reading the clocks.
    let disturbed = away > Duration::from_micros(20) && away > wall.mul_f64(MAX_AWAY);
    (wall, disturbed)
}

/// A figure's values, one for each round.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// In the order of the rounds.
    pub values: Vec<f64>,
    /// Rounds that something else on the machine disturbed.
    pub disturbed: usize,
}

impl Samples {
    /// One exact value, such as a count or a size.
    pub fn exact(value: f64) -> Self {
        Self {
            values: vec![value],
            disturbed: 0,
        }
    }

    /// Adds a round.
    pub fn push(&mut self, value: f64, disturbed: bool) {
        self.values.push(value);
        self.disturbed += usize::from(disturbed);
    }

    /// The value below which the share `q` (0 to 1) of the rounds lies, interpolated.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = q * (sorted.len() - 1) as f64;
        let (low, high) = (at.floor() as usize, at.ceil() as usize);
        sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
    }

    /// The value in the middle.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Each round's value divided by `count`.
    pub fn per(&self, count: f64) -> Samples {
        self.zip(self, |value, _| value / count)
    }

    /// Combines two figures round by round.
    pub fn zip(&self, other: &Samples, f: impl Fn(f64, f64) -> f64) -> Samples {
        Samples {
            values: self
                .values
                .iter()
                .zip(&other.values)
                .map(|(a, b)| f(*a, *b))
                .collect(),
            disturbed: self.disturbed.max(other.disturbed),
        }
    }

    /// Round by round, this divided by `other`.
    pub fn over(&self, other: &Samples) -> Samples {
        self.zip(other, |a, b| a / b)
    }
}

/// What is timed. The argument is the number of operations to make.
pub type Run<'a> = Box<dyn FnMut(u64) + 'a>;

/// How much time a group may take.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds for each figure.
    pub rounds: usize,
    /// Time of one slice.
    pub slice: Duration,
    /// Whether only the core ratios are wanted.
    pub quick: bool,
}

impl Effort {
    /// The effort of `--quick`.
    pub const QUICK: Effort = Effort {
        rounds: 7,
        slice: Duration::from_millis(3),
        quick: true,
    };
    /// The effort without `--quick`.
    pub const FULL: Effort = Effort {
        rounds: 15,
        slice: Duration::from_millis(8),
        quick: false,
    };

    /// Times each subject in turn, round after round. Returns ns per operation, in the order of the
    /// subjects. How many operations fit into a slice is found out first. `warm` is the number of
    /// operations before each slice that are not timed; it is cut where they would take longer than
    /// [`WARM_SLICES`] slices.
    pub fn interleave(&self, warm: u64, subjects: &mut [Run<'_>]) -> Vec<Samples> {
        let counts: Vec<u64> = subjects.iter_mut().map(|s| self.calibrate(s)).collect();
        let mut results = vec![Samples::default(); subjects.len()];
        for round in 0..self.rounds {
            for turn in 0..subjects.len() {
                let i = (round + turn) % subjects.len();
                self.warm_up(&mut subjects[i], warm, counts[i]);
                let (ns, disturbed) = slice(|| subjects[i](counts[i]), || {});
                results[i].push(ns / counts[i] as f64, disturbed);
            }
        }
        results
    }

    /// Times operations that each need a preparation, in turn, round after round. The preparation
    /// is not timed. Returns ns per operation, in the order of the subjects.
    pub fn interleave_prepared(&self, subjects: &mut [Prepared<'_>]) -> Vec<Samples> {
        let mut results = vec![Samples::default(); subjects.len()];
        for round in 0..self.rounds {
            for turn in 0..subjects.len() {
                let i = (round + turn) % subjects.len();
                let Prepared { prepare, run } = &mut subjects[i];
                let (ns, disturbed) = slice(run, prepare);
                results[i].push(ns, disturbed);
            }
        }
        results
    }

    fn warm_up(&self, subject: &mut Run<'_>, warm: u64, a_slice: u64) {
        let (begun, mut done) = (Instant::now(), 0);
        let some = (a_slice / 4).max(1);
        while done < warm && begun.elapsed() < self.slice * WARM_SLICES {
            subject(some);
            done += some;
        }
    }

    fn calibrate(&self, subject: &mut Run<'_>) -> u64 {
        let mut count = 1;
        loop {
            let (taken, _) = time(|| subject(count));
            if taken * 4 >= self.slice || count >= 1 << 28 {
                let scale = self.slice.as_secs_f64() / taken.as_secs_f64().max(1e-9);
                return ((count as f64 * scale) as u64).max(1);
            }
            count *= 2;
        }
    }
}

/// An operation, and what has to be done before each time.
pub struct Prepared<'a> {
    /// Not timed.
    pub prepare: Box<dyn FnMut() + 'a>,
    /// Timed.
    pub run: Box<dyn FnMut() + 'a>,
}

/// ns of one slice, and whether each of its repetitions was disturbed.
fn slice(mut run: impl FnMut(), mut prepare: impl FnMut()) -> (f64, bool) {
    let mut best = f64::INFINITY;
    for _ in 0..=RETRIES {
        prepare();
        let (taken, disturbed) = time(&mut run);
        if !disturbed {
            return (taken.as_nanos() as f64, false);
        }
        best = best.min(taken.as_nanos() as f64);
    }
    (best, true)
}

/// A random number generator that adds almost nothing to the time of a loop: a 64-bit congruential
/// one (Knuth's MMIX multiplier), of which only the upper bits are used.
#[derive(Clone, Copy)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose sequence depends on `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x2545_F491_4F6C_DD1D)
    }

    /// A number below `n`. `n` is below 2^32.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * n) >> 32
    }

    /// A number from 0 to 1, 1 excluded.
    pub fn unit(&mut self) -> f64 {
        self.below(1 << 31) as f64 / f64::from(1_u32 << 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let samples = Samples {
            values: vec![4.0, 1.0, 3.0, 2.0],
            disturbed: 0,
        };
        assert_eq!(samples.median(), 2.5);
        assert_eq!(samples.quantile(0.0), 1.0);
        assert_eq!(samples.quantile(1.0), 4.0);
    }

    #[test]
    fn random_numbers_cover_their_range_evenly() {
        let mut rng = Rng::new(1);
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            seen[rng.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
    }
}
