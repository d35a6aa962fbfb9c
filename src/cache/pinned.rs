// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the holder of a pin does with its table: change it, mark it dirty, put it.
//!
//! C callers name the table by its address, Rust callers have the guard [`Pinned`].

use std::ptr::NonNull;

use super::Cache;
use super::slot::UnpinResult;
use super::words::{load_word, store_word};
use crate::error::Errno;

impl Cache {
    /// Unpins the table at the address `table`. Any thread; takes the structure lock only for the
    /// last pin of a discarded table.
    ///
    /// `EINVAL`: not the address of a table of this cache, or nobody pins it. `EIO`: the cache is
    /// poisoned; the pin is gone all the same.
    pub fn put(&self, table: usize) -> Result<(), Errno> {
        if self.put_fast(table) {
            return Ok(());
        }
        self.put_slow(table)
    }

    /// [`Cache::put`] with every case considered, after [`Cache::put_fast`] returned false.
    pub(crate) fn put_slow(&self, table: usize) -> Result<(), Errno> {
        let slot = self.tables.slot_of(table).ok_or(Errno::INVAL)?;
        self.unpin_slot(slot)?;
        self.check_poison()
    }

    pub(super) fn unpin_slot(&self, slot: u32) -> Result<(), Errno> {
        match self.slot(slot).unpin() {
            UnpinResult::Unpinned => Ok(()),
            UnpinResult::NotPinned => Err(Errno::INVAL),
            UnpinResult::LastOfDiscarded => {
                self.free_discarded(slot);
                Ok(())
            }
        }
    }

    /// Marks the pinned table at the address `table` dirty. Call it after the change, or hold the
    /// state lock over both. `EINVAL`: see [`Cache::put`]. Any thread, no lock.
    pub fn mark_dirty(&self, table: usize) -> Result<(), Errno> {
        let slot = self.pinned_slot(table)?;
        self.check_poison()?;
        if !self.slot(slot).mark_dirty() {
            return Err(Errno::INVAL);
        }
        self.dirty.insert(&self.groups, slot);
        Ok(())
    }

    /// Stores eight bytes, as they are in memory, at byte `at` of the pinned table at the address
    /// `table`, atomically. Any thread, no lock.
    ///
    /// `EINVAL`: `at` is not a multiple of 8 inside the table; or see [`Cache::put`].
    pub fn store(&self, table: usize, at: usize, value: u64) -> Result<(), Errno> {
        let slot = self.pinned_slot(table)?;
        self.check_poison()?;
        if !self.tables.is_entry(at) {
            return Err(Errno::INVAL);
        }
        // SAFETY: inside the table, 8-aligned.
        unsafe { store_word(self.tables.table(slot), at, value) };
        Ok(())
    }

    /// The slot of the pinned table at the address `table`. `EINVAL`: see [`Cache::put`].
    fn pinned_slot(&self, table: usize) -> Result<u32, Errno> {
        let slot = self.tables.slot_of(table).ok_or(Errno::INVAL)?;
        if self.slot(slot).word().pins() == 0 {
            return Err(Errno::INVAL);
        }
        Ok(slot)
    }
}

/// A pinned table: it stays where it is and keeps its offset. Dropping the guard unpins it.
pub struct Pinned<'a> {
    pub(super) cache: &'a Cache,
    pub(super) slot: u32,
}

impl Pinned<'_> {
    /// Address of the table's [`Cache::table_size`] bytes.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.cache.pinned_table(self.slot)
    }

    /// Gives up the guard but keeps the pin, for [`Cache::put`].
    pub fn into_ptr(self) -> NonNull<u8> {
        let table = self.as_ptr();
        std::mem::forget(self);
        table
    }

    /// Loads the eight bytes at byte `at`, atomically.
    ///
    /// # Panics
    /// If `at` is not a multiple of 8 inside the table.
    pub fn load(&self, at: usize) -> u64 {
        assert!(self.cache.tables.is_entry(at));
        // SAFETY: checked just above.
        unsafe { load_word(self.as_ptr(), at) }
    }

    /// Stores eight bytes at byte `at`, atomically; see [`Cache::store`].
    pub fn store(&self, at: usize, value: u64) -> Result<(), Errno> {
        self.cache.store(self.as_ptr().as_ptr() as usize, at, value)
    }

    /// See [`Cache::mark_dirty`].
    pub fn mark_dirty(&self) -> Result<(), Errno> {
        self.cache.mark_dirty(self.as_ptr().as_ptr() as usize)
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let unpinned = self.cache.unpin_slot(self.slot);
        debug_assert!(
            unpinned.is_ok(),
            "this guard's pin was put by somebody else"
        );
    }
}
