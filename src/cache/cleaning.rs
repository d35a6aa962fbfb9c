// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaning: tables that nobody used since the previous pass go, and whole pages go back to the kernel.
//!
//! A pass has two halves. First, group by group under the structure lock, resident, clean, unpinned, unused tables are
//! dropped. Then free slots whose memory may be resident are taken out of circulation in runs, their pages given back without
//! any lock, and the slots returned. A hit never waits for a pass; a miss waits for one group at most.

use std::ops::Range;

use super::{Cache, Counters, Inner, Wait, group};
use crate::cleaner::CleanTarget;
use crate::primitives::{Ordering, fence};

/// The most slots that are out of circulation at once while their memory is given back, besides a quarter of all.
const MAX_BATCH: usize = 1024;

impl CleanTarget for Cache {
    fn clean_unused(&self) -> usize {
        if self.check_poison().is_err() {
            return 0;
        }
        let cleaned = (0..self.groups.len())
            .map(|number| self.clean_group(number))
            .sum();
        Counters::add(&self.counters.cleaned, cleaned);
        self.release_free();
        cleaned
    }

    fn poison(&self) {
        Cache::poison(self);
    }
}

impl Cache {
    /// Drops the group's unused tables; starts the next interval of use.
    fn clean_group(&self, number: usize) -> usize {
        let bits = &self.groups[number];
        let used = bits.used.load(Ordering::Relaxed);
        if used != 0 {
            // A hit in between is lost as a hint; the pin protects the table, not the hint.
            bits.used.store(0, Ordering::Relaxed);
        }
        if bits.clean() & !used == 0 {
            return 0;
        }
        let mut inner = self.lock_inner();
        let unused = bits.clean() & !used;
        // All on their way at once, in place of one wait after the other.
        group::slots(number, unused).for_each(|slot| self.index.prefetch(self.offset_of(slot)));
        let mut dropped = 0;
        for slot in group::slots(number, unused) {
            if self.drop_table(&mut inner, slot) {
                dropped |= group::place(slot).1;
            }
        }
        if dropped != 0 {
            self.all_freed(&mut inner, number, dropped);
        }
        dropped.count_ones() as usize
    }

    /// Drops the table of a slot if it is resident, clean and unpinned: the slot is free then. Structure lock held.
    pub(super) fn drop_slot(&self, inner: &mut Inner, number: u32) -> bool {
        let dropped = self.drop_table(inner, number);
        if dropped {
            self.freed(inner, number);
        }
        dropped
    }

    /// As [`Cache::drop_slot`], but for the group's bookkeeping.
    fn drop_table(&self, inner: &mut Inner, number: u32) -> bool {
        let slot = self.slot(number);
        if !slot.word().is_droppable() {
            return false;
        }
        crate::delay::point("clean-chosen");
        #[cfg(feature = "unsound-no-pin-recheck")]
        let dropped = slot.drop_unchecked();
        #[cfg(not(feature = "unsound-no-pin-recheck"))]
        let dropped = slot.drop_clean();
        let Some(before) = dropped else {
            return false;
        };
        self.unindex(inner, number);
        Counters::add(&self.counters.hits, before.hits() as usize);
        true
    }

    /// Gives the memory of free slots back, a batch of runs at a time.
    fn release_free(&self) {
        let unit = self.tables.slots_per_page();
        let batch = (self.slots.len() / 4).clamp(unit, MAX_BATCH.max(unit));
        let mut from = 0;
        while let Some(first) = self.next_stale(from) {
            let (runs, next) = self.take_runs(first, unit, batch);
            let runs = Released { cache: self, runs };
            // Release: the slots' words come before the zeros; pairs with the acquire fence in `read`.
            fence(Ordering::Release);
            self.tables.release(&runs.runs);
            drop(runs);
            from = next;
        }
    }

    /// The first free slot from `from` on whose memory may be resident. No lock: a hint.
    fn next_stale(&self, from: usize) -> Option<usize> {
        (from / group::SLOTS..self.groups.len()).find_map(|number| {
            let stale =
                self.groups[number].stale() & group::mask(number, &(from..self.slots.len()));
            group::slots(number, stale).next().map(|slot| slot as usize)
        })
    }

    /// Takes up to `batch` free slots from `first` on out of circulation, whole pages alone; returns them as runs of
    /// neighbours, and where to go on.
    fn take_runs(&self, first: usize, unit: usize, batch: usize) -> (Vec<Range<usize>>, usize) {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut taken = 0;
        let mut at = first - first % unit;
        let mut inner = self.lock_inner();
        while taken < batch {
            let Some(stale) = self.next_stale(at) else {
                at = self.slots.len();
                break;
            };
            let page = stale - stale % unit..(stale - stale % unit + unit).min(self.slots.len());
            at = page.end;
            if !self.take_page(&mut inner, &page) {
                continue;
            }
            taken += page.len();
            match runs.last_mut() {
                Some(run) if run.end == page.start => run.end = page.end,
                _ => runs.push(page),
            }
        }
        (runs, at)
    }

    fn take_page(&self, inner: &mut Inner, page: &Range<usize>) -> bool {
        // A page of 64 KiB holds 128 tables of 512 bytes: two groups.
        let groups = page.start / group::SLOTS..page.end.div_ceil(group::SLOTS);
        let is_taken = |number: usize| {
            let taken = self.groups[number].taken.load(Ordering::Relaxed);
            taken & group::mask(number, page) != 0
        };
        if groups.clone().any(is_taken) {
            return false;
        }
        for slot in page.clone() {
            let begun = self.slots[slot].begin_release();
            debug_assert!(begun, "a slot that is not taken is free");
        }
        for number in groups {
            let bits = group::mask(number, page);
            self.groups[number].take(bits);
        }
        inner.releasing += page.len();
        true
    }

    fn return_runs(&self, runs: &[Range<usize>]) {
        let wakes = {
            let mut inner = self.lock_inner();
            for run in runs {
                for number in run.start / group::SLOTS..run.end.div_ceil(group::SLOTS) {
                    let bits = group::mask(number, run);
                    group::slots(number, bits).for_each(|slot| self.slot(slot).end_release());
                    self.groups[number].release(bits);
                    self.all_freed(&mut inner, number, bits);
                }
                inner.releasing -= run.len();
            }
            inner.waiters.notify(|wait| *wait == Wait::Any)
        };
        wakes.wake();
    }
}

/// Runs of slots that are out of circulation; its drop returns them.
struct Released<'a> {
    cache: &'a Cache,
    runs: Vec<Range<usize>>,
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.cache.return_runs(&self.runs);
    }
}
