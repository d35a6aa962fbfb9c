// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hot paths in a straight line: what nearly every get, put and read is. Nothing here loops, panics (but for debug assertions) or
//! calls anything, so that the C API can have it before its panic guard, with no register to save. Each says yes, or leaves it to the long way, which
//! does the same with every case considered: `…_at_length`. [`Cache::hit_for`], [`Cache::put`] and [`Cache::read`] are both in a row.

use std::ptr::NonNull;

use super::group::{self, Group};
use super::load::Access;
use super::slot::Slot;
use super::{Cache, load_word};
use crate::primitives::{Ordering, fence};

/// What [`Cache::hit_at_once`] found.
pub(crate) enum AtOnce {
    /// The table is pinned; its slot, and whether the hit is to be noted: [`Cache::note_hit`], last of all.
    Pinned(u32, bool),
    /// The slot went to another table between the lookup and the pin: give this pin back, then go the long way.
    Another(u32),
    /// Perhaps absent: the long way.
    No,
}

impl Cache {
    /// See [`Cache::hit_for`].
    #[inline(always)]
    pub(crate) fn hit_at_once(&self, offset: u64, access: Access) -> AtOnce {
        let Some((number, slot)) = self.first_look(offset) else {
            return AtOnce::No;
        };
        // Looked at before the pin, which no load overtakes: the groups' memory is waited for together with the slot's.
        let is_news = !self.is_noted(number);
        let reserved = access == Access::Unlocked && self.is_reserved(number);
        if reserved || self.is_poisoned() || !slot.pin_at_once() {
            return AtOnce::No;
        }
        if cfg!(not(feature = "unsound-no-pin-recheck")) && slot.offset() != offset {
            return AtOnce::Another(number);
        }
        AtOnce::Pinned(number, is_news)
    }

    /// The address of the table in a slot that [`Cache::hit_at_once`] pinned.
    #[inline(always)]
    pub(crate) fn pinned_table(&self, number: u32) -> NonNull<u8> {
        self.tables.table(number)
    }

    #[inline(always)]
    fn is_noted(&self, number: u32) -> bool {
        let (group, bit) = group::place(number);
        self.group(group).is_touched(bit)
    }

    /// Notes the use of a table.
    #[inline(always)]
    pub(crate) fn note_hit(&self, number: u32) {
        let (group, bit) = group::place(number);
        self.group(group).touch(bit);
    }

    /// See [`Cache::put`]: true if a pin was given back and there is nothing else to do or to say.
    #[inline(always)]
    pub(crate) fn put_at_once(&self, table: usize) -> bool {
        let Some(number) = self.tables.slot_of(table) else {
            return false;
        };
        !self.is_poisoned() && self.slot(number).put_at_once()
    }

    /// See [`Cache::read`], for 8 bytes: as they lie in memory.
    #[inline(always)]
    pub(crate) fn read_at_once(&self, offset: u64, at: usize) -> Option<u64> {
        if at % 8 != 0 || at >= self.table_size() {
            return None;
        }
        let (number, slot) = self.first_look(offset)?;
        let before = slot.word();
        if !before.is_readable() || slot.offset() != offset || self.is_poisoned() {
            return None;
        }
        // SAFETY: inside the table, and 8-aligned as tables and `at` are.
        let word = unsafe { load_word(self.tables.table(number), at) };
        // Acquire: see `read_at_length`.
        fence(Ordering::Acquire);
        if !slot.word().is_same_table(before) || slot.offset() != offset {
            return None;
        }
        self.note_hit(number);
        Some(word)
    }

    /// The slot in one of the offset's first two buckets, if it is the one.
    #[inline(always)]
    fn first_look(&self, offset: u64) -> Option<(u32, &Slot)> {
        let number = self.index.near(offset >> self.table_shift)?;
        let slot = self.slot(number);
        (slot.offset() == offset).then_some((number, slot))
    }

    /// For the hot paths, which have the number from the index or from `Tables::slot_of`.
    #[inline(always)]
    pub(super) fn slot(&self, number: u32) -> &Slot {
        debug_assert!((number as usize) < self.slots.len());
        // SAFETY: the index holds numbers of this cache's slots alone, and `slot_of` gives no others.
        unsafe { self.slots.get_unchecked(number as usize) }
    }

    #[inline(always)]
    fn group(&self, number: usize) -> &Group {
        debug_assert!(number < self.groups.len());
        // SAFETY: there is a group for every slot, and `group::place` was given a slot's number.
        unsafe { self.groups.get_unchecked(number) }
    }
}
