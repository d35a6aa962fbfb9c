// SPDX-License-Identifier: MIT OR Apache-2.0
//! The contenders: what `libqcow2cache` is measured against. Every operation is an `extern "C"`
//! function behind a pointer in [`Ops`], so that each contender pays for the same call as the
//! library.
//!
//! | contender | what it is | what it lacks |
//! |---|---|---|
//! | [`linear`] | 24 bytes an entry, linear search, LRU by counters, one lock held by the caller | nothing |
//! | [`lru_mutex`] | the `lru` crate under a `parking_lot` mutex; `Arc` is the pin | loads, write-back, table memory |
//! | [`quick`] | the `quick_cache` crate; `Arc` is the pin | loads, write-back, table memory |
//! | [`floor`] | an index and a word a slot: one probe, one compare-and-swap, one fetch-sub | misses, eviction, write-back, cleaning, statistics |

use core::ffi::{c_int, c_void};

pub mod floor;
pub mod linear;
pub mod lru_mutex;
mod memory;
pub mod quick;

/// Size of every table of every contender, in bytes.
pub const TABLE_SIZE: usize = 4096;

/// `int get(cache, offset, void **table)`
pub type Get = unsafe extern "C" fn(*mut c_void, u64, *mut *mut c_void) -> c_int;
/// `int put(cache, void **table)`
pub type Put = unsafe extern "C" fn(*mut c_void, *mut *mut c_void) -> c_int;
/// `int read(cache, offset, at, buf, bytes)`
pub type Read = unsafe extern "C" fn(*mut c_void, u64, usize, *mut c_void, usize) -> c_int;
/// `int f(cache)`
pub type Whole = unsafe extern "C" fn(*mut c_void) -> c_int;
/// `int mark_dirty(cache, table)`
pub type Mark = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
/// What a miss calls in place of I/O, and a flush for each table it writes.
pub type Stub = unsafe extern "C" fn(offset: u64, table: *mut c_void);

/// A contender's operations; those that it lacks are `None`. The library's functions have these
/// types as well.
#[derive(Clone, Copy)]
pub struct Ops {
    /// Pins a table.
    pub get: Option<Get>,
    /// Unpins a table.
    pub put: Option<Put>,
    /// Copies a part of a table, without a pin.
    pub read: Option<Read>,
    /// Finds a table and copies nothing.
    pub probe: Option<Read>,
    /// Marks a pinned table dirty.
    pub mark_dirty: Option<Mark>,
    /// Writes the dirty tables.
    pub flush: Option<Whole>,
    /// Drops the tables that were not used since the previous pass and releases their memory.
    pub clean: Option<Whole>,
    /// Tells whether a table is resident, without a pin.
    pub lookup: Option<Get>,
}

impl Ops {
    /// No operation at all.
    pub const NONE: Ops = Ops {
        get: None,
        put: None,
        read: None,
        probe: None,
        mark_dirty: None,
        flush: None,
        clean: None,
        lookup: None,
    };
}

/// A contender with its cache. The handle is valid until the value is dropped.
pub struct Contender {
    /// First argument of every operation.
    pub handle: *mut c_void,
    /// Its operations.
    pub ops: Ops,
    destroy: unsafe fn(*mut c_void),
}

// SAFETY: every contender may be used from several threads. `linear` takes its lock in get and
// unlocks it in put; the others synchronise inside each call.
unsafe impl Send for Contender {}
// SAFETY: as for `Send`.
unsafe impl Sync for Contender {}

impl Contender {
    /// Takes over `cache`.
    fn new<T>(cache: T, ops: Ops) -> Self {
        unsafe fn destroy<T>(handle: *mut c_void) {
            // SAFETY: `handle` comes from `Box::into_raw` of a `T`, below; only `drop` calls this,
            // once.
            drop(unsafe { Box::from_raw(handle.cast::<T>()) });
        }
        Self {
            handle: Box::into_raw(Box::new(cache)).cast(),
            ops,
            destroy: destroy::<T>,
        }
    }

    /// Wraps a cache that is not from this crate.
    ///
    /// # Safety
    /// `ops` may be called with `handle`, from several threads, until `destroy(handle)`.
    pub unsafe fn foreign(handle: *mut c_void, ops: Ops, destroy: unsafe fn(*mut c_void)) -> Self {
        Self {
            handle,
            ops,
            destroy,
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        // SAFETY: the handle is alive until here.
        unsafe { (self.destroy)(self.handle) };
    }
}
