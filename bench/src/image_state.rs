// SPDX-License-Identifier: MIT OR Apache-2.0
//! An image's state of the library's, on storage without I/O.

use core::ffi::c_void;
use core::ptr::{null, null_mut};

use crate::ffi;

/// Opens states.
pub struct Opener {
    /// `None`: threads.
    pub host: Option<ffi::Host>,
    /// Below both caches.
    pub storage: ffi::Storage,
    /// Bytes of the L2 cache.
    pub l2_cache_size: u64,
    /// ns; 0: as the options say, 600 s.
    pub clean_interval_ns: u64,
    /// Where the cleaner runs.
    pub context: *mut c_void,
}

/// 16 TiB in 64 KiB clusters: large enough for any cache here.
const GEOMETRY: ffi::Geometry = ffi::Geometry {
    struct_size: size_of::<ffi::Geometry>(),
    virtual_size: 16 << 40,
    cluster_size: 65536,
    l2_entry_size: 8,
};

/// Options with nothing set but the L2 cache's size.
pub fn options(l2_cache_size: u64) -> ffi::Options {
    let mut options = ffi::Options {
        struct_size: size_of::<ffi::Options>(),
        ..ffi::Options::default()
    };
    // SAFETY: a whole struct.
    let r = unsafe { ffi::q2c_options_init(&mut options) };
    assert!(r == 0, "q2c_options_init: {r}");
    options.set |= ffi::OPTION_L2_CACHE_SIZE | ffi::OPTION_L2_CACHE_ENTRY_SIZE;
    options.l2_cache_size = l2_cache_size;
    options.l2_cache_entry_size = 4096;
    options
}

/// An open state; closed when dropped.
pub struct OpenState(pub *mut ffi::State);

// SAFETY: a state may be used from any thread.
unsafe impl Send for OpenState {}

impl Opener {
    /// On threads, cleaning every 600 s.
    pub fn on_threads(storage: ffi::Storage) -> Self {
        Self {
            host: None,
            storage,
            l2_cache_size: 1 << 20,
            clean_interval_ns: 0,
            context: null_mut(),
        }
    }

    /// Opens one, cleaner and all.
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
        // SAFETY: whole structs, alive during the call.
        let r = unsafe { ffi::q2c_state_open(&config, &mut state, &mut error) };
        assert!(r == 0, "q2c_state_open: {r}: {}", error.text());
        OpenState(state)
    }
}

impl OpenState {
    /// Changes the L2 cache's size: prepare under the state lock, commit without it.
    pub fn change_options(&self, l2_cache_size: u64) {
        let options = options(l2_cache_size);
        let mut update = null_mut();
        let mut error = ffi::Error::default();
        // SAFETY: an open state; whole structs; the lock is given back by the one who took it.
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
        // SAFETY: an open state that nobody else uses.
        let r = unsafe { ffi::q2c_state_close(&mut self.0) };
        assert!(r == 0, "q2c_state_close: {r}");
    }
}
