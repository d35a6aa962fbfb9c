// SPDX-License-Identifier: MIT OR Apache-2.0
//! The floor: the least that a lock-free hit with a pin can do. A get probes the index and pins
//! the slot by one compare-and-swap on the slot's word; a put unpins it by one fetch-sub. The index
//! never changes once it is filled. There is no check of the slot after the probe, there are no
//! statistics, and nothing is evicted. `probe` is the bare probe, without any read-modify-write;
//! `read` copies from the table that it finds.
//!
//! A bucket holds a tag and a slot number in 32 bits. There are four buckets a table. The choice
//! between the first two buckets has no branch. Two tables may have the same tag, so that the tag
//! alone would find the wrong one: `create` tries salts for the hash until every table is found.

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

/// Creates a floor that holds the tables at `offsets` until it is dropped.
pub fn create(offsets: &[u64]) -> Contender {
    let memory = Memory::new(offsets.len());
    memory.touch();
    let cache = Floor {
        index: (0..100)
            .map(|salt| Index::new(offsets, salt))
            .find(|index| index.is_right(offsets))
            .expect("one of a hundred salts tells the tables apart"),
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
    /// 0 if empty. Their number is a power of two, plus one: the last repeats the first.
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
        // Two rounds: with one, keys at regular distances collide either hardly ever or very
        // often, depending on the distance. A floor must do neither.
        const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
        let mixed = (offset ^ self.salt).wrapping_mul(GOLDEN);
        (mixed ^ mixed >> 32).wrapping_mul(GOLDEN)
    }

    #[inline]
    fn load(&self, bucket: usize) -> u32 {
        // SAFETY: a shifted hash is below the power of two, and there is one bucket more; callers
        // pass that hash, the number after it, or a number below the power of two.
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
    // SAFETY: `get` returned the address, so that its slot is below the number of words.
    unsafe { cache.words.get_unchecked(slot) }.fetch_sub(1, Ordering::Release);
    // SAFETY: the pointer is the caller's own.
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
        // SAFETY: the caller's `at` and `bytes` are multiples of 8 and lie inside a table; its
        // buffer has `bytes` bytes.
        unsafe {
            let word = (*words.wrapping_byte_add(i).cast::<AtomicU64>()).load(Ordering::Relaxed);
            buf.wrapping_byte_add(i).cast::<u64>().write_unaligned(word);
        }
    }
    0
}
