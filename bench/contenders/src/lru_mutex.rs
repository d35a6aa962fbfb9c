// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `lru` crate under a `parking_lot` mutex. The table is an `Arc` of its offset; cloning it is
//! the pin.

use core::ffi::{c_int, c_void};
use core::num::NonZeroUsize;
use core::ptr::null_mut;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::{Contender, Ops, Stub};

struct Lru {
    map: Mutex<LruCache<u64, Arc<u64>>>,
    load: Stub,
}

/// Creates a cache of `tables` tables. A miss calls `load`.
pub fn create(tables: usize, load: Stub) -> Contender {
    let tables = NonZeroUsize::new(tables).expect("at least one table");
    let cache = Lru {
        map: Mutex::new(LruCache::new(tables)),
        load,
    };
    let ops = Ops {
        get: Some(get),
        put: Some(put),
        ..Ops::NONE
    };
    Contender::new(cache, ops)
}

#[inline(never)]
unsafe extern "C" fn get(handle: *mut c_void, offset: u64, table: *mut *mut c_void) -> c_int {
    // SAFETY: the handle is alive.
    let cache = unsafe { &*handle.cast::<Lru>() };
    let mut map = cache.map.lock();
    let pinned = match map.get(&offset) {
        Some(found) => found.clone(),
        None => {
            let loaded = Arc::new(offset);
            // SAFETY: the stub takes any offset and no table.
            unsafe { (cache.load)(offset, null_mut()) };
            map.push(offset, loaded.clone());
            loaded
        }
    };
    drop(map);
    // SAFETY: the caller's own pointer.
    unsafe { *table = Arc::into_raw(pinned).cast_mut().cast() };
    0
}

#[inline(never)]
pub(crate) unsafe extern "C" fn put(_: *mut c_void, table: *mut *mut c_void) -> c_int {
    // SAFETY: `get` returned the pointer; it is put once.
    unsafe {
        drop(Arc::from_raw((*table).cast::<u64>()));
        *table = null_mut();
    }
    0
}
