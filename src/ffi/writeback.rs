// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dirty tables: write, flush, and the order on disk.

use std::ffi::c_int;

use super::cache::{q2c_cache, share};
use super::call_cache;
use crate::host::block_on;

/// Writes every dirty table, in the order of their offsets and neighbours joined, but does not
/// flush storage. What the tables depend on is flushed first. Waits for those that somebody else is
/// writing.
///
/// State lock held, or calls serialised otherwise; may wait. A table that is changed meanwhile
/// stays dirty.
///
/// - `-EINVAL`: `cache` is NULL.
/// - `-EIO`: the cache is poisoned.
/// - storage's own: of a write, a flush or `pre_write_check`. Every table was tried; of several
///   errors this is the first, but `-ENOSPC` before all others. What was not written is still
///   dirty.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_write(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| block_on(cache.host(), &[], cache.write())) }
}

/// As `q2c_cache_write`, and then flushes storage: when it returns 0, what was dirty when it was
/// called is stable. Storage is not flushed if a write failed. Same context, same errors.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_flush(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| block_on(cache.host(), &[], cache.flush())) }
}

/// As `q2c_cache_flush`, and then drops every table, or none. Same context, same errors, and
///
/// - `-EBUSY`: a table is pinned, being loaded or written, or was dirtied again. Everything was
///   written, nothing dropped.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_empty(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| block_on(cache.host(), &[], cache.empty())) }
}

/// From now on `dependency` is flushed before a table of `cache` is written, once; then the
/// dependency is gone.
///
/// State locks of both held, or calls serialised otherwise; may wait: what would become a chain or
/// a ring of dependencies, or a second one, is flushed first. Setting what is set already is 0.
///
/// - `-EINVAL`: an argument is NULL, or both are the same cache.
/// - `-EIO`: one of the caches is poisoned.
/// - storage's own, of such a flush; the dependency was not set then.
///
/// # Safety
/// `cache` and `dependency` are NULL or live caches. A cache that others depend on may be
/// destroyed; its destruction relieves them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_set_dependency(
    cache: *mut q2c_cache,
    dependency: *mut q2c_cache,
) -> c_int {
    let set = |target: &crate::cache::Cache| {
        // SAFETY: NULL or live, as the caller promised.
        let (owned, dependency) = unsafe { (share(cache)?, share(dependency)?) };
        block_on(target.host(), &[], owned.set_dependency(&dependency))
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, set) }
}

/// From now on storage is flushed before a table of `cache` is written, once. Asked for while a
/// flush runs, it means another one.
///
/// Any thread, state lock held or not, never waits.
///
/// - `-EINVAL`: `cache` is NULL.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_depends_on_flush(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| cache.depends_on_flush()) }
}
