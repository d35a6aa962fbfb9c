// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables that were written, and are not known to be stable: no flush that began after their write
//! has succeeded yet.
//!
//! A flush that fails may have lost what it did not write: the kernel drops such pages, and the
//! next flush succeeds. So the library must not rely on the next flush. It writes these tables
//! again.
//!
//! | a table | a flush begins | the flush succeeds | the flush fails | evicted, cleaned | discarded |
//! |---|---|---|---|---|---|
//! | written since the flush began | → written before | stays | dirty again | stays; it is *gone* | → forgotten |
//! | written before the flush began | | → stable, forgotten | dirty again | stays; it is *gone* | → forgotten |
//! | gone | | as if it were there | lost: the cache is *unstable* | | → forgotten |
//! | being written | | → written since the flush began | its write fails, so that it stays dirty | impossible | → forgotten |
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

/// The record is swept when it has grown to this many entries for each slot of the cache.
const ENTRIES_PER_SLOT: usize = 2;
/// A shorter record is not swept.
const MIN_SWEEP: usize = 64;

/// See the module. Guarded by the structure lock.
#[derive(Default)]
pub(super) struct Unflushed {
    /// Written before the flush began that runs now, if one runs.
    before: Written,
    /// Written since then.
    since: Written,
}

impl Unflushed {
    /// A table was written. `slots`: the cache's number of slots. `is_there`: whether a table is
    /// still where it was when it was written.
    pub(super) fn record(
        &mut self,
        offset: u64,
        place: Place,
        slots: usize,
        is_there: impl Fn(Place) -> bool,
    ) {
        self.before.tables.remove(&offset);
        self.since.tables.insert(offset, place);
        if self.since.tables.len() > (slots * ENTRIES_PER_SLOT).max(MIN_SWEEP) {
            // A caller that never flushes would make it grow for ever. Tables that are gone are
            // only counted from now on.
            let all = self.since.tables.len();
            self.since.tables.retain(|_, place| is_there(*place));
            self.since.gone += (all - self.since.tables.len()) as u64;
        }
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

    /// Another cache of the device has left, with `count` tables in its record.
    pub(super) fn inherit(&mut self, count: u64) {
        self.since.gone += count;
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
        unflushed.inherit(3);
        unflushed.flush_begins();
        record(&mut unflushed, 2);
        unflushed.inherit(1);
        assert_eq!(unflushed.count(), 6);
        assert_eq!(unflushed.flush_succeeded().count(), 4);
        assert_eq!(unflushed.count(), 2);
        let rest = unflushed.take_all();
        assert_eq!((rest.tables.into_keys().collect(), rest.gone), (vec![2], 1));
        assert_eq!(unflushed.count(), 0);
    }

    #[test]
    fn the_record_stays_bounded_and_counts_what_left() {
        let mut unflushed = Unflushed::default();
        // Only the tables in slots below 10 are still there.
        for n in 0..10_000 {
            let slot = (n % 100) as u32;
            unflushed.record(n, place(slot), 50, |place| place.slot < 10);
        }
        assert_eq!(unflushed.count(), 10_000);
        // 1,000 are there, more than the slots of any real cache of 50.
        assert!(unflushed.since.tables.len() <= 1_100);
        assert!(unflushed.since.gone >= 8_900);
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
