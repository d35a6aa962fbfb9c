// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which slot to use next: a free one, else that of a table which a clock hand selects.
//!
//! The policy has the shape of S3-FIFO (Yang and others, SOSP 2023), built from bits and two hands:
//!
//! | a table that | enters | is evicted |
//! |---|---|---|
//! | finds a free slot, or is known to the ghosts | the main part | when the main hand finds it without a degree of use |
//! | is loaded otherwise | probation | when the probation hand finds it without a degree of use |
//!
//! A hit gives a table a first degree of use (`recent`), another hit a second one (`frequent`). The
//! main hand takes one degree from every table that it passes. The probation hand moves a table
//! that has one to the main part. The ghosts remember a table for a while after its eviction from
//! probation.
//!
//! The victim comes from probation if a quarter of all slots or more hold a table on probation,
//! else from the main part. If that part has no victim, it comes from the other one.
//!
//! A table is young until as many others as a tenth of the slots have entered probation after it.
//! Hits during its youth are forgotten when the youth ends: requests ask for a table in bursts, one
//! for each cluster that they touch, and a burst says nothing about later use.
//!
//! A sequential scan therefore passes through a quarter of the cache only. Small caches have no
//! probation: they are a plain clock. The bits of 64 slots are looked at together, so that a lap
//! over n tables reads n / 64 groups.

use std::ops::Range;

use super::arena::{Arena, Zeroed, array_bytes};
use super::group::{self, Group};
use super::{Cache, Counters, Inner};
use crate::primitives::{AtomicU32, Ordering};

/// After this many laps of the hand, a table has lost every degree of use if nothing hit it again.
const LAPS: usize = 3;
/// Probation's share: one slot of this many.
const PROBATION: usize = 4;
/// The young tables' share: one slot of this many.
const YOUNG: usize = 10;
/// Caches with fewer slots have no probation: it would be too short to tell anything.
const PROBATION_FROM: usize = 32;

/// The slots that entered probation last. Their tables are young.
pub(super) struct RecentArrivals {
    /// A ring. Each entry is slot + 1, or 0 while unused.
    slots: Zeroed<AtomicU32>,
    oldest: usize,
}

impl RecentArrivals {
    /// For a cache of `slots` slots.
    pub(super) fn new(arena: &mut Arena, slots: usize) -> Self {
        let slots = arena.zeroed(Self::capacity(slots));
        Self { slots, oldest: 0 }
    }

    const fn capacity(slots: usize) -> usize {
        if slots < PROBATION_FROM {
            0
        } else {
            slots / YOUNG
        }
    }

    /// What it takes of the arena, in bytes, in a cache of `slots` slots.
    pub(super) const fn bytes(slots: usize) -> usize {
        array_bytes::<AtomicU32>(Self::capacity(slots))
    }

    /// Begins the youth of a slot. Returns the slot whose youth ends, if any.
    fn begin(&mut self, slot: u32) -> Option<u32> {
        let place = self.slots.get(self.oldest)?;
        let oldest = place.load(Ordering::Relaxed);
        place.store(slot + 1, Ordering::Relaxed);
        self.oldest += 1;
        if self.oldest == self.slots.len() {
            self.oldest = 0;
        }
        oldest.checked_sub(1)
    }
}

impl Cache {
    /// A free slot of `range` for `offset`, now in state loading. Structure lock held.
    pub(super) fn allocate_free(
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
                all_taken = free == 0;
                inner.free_hint = if all_taken { number + 1 } else { number };
            }
            for slot in group::slots(number, free & group::mask(number, range)) {
                if self.slots[slot as usize].allocate(offset) {
                    if number >= self.touched_groups().end {
                        // Release, for those who look without the structure lock.
                        self.touched.store(number as u64 + 1, Ordering::Release);
                    }
                    bits.admit(group::place(slot).1, false);
                    return Some(slot);
                }
            }
        }
        None
    }

    /// Evicts a droppable table of `range`. Returns its slot, now in state loading for `offset`;
    /// the evicted table has left the index. Structure lock held.
    pub(super) fn allocate_by_eviction(
        &self,
        inner: &mut Inner,
        range: &Range<usize>,
        offset: u64,
    ) -> Option<u32> {
        let quota = self.slots.len() / PROBATION;
        let found = if inner.probation >= quota {
            self.evict_from_probation(inner, range, offset)
                .or_else(|| self.evict_from_main(inner, range, offset))
        } else {
            self.evict_from_main(inner, range, offset)
                .or_else(|| self.evict_from_probation(inner, range, offset))
        }?;
        let on_probation =
            self.slots.len() >= PROBATION_FROM && !self.ghosts.contains(offset >> self.table_shift);
        let (group, bit) = group::place(found);
        self.groups[group].admit(bit, on_probation);
        if on_probation {
            inner.probation += 1;
            self.admit_to_probation(inner, found);
        }
        Counters::increment_locked(&self.counters.evictions);
        Some(found)
    }

    /// Begins the youth of `entered`. The youth of the oldest young table ends, and its hits until
    /// now are forgotten.
    fn admit_to_probation(&self, inner: &mut Inner, entered: u32) {
        let Some(slot) = inner.recent_arrivals.begin(entered) else {
            return;
        };
        let (group, bit) = group::place(slot);
        let group = &self.groups[group];
        // The slot may hold another table by now. Then that table's youth ends early, which costs
        // little.
        group.clear_use(bit & group.probation.load(Ordering::Relaxed));
    }

    fn evict_from_main(&self, inner: &mut Inner, range: &Range<usize>, offset: u64) -> Option<u32> {
        let clean = |bits: &Group| bits.clean() & !bits.probation.load(Ordering::Relaxed);
        let evict = |slot| self.evict(slot, offset);
        let found = self.scan_from_hand(inner.hand, range, clean, evict, Group::age)?;
        inner.hand = found as usize + 1;
        self.prefetch_after(found, clean);
        Some(found)
    }

    fn evict_from_probation(
        &self,
        inner: &mut Inner,
        range: &Range<usize>,
        offset: u64,
    ) -> Option<u32> {
        let clean = |bits: &Group| bits.clean() & bits.probation.load(Ordering::Relaxed);
        let mut evicted_offset = 0;
        let evict = |slot| {
            evicted_offset = self.offset_of(slot);
            self.evict(slot, offset)
        };
        let mut promoted = 0;
        let promote = |group: &Group, bits: u64| {
            group.promote(bits);
            promoted += bits.count_ones() as usize;
        };
        let found = self.scan_from_hand(inner.probation_hand, range, clean, evict, promote);
        inner.probation -= promoted;
        let found = found?;
        inner.probation_hand = found as usize + 1;
        inner.probation -= 1;
        self.ghosts.insert(evicted_offset >> self.table_shift);
        self.prefetch_after(found, clean);
        Some(found)
    }

    /// The next victim is probably the next of `candidates` in this group: prefetches what its
    /// eviction will change.
    fn prefetch_after(&self, victim: u32, candidates: impl Fn(&Group) -> u64) {
        if !self.wants_prefetch() {
            return;
        }
        let (number, bit) = group::place(victim);
        let higher_bits = !(bit | (bit - 1));
        let next = group::slots(number, candidates(&self.groups[number]) & higher_bits).next();
        if let Some(slot) = next {
            let offset = self.offset_of(slot);
            self.index.prefetch(offset);
            self.ghosts.prefetch(offset >> self.table_shift);
        }
    }

    fn evict(&self, victim: u32, offset: u64) -> bool {
        let slot = &self.slots[victim as usize];
        let old = self.offset_of(victim);
        let Some(before) = slot.evict_for(offset) else {
            return false;
        };
        // The slot has its new offset by now. That does no harm: the index asks for the offsets of
        // *other* slots only.
        self.index.remove(old, victim, |s| self.offset_of(s));
        Counters::add(&self.counters.hits, before.hits() as usize);
        true
    }

    /// An unpinned dirty table that nobody is writing, for a write-back. It may turn out to be
    /// clean although its `dirty` bit was set; then the write-back writes nothing, and the table is
    /// droppable the next time. Structure lock held.
    pub(super) fn find_dirty_victim(&self, inner: &mut Inner) -> Option<u32> {
        let found = self.find_dirty_in(inner.hand, &(0..self.slots.len()))?;
        inner.hand = found as usize + 1;
        Some(found)
    }

    fn find_dirty_in(&self, hand: usize, range: &Range<usize>) -> Option<u32> {
        let is_victim = |slot| self.is_dirty_victim(slot);
        self.scan_from_hand(hand, range, Group::taken_and_dirty, is_victim, Group::age)
    }

    fn is_dirty_victim(&self, number: u32) -> bool {
        let slot = &self.slots[number as usize];
        let word = slot.word();
        let unused = word.is_readable() && word.pins() == 0 && !word.is_writing();
        if unused && !word.is_dirty() {
            let is_dirty = || slot.is_dirty_seq_cst();
            self.dirty.clear_stale(&self.groups, number, is_dirty);
        }
        unused
    }

    /// Walks the groups of `range` from the hand on. Returns the first slot of `candidates` that
    /// has no degree of use and that `take` accepts. Calls `pass` for the candidates with a degree
    /// of use that the hand passes. Ends when a whole lap had no candidates.
    fn scan_from_hand(
        &self,
        hand: usize,
        range: &Range<usize>,
        candidates: impl Fn(&Group) -> u64,
        mut take: impl FnMut(u32) -> bool,
        mut pass: impl FnMut(&Group, u64),
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
        let mut empty_groups = 0;
        for _ in 0..=groups.len() * LAPS + groups.len() {
            let bits = &self.groups[number];
            let candidates = candidates(bits) & mask;
            let recent = candidates & bits.recent.load(Ordering::Relaxed);
            let victim = group::slots(number, candidates & !recent).find(|slot| take(*slot));
            let passed = victim.map_or(recent, |slot| recent & (group::place(slot).1 - 1));
            if passed != 0 {
                pass(bits, passed);
            }
            if victim.is_some() {
                return victim;
            }
            empty_groups = if candidates == 0 { empty_groups + 1 } else { 0 };
            if empty_groups > groups.len() {
                return None;
            }
            number += 1;
            if number == groups.end {
                number = groups.start;
            }
            mask = group::mask(number, range);
        }
        // The candidates are pinned, or hits set degrees of use as fast as the hand takes them. Now
        // ignore use.
        let all = |number| candidates(&self.groups[number]) & group::mask(number, range);
        groups
            .flat_map(|number| group::slots(number, all(number)))
            .find(|slot| take(*slot))
    }
}
