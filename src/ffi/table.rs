// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tables in use: get, read, change, put. The hot paths: a hit comes before everything that may
//! wait.

use std::ffi::{c_int, c_void};

use super::cache::q2c_cache;
use super::{call_cache, out, value};
use crate::cache::Cache;
use crate::cache::fast_path::LookupFailure;
use crate::cache::get::GetMode;
use crate::error::Errno;

/// A hit comes before the panic guard of `call_cache`, since it cannot panic: neither a landing pad
/// nor the futures of a wait cost it registers. Everything else is a jump to a function that cannot
/// unwind.
///
/// # Safety
/// `handle` is NULL or live; `table` is NULL or writable.
#[inline(always)]
unsafe fn call_get(
    handle: *mut q2c_cache,
    offset: u64,
    table: *mut *mut c_void,
    mode: GetMode,
) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    let (Ok(cache), false) = (unsafe { value(handle) }, table.is_null()) else {
        return -Errno::INVAL.code();
    };
    match cache.lookup_fast(offset, mode.access()) {
        Ok((slot, needs_touch)) => {
            // SAFETY: not NULL, hence writable, as the caller promised.
            unsafe { table.write(cache.pinned_table(slot).as_ptr().cast()) };
            if needs_touch {
                // SAFETY: live, as the caller promised.
                return unsafe { touch(handle, slot) };
            }
            0
        }
        // SAFETY: the caller's promise.
        Err(failure) => unsafe { get_slow_path(handle, offset, table, mode, failure) },
    }
}

/// Touches the slot that was hit, last of all. Returns 0.
///
/// # Safety
/// `handle` is live.
#[cold]
#[inline(never)]
unsafe extern "C" fn touch(handle: *const q2c_cache, slot: u32) -> c_int {
    // SAFETY: live, as the caller promised.
    if let Ok(cache) = unsafe { value(handle) } {
        cache.touch(slot);
    }
    0
}

/// # Safety
/// See `call_get`.
#[inline(never)]
unsafe extern "C" fn get_slow_path(
    handle: *mut q2c_cache,
    offset: u64,
    table: *mut *mut c_void,
    mode: GetMode,
    failure: LookupFailure,
) -> c_int {
    let pin = |cache: &Cache| {
        // SAFETY: NULL or writable, as the caller promised.
        let table = unsafe { out(table) }?;
        let pinned = cache.get_blocking(failure, offset, mode)?;
        table.set(pinned.into_ptr().as_ptr().cast());
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(handle, pin) }
}

/// Pins the table at `table_offset` and gives its address. A table that is not in the cache is read
/// from storage first. If a dirty table has to make room, it is written before that, after what it
/// depends on was flushed.
///
/// A pinned table stays where it is, and what it is, until `q2c_cache_put`. Several gets of one
/// table pin it several times.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file; a multiple of the table size, not 0.
/// - `table`: receives the address of the table's `table_size` bytes; must not be NULL.
///
/// Context: state lock held, or calls serialised otherwise; may wait: for another caller's load of
/// the same table, for a slot that is being loaded or written or whose memory is being given back,
/// and for I/O. A hit takes no lock and does not wait.
///
/// Returns: 0 on success. On an error no dirty table is lost, and the next call tries again.
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EBUSY`: every slot is pinned, so that waiting would not help; or this table is pinned
///   1048575 times.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); the
///   cache is poisoned; or a dirty table has to make room and the cache that it depends on is
///   poisoned.
/// - any errno of `preadv`.
/// - any errno of `flush`, `pre_write_check` or `pwritev`, for a dirty table that has to make room.
///
/// Ownership: the caller owns one pin, to be given back by `q2c_cache_put`. The memory belongs to
/// the cache.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_get(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, GetMode::Load) }
}

/// Pins the table at `table_offset`, as `q2c_cache_get` does, for a caller that is about to write
/// all of it. A table that is not in the cache is not read: it enters the cache filled with zeros,
/// and clean. A table that is in the cache comes as it is.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file; a multiple of the table size, not 0.
/// - `table`: receives the address of the table's `table_size` bytes; must not be NULL.
///
/// Context: state lock held, or calls serialised otherwise; may wait: for another caller's load of
/// the same table, for a slot that is being loaded or written or whose memory is being given back,
/// and for the write-back of a dirty table. A hit takes no lock and does not wait.
///
/// Returns: 0 on success. On an error no dirty table is lost, and the next call tries again.
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EBUSY`: every slot is pinned, so that waiting would not help; or this table is pinned
///   1048575 times.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); the
///   cache is poisoned; or a dirty table has to make room and the cache that it depends on is
///   poisoned.
/// - any errno of `flush`, `pre_write_check` or `pwritev`, for a dirty table that has to make room.
///
/// Ownership: the caller owns one pin, to be given back by `q2c_cache_put`. The memory belongs to
/// the cache.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_get_empty(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, GetMode::LoadZeros) }
}

/// Pins the table at `table_offset`, as `q2c_cache_get` does, for callers without the state lock.
/// It loads a table if that needs no write-back. It never writes, and leaves `reserved_tables`
/// slots to callers with the lock.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file; a multiple of the table size, not 0.
/// - `table`: receives the address of the table's `table_size` bytes; must not be NULL.
///
/// Context: state lock not held; may wait for a load: its own, or another caller's load of the same
/// table. A hit takes no lock and does not wait.
///
/// Returns: 0 on success. On an error the next call tries again.
/// - `-EAGAIN`: not possible without the state lock: take it and call `q2c_cache_get`. Either the
///   table is absent and there is no slot for it: every slot outside the reserve holds a table that
///   is dirty, pinned, being loaded or being written, or its memory is being given back; or only
///   slots of the reserve are free. Or the table is in a slot of the reserve and cannot be moved
///   out of it: it is dirty, pinned or being written, or there is no other slot for it.
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EBUSY`: this table is pinned 1048575 times.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); or the
///   cache is poisoned.
/// - any errno of `preadv`.
///
/// Ownership: the caller owns one pin, to be given back by `q2c_cache_put`. The memory belongs to
/// the cache.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_get_unlocked(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, GetMode::LoadUnlocked) }
}

/// Pins the table at `table_offset`, as `q2c_cache_get` does, if it is in the cache.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file; a multiple of the table size, not 0.
/// - `table`: receives the address of the table's `table_size` bytes; must not be NULL.
///
/// Context: any thread; never waits. Takes no lock, except when the slot went to another table
/// during the call and that table was discarded right then.
///
/// Returns: 0 on success.
/// - `-EAGAIN`: the table is not in the cache; it is being loaded, dropped or moved; it is in one
///   of the reserved slots, which are left to callers with the state lock; or it is pinned 1048575
///   times.
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); or the
///   cache is poisoned.
///
/// Ownership: the caller owns one pin, to be given back by `q2c_cache_put`. The memory belongs to
/// the cache.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_try_get(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { call_get(cache, table_offset, table, GetMode::ResidentOnly) }
}

/// Copies `bytes` bytes from byte `at` of a table that is in the cache to `buf`, without a pin.
/// This is how a driver maps an offset on its hot path.
///
/// Each 8-byte word is read atomically, which pairs with `q2c_cache_store`, and all words are of
/// that table. The order of bytes is the table's own.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file; a multiple of the table size, not 0.
/// - `at`, `bytes`: the part of the table, in bytes; both multiples of 8, and inside the table.
/// - `buf`: room for `bytes` bytes; must not be NULL. It is the one output that may be written
///   without success: after `-EAGAIN` its contents mean nothing.
///
/// Context: any thread; never waits, takes no lock.
///
/// Returns: 0 on success.
/// - `-EAGAIN`: the table is not in the cache, or left it during the copy.
/// - `-EINVAL`: `cache` or `buf` is NULL; `table_offset` is 0; `at` or `bytes` is not a multiple of
///   8, or they reach beyond the table.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); or the
///   cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache. `buf` is NULL or has room for `bytes` bytes, which nobody else
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
            if let Some((word, slot, needs_touch)) = known.read_fast(table_offset, at) {
                // SAFETY: not NULL, and room for 8 bytes, as the caller promised.
                unsafe { buf.cast::<u64>().write_unaligned(word) };
                if needs_touch {
                    // SAFETY: live, as the caller promised.
                    return unsafe { touch(cache, slot) };
                }
                return 0;
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { read_slow(cache, table_offset, at, buf, bytes) }
}

/// # Safety
/// As `q2c_cache_read`.
#[inline(never)]
unsafe extern "C" fn read_slow(
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
        cache.read_slow(table_offset, at, buf)
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, read) }
}

/// Stores eight bytes at byte `at` of a pinned table, atomically, so that others can read the table
/// with `q2c_cache_read` at the same time. Does not mark the table dirty. Everything that the
/// caller wrote before is visible to a caller that reads this value.
///
/// Parameters:
/// - `table`: an address from a get; the caller has it pinned.
/// - `at`: in bytes; a multiple of 8 inside the table.
/// - `value_as_stored`: goes to memory as it is. Convert it first if qcow2 keeps the entry in
///   big-endian order.
///
/// Context: any thread that has the table pinned; never waits, takes no lock.
///
/// Returns: 0 on success.
/// - `-EINVAL`: an argument is NULL; `table` is not the address of a table of this cache, or nobody
///   has it pinned; `at` is not a multiple of 8, or is beyond the table.
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

/// Gives one pin back.
///
/// Parameters:
/// - `table`: points to an address from a get; set to NULL on success.
///
/// Context: any thread, also another one than that of the get; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: an argument or `*table` is NULL; `*table` is not the address of a table of this
///   cache, or nobody has it pinned.
/// - `-EIO`: the cache is poisoned. The pin is given back all the same, but `*table` is not set to
///   NULL.
///
/// Ownership: takes the caller's pin.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` is NULL or readable and writable. The caller has pinned
/// the table, and does not use it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_put(cache: *mut q2c_cache, table: *mut *mut c_void) -> c_int {
    // SAFETY: NULL or live; NULL or readable and writable: as the caller promised.
    unsafe {
        if let (Ok(known), false) = (value(cache), table.is_null()) {
            if known.put_fast((*table).addr()) {
                table.write(std::ptr::null_mut());
                return 0;
            }
        }
        put_slow(cache, table)
    }
}

/// # Safety
/// As `q2c_cache_put`.
#[inline(never)]
unsafe extern "C" fn put_slow(cache: *mut q2c_cache, table: *mut *mut c_void) -> c_int {
    let put = |cache: &Cache| {
        // SAFETY: NULL or writable, as the caller promised.
        let place = unsafe { out(table) }?;
        // SAFETY: not NULL, since `out` agreed, and readable, as the caller promised.
        cache.put_slow(unsafe { table.read() }.addr())?;
        place.set(std::ptr::null_mut());
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, put) }
}

/// Marks a pinned table as changed. It will be written before its slot is used for another table,
/// or by the next write or flush. If the table was discarded, the call returns 0, but the table is
/// not written.
///
/// Parameters:
/// - `table`: an address from a get; the caller has it pinned.
///
/// Context: any thread that has the table pinned; never waits, takes no lock. Call it after the
/// change, or hold the state lock over both: otherwise a write-back in between writes the old bytes
/// and forgets the mark.
///
/// Returns: 0 on success.
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
