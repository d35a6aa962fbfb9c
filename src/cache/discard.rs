// SPDX-License-Identifier: MIT OR Apache-2.0
//! Discarding tables, dirty or not: their clusters were freed, or another process wrote the image.
//!
//! A discarded table leaves the index immediately: the next get loads it anew. Holders of a pin
//! keep reading the old contents; the last put frees the slot. The caller holds the state lock, so
//! that no write-back of the table is under way. If one is under way nevertheless, the slot stays
//! until it ends.

use std::ops::RangeInclusive;
use std::ptr::NonNull;

use super::slot::Discard;
use super::{Cache, Counters, Inner, group};
use crate::error::Errno;
use crate::primitives::Ordering;

/// How many offsets `discard_range` looks up under one hold of the structure lock.
const CHUNK: usize = 256;

impl Cache {
    /// Discards the table at `offset`, if it is in the cache. At an offset that is not a multiple
    /// of the table size there is none. `EINVAL`: offset 0. `EIO`: the cache is poisoned.
    pub fn discard_offset(&self, offset: u64) -> Result<(), Errno> {
        self.check_question(offset)?;
        let mut inner = self.lock_inner();
        self.discard_locked(&mut inner, offset);
        inner.unflushed.forget(offset..=offset, usize::MAX);
        Ok(())
    }

    /// Discards every table that overlaps the `bytes` bytes from `offset`, as when a cluster with
    /// several slices is freed. What was written there need not become stable any more. `EIO`: the
    /// cache is poisoned.
    ///
    /// 0 and `u64::MAX` give everything up: an unstable cache is stable again then, and what it
    /// depended on before is withdrawn.
    pub fn discard_range(&self, offset: u64, bytes: u64) -> Result<(), Errno> {
        self.check_poison()?;
        let Some(last_byte) = bytes.checked_sub(1).map(|n| offset.saturating_add(n)) else {
            return Ok(());
        };
        let (first, last) = (offset >> self.table_shift, last_byte >> self.table_shift);
        let dependencies = self.dependencies_now();
        if last - first < self.slots.len() as u64 {
            let mut key = first;
            while key <= last {
                let mut inner = self.lock_inner();
                let end = last.min(key + CHUNK as u64 - 1);
                for key in key..=end {
                    self.discard_locked(&mut inner, key << self.table_shift);
                }
                let offsets = key << self.table_shift..=end << self.table_shift;
                inner.unflushed.forget(offsets, usize::MAX);
                key = end + 1;
                self.inner.yield_to_waiters(inner);
            }
        } else {
            self.discard_matching(|offset| (first..=last).contains(&(offset >> self.table_shift)));
            self.forget_writes_to(first << self.table_shift..=last << self.table_shift);
        }
        if first == 0 && last == u64::MAX >> self.table_shift {
            self.forget_writes(dependencies);
        }
        Ok(())
    }

    /// The address of the table at `offset`, without a pin; `None` if it is not resident. The
    /// address is only good for [`Cache::discard_table`]. Errors: see [`Cache::discard_offset`].
    pub fn table_at(&self, offset: u64) -> Result<Option<NonNull<u8>>, Errno> {
        self.check_question(offset)?;
        let is_resident = |slot: &u32| self.slots[*slot as usize].word().is_readable();
        let unlocked = self.find_unlocked(offset).filter(is_resident);
        let found = unlocked.or_else(|| {
            // A lookup without the lock may miss an entry that is just being moved.
            let _inner = self.lock_inner();
            self.find_unlocked(offset).filter(is_resident)
        });
        Ok(found.map(|slot| self.tables.table(slot)))
    }

    /// Discards the table whose address [`Cache::table_at`] returned for `offset`. `EINVAL`: not
    /// the address of a table of this cache. `ESTALE`: the slot no longer holds the table at
    /// `offset`. For a bad `offset`: see [`Cache::discard_offset`].
    pub fn discard_table(&self, offset: u64, table: usize) -> Result<(), Errno> {
        self.check_question(offset)?;
        let slot = self.tables.slot_of(table).ok_or(Errno::INVAL)?;
        let mut inner = self.lock_inner();
        if self.find_unlocked(offset) != Some(slot) {
            return Err(Errno::STALE);
        }
        self.discard_slot(&mut inner, slot);
        inner.unflushed.forget(offset..=offset, usize::MAX);
        Ok(())
    }

    /// Discards every table. `EBUSY`: a table is pinned, being loaded or being written; nothing was
    /// discarded.
    pub fn discard_all(&self) -> Result<(), Errno> {
        if self.is_in_use() {
            return Err(Errno::BUSY);
        }
        self.give_up();
        Ok(())
    }

    /// Discards every table, whoever uses it: see the module for those.
    pub fn give_up(&self) {
        let dependencies = self.dependencies_now();
        self.discard_matching(|_| true);
        self.forget_writes(dependencies);
    }

    /// Whether a table is pinned, being loaded or being written.
    pub fn is_in_use(&self) -> bool {
        let inner = self.lock_inner();
        let in_flight = inner.loading + inner.writing.len() > 0;
        drop(inner);
        in_flight || (self.touched_slots().iter()).any(|slot| slot.word().pins() > 0)
    }

    /// Checks the offset of a call that asks for a table but never loads it. A get of an unaligned
    /// offset follows a damaged image, and tells storage. A question about one does not: a driver
    /// asks about any cluster that it frees.
    fn check_question(&self, offset: u64) -> Result<(), Errno> {
        self.check_poison()?;
        if offset == 0 {
            return Err(Errno::INVAL);
        }
        Ok(())
    }

    fn discard_matching(&self, matches: impl Fn(u64) -> bool) {
        // In descending order: a table that is moved out of the reserve meanwhile goes to a lower
        // slot, which is still to be visited.
        for number in self.touched_groups().rev() {
            let mut inner = self.lock_inner();
            let taken = self.groups[number].taken.load(Ordering::Relaxed);
            for slot in group::slots(number, taken) {
                let word = self.slots[slot as usize].word();
                let indexed = (word.is_resident() || word.is_loading()) && !word.is_discarded();
                if indexed && matches(self.slots[slot as usize].offset()) {
                    self.discard_slot(&mut inner, slot);
                }
            }
            self.inner.yield_to_waiters(inner);
        }
    }

    /// What was written to these offsets need not become stable any more.
    fn forget_writes_to(&self, offsets: RangeInclusive<u64>) {
        loop {
            let mut inner = self.lock_inner();
            if inner.unflushed.forget(offsets.clone(), CHUNK) {
                return;
            }
            self.inner.yield_to_waiters(inner);
        }
    }

    fn discard_locked(&self, inner: &mut Inner, offset: u64) {
        if let Some(slot) = self.find_unlocked(offset) {
            self.discard_slot(inner, slot);
        }
    }

    /// Discards the table in a slot that the index leads to. Structure lock held.
    fn discard_slot(&self, inner: &mut Inner, slot: u32) {
        self.remove_from_index(inner, slot);
        self.dirty.remove(&self.groups, slot);
        let (outcome, before) = self.slots[slot as usize].discard();
        if outcome == Discard::Freed {
            Counters::add(&self.counters.hits, before.hits() as usize);
            self.mark_free(inner, slot);
        }
        Counters::add(&self.counters.discarded, 1);
    }
}
