// SPDX-License-Identifier: MIT OR Apache-2.0
//! The handle of a cache: create, destroy, statistics.

use std::ffi::c_int;
use std::sync::Arc;

use super::host::{host_from, q2c_host};
use super::storage::{q2c_storage, storage_from};
use super::{
    CStruct, Handle, call_cache, call_destroy, call_set_up, errno_of, error::q2c_error, named_out,
    on_cache, out_struct, read_struct, value,
};
use crate::cache::{Cache, CacheOptions};
use crate::error::Errno;

/// A cache of equally sized tables (L2 tables, slices of them, or refcount blocks) of one image
/// file.
///
/// Context: any number of threads and coroutines may use it at the same time, except for its
/// destruction.
///
/// Ownership: made by `q2c_cache_create` and destroyed by `q2c_cache_destroy`, or borrowed from a
/// state.
pub struct q2c_cache {
    _private: [u8; 0],
}

/// The pointer is from `Arc::into_raw`, or from `Arc::as_ptr` for a cache that a state owns.
impl Handle for q2c_cache {
    type Value = Cache;
}

/// How `q2c_cache_create` makes a cache.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_cache_options {
    /// `sizeof(q2c_cache_options)`.
    pub struct_size: usize,
    /// Number of slots, that is, the most tables that the cache can hold: 1 to `INT_MAX`.
    pub tables: usize,
    /// Size of one table in bytes: a power of two from 512 to 2097152 (2 MiB).
    pub table_size: usize,
    /// The caller's own number for what the tables are; any value. The library passes it to every
    /// callback of the storage but `flush`.
    pub kind: c_int,
    /// Number of slots, 0 to `tables`, that `q2c_cache_get_unlocked` neither loads into nor pins,
    /// so that callers with the state lock never starve. Use the largest number of tables of this
    /// cache that a caller with the state lock pins at the same time. It is 2 for L2 tables in a
    /// driver that copies one (QEMU's `l2_allocate` pins the old slice and the new one), and 2 for
    /// refcount blocks (an allocation touches the old and the new one). If that is all of `tables`,
    /// `q2c_cache_get_unlocked` loads nothing, and its callers always come back with the lock.
    pub reserved_tables: u32,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_cache_options {
    const NAME: &'static str = "q2c_cache_options";
}

/// What a cache has done since its creation, and what it holds now.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_cache_stats {
    /// `sizeof(q2c_cache_stats)`, set by the caller before the call.
    pub struct_size: usize,
    /// Pins of tables that were resident. A get that waited for another caller's load counts here
    /// and as a miss. Copies by `q2c_cache_read` are not counted.
    pub hits: u64,
    /// Gets that found their table absent or being loaded, including those that then failed.
    /// `q2c_cache_try_get` counts no miss.
    pub misses: u64,
    /// Tables that were read from storage.
    pub loads: u64,
    /// Tables that were dropped so that another table could take their slot.
    pub evictions: u64,
    /// Tables that were written.
    pub write_backs: u64,
    /// Write requests that wrote these tables; one request can write several neighbours.
    pub writes: u64,
    /// Tables that cleaning dropped.
    pub cleaned: u64,
    /// Tables that were discarded.
    pub discarded: u64,
    /// Number of slots, as created.
    pub tables: usize,
    /// Size of one table in bytes, as created.
    pub table_size: usize,
    /// Slots that hold a table, including a discarded one that is still pinned or being written.
    pub resident_tables: usize,
    /// Slots that hold a dirty table. A table that is being written counts only if it was marked
    /// dirty again.
    pub dirty_tables: usize,
    /// Slots that are pinned.
    pub pinned_tables: usize,
    /// Bytes of table memory, in whole pages, that were used and have not been given back to the
    /// kernel.
    pub resident_bytes: u64,
    /// Bytes of memory for everything besides the tables.
    pub metadata_bytes: u64,
    /// Tables that a failed flush of storage made dirty again, since it may have lost their writes.
    pub redirtied: u64,
    /// Tables that were written and had left the cache when the flush failed that should have made
    /// them stable. It includes tables of destroyed caches of the same storage.
    pub lost: u64,
    /// What every flush of the cache returns since tables were lost, `-errno`; 0: the cache is
    /// stable. See `q2c_cache_flush`.
    pub flush_error: c_int,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_cache_stats {
    const NAME: &'static str = "q2c_cache_stats";
}

/// Makes an empty cache. Table memory is taken from the kernel when it is first used.
///
/// Parameters:
/// - `options`, `storage`: must not be NULL.
/// - `host`: NULL means `Q2C_HOST_THREADS`.
/// - `cache`: receives the handle; must not be NULL.
/// - `error`: may be NULL.
///
/// Context: any thread; never waits; calls neither storage nor host.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `options`, `storage` or `cache` is NULL; a `struct_size` is too small; an option is
///   out of its range; `preadv`, `pwritev` or `flush` is NULL; `max_iov` is negative; the host's
///   `kind` is unknown; a callback that this kind needs is NULL, or one is set that it does not
///   take.
/// - `-ENOMEM`: there is not enough address space for the tables, or not enough memory for what the
///   cache keeps about them.
///
/// Ownership: `*cache` is the caller's, to be destroyed by `q2c_cache_destroy`. `options`,
/// `storage` and `host` are copied and need not outlive the call. What the `opaque` pointers lead
/// to must live as long as the cache.
///
/// # Safety
/// Pointers are NULL or valid. Callbacks keep the contracts of `q2c_storage` and `q2c_host`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_create(
    options: *const q2c_cache_options,
    storage: *const q2c_storage,
    host: *const q2c_host,
    cache: *mut *mut q2c_cache,
    error: *mut q2c_error,
) -> c_int {
    let create = || {
        // SAFETY: NULL or readable as far as its struct_size says, as the caller promised.
        let options = CacheOptions::from(unsafe { read_struct(options) }?);
        // SAFETY: NULL or readable as far as their struct_size says, with callbacks that keep their
        // contract, as the caller promised.
        let (storage, host) = unsafe { (storage_from(storage)?, host_from(host)?) };
        // SAFETY: NULL or writable, as the caller promised.
        let cache = unsafe { named_out(cache, "cache") }?;
        let made = Cache::new(&options, storage, host)?;
        cache.set(Arc::into_raw(made).cast_mut().cast());
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_cache_create", error, create) }
}

impl From<q2c_cache_options> for CacheOptions {
    fn from(options: q2c_cache_options) -> Self {
        Self {
            tables: options.tables,
            table_size: options.table_size,
            kind: options.kind,
            reserved: options.reserved_tables as usize,
        }
    }
}

/// Destroys a cache. It calls no storage: dirty tables are an error.
///
/// A cache that depends on this one depends on a flush of storage instead, as after
/// `q2c_cache_depends_on_flush`: its next write flushes first. If this cache is unstable (see
/// `q2c_cache_flush`), or poisoned with dirty tables, the caches that depend on it are unstable
/// from then on, since no flush helps them.
///
/// If something that this cache wrote may not be stable yet, that is left to the other caches of
/// the same storage, and to those that depend on this one: one of their flushes makes it stable. If
/// that flush fails, they are unstable. So flush before the last cache of an image is destroyed.
///
/// Parameters:
/// - `cache`: set to NULL on success. NULL, or a pointer to NULL, returns 0.
///
/// Context: state lock held, or calls serialised otherwise; never waits. No other call may use the
/// cache meanwhile. A cleaner that was told of the cache does no harm, whether it runs or not.
///
/// Returns: 0 on success. On an error the cache is as it was.
/// - `-EBUSY`: a table is pinned, being loaded or being written.
/// - `-ENOTEMPTY`: tables are dirty. Flush them, or give them up with
///   `q2c_cache_discard_range(cache, 0, UINT64_MAX)`. Dirty tables of a poisoned cache are no
///   obstacle.
/// - `-EPERM`: the cache belongs to a state, which will destroy it.
///
/// Ownership: frees the handle and the tables' memory; if a cleaner is just looking at the cache,
/// the memory is freed when that step of its pass ends, some µs later.
///
/// # Safety
/// `cache` is NULL or points to NULL or to a live cache, which nobody else uses during the call and
/// nobody uses after it succeeded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_destroy(cache: *mut *mut q2c_cache) -> c_int {
    let check = |handle: *mut q2c_cache| {
        // SAFETY: live, as the caller promised; the borrow ends before the cache does.
        on_cache(unsafe { value(handle) }?, |cache| {
            if cache.is_owned_by_state() {
                return Err(Errno::PERM);
            }
            cache.check_destroy()?;
            // SAFETY: live, as the caller promised.
            unsafe { share(handle) }?.retire();
            Ok(())
        })
    };
    // SAFETY: the pointer came from `Arc::into_raw` in `q2c_cache_create`, since the cache belongs
    // to no state. Only this call gives its count back: the caller's pointer is NULL from now on.
    let free = |cache: *mut Cache| drop(unsafe { Arc::from_raw(cache) });
    // SAFETY: the caller keeps this function's contract for `cache`.
    unsafe { call_destroy(cache, check, free) }
}

/// Adds an owner to a cache that C refers to. `EINVAL`: NULL.
///
/// # Safety
/// The contract of [`value`].
pub(super) unsafe fn share(cache: *const q2c_cache) -> Result<Arc<Cache>, Errno> {
    if cache.is_null() {
        return Err(Errno::INVAL);
    }
    let cache = cache.cast::<Cache>();
    // SAFETY: every handle is the address of a cache inside an Arc (see `Handle`). Its count is
    // above 0, since the handle is live. The count that is added here belongs to the result.
    unsafe {
        Arc::increment_strong_count(cache);
        Ok(Arc::from_raw(cache))
    }
}

/// Fills `*stats`. The numbers are read one after the other while the cache is in use, so they do
/// not describe one single moment.
///
/// Parameters:
/// - `stats`: its `struct_size` must be set; it stays as it is.
///
/// Context: any thread; never waits, takes no lock. Looks at every slot.
///
/// Returns: 0 on success.
/// - `-EINVAL`: an argument is NULL, or `struct_size` is too small.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache. `stats` is NULL or writable as far as its `struct_size` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_get_stats(
    cache: *mut q2c_cache,
    stats: *mut q2c_cache_stats,
) -> c_int {
    let fill = |cache: &Cache| {
        // SAFETY: NULL or writable as far as its struct_size says, as the caller promised.
        let out = unsafe { out_struct(stats) }.map_err(errno_of)?;
        cache.check_poison()?;
        let stats = stats_of(out.struct_size, cache);
        out.place.set(stats);
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cache(cache, fill) }
}

fn stats_of(struct_size: usize, cache: &Cache) -> q2c_cache_stats {
    let stats = cache.stats();
    q2c_cache_stats {
        struct_size,
        hits: stats.hits,
        misses: stats.misses,
        loads: stats.loads,
        evictions: stats.evictions,
        write_backs: stats.write_backs,
        writes: stats.writes,
        cleaned: stats.cleaned,
        discarded: stats.discarded,
        redirtied: stats.redirtied,
        lost: stats.lost,
        flush_error: stats.flush_error.map_or(0, |errno| -errno.code()),
        tables: stats.tables,
        table_size: stats.table_size,
        resident_tables: stats.resident_tables,
        dirty_tables: stats.dirty_tables,
        pinned_tables: stats.pinned_tables,
        resident_bytes: stats.resident_bytes,
        metadata_bytes: stats.metadata_bytes,
    }
}
