// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of tables that went from probation lately: one that is asked for again was not on probation for nothing.
//!
//! A direct-mapped table, as many entries as slots: tag and time of the eviction. A newer name takes an older one's place; what
//! is forgotten or mistaken costs a miss at most. Structure lock held, but for a prefetch.

use super::index;
use super::zeroed::{Zeroed, zeroed};
use crate::error::Result;
use crate::primitives::{Apart, AtomicU32, AtomicU64, Ordering, prefetch};

/// See the module.
pub struct Ghosts {
    /// `tag << 32 | time`; 0: none.
    names: Zeroed<AtomicU64>,
    /// Evictions from probation so far, modulo 2^32.
    now: Apart<AtomicU32>,
}

impl Ghosts {
    /// Room for `n` names. `ENOMEM`: not enough memory.
    pub fn new(n: usize) -> Result<Self> {
        let names = zeroed(n)?;
        let now = Apart(AtomicU32::new(0));
        Ok(Self { names, now })
    }

    /// Memory in bytes.
    pub fn bytes(&self) -> usize {
        self.names.len() * size_of::<AtomicU64>()
    }

    /// A table went.
    pub fn remember(&self, key: u64) {
        let now = self.now.load(Ordering::Relaxed).wrapping_add(1);
        self.now.store(now, Ordering::Relaxed);
        let name = Self::tag(key) | u64::from(now);
        self.place(key).store(name, Ordering::Relaxed);
    }

    /// Whether a table went not longer ago than as many others as there are slots.
    pub fn knows(&self, key: u64) -> bool {
        let name = self.place(key).load(Ordering::Relaxed);
        let age = self.now.load(Ordering::Relaxed).wrapping_sub(name as u32);
        name != 0 && (name ^ Self::tag(key)) >> 32 == 0 && (age as usize) < self.names.len()
    }

    /// The key will be asked for, or remembered. Any thread.
    pub fn prefetch(&self, key: u64) {
        prefetch(self.place(key));
    }

    /// What tells keys apart, in the upper half.
    fn tag(key: u64) -> u64 {
        // Table numbers below 2^32 (16 TiB of 4 KiB tables) have tags of their own.
        (key ^ (key >> 32)) << 32
    }

    fn place(&self, key: u64) -> &AtomicU64 {
        let place = index::scale(index::hash(key), self.names.len());
        // SAFETY: `scale` gives a number below the length, which is not 0.
        unsafe { self.names.get_unchecked(place) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_until_as_many_others_went() {
        let ghosts = Ghosts::new(64).unwrap();
        assert!(!ghosts.knows(7));
        ghosts.remember(7);
        assert!(ghosts.knows(7));
        assert!(!ghosts.knows(8));
        // The same place is not hit here: one key alone is remembered again and again.
        let other = (8..)
            .find(|key| index::scale(index::hash(*key), 64) != index::scale(index::hash(7), 64));
        let other = other.unwrap();
        (0..63).for_each(|_| ghosts.remember(other));
        assert!(ghosts.knows(7));
        ghosts.remember(other);
        assert!(!ghosts.knows(7));
    }
}
