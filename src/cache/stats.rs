// SPDX-License-Identifier: MIT OR Apache-2.0
//! Statistics. Most counters change only on slow paths; the numbers of resident, dirty and pinned
//! tables are computed when they are asked for. The fast path counts its hits in a field of the
//! slot's word, which the pin changes anyway.

use super::{Cache, group};
use crate::error::Errno;
use crate::primitives::Ordering;

/// What a cache did and what it holds. The counters start at its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Pins of tables that were resident; copies by `read` are not counted.
    pub hits: u64,
    /// Gets that had to load, or to wait for a load.
    pub misses: u64,
    /// Tables read from storage.
    pub loads: u64,
    /// Tables that were evicted: their slot went to another table.
    pub evictions: u64,
    /// Tables written to storage.
    pub write_backs: u64,
    /// Write requests to storage for these; one request may join several tables.
    pub writes: u64,
    /// Tables dropped by cleaning.
    pub cleaned: u64,
    /// Tables discarded.
    pub discarded: u64,
    /// Tables that a failed flush of storage made dirty again.
    pub redirtied: u64,
    /// Tables that were written, and had left the cache when a flush of storage failed that should
    /// have made them stable.
    pub lost: u64,
    /// The error that every flush returns since tables were lost; `None`: the cache is stable.
    pub flush_error: Option<Errno>,
    /// Slots.
    pub tables: usize,
    /// Bytes of a table.
    pub table_size: usize,
    /// Slots that hold a table.
    pub resident_tables: usize,
    /// Resident tables that are dirty.
    pub dirty_tables: usize,
    /// Slots that are pinned.
    pub pinned_tables: usize,
    /// Table memory that was touched and not released since, in bytes.
    pub resident_bytes: u64,
    /// Memory that the cache uses besides the tables, in bytes.
    pub metadata_bytes: u64,
}

impl Cache {
    /// The current statistics. Any thread. Looks at every slot without a lock, so the numbers are
    /// not a snapshot of one moment.
    pub fn stats(&self) -> CacheStats {
        let count = |counter: &crate::primitives::AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let mut stats = CacheStats {
            hits: count(&counters.hits),
            misses: count(&counters.misses),
            loads: count(&counters.loads),
            evictions: count(&counters.evictions),
            write_backs: count(&counters.write_backs),
            writes: count(&counters.writes),
            cleaned: count(&counters.cleaned),
            discarded: count(&counters.discarded),
            redirtied: count(&counters.redirtied),
            lost: count(&counters.lost),
            flush_error: self.flush_error(),
            tables: self.slots.len(),
            table_size: self.table_size(),
            resident_bytes: self.resident_bytes(),
            metadata_bytes: self.metadata_bytes(),
            ..CacheStats::default()
        };
        for slot in self.touched_slots() {
            let word = slot.word();
            stats.hits += word.hits();
            stats.resident_tables += usize::from(word.is_resident());
            stats.dirty_tables += usize::from(word.is_resident() && word.is_dirty());
            stats.pinned_tables += usize::from(word.pins() > 0);
        }
        stats
    }

    /// Bytes of all pages in which at least one slot was touched.
    fn resident_bytes(&self) -> u64 {
        let unit = self.tables.slots_per_page();
        let is_touched = |page: &usize| {
            let end = (page + unit).div_ceil(group::SLOTS).min(self.groups.len());
            (page / group::SLOTS..end).any(|number| {
                let touched = self.groups[number].populated.load(Ordering::Relaxed);
                touched & group::mask(number, &(*page..page + unit)) != 0
            })
        };
        let pages = (0..self.touched_slots().len())
            .step_by(unit)
            .filter(is_touched)
            .count();
        (pages * unit * self.table_size()) as u64
    }

    fn metadata_bytes(&self) -> u64 {
        let bytes = size_of::<Self>()
            + Self::array_bytes(self.slots.len())
            + self.lock_inner().unflushed.bytes()
            + self.dependents_bytes();
        bytes as u64
    }

    /// Whether the cache may be destroyed. `EBUSY`: it is in use. `ENOTEMPTY`: it has dirty tables;
    /// a poisoned cache never writes them, so they do not count.
    pub fn check_destroy(&self) -> Result<(), Errno> {
        if self.is_in_use() {
            return Err(Errno::BUSY);
        }
        if self.check_poison().is_ok() && self.has_dirty() {
            return Err(Errno::NOTEMPTY);
        }
        Ok(())
    }

    /// Whether any table is dirty. Any thread; looks at every slot that was ever used.
    pub fn has_dirty(&self) -> bool {
        let mut words = self.touched_slots().iter().map(super::Slot::word);
        words.any(|word| word.is_resident() && word.is_dirty())
    }
}
