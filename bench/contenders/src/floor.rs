// SPDX-License-Identifier: MIT OR Apache-2.0
//! The floor: the least that a lock-free hit with a pin can do. An index that is probed, a word a slot, one compare-and-swap up,
//! one fetch-sub down. It never changes once it is filled, checks nothing, and knows no second look, no statistics,
//! no eviction. `probe` is the bare probe, without any read-modify-write; `read` copies from what it finds.
//!
//! A bucket is a tag and a slot number in 32 bits, four buckets a table, and which of the first two it is is chosen without a branch. A tag alone
//! may be wrong: so the hash is salted, until it is not for any of the tables.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::memory::Memory;
use crate::{Contender, Ops};

struct Floor {
    index: Index,
    words: Box<[AtomicU64]>,
    memory: Memory,
}

/// Holds the tables at `offsets`, for good.
pub fn create(offsets: &[u64]) -> Contender {
    let memory = Memory::new(offsets.len());
    memory.touch();
    let cache = Floor {
        index: (0..100)
            .map(|salt| Index::new(offsets, salt))
            .find(|index| index.is_right(offsets))
            .expect("a hash of a hundred tells the tables apart"),
        words: offsets.iter().map(|_| AtomicU64::new(0)).collect(),
        memory,
    };
    let ops = Ops {
        get: Some(get),
        put: Some(put),
        read: Some(read),
        probe: Some(probe),
        ..Ops::NONE
    };
    Contender::new(cache, ops)
}

struct Index {
    /// 0 when empty; a power of two of them, and the first one again.
    buckets: Box<[AtomicU32]>,
    shift: u32,
    slot_mask: u32,
    salt: u64,
}

impl Index {
    fn new(offsets: &[u64], salt: u64) -> Self {
        let count = (offsets.len() * 4).next_power_of_two();
        let index = Self {
            buckets: (0..=count).map(|_| AtomicU32::new(0)).collect(),
            shift: 64 - count.trailing_zeros(),
            slot_mask: (offsets.len() as u32 + 1).next_power_of_two() - 1,
            salt,
        };
        for (offset, slot) in offsets.iter().zip(1_u32..) {
            let hash = index.hash(*offset);
            let mut bucket = (hash >> index.shift) as usize;
            while index.load(bucket) != 0 {
                bucket = (bucket + 1) % count;
            }
            let entry = hash as u32 & !index.slot_mask | slot;
            index.buckets[bucket].store(entry, Ordering::Relaxed);
            if bucket == 0 {
                index.buckets[count].store(entry, Ordering::Relaxed);
            }
        }
        index
    }

    fn is_right(&self, offsets: &[u64]) -> bool {
        let mut slots = offsets.iter().zip(0..);
        slots.all(|(offset, slot)| self.find(*offset) == Some(slot))
    }

    #[inline]
    fn hash(&self, offset: u64) -> u64 {
        // Two rounds: one alone would be luck or disaster for keys at regular distances, and a floor is neither.
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mixed = (offset ^ self.salt).wrapping_mul(GOLDEN);
        (mixed ^ mixed >> 32).wrapping_mul(GOLDEN)
    }

    #[inline]
    fn load(&self, bucket: usize) -> u32 {
        // SAFETY: a shifted hash stays below the number of buckets, and there is one more.
        unsafe { self.buckets.get_unchecked(bucket) }.load(Ordering::Relaxed)
    }

    #[inline]
    fn find(&self, offset: u64) -> Option<usize> {
        let hash = self.hash(offset);
        let fits = |entry: u32| (entry ^ hash as u32) & !self.slot_mask == 0;
        let bucket = (hash >> self.shift) as usize;
        let (first, second) = (self.load(bucket), self.load(bucket + 1));
        let chosen = second ^ ((first ^ second) & u32::from(fits(first)).wrapping_neg());
        if chosen != 0 && fits(chosen) {
            return Some((chosen & self.slot_mask) as usize - 1);
        }
        self.find_further(hash, bucket)
    }

    #[cold]
    #[inline(never)]
    fn find_further(&self, hash: u64, home: usize) -> Option<usize> {
        let count = self.buckets.len() - 1;
        let entries = (0..count).map(|i| self.load((home + i) % count));
        let mut entries = entries.take_while(|entry| *entry != 0);
        let found = entries.find(|entry| (entry ^ hash as u32) & !self.slot_mask == 0);
        found.map(|entry| (entry & self.slot_mask) as usize - 1)
    }
}

#[inline(never)]
unsafe extern "C" fn get(handle: *mut c_void, offset: u64, table: *mut *mut c_void) -> c_int {
    // SAFETY: the handle is alive.
    let cache = unsafe { &*handle.cast::<Floor>() };
    let Some(slot) = cache.index.find(offset) else {
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
    match cache.index.find(offset) {
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
    let Some(slot) = cache.index.find(offset) else {
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
