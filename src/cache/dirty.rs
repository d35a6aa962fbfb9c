// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which slots may be dirty: the groups' `dirty` bits and a summary with one bit a group, so that a flush costs what is
//! dirty and not what the cache holds.
//!
//! Marking takes no lock; clearing happens under the structure lock. The pair (group bits, summary bit) is kept by
//! sequentially consistent operations on both sides: the marker sets the group's bit and then looks at the summary, the sweeper
//! clears the summary and then looks at the group. One of them sees the other.

use super::group::{self, Group};
use super::zeroed::{Zeroed, zeroed};
use crate::error::Result;
use crate::primitives::{AtomicU64, Ordering};

/// The summary; the bits below it live in the groups.
pub struct DirtySet {
    summary: Zeroed<AtomicU64>,
}

impl DirtySet {
    /// A set over `groups` groups, empty.
    pub fn new(groups: usize) -> Result<Self> {
        let summary = zeroed(groups.div_ceil(64))?;
        Ok(Self { summary })
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        self.summary.len() * size_of::<AtomicU64>()
    }

    /// Notes that a slot is dirty; after the flag in its word was set. Any thread.
    pub fn insert(&self, groups: &[Group], slot: u32) {
        let (number, bit) = group::place(slot);
        let dirty = &groups[number].dirty;
        if dirty.load(Ordering::SeqCst) & bit == 0 {
            dirty.fetch_or(bit, Ordering::SeqCst);
        }
        let (word, bit) = (number / 64, 1 << (number % 64));
        if self.summary[word].load(Ordering::SeqCst) & bit == 0 {
            self.summary[word].fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Forgets a slot; before the flag in its word is cleared. Structure lock held.
    pub fn remove(&self, groups: &[Group], slot: u32) {
        let (number, bit) = group::place(slot);
        groups[number].dirty.fetch_and(!bit, Ordering::SeqCst);
    }

    /// Calls `f` for every slot that may be dirty, ascending. Structure lock held.
    pub fn for_each(&self, groups: &[Group], mut f: impl FnMut(u32)) {
        for (word, summary) in self.summary.iter().enumerate() {
            for number in group::slots(word, summary.load(Ordering::SeqCst)) {
                let number = number as usize;
                let bits = groups[number].dirty.load(Ordering::SeqCst);
                if bits == 0 {
                    self.clear_summary(groups, number);
                }
                group::slots(number, bits).for_each(&mut f);
            }
        }
    }

    /// Forgets a slot that turned out not to be dirty, unless it is by now: `is_dirty` looks at its word, sequentially
    /// consistent as the marker's change of it is. Structure lock held.
    pub fn clear_stale(&self, groups: &[Group], slot: u32, is_dirty: impl FnOnce() -> bool) {
        self.remove(groups, slot);
        if is_dirty() {
            self.insert(groups, slot);
        }
    }

    /// Takes a slot out, to be written. `begin_write` clears the flag in its word, after the set's: see `group`. If it finds nothing
    /// to write, somebody may be marking the slot, who finds the bit that was removed just now: hence the second look, as in
    /// [`DirtySet::clear_stale`]. Structure lock held.
    pub fn claim_for_write(
        &self,
        groups: &[Group],
        slot: u32,
        begin_write: impl FnOnce() -> bool,
        is_dirty: impl FnOnce() -> bool,
    ) -> bool {
        self.remove(groups, slot);
        let begun = begin_write();
        if !begun && is_dirty() {
            self.insert(groups, slot);
        }
        begun
    }

    fn clear_summary(&self, groups: &[Group], number: usize) {
        let (word, bit) = (number / 64, 1 << (number % 64));
        self.summary[word].fetch_and(!bit, Ordering::SeqCst);
        if groups[number].dirty.load(Ordering::SeqCst) != 0 {
            self.summary[word].fetch_or(bit, Ordering::SeqCst);
        }
    }
}
