// SPDX-License-Identifier: MIT OR Apache-2.0
//! Eviction policies, simulated: which of them keeps what is asked for next.

mod clock;
mod list;
mod lru;
mod s3_fifo;
mod sieve;

/// A cache of keys; keys are numbers below the universe's size.
pub trait Policy {
    /// Asks for a key; whether it was there. Afterwards it is.
    fn access(&mut self, key: u32) -> bool;
}

/// Name, and a cache of `capacity` keys out of `universe`.
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
    fn what_fits_stays() {
        let keys: Vec<u32> = (0..50).cycle().take(5000).collect();
        for make in ALL {
            // S3-FIFO needs a while: its small queue holds a tenth.
            assert!(hits(make, 60, &keys) >= 4500, "{}", make.0);
        }
    }

    #[test]
    fn no_more_than_the_capacity_stays() {
        let keys: Vec<u32> = (0..900).chain(0..900).collect();
        for make in ALL {
            assert!(hits(make, 30, &keys) <= 60, "{}", make.0);
        }
    }

    #[test]
    fn lru_is_lru() {
        // 3 evicts 2, since 1 was used again.
        assert_eq!(hits(&ALL[0], 2, &[1, 2, 1, 3, 1, 2]), 2);
    }

    #[test]
    fn clock_gives_a_second_chance() {
        // 1 was used again: the hand passes it and takes 2.
        assert_eq!(hits(&ALL[1], 2, &[1, 2, 1, 3, 1, 2]), 2);
    }

    #[test]
    fn scans_pass_sieve_and_s3_fifo_by() {
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
