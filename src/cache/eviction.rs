// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which slot to use next: a free one, else the table that the clock hand comes to first.
//!
//! The policy is a clock with two degrees of use. A hit sets `recent`, another one `frequent`; the hand takes one degree
//! from every table it passes and stops at a clean, unpinned one without any. Tables that are used once, as a
//! sequential scan does, go within a lap; tables that are used often stay for two more. The bits of 64 slots are looked at
//! together, so that a lap over n tables reads n / 64 words.

use std::ops::Range;

use super::{Cache, Counters, Inner, group};
use crate::primitives::Ordering;

/// Laps after which every table has lost every degree of use.
const LAPS: usize = 3;

impl Cache {
    /// A free slot of `range` for `offset`, now in state loading. Structure lock held.
    pub(super) fn take_free(
        &self,
        inner: &mut Inner,
        range: &Range<usize>,
        offset: u64,
    ) -> Option<u32> {
        let last = range.end.div_ceil(group::SLOTS);
        let first = (range.start / group::SLOTS).max(inner.free_hint);
        let mut all_taken = first <= inner.free_hint;
        for number in first..last {
            let bits = &self.groups[number];
            let slots = group::mask(number, &(0..self.slots.len()));
            let free = slots & !bits.taken.load(Ordering::Relaxed);
            if all_taken {
                inner.free_hint = number;
                all_taken = free == 0;
            }
            for slot in group::slots(number, free & group::mask(number, range)) {
                if self.slots[slot as usize].allocate(offset) {
                    bits.enter(group::place(slot).1);
                    return Some(slot);
                }
            }
        }
        None
    }

    /// The slot of a droppable table of `range`, now in state loading for `offset`; its table has left the index. Structure
    /// lock held.
    pub(super) fn take_droppable(
        &self,
        inner: &mut Inner,
        range: &Range<usize>,
        offset: u64,
    ) -> Option<u32> {
        let found = self.find_from_hand(
            inner.hand,
            range,
            |number, mask| self.groups[number].clean() & mask,
            |slot| self.evict(slot, offset),
        )?;
        inner.hand = found as usize + 1;
        self.groups[group::place(found).0].enter(group::place(found).1);
        Counters::add(&self.counters.evictions, 1);
        Some(found)
    }

    fn evict(&self, victim: u32, offset: u64) -> bool {
        let slot = &self.slots[victim as usize];
        let key = self.key_of(victim);
        let Some(before) = slot.evict_for(offset) else {
            return false;
        };
        // The slot has its new offset by now; entries are moved by the keys of the *other* slots alone.
        self.index.remove(key, victim, |s| self.key_of(s));
        Counters::add(&self.counters.hits, before.hits() as usize);
        true
    }

    /// An unpinned dirty table that nobody writes, for a write-back. (Or one that is only said to be dirty: writing it
    /// back is nothing, and it is droppable the next time.) Structure lock held.
    pub(super) fn find_dirty_victim(&self, inner: &mut Inner) -> Option<u32> {
        let found = self.find_dirty_of(inner.hand, &(0..self.slots.len()))?;
        inner.hand = found as usize + 1;
        Some(found)
    }

    fn find_dirty_of(&self, hand: usize, range: &Range<usize>) -> Option<u32> {
        self.find_from_hand(
            hand,
            range,
            |number, mask| self.groups[number].taken_and_dirty() & mask,
            |slot| self.is_dirty_victim(slot),
        )
    }

    fn is_dirty_victim(&self, number: u32) -> bool {
        let slot = &self.slots[number as usize];
        let word = slot.word();
        let unused = word.is_readable() && word.pins() == 0 && !word.is_writing();
        if unused && !word.is_dirty() {
            let is_dirty = || slot.is_dirty_in_order();
            self.dirty.settle(&self.groups, number, is_dirty);
        }
        unused
    }

    /// Walks the groups of `range` from the hand: the first slot among `candidates` without a degree of use that `take`
    /// takes. What the hand passes loses a degree. Ends when there were no candidates for a whole lap.
    fn find_from_hand(
        &self,
        hand: usize,
        range: &Range<usize>,
        candidates: impl Fn(usize, u64) -> u64,
        take: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        if range.is_empty() {
            return None;
        }
        let hand = if range.contains(&hand) {
            hand
        } else {
            range.start
        };
        let groups = range.start / group::SLOTS..range.end.div_ceil(group::SLOTS);
        let mut number = hand / group::SLOTS;
        let mut mask = group::mask(number, &(hand..range.end));
        let mut fruitless = 0;
        for _ in 0..=groups.len() * LAPS + groups.len() {
            let bits = &self.groups[number];
            let candidates = candidates(number, mask);
            let unused = candidates & !bits.recent.load(Ordering::Relaxed);
            let victim = group::slots(number, unused).find(|slot| take(*slot));
            bits.age(victim.map_or(candidates, |slot| candidates & (group::place(slot).1 - 1)));
            if victim.is_some() {
                return victim;
            }
            fruitless = if candidates == 0 { fruitless + 1 } else { 0 };
            if fruitless > groups.len() {
                return None;
            }
            number += 1;
            if number == groups.end {
                number = groups.start;
            }
            mask = group::mask(number, range);
        }
        // Pinned, or hits put degrees back as fast as the hand took them: at last, use does not count.
        groups
            .flat_map(|number| group::slots(number, candidates(number, group::mask(number, range))))
            .find(|slot| take(*slot))
    }
}
