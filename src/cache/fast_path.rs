// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fast paths of get, put and read: straight-line code that handles nearly every call.
//!
//! Nothing here loops, panics (except for debug assertions) or calls anything. So the C API can run
//! it before its panic guard, without saving registers. Each function either succeeds or leaves the
//! call to the slow path, which does the same with every case considered: [`Cache::lookup_slow`],
//! [`Cache::put_slow`], [`Cache::read_slow`]. [`Cache::lookup`], [`Cache::put`] and [`Cache::read`]
//! try the fast path first, then the slow one.

use std::ptr::NonNull;

use super::Cache;
use super::group::{self, Group};
use super::load::Access;
use super::slot::Slot;
use super::words::load_word;
use crate::primitives::{Ordering, fence};

/// Why [`Cache::lookup_fast`] failed. [`Cache::lookup_slow`] does what is left to do. C's layout:
/// it goes in one register.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) enum LookupFailure {
    /// The fast path cannot decide.
    NeedsSlowPath,
    /// The index has no entry for the table.
    NotIndexed,
    /// The slot went to another table between the lookup and the pin. The pin still has to be
    /// removed.
    SlotReused(u32),
}

impl Cache {
    /// The fast path of [`Cache::lookup`]. Returns the table's slot, which is pinned, and whether
    /// the hit has to be recorded: the caller then calls [`Cache::touch`], after everything else.
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
        // Read before the pin, because no load can overtake the pin. In this order the processor
        // waits for the group's memory and the slot's memory at the same time.
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

    /// The address of the table in a pinned slot.
    #[inline(always)]
    pub(crate) fn pinned_table(&self, number: u32) -> NonNull<u8> {
        self.tables.table(number)
    }

    #[inline(always)]
    fn is_touched(&self, number: u32) -> bool {
        // Shifted to the right, because that is one instruction.
        let touched = self.group(number as usize / group::SLOTS).fully_touched();
        touched >> (number as usize % group::SLOTS) & 1 != 0
    }

    /// Records the use of a table.
    #[inline(always)]
    pub(crate) fn touch(&self, number: u32) {
        let (group, bit) = group::place(number);
        self.group(group).touch(bit);
    }

    /// The fast path of [`Cache::put`]. Returns true if a pin was removed and nothing else has to
    /// be done or reported. Returns false if the fast path cannot decide; call [`Cache::put_slow`]
    /// then.
    #[inline(always)]
    pub(crate) fn put_fast(&self, table: usize) -> bool {
        let Some(number) = self.tables.slot_of(table) else {
            return false;
        };
        !self.is_poisoned() && self.slot(number).unpin_fast()
    }

    /// The fast path of [`Cache::read`], for 8 bytes. Returns the bytes as they are in memory, the
    /// table's slot, and whether the use has to be recorded with [`Cache::touch`], after everything
    /// else. Returns `None` if the fast path cannot decide; call [`Cache::read_slow`] then.
    #[inline(always)]
    pub(crate) fn read_fast(&self, offset: u64, at: usize) -> Option<(u64, u32, bool)> {
        if !self.tables.is_entry(at) {
            return None;
        }
        let number = self.index.find_fast(offset)?;
        let slot = self.slot(number);
        let before = slot.word();
        // The offset is checked here, too, before the bytes are loaded. If the slot holds another
        // table, that table's pin holders need not store atomically.
        if !before.is_readable() || slot.offset() != offset || self.is_poisoned() {
            return None;
        }
        // SAFETY: inside the table, and 8-aligned as tables and `at` are.
        let word = unsafe { load_word(self.tables.table(number), at) };
        // The second look at the offset, like the load of the bytes, comes between the two looks at
        // the word: see `read_slow`.
        let same_offset = slot.offset() == offset;
        fence(Ordering::Acquire);
        if !same_offset || !slot.word().is_same_table(before) {
            return None;
        }
        Some((word, number, !self.is_touched(number)))
    }

    /// For the fast paths, which have the number from the index or from `Tables::slot_of`.
    #[inline(always)]
    pub(super) fn slot(&self, number: u32) -> &Slot {
        debug_assert!((number as usize) < self.slots.len());
        // SAFETY: the index holds numbers of this cache's slots only, and `slot_of` returns no
        // others.
        unsafe { self.slots.get_unchecked(number as usize) }
    }

    #[inline(always)]
    fn group(&self, number: usize) -> &Group {
        debug_assert!(number < self.groups.len());
        // SAFETY: there is a group for every slot, and the callers derive `number` from a slot's
        // number.
        unsafe { self.groups.get_unchecked(number) }
    }
}
