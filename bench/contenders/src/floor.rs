// SPDX-License-Identifier: MIT OR Apache-2.0
//! The floor: the least that a lock-free hit with a pin can do. An index that is probed, a word a slot, one compare-and-swap up,
//! one fetch-sub down. It never changes once it is filled, checks nothing, and knows no second look, no statistics,
//! no eviction. `probe` is the bare probe, without any read-modify-write; `read` copies from what it finds.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::memory::Memory;
use crate::{Contender, Ops, TABLE_SIZE};

struct Floor {
    /// `offset >> 12 << 32 | slot + 1`, 0 when empty; a power of two of them, at least twice the tables.
    buckets: Box<[AtomicU64]>,
    shift: u32,
    words: Box<[AtomicU64]>,
    memory: Memory,
}

/// Holds the tables at `offsets`, for good.
pub fn create(offsets: &[u64]) -> Contender {
    let size = (offsets.len() * 2).next_power_of_two();
    let zeros = |n| (0..n).map(|_| AtomicU64::new(0)).collect();
    let memory = Memory::new(offsets.len());
    memory.touch();
    let cache = Floor {
        buckets: zeros(size),
        shift: 64 - size.trailing_zeros(),
        words: zeros(offsets.len()),
        memory,
    };
    for (slot, offset) in offsets.iter().enumerate() {
        let key = offset / TABLE_SIZE as u64;
        assert!(key != 0 && key < 1 << 32, "the floor's keys have 32 bits");
        let mut bucket = cache.home(key);
        while cache.buckets[bucket].load(Ordering::Relaxed) != 0 {
            bucket = (bucket + 1) & (size - 1);
        }
        cache.buckets[bucket].store(key << 32 | (slot as u64 + 1), Ordering::Relaxed);
    }
    let ops = Ops {
        get: Some(get),
        put: Some(put),
        read: Some(read),
        probe: Some(probe),
        ..Ops::NONE
    };
    Contender::new(cache, ops)
}

impl Floor {
    #[inline]
    fn home(&self, key: u64) -> usize {
        // Two rounds: one alone would be luck or disaster for keys at regular distances, and a floor is neither.
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mixed = key.wrapping_mul(GOLDEN);
        ((mixed ^ mixed >> 32).wrapping_mul(GOLDEN) >> self.shift) as usize
    }

    #[inline]
    fn find(&self, offset: u64) -> Option<usize> {
        let key = offset / TABLE_SIZE as u64;
        let mut bucket = self.home(key);
        loop {
            // SAFETY: `home` and the mask below stay inside the buckets, whose number is a power of two.
            let entry = unsafe { self.buckets.get_unchecked(bucket) }.load(Ordering::Relaxed);
            if entry >> 32 == key {
                return Some(entry as u32 as usize - 1);
            }
            if entry == 0 {
                return None;
            }
            bucket = (bucket + 1) & (self.buckets.len() - 1);
        }
    }
}

#[inline(never)]
unsafe extern "C" fn get(handle: *mut c_void, offset: u64, table: *mut *mut c_void) -> c_int {
    // SAFETY: the handle is alive.
    let cache = unsafe { &*handle.cast::<Floor>() };
    let Some(slot) = cache.find(offset) else {
        return -libc::EAGAIN;
    };
    // SAFETY: every slot in a bucket is below the number of words.
    let word = unsafe { cache.words.get_unchecked(slot) };
    let mut pins = word.load(Ordering::Relaxed);
    while let Err(now) =
        word.compare_exchange_weak(pins, pins + 1, Ordering::AcqRel, Ordering::Relaxed)
    {
        pins = now;
    }
    // SAFETY: the caller's own pointer.
    unsafe { *table = cache.memory.table(slot) };
    0
}

#[inline(never)]
unsafe extern "C" fn put(handle: *mut c_void, table: *mut *mut c_void) -> c_int {
    // SAFETY: the handle is alive; the pointer is the caller's own.
    let (cache, address) = unsafe { (&*handle.cast::<Floor>(), *table) };
    let slot = cache.memory.slot_of(address);
    // SAFETY: the address is one that `get` gave, of a slot below the number of words.
    unsafe { cache.words.get_unchecked(slot) }.fetch_sub(1, Ordering::Release);
    // SAFETY: as above.
    unsafe { *table = null_mut() };
    0
}

#[inline(never)]
unsafe extern "C" fn probe(
    handle: *mut c_void,
    offset: u64,
    _at: usize,
    _buf: *mut c_void,
    _bytes: usize,
) -> c_int {
    // SAFETY: the handle is alive.
    let cache = unsafe { &*handle.cast::<Floor>() };
    match cache.find(offset) {
        Some(_) => 0,
        None => -libc::EAGAIN,
    }
}

#[inline(never)]
unsafe extern "C" fn read(
    handle: *mut c_void,
    offset: u64,
    at: usize,
    buf: *mut c_void,
    bytes: usize,
) -> c_int {
    // SAFETY: the handle is alive.
    let cache = unsafe { &*handle.cast::<Floor>() };
    let Some(slot) = cache.find(offset) else {
        return -libc::EAGAIN;
    };
    let words = cache.memory.table(slot).wrapping_byte_add(at);
    for i in (0..bytes).step_by(8) {
        // SAFETY: the caller's `at` and `bytes` lie inside a table and are multiples of 8, and so long is its buffer.
        unsafe {
            let word = (*words.wrapping_byte_add(i).cast::<AtomicU64>()).load(Ordering::Relaxed);
            buf.wrapping_byte_add(i).cast::<u64>().write_unaligned(word);
        }
    }
    0
}
