// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library's state of an image, on storage without I/O.

use core::ffi::c_void;
use core::ptr::{null, null_mut};

use crate::ffi;

/// How to open a state.
pub struct Opener {
    /// `None` is the thread host.
    pub host: Option<ffi::Host>,
    /// The storage of both caches.
    pub storage: ffi::Storage,
    /// Size of the L2 cache in bytes. 0: the options' default.
    pub l2_cache_size: u64,
    /// The cleaner's interval in ns. 0: the options' default, 600 s.
    pub clean_interval_ns: u64,
    /// The context in which the cleaner runs.
    pub context: *mut c_void,
}

/// 16 TiB in 64 KiB clusters. No cache of the benchmarks needs a larger image.
const GEOMETRY: ffi::Geometry = ffi::Geometry {
    struct_size: size_of::<ffi::Geometry>(),
    virtual_size: 16 << 40,
    cluster_size: 65536,
    l2_entry_size: 8,
};

/// Options of which only the L2 cache's size and entry size are set; none if the size is 0.
pub fn options(l2_cache_size: u64) -> ffi::Options {
    let mut options = ffi::Options {
        struct_size: size_of::<ffi::Options>(),
        ..ffi::Options::default()
    };
    // SAFETY: the struct is complete and tells its size.
    let r = unsafe { ffi::q2c_options_init(&mut options) };
    assert!(r == 0, "q2c_options_init: {r}");
    if l2_cache_size == 0 {
        return options;
    }
    options.set |= ffi::OPTION_L2_CACHE_SIZE | ffi::OPTION_L2_CACHE_ENTRY_SIZE;
    options.l2_cache_size = l2_cache_size;
    options.l2_cache_entry_size = 4096;
    options
}

/// An open state. It is closed when dropped.
pub struct OpenState(pub *mut ffi::State);

// SAFETY: a state may be used from any thread.
unsafe impl Send for OpenState {}

impl Opener {
    /// On the thread host, with an L2 cache of 1 MiB that is cleaned every 600 s.
    pub fn on_threads(storage: ffi::Storage) -> Self {
        Self {
            host: None,
            storage,
            l2_cache_size: 1 << 20,
            clean_interval_ns: 0,
            context: null_mut(),
        }
    }

    /// Opens a state and starts its cleaner.
    pub fn open(&self) -> OpenState {
        let options = options(self.l2_cache_size);
        let config = ffi::StateConfig {
            struct_size: size_of::<ffi::StateConfig>(),
            host: self.host.as_ref().map_or(null(), core::ptr::from_ref),
            l2_storage: &self.storage,
            refcount_storage: null(),
            l2_kind: 1,
            refcount_kind: 2,
            geometry: &GEOMETRY,
            options: &options,
            clean_interval_ns: self.clean_interval_ns,
            context: self.context,
        };
        let mut state = null_mut();
        let mut error = ffi::Error::default();
        // SAFETY: the structs are complete and live during the call.
        let r = unsafe { ffi::q2c_state_open(&config, &mut state, &mut error) };
        assert!(r == 0, "q2c_state_open: {r}: {}", error.text());
        OpenState(state)
    }
}

impl OpenState {
    /// Loads an L2 table.
    pub fn read_table(&self, offset: u64) {
        let mut table = null_mut();
        // SAFETY: an open state, whose L2 cache lives as long; the table is put once.
        unsafe {
            let cache = ffi::q2c_state_l2_cache(self.0).cast();
            let r = ffi::q2c_cache_get(cache, offset, &mut table);
            assert!(r == 0, "q2c_cache_get: {r}");
            let r = ffi::q2c_cache_put(cache, &mut table);
            assert!(r == 0, "q2c_cache_put: {r}");
        }
    }

    /// Changes the L2 cache's size. Prepares under the state lock and commits without it.
    pub fn change_options(&self, l2_cache_size: u64) {
        let options = options(l2_cache_size);
        let mut update = null_mut();
        let mut error = ffi::Error::default();
        // SAFETY: an open state; the structs are complete; the thread that locks also unlocks.
        unsafe {
            let mut r = ffi::q2c_state_lock(self.0);
            assert!(r == 0, "q2c_state_lock: {r}");
            r = ffi::q2c_update_options_prepare(
                self.0,
                &options,
                null(),
                0,
                &mut update,
                &mut error,
            );
            assert!(r == 0, "q2c_update_options_prepare: {r}: {}", error.text());
            r = ffi::q2c_state_unlock(self.0);
            assert!(r == 0, "q2c_state_unlock: {r}");
            r = ffi::q2c_update_options_commit(self.0, &mut update, false);
            assert!(r == 0, "q2c_update_options_commit: {r}");
        }
    }
}

impl Drop for OpenState {
    fn drop(&mut self) {
        // SAFETY: the state is open, and nobody else uses it.
        let r = unsafe { ffi::q2c_state_close(&mut self.0) };
        assert!(r == 0, "q2c_state_close: {r}");
    }
}
