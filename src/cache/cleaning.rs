// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaning: drops tables that nobody used since the previous pass, and returns whole pages of
//! memory to the kernel.
//!
//! A pass has two halves, each of several steps. The first half drops the tables that are resident,
//! clean, unpinned and unused, one group after the other, under the structure lock. The second half
//! looks for free slots whose memory may be resident. It takes them out of circulation in runs of
//! whole pages, returns the pages to the kernel without holding any lock, and then puts the slots
//! back.
//!
//! A hit never waits for a pass. A miss waits no longer than one hold of the structure lock, some
//! µs. If every other slot is pinned or dirty, a miss whose caller holds the state lock waits for
//! the slots that are out of circulation.

use std::ops::Range;
use std::sync::Weak;

use super::slot::Word;
use super::{Cache, Counters, Inner, group};
use crate::cleaner::CleanTarget;
use crate::primitives::{Ordering, fence};

/// A step of a pass ends after the group in which its count of dropped tables reaches this number:
/// at most 63 tables more. It takes some µs.
const STEP: usize = 256;
/// A step looks at no more groups than this. It takes some µs if there is nothing to drop.
const STEP_GROUPS: usize = 1024;
/// At most this many slots are out of circulation while their memory is released, and at most half
/// of all slots. [`MIN_BYTES`] takes precedence over the half.
const MAX_BATCH: usize = 1024;
/// At most this many bytes are released in one call, which takes a quarter of a ms.
const MAX_BYTES: usize = 4 << 20;
/// At most this many groups are looked at under one hold of the structure lock: about a µs.
const GROUPS_AT_ONCE: usize = 256;
/// The limit for one call is never lower than this number of bytes, however large a part of the
/// cache that is. Releasing them takes about 20 µs.
const MIN_BYTES: usize = 256 << 10;

impl CleanTarget for Cache {
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>) {
        let mut cleaned = 0;
        let mut next = None;
        if self.check_poison().is_ok() {
            for number in from..self.touched_groups().end {
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
        // Release: the slots' words come before the zeros that a released page reads as. Pairs with
        // the acquire fence in `read`.
        fence(Ordering::Release);
        self.tables.release(&runs.runs);
        Some(next)
    }

    fn poison(&self) {
        Cache::poison(self);
    }
}

/// A cache that may be destroyed while a cleaner knows it. There is nothing to clean then. A step
/// that runs keeps it alive; its memory is freed when the step ends.
impl CleanTarget for Weak<Cache> {
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>) {
        let cache = self.upgrade();
        cache.map_or((0, None), |cache| cache.drop_unused(from))
    }

    fn release_memory(&self, from: usize) -> Option<usize> {
        self.upgrade()?.release_memory(from)
    }

    fn poison(&self) {
        if let Some(cache) = self.upgrade() {
            cache.poison();
        }
    }
}

impl Cache {
    /// Makes a whole pass. Returns how many tables it dropped.
    pub fn clean_unused(&self) -> usize {
        let (mut cleaned, mut next) = (0, Some(0));
        while let Some(from) = next {
            let (dropped, position) = self.drop_unused(from);
            cleaned += dropped;
            next = position;
        }
        next = Some(0);
        while let Some(from) = next {
            next = self.release_memory(from);
        }
        cleaned
    }

    /// Drops the unused tables of a group, and starts its next interval of use. Returns how many it
    /// dropped.
    fn clean_group(&self, number: usize) -> usize {
        let bits = &self.groups[number];
        let used = bits.used.load(Ordering::Relaxed);
        if used != 0 {
            // A hit between the load and this store is lost as a hint. That does no harm: the pin
            // protects the table, not the hint.
            bits.used.store(0, Ordering::Relaxed);
        }
        if bits.clean() & !used == 0 {
            return 0;
        }
        let mut inner = self.lock_inner();
        let unused = bits.clean() & !used;
        if self.wants_prefetch() {
            // Prefetch all buckets first, so that their cache misses overlap.
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

    /// Drops the table of a slot if it is resident, clean and unpinned. The caller marks the slot
    /// free and counts its hits. Returns the slot's word from before the drop. Structure lock held.
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

    /// The first free slot, from `from` on, whose memory may be resident. Takes no lock, so the
    /// result is a hint.
    fn next_releasable(&self, from: usize) -> Option<usize> {
        (from / group::SLOTS..self.touched_groups().end).find_map(|number| {
            let stale =
                self.groups[number].releasable() & group::mask(number, &(from..self.slots.len()));
            group::slots(number, stale).next().map(|slot| slot as usize)
        })
    }

    /// Takes free slots out of circulation, from `first` on, in whole pages of `unit` slots. Takes
    /// at most `batch` slots, which must be at least one page, and looks at no more than
    /// [`GROUPS_AT_ONCE`] groups. Returns the slots as runs of neighbours, and the position to
    /// continue from.
    fn withdraw_runs(&self, first: usize, unit: usize, batch: usize) -> (Vec<Range<usize>>, usize) {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let (mut taken, mut at) = (0, first - first % unit);
        // A page of 64 KiB holds 128 tables of 512 bytes, which is two groups.
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

    /// The slots' bits of every page in `groups` that has no taken slot and at least one slot whose
    /// memory may be resident. A page that spans several groups has the same bits in each of them.
    fn free_pages(&self, groups: Range<usize>, unit: usize) -> u64 {
        let block = unit.min(group::SLOTS);
        let (mut stale, mut taken) = (0, 0);
        for bits in &self.groups[groups] {
            stale |= bits.releasable();
            taken |= bits.taken.load(Ordering::Relaxed);
        }
        group::whole_blocks(stale, block) & !group::whole_blocks(taken, block)
    }

    /// Takes the free slots `free` of a group out of circulation. Returns the bits of those that it
    /// took, which is all of them. Structure lock held.
    fn withdraw(&self, inner: &mut Inner, number: usize, free: u64) -> u64 {
        let mut bits = 0;
        for slot in group::slots(number, free) {
            let begun = self.slot(slot).begin_release();
            debug_assert!(begun, "a slot without its `taken` bit was not free");
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
            inner.waiters.any.notify_one()
        };
        wakes.wake();
    }
}

/// Runs of slots that are out of circulation. Dropping this value returns them.
struct WithdrawnRuns<'a> {
    cache: &'a Cache,
    runs: Vec<Range<usize>>,
}

impl Drop for WithdrawnRuns<'_> {
    fn drop(&mut self) {
        self.cache.return_runs(&self.runs);
    }
}

/// Appends a run, and joins it to the last one if the two are neighbours.
fn join(runs: &mut Vec<Range<usize>>, run: Range<usize>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;
    use crate::cache::CacheOptions;
    use crate::error::Errno;
    use crate::host::block_on;
    use crate::host::threads::ThreadHost;
    use crate::storage::{IoBuf, Storage};

    /// Storage that reads as zeros and counts the writes.
    #[derive(Default)]
    struct Zeros(AtomicUsize);

    impl Storage for Zeros {
        fn preadv(&self, _: i32, _: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
            bufs.iter()
                .for_each(|buf| buf.fill_from(&vec![0; buf.len()]));
            Ok(())
        }

        fn pwritev(&self, _: i32, _: u64, _: &[IoBuf]) -> Result<(), Errno> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }

        fn flush(&self) -> Result<(), Errno> {
            Ok(())
        }
    }

    /// Records that its waker was called.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
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

    /// A cache whose slots were all used. Afterwards a table is left in every slot whose number is
    /// a multiple of `kept_every`; the others were dropped.
    fn cache_with_dropped_tables(tables: usize, kept_every: usize) -> Arc<Cache> {
        let cache = cache(tables, &Arc::default());
        let get = |n: usize| block_on(cache.host(), &[], cache.get((n as u64 + 1) * 512)).unwrap();
        // An empty cache fills its slots in order.
        let pins: Vec<_> = (0..tables).map(get).collect();
        assert!(pins.iter().zip(0..).all(|(pin, slot)| pin.slot == slot));
        let remaining: Vec<_> = (pins.into_iter().zip(0..))
            .filter(|(_, slot)| slot % kept_every == 0)
            .collect();
        // The first pass only clears the `used` bits.
        for _ in 0..2 {
            let mut next = Some(0);
            while let Some(from) = next {
                next = cache.drop_unused(from).1;
            }
        }
        assert_eq!(cache.stats().resident_tables, remaining.len());
        drop(remaining);
        cache
    }

    /// Every free slot is withdrawn exactly once if its memory may be resident and no slot of its
    /// page holds a table. Slots are withdrawn in whole pages, at most `batch` at a time, and come
    /// back. Pages are 512 bytes (one table) to 64 KiB (two groups), whatever the machine's are.
    #[test]
    fn withdraw_runs_takes_each_wholly_free_page_once() {
        for (tables, kept_every) in [
            (300, 300),
            (300, 37),
            (64, 64),
            (7, 7),
            (129, 2),
            (1000, 200),
        ] {
            for unit in [1, 8, 32, 64, 128] {
                for batch in [unit, unit * 3, 1024] {
                    let cache = cache_with_dropped_tables(tables, kept_every);
                    let mut withdrawn = vec![false; tables];
                    let mut from = 0;
                    while from < tables {
                        let (runs, next) = cache.withdraw_runs(from, unit, batch);
                        let taken: usize = runs.iter().map(Range::len).sum();
                        assert!(taken <= batch.max(unit) && next > from);
                        for run in &runs {
                            assert!(run.start % unit == 0);
                            assert!(run.end % unit == 0 || run.end == tables);
                            run.clone().for_each(|slot| {
                                assert!(!std::mem::replace(&mut withdrawn[slot], true));
                            });
                        }
                        assert_eq!(cache.lock_inner().releasing, taken);
                        cache.return_runs(&runs);
                        from = next;
                    }
                    let page_holds_a_table = |slot: usize| {
                        let page = slot - slot % unit..(slot - slot % unit + unit).min(tables);
                        page.clone().any(|slot| slot % kept_every == 0)
                    };
                    let expected: Vec<_> =
                        (0..tables).map(|slot| !page_holds_a_table(slot)).collect();
                    assert_eq!(
                        withdrawn, expected,
                        "{tables} slots, pages of {unit}, batches of {batch}"
                    );
                    assert_eq!(cache.lock_inner().releasing, 0);
                }
            }
        }
    }

    #[test]
    fn miss_waits_for_released_slots_instead_of_writing_back() {
        let storage = Arc::default();
        let cache = cache(8, &storage);
        let dirty = block_on(cache.host(), &[], cache.get(512)).unwrap();
        dirty.mark_dirty().unwrap();
        drop(dirty);
        // All eight slots' memory counts as resident; the seven free ones are withdrawn.
        cache.groups[0].populated.store(0xFF, Ordering::Relaxed);
        let (runs, _) = cache.withdraw_runs(0, 1, 8);
        assert_eq!(cache.lock_inner().releasing, 7);
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut get = pin!(cache.get(1024));
        assert!(get.as_mut().poll(&mut cx).is_pending());
        cache.return_runs(&runs);
        assert!(woken.0.load(Ordering::Relaxed));
        assert!(matches!(get.poll(&mut cx), Poll::Ready(Ok(_))));
        assert_eq!(storage.0.load(Ordering::Relaxed), 0);
        assert_eq!(cache.stats().dirty_tables, 1);
    }
}
