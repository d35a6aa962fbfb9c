// SPDX-License-Identifier: MIT OR Apache-2.0
//! Dirty tables: write, flush, and the order on disk.

use std::ffi::c_int;

use super::cache::{q2c_cache, share};
use super::call_cache;
use crate::host::block_on;

/// Writes every dirty table, in the order of their offsets and with neighbours joined, but does not
/// flush storage. What the tables depend on is flushed first. A table that is marked dirty again
/// during its write stays dirty.
///
/// Context: state lock held, or calls serialised otherwise; may wait, also for writes that somebody
/// else has begun.
///
/// Returns: 0 on success. On an error, what was not written is still dirty. Of several errors the
/// call returns the first, but `-ENOSPC` before all others.
/// - `-EINVAL`: `cache` is NULL.
/// - `-EIO`: the cache is poisoned, or it has dirty tables and the cache that it depends on is
///   poisoned.
/// - any errno of `pwritev` or `pre_write_check`: these tables were not written; all the others
///   were tried.
/// - any errno of a flush of what the tables depend on: no table was written from then on.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_write(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| block_on(cache.host(), &[], cache.write())) }
}

/// Writes every dirty table, as `q2c_cache_write` does, and then flushes storage. When it returns
/// 0, everything that was dirty when it was called is stable, and so is what was written before.
/// The call flushes storage also if nothing was dirty. It does not if a write failed.
///
/// A failed flush is not forgotten. Storage may have lost what it should have made stable, and may
/// not say so again: Linux drops such pages, and the next `fsync` returns 0. So every table that
/// was written since the last good flush is dirty again, in all caches of the same storage; the
/// next flush writes it anew. If one of them has left its cache meanwhile, that cache is
/// *unstable*: its flushes return this error from then on. `q2c_cache_discard_range(cache, 0,
/// UINT64_MAX)` and `q2c_state_invalidate` give the tables up and make it stable again.
///
/// Context: state lock held, or calls serialised otherwise; may wait, also for writes that somebody
/// else has begun.
///
/// Returns: 0 on success. On an error, what was not written is still dirty. Of several errors of
/// writes the call returns the first, but `-ENOSPC` before all others.
/// - `-EINVAL`: `cache` is NULL.
/// - `-EIO`: the cache is poisoned, or it has dirty tables and the cache that it depends on is
///   poisoned.
/// - any errno of `pwritev` or `pre_write_check`: these tables were not written; all the others
///   were tried.
/// - any errno of a flush of what the tables depend on: no table was written from then on.
/// - any errno of `flush`: every table was written, but is not known to be stable, and is dirty
///   again; or the cache is unstable since an earlier flush, and storage was not flushed.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_flush(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| block_on(cache.host(), &[], cache.flush())) }
}

/// Flushes storage, but writes no table. When it returns 0, what was written before the call is
/// stable, by `q2c_cache_write` and by the caller itself, and the flush counts for all caches of
/// the same storage. This is how a driver flushes for its guest without holding the state lock over
/// it: it writes its caches with the lock, and calls this without.
///
/// Calls at the same time share flushes: each waits for two of them at most.
///
/// A driver that flushes the file in another way has to see to it itself that a failure is not
/// forgotten: see `q2c_cache_flush`.
///
/// Context: any thread or coroutine, with or without the state lock; may wait.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `cache` is NULL.
/// - `-EIO`: the cache is poisoned.
/// - any errno of `flush`: see `q2c_cache_flush`.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_flush_storage(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe {
        call_cache(cache, |cache| {
            block_on(cache.host(), &[], cache.flush_storage())
        })
    }
}

/// Writes every dirty table, flushes storage, as `q2c_cache_flush` does, and then drops every
/// table.
///
/// Context: state lock held, or calls serialised otherwise; may wait, also for writes that somebody
/// else has begun.
///
/// Returns: 0 on success. On an error other than `-EBUSY` no table was dropped, and what was not
/// written is still dirty. Of several errors of writes the call returns the first, but `-ENOSPC`
/// before all others.
/// - `-EINVAL`: `cache` is NULL.
/// - `-EBUSY`: a table is pinned, being loaded or being written, or was dirtied again. Everything
///   was written and flushed, nothing was dropped.
/// - `-EIO`: the cache is poisoned, or it has dirty tables and the cache that it depends on is
///   poisoned.
/// - any errno of `pwritev` or `pre_write_check`: these tables were not written; all the others
///   were tried.
/// - any errno of a flush of what the tables depend on: no table was written from then on.
/// - any errno of `flush`: see `q2c_cache_flush`.
///
/// # Safety
/// `cache` is NULL or a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_empty(cache: *mut q2c_cache) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, |cache| block_on(cache.host(), &[], cache.empty())) }
}

/// Makes `cache` depend on `dependency`: before the next write of a table of `cache`, `dependency`
/// is flushed. That happens once; then the dependency is gone. Setting what is already set changes
/// nothing and returns 0.
///
/// There are no chains, no rings, and no second dependency of a cache: what would become one is
/// flushed first, inside this call.
///
/// Both caches are of one image file: after the destruction of `dependency`, a flush of the storage
/// of `cache` stands in for it.
///
/// Context: state locks of both caches held, or calls serialised otherwise; may wait.
///
/// Returns: 0 on success. On an error the dependency was not set.
/// - `-EINVAL`: an argument is NULL, or both are the same cache.
/// - `-EIO`: one of the caches is poisoned, or a cache that had to be flushed first is.
/// - any errno of `pwritev`, `flush` or `pre_write_check`: what had to be flushed first could not
///   be.
///
/// Ownership: either may be destroyed before the dependency is gone. After the destruction of
/// `dependency`, `cache` depends on a flush of its storage instead; see `q2c_cache_destroy`.
///
/// # Safety
/// `cache` and `dependency` are NULL or live caches.
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

/// Makes `cache` depend on a flush: before the next write of a table of `cache`, its storage is
/// flushed, once. If this is asked for while a flush runs, that flush does not count.
///
/// It orders changes that are made afterwards with the state lock held. A change without the lock
/// may get into a write of its table that runs already, and reach storage before the flush.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
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
