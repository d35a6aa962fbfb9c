// SPDX-License-Identifier: MIT OR Apache-2.0
//! The bits of 64 neighbouring slots in one cache line. They make a scan over slots 64 times
//! shorter.
//!
//! The slot's word decides; these bits only tell which slots are worth a look.
//!
//! | bits | set | cleared |
//! |---|---|---|
//! | `taken` | when the slot is no longer free | when it is free (structure lock, both) |
//! | `dirty` | after the word's flag (no lock). May be set for a table that is clean by now; never missing for a dirty table whose `mark_dirty` has returned | before the word's flag (structure lock) |
//! | `used` | by a load, and by a hit since the last cleaning pass | by the pass |
//! | `recent`, `frequent` | by a hit since the clock hand passed; by one more hit | by the hand: first `frequent`, then `recent`; and where use is forgotten, see `eviction` |
//! | `populated` | when the slot's memory may become resident | when it was released to the kernel (structure lock, both) |
//! | `probation` | when its table enters probation, see `eviction` | when the table leaves it (structure lock, both) |

use std::ops::Range;

use crate::primitives::{AtomicU64, Ordering};

/// Slots in a group.
pub const SLOTS: usize = 64;

/// See the module.
#[derive(Default)]
#[repr(align(64))]
pub struct Group {
    /// Not free.
    pub taken: AtomicU64,
    /// May be dirty.
    pub dirty: AtomicU64,
    /// Loaded or hit since the last cleaning pass.
    pub used: AtomicU64,
    /// Hit since the hand passed.
    pub recent: AtomicU64,
    /// Hit at least twice since the hand passed.
    pub frequent: AtomicU64,
    /// Memory may be resident.
    pub populated: AtomicU64,
    /// Holds a table on probation.
    pub probation: AtomicU64,
}

/// Group and bit of a slot.
#[inline]
pub fn place(slot: u32) -> (usize, u64) {
    (slot as usize / SLOTS, 1 << (slot as usize % SLOTS))
}

/// The `n` lowest bits; all of them if `n` is 64 or more.
#[inline]
pub fn below(n: usize) -> u64 {
    if n < SLOTS { (1 << n) - 1 } else { u64::MAX }
}

/// The bits of those slots in `range` that belong to `group`.
#[inline]
pub fn mask(group: usize, range: &Range<usize>) -> u64 {
    let first = group * SLOTS;
    below(range.end.saturating_sub(first)) & !below(range.start.saturating_sub(first))
}

/// The slots of the set bits, in ascending order.
pub fn slots(group: usize, mut bits: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let bit = bits.trailing_zeros();
        bits &= bits - 1;
        Some((group * SLOTS) as u32 + bit)
    })
}

/// The slots of the set bits as runs of neighbours, in ascending order.
pub fn runs(group: usize, mut bits: u64) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let start = bits.trailing_zeros() as usize;
        let end = start + (!(bits >> start)).trailing_zeros() as usize;
        bits &= !below(end);
        Some(group * SLOTS + start..group * SLOTS + end)
    })
}

/// Fills every aligned block of `block` bits that has at least one bit set. `block` is a power of
/// two, at most 64.
pub fn whole_blocks(bits: u64, block: usize) -> u64 {
    let mut folded = bits;
    let mut width = 1;
    while width < block {
        folded |= folded >> width;
        width *= 2;
    }
    // The lowest bit of each block now tells whether the block has a bit set. Multiplied by a block
    // of ones, it fills its block.
    let lowest = u64::MAX / below(block);
    (folded & lowest) * below(block)
}

/// Sets bits in a word whose bits others may change at the same time. Does a read-modify-write only
/// if a bit is missing.
#[inline]
fn set(word: &AtomicU64, bits: u64) {
    if word.load(Ordering::Relaxed) & bits != bits {
        word.fetch_or(bits, Ordering::Relaxed);
    }
}

/// Clears bits in a word whose bits others may change at the same time. Does a read-modify-write
/// only if a bit is set.
#[inline]
fn clear(word: &AtomicU64, bits: u64) {
    if word.load(Ordering::Relaxed) & bits != 0 {
        word.fetch_and(!bits, Ordering::Relaxed);
    }
}

/// Changes a word that changes only under the structure lock.
#[inline]
fn change_locked(word: &AtomicU64, to: impl FnOnce(u64) -> u64) {
    word.store(to(word.load(Ordering::Relaxed)), Ordering::Relaxed);
}

impl Group {
    /// Records a hit. Does a read-modify-write only if a bit is missing.
    #[inline]
    pub fn touch(&self, bit: u64) {
        if self.fully_touched() & bit == 0 {
            self.touch_slow(bit);
        }
    }

    /// Bits for which [`Group::touch`] has nothing to do.
    #[inline(always)]
    pub fn fully_touched(&self) -> u64 {
        // Relaxed: hints.
        self.frequent.load(Ordering::Relaxed) & self.used.load(Ordering::Relaxed)
    }

    #[cold]
    #[inline(never)]
    fn touch_slow(&self, bit: u64) {
        if self.used.load(Ordering::Relaxed) & bit == 0 {
            self.used.fetch_or(bit, Ordering::Relaxed);
        }
        if self.recent.load(Ordering::Relaxed) & bit == 0 {
            self.recent.fetch_or(bit, Ordering::Relaxed);
        } else if self.frequent.load(Ordering::Relaxed) & bit == 0 {
            self.frequent.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// The clock hand passes `bits`: each slot loses one degree of use.
    pub fn age(&self, bits: u64) {
        if self.recent.load(Ordering::Relaxed) & bits == 0 {
            return;
        }
        let frequent = self.frequent.fetch_and(!bits, Ordering::Relaxed);
        self.recent.fetch_and(frequent | !bits, Ordering::Relaxed);
    }

    /// Forgets every degree of use of `bits`.
    pub fn clear_use(&self, bits: u64) {
        clear(&self.recent, bits);
        clear(&self.frequent, bits);
    }

    /// Takes `bits` off probation, and forgets their use. Structure lock held.
    pub fn promote(&self, bits: u64) {
        change_locked(&self.probation, |word| word & !bits);
        self.clear_use(bits);
    }

    /// A table enters the slot: used since the last cleaning pass, but without a degree of use.
    /// Structure lock held.
    pub fn admit(&self, bit: u64, on_probation: bool) {
        let probation = if on_probation { bit } else { 0 };
        change_locked(&self.probation, |word| word & !bit | probation);
        set(&self.used, bit);
        self.clear_use(bit);
        // Nobody marks a table dirty that is not resident yet. So a bit that is set here is stale.
        clear(&self.dirty, bit);
        self.mark_taken(bit);
        change_locked(&self.populated, |word| word | bit);
    }

    /// Records that slots are not free. Structure lock held.
    pub fn mark_taken(&self, bits: u64) {
        change_locked(&self.taken, |word| word | bits);
    }

    /// Records that the slots' memory was released to the kernel. Structure lock held.
    pub fn release(&self, bits: u64) {
        change_locked(&self.populated, |word| word & !bits);
    }

    /// Records that the slots are free. Returns how many of their tables were on probation.
    /// Structure lock held.
    pub fn free(&self, bits: u64) -> usize {
        let on_probation = self.probation.load(Ordering::Relaxed) & bits;
        change_locked(&self.probation, |word| word & !bits);
        clear(&self.dirty, bits);
        change_locked(&self.taken, |word| word & !bits);
        on_probation.count_ones() as usize
    }

    /// Bits of slots that are taken and not dirty.
    pub fn clean(&self) -> u64 {
        self.taken.load(Ordering::Relaxed) & !self.dirty.load(Ordering::Relaxed)
    }

    /// Bits of slots that are taken and may be dirty.
    pub fn taken_and_dirty(&self) -> u64 {
        self.taken.load(Ordering::Relaxed) & self.dirty.load(Ordering::Relaxed)
    }

    /// Bits of free slots whose memory may be resident.
    pub fn releasable(&self) -> u64 {
        self.populated.load(Ordering::Relaxed) & !self.taken.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_clips_a_range_to_the_group() {
        assert_eq!(mask(0, &(0..64)), u64::MAX);
        assert_eq!(mask(0, &(0..3)), 0b111);
        assert_eq!(mask(0, &(2..4)), 0b1100);
        assert_eq!(mask(1, &(0..66)), 0b11);
        assert_eq!(mask(1, &(65..200)), u64::MAX - 1);
        assert_eq!(mask(2, &(0..66)), 0);
        assert_eq!(mask(0, &(70..80)), 0);
    }

    #[test]
    fn slots_yields_set_bits_in_ascending_order() {
        assert_eq!(slots(1, 0b1001).collect::<Vec<_>>(), [64, 67]);
        assert_eq!(slots(0, 0).next(), None);
    }

    #[test]
    fn runs_joins_neighbouring_bits() {
        let of = |group, bits| runs(group, bits).collect::<Vec<_>>();
        assert_eq!(of(1, 0b1_0110), [65..67, 68..69]);
        assert_eq!(of(0, u64::MAX), std::slice::from_ref(&(0..64)));
        assert_eq!(of(0, 1 | 1 << 63), [0..1, 63..64]);
        assert_eq!(of(3, 0), []);
    }

    #[test]
    fn whole_blocks_fills_each_block_with_a_set_bit() {
        assert_eq!(whole_blocks(0b1010_0000_0001, 4), 0b1111_0000_1111);
        for (block, bits) in [(1, 0x8001), (2, 0x5000), (16, 1 << 40), (64, 2), (8, 0)] {
            let expected = (0..64).filter(|bit| {
                let first = bit - bit % block;
                bits >> first & below(block) != 0
            });
            let expected = expected.fold(0, |all, bit| all | 1 << bit);
            assert_eq!(whole_blocks(bits, block), expected, "{bits:#x} in {block}s");
        }
    }

    #[test]
    fn age_takes_one_degree_of_use() {
        let group = Group::default();
        group.admit(1, false);
        group.touch(1);
        group.touch(1);
        group.touch(2);
        assert_eq!(group.frequent.load(Ordering::Relaxed), 1);
        group.age(3);
        assert_eq!(group.frequent.load(Ordering::Relaxed), 0);
        assert_eq!(group.recent.load(Ordering::Relaxed), 1);
        group.age(1);
        assert_eq!(group.recent.load(Ordering::Relaxed), 0);
    }
}
