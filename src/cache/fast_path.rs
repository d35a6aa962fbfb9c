// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hot paths in a straight line: what nearly every get, put and read is. Nothing here loops, panics (but for debug assertions) or
//! calls anything, so that the C API can have it before its panic guard, with no register to save. Each says yes, or leaves it to the long way, which
//! does the same with every case considered: `…_at_length`. [`Cache::lookup`], [`Cache::put`] and [`Cache::read`] are both in a row.

use std::ptr::NonNull;

use super::Cache;
use super::group::{self, Group};
use super::load::Access;
use super::slot::Slot;
use super::words::load_word;
use crate::primitives::{Ordering, fence};

/// Why [`Cache::lookup_fast`] was no hit; for [`Cache::lookup_slow`], which does what is left to do. C's layout: it goes in one register.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) enum LookupFailure {
    /// It takes more than a look at what nearly every hit is.
    NeedsSlowPath,
    /// The index has no such table.
    NotIndexed,
    /// The slot went to another table between the lookup and the pin, which is still to be given back.
    SlotReused(u32),
}

impl Cache {
    /// See [`Cache::lookup`]: the slot of the table, pinned, and whether the hit is to be noted: [`Cache::touch`], last of all.
    #[inline(always)]
    pub(crate) fn lookup_fast(
        &self,
        offset: u64,
        access: Access,
    ) -> Result<(u32, bool), LookupFailure> {
        let number = self
            .index
            .find_fast(offset)
            .ok_or(LookupFailure::NotIndexed)?;
        let slot = self.slot(number);
        if slot.offset() != offset {
            return Err(LookupFailure::NeedsSlowPath);
        }
        // Looked at before the pin, which no load overtakes: the groups' memory is waited for together with the slot's.
        let needs_touch = !self.is_touched(number);
        let reserved = access == Access::Unlocked && self.is_reserved(number);
        if reserved || self.is_poisoned() || !slot.pin_fast() {
            return Err(LookupFailure::NeedsSlowPath);
        }
        if slot.offset() != offset {
            return Err(LookupFailure::SlotReused(number));
        }
        Ok((number, needs_touch))
    }

    /// The address of the table in a slot that is pinned.
    #[inline(always)]
    pub(crate) fn pinned_table(&self, number: u32) -> NonNull<u8> {
        self.tables.table(number)
    }

    #[inline(always)]
    fn is_touched(&self, number: u32) -> bool {
        // Shifted to the right, since that is one instruction.
        let touched = self.group(number as usize / group::SLOTS).fully_touched();
        touched >> (number as usize % group::SLOTS) & 1 != 0
    }

    /// Notes the use of a table.
    #[inline(always)]
    pub(crate) fn touch(&self, number: u32) {
        let (group, bit) = group::place(number);
        self.group(group).touch(bit);
    }

    /// See [`Cache::put`]: true if a pin was given back and there is nothing else to do or to say.
    #[inline(always)]
    pub(crate) fn put_fast(&self, table: usize) -> bool {
        let Some(number) = self.tables.slot_of(table) else {
            return false;
        };
        !self.is_poisoned() && self.slot(number).unpin_fast()
    }

    /// See [`Cache::read`], for 8 bytes: as they lie in memory; the slot of the table, and whether its use is to be noted, last of all.
    #[inline(always)]
    pub(crate) fn read_fast(&self, offset: u64, at: usize) -> Option<(u64, u32, bool)> {
        if !self.tables.is_entry(at) {
            return None;
        }
        let number = self.index.find_fast(offset)?;
        let slot = self.slot(number);
        let before = slot.word();
        // The offset here as well: nobody asked whoever pins another table to store atomically.
        if !before.is_readable() || slot.offset() != offset || self.is_poisoned() {
            return None;
        }
        // SAFETY: inside the table, and 8-aligned as tables and `at` are.
        let word = unsafe { load_word(self.tables.table(number), at) };
        // The offset between the two looks at the word, as the bytes: see `read_slow`.
        let is_it = slot.offset() == offset;
        fence(Ordering::Acquire);
        if !is_it || !slot.word().is_same_table(before) {
            return None;
        }
        Some((word, number, !self.is_touched(number)))
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
