// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies out of a resident table without a pin.
//!
//! A copy looks at the slot's word, copies, and looks again: if the slot went to another table
//! meanwhile, the copy is thrown away (a sequence lock whose sequence is the slot's version).

use super::Cache;
use super::words::load_word;
use crate::error::Errno;
use crate::primitives::{Ordering, fence};

impl Cache {
    /// Copies `buf.len()` bytes from byte `at` of a resident table. No lock, no pin, never waits.
    /// Each aligned 8-byte word is read atomically, and all of them are of that table.
    ///
    /// `EAGAIN`: the table is not resident, or left while it was being copied; `buf` may have been
    /// written to then. `EINVAL`: `at` or the length is not a multiple of 8, or beyond the table.
    pub fn read(&self, offset: u64, at: usize, buf: &mut [u8]) -> Result<(), Errno> {
        if let Ok(buf) = <&mut [u8; 8]>::try_from(&mut *buf) {
            if let Some((word, number, needs_touch)) = self.read_fast(offset, at) {
                *buf = word.to_ne_bytes();
                if needs_touch {
                    self.touch(number);
                }
                return Ok(());
            }
        }
        self.read_slow(offset, at, buf)
    }

    /// [`Cache::read`] with every case considered, after [`Cache::read_fast`] found nothing.
    pub(crate) fn read_slow(&self, offset: u64, at: usize, buf: &mut [u8]) -> Result<(), Errno> {
        let fits = at
            .checked_add(buf.len())
            .is_some_and(|end| end <= self.table_size());
        if (at | buf.len()) % 8 != 0 || !fits {
            return Err(Errno::INVAL);
        }
        let Some(slot_number) = self.find_unlocked(offset) else {
            self.check_offset(offset)?;
            return Err(Errno::AGAIN);
        };
        let slot = self.slot(slot_number);
        let before = slot.word();
        if !before.is_readable() || slot.offset() != offset || self.is_poisoned() {
            self.check_poison()?;
            return Err(Errno::AGAIN);
        }
        let table = self.tables.table(slot_number);
        for (i, out) in buf.chunks_exact_mut(8).enumerate() {
            // SAFETY: inside the table, and 8-aligned as tables and `at` are.
            let word = unsafe { load_word(table, at + i * 8) };
            out.copy_from_slice(&word.to_ne_bytes());
        }
        let same_offset = slot.offset() == offset;
        // Acquire: the loads above come before the second look at the word. If one of them saw the
        // bytes or the offset of the slot's next table, this look sees that the slot was claimed
        // for it first: the claim's word precedes the offset (`Slot::set_offset`) and those bytes
        // (release fence in `load`). So bytes and offset are of one table.
        fence(Ordering::Acquire);
        if !same_offset || !slot.word().is_same_table(before) {
            return Err(Errno::AGAIN);
        }
        self.touch(slot_number);
        Ok(())
    }
}
