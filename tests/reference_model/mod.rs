// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reference model of the cache's contract for one thread: what each operation returns, which
//! storage calls it makes in which order, and what every table holds afterwards.
//!
//! The model does not predict the eviction policy: *which* of the possible victims is evicted. It
//! is told what the real cache did ([`Observed`]) and checks that this was allowed.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses only a part of this module"
)]

pub mod harness;

use std::collections::BTreeMap;
use std::ops::Range;

use qcow2cache::cache::CacheStats;
use qcow2cache::error::Errno;

use crate::support::Io;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub offset: u64,
    pub bytes: Vec<u8>,
    pub dirty: bool,
    pub used: bool,
    pub pins: usize,
    pub discarded: bool,
    /// Tells this stay of the table in the cache from all others.
    pub stay: u64,
}

pub struct ModelCache {
    pub kind: i32,
    pub size: usize,
    pub reserved: usize,
    pub slots: Vec<Option<Table>>,
    pub depends_on: Option<usize>,
    pub depends_on_flush: bool,
    /// The tables that were written since the last good flush: offset and stay.
    pub unflushed: BTreeMap<u64, u64>,
    /// How many more writes were made to tables that left the cache and came back before the last
    /// one.
    pub gone: u64,
    pub stats: CacheStats,
}

/// What a get of the real cache did.
#[derive(Debug)]
pub struct Observed {
    /// The table for which it called the pre-write check.
    pub checked: Option<u64>,
    /// The table that it evicted.
    pub evicted: Option<u64>,
    /// The slot of the table that it returned, or its error.
    pub slot: Result<usize, Errno>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GetMode {
    Locked,
    Empty,
    Unlocked,
    Try,
}

#[derive(Default)]
pub struct Model {
    pub caches: Vec<ModelCache>,
    pub disk: Vec<u8>,
    pub max_iov: usize,
    pub one_device: bool,
    pub log: Vec<Io>,
    /// Storage calls that fail, by number.
    pub faults: BTreeMap<usize, Errno>,
    /// How many tables destroyed caches have left on each cache's device that are not stable yet;
    /// and how many of these the cache was given up with.
    pub orphans: BTreeMap<usize, (u64, u64)>,
    stays: u64,
}

type Done = Result<(), Errno>;

/// The first error counts, but `ENOSPC` takes precedence.
fn merge_error(result: &mut Done, next: Done) {
    if result.is_ok() || next == Err(Errno::NOSPC) {
        *result = next;
    }
}

impl ModelCache {
    pub fn find(&self, offset: u64) -> Option<usize> {
        let matches = |t: &Table| t.offset == offset && !t.discarded;
        self.slots
            .iter()
            .position(|s| s.as_ref().is_some_and(matches))
    }

    pub fn table(&mut self, slot: usize) -> &mut Table {
        self.slots[slot].as_mut().expect("a table in the slot")
    }

    pub fn new(kind: i32, size: usize, tables: usize, reserved: usize) -> Self {
        Self {
            kind,
            size,
            reserved,
            slots: vec![None; tables],
            depends_on: None,
            depends_on_flush: false,
            unflushed: BTreeMap::new(),
            gone: 0,
            stats: CacheStats::default(),
        }
    }

    fn flush_succeeded(&mut self) {
        self.unflushed.clear();
        self.gone = 0;
        if self.stats.flush_error.is_none() {
            self.depends_on_flush = false;
        }
    }

    /// What was written since the last good flush may be lost. Tables that are still here are dirty
    /// again. If one is not, the cache is unstable.
    fn flush_failed(&mut self, error: Errno, orphans: u64) {
        let mut lost = orphans + std::mem::take(&mut self.gone);
        for (_, stay) in std::mem::take(&mut self.unflushed) {
            let mut tables = self.slots.iter_mut().flatten();
            match tables.find(|t| t.stay == stay && !t.discarded) {
                Some(table) => {
                    self.stats.redirtied += u64::from(!table.dirty);
                    table.dirty = true;
                }
                None => lost += 1,
            }
        }
        self.stats.lost += lost;
        if lost > 0 {
            self.stats.flush_error = self.stats.flush_error.or(Some(error));
        }
    }

    fn droppable(&self, slot: usize) -> bool {
        let clean = |t: &Table| t.pins == 0 && !t.dirty && !t.discarded;
        self.slots[slot].as_ref().is_some_and(clean)
    }

    /// Takes a slot of `range` for a new table: a free slot, or else that of a clean unpinned
    /// table, which is evicted.
    fn take_slot(&mut self, range: Range<usize>, observed: &Observed) -> Option<usize> {
        if range.clone().any(|slot| self.slots[slot].is_none()) {
            let free = |slot: &usize| range.contains(slot) && self.slots[*slot].is_none();
            let slot = observed
                .slot
                .ok()
                .or_else(|| range.clone().find(|s| free(s)));
            assert!(
                slot.as_ref().is_some_and(free),
                "not a free slot: {observed:?}"
            );
            return slot;
        }
        if !range.clone().any(|slot| self.droppable(slot)) {
            return None;
        }
        let slot = observed.evicted.and_then(|offset| self.find(offset));
        let slot = slot
            .unwrap_or_else(|| panic!("no table was evicted though one could be: {observed:?}"));
        let allowed = range.contains(&slot) && self.droppable(slot);
        assert!(allowed, "this table may not be evicted: {observed:?}");
        assert!(
            observed.slot.is_err() || observed.slot == Ok(slot),
            "{observed:?}"
        );
        self.slots[slot] = None;
        self.stats.evictions += 1;
        Some(slot)
    }
}

impl Model {
    fn io(&mut self, io: Io) -> Done {
        self.log.push(io);
        self.faults
            .get(&(self.log.len() - 1))
            .map_or(Ok(()), |e| Err(*e))
    }

    pub fn check_offset(&mut self, c: usize, offset: u64) -> Done {
        let (kind, size) = (self.caches[c].kind, self.caches[c].size as u64);
        if offset == 0 {
            return Err(Errno::INVAL);
        }
        if offset % size != 0 {
            self.log.push(Io::Corruption { kind, offset });
            return Err(Errno::IO);
        }
        Ok(())
    }

    pub fn get(
        &mut self,
        c: usize,
        offset: u64,
        mode: GetMode,
        observed: &Observed,
    ) -> Result<usize, Errno> {
        self.check_offset(c, offset)?;
        let slots = self.caches[c].slots.len();
        let (ordinary, reserve) = (
            0..slots - self.caches[c].reserved,
            slots - self.caches[c].reserved..slots,
        );
        let cache = &mut self.caches[c];
        if let Some(mut slot) = cache.find(offset) {
            if matches!(mode, GetMode::Unlocked | GetMode::Try) && reserve.contains(&slot) {
                // It must not be pinned in the reserve. A clean table may move.
                if mode == GetMode::Try || !cache.droppable(slot) {
                    return Err(Errno::AGAIN);
                }
                let to = cache.take_slot(ordinary, observed).ok_or(Errno::AGAIN)?;
                cache.slots[to] = cache.slots[slot].take();
                slot = to;
            }
            cache.stats.hits += 1;
            cache.table(slot).pins += 1;
            cache.table(slot).used = true;
            return Ok(slot);
        }
        if mode == GetMode::Try {
            return Err(Errno::AGAIN);
        }
        cache.stats.misses += 1;
        let slot = self.make_room(c, ordinary, mode, observed)?;
        let size = self.caches[c].size;
        let mut bytes = vec![0; size];
        if mode != GetMode::Empty {
            self.io(Io::Read {
                offset,
                bytes: size,
            })?;
            bytes.copy_from_slice(&self.disk[offset as usize..][..size]);
            self.caches[c].stats.loads += 1;
        }
        let (dirty, used, pins, discarded) = (false, true, 1, false);
        self.stays += 1;
        let stay = self.stays;
        self.caches[c].slots[slot] = Some(Table {
            offset,
            bytes,
            dirty,
            used,
            pins,
            discarded,
            stay,
        });
        Ok(slot)
    }

    fn make_room(
        &mut self,
        c: usize,
        ordinary: Range<usize>,
        mode: GetMode,
        observed: &Observed,
    ) -> Result<usize, Errno> {
        if mode == GetMode::Unlocked {
            let cache = &mut self.caches[c];
            let is_free = |slot: usize| cache.slots[slot].is_none();
            // If only reserved slots are free, the caller must take the state lock to fill one,
            // rather than evict a table.
            if !ordinary.clone().any(is_free) && (ordinary.end..cache.slots.len()).any(is_free) {
                return Err(Errno::AGAIN);
            }
            return cache.take_slot(ordinary, observed).ok_or(Errno::AGAIN);
        }
        loop {
            // All free slots are used before a table is evicted, the reserved ones last.
            let cache = &mut self.caches[c];
            let spare = ordinary.clone().any(|slot| cache.slots[slot].is_none());
            let range = if spare {
                ordinary.clone()
            } else {
                0..cache.slots.len()
            };
            if let Some(slot) = cache.take_slot(range, observed) {
                return Ok(slot);
            }
            let may_write = |t: &Table| t.dirty && t.pins == 0;
            if !cache.slots.iter().flatten().any(may_write) {
                return Err(Errno::BUSY);
            }
            self.satisfy_dependencies(c)?;
            let victim = observed
                .checked
                .and_then(|offset| self.caches[c].find(offset));
            let victim = victim.expect("no dirty table was written back to be evicted");
            assert!(may_write(self.caches[c].table(victim)), "{observed:?}");
            self.write_tables(c, vec![victim])?;
        }
    }

    /// Makes stable what must be stable before a table of `c` is written.
    pub fn satisfy_dependencies(&mut self, c: usize) -> Done {
        if let Some(on) = self.caches[c].depends_on {
            self.flush(on)?;
            self.caches[c].depends_on = None;
        }
        if self.caches[c].depends_on_flush {
            self.flush_storage(c)?;
        }
        Ok(())
    }

    /// The caches that a flush for `c` counts for.
    fn device_of(&self, c: usize) -> Vec<usize> {
        let all = 0..self.caches.len();
        all.filter(|other| *other == c || self.one_device).collect()
    }

    fn flush_storage(&mut self, c: usize) -> Done {
        self.caches[c].stats.flush_error.map_or(Ok(()), Err)?;
        let result = self.io(Io::Flush);
        for member in self.device_of(c) {
            let (left, given_up) = self.orphans.remove(&member).unwrap_or_default();
            match result {
                Ok(()) => self.caches[member].flush_succeeded(),
                Err(error) => self.caches[member].flush_failed(error, left - given_up),
            }
        }
        result
    }

    fn write_tables(&mut self, c: usize, mut slots: Vec<usize>) -> Done {
        let (kind, size) = (self.caches[c].kind, self.caches[c].size as u64);
        slots.sort_by_key(|slot| self.caches[c].table(*slot).offset);
        let offsets: Vec<u64> = slots
            .iter()
            .map(|s| self.caches[c].table(*s).offset)
            .collect();
        let mut result = Ok(());
        let mut at = 0;
        while at < slots.len() {
            if let Err(error) = self.satisfy_dependencies(c) {
                merge_error(&mut result, Err(error));
                return result;
            }
            let joined = |n: &usize| {
                n - at < self.max_iov && offsets[*n] == offsets[at] + (n - at) as u64 * size
            };
            let end = (at..slots.len()).take_while(joined).count() + at;
            let mut run = Vec::new();
            for n in at..end {
                match self.io(Io::Check {
                    kind,
                    offset: offsets[n],
                    bytes: size,
                }) {
                    Ok(()) => run.push(slots[n]),
                    Err(error) => {
                        merge_error(&mut result, Err(error));
                        merge_error(&mut result, self.write_run(c, &std::mem::take(&mut run)));
                    }
                }
            }
            merge_error(&mut result, self.write_run(c, &run));
            at = end;
        }
        result
    }

    fn write_run(&mut self, c: usize, run: &[usize]) -> Done {
        let Some(first) = run.first() else {
            return Ok(());
        };
        let size = self.caches[c].size;
        let offset = self.caches[c].table(*first).offset;
        self.io(Io::Write {
            offset,
            tables: run.len(),
            bytes: run.len() * size,
        })?;
        for slot in run {
            let table = self.caches[c].table(*slot);
            table.dirty = false;
            let (offset, stay) = (table.offset, table.stay);
            self.disk[offset as usize..][..size].copy_from_slice(&table.bytes);
            let older = self.caches[c].unflushed.insert(offset, stay);
            self.caches[c].gone += u64::from(older.is_some_and(|older| older != stay));
        }
        self.caches[c].stats.writes += 1;
        self.caches[c].stats.write_backs += run.len() as u64;
        Ok(())
    }

    pub fn write(&mut self, c: usize) -> Done {
        let dirty = |slot: &usize| {
            self.caches[c].slots[*slot]
                .as_ref()
                .is_some_and(|t| t.dirty)
        };
        let slots = (0..self.caches[c].slots.len()).filter(dirty).collect();
        self.write_tables(c, slots)
    }

    pub fn flush(&mut self, c: usize) -> Done {
        self.write(c)?;
        self.flush_storage(c)
    }

    pub fn empty(&mut self, c: usize) -> Done {
        self.flush(c)?;
        if self.caches[c].slots.iter().flatten().any(|t| t.pins > 0) {
            return Err(Errno::BUSY);
        }
        self.caches[c].slots.fill(None);
        Ok(())
    }

    /// A dependency that would complete a chain or a cycle is flushed first.
    pub fn set_dependency(&mut self, c: usize, on: usize) -> Done {
        if c == on {
            return Err(Errno::INVAL);
        }
        if self.caches[on].depends_on.is_some() {
            self.satisfy_dependencies(on)?;
        }
        if self.caches[c].depends_on.is_some_and(|other| other != on) {
            self.satisfy_dependencies(c)?;
        }
        while let Some(dependent) = self.caches.iter().position(|d| d.depends_on == Some(c)) {
            self.satisfy_dependencies(dependent)?;
        }
        self.caches[c].depends_on = Some(on);
        Ok(())
    }

    pub fn discard(&mut self, c: usize, offset: u64) {
        let cache = &mut self.caches[c];
        cache.unflushed.remove(&offset);
        let Some(slot) = cache.find(offset) else {
            return;
        };
        cache.stats.discarded += 1;
        let table = cache.table(slot);
        (table.discarded, table.dirty) = (true, false);
        if table.pins == 0 {
            cache.slots[slot] = None;
        }
    }

    /// Discards every table that overlaps the range.
    pub fn discard_range(&mut self, c: usize, offset: u64, bytes: u64) {
        let size = self.caches[c].size as u64;
        let end = offset.saturating_add(bytes);
        let overlaps = |t: &u64| *t < end && offset < t + size && bytes > 0;
        let tables = self.caches[c].slots.iter().flatten().map(|t| t.offset);
        let written = self.caches[c].unflushed.keys().copied();
        let found: Vec<u64> = tables.chain(written).filter(overlaps).collect();
        found.into_iter().for_each(|offset| self.discard(c, offset));
    }

    /// Discards every table. Nothing that was written matters any more.
    pub fn give_up(&mut self, c: usize) {
        self.discard_range(c, 0, u64::MAX);
        let cache = &mut self.caches[c];
        cache.gone = 0;
        (cache.depends_on, cache.depends_on_flush) = (None, false);
        cache.stats.flush_error = None;
        let (left, given_up) = self.orphans.entry(c).or_default();
        *given_up = *left;
    }

    /// Destroys a cache and puts a new one in its place. It calls no storage.
    pub fn replace(&mut self, c: usize) -> Done {
        let old = &self.caches[c];
        let tables = || old.slots.iter().flatten();
        if tables().any(|t| t.pins > 0) {
            return Err(Errno::BUSY);
        }
        if tables().any(|t| t.dirty) {
            return Err(Errno::NOTEMPTY);
        }
        let left = old.unflushed.len() as u64 + old.gone;
        let error = old.stats.flush_error;
        let new = ModelCache::new(old.kind, old.size, old.slots.len(), old.reserved);
        self.caches[c] = new;
        let (orphans, given_up) = self.orphans.entry(c).or_default();
        *given_up = 0;
        if self.one_device {
            *orphans += left;
        } else {
            // A new device: the old one is gone with its only member.
            *orphans = 0;
        }
        for other in (0..self.caches.len()).filter(|other| *other != c) {
            let cache = &mut self.caches[other];
            let depended = cache.depends_on == Some(c);
            if depended {
                cache.depends_on = None;
                cache.depends_on_flush = true;
                cache.stats.flush_error = cache.stats.flush_error.or(error);
            }
            if depended || self.one_device {
                self.orphans.entry(other).or_default().0 += left;
            }
        }
        Ok(())
    }

    pub fn put(&mut self, c: usize, slot: usize) {
        let table = self.caches[c].table(slot);
        table.pins -= 1;
        if table.discarded && table.pins == 0 {
            self.caches[c].slots[slot] = None;
        }
    }

    pub fn clean_unused(&mut self, c: usize) -> usize {
        let cache = &mut self.caches[c];
        let mut cleaned = 0;
        for slot in 0..cache.slots.len() {
            if cache.droppable(slot) && !cache.table(slot).used {
                cache.slots[slot] = None;
                cleaned += 1;
            } else if let Some(table) = &mut cache.slots[slot] {
                table.used = false;
            }
        }
        cache.stats.cleaned += cleaned as u64;
        cleaned
    }

    pub fn stats(&self, c: usize) -> CacheStats {
        let count = |f: &dyn Fn(&Table) -> bool| {
            self.caches[c]
                .slots
                .iter()
                .flatten()
                .filter(|t| f(t))
                .count()
        };
        CacheStats {
            tables: self.caches[c].slots.len(),
            table_size: self.caches[c].size,
            resident_tables: count(&|_| true),
            dirty_tables: count(&|t| t.dirty),
            pinned_tables: count(&|t| t.pins > 0),
            ..self.caches[c].stats
        }
    }
}
