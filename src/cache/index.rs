// SPDX-License-Identifier: MIT OR Apache-2.0
//! Offset → slot: an open-addressing hash table that is read without a lock.
//!
//! Four times as many buckets as slots; a bucket is a tag of the key's hash and, in as many low bits as that takes, slot + 1; 0 when
//! empty. Linear probing; removal shifts the entries behind it back, so that there are no tombstones and a lookup stays as short as
//! the load factor of ¼ promises, whatever the churn (expected probes: 1.17 for a hit, 1.39 for a miss; Knuth, vol. 3, 6.4). That is
//! less for the probes' sake than for the processor's guess that the first bucket is the right one: it holds for six of seven keys.
//!
//! Changed under the structure lock alone. A reader without it may miss an entry that is being shifted, or find one that is
//! already stale; both are doubts that it settles: the former under the lock, the latter by the slot's own offset.

use super::zeroed::zeroed;
use crate::error::Result;
use crate::primitives::{AtomicU32, Ordering};

/// 2^64 divided by the golden ratio: multiplicative hashing (Knuth, vol. 3, 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// Buckets for a slot.
const BUCKETS: usize = 4;

/// 64 bits, of which the upper half and the upper part of the lower half may be used.
#[inline]
pub(super) fn hash(key: u64) -> u64 {
    // Twice: tables lie at regular distances in an image, and one round puts some such progressions into few places.
    let mixed = key.wrapping_mul(GOLDEN);
    (mixed ^ mixed >> 32).wrapping_mul(GOLDEN)
}

/// A number below `n`, spread over all of them.
#[inline]
pub(super) fn scale(hash: u64, n: usize) -> usize {
    // Multiply and shift maps 32 hash bits to any number of places without a division.
    (((hash >> 32) * n as u64) >> 32) as usize
}

/// See the module.
pub struct Index {
    buckets: Box<[AtomicU32]>,
    /// The bits of a bucket that hold slot + 1.
    slot_mask: u32,
}

impl Index {
    /// An index for `slots` slots, at least 1 and at most 2^31 − 1, empty.
    pub fn new(slots: usize) -> Result<Self> {
        let buckets = zeroed(slots * BUCKETS)?;
        let slot_mask = u32::MAX >> (slots as u32).leading_zeros();
        Ok(Self { buckets, slot_mask })
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<AtomicU32>()
    }

    #[inline]
    fn home(&self, key: u64) -> usize {
        scale(hash(key), self.buckets.len())
    }

    /// A bucket's content.
    fn entry(&self, key: u64, slot: u32) -> u32 {
        (hash(key) as u32 & !self.slot_mask) | (slot + 1)
    }

    #[inline]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.buckets.len() {
            0
        } else {
            bucket + 1
        }
    }

    /// The slot in the first of the key's first two buckets whose tag fits. Any thread; `None` says nothing.
    #[inline(always)]
    pub fn near(&self, key: u64) -> Option<u32> {
        let hash = hash(key);
        let bucket = scale(hash, self.buckets.len());
        self.slot_in(bucket, hash)
            .or_else(|| self.slot_in(self.after(bucket), hash))
    }

    #[inline(always)]
    fn slot_in(&self, bucket: usize, hash: u64) -> Option<u32> {
        debug_assert!(bucket < self.buckets.len());
        // SAFETY: `scale` and `after` give numbers below the number of buckets, which is not 0. Relaxed: see `find`.
        let entry = unsafe { self.buckets.get_unchecked(bucket) }.load(Ordering::Relaxed);
        let fits = (entry ^ hash as u32) & !self.slot_mask == 0 && entry != 0;
        fits.then(|| (entry & self.slot_mask).wrapping_sub(1))
    }

    /// The slot for `key` that `is_it` confirms. Any thread; without the structure lock, `None` is not final.
    #[inline]
    pub fn find(&self, key: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = hash(key);
        let mut bucket = scale(hash, self.buckets.len());
        let mut left = self.buckets.len();
        loop {
            debug_assert!(bucket < self.buckets.len());
            // SAFETY: `scale` and `after` give numbers below the number of buckets, which is not 0.
            // Relaxed: the slot's own word orders everything that is decided by what is found here.
            let entry = unsafe { self.buckets.get_unchecked(bucket) }.load(Ordering::Relaxed);
            if entry == 0 {
                return None;
            }
            if (entry ^ hash as u32) & !self.slot_mask == 0 {
                let slot = (entry & self.slot_mask) - 1;
                if is_it(slot) {
                    return Some(slot);
                }
            }
            left -= 1;
            if left == 0 {
                return None;
            }
            bucket = self.after(bucket);
        }
    }

    /// Adds an entry; the key is not in it. Structure lock held.
    pub fn insert(&self, key: u64, slot: u32) {
        let mut bucket = self.home(key);
        // There are four times as many buckets as slots, so that an empty one is found.
        while self.buckets[bucket].load(Ordering::Relaxed) != 0 {
            bucket = self.after(bucket);
        }
        self.buckets[bucket].store(self.entry(key, slot), Ordering::Release);
    }

    /// Removes the entry of `slot`, if it has one. `key_of` gives the key of any slot in the index. Structure lock
    /// held.
    pub fn remove(&self, key: u64, slot: u32, key_of: impl Fn(u32) -> u64) -> bool {
        let Some(mut gap) = self.bucket_of(key, slot) else {
            return false;
        };
        let mut bucket = gap;
        loop {
            bucket = self.after(bucket);
            let entry = self.buckets[bucket].load(Ordering::Relaxed);
            if entry == 0 {
                break;
            }
            let home = self.home(key_of((entry & self.slot_mask) - 1));
            // The entry may move into the gap unless its home lies behind the gap.
            if self.distance(home, bucket) >= self.distance(gap, bucket) {
                self.buckets[gap].store(entry, Ordering::Release);
                gap = bucket;
            }
        }
        self.buckets[gap].store(0, Ordering::Release);
        true
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.buckets.len() - from
        }
    }

    fn bucket_of(&self, key: u64, slot: u32) -> Option<usize> {
        let wanted = self.entry(key, slot);
        let mut bucket = self.home(key);
        loop {
            match self.buckets[bucket].load(Ordering::Relaxed) {
                0 => return None,
                entry if entry == wanted => return Some(bucket),
                _ => bucket = self.after(bucket),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Whatever is inserted and removed, the index answers as a map does.
        #[test]
        fn answers_as_a_map(steps in proptest::collection::vec((0_u64..40, any::<bool>()), 0..400), wide in any::<bool>()) {
            let slots = 16;
            let index = Index::new(slots).unwrap();
            let mut model: HashMap<u64, u32> = HashMap::new();
            let mut keys = vec![0_u64; slots];
            for (number, insert) in steps {
                // Keys that share a tag, too.
                let key = if wide { (number % 5) << 32 | (number % 5) ^ (number / 5) } else { number + 1 };
                if insert && model.len() < slots && !model.contains_key(&key) {
                    let slot = (0..slots as u32).find(|s| !model.values().any(|v| v == s)).unwrap();
                    keys[slot as usize] = key;
                    index.insert(key, slot);
                    model.insert(key, slot);
                } else if let Some(slot) = model.remove(&key) {
                    prop_assert!(index.remove(key, slot, |s| keys[s as usize]));
                    prop_assert!(!index.remove(key, slot, |s| keys[s as usize]));
                }
                for (&key, &slot) in &model {
                    prop_assert_eq!(index.find(key, |s| keys[s as usize] == key), Some(slot));
                }
                let absent = 1_000_000;
                prop_assert_eq!(index.find(absent, |_| true), None);
            }
        }
    }
}
