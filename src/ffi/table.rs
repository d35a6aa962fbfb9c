// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables in use: get, read, change, put. The hot paths: a hit comes before everything that may
//! wait.

use std::ffi::{c_int, c_void};

use super::cache::q2c_cache;
use super::{call_cache, out, value};
use crate::cache::at_once::Missed;
use crate::cache::load::{Access, Contents};
use crate::cache::{Cache, Pinned};
use crate::error::Errno;
use crate::host::block_on;

/// What a get does with a table that is no hit.
#[repr(C)]
#[derive(Clone, Copy)]
enum Miss {
    /// Loads it, state lock held.
    Load,
    /// Fills it with zeros, state lock held.
    Zero,
    /// Loads it, state lock not held.
    LoadUnlocked,
    /// Says so.
    Refuse,
}

impl Miss {
    fn access(self) -> Access {
        match self {
            Miss::Load | Miss::Zero => Access::Locked,
            Miss::LoadUnlocked | Miss::Refuse => Access::Unlocked,
        }
    }
}

/// A hit comes before the funnel, since it cannot panic: so neither a landing pad nor the futures of what may wait cost it
/// registers. All else is a jump to a function that cannot unwind.
///
/// # Safety
/// `handle` is NULL or live; `table` is NULL or writable.
#[inline(always)]
unsafe fn call_get(
    handle: *mut q2c_cache,
    offset: u64,
    table: *mut *mut c_void,
    miss: Miss,
) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    let (Ok(cache), false) = (unsafe { value(handle) }, table.is_null()) else {
        return -Errno::INVAL.code();
    };
    match cache.hit_at_once(offset, miss.access()) {
        Ok((slot, is_news)) => {
            // SAFETY: not NULL, hence writable, as the caller promised.
            unsafe { table.write(cache.pinned_table(slot).as_ptr().cast()) };
            if is_news {
                // SAFETY: live, as the caller promised.
                return unsafe { note(handle, slot) };
            }
            0
        }
        // SAFETY: the caller's promise.
        Err(missed) => unsafe { get_at_length(handle, offset, table, miss, missed) },
    }
}

/// Notes a hit, last of all. 0.
///
/// # Safety
/// `handle` is live.
#[cold]
#[inline(never)]
unsafe extern "C" fn note(handle: *const q2c_cache, slot: u32) -> c_int {
    // SAFETY: live, as the caller promised.
    if let Ok(cache) = unsafe { value(handle) } {
        cache.note_hit(slot);
    }
    0
}

/// # Safety
/// As `call_get`.
#[inline(never)]
unsafe extern "C" fn get_at_length(
    handle: *mut q2c_cache,
    offset: u64,
    table: *mut *mut c_void,
    miss: Miss,
    missed: Missed,
) -> c_int {
    let pin = |cache: &Cache| {
        // SAFETY: NULL or writable, as the caller promised.
        let table = unsafe { out(table) }?;
        let hit = cache.hit_at_length(missed, offset, miss.access());
        let pinned = hit.map_or_else(|| get_absent(cache, offset, miss), Ok)?;
        table.set(pinned.into_ptr().as_ptr().cast());
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(handle, pin) }
}

fn get_absent(cache: &Cache, offset: u64, miss: Miss) -> Result<Pinned<'_>, Errno> {
    let contents = match miss {
        Miss::Load | Miss::LoadUnlocked => Contents::Stored,
        Miss::Zero => Contents::Zero,
        Miss::Refuse => return Err(cache.why_not_resident(offset)),
    };
    let mut missed = false;
    match cache.get_without_wait(offset, contents, miss.access(), &mut missed)? {
        Some(pinned) => Ok(pinned),
        None => wait_for(cache, offset, contents, miss.access(), missed),
    }
}

// Apart from the rest, whose stack frame would otherwise have room for the future.
#[cold]
#[inline(never)]
fn wait_for(
    cache: &Cache,
    offset: u64,
    contents: Contents,
    access: Access,
    missed: bool,
) -> Result<Pinned<'_>, Errno> {
    let rest = cache.get_slow(offset, contents, access, missed);
    block_on(cache.host(), &[], rest)
}

/// Gives access to the table at `table_offset` (bytes in the image file), reading it from storage
/// if it is not in the cache. On success `*table` is its address, `table_size` bytes in memory, and
/// the table is pinned: it stays where it is, and what it is, until the caller's `q2c_cache_put`.
/// Several gets of one table pin it several times.
///
/// State lock held, or calls serialised otherwise; may wait: for a load of the same table by
/// somebody else, for a slot that is being loaded or written or whose memory is being given back,
/// for I/O. A dirty table that has to make room is written first, with what it depends on. A
/// resident table takes no lock and no wait.
///
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EBUSY`: every slot is pinned, so that waiting would not help; or that table is pinned
///   1048575 times.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); the
///   cache is poisoned.
/// - storage's own: of `preadv`, or of the write-back that was to make room. Nothing changed; the
///   next call tries again.
///
/// # Safety
/// `cache` is NULL or a live cache; `table` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_get(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, Miss::Load) }
}

/// As `q2c_cache_get`, for a table that the caller is about to write whole: an absent one is not
/// read but enters filled with zeros, and clean; a resident one comes as it is. Same context, same
/// errors, but none of `preadv`.
///
/// # Safety
/// As `q2c_cache_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_get_empty(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, Miss::Zero) }
}

/// As `q2c_cache_get`, for callers without the state lock: hits, and loads that need no write-back.
///
/// State lock not held; may wait, for a load. Never writes, and leaves `reserved_tables` slots to
/// those who hold the lock.
///
/// - `-EAGAIN`: not without the lock: only dirty or pinned tables could make room, those of the
///   reserve, or slots whose memory is just being given back. Take the state lock and call
///   `q2c_cache_get`.
/// - `-EINVAL`, `-EIO`, storage's own: as `q2c_cache_get`.
/// - `-EBUSY`: that table is pinned 1048575 times.
///
/// # Safety
/// As `q2c_cache_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_get_unlocked(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, Miss::LoadUnlocked) }
}

/// Pins a table that is in the cache, as `q2c_cache_get` does, or says `-EAGAIN`.
///
/// Any thread, state lock held or not, never waits, takes no lock.
///
/// - `-EAGAIN`: the table is not in the cache, or is just coming or going.
///   Or it is in one of the reserved slots, which are left to those who hold the lock.
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EIO`: as `q2c_cache_get`.
///
/// # Safety
/// As `q2c_cache_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_try_get(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, Miss::Refuse) }
}

/// Copies `bytes` bytes from byte `at` of a table that is in the cache to `buf`, without a pin.
/// Each 8-byte word is read atomically (it meets `q2c_cache_store`), and all of them are of that
/// table. The order of bytes is the table's own.
///
/// Any thread, state lock held or not, never waits, takes no lock. This is how a driver maps an
/// offset on its hot path.
///
/// - `-EAGAIN`: the table is not in the cache, or left while it was copied; what `buf` holds then
///   means nothing. The one output of the library that may be written without success.
/// - `-EINVAL`: `cache` or `buf` is NULL; `table_offset` is 0; `at` or `bytes` is not a multiple of
///   8, or they reach beyond the table.
/// - `-EIO`: as `q2c_cache_get`.
///
/// # Safety
/// `cache` is NULL or a live cache; `buf` is NULL or has room for `bytes` bytes, which nobody else
/// uses during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_read(
    cache: *mut q2c_cache,
    table_offset: u64,
    at: usize,
    buf: *mut c_void,
    bytes: usize,
) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    if let Ok(known) = unsafe { value(cache) } {
        if bytes == 8 && !buf.is_null() {
            if let Some((word, slot, is_news)) = known.read_at_once(table_offset, at) {
                // SAFETY: not NULL, and room for 8 bytes, as the caller promised.
                unsafe { buf.cast::<u64>().write_unaligned(word) };
                if is_news {
                    // SAFETY: live, as the caller promised.
                    return unsafe { note(cache, slot) };
                }
                return 0;
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { read_at_length(cache, table_offset, at, buf, bytes) }
}

/// # Safety
/// As `q2c_cache_read`.
#[inline(never)]
unsafe extern "C" fn read_at_length(
    cache: *mut q2c_cache,
    table_offset: u64,
    at: usize,
    buf: *mut c_void,
    bytes: usize,
) -> c_int {
    let read = |cache: &Cache| {
        if buf.is_null() || bytes > cache.table_size() {
            return Err(Errno::INVAL);
        }
        // SAFETY: not NULL, room for `bytes` bytes, and the caller's alone, as promised; less than
        // a table, hence no overflow.
        let buf = unsafe { std::slice::from_raw_parts_mut(buf.cast::<u8>(), bytes) };
        cache.read_at_length(table_offset, at, buf)
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, read) }
}

/// Stores eight bytes at byte `at` of a pinned table, atomically, for those who change a table that
/// others read at the same time with `q2c_cache_read`. `value_as_stored` goes to memory as it is:
/// for an entry that qcow2 keeps in big-endian order, convert it first. Does not mark the table
/// dirty.
///
/// Any thread that has the table pinned, never waits, takes no lock. What the caller wrote before
/// is visible to whoever reads this value.
///
/// - `-EINVAL`: an argument is NULL; `table` is not the address of a table of this cache, or nobody
///   has it pinned; `at` is not a multiple of 8, or beyond the table.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` may be any value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_store(
    cache: *mut q2c_cache,
    table: *mut c_void,
    at: usize,
    value_as_stored: u64,
) -> c_int {
    let store = |cache: &Cache| cache.store(table.addr(), at, value_as_stored);
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, store) }
}

/// Gives one pin back and sets `*table` to NULL.
///
/// Any thread, also another one than that of the get; state lock held or not; never waits.
///
/// - `-EINVAL`: an argument or `*table` is NULL; it is not the address of a table of this cache, or
///   nobody has it pinned.
/// - `-EIO`: the cache is poisoned. The pin is given back all the same, `*table` stays.
///
/// # Safety
/// `cache` is NULL or a live cache; `table` is NULL or readable and writable. The caller has pinned
/// the table, and uses it no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_put(cache: *mut q2c_cache, table: *mut *mut c_void) -> c_int {
    // SAFETY: NULL or live; NULL or readable and writable: as the caller promised.
    unsafe {
        if let (Ok(known), false) = (value(cache), table.is_null()) {
            if known.put_at_once((*table).addr()) {
                table.write(std::ptr::null_mut());
                return 0;
            }
        }
        put_at_length(cache, table)
    }
}

/// # Safety
/// As `q2c_cache_put`.
#[inline(never)]
unsafe extern "C" fn put_at_length(cache: *mut q2c_cache, table: *mut *mut c_void) -> c_int {
    let put = |cache: &Cache| {
        // SAFETY: NULL or writable, as the caller promised.
        let place = unsafe { out(table) }?;
        // SAFETY: not NULL, since `out` agreed, and readable, as the caller promised.
        cache.put_at_length(unsafe { table.read() }.addr())?;
        place.set(std::ptr::null_mut());
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, put) }
}

/// Marks a pinned table as changed: it will be written before its slot is used for another one, or
/// by the next write or flush. Call it after the change, or hold the state lock over both: a
/// write-back in between would otherwise write the old bytes and forget the mark.
///
/// Any thread that has the table pinned, never waits, takes no lock.
///
/// - `-EINVAL`: an argument is NULL; `table` is not the address of a table of this cache, or nobody
///   has it pinned.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` may be any value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_mark_dirty(cache: *mut q2c_cache, table: *mut c_void) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| cache.mark_dirty(table.addr())) }
}
