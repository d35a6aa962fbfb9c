// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dropping tables: clean ones by cleaning, any by discarding.

use std::ffi::{c_int, c_void};

use super::cache::q2c_cache;
use super::{call_cache, out};
use crate::cache::Cache;

/// Drops the tables that are clean, not pinned and not used since the previous call, and gives
/// their memory back to the kernel as far as whole pages are free. A cleaner does this; it may also
/// be called by hand.
///
/// Any thread, state lock held or not; never waits, never does I/O.
///
/// Returns how many tables were dropped (`INT_MAX` stands for more), or
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

/// Whether the table at `table_offset` is in the cache. If so, `*table` is its address; it is not
/// pinned, so that the address is only good for `q2c_cache_discard`. If not, `*table` is NULL.
///
/// Any thread, state lock held or not, never waits.
///
/// Returns 1: it is; 0: it is not, or is still being loaded; or
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); the
///   cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache; `table` is NULL or writable.
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

/// Discards the table at `table_offset`, dirty or not: its cluster was freed. It is out of the
/// cache at once, and nothing of it will be written; a next get reads anew. Those who have it
/// pinned keep it until they put it. A table that is not there: 0.
///
/// State lock held, or calls serialised otherwise: no write-back of the table may be under way.
/// Never waits.
///
/// - `-EINVAL`: `cache` is NULL; `table_offset` is 0.
/// - `-EIO`: `table_offset` is not a multiple of the table size (`corruption` was called); the
///   cache is poisoned.
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

/// Discards every table that shares a byte with the `bytes` bytes from `offset` of the file on, as
/// `q2c_cache_discard_offset` does: all slices of a freed cluster, or with 0 and `UINT64_MAX` all
/// there are. A range need not be aligned, may reach over the end, and may be empty. Same context.
///
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

/// Discards the table at `table_offset` if it is still the one that `q2c_cache_is_table_offset`
/// found at the address `table`. Same context as `q2c_cache_discard_offset`.
///
/// - `-EINVAL`: an argument is NULL; `table_offset` is 0; `table` is not the address of a table of
///   this cache.
/// - `-ESTALE`: another table, or none, is at that address by now. Nothing was discarded.
/// - `-EIO`: as `q2c_cache_discard_offset`.
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
