// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `quick_cache` crate: sharded, S3-FIFO, reads under a shared lock. The table is an `Arc` of
//! its offset; cloning it is the pin.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;
use std::sync::Arc;

use crate::{Contender, Ops, Stub};

struct Quick {
    map: quick_cache::sync::Cache<u64, Arc<u64>>,
    load: Stub,
}

/// Creates a cache of `tables` tables. A miss calls `load`.
pub fn create(tables: usize, load: Stub) -> Contender {
    let cache = Quick {
        map: quick_cache::sync::Cache::new(tables),
        load,
    };
    let ops = Ops {
        get: Some(get),
        put: Some(crate::lru_mutex::put),
        ..Ops::NONE
    };
    Contender::new(cache, ops)
}

#[inline(never)]
unsafe extern "C" fn get(handle: *mut c_void, offset: u64, table: *mut *mut c_void) -> c_int {
    // SAFETY: the handle is alive.
    let cache = unsafe { &*handle.cast::<Quick>() };
    let pinned = cache.map.get(&offset).unwrap_or_else(|| {
        let loaded = Arc::new(offset);
        // SAFETY: the stub takes any offset and no table.
        unsafe { (cache.load)(offset, null_mut()) };
        cache.map.insert(offset, loaded.clone());
        loaded
    });
    // SAFETY: the caller's own pointer.
    unsafe { *table = Arc::into_raw(pinned).cast_mut().cast() };
    0
}
