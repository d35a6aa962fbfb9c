// SPDX-License-Identifier: MIT OR Apache-2.0
//! Workloads for the group `eviction`: sequences of table numbers.

use std::collections::HashMap;
use std::path::Path;

use crate::measure::Rng;

/// A sequence of keys below `universe`.
pub struct Workload {
    /// The name in the figures.
    pub name: &'static str,
    /// Number of possible keys.
    pub universe: usize,
    /// One key for each request.
    pub keys: Vec<u32>,
}

/// Tables of the image of the zipf workloads: 128 GiB of 4 KiB tables for 64 KiB clusters.
const IMAGE: usize = 1 << 16;

/// All generated workloads, for a cache of `capacity` tables, with `length` requests each.
pub fn all(capacity: usize, length: usize) -> Vec<Workload> {
    vec![
        zipf(length),
        zipf_and_scan(capacity, length),
        cycle(capacity, length),
        eighty_twenty(capacity, length),
        uniform(capacity, length),
    ]
}

/// Zipf with exponent 0.99. Whether a table is popular does not depend on its place.
fn zipf(length: usize) -> Workload {
    let draw = Zipf::new(IMAGE, 0.99);
    let mut rng = Rng::new(21);
    let keys = (0..length).map(|_| draw.key(&mut rng)).collect();
    Workload {
        name: "zipf",
        universe: IMAGE,
        keys,
    }
}

/// Zipf with exponent 0.99; after each `10 * capacity` requests, a backup reads `2 * capacity`
/// tables from front to back.
fn zipf_and_scan(capacity: usize, length: usize) -> Workload {
    let draw = Zipf::new(IMAGE, 0.99);
    let mut rng = Rng::new(22);
    let mut keys = Vec::with_capacity(length);
    let mut scanned = 0;
    while keys.len() < length {
        keys.extend((0..capacity * 10).map(|_| draw.key(&mut rng)));
        for _ in 0..capacity * 2 {
            keys.push((scanned % IMAGE) as u32);
            scanned += 1;
        }
    }
    keys.truncate(length);
    Workload {
        name: "zipf_scan",
        universe: IMAGE,
        keys,
    }
}

/// A loop over 1.1 times as many tables as the cache has.
fn cycle(capacity: usize, length: usize) -> Workload {
    let universe = capacity + capacity.div_ceil(10);
    Workload {
        name: "loop",
        universe,
        keys: (0..length).map(|i| (i % universe) as u32).collect(),
    }
}

/// Four of five requests go to a fifth of the tables. This fifth is one and a half times as large
/// as the cache.
fn eighty_twenty(capacity: usize, length: usize) -> Workload {
    let popular = capacity + capacity / 2;
    let universe = popular * 5;
    let mut rng = Rng::new(23);
    let mut key = || {
        if rng.below(5) < 4 {
            rng.below(popular as u64)
        } else {
            popular as u64 + rng.below((universe - popular) as u64)
        }
    };
    let keys = (0..length)
        .map(|_| scatter(key() as u32, universe))
        .collect();
    Workload {
        name: "80_20",
        universe,
        keys,
    }
}

/// Each of twice as many tables as the cache has is equally likely.
fn uniform(capacity: usize, length: usize) -> Workload {
    let universe = capacity * 2;
    let mut rng = Rng::new(24);
    let keys = (0..length)
        .map(|_| rng.below(universe as u64) as u32)
        .collect();
    Workload {
        name: "uniform",
        universe,
        keys,
    }
}

/// Shuffles the numbers below `universe` one-to-one. `universe` is smaller than the prime.
fn scatter(key: u32, universe: usize) -> u32 {
    const PRIME: u64 = 2_147_483_647;
    (u64::from(key) * PRIME % universe as u64) as u32
}

/// Draws by inverting the distribution function.
struct Zipf {
    upto: Vec<f64>,
}

impl Zipf {
    fn new(universe: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let upto = (1..=universe).map(|rank| {
            sum += (rank as f64).powf(-exponent);
            sum
        });
        Self {
            upto: upto.collect(),
        }
    }

    fn key(&self, rng: &mut Rng) -> u32 {
        let total = self.upto.last().expect("not empty");
        let at = rng.unit() * total;
        let rank = self.upto.partition_point(|sum| *sum <= at);
        scatter(rank.min(self.upto.len() - 1) as u32, self.upto.len())
    }
}

/// Reads what `trace/record.c` wrote: eight bytes for each request, with the cache's number in the
/// top byte and the table's offset below. Of an image's caches, the one with the most tables is
/// returned: the L2 cache.
pub fn recorded(path: &Path) -> Result<Workload, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut caches: HashMap<u64, (HashMap<u64, u32>, Vec<u32>)> = HashMap::new();
    for request in bytes.chunks_exact(8) {
        let word = u64::from_ne_bytes(request.try_into().expect("eight bytes"));
        let (numbers, keys) = caches.entry(word >> 56).or_default();
        let next = numbers.len() as u32;
        keys.push(*numbers.entry(word << 8 >> 8).or_insert(next));
    }
    let largest = caches
        .into_values()
        .max_by_key(|(numbers, _)| numbers.len());
    let (numbers, keys) = largest.ok_or(format!("{}: contains no request", path.display()))?;
    Ok(Workload {
        name: "driver",
        universe: numbers.len(),
        keys,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatter_is_one_to_one() {
        for universe in [5, 96, 1000, 1 << 16] {
            let mut seen = vec![false; universe];
            for key in 0..universe as u32 {
                let to = scatter(key, universe) as usize;
                assert!(!std::mem::replace(&mut seen[to], true));
            }
        }
    }

    #[test]
    fn zipf_frequencies_follow_the_exponent() {
        let draw = Zipf::new(1000, 0.99);
        let mut rng = Rng::new(1);
        let mut counts = vec![0_u32; 1000];
        for _ in 0..200_000 {
            counts[draw.key(&mut rng) as usize] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // Rank 1 comes 2^0.99 times as often as rank 2, and 10^0.99 times as often as rank 10.
        let ratio = |rank: usize| f64::from(counts[0]) / f64::from(counts[rank - 1]);
        assert!((1.9..2.1).contains(&ratio(2)), "{}", ratio(2));
        assert!((8.5..11.0).contains(&ratio(10)), "{}", ratio(10));
    }

    #[test]
    fn workload_keys_are_below_their_universe() {
        for workload in all(64, 10_000) {
            assert_eq!(workload.keys.len(), 10_000);
            assert!(
                workload
                    .keys
                    .iter()
                    .all(|k| (*k as usize) < workload.universe)
            );
        }
    }
}
