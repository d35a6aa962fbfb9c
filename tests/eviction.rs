// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hit ratio of the eviction policy is at least that of an exact LRU on the same accesses, for
//! every mix and every cache size.
//!
//! `cargo test --test eviction -- --nocapture` prints the table.

mod support;

use std::sync::Arc;

use qcow2cache::cache::Cache;
use support::{Rng, TestStorage, cache_on, get_empty};

/// Exact LRU over tables `0..universe`: a doubly linked list in two arrays.
struct Lru {
    capacity: usize,
    len: usize,
    /// Neighbours of each table towards the most (`up`) and the least (`down`) recently used table.
    /// Index `universe` is the list's head.
    up: Vec<usize>,
    down: Vec<usize>,
    resident: Vec<bool>,
}

impl Lru {
    fn new(capacity: usize, universe: usize) -> Self {
        Self {
            capacity,
            len: 0,
            up: vec![universe; universe + 1],
            down: vec![universe; universe + 1],
            resident: vec![false; universe],
        }
    }

    fn unlink(&mut self, table: usize) {
        let (up, down) = (self.up[table], self.down[table]);
        self.down[up] = down;
        self.up[down] = up;
    }

    fn access(&mut self, table: usize) -> bool {
        let head = self.resident.len();
        let hit = std::mem::replace(&mut self.resident[table], true);
        if hit {
            self.unlink(table);
        } else if self.len == self.capacity {
            let oldest = self.up[head];
            self.unlink(oldest);
            self.resident[oldest] = false;
        } else {
            self.len += 1;
        }
        let newest = self.down[head];
        (self.up[table], self.down[table]) = (head, newest);
        self.up[newest] = table;
        self.down[head] = table;
        hit
    }
}

/// Table numbers in a Zipf distribution: rank n has the weight 1 / (n + 1)^s.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(universe: usize, s: f64) -> Self {
        let mut sum = 0.0;
        let weight = |n: usize| ((n + 1) as f64).powf(-s);
        let add = |n| {
            sum += weight(n);
            sum
        };
        Self {
            cumulative: (0..universe).map(add).collect(),
        }
    }

    fn next(&self, rng: &mut Rng) -> usize {
        let at = rng.unit() * self.cumulative.last().unwrap();
        let rank = self.cumulative.partition_point(|sum| *sum < at);
        // Popular tables are not neighbours: multiplication by an odd factor permutes the numbers
        // below a power of two.
        rank.wrapping_mul(0x9E37_79B1) & (self.cumulative.len() - 1)
    }
}

struct Mix {
    name: &'static str,
    /// How many tables are accessed, for a cache of the given number of tables.
    universe: fn(usize) -> usize,
    trace: fn(usize, usize, usize, &mut Rng) -> Vec<usize>,
    /// Whether every policy has the same expected hit ratio.
    any_policy_is_equal: bool,
    /// How far the hit ratio may be below that of LRU.
    max_loss: f64,
    /// How many accesses one request makes.
    touches: usize,
}

fn zipf(_size: usize, universe: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    let zipf = Zipf::new(universe, 0.99);
    (0..n).map(|_| zipf.next(rng)).collect()
}

/// Zipf in the lower half of the tables, and repeated scans through parts of the upper half. A scan
/// is as long as the cache.
fn zipf_and_scan(size: usize, universe: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    let half = universe / 2;
    let zipf = Zipf::new(half, 0.99);
    let (mut scanned, mut left) = (0, 0);
    let access = |_| {
        if left == 0 && rng.below(4 * size as u64) == 0 {
            left = size;
        }
        if left > 0 && rng.below(2) == 0 {
            left -= 1;
            scanned = (scanned + 1) % half;
            return half + scanned;
        }
        zipf.next(rng)
    };
    (0..n).map(access).collect()
}

fn looping(_size: usize, universe: usize, n: usize, _rng: &mut Rng) -> Vec<usize> {
    (0..n).map(|i| i % universe).collect()
}

fn eighty_twenty(_size: usize, universe: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    let hot = universe as u64 / 5;
    let access = |_| {
        if rng.below(10) < 8 {
            rng.below(hot) as usize
        } else {
            (hot + rng.below(universe as u64 - hot)) as usize
        }
    };
    (0..n).map(access).collect()
}

fn uniform(_size: usize, universe: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    (0..n)
        .map(|_| rng.below(universe as u64) as usize)
        .collect()
}

const REQUESTS: usize = 16;
const TOUCHES: usize = 4;

/// Each access becomes [`TOUCHES`] accesses of the same table, as by a request that touches several
/// clusters. They are interleaved with the accesses of 15 other requests in flight.
fn in_flight(trace: Vec<usize>, n: usize, rng: &mut Rng) -> Vec<usize> {
    let mut to_come = trace.into_iter();
    let mut active: Vec<(usize, usize)> = Vec::new();
    let access = |_| {
        let missing = REQUESTS - active.len();
        active.extend(to_come.by_ref().take(missing).map(|table| (table, TOUCHES)));
        let at = rng.below(active.len() as u64) as usize;
        let (table, left) = &mut active[at];
        let table = *table;
        *left -= 1;
        if *left == 0 {
            active.swap_remove(at);
        }
        table
    };
    (0..n).map(access).collect()
}

fn zipf_in_flight(size: usize, universe: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    let trace = zipf(size, universe, n, rng);
    in_flight(trace, n, rng)
}

fn eighty_twenty_in_flight(size: usize, universe: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    let trace = eighty_twenty(size, universe, n, rng);
    in_flight(trace, n, rng)
}

/// Uniform in a window of half the cache, which advances by one table every 16 accesses.
fn moving_set(size: usize, universe: usize, n: usize, rng: &mut Rng) -> Vec<usize> {
    let access = |i| (i / 16 + rng.below(size as u64 / 2) as usize) % universe;
    (0..n).map(access).collect()
}

const MIXES: [Mix; 10] = [
    Mix {
        name: "zipf 0.99, 16 requests in flight",
        universe: |size| size * 8,
        trace: zipf_in_flight,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: TOUCHES,
    },
    Mix {
        name: "80/20, 16 requests in flight",
        universe: |size| size * 4,
        trace: eighty_twenty_in_flight,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: TOUCHES,
    },
    // Here LRU is optimal: it loads each table once. A scan-resistant policy cannot know at first
    // that a table of this set does not belong to a scan, and may load some tables twice. One
    // sixteenth of the accesses are first accesses; less than a third of these may be repeated.
    Mix {
        name: "moving set",
        universe: |size| size * 16,
        trace: moving_set,
        any_policy_is_equal: false,
        max_loss: 0.02,
        touches: 1,
    },
    Mix {
        name: "zipf 0.99",
        universe: |size| size * 8,
        trace: zipf,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: 1,
    },
    Mix {
        name: "zipf 0.99, twice the cache",
        universe: |size| size * 2,
        trace: zipf,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: 1,
    },
    Mix {
        name: "zipf 0.99 + scans",
        universe: |size| size * 16,
        trace: zipf_and_scan,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: 1,
    },
    Mix {
        name: "loop, 1/16 larger",
        universe: |size| size + size / 16,
        trace: looping,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: 1,
    },
    Mix {
        name: "80/20",
        universe: |size| size * 4,
        trace: eighty_twenty,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: 1,
    },
    Mix {
        name: "80/20, hot part larger",
        universe: |size| size * 8,
        trace: eighty_twenty,
        any_policy_is_equal: false,
        max_loss: 0.0,
        touches: 1,
    },
    Mix {
        name: "uniform",
        universe: |size| size * 2,
        trace: uniform,
        any_policy_is_equal: true,
        max_loss: 0.0,
        touches: 1,
    },
];

fn access(cache: &Cache, table: usize) -> bool {
    let offset = (table as u64 + 1) * 512;
    let hit = cache.try_get(offset).is_ok();
    if !hit {
        drop(get_empty(cache, offset).unwrap());
    }
    hit
}

/// Hit ratios of the cache and of LRU, after a warm-up.
fn hit_ratios(size: usize, mix: &Mix, n: usize) -> (f64, f64) {
    let universe = (mix.universe)(size);
    let (n, warm_up) = (n * mix.touches, size * 4 * mix.touches);
    let trace = (mix.trace)(size, universe, warm_up + n, &mut Rng::new(size as u64 + 11));
    let storage = Arc::new(TestStorage::new(512));
    let cache = cache_on(&storage, size, 512, 0);
    let mut lru = Lru::new(size, universe);
    let (mut ours, mut theirs) = (0, 0);
    for (i, table) in trace.into_iter().enumerate() {
        let hits = (access(&cache, table), lru.access(table));
        if i >= warm_up {
            ours += usize::from(hits.0);
            theirs += usize::from(hits.1);
        }
    }
    assert_eq!(cache.stats().resident_tables, size);
    (ours as f64 / n as f64, theirs as f64 / n as f64)
}

#[test]
fn hit_ratio_is_at_least_lru() {
    let mut worse = Vec::new();
    println!(
        "{:32} {:>6} {:>8} {:>8} {:>8}",
        "accesses", "tables", "ours", "LRU", "gain"
    );
    for mix in &MIXES {
        for (size, n) in [(64, 60_000), (512, 60_000), (4096, 100_000)] {
            let (ours, lru) = hit_ratios(size, mix, n);
            println!(
                "{:32} {size:>6} {ours:>8.4} {lru:>8.4} {:>+8.4}",
                mix.name,
                ours - lru
            );
            // If accesses are independent and equally likely, every policy hits with the
            // probability p = size / universe, and two policies differ only by chance: each access
            // contributes at most 2 p (1 - p) to the variance of the difference's sum. Four
            // standard deviations of the mean are allowed, in both directions. In all other mixes
            // the loss is bounded by `max_loss`.
            let chance = 4.0 * (0.5 / n as f64).sqrt();
            let acceptable = if mix.any_policy_is_equal {
                (ours - lru).abs() <= chance
            } else {
                ours >= lru - mix.max_loss
            };
            if !acceptable {
                worse.push(format!(
                    "{}, {size} tables: {ours:.4}, LRU {lru:.4}",
                    mix.name
                ));
            }
        }
    }
    assert!(worse.is_empty(), "worse than LRU: {worse:#?}");
}

#[test]
fn baseline_lru_is_exact() {
    let mut rng = Rng::new(3);
    let mut lru = Lru::new(5, 12);
    let mut plain: Vec<usize> = Vec::new();
    for _ in 0..20_000 {
        let table = rng.below(12) as usize;
        let at = plain.iter().position(|t| *t == table);
        assert_eq!(lru.access(table), at.is_some());
        match at {
            Some(at) => drop(plain.remove(at)),
            None if plain.len() == 5 => drop(plain.remove(0)),
            None => {}
        }
        plain.push(table);
    }
}
