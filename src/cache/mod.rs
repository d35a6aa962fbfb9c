// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table cache: get and put, pins, eviction, write-back order, cleaning.
//!
//! | file | subject |
//! |---|---|
//! | `get`, `fast_path` | gets; what nearly every get, put and read does, in a straight line |
//! | `load` | the slow path of a get: wait, make room, load |
//! | `waiters` | who waits for what, and whom an event wakes |
//! | `read` | copies without a pin |
//! | `pinned` | what the holder of a pin does: store, mark dirty, put |
//! | `slot` | one slot's state, pins and version: the lock-free part |
//! | `group`, `dirty` | bits that find slots without a scan |
//! | `index` | offset → slot |
//! | `eviction`, `ghosts` | which slot to use next |
//! | `writeback`, `dependency` | writing dirty tables, in order |
//! | `durability`, `unflushed`, `device` | flushes of storage: what they make stable, what a failed one may have lost |
//! | `discard`, `cleaning` | dropping tables |
//! | `tables`, `words`, `arena`, `mapping` | memory: the tables', and what is kept about them |
//! | `structure` | the structure lock |
//! | `stats` | statistics |
//!
//! *Locks*: each cache has one structure lock. It is held for a few µs, and never across a
//! callback, a wake-up or another cache's lock. Hits, puts, `mark_dirty`, `read` and `store` do not
//! take it.

pub mod arena;
pub mod cleaning;
pub mod dependency;
mod device;
pub mod dirty;
pub mod discard;
mod durability;
pub mod eviction;
pub(crate) mod fast_path;
pub(crate) mod get;
pub mod ghosts;
pub mod group;
pub mod index;
pub mod load;
mod mapping;
pub mod pinned;
mod read;
pub mod slot;
mod stats;
mod structure;
pub mod tables;
mod unflushed;
mod waiters;
mod words;
pub mod writeback;

use std::ops::Range;
use std::sync::Arc;

use self::arena::{Zeroed, array_bytes};
use self::dependency::Dependencies;
use self::device::Device;
use self::dirty::DirtySet;
use self::eviction::RecentArrivals;
use self::ghosts::Ghosts;
use self::group::Group;
use self::index::Index;
use self::slot::Slot;
use self::structure::StructureLock;
use self::tables::Tables;
use self::unflushed::Unflushed;
use self::waiters::Waiters;
use crate::error::{Errno, Error, Result};
use crate::host::Host;
use crate::primitives::{
    AtomicBool, AtomicU32, AtomicU64, CachePadded, Mutex, MutexGuard, Ordering,
};
use crate::storage::{Corruption, Storage};

pub use self::pinned::Pinned;
pub use self::stats::CacheStats;

/// How a cache is made.
#[derive(Clone, Copy, Debug)]
pub struct CacheOptions {
    /// Number of slots, at least 1, at most 2^31 − 1.
    pub tables: usize,
    /// Bytes of a table: a power of two from 512 to 2 MiB.
    pub table_size: usize,
    /// The caller's own number for what the cache holds, handed to storage.
    pub kind: i32,
    /// Slots that [`Cache::get_unlocked`] neither loads into nor pins; at most `tables`.
    pub reserved: usize,
}

struct Inner {
    /// The clock hand: where the search for a victim goes on.
    hand: usize,
    /// Where the search for a victim on probation goes on.
    probation_hand: usize,
    /// How many tables are on probation.
    probation: usize,
    recent_arrivals: RecentArrivals,
    /// No group below this one has a free slot.
    free_hint: usize,
    loading: usize,
    releasing: usize,
    /// Slots that are being written.
    writing: Vec<u32>,
    unflushed: Unflushed,
    /// [`Orphans::left`](device::Orphans::left) when everything was given up.
    orphans_given_up: u64,
    waiters: Waiters,
}

#[derive(Default)]
struct Counters {
    /// Hits that were moved here from the slots' words.
    hits: AtomicU64,
    misses: AtomicU64,
    loads: AtomicU64,
    evictions: AtomicU64,
    write_backs: AtomicU64,
    writes: AtomicU64,
    cleaned: AtomicU64,
    discarded: AtomicU64,
    redirtied: AtomicU64,
    lost: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: usize) {
        if n > 0 {
            counter.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    /// Increments a counter that only changes under the structure lock.
    fn increment_locked(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// A cache of equally sized tables of one image file. Usable from any thread.
pub struct Cache {
    tables: Tables,
    slots: Zeroed<Slot>,
    groups: Zeroed<Group>,
    dirty: DirtySet,
    index: Index,
    ghosts: Ghosts,
    table_shift: u32,
    kind: i32,
    reserved: usize,
    poisoned: AtomicBool,
    /// A state owns the cache: it must not be destroyed by itself.
    is_owned_by_state: AtomicBool,
    /// The errno that every flush returns; 0: none. See `durability`.
    flush_error: AtomicU32,
    device: Arc<Device>,
    /// How many groups, from the first on, have ever had a table: see [`Cache::touched_groups`].
    touched: AtomicU64,
    storage: Arc<dyn Storage>,
    host: Arc<dyn Host>,
    // Every miss writes to the fields below. Hits read the fields above, most of them constant.
    inner: CachePadded<StructureLock<Inner>>,
    dependencies: CachePadded<Mutex<Dependencies>>,
    counters: CachePadded<Counters>,
}

impl Cache {
    /// Makes an empty cache. No table memory is resident before it is used.
    ///
    /// `EINVAL`: an option out of range; `ENOMEM`: no memory or address space.
    pub fn new(
        options: &CacheOptions,
        storage: Arc<dyn Storage>,
        host: Arc<dyn Host>,
    ) -> Result<Arc<Self>> {
        options.check()?;
        let CacheOptions {
            tables,
            table_size,
            kind,
            reserved,
        } = *options;
        let table_shift = table_size.trailing_zeros();
        let (memory, mut arena) = Tables::new(tables, table_shift, Self::array_bytes(tables))?;
        let arena = &mut arena;
        let groups = arena.zeroed::<Group>(tables.div_ceil(group::SLOTS));
        let device = Device::of(&storage);
        let cache = Arc::new(Self {
            tables: memory,
            slots: arena.zeroed(tables),
            dirty: DirtySet::new(arena, groups.len()),
            groups,
            index: Index::new(arena, tables),
            ghosts: Ghosts::new(arena, tables),
            table_shift,
            kind,
            reserved,
            poisoned: AtomicBool::new(false),
            is_owned_by_state: AtomicBool::new(false),
            flush_error: AtomicU32::new(0),
            device,
            touched: AtomicU64::new(0),
            storage,
            host,
            inner: CachePadded(StructureLock::new(Inner {
                hand: 0,
                probation_hand: 0,
                probation: 0,
                recent_arrivals: RecentArrivals::new(arena, tables),
                free_hint: 0,
                loading: 0,
                releasing: 0,
                writing: Vec::new(),
                unflushed: Unflushed::default(),
                orphans_given_up: 0,
                waiters: Waiters::default(),
            })),
            dependencies: CachePadded(Mutex::new(Dependencies::default())),
            counters: CachePadded(Counters::default()),
        });
        cache.device.join(&cache);
        Ok(cache)
    }

    /// Bytes of all arrays of a cache of `tables` slots. Saturates.
    fn array_bytes(tables: usize) -> usize {
        let groups = tables.div_ceil(group::SLOTS);
        [
            array_bytes::<Slot>(tables),
            array_bytes::<Group>(groups),
            DirtySet::bytes(groups),
            Index::bytes(tables),
            Ghosts::bytes(tables),
            RecentArrivals::bytes(tables),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// The host whose callers use this cache.
    pub fn host(&self) -> &dyn Host {
        &*self.host
    }

    /// Bytes of a table.
    pub fn table_size(&self) -> usize {
        self.tables.table_size()
    }

    /// A state takes the cache over: it must not be destroyed by itself.
    pub fn set_owned_by_state(&self) {
        self.is_owned_by_state.store(true, Ordering::Relaxed);
    }

    /// Whether a state owns the cache.
    pub fn is_owned_by_state(&self) -> bool {
        self.is_owned_by_state.load(Ordering::Relaxed)
    }

    /// Marks the cache as damaged by an internal panic: nothing is ever written again, and every
    /// call fails with `EIO`.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
        // What the waiters wait for may never end now: they look at the flag instead.
        let wakes = self.lock_inner().waiters.notify_all();
        wakes.wake();
    }

    #[inline]
    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }

    /// `EIO` if poisoned.
    pub fn check_poison(&self) -> core::result::Result<(), Errno> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        Ok(())
    }

    /// `EINVAL`: offset 0. `EIO`: not a multiple of the table size, or poisoned. Calls storage's
    /// `corruption`, so no lock may be held.
    #[inline]
    fn check_offset(&self, offset: u64) -> core::result::Result<(), Errno> {
        self.check_poison()?;
        if offset == 0 || offset & (self.table_size() as u64 - 1) != 0 {
            return Err(self.report_bad_offset(offset));
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn report_bad_offset(&self, offset: u64) -> Errno {
        if offset == 0 {
            return Errno::INVAL;
        }
        let size = self.table_size();
        let message =
            format!("table offset {offset:#x} is not a multiple of the table size, {size} bytes");
        self.storage
            .corruption(Corruption::UnalignedOffset, self.kind, offset, &message);
        Errno::IO
    }

    /// The groups that have ever had a table. What walks over all tables does not look at the
    /// others: in a cache that is mostly unused, that would make their memory resident.
    fn touched_groups(&self) -> Range<usize> {
        0..self.touched.load(Ordering::Acquire) as usize
    }

    /// The slots of [`Cache::touched_groups`].
    fn touched_slots(&self) -> &[Slot] {
        let end = self.touched_groups().end * group::SLOTS;
        &self.slots[..end.min(self.slots.len())]
    }

    fn is_reserved(&self, slot: u32) -> bool {
        slot as usize >= self.slots.len() - self.reserved
    }

    /// Whether prefetching pays. Smaller caches' metadata (40 bytes a slot: 160 KiB) stays in the
    /// processor's caches anyway.
    fn wants_prefetch(&self) -> bool {
        self.slots.len() >= 4096
    }

    fn offset_of(&self, slot: u32) -> u64 {
        self.slot(slot).offset()
    }

    /// The slot that the index has for `offset`. Without the structure lock, `None` is not final.
    fn find_unlocked(&self, offset: u64) -> Option<u32> {
        self.index
            .find(offset, |slot| self.slot(slot).offset() == offset)
    }

    /// Takes `slot`'s entry out of the index. Structure lock held.
    fn remove_from_index(&self, _inner: &mut Inner, slot: u32) -> bool {
        self.index
            .remove(self.offset_of(slot), slot, |s| self.offset_of(s))
    }

    /// Bookkeeping for a slot that became free. Structure lock held.
    fn mark_free(&self, inner: &mut Inner, slot: u32) {
        let (group, bit) = group::place(slot);
        self.mark_group_free(inner, group, bit);
    }

    /// Bookkeeping for slots of one group that became free. Structure lock held.
    fn mark_group_free(&self, inner: &mut Inner, group: usize, bits: u64) {
        inner.probation -= self.groups[group].free(bits);
        inner.free_hint = inner.free_hint.min(group);
    }

    /// Frees the slot if its table was discarded and is neither pinned nor written any more.
    /// Structure lock held.
    fn free_discarded_locked(&self, inner: &mut Inner, slot: u32) {
        if let Some(before) = self.slots[slot as usize].free_discarded() {
            Counters::add(&self.counters.hits, before.hits() as usize);
            self.mark_free(inner, slot);
        }
    }

    /// [`Cache::free_discarded_locked`], then wakes the waiters. Takes the structure lock.
    fn free_discarded(&self, slot: u32) {
        let wakes = {
            let mut inner = self.lock_inner();
            self.free_discarded_locked(&mut inner, slot);
            inner.waiters.notify(slot)
        };
        wakes.wake();
    }

    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // A cache that was retired has left already. Nothing can depend on this one any more.
        self.leave_device(&[]);
    }
}

impl CacheOptions {
    fn check(&self) -> Result<()> {
        let size_ok = self.table_size.is_power_of_two()
            && (tables::MIN_TABLE_SIZE..=tables::MAX_TABLE_SIZE).contains(&self.table_size);
        if !size_ok {
            return Err(Error::new(
                Errno::INVAL,
                format!(
                    "table size {} is not a power of two between {} and {} bytes",
                    self.table_size,
                    tables::MIN_TABLE_SIZE,
                    tables::MAX_TABLE_SIZE
                ),
            ));
        }
        if self.tables == 0 || self.tables > i32::MAX as usize {
            return Err(Error::new(
                Errno::INVAL,
                format!("{} tables are not between 1 and {}", self.tables, i32::MAX),
            ));
        }
        if self.reserved > self.tables {
            return Err(Error::new(
                Errno::INVAL,
                format!(
                    "{} reserved tables are more than the cache's {}",
                    self.reserved, self.tables
                ),
            ));
        }
        Ok(())
    }
}
