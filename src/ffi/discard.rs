// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dropping tables: cleaning drops unused clean ones, discarding drops any.

use std::ffi::{c_int, c_void};

use super::cache::q2c_cache;
use super::{call_cache, out};
use crate::cache::Cache;

/// Drops the tables that are clean, not pinned and not used since the previous pass, and gives the
/// memory of free slots back to the kernel as far as whole pages are free. A cleaner does this in
/// its passes; this call is a whole pass by hand.
///
/// Context: any thread; never waits, never does I/O.
///
/// Returns: the number of tables dropped, 0 or more; `INT_MAX` stands for more than that.
/// - `-EINVAL`: `cache` is NULL.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_clean_unused(cache: *mut q2c_cache) -> c_int {
    let clean = |cache: &Cache| {
        cache.check_poison()?;
        Ok(cache.clean_unused())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, clean) }
}

/// Tells whether the table at `table_offset` is in the cache, and where. The table is not pinned,
/// so the address is only good for `q2c_cache_discard`.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file, not 0. There is no table at an offset
///   that is not a multiple of the table size.
/// - `table`: receives the table's address, or NULL if the table is not there; must not be NULL.
///
/// Context: any thread; never waits.
///
/// Returns: 1 if the table is in the cache, 0 if it is not or is still being loaded.
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_is_table_offset(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *mut *mut c_void,
) -> c_int {
    let look = |cache: &Cache| {
        // SAFETY: NULL or writable, as the caller promised.
        let table = unsafe { out(table) }?;
        let found = cache.table_at(table_offset)?;
        table.set(found.map_or(std::ptr::null_mut(), |table| table.as_ptr().cast()));
        Ok(found.is_some())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, look) }
}

/// Discards the table at `table_offset`, dirty or not, because its cluster was freed. It leaves the
/// cache immediately: nothing of it will be written, and the next get reads it from storage again.
/// Callers that have it pinned keep their bytes until their put.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file, not 0. There is no table at an offset
///   that is not a multiple of the table size.
///
/// Context: state lock held, or calls serialised otherwise: no write-back of the table may be under
/// way. Never waits.
///
/// Returns: 0 on success, and if the table is not in the cache.
/// - `-EINVAL`: `cache` is NULL; `table_offset` is 0.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_discard_offset(
    cache: *mut q2c_cache,
    table_offset: u64,
) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| cache.discard_offset(table_offset)) }
}

/// Discards, as `q2c_cache_discard_offset` does, every table that shares a byte with a range of the
/// file: all slices of a freed cluster, or the whole cache with 0 and `UINT64_MAX`.
///
/// Parameters:
/// - `offset`, `bytes`: the range, in bytes. It need not be aligned, may reach beyond the end of
///   the file, and may be empty.
///
/// Context: state lock held, or calls serialised otherwise: no write-back of these tables may be
/// under way. Never waits.
///
/// Returns: 0 on success, also if no table is there.
/// - `-EINVAL`: `cache` is NULL.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_discard_range(
    cache: *mut q2c_cache,
    offset: u64,
    bytes: u64,
) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| cache.discard_range(offset, bytes)) }
}

/// Discards, as `q2c_cache_discard_offset` does, the table at `table_offset` if it is still the one
/// that `q2c_cache_is_table_offset` found at the address `table`.
///
/// Parameters:
/// - `table_offset`: bytes from the start of the image file, not 0. There is no table at an offset
///   that is not a multiple of the table size.
/// - `table`: an address from `q2c_cache_is_table_offset`.
///
/// Context: state lock held, or calls serialised otherwise: no write-back of the table may be under
/// way. Never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0; `table` is not the address of a table of
///   this cache.
/// - `-ESTALE`: another table, or none, is at that address by now. Nothing was discarded.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache. `table` may be any value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_discard(
    cache: *mut q2c_cache,
    table_offset: u64,
    table: *const c_void,
) -> c_int {
    let discard = |cache: &Cache| cache.discard_table(table_offset, table.addr());
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, discard) }
}
