// SPDX-License-Identifier: MIT OR Apache-2.0
//! A cache's handle: create, destroy, statistics.

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
use crate::host::block_on;

/// A cache of equally sized tables (L2 tables or slices of them, refcount blocks) of one image
/// file.
///
/// Made by `q2c_cache_create` and destroyed by `q2c_cache_destroy`, or borrowed from a state. Any
/// number of threads and coroutines may use it at once, but for its destruction.
pub struct q2c_cache {
    _private: [u8; 0],
}

/// `Arc::into_raw`, or `Arc::as_ptr` for one that a state holds.
impl Handle for q2c_cache {
    type Value = Cache;
}

/// How a cache is made.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_cache_options {
    /// sizeof(q2c_cache_options).
    pub struct_size: usize,
    /// How many tables it holds at most: 1 to `INT_MAX`.
    pub tables: usize,
    /// Bytes of one table: a power of two from 512 to 2 MiB (2097152).
    pub table_size: usize,
    /// The caller's own number for what the tables are, handed to `pre_write_check` and
    /// `corruption`.
    pub kind: c_int,
    /// How many of the slots `q2c_cache_get_unlocked` neither loads into nor pins, so that callers
    /// with the lock never starve: 1 for an L2 cache, 2 for refcount blocks; at most `tables`.
    pub reserved_tables: u32,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_cache_options {
    const NAME: &'static str = "q2c_cache_options";
}

/// What a cache did since its creation, and what it holds now.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_cache_stats {
    /// sizeof(q2c_cache_stats), set by the caller before the call.
    pub struct_size: usize,
    /// Pins of tables that were resident; copies by `q2c_cache_read` are not counted.
    pub hits: u64,
    /// Gets that had to load, or to wait for a load.
    pub misses: u64,
    /// Tables read from storage.
    pub loads: u64,
    /// Tables that gave their slot to another one.
    pub evictions: u64,
    /// Tables written.
    pub write_backs: u64,
    /// Write requests that those took.
    pub writes: u64,
    /// Tables dropped by cleaning.
    pub cleaned: u64,
    /// Tables discarded.
    pub discarded: u64,
    /// Slots, as created.
    pub tables: usize,
    /// Bytes of one table, as created.
    pub table_size: usize,
    /// Slots that hold a table.
    pub resident_tables: usize,
    /// Slots that hold a dirty one.
    pub dirty_tables: usize,
    /// Slots that are pinned.
    pub pinned_tables: usize,
    /// Bytes of table memory that were used and have not been given back to the kernel.
    pub resident_bytes: u64,
    /// Bytes of memory besides the tables.
    pub metadata_bytes: u64,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_cache_stats {
    const NAME: &'static str = "q2c_cache_stats";
}

/// Makes a cache without a table in it. Table memory is taken from the kernel when it is first
/// used.
///
/// Any thread, never waits, calls neither storage nor host. `options`, `storage` and `host` are
/// copied and may go afterwards; what their `opaque`s lead to must live as long as the cache.
/// `host` NULL: threads. On success `*cache` is the caller's, for `q2c_cache_destroy`; on an error
/// it is left alone. `error` may be NULL.
///
/// - `-EINVAL`: `options`, `storage` or `cache` is NULL; a `struct_size` is too small; an option is
///   out of its range; a callback that must be there is NULL, or one is given that is not for the
///   host's kind; `max_iov` is negative; unknown host kind.
/// - `-ENOMEM`: there is no address space for so many tables.
///
/// # Safety
/// Pointers are NULL or valid; callbacks keep the contracts of `q2c_storage` and `q2c_host`.
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
        // SAFETY: as above; the callbacks' contract was promised, too.
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

/// Destroys a cache and sets `*cache` to NULL. NULL, and a NULL in `*cache`, is 0.
///
/// State lock held, or calls serialised otherwise; may wait. Never writes a table of this cache:
/// dirty ones are an error. Caches that depend on this one are relieved of that first, which
/// flushes storage. On an error the cache is as it was. Not to be called while another call uses
/// the cache; a cleaner that still holds it, asked to stop or not, does no harm.
///
/// - `-EBUSY`: a table is pinned, being loaded or being written.
/// - `-ENOTEMPTY`: tables are dirty. Flush them, or give them up: `q2c_cache_discard_range(cache,
///   0, UINT64_MAX)`.
/// - `-EPERM`: the cache belongs to a state, which will destroy it.
/// - `-EIO`, or storage's own: the flush for a dependent cache failed.
///
/// # Safety
/// `cache` is NULL or points to NULL or to a live cache, which nobody uses during the call or after
/// it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cache_destroy(cache: *mut *mut q2c_cache) -> c_int {
    let check = |handle: *mut q2c_cache| {
        // SAFETY: live, as the caller promised; the borrow ends before the cache does.
        on_cache(unsafe { value(handle) }?, |cache| {
            if cache.belongs_to_state() {
                return Err(Errno::PERM);
            }
            cache.check_destroy()?;
            // SAFETY: live, as above.
            let shared = unsafe { share(handle) }?;
            block_on(cache.host(), &[], shared.release_dependents())
        })
    };
    // SAFETY: the pointer came from `Arc::into_raw` in `q2c_cache_create`, since the cache belongs
    // to no state, and its count is given back here alone, as the handle's place holds NULL from
    // now on.
    let free = |cache: *mut Cache| drop(unsafe { Arc::from_raw(cache) });
    // SAFETY: the caller's promise about `cache`.
    unsafe { call_destroy(cache, check, free) }
}

/// A further owner of a cache that C refers to. `EINVAL`: NULL.
///
/// # Safety
/// As [`value`].
pub(super) unsafe fn share(cache: *const q2c_cache) -> Result<Arc<Cache>, Errno> {
    if cache.is_null() {
        return Err(Errno::INVAL);
    }
    let cache = cache.cast::<Cache>();
    // SAFETY: every handle is the address of a cache inside an Arc (see `Handle`), whose count is
    // above 0 since the handle is live; the count that is added here belongs to the result.
    unsafe {
        Arc::increment_strong_count(cache);
        Ok(Arc::from_raw(cache))
    }
}

/// Fills `*stats`, whose `struct_size` the caller has set: a sum over moments, not one moment.
///
/// Any thread, never waits, takes no lock; looks at every slot. On an error `*stats` is left alone.
///
/// - `-EINVAL`: an argument is NULL, or `struct_size` is too small.
/// - `-EIO`: the cache is poisoned.
///
/// # Safety
/// `cache` is NULL or a live cache; `stats` is NULL or writable.
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
        tables: stats.tables,
        table_size: stats.table_size,
        resident_tables: stats.resident_tables,
        dirty_tables: stats.dirty_tables,
        pinned_tables: stats.pinned_tables,
        resident_bytes: stats.resident_bytes,
        metadata_bytes: stats.metadata_bytes,
    }
}
