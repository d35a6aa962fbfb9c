// SPDX-License-Identifier: MIT OR Apache-2.0
//! Simulated eviction policies, to compare their hit ratios.

mod clock;
mod list;
mod lru;
mod s3_fifo;
mod sieve;

/// A cache of keys; keys are numbers below the universe's size.
pub trait Policy {
    /// Asks for a key, which is in the cache afterwards. Returns whether it was before: a hit.
    fn access(&mut self, key: u32) -> bool;
}

/// A policy's name, and how to make a cache of `capacity` keys out of `universe`.
pub type Make = (
    &'static str,
    fn(capacity: usize, universe: usize) -> Box<dyn Policy>,
);

/// All simulated policies.
pub const ALL: &[Make] = &[
    ("LRU", |capacity, universe| {
        Box::new(lru::Lru::new(capacity, universe))
    }),
    ("CLOCK", |capacity, universe| {
        Box::new(clock::Clock::new(capacity, universe))
    }),
    ("SIEVE", |capacity, universe| {
        Box::new(sieve::Sieve::new(capacity, universe))
    }),
    ("S3-FIFO", |capacity, universe| {
        Box::new(s3_fifo::S3Fifo::new(capacity, universe))
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(make: &Make, capacity: usize, keys: &[u32]) -> usize {
        let mut policy = make.1(capacity, 1000);
        keys.iter().filter(|key| policy.access(**key)).count()
    }

    #[test]
    fn working_set_that_fits_stays() {
        let keys: Vec<u32> = (0..50).cycle().take(5000).collect();
        for make in ALL {
            // S3-FIFO misses more at the beginning: its small queue holds only a tenth.
            assert!(hits(make, 60, &keys) >= 4500, "{}", make.0);
        }
    }

    #[test]
    fn hits_of_a_long_scan_are_bounded_by_the_capacity() {
        let keys: Vec<u32> = (0..900).chain(0..900).collect();
        for make in ALL {
            assert!(hits(make, 30, &keys) <= 60, "{}", make.0);
        }
    }

    #[test]
    fn lru_evicts_the_least_recently_used() {
        // 3 evicts 2, since 1 was used again.
        assert_eq!(hits(&ALL[0], 2, &[1, 2, 1, 3, 1, 2]), 2);
    }

    #[test]
    fn clock_spares_a_used_key_once() {
        // 1 was used again: the hand passes it and takes 2.
        assert_eq!(hits(&ALL[1], 2, &[1, 2, 1, 3, 1, 2]), 2);
    }

    #[test]
    fn sieve_and_s3_fifo_keep_the_working_set_during_a_scan() {
        let mut keys: Vec<u32> = (0..20).cycle().take(400).collect();
        keys.extend(100..900);
        keys.extend(0..20);
        for make in ALL {
            let kept = hits(make, 40, &keys) - 380;
            match make.0 {
                "SIEVE" | "S3-FIFO" => assert!(kept >= 18, "{} kept {kept}", make.0),
                _ => assert!(kept <= 20, "{} kept {kept}", make.0),
            }
        }
    }
}
