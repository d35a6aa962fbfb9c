// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache that scans, as drivers have it. An entry has 24 bytes. A search begins at a hash of
//! the offset and goes through the entries one by one. The victim is found by a look at all
//! entries. The caller holds one lock from get to put.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

use parking_lot::RawMutex;
use parking_lot::lock_api::RawMutex as _;

use crate::memory::Memory;
use crate::{Contender, Ops, Stub, TABLE_SIZE};

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Entry {
    /// 0: free.
    offset: u64,
    last_use: u64,
    pins: u32,
    dirty: bool,
}

struct Linear {
    lock: RawMutex,
    entries: Vec<Entry>,
    memory: Memory,
    uses: u64,
    uses_at_clean: u64,
    load: Stub,
    store: Stub,
}

/// Creates a cache of `tables` tables. A miss calls `load`; a write-back calls `store` for each
/// table.
pub fn create(tables: usize, load: Stub, store: Stub) -> Contender {
    const { assert!(size_of::<Entry>() == 24) };
    let cache = Linear {
        lock: RawMutex::INIT,
        entries: vec![Entry::default(); tables],
        memory: Memory::new(tables),
        uses: 0,
        uses_at_clean: 0,
        load,
        store,
    };
    let ops = Ops {
        get: Some(get),
        put: Some(put),
        mark_dirty: Some(mark_dirty),
        flush: Some(flush),
        clean: Some(clean),
        lookup: Some(lookup),
        ..Ops::NONE
    };
    Contender::new(cache, ops)
}

impl Linear {
    /// Returns the entry of `offset` and true, else the victim to use for it and false. The victim
    /// is `usize::MAX` if all entries are pinned.
    fn find(&self, offset: u64) -> (usize, bool) {
        let n = self.entries.len();
        let first = (offset / TABLE_SIZE as u64 * 4 % n as u64) as usize;
        let (mut victim, mut oldest) = (usize::MAX, u64::MAX);
        let mut i = first;
        loop {
            let entry = &self.entries[i];
            if entry.offset == offset {
                return (i, true);
            }
            if entry.pins == 0 && entry.last_use < oldest {
                oldest = entry.last_use;
                victim = i;
            }
            i += 1;
            if i == n {
                i = 0;
            }
            if i == first {
                return (victim, false);
            }
        }
    }
}

/// # Safety
/// `handle` is a living `Linear`; the caller holds its lock.
unsafe fn of<'a>(handle: *mut c_void) -> &'a mut Linear {
    // SAFETY: the caller's promise.
    unsafe { &mut *handle.cast::<Linear>() }
}

#[inline(never)]
unsafe extern "C" fn get(handle: *mut c_void, offset: u64, table: *mut *mut c_void) -> c_int {
    // SAFETY: the handle is alive; the lock is taken before anything else is used.
    let cache = unsafe {
        (*handle.cast::<Linear>()).lock.lock();
        of(handle)
    };
    let (slot, found) = cache.find(offset);
    if slot == usize::MAX {
        // SAFETY: locked above.
        unsafe { cache.lock.unlock() };
        return -libc::EBUSY;
    }
    let address = cache.memory.table(slot);
    if !found {
        if cache.entries[slot].dirty {
            // SAFETY: the stub takes any offset.
            unsafe { (cache.store)(cache.entries[slot].offset, address) };
            cache.entries[slot].dirty = false;
        }
        // SAFETY: the stub takes any offset; the table is a whole one of this cache's memory.
        unsafe { (cache.load)(offset, address) };
        cache.entries[slot].offset = offset;
    }
    cache.entries[slot].pins += 1;
    // SAFETY: the caller's own pointer.
    unsafe { *table = address };
    0
}

#[inline(never)]
unsafe extern "C" fn put(handle: *mut c_void, table: *mut *mut c_void) -> c_int {
    // SAFETY: the caller holds the lock since its get.
    let cache = unsafe { of(handle) };
    // SAFETY: the caller's own pointer.
    let slot = cache.memory.slot_of(unsafe { *table });
    let entry = &mut cache.entries[slot];
    entry.pins -= 1;
    if entry.pins == 0 {
        cache.uses += 1;
        entry.last_use = cache.uses;
    }
    // SAFETY: the caller's own pointer; locked in `get`.
    unsafe {
        *table = null_mut();
        cache.lock.unlock();
    }
    0
}

#[inline(never)]
unsafe extern "C" fn mark_dirty(handle: *mut c_void, table: *mut c_void) -> c_int {
    // SAFETY: the caller holds the lock since its get.
    let cache = unsafe { of(handle) };
    let slot = cache.memory.slot_of(table);
    cache.entries[slot].dirty = true;
    0
}

#[inline(never)]
unsafe extern "C" fn flush(handle: *mut c_void) -> c_int {
    // SAFETY: the handle is alive; the lock is taken before anything else is used.
    let cache = unsafe {
        (*handle.cast::<Linear>()).lock.lock();
        of(handle)
    };
    for slot in 0..cache.entries.len() {
        if cache.entries[slot].dirty && cache.entries[slot].offset != 0 {
            // SAFETY: the stub takes any offset.
            unsafe { (cache.store)(cache.entries[slot].offset, cache.memory.table(slot)) };
            cache.entries[slot].dirty = false;
        }
    }
    // SAFETY: locked above.
    unsafe { cache.lock.unlock() };
    0
}

#[inline(never)]
unsafe extern "C" fn clean(handle: *mut c_void) -> c_int {
    // SAFETY: the handle is alive; the lock is taken before anything else is used.
    let cache = unsafe {
        (*handle.cast::<Linear>()).lock.lock();
        of(handle)
    };
    let limit = cache.uses_at_clean;
    let unused = |e: &Entry| e.pins == 0 && !e.dirty && e.offset != 0 && e.last_use <= limit;
    let n = cache.entries.len();
    let (mut i, mut cleaned) = (0, 0);
    while i < n {
        while i < n && !unused(&cache.entries[i]) {
            i += 1;
        }
        let first = i;
        while i < n && unused(&cache.entries[i]) {
            cache.entries[i].offset = 0;
            cache.entries[i].last_use = 0;
            i += 1;
        }
        if i > first {
            cache.memory.release(first, i - first);
            cleaned += i - first;
        }
    }
    cache.uses_at_clean = cache.uses;
    // SAFETY: locked above.
    unsafe { cache.lock.unlock() };
    cleaned as c_int
}

#[inline(never)]
unsafe extern "C" fn lookup(handle: *mut c_void, offset: u64, table: *mut *mut c_void) -> c_int {
    // SAFETY: the handle is alive; the lock is taken before anything else is used.
    let cache = unsafe {
        (*handle.cast::<Linear>()).lock.lock();
        of(handle)
    };
    let slot = cache
        .entries
        .iter()
        .position(|entry| entry.offset == offset);
    // SAFETY: the caller's own pointer; locked above.
    unsafe {
        *table = slot.map_or(null_mut(), |slot| cache.memory.table(slot));
        cache.lock.unlock();
    }
    c_int::from(slot.is_some())
}
