// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of tables that were evicted from probation recently. A table that is asked for again while
//! its name is known goes to the main part.
//!
//! A direct-mapped table with as many entries as the cache has slots. An entry holds the tag of a
//! name and the time of the eviction. A newer name replaces an older one in the same place. A name
//! that is forgotten or mistaken for another costs a miss at most. Structure lock held, except for
//! a prefetch.

use super::arena::{Arena, Zeroed, array_bytes};
use super::index;
use crate::primitives::{AtomicU32, AtomicU64, CachePadded, Ordering, prefetch};

/// See the module.
pub struct Ghosts {
    /// `tag << 32 | time`; 0: none.
    entries: Zeroed<AtomicU64>,
    /// Evictions from probation so far, modulo 2^32.
    now: CachePadded<AtomicU32>,
}

impl Ghosts {
    /// Room for `n` entries.
    pub fn new(arena: &mut Arena, n: usize) -> Self {
        let entries = arena.zeroed(n);
        let now = CachePadded(AtomicU32::new(0));
        Self { entries, now }
    }

    /// What it takes of the arena, in bytes.
    pub const fn bytes(n: usize) -> usize {
        array_bytes::<AtomicU64>(n)
    }

    /// Records the eviction of a table.
    pub fn insert(&self, key: u64) {
        let now = self.now.load(Ordering::Relaxed).wrapping_add(1);
        self.now.store(now, Ordering::Relaxed);
        let name = Self::tag(key) | u64::from(now);
        self.place(key).store(name, Ordering::Relaxed);
    }

    /// Whether the table was evicted, and fewer others have been evicted since than there are
    /// entries.
    pub fn contains(&self, key: u64) -> bool {
        let name = self.place(key).load(Ordering::Relaxed);
        let age = self.now.load(Ordering::Relaxed).wrapping_sub(name as u32);
        name != 0 && (name ^ Self::tag(key)) >> 32 == 0 && (age as usize) < self.entries.len()
    }

    /// For a key that will soon be looked up or inserted. Any thread.
    pub fn prefetch(&self, key: u64) {
        prefetch(self.place(key));
    }

    /// Tells keys apart. In the upper half of the result.
    fn tag(key: u64) -> u64 {
        // Table numbers below 2^32 (16 TiB of 4 KiB tables) have unique tags.
        (key ^ (key >> 32)) << 32
    }

    fn place(&self, key: u64) -> &AtomicU64 {
        let place = index::fast_range(index::hash(key), self.entries.len());
        // SAFETY: `fast_range` returns a number below the length, which is not 0.
        unsafe { self.entries.get_unchecked(place) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ghost_entry_expires_after_capacity_evictions() {
        let mut arena = Arena::new(Ghosts::bytes(64)).unwrap();
        let ghosts = Ghosts::new(&mut arena, 64);
        assert!(!ghosts.contains(7));
        ghosts.insert(7);
        assert!(ghosts.contains(7));
        assert!(!ghosts.contains(8));
        // A key in another place, so that it does not replace the entry of 7. Inserting it again
        // and again only advances the time.
        let other = (8..).find(|key| {
            index::fast_range(index::hash(*key), 64) != index::fast_range(index::hash(7), 64)
        });
        let other = other.unwrap();
        (0..63).for_each(|_| ghosts.insert(other));
        assert!(ghosts.contains(7));
        ghosts.insert(other);
        assert!(!ghosts.contains(7));
    }
}
