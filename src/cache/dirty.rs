// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which slots may be dirty: the groups' `dirty` bits, and a summary with one bit for each group.
//! Thus the cost of a flush depends on how much is dirty, not on the size of the cache.
//!
//! Marking takes no lock; clearing happens under the structure lock. Sequentially consistent
//! operations on both sides keep a group's bits and its summary bit consistent: the marker sets the
//! group's bit and then looks at the summary; the sweeper clears the summary bit and then looks at
//! the group. One of the two sees the other's change.

use super::arena::{Arena, Zeroed, array_bytes};
use super::group::{self, Group};
use crate::primitives::{AtomicU64, Ordering};

/// The summary. The bits of the single slots are in the groups.
pub struct DirtySet {
    summary: Zeroed<AtomicU64>,
}

impl DirtySet {
    /// An empty set over `groups` groups.
    pub fn new(arena: &mut Arena, groups: usize) -> Self {
        let summary = arena.zeroed(groups.div_ceil(64));
        Self { summary }
    }

    /// What it takes of the arena, in bytes.
    pub const fn bytes(groups: usize) -> usize {
        array_bytes::<AtomicU64>(groups.div_ceil(64))
    }

    /// Adds a slot that is dirty. Call it after the flag in the slot's word was set. Any thread.
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

    /// Removes a slot. Call it before the flag in the slot's word is cleared. Structure lock held.
    pub fn remove(&self, groups: &[Group], slot: u32) {
        let (number, bit) = group::place(slot);
        groups[number].dirty.fetch_and(!bit, Ordering::SeqCst);
    }

    /// Calls `f` for every slot that may be dirty, in ascending order. Structure lock held.
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

    /// Removes a slot that turned out to be clean, unless it is dirty again by now. `is_dirty`
    /// loads the slot's word with sequential consistency, the ordering with which `mark_dirty`
    /// changes it. Structure lock held.
    pub fn clear_stale(&self, groups: &[Group], slot: u32, is_dirty: impl FnOnce() -> bool) {
        self.remove(groups, slot);
        if is_dirty() {
            self.insert(groups, slot);
        }
    }

    /// Removes a slot that is about to be written. Returns whether the write began: what
    /// `begin_write` returned.
    ///
    /// The set's bit is cleared before `begin_write` clears the flag in the slot's word: see
    /// `group`. If `begin_write` finds nothing to write, a marker may have set the flag meanwhile.
    /// That marker may still have seen the bit that is removed here, and then did not set it again.
    /// So the flag is looked at once more, as in [`DirtySet::clear_stale`]. Structure lock held.
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
