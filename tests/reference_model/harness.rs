// SPDX-License-Identifier: MIT OR Apache-2.0
//! Real caches over one storage, beside the reference model. The harness applies each operation to
//! both and compares everything that can be observed.

use std::collections::BTreeMap;
use std::sync::Arc;

use qcow2cache::cache::{Cache, CacheOptions, CacheStats};
use qcow2cache::error::Errno;
use qcow2cache::host::threads::ThreadHost;

use super::{GetMode, Model, ModelCache, Observed};
use crate::support::{
    Io, OwnDevice, TestStorage, cache_with, empty, flush, get, get_empty, get_unlocked, lock,
    set_dependency, write,
};

/// Bytes of the image for each cache. Cache `c` has the region that starts at `(c + 1) * REGION`.
const REGION: u64 = 64 << 10;

/// An operation. A table is given by its number in its cache's region, a pin by its index in the
/// list of held pins.
#[derive(Clone, Debug)]
pub enum Op {
    Get(usize, u64, GetMode),
    /// `get` of any offset, aligned or not.
    GetRaw(usize, u64),
    Put(usize),
    Read(usize, u64, usize, usize),
    Store(usize, usize, u64),
    /// A store and `mark_dirty`. An eviction would lose a store without it, also in the model.
    Change(usize, usize, u64),
    MarkDirty(usize),
    Write(usize),
    Flush(usize),
    Empty(usize),
    SetDependency(usize, usize),
    DependsOnFlush(usize),
    DiscardOffset(usize, u64),
    DiscardRange(usize, u64, u64),
    DiscardTable(usize, u64),
    /// `discard_table` with the offset of one table and the address of another.
    DiscardStale(usize, u64, u64),
    DiscardAll(usize),
    /// `discard_range` of everything.
    GiveUp(usize),
    /// Destroys the cache and makes a new one.
    Replace(usize),
    Clean(usize),
}

#[derive(Clone, Debug)]
pub struct Shape {
    /// Tables, table size, reserved tables.
    pub caches: Vec<(usize, usize, usize)>,
    pub max_iov: usize,
    pub one_device: bool,
}

struct HeldPin {
    cache: usize,
    slot: usize,
    address: usize,
}

pub struct Harness {
    pub model: Model,
    pub storage: Arc<TestStorage>,
    pub caches: Vec<Arc<Cache>>,
    bases: Vec<usize>,
    held: Vec<HeldPin>,
    initial_stats: Vec<CacheStats>,
    region_tables: u64,
}

fn address_of(pinned: qcow2cache::cache::Pinned<'_>) -> usize {
    pinned.into_ptr().as_ptr() as usize
}

/// A cache on the storage; if it is not to share its device, on a storage of its own above it.
fn new_cache(storage: &Arc<TestStorage>, one_device: bool, options: &CacheOptions) -> Arc<Cache> {
    if one_device {
        return cache_with(storage, options);
    }
    let own = Arc::new(OwnDevice(storage.clone()));
    Cache::new(options, own, ThreadHost::shared()).unwrap()
}

/// Fills a new cache once. Returns the address of its first slot, and the counters afterwards.
fn measure(cache: &Cache) -> (usize, CacheStats) {
    let size = cache.table_size() as u64;
    let load = |n| address_of(get_empty(cache, n * size).unwrap());
    let tables: Vec<usize> = (1..=cache.stats().tables as u64).map(load).collect();
    tables.iter().for_each(|table| cache.put(*table).unwrap());
    cache.discard_all().unwrap();
    (*tables.iter().min().unwrap(), cache.stats())
}

impl Harness {
    /// `region_tables`: how many tables each cache's region has. `faults`: the storage calls that
    /// fail, by number.
    pub fn new(shape: &Shape, region_tables: u64, faults: &BTreeMap<usize, Errno>) -> Self {
        let mut storage = TestStorage::new(REGION as usize * (shape.caches.len() + 1));
        storage.max_iov = shape.max_iov;
        let storage = Arc::new(storage);
        let caches: Vec<_> = shape
            .caches
            .iter()
            .zip(1..)
            .map(|(&(tables, table_size, reserved), kind)| {
                let options = CacheOptions {
                    tables,
                    table_size,
                    kind,
                    reserved,
                };
                new_cache(&storage, shape.one_device, &options)
            })
            .collect();
        let model = Model {
            caches: shape
                .caches
                .iter()
                .zip(1..)
                .map(|(&(tables, size, reserved), kind)| {
                    ModelCache::new(kind, size, tables, reserved)
                })
                .collect(),
            disk: lock(&storage.disk).clone(),
            max_iov: shape.max_iov,
            one_device: shape.one_device,
            ..Model::default()
        };
        let mut harness = Self {
            model,
            bases: Vec::new(),
            held: Vec::new(),
            initial_stats: Vec::new(),
            storage,
            caches,
            region_tables,
        };
        for cache in &harness.caches {
            let (base, stats) = measure(cache);
            harness.bases.push(base);
            harness.initial_stats.push(stats);
        }
        assert_eq!(harness.storage.log_len(), 0);
        harness.set_faults(faults);
        harness
    }

    /// From now on these storage calls fail, numbered from the next call.
    pub fn set_faults(&mut self, faults: &BTreeMap<usize, Errno>) {
        let from = self.storage.log_len();
        self.model.faults = faults
            .iter()
            .map(|(number, errno)| (number + from, *errno))
            .collect();
        let faults = self.model.faults.clone();
        self.storage
            .set_hook(move |number, _| faults.get(&number).map_or(Ok(()), |e| Err(*e)));
    }

    pub fn offset(&self, c: usize, table: u64) -> u64 {
        REGION * (c as u64 + 1) + table % self.region_tables * self.caches[c].table_size() as u64
    }

    /// Whether a failed flush of a cache cannot be made good.
    pub fn is_unstable(&self) -> bool {
        let mut caches = self.model.caches.iter();
        caches.any(|cache| cache.stats.flush_error.is_some())
    }

    pub fn has_pins(&self) -> bool {
        !self.held.is_empty()
    }

    fn slot_of(&self, c: usize, address: usize) -> usize {
        (address - self.bases[c]) / self.caches[c].table_size()
    }

    fn resident(&self, c: usize, offset: u64) -> Option<usize> {
        let table = self.caches[c].table_at(offset).unwrap();
        table.map(|table| self.slot_of(c, table.as_ptr() as usize))
    }

    /// Applies `op` to the caches and to the model, compares both, and returns the result of `op`.
    pub fn apply(&mut self, op: &Op) -> Result<(), Errno> {
        let log_from = self.storage.log_len();
        let result = self.run(op);
        let (real, model) = (self.storage.log_from(log_from), &self.model.log[log_from..]);
        assert_eq!(real, model, "storage calls of {op:?}");
        self.compare(op);
        result
    }

    fn run(&mut self, op: &Op) -> Result<(), Errno> {
        match *op {
            Op::Get(c, table, mode) => self.get(c, self.offset(c, table), mode),
            Op::GetRaw(c, offset) => self.get(c, offset, GetMode::Locked),
            Op::Put(pin) => self.put(pin),
            Op::Read(c, table, at, bytes) => self.read(c, self.offset(c, table), at, bytes),
            Op::Store(pin, at, value) => self.store(pin, at, value),
            Op::Change(pin, at, value) => {
                self.store(pin, at, value)?;
                self.mark_dirty(pin)
            }
            Op::MarkDirty(pin) => self.mark_dirty(pin),
            Op::Write(c) => self.both(c, |cache| write(cache), |m| m.write(c)),
            Op::Flush(c) => self.both(c, |cache| flush(cache), |m| m.flush(c)),
            Op::Empty(c) => self.both(c, |cache| empty(cache), |m| m.empty(c)),
            Op::SetDependency(c, on) => {
                let other = self.caches[on].clone();
                self.both(
                    c,
                    |cache| set_dependency(cache, &other),
                    |m| m.set_dependency(c, on),
                )
            }
            Op::DependsOnFlush(c) => self.both(
                c,
                |cache| cache.depends_on_flush(),
                |m| {
                    m.caches[c].depends_on_flush = true;
                    Ok(())
                },
            ),
            Op::Clean(c) => self
                .both(
                    c,
                    |cache| Ok(cache.clean_unused()),
                    |m| Ok(m.clean_unused(c)),
                )
                .map(drop),
            Op::Replace(c) => self.replace(c),
            _ => self.discard(op),
        }
    }

    fn replace(&mut self, c: usize) -> Result<(), Errno> {
        self.both(c, |cache| cache.check_destroy(), |m| m.replace(c))?;
        let cache = &self.caches[c];
        let stats = cache.stats();
        let options = CacheOptions {
            tables: stats.tables,
            table_size: stats.table_size,
            kind: self.model.caches[c].kind,
            reserved: self.model.caches[c].reserved,
        };
        cache.retire();
        assert_eq!(Arc::strong_count(cache), 1, "a destroyed cache is gone");
        self.caches[c] = new_cache(&self.storage, self.model.one_device, &options);
        (self.bases[c], self.initial_stats[c]) = measure(&self.caches[c]);
        Ok(())
    }

    fn discard(&mut self, op: &Op) -> Result<(), Errno> {
        match *op {
            Op::DiscardOffset(c, table) => {
                let offset = self.offset(c, table);
                self.both(
                    c,
                    |cache| cache.discard_offset(offset),
                    |m| {
                        m.discard(c, offset);
                        Ok(())
                    },
                )
            }
            Op::DiscardRange(c, start, bytes) => {
                let offset = self.offset(c, 0) + start;
                self.both(
                    c,
                    |cache| cache.discard_range(offset, bytes),
                    |m| {
                        m.discard_range(c, offset, bytes);
                        Ok(())
                    },
                )
            }
            Op::GiveUp(c) => self.both(
                c,
                |cache| cache.discard_range(0, u64::MAX),
                |m| {
                    m.give_up(c);
                    Ok(())
                },
            ),
            Op::DiscardTable(c, table) => {
                self.discard_table(c, self.offset(c, table), self.offset(c, table))
            }
            Op::DiscardStale(c, a, b) => {
                self.discard_table(c, self.offset(c, a), self.offset(c, b))
            }
            Op::DiscardAll(c) => self.both(
                c,
                |cache| cache.discard_all(),
                |m| {
                    if m.caches[c].slots.iter().flatten().any(|t| t.pins > 0) {
                        return Err(Errno::BUSY);
                    }
                    m.give_up(c);
                    Ok(())
                },
            ),
            _ => unreachable!(),
        }
    }

    fn both<T: PartialEq + std::fmt::Debug>(
        &mut self,
        c: usize,
        real: impl FnOnce(&Arc<Cache>) -> Result<T, Errno>,
        model: impl FnOnce(&mut Model) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let real = real(&self.caches[c]);
        assert_eq!(real, model(&mut self.model));
        real
    }

    fn get(&mut self, c: usize, offset: u64, mode: GetMode) -> Result<(), Errno> {
        let cache = self.caches[c].clone();
        let log_from = self.storage.log_len();
        let pinned = match mode {
            GetMode::Locked => get(&cache, offset),
            GetMode::Empty => get_empty(&cache, offset),
            GetMode::Unlocked => get_unlocked(&cache, offset),
            GetMode::Try => cache.try_get(offset),
        };
        let pinned = pinned.map(address_of);
        let kind = c as i32 + 1;
        let checked = self
            .storage
            .log_from(log_from)
            .iter()
            .rev()
            .find_map(|io| match io {
                Io::Check {
                    kind: of, offset, ..
                } if *of == kind => Some(*offset),
                _ => None,
            });
        let before = self.model.caches[c]
            .slots
            .iter()
            .flatten()
            .filter(|t| !t.discarded);
        let mut evicted_tables = before
            .map(|t| t.offset)
            .filter(|offset| self.resident(c, *offset).is_none());
        let slot = pinned.map(|address| self.slot_of(c, address));
        let observed = Observed {
            checked,
            evicted: evicted_tables.next(),
            slot,
        };
        assert_eq!(
            evicted_tables.next(),
            None,
            "a get evicts at most one table"
        );
        let model = self.model.get(c, offset, mode, &observed);
        assert_eq!(slot, model, "get of {offset:#x}, {mode:?}");
        let (address, slot) = (pinned?, model?);
        self.held.push(HeldPin {
            cache: c,
            slot,
            address,
        });
        Ok(())
    }

    /// A held pin, by any number (modulo the number of pins). `None` if no pin is held.
    fn pin(&self, pin: usize) -> Option<&HeldPin> {
        self.held.get(pin.checked_rem(self.held.len())?)
    }

    fn put(&mut self, pin: usize) -> Result<(), Errno> {
        let Some(pin) = pin.checked_rem(self.held.len()) else {
            return Ok(());
        };
        let held = self.held.swap_remove(pin);
        self.model.put(held.cache, held.slot);
        self.caches[held.cache].put(held.address).unwrap();
        let pins = self.model.caches[held.cache].slots[held.slot]
            .as_ref()
            .map_or(0, |t| t.pins);
        if pins == 0 {
            // A put without a pin fails and changes nothing.
            assert_eq!(self.caches[held.cache].put(held.address), Err(Errno::INVAL));
            assert_eq!(
                self.caches[held.cache].mark_dirty(held.address),
                Err(Errno::INVAL)
            );
        }
        Ok(())
    }

    fn store(&mut self, pin: usize, at: usize, value: u64) -> Result<(), Errno> {
        let Some(&HeldPin {
            cache,
            slot,
            address,
        }) = self.pin(pin)
        else {
            return Ok(());
        };
        let stored = self.caches[cache].store(address, at, value);
        if at % 8 != 0 || at >= self.model.caches[cache].size {
            assert_eq!(stored, Err(Errno::INVAL));
            return stored;
        }
        self.model.caches[cache].table(slot).bytes[at..at + 8]
            .copy_from_slice(&value.to_ne_bytes());
        assert_eq!(stored, Ok(()));
        stored
    }

    fn mark_dirty(&mut self, pin: usize) -> Result<(), Errno> {
        let Some(&HeldPin {
            cache,
            slot,
            address,
        }) = self.pin(pin)
        else {
            return Ok(());
        };
        let table = self.model.caches[cache].table(slot);
        table.dirty = !table.discarded;
        self.both(cache, |cache| cache.mark_dirty(address), |_| Ok(()))
    }

    fn read(&mut self, c: usize, offset: u64, at: usize, bytes: usize) -> Result<(), Errno> {
        let mut buf = vec![0; bytes];
        let real = self.caches[c].read(offset, at, &mut buf);
        let cache = &mut self.model.caches[c];
        if (at | bytes) % 8 != 0 || at + bytes > cache.size {
            assert_eq!(real, Err(Errno::INVAL));
            return real;
        }
        let Some(slot) = cache.find(offset) else {
            assert_eq!(real, Err(Errno::AGAIN));
            return real;
        };
        assert_eq!(real, Ok(()));
        assert_eq!(buf, cache.table(slot).bytes[at..at + bytes]);
        cache.table(slot).used = true;
        real
    }

    fn discard_table(&mut self, c: usize, offset: u64, of: u64) -> Result<(), Errno> {
        let Some(table) = self.caches[c].table_at(of).unwrap() else {
            return Ok(());
        };
        let expected = if offset == of {
            Ok(())
        } else {
            Err(Errno::STALE)
        };
        self.both(
            c,
            |cache| cache.discard_table(offset, table.as_ptr() as usize),
            |m| {
                if offset == of {
                    m.discard(c, offset);
                }
                expected
            },
        )
    }

    /// Compares the slot and every byte of each table, the counters, and every byte of storage.
    fn compare(&self, op: &Op) {
        for (c, cache) in self.model.caches.iter().enumerate() {
            for table in 0..self.region_tables {
                let offset = self.offset(c, table);
                assert_eq!(
                    self.resident(c, offset),
                    cache.find(offset),
                    "slot of {offset:#x} after {op:?}"
                );
            }
            for (slot, table) in cache.slots.iter().enumerate() {
                let Some(table) = table else { continue };
                let address = self.bases[c] + slot * cache.size;
                // SAFETY: the range is inside the cache's mapping, which lives as long as the
                // harness, and there is only one thread.
                let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, cache.size) };
                assert!(
                    bytes == table.bytes,
                    "bytes of {:#x} after {op:?}",
                    table.offset
                );
            }
            let real = self.since(c, &self.caches[c].stats());
            assert_eq!(real, self.model.stats(c), "statistics after {op:?}");
        }
        assert!(
            *lock(&self.storage.disk) == self.model.disk,
            "storage after {op:?}"
        );
    }

    /// The counters since the harness was created. The model does not count memory.
    fn since(&self, c: usize, stats: &CacheStats) -> CacheStats {
        let before = &self.initial_stats[c];
        CacheStats {
            hits: stats.hits - before.hits,
            misses: stats.misses - before.misses,
            loads: stats.loads - before.loads,
            evictions: stats.evictions - before.evictions,
            write_backs: stats.write_backs - before.write_backs,
            writes: stats.writes - before.writes,
            cleaned: stats.cleaned - before.cleaned,
            discarded: stats.discarded - before.discarded,
            redirtied: stats.redirtied - before.redirtied,
            lost: stats.lost - before.lost,
            resident_bytes: 0,
            metadata_bytes: 0,
            ..*stats
        }
    }

    /// Unpins all tables, then empties every cache without faults and checks that nothing was lost.
    pub fn finish(mut self) {
        self.set_faults(&BTreeMap::new());
        while self.has_pins() {
            self.apply(&Op::Put(0)).unwrap();
        }
        for c in 0..self.caches.len() {
            // An unstable cache is so until it is given up. So is what depends on it.
            if self.apply(&Op::Empty(c)).is_err() {
                assert!(self.is_unstable());
                self.apply(&Op::GiveUp(c)).unwrap();
            }
            self.apply(&Op::Replace(c)).unwrap();
        }
    }
}
