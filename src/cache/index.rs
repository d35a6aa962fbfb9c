// SPDX-License-Identifier: MIT OR Apache-2.0
//! Offset → slot: an open-addressing hash table that is read without a lock.
//!
//! There are four times as many buckets as slots. Collisions are resolved by linear probing. An
//! empty bucket is 0. Any other holds, from its low end:
//!
//! | bits | hold |
//! |---|---|
//! | as many as it takes | slot + 1 |
//! | 2 (1 if no more are left) | how near to its home bucket the entry is: 3 at home, 2 one further, 1 anything further; with 1 bit always 1 |
//! | the rest | a tag of the key's hash |
//!
//! A removal shifts the entries behind it back. So there are no tombstones, and a lookup stays as
//! short as the load factor of ¼ promises, whatever the churn: 1.17 expected probes for a hit, 1.39
//! for a miss (Knuth, vol. 3, 6.4). All but a few keys are in their first two buckets; see
//! [`Index::find_fast`]. The nearness serves the removal. Without it, the removal would have to ask
//! a slot, somewhere in memory, for the key of every entry that it might shift.
//!
//! The index changes only under the structure lock. A reader without the lock may miss an entry
//! that is being shifted, or find one that is already stale. The reader has to resolve both: a miss
//! by another lookup under the lock, a stale entry by the slot's own offset.

use super::arena::{Arena, Zeroed, array_bytes};
use crate::primitives::{AtomicU32, Ordering, prefetch};

/// 2^64 divided by the golden ratio: multiplicative hashing (Knuth, vol. 3, 6.4).
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// Buckets per slot.
const BUCKETS: usize = 4;

/// A 64-bit hash. Its upper bits tell keys apart best.
#[inline]
pub(super) fn hash(key: u64) -> u64 {
    // Two rounds: tables lie at regular distances in an image, and one round maps some such
    // progressions to few places.
    let mixed = key.wrapping_mul(GOLDEN);
    (mixed ^ mixed >> 32).wrapping_mul(GOLDEN)
}

/// Maps a hash to a number below `n`, evenly.
#[inline]
pub(super) fn fast_range(hash: u64, n: usize) -> usize {
    // The upper half of the product maps 64 bits to any number of places without a division.
    ((u128::from(hash) * n as u128) >> 64) as usize
}

/// See the module.
pub struct Index {
    /// The buckets, then a copy of the first one: every bucket's successor is the next in memory.
    buckets: Zeroed<AtomicU32>,
    /// Number of buckets without the copy.
    len: usize,
    /// Number of bits in a bucket that hold slot + 1: at most 31.
    slot_bits: u32,
    /// Those bits.
    slot_mask: u32,
    /// The bits that hold the distance code. They come next.
    distance_mask: u32,
}

impl Index {
    /// An empty index for `slots` slots, at least 1 and at most 2^31 − 1.
    pub fn new(arena: &mut Arena, slots: usize) -> Self {
        let buckets = arena.zeroed(slots * BUCKETS + 1);
        Self::over(buckets, u32::BITS - (slots as u32).leading_zeros())
    }

    fn over(buckets: Zeroed<AtomicU32>, slot_bits: u32) -> Self {
        Self {
            len: buckets.len() - 1,
            buckets,
            slot_bits,
            slot_mask: (1 << slot_bits) - 1,
            // The second bit may be out of range. Then there is only one.
            distance_mask: 3 << slot_bits,
        }
    }

    /// What it takes of the arena, in bytes.
    pub const fn bytes(slots: usize) -> usize {
        array_bytes::<AtomicU32>(slots.saturating_mul(BUCKETS).saturating_add(1))
    }

    #[inline]
    fn home(&self, key: u64) -> usize {
        fast_range(hash(key), self.len)
    }

    /// For a key that will soon be removed. Any thread.
    pub fn prefetch(&self, key: u64) {
        prefetch(self.bucket(self.home(key)));
    }

    /// The content of a bucket that is `displacement` buckets behind the key's home.
    fn entry(&self, hash: u64, slot: u32, displacement: usize) -> u32 {
        self.expected(hash, displacement) & !self.slot_mask | (slot + 1)
    }

    /// Tag and distance code. The slot's bits have any value.
    #[inline]
    fn expected(&self, hash: u64, displacement: usize) -> u32 {
        hash as u32 & !self.distance_mask | self.distance_code(displacement)
    }

    #[inline]
    fn distance_code(&self, displacement: usize) -> u32 {
        self.home_code()
            .saturating_sub(displacement as u32)
            .max(1)
            .wrapping_shl(self.slot_bits)
    }

    #[inline]
    fn home_code(&self) -> u32 {
        self.distance_mask >> self.slot_bits
    }

    #[inline(always)]
    fn fits(&self, entry: u32, expected: u32) -> bool {
        (entry ^ expected) & !self.slot_mask == 0
    }

    /// How many buckets the entry in `bucket` is behind its home.
    fn displacement(&self, entry: u32, bucket: usize, key_of: impl Fn(u32) -> u64) -> usize {
        match (entry & self.distance_mask) >> self.slot_bits {
            1 => self.distance(self.home(key_of(self.slot_of(entry))), bucket),
            distance_code => (self.home_code() - distance_code) as usize,
        }
    }

    #[inline(always)]
    fn slot_of(&self, entry: u32) -> u32 {
        (entry & self.slot_mask).wrapping_sub(1)
    }

    #[inline(always)]
    fn bucket(&self, number: usize) -> &AtomicU32 {
        debug_assert!(number < self.buckets.len());
        // SAFETY: `fast_range` and `after` return numbers below `len`, which is not 0. `find_fast`
        // adds 1 at most, and `store` passes `len`: there is one bucket more than `len`.
        unsafe { self.buckets.get_unchecked(number) }
    }

    #[inline(always)]
    fn load(&self, bucket: usize) -> u32 {
        // Relaxed: the slot's own word orders every decision that is based on what is found here.
        self.bucket(bucket).load(Ordering::Relaxed)
    }

    #[inline]
    fn after(&self, bucket: usize) -> usize {
        if bucket + 1 == self.len {
            0
        } else {
            bucket + 1
        }
    }

    /// The slot in the key's first bucket if the tag fits, else the slot in the second bucket;
    /// `None` if the second bucket is empty then. The slot's own offset tells whether it is the
    /// right one; if it is not, use [`Index::find`]. Any thread. Without the structure lock, `None`
    /// is not final.
    ///
    /// There is no branch here that a hit could make the processor mispredict. "First or second
    /// bucket?" is a selection of a value, and "neither" shows in the slot. If the bucket is not in
    /// the processor's caches, a misprediction would be detected only when the bucket arrives, and
    /// everything begun meanwhile would be wasted.
    #[inline(always)]
    pub fn find_fast(&self, key: u64) -> Option<u32> {
        let hash = hash(key);
        let bucket = fast_range(hash, self.len);
        let (first, second) = (self.load(bucket), self.load(bucket + 1));
        // An entry at home has all bits of the distance code set.
        let in_first = self.fits(first, hash as u32 | self.distance_mask);
        let chosen = second ^ ((first ^ second) & u32::from(in_first).wrapping_neg());
        (chosen != 0).then(|| self.slot_of(chosen))
    }

    /// The slot for `key` that `is_it` confirms. Any thread. Without the structure lock, `None` is
    /// not final.
    #[inline]
    pub fn find(&self, key: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let hash = hash(key);
        let mut bucket = fast_range(hash, self.len);
        for displacement in 0..self.len {
            let entry = self.load(bucket);
            if entry == 0 {
                return None;
            }
            if self.fits(entry, self.expected(hash, displacement)) && is_it(self.slot_of(entry)) {
                return Some(self.slot_of(entry));
            }
            bucket = self.after(bucket);
        }
        None
    }

    /// Adds an entry for a key that the index does not hold. Structure lock held.
    pub fn insert(&self, key: u64, slot: u32) {
        let hash = hash(key);
        let (mut bucket, mut displacement) = (fast_range(hash, self.len), 0);
        // There are four times as many buckets as slots, so an empty one is found.
        while self.load(bucket) != 0 {
            bucket = self.after(bucket);
            displacement += 1;
        }
        self.store(bucket, self.entry(hash, slot, displacement));
    }

    /// Removes the entry of `slot`, if it has one, and returns whether it had. `key_of` returns the
    /// key of any other slot in the index. Structure lock held.
    pub fn remove(&self, key: u64, slot: u32, key_of: impl Fn(u32) -> u64) -> bool {
        let Some(mut gap) = self.bucket_of(key, slot) else {
            return false;
        };
        let (mut bucket, mut behind) = (gap, 0);
        loop {
            bucket = self.after(bucket);
            behind += 1;
            let entry = self.load(bucket);
            if entry == 0 {
                break;
            }
            // The entry may move into the gap unless its home lies behind the gap.
            let displacement = self.displacement(entry, bucket, &key_of);
            if displacement >= behind {
                let distance_code = self.distance_code(displacement - behind);
                self.store(gap, entry & !self.distance_mask | distance_code);
                (gap, behind) = (bucket, 0);
            }
        }
        self.store(gap, 0);
        true
    }

    fn store(&self, bucket: usize, entry: u32) {
        self.bucket(bucket).store(entry, Ordering::Release);
        if bucket == 0 {
            self.bucket(self.len).store(entry, Ordering::Release);
        }
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from {
            to - from
        } else {
            to + self.len - from
        }
    }

    fn bucket_of(&self, key: u64, slot: u32) -> Option<usize> {
        let mut bucket = self.home(key);
        loop {
            match self.load(bucket) {
                0 => return None,
                entry if entry & self.slot_mask == slot + 1 => return Some(bucket),
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

    /// Room for 16 slots. Few buckets make long probe sequences. With 31 bits for the slot, one bit
    /// is left for the distance code.
    fn index(crowded: bool, few_bits: bool) -> Index {
        let mut arena = Arena::new(4096).unwrap();
        let buckets = arena.zeroed(if crowded { 18 } else { 65 });
        Index::over(buckets, if few_bits { 31 } else { 5 })
    }

    proptest! {
        /// After any sequence of insertions and removals, the index answers as a map does.
        #[test]
        fn index_answers_as_a_hash_map(
            steps in proptest::collection::vec((0_u64..40, any::<bool>()), 0..400),
            crowded in any::<bool>(),
            few_bits in any::<bool>(),
        ) {
            let slots = 16;
            let index = index(crowded, few_bits);
            let mut model: HashMap<u64, u32> = HashMap::new();
            let mut keys = vec![0_u64; slots];
            for (number, insert) in steps {
                let key = number + 1;
                if insert && model.len() < slots && !model.contains_key(&key) {
                    let slot = (0..slots as u32).find(|s| !model.values().any(|v| v == s)).unwrap();
                    keys[slot as usize] = key;
                    index.insert(key, slot);
                    model.insert(key, slot);
                } else if let Some(slot) = model.remove(&key) {
                    // The slot may hold another table by now, so its key must not be asked for.
                    keys[slot as usize] = u64::MAX;
                    let key_of = |s| if s == slot {
                        panic!("asked for the removed slot's key")
                    } else {
                        keys[s as usize]
                    };
                    prop_assert!(index.remove(key, slot, key_of));
                    prop_assert!(!index.remove(key, slot, key_of));
                }
                let key_of = |slot: u32| keys[slot as usize];
                for (&key, &slot) in &model {
                    prop_assert_eq!(index.find(key, |s| key_of(s) == key), Some(slot));
                    let bucket = index.bucket_of(key, slot).unwrap();
                    let displacement = index.displacement(index.load(bucket), bucket, |_| key);
                    prop_assert_eq!(displacement, index.distance(index.home(key), bucket));
                }
                for key in 1..45 {
                    match (index.find_fast(key), model.get(&key)) {
                        (None, slot) => prop_assert_eq!(slot, None),
                        (Some(candidate), _) => prop_assert!((candidate as usize) < slots),
                    }
                    if !model.contains_key(&key) {
                        prop_assert_eq!(index.find(key, |s| key_of(s) == key), None);
                    }
                }
            }
        }
    }

    /// In an index that is as full as it can be, `find_fast` finds nearly all keys.
    #[test]
    fn find_fast_finds_most_keys_in_a_full_index() {
        let slots = 10_000;
        let index = Index::new(&mut Arena::new(Index::bytes(slots)).unwrap(), slots);
        (0..slots as u32).for_each(|slot| index.insert(u64::from(slot) * 4096, slot));
        let is_found = |slot: &u32| index.find_fast(u64::from(*slot) * 4096) == Some(*slot);
        let found = (0..slots as u32).filter(is_found).count();
        assert!(found > slots * 95 / 100, "{found} of {slots}");
    }
}
