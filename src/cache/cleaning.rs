// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaning: tables that nobody used since the previous pass go, and whole pages go back to the kernel.
//!
//! A pass has two halves, each of several steps. First, group by group under the structure lock, resident, clean, unpinned, unused tables are
//! dropped. Then free slots whose memory may be resident are taken out of circulation in runs, their pages given back without
//! any lock, and the slots returned. A hit never waits for a pass; a miss waits for what is done under one hold of the structure lock, some µs;
//! one that finds all other slots pinned or dirty waits for the slots that are being given back.

use std::ops::Range;

use super::slot::Word;
use super::{Cache, Counters, Inner, Wait, group};
use crate::cleaner::CleanTarget;
use crate::primitives::{Ordering, fence};

/// So many tables are dropped in one step of a pass, and the rest of the last 64: some µs.
const STEP: usize = 256;
/// So many groups are looked at in one: some µs, if nothing is there to drop.
const STEP_GROUPS: usize = 1024;
/// The most slots that are out of circulation at once while their memory is given back, besides half of all.
const MAX_BATCH: usize = 1024;
/// The most bytes that are given back in one call: it takes a quarter of a ms.
const MAX_BYTES: usize = 4 << 20;
/// So many groups are looked at while the structure lock is held, which takes about a µs.
const GROUPS_AT_ONCE: usize = 256;
/// So many bytes are given back in one call at least, whatever part of the cache they are: it takes some 20 µs.
const MIN_BYTES: usize = 256 << 10;

impl CleanTarget for Cache {
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>) {
        let mut cleaned = 0;
        let mut next = None;
        if self.check_poison().is_ok() {
            for number in from..self.groups.len() {
                if cleaned >= STEP || number - from == STEP_GROUPS {
                    next = Some(number);
                    break;
                }
                cleaned += self.clean_group(number);
            }
        }
        Counters::add(&self.counters.cleaned, cleaned);
        (cleaned, next)
    }

    fn release_memory(&self, from: usize) -> Option<usize> {
        self.check_poison().ok()?;
        let first = self.next_releasable(from)?;
        let unit = self.tables.slots_per_page();
        let least = unit.max(MIN_BYTES >> self.table_shift);
        let most = MAX_BATCH.min(MAX_BYTES >> self.table_shift).max(least);
        let batch = (self.slots.len() / 2).clamp(least, most);
        let (runs, next) = self.withdraw_runs(first, unit, batch);
        if runs.is_empty() {
            return Some(next);
        }
        let runs = WithdrawnRuns { cache: self, runs };
        // Release: the slots' words come before the zeros; pairs with the acquire fence in `read`.
        fence(Ordering::Release);
        self.tables.release(&runs.runs);
        Some(next)
    }

    fn poison(&self) {
        Cache::poison(self);
    }
}

impl Cache {
    /// A whole pass. Returns how many tables it dropped.
    pub fn clean_unused(&self) -> usize {
        let (mut cleaned, mut next) = (0, Some(0));
        while let Some(from) = next {
            let (dropped, further) = self.drop_unused(from);
            cleaned += dropped;
            next = further;
        }
        next = Some(0);
        while let Some(from) = next {
            next = self.release_memory(from);
        }
        cleaned
    }

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
        if self.wants_prefetch() {
            // All on their way at once, in place of one wait after the other.
            group::slots(number, unused).for_each(|slot| self.index.prefetch(self.offset_of(slot)));
        }
        let (mut dropped, mut hits) = (0, 0);
        for slot in group::slots(number, unused) {
            if let Some(before) = self.drop_table(&mut inner, slot) {
                dropped |= group::place(slot).1;
                hits += before.hits() as usize;
            }
        }
        if dropped != 0 {
            self.mark_group_free(&mut inner, number, dropped);
            Counters::add(&self.counters.hits, hits);
        }
        self.inner.yield_to_waiters(inner);
        dropped.count_ones() as usize
    }

    /// Drops the table of a slot if it is resident, clean and unpinned: the slot is free then. Structure lock held.
    pub(super) fn drop_slot(&self, inner: &mut Inner, number: u32) -> bool {
        let dropped = self.drop_table(inner, number);
        if let Some(before) = dropped {
            self.mark_free(inner, number);
            Counters::add(&self.counters.hits, before.hits() as usize);
        }
        dropped.is_some()
    }

    /// As [`Cache::drop_slot`], but for the bookkeeping; the word before.
    fn drop_table(&self, inner: &mut Inner, number: u32) -> Option<Word> {
        let slot = self.slot(number);
        if !slot.word().is_droppable() {
            return None;
        }
        crate::test_delay::point("clean-chosen");
        let before = slot.drop_clean()?;
        self.remove_from_index(inner, number);
        Some(before)
    }

    /// The first free slot from `from` on whose memory may be resident. No lock: a hint.
    fn next_releasable(&self, from: usize) -> Option<usize> {
        (from / group::SLOTS..self.groups.len()).find_map(|number| {
            let stale =
                self.groups[number].releasable() & group::mask(number, &(from..self.slots.len()));
            group::slots(number, stale).next().map(|slot| slot as usize)
        })
    }

    /// Takes free slots from `first` on out of circulation, in whole pages of `unit` slots, no more than `batch` at once (and no less than a
    /// page), and of a few groups alone; returns them as runs of neighbours, and where to go on.
    fn withdraw_runs(&self, first: usize, unit: usize, batch: usize) -> (Vec<Range<usize>>, usize) {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let (mut taken, mut at) = (0, first - first % unit);
        // A page of 64 KiB holds 128 tables of 512 bytes: two groups.
        let step = unit.div_ceil(group::SLOTS);
        let end = (at + GROUPS_AT_ONCE * group::SLOTS).min(self.slots.len());
        let mut inner = self.lock_inner();
        while at < end && taken + unit <= batch {
            let number = at / group::SLOTS;
            let groups = number..(number + step).min(self.groups.len());
            let mut pages =
                self.free_pages(groups.clone(), unit) & !group::below(at % group::SLOTS);
            at = groups.end * group::SLOTS;
            while step == 1 && pages.count_ones() as usize > batch - taken {
                let last = pages.ilog2() as usize;
                pages &= group::below(last - last % unit);
                at = number * group::SLOTS + last - last % unit;
            }
            for number in groups {
                let bits = pages & group::mask(number, &(0..self.slots.len()));
                let bits = self.withdraw(&mut inner, number, bits);
                group::runs(number, bits).for_each(|run| join(&mut runs, run));
                taken += bits.count_ones() as usize;
            }
        }
        (runs, at)
    }

    /// The pages in these groups, whole ones, of which no slot is taken and whose memory may be resident: their slots' bits, the same in each
    /// group if there are several.
    fn free_pages(&self, groups: Range<usize>, unit: usize) -> u64 {
        let block = unit.min(group::SLOTS);
        let (mut stale, mut taken) = (0, 0);
        for bits in &self.groups[groups] {
            stale |= bits.releasable();
            taken |= bits.taken.load(Ordering::Relaxed);
        }
        group::whole_blocks(stale, block) & !group::whole_blocks(taken, block)
    }

    /// Free slots of a group go out of circulation. Returns which did: all of them. Structure lock held.
    fn withdraw(&self, inner: &mut Inner, number: usize, free: u64) -> u64 {
        let mut bits = 0;
        for slot in group::slots(number, free) {
            let begun = self.slot(slot).begin_release();
            debug_assert!(begun, "a slot that is not taken is free");
            bits |= if begun { group::place(slot).1 } else { 0 };
        }
        self.groups[number].mark_taken(bits);
        inner.releasing += bits.count_ones() as usize;
        bits
    }

    fn return_runs(&self, runs: &[Range<usize>]) {
        let wakes = {
            let mut inner = self.lock_inner();
            for run in runs {
                for number in run.start / group::SLOTS..run.end.div_ceil(group::SLOTS) {
                    let bits = group::mask(number, run);
                    group::slots(number, bits).for_each(|slot| self.slot(slot).end_release());
                    self.groups[number].release(bits);
                    self.mark_group_free(&mut inner, number, bits);
                }
                inner.releasing -= run.len();
            }
            inner.waiters.notify(|wait| *wait == Wait::Any)
        };
        wakes.wake();
    }
}

/// Runs of slots that are out of circulation; its drop returns them.
struct WithdrawnRuns<'a> {
    cache: &'a Cache,
    runs: Vec<Range<usize>>,
}

impl Drop for WithdrawnRuns<'_> {
    fn drop(&mut self) {
        self.cache.return_runs(&self.runs);
    }
}

/// Adds a run behind the others.
fn join(runs: &mut Vec<Range<usize>>, run: Range<usize>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::cache::CacheOptions;
    use crate::error::Errno;
    use crate::host::block_on;
    use crate::host::threads::ThreadHost;
    use crate::storage::{IoBuf, Storage};

    /// Nothing but zeros; counts what is written.
    #[derive(Default)]
    struct Zeros(AtomicUsize);

    impl Storage for Zeros {
        fn preadv(&self, _: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
            bufs.iter()
                .for_each(|buf| buf.fill_from(&vec![0; buf.len()]));
            Ok(())
        }

        fn pwritev(&self, _: u64, _: &[IoBuf]) -> Result<(), Errno> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn flush(&self) -> Result<(), Errno> {
            Ok(())
        }
    }

    fn cache(tables: usize, storage: &Arc<Zeros>) -> Arc<Cache> {
        let options = CacheOptions {
            tables,
            table_size: 512,
            kind: 0,
            reserved: 0,
        };
        Cache::new(&options, storage.clone(), ThreadHost::shared()).unwrap()
    }

    /// A cache whose slots were all used; a table stays in each slot whose number `kept` divides.
    fn dropped_but(tables: usize, kept: usize) -> Arc<Cache> {
        let cache = cache(tables, &Arc::default());
        let get = |n: usize| block_on(cache.host(), &[], cache.get((n as u64 + 1) * 512)).unwrap();
        // In an empty cache, tables go to the slots in order.
        let pins: Vec<_> = (0..tables).map(get).collect();
        assert!(pins.iter().zip(0..).all(|(pin, slot)| pin.slot == slot));
        let keep: Vec<_> = (pins.into_iter().zip(0..))
            .filter(|(_, slot)| slot % kept == 0)
            .collect();
        // The first pass takes the marks of use.
        for _ in 0..2 {
            let mut next = Some(0);
            while let Some(from) = next {
                next = cache.drop_unused(from).1;
            }
        }
        assert_eq!(cache.stats().resident_tables, keep.len());
        drop(keep);
        cache
    }

    /// Everything that is stale and in a page without a table goes out of circulation once, in whole pages and no more than so many at a time,
    /// and comes back. Pages of 512 B (a table) to 64 KiB (two groups), whatever this machine's are.
    #[test]
    fn whole_free_pages_go_out_of_circulation_once() {
        for (tables, kept) in [
            (300, 300),
            (300, 37),
            (64, 64),
            (7, 7),
            (129, 2),
            (1000, 200),
        ] {
            for unit in [1, 8, 32, 64, 128] {
                for batch in [unit, unit * 3, 1024] {
                    let cache = dropped_but(tables, kept);
                    let mut given = vec![false; tables];
                    let mut from = 0;
                    while from < tables {
                        let (runs, next) = cache.withdraw_runs(from, unit, batch);
                        let taken: usize = runs.iter().map(Range::len).sum();
                        assert!(taken <= batch.max(unit) && next > from);
                        for run in &runs {
                            assert!(run.start % unit == 0);
                            assert!(run.end % unit == 0 || run.end == tables);
                            run.clone().for_each(|slot| {
                                assert!(!std::mem::replace(&mut given[slot], true));
                            });
                        }
                        assert_eq!(cache.lock_inner().releasing, taken);
                        cache.return_runs(&runs);
                        from = next;
                    }
                    let in_a_kept_page = |slot: usize| {
                        let page = slot - slot % unit..(slot - slot % unit + unit).min(tables);
                        page.clone().any(|slot| slot % kept == 0)
                    };
                    let expected: Vec<_> = (0..tables).map(|slot| !in_a_kept_page(slot)).collect();
                    assert_eq!(
                        given, expected,
                        "{tables} slots, pages of {unit}, {batch} at once"
                    );
                    assert_eq!(cache.lock_inner().releasing, 0);
                }
            }
        }
    }

    #[test]
    fn nothing_is_written_back_while_slots_are_about_to_be_free() {
        let storage = Arc::default();
        let cache = cache(8, &storage);
        let dirty = block_on(cache.host(), &[], cache.get(512)).unwrap();
        dirty.mark_dirty().unwrap();
        drop(dirty);
        // As if the others had been given back just now.
        cache.groups[0].populated.store(0xFF, Ordering::Relaxed);
        let (runs, _) = cache.withdraw_runs(0, 1, 8);
        assert_eq!(cache.lock_inner().releasing, 7);
        std::thread::scope(|scope| {
            let get = scope.spawn(|| block_on(cache.host(), &[], cache.get(1024)).is_ok());
            while cache.lock_inner().waiters.is_empty() && !get.is_finished() {
                std::thread::yield_now();
            }
            cache.return_runs(&runs);
            assert!(get.join().unwrap());
        });
        assert_eq!(storage.0.load(Ordering::Relaxed), 0);
        assert_eq!(cache.stats().dirty_tables, 1);
    }
}
