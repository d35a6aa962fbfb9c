// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table cache: get and put, pins, eviction, write-back order, cleaning.
//!
//! | file | subject |
//! |---|---|
//! | `slot` | one slot's state, pins and version: the lock-free part |
//! | `group`, `dirty` | bits that find slots without a scan |
//! | `index` | offset → slot |
//! | `fast_path` | the hot paths, straight |
//! | `load` | the slow way of a get: wait, make room, load |
//! | `eviction` | which slot to use next |
//! | `writeback`, `dependency` | writing dirty tables, in order |
//! | `discard`, `cleaning` | dropping tables |
//! | `tables`, `zeroed`, `mapping` | memory: the tables', and what is kept about them |
//! | `structure` | the structure lock |
//!
//! *Locks*: one structure lock a cache, held for short, never across a callback, a wake-up or a second cache's lock.
//! Hits, puts, `mark_dirty`, `read` and `store` do not take it.

pub mod cleaning;
pub mod dependency;
pub mod dirty;
pub mod discard;
pub mod eviction;
pub(crate) mod fast_path;
pub mod ghosts;
pub mod group;
pub mod index;
pub mod load;
mod mapping;
pub mod slot;
mod stats;
mod structure;
pub mod tables;
pub mod writeback;
mod zeroed;

use std::ptr::NonNull;
use std::sync::Arc;

use self::dependency::Dependencies;
use self::dirty::DirtySet;
use self::eviction::RecentArrivals;
use self::fast_path::LookupFailure;
use self::ghosts::Ghosts;
use self::group::Group;
use self::index::Index;
use self::load::{Access, Fill};
use self::slot::{Slot, UnpinResult};
use self::structure::StructureLock;
use self::tables::Tables;
use self::zeroed::{Zeroed, zeroed};
use crate::error::{Errno, Error, Result};
use crate::host::Host;
use crate::primitives::{AtomicBool, AtomicU64, CachePadded, Mutex, MutexGuard, Ordering, fence};
use crate::storage::{Corruption, Storage};
use crate::sync::wait_list::{WaitList, Waiter, WakeList};

pub use self::stats::CacheStats;

/// How a cache is made.
#[derive(Clone, Copy, Debug)]
pub struct CacheOptions {
    /// Number of slots, at least 1, at most 2^31 − 1.
    pub tables: usize,
    /// Bytes of a table: a power of two from 512 to 2 MiB.
    pub table_size: usize,
    /// The caller's own number for what the cache holds, handed to storage's checks.
    pub kind: i32,
    /// Slots that [`Cache::get_unlocked`] neither loads into nor pins; at most `tables`.
    pub reserved: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// For this slot's load or write to end.
    Slot(u32),
    /// For any slot's load, write or release to end.
    Any,
}

struct Inner {
    /// The clock hand: where the search for a victim goes on.
    hand: usize,
    /// The same for tables on probation.
    probation_hand: usize,
    /// Tables on probation.
    probation: usize,
    recent_arrivals: RecentArrivals,
    /// No group below this one has a free slot.
    free_hint: usize,
    loading: usize,
    releasing: usize,
    /// Slots that are being written.
    writing: Vec<u32>,
    waiters: WaitList<Wait>,
}

#[derive(Default)]
struct Counters {
    /// Hits taken out of the slots' words.
    hits: AtomicU64,
    misses: AtomicU64,
    loads: AtomicU64,
    evictions: AtomicU64,
    write_backs: AtomicU64,
    writes: AtomicU64,
    cleaned: AtomicU64,
    discarded: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: usize) {
        if n > 0 {
            counter.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    /// One more of what is counted under the structure lock alone.
    fn one_more_locked(counter: &AtomicU64) {
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
    /// A state owns it: not to be destroyed by itself.
    is_owned_by_state: AtomicBool,
    storage: Arc<dyn Storage>,
    host: Arc<dyn Host>,
    // Every miss writes to these; hits read what stands above, all of it constant.
    inner: CachePadded<StructureLock<Inner>>,
    dependencies: CachePadded<Mutex<Dependencies>>,
    counters: CachePadded<Counters>,
}

impl Cache {
    /// A cache without a table in it. No table memory is resident before it is used.
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
        let groups = zeroed::<Group>(tables.div_ceil(group::SLOTS))?;
        Ok(Arc::new(Self {
            tables: Tables::new(tables, table_shift)?,
            slots: zeroed(tables)?,
            dirty: DirtySet::new(groups.len())?,
            groups,
            index: Index::new(tables)?,
            ghosts: Ghosts::new(tables)?,
            table_shift,
            kind,
            reserved,
            poisoned: AtomicBool::new(false),
            is_owned_by_state: AtomicBool::new(false),
            storage,
            host,
            inner: CachePadded(StructureLock::new(Inner {
                hand: 0,
                probation_hand: 0,
                probation: 0,
                recent_arrivals: RecentArrivals::new(tables)?,
                free_hint: 0,
                loading: 0,
                releasing: 0,
                writing: Vec::new(),
                waiters: WaitList::default(),
            })),
            dependencies: CachePadded(Mutex::new(Dependencies::default())),
            counters: CachePadded(Counters::default()),
        }))
    }

    /// The host whose callers use this cache.
    pub fn host(&self) -> &dyn Host {
        &*self.host
    }

    /// Bytes of a table.
    pub fn table_size(&self) -> usize {
        self.tables.table_size()
    }

    /// Pins the table at `offset` and gives access to it, loading it if need be. State lock held by the caller.
    ///
    /// `EBUSY`: every slot is truly pinned. `EINVAL`: offset 0. `EIO`: an offset that is no multiple of the table size
    /// (storage's `corruption` was called), or a poisoned cache. Others are storage's: of the load, or of the write
    /// of a dirty table that had to make room.
    pub async fn get(&self, offset: u64) -> core::result::Result<Pinned<'_>, Errno> {
        self.get_with(offset, Fill::FromStorage, Access::Locked)
            .await
    }

    /// As [`Cache::get`] for a table that is about to be written whole: nothing is read. An absent table enters filled with
    /// zeros, a resident one comes as it is.
    pub async fn get_empty(&self, offset: u64) -> core::result::Result<Pinned<'_>, Errno> {
        self.get_with(offset, Fill::Zeros, Access::Locked).await
    }

    /// As [`Cache::get`], without the state lock: hits, and loads that need no write-back. `EAGAIN`: take the lock and
    /// use `get`.
    pub async fn get_unlocked(&self, offset: u64) -> core::result::Result<Pinned<'_>, Errno> {
        self.get_with(offset, Fill::FromStorage, Access::Unlocked)
            .await
    }

    /// Pins a resident table. `EAGAIN`: it is not resident, not without doubt, or in a slot that is reserved for those who
    /// hold the state lock. Never waits, takes no lock.
    #[inline]
    pub fn try_get(&self, offset: u64) -> core::result::Result<Pinned<'_>, Errno> {
        let hit = self.lookup(offset, Access::Unlocked);
        hit.ok_or_else(|| self.lookup_error(offset))
    }

    /// What [`Cache::try_get`] says when there was no hit.
    pub(crate) fn lookup_error(&self, offset: u64) -> Errno {
        self.check_offset(offset).err().unwrap_or(Errno::AGAIN)
    }

    async fn get_with(
        &self,
        offset: u64,
        fill: Fill,
        access: Access,
    ) -> core::result::Result<Pinned<'_>, Errno> {
        if let Some(pinned) = self.lookup(offset, access) {
            return Ok(pinned);
        }
        let mut miss_counted = false;
        if let Some(pinned) = self.get_in_one_step(offset, fill, access, &mut miss_counted)? {
            return Ok(pinned);
        }
        self.get_slow(offset, fill, access, miss_counted).await
    }

    /// The lock-free hit: look up, pin, look at the offset again. Unlocked callers do not pin a reserved slot, not even for a
    /// moment: a locked get could find nothing but pinned slots then.
    pub fn lookup(&self, offset: u64, access: Access) -> Option<Pinned<'_>> {
        match self.lookup_fast(offset, access) {
            Ok((slot, needs_touch)) => {
                if needs_touch {
                    self.touch(slot);
                }
                Some(Pinned { cache: self, slot })
            }
            Err(failure) => self.lookup_slow(failure, offset, access),
        }
    }

    /// The hit with every case considered, for [`Cache::lookup`] and whoever has tried [`Cache::lookup_fast`].
    pub(crate) fn lookup_slow(
        &self,
        failure: LookupFailure,
        offset: u64,
        access: Access,
    ) -> Option<Pinned<'_>> {
        match failure {
            LookupFailure::NotIndexed => return None,
            LookupFailure::SlotReused(slot) => self.unpin_mismatched(slot),
            LookupFailure::NeedsSlowPath => {}
        }
        let slot_number = self.find_unlocked(offset)?;
        if access == Access::Unlocked && self.is_reserved(slot_number) {
            return None;
        }
        let slot = self.slot(slot_number);
        if self.is_poisoned() || !slot.pin(&self.counters.hits) {
            return None;
        }
        let pinned = Pinned {
            cache: self,
            slot: slot_number,
        };
        #[cfg(not(feature = "unsound-no-pin-recheck"))]
        if slot.offset() != offset {
            // The slot went to another table between the lookup and the pin. `pinned` gives its pin back.
            return None;
        }
        self.touch(slot_number);
        Some(pinned)
    }

    /// Gives back the pin on a slot that turned out to hold another table.
    fn unpin_mismatched(&self, number: u32) {
        let given_back = self.unpin_slot(number);
        debug_assert!(given_back.is_ok(), "somebody else put this pin");
    }

    fn find_unlocked(&self, offset: u64) -> Option<u32> {
        self.index
            .find(offset, |slot| self.slot(slot).offset() == offset)
    }

    /// Copies `buf.len()` bytes from byte `at` of a resident table; no lock, no pin, never waits. Each aligned 8-byte word
    /// is read atomically, all of them from that table.
    ///
    /// `EAGAIN`: not resident, or it left while it was being copied; `buf` may have been written to then. `EINVAL`: `at` or the length
    /// not a multiple of 8, or beyond the table.
    pub fn read(&self, offset: u64, at: usize, buf: &mut [u8]) -> core::result::Result<(), Errno> {
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

    /// [`Cache::read`] with every case considered, for it and whoever has tried [`Cache::read_fast`].
    pub(crate) fn read_slow(
        &self,
        offset: u64,
        at: usize,
        buf: &mut [u8],
    ) -> core::result::Result<(), Errno> {
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
        let is_it = slot.offset() == offset;
        // Acquire: the loads above come before the second look. If one of them saw bytes or the offset of the slot's next table, this look
        // sees that the claim for it came first: the claim's word precedes the offset (`Slot::set_offset`) and those bytes (release fence in
        // `load`). So bytes and offset are of one table.
        fence(Ordering::Acquire);
        if !is_it || !slot.word().is_same_table(before) {
            return Err(Errno::AGAIN);
        }
        self.touch(slot_number);
        Ok(())
    }

    /// The slot that the pinned table at `table` lies in. `EINVAL`: not the address of a table of this cache, or one
    /// that nobody pins.
    fn pinned_slot(&self, table: usize) -> core::result::Result<u32, Errno> {
        let slot = self.tables.slot_of(table).ok_or(Errno::INVAL)?;
        if self.slot(slot).word().pins() == 0 {
            return Err(Errno::INVAL);
        }
        Ok(slot)
    }

    /// Gives back the pin on the table at the address `table`. `EINVAL`: a foreign or unpinned table. `EIO`: poisoned; the pin
    /// is given back all the same. Any thread; takes the structure lock only for the last pin of a discarded table.
    pub fn put(&self, table: usize) -> core::result::Result<(), Errno> {
        if self.put_fast(table) {
            return Ok(());
        }
        self.put_slow(table)
    }

    /// [`Cache::put`] with every case considered, for it and whoever has tried [`Cache::put_fast`].
    pub(crate) fn put_slow(&self, table: usize) -> core::result::Result<(), Errno> {
        let slot = self.tables.slot_of(table).ok_or(Errno::INVAL)?;
        self.unpin_slot(slot)?;
        self.check_poison()
    }

    fn unpin_slot(&self, slot: u32) -> core::result::Result<(), Errno> {
        match self.slot(slot).unpin() {
            UnpinResult::Unpinned => Ok(()),
            UnpinResult::NotPinned => Err(Errno::INVAL),
            UnpinResult::LastOfDiscarded => {
                self.free_discarded(slot);
                Ok(())
            }
        }
    }

    /// Marks the pinned table at the address `table` dirty. Call it after the change, or hold the state lock over both. `EINVAL`: a
    /// foreign or unpinned table. Any thread, no lock.
    pub fn mark_dirty(&self, table: usize) -> core::result::Result<(), Errno> {
        let slot = self.pinned_slot(table)?;
        self.check_poison()?;
        if !self.slot(slot).mark_dirty() {
            return Err(Errno::INVAL);
        }
        self.dirty.insert(&self.groups, slot);
        Ok(())
    }

    /// Stores eight bytes, as they are in memory, at byte `at` of the pinned table at the address `table`, atomically. `EINVAL`: `at`
    /// not a multiple of 8 or beyond the table; a foreign or unpinned table. Any thread, no lock.
    pub fn store(&self, table: usize, at: usize, value: u64) -> core::result::Result<(), Errno> {
        let slot = self.pinned_slot(table)?;
        self.check_poison()?;
        if !self.tables.is_entry(at) {
            return Err(Errno::INVAL);
        }
        // SAFETY: inside the table, 8-aligned.
        unsafe { store_word(self.tables.table(slot), at, value) };
        Ok(())
    }

    /// The address of the resident table at `offset`, without a pin: only good for [`Cache::discard_table`].
    pub fn table_at(&self, offset: u64) -> core::result::Result<Option<NonNull<u8>>, Errno> {
        self.check_offset(offset)?;
        let is_resident = |slot: &u32| self.slots[*slot as usize].word().is_readable();
        let unlocked = self.find_unlocked(offset).filter(is_resident);
        let found = unlocked.or_else(|| {
            // What was not found without the lock may have been in motion.
            let _inner = self.lock_inner();
            self.find_unlocked(offset).filter(is_resident)
        });
        Ok(found.map(|slot| self.tables.table(slot)))
    }

    /// A state takes it over.
    pub fn set_owned_by_state(&self) {
        self.is_owned_by_state.store(true, Ordering::Relaxed);
    }

    /// Whether a state owns it.
    pub fn is_owned_by_state(&self) -> bool {
        self.is_owned_by_state.load(Ordering::Relaxed)
    }

    /// An internal panic happened: nothing is ever written again, every call says `EIO`.
    pub fn poison(&self) {
        self.poisoned.store(true, Ordering::Release);
        // Whoever waits for what will not end any more looks at the flag instead.
        let wakes = self.lock_inner().waiters.notify(|_| true);
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

    /// Bad offsets; calls storage's `corruption`, so no lock may be held.
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

    fn is_reserved(&self, slot: u32) -> bool {
        slot as usize >= self.slots.len() - self.reserved
    }

    /// Whether the processor has to be told what will be wanted next: with fewer slots, everything about them is near enough (40 bytes a
    /// slot: 160 KiB).
    fn wants_prefetch(&self) -> bool {
        self.slots.len() >= 4096
    }

    fn offset_of(&self, slot: u32) -> u64 {
        self.slot(slot).offset()
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

    /// The same for slots of one group.
    fn mark_group_free(&self, inner: &mut Inner, group: usize, bits: u64) {
        inner.probation -= self.groups[group].free(bits);
        inner.free_hint = inner.free_hint.min(group);
    }

    /// Those who wait for `slot`, or for any. Structure lock held; wake them without it.
    #[inline]
    fn notify_waiters(inner: &mut Inner, slot: u32) -> WakeList {
        inner
            .waiters
            .notify(|wait| *wait == Wait::Any || *wait == Wait::Slot(slot))
    }

    fn register_waiter(inner: &mut Inner, wait: Wait) -> Waiter {
        inner.waiters.register(wait)
    }

    /// Frees the slot if its table was discarded and nobody pins or writes it any more. Structure lock held.
    fn free_discarded_locked(&self, inner: &mut Inner, slot: u32) {
        if let Some(before) = self.slots[slot as usize].free_discarded() {
            Counters::add(&self.counters.hits, before.hits() as usize);
            self.mark_free(inner, slot);
        }
    }

    fn free_discarded(&self, slot: u32) {
        let wakes = {
            let mut inner = self.lock_inner();
            self.free_discarded_locked(&mut inner, slot);
            Self::notify_waiters(&mut inner, slot)
        };
        wakes.wake();
    }

    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
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

/// # Safety
/// `at + 8` bytes from `table` are inside one mapping, 8-aligned.
#[inline]
unsafe fn load_word(table: NonNull<u8>, at: usize) -> u64 {
    #[cfg(any(loom, shuttle))]
    if let Some(value) = crate::model::load(table.as_ptr() as usize + at) {
        return value;
    }
    // SAFETY: the caller's promise.
    unsafe { word_at(table, at) }.load(core::sync::atomic::Ordering::Relaxed)
}

/// # Safety
/// As [`load_word`].
unsafe fn store_word(table: NonNull<u8>, at: usize, value: u64) {
    #[cfg(any(loom, shuttle))]
    if crate::model::store(table.as_ptr() as usize + at, value, Ordering::Release) {
        return;
    }
    // SAFETY: the caller's promise. Release: what the writer did before is visible to a reader that sees the value and
    // acquires (the fence in `read`).
    unsafe { word_at(table, at) }.store(value, core::sync::atomic::Ordering::Release);
}

/// Fills a table with zeros, word by word: somebody who copies without a pin may still be reading what was there before, and throws it away.
///
/// # Safety
/// `bytes`, a multiple of 8, from `table` are inside one mapping, 8-aligned, and nobody has the table pinned.
unsafe fn zero_words(table: NonNull<u8>, bytes: usize) {
    for at in (0..bytes).step_by(8) {
        // SAFETY: the caller's promise. Relaxed: the load's end publishes them.
        unsafe { word_at(table, at) }.store(0, core::sync::atomic::Ordering::Relaxed);
    }
    #[cfg(any(loom, shuttle))]
    crate::model::zero(table);
}

/// Copies a table to another one, likewise.
///
/// # Safety
/// As [`zero_words`], for both.
unsafe fn copy_words(from: NonNull<u8>, to: NonNull<u8>, bytes: usize) {
    for at in (0..bytes).step_by(8) {
        // SAFETY: the caller's promise. Relaxed: as above.
        unsafe {
            let word = word_at(from, at).load(core::sync::atomic::Ordering::Relaxed);
            word_at(to, at).store(word, core::sync::atomic::Ordering::Relaxed);
        }
    }
    #[cfg(any(loom, shuttle))]
    crate::model::copy(from, to);
}

/// core's atomics, since a model checker's do not live in table memory.
///
/// # Safety
/// `at + 8` bytes from `table` are inside one mapping, 8-aligned, and stay mapped as long as the result is used.
#[inline(always)]
unsafe fn word_at<'a>(table: NonNull<u8>, at: usize) -> &'a core::sync::atomic::AtomicU64 {
    // SAFETY: the caller's promise. Whoever changes these bytes at the same time does so atomically, or is a load from storage, whose
    // bytes are thrown away by the second look of who sees them.
    unsafe { table.add(at).cast().as_ref() }
}

/// A pinned table: it neither moves nor changes its offset. Dropping it gives the pin back.
pub struct Pinned<'a> {
    cache: &'a Cache,
    slot: u32,
}

impl Pinned<'_> {
    /// Where the table's bytes are, [`Cache::table_size`] of them.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.cache.pinned_table(self.slot)
    }

    /// Gives up the guard but keeps the pin, for [`Cache::put`].
    pub fn into_ptr(self) -> NonNull<u8> {
        let table = self.as_ptr();
        std::mem::forget(self);
        table
    }

    /// The eight bytes at byte `at`, atomically.
    ///
    /// # Panics
    /// If `at` is not a multiple of 8 inside the table.
    pub fn load(&self, at: usize) -> u64 {
        assert!(self.cache.tables.is_entry(at));
        // SAFETY: checked just above.
        unsafe { load_word(self.as_ptr(), at) }
    }

    /// Stores eight bytes at byte `at`, atomically; see [`Cache::store`].
    pub fn store(&self, at: usize, value: u64) -> core::result::Result<(), Errno> {
        self.cache.store(self.as_ptr().as_ptr() as usize, at, value)
    }

    /// See [`Cache::mark_dirty`].
    pub fn mark_dirty(&self) -> core::result::Result<(), Errno> {
        self.cache.mark_dirty(self.as_ptr().as_ptr() as usize)
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        let given_back = self.cache.unpin_slot(self.slot);
        debug_assert!(given_back.is_ok(), "somebody else put this pin");
    }
}
