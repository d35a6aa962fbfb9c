// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables that were written, and are not known to be stable: no flush that began after their write
//! has succeeded yet.
//!
//! A flush that fails may have lost what it did not write: the kernel drops such pages, and the
//! next flush succeeds. So the library must not rely on the next flush. It writes these tables
//! again.
//!
//! | a table | a flush begins | the flush succeeds | the flush fails | evicted, cleaned | written again | discarded |
//! |---|---|---|---|---|---|---|
//! | written since the flush began | → written before | stays | dirty again | stays; it is *gone* | stays | → forgotten |
//! | written before the flush began | | → stable, forgotten | dirty again | stays; it is *gone* | → written since | → forgotten |
//! | gone | | as if it were there | lost: the cache is *unstable* | | stays beside the new write | → forgotten, unless only its number is known |
//! | being written | | → written since the flush began | its write fails, so that it stays dirty | impossible | impossible | → forgotten |
//!
//! Eviction and cleaning do not touch this record. An entry says where the table was when it was
//! written: slot and version. If the slot's version is another one when a flush fails, the table
//! has left the cache, even if it came back since: what came back may be what storage lost next. (A
//! version has 24 bits. For a false match, a slot would have to change its table exactly 2^24
//! times, or a multiple of it, between two flushes.)

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Where a table was when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: u32,
    pub(super) version: u64,
}

/// Tables by their offsets, and how many more there are of which only the number is known.
#[derive(Default)]
pub(super) struct Written {
    pub(super) tables: BTreeMap<u64, Place>,
    pub(super) gone: u64,
}

impl Written {
    pub(super) fn count(&self) -> u64 {
        self.tables.len() as u64 + self.gone
    }

    fn append(&mut self, mut other: Written) {
        self.tables.append(&mut other.tables);
        self.gone += other.gone;
    }
}

/// A record of more entries than the cache has slots, and more than this, is swept.
const MIN_SWEEP: usize = 64;
/// How many entries are looked at for each new one then. A lap over n entries takes n / 4 writes,
/// so that the record has fewer than twice as many entries as the cache has slots.
const SWEEP_STEP: usize = 4;

/// See the module. Guarded by the structure lock.
#[derive(Default)]
pub(super) struct Unflushed {
    /// Written before the flush began that runs now, if one runs.
    before: Written,
    /// Written since then.
    since: Written,
    /// The offset at which the sweep goes on.
    sweep_at: u64,
}

impl Unflushed {
    /// A table was written. `slots`: the cache's number of slots. `is_there`: whether a table is
    /// still where it was when it was written.
    ///
    /// If it was written before, and has left the cache and come back in between, that older write
    /// stays in the record: what came back may be without it.
    pub(super) fn record(
        &mut self,
        offset: u64,
        place: Place,
        slots: usize,
        is_there: impl Fn(Place) -> bool,
    ) {
        for written in [&mut self.before, &mut self.since] {
            let older = written.tables.remove(&offset);
            written.gone += u64::from(older.is_some_and(|older| older != place));
        }
        self.since.tables.insert(offset, place);
        if self.since.tables.len() > slots.max(MIN_SWEEP) {
            self.sweep(is_there);
        }
    }

    /// Tables that have left the cache are only counted. A caller that never flushes would make the
    /// record grow for ever otherwise.
    fn sweep(&mut self, is_there: impl Fn(Place) -> bool) {
        let rest = self.since.tables.range(self.sweep_at..);
        let mut gone = [None; SWEEP_STEP];
        let mut next = None;
        for ((&offset, place), n) in rest.zip(0..) {
            if n == SWEEP_STEP {
                next = Some(offset);
                break;
            }
            if !is_there(*place) {
                gone[n] = Some(offset);
            }
        }
        self.sweep_at = next.unwrap_or(0);
        for offset in gone.into_iter().flatten() {
            self.since.tables.remove(&offset);
            self.since.gone += 1;
        }
    }

    /// Memory in bytes, about: an entry, and the room that a B-tree leaves free.
    pub(super) fn bytes(&self) -> usize {
        let entries = self.before.tables.len() + self.since.tables.len();
        entries * size_of::<(u64, Place)>() * 3 / 2
    }

    /// A table moved to another slot.
    pub(super) fn moved(&mut self, offset: u64, from: Place, to: Place) {
        for written in [&mut self.before, &mut self.since] {
            if let Some(place) = written.tables.get_mut(&offset).filter(|at| **at == from) {
                *place = to;
            }
        }
    }

    /// The tables at these offsets were given up. Forgets up to `most` of them. Returns whether
    /// those were all.
    pub(super) fn forget(&mut self, offsets: RangeInclusive<u64>, most: usize) -> bool {
        let mut left = most;
        for written in [&mut self.before, &mut self.since] {
            while let Some((&offset, _)) = written.tables.range(offsets.clone()).next() {
                if left == 0 {
                    return false;
                }
                left -= 1;
                written.tables.remove(&offset);
            }
        }
        true
    }

    /// A flush begins.
    pub(super) fn flush_begins(&mut self) {
        self.before.append(std::mem::take(&mut self.since));
    }

    /// The flush succeeded. The result is to be dropped without the lock.
    pub(super) fn flush_succeeded(&mut self) -> Written {
        std::mem::take(&mut self.before)
    }

    /// The flush failed, or everything was given up: takes everything out of the record.
    pub(super) fn take_all(&mut self) -> Written {
        let mut all = std::mem::take(&mut self.before);
        all.append(std::mem::take(&mut self.since));
        all
    }

    /// How many tables are not known to be stable.
    pub(super) fn count(&self) -> u64 {
        self.before.count() + self.since.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(slot: u32) -> Place {
        Place { slot, version: 1 }
    }

    fn record(unflushed: &mut Unflushed, offset: u64) {
        unflushed.record(offset, place(0), usize::MAX >> 2, |_| true);
    }

    #[test]
    fn a_flush_covers_what_was_written_before_it_began() {
        let mut unflushed = Unflushed::default();
        record(&mut unflushed, 1);
        record(&mut unflushed, 2);
        unflushed.flush_begins();
        record(&mut unflushed, 2);
        assert_eq!(unflushed.count(), 2);
        assert_eq!(unflushed.flush_succeeded().count(), 1);
        assert_eq!(unflushed.count(), 1);
        let rest = unflushed.take_all();
        assert_eq!(rest.tables.into_keys().collect::<Vec<_>>(), [2]);
        assert_eq!(unflushed.count(), 0);
    }

    #[test]
    fn the_record_stays_bounded_and_counts_what_left() {
        const SLOTS: u64 = 500;
        let mut unflushed = Unflushed::default();
        // Tables of which only the 500 that were written last are still there.
        for n in 0..100_000 {
            let version = n;
            let slot = (n % SLOTS) as u32;
            let is_there = |place: Place| n - place.version < SLOTS;
            unflushed.record(n, Place { slot, version }, SLOTS as usize, is_there);
            assert_eq!(unflushed.count(), n + 1);
            assert!(unflushed.since.tables.len() as u64 <= 2 * SLOTS);
        }
    }

    #[test]
    fn a_write_before_the_table_left_and_came_back_stays() {
        let mut unflushed = Unflushed::default();
        record(&mut unflushed, 1);
        unflushed.flush_begins();
        unflushed.record(1, place(0), 1, |_| true);
        assert_eq!(unflushed.count(), 1, "the same stay");
        unflushed.record(
            1,
            Place {
                slot: 0,
                version: 3,
            },
            1,
            |_| true,
        );
        assert_eq!(unflushed.count(), 2, "another stay");
        assert_eq!(unflushed.flush_succeeded().count(), 0);
        unflushed.flush_begins();
        unflushed.record(1, place(5), 1, |_| true);
        assert_eq!(unflushed.flush_succeeded().count(), 2);
        assert_eq!(unflushed.count(), 1);
    }

    #[test]
    fn forget_takes_a_range_in_parts() {
        let mut unflushed = Unflushed::default();
        for offset in 0..10 {
            record(&mut unflushed, offset);
            if offset == 4 {
                unflushed.flush_begins();
            }
        }
        assert!(!unflushed.forget(2..=8, 3));
        assert!(!unflushed.forget(2..=8, 3));
        assert!(unflushed.forget(2..=8, 3));
        let rest = unflushed.take_all();
        assert_eq!(rest.tables.into_keys().collect::<Vec<_>>(), [0, 1, 9]);
    }

    #[test]
    fn only_the_table_that_was_written_moves() {
        let mut unflushed = Unflushed::default();
        unflushed.record(1, place(7), 1, |_| true);
        unflushed.moved(1, place(8), place(3));
        unflushed.moved(2, place(7), place(3));
        assert_eq!(unflushed.since.tables[&1], place(7));
        unflushed.moved(1, place(7), place(3));
        assert_eq!(unflushed.since.tables[&1], place(3));
    }
}
