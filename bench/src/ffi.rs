// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of the C API that the benchmarks call, declared as in `include/qcow2cache.h`, which
//! documents it.
#![allow(missing_docs)]

use core::ffi::{c_char, c_int, c_void};

macro_rules! opaque {
    ($($name:ident)*) => { $(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )* };
}

opaque!(Cache Cleaner State Update Loop);

#[repr(C)]
pub struct Error {
    pub code: c_int,
    pub message: [c_char; 256],
}

impl Default for Error {
    fn default() -> Self {
        Self {
            code: 0,
            message: [0; 256],
        }
    }
}

impl Error {
    /// The message.
    pub fn text(&self) -> String {
        let bytes = self.message.iter().map(|c| *c as u8);
        let text: Vec<u8> = bytes.take_while(|b| *b != 0).collect();
        String::from_utf8_lossy(&text).into_owned()
    }
}

pub type Io = unsafe extern "C" fn(*mut c_void, c_int, u64, *const libc::iovec, c_int) -> c_int;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Storage {
    pub struct_size: usize,
    pub opaque: *mut c_void,
    pub preadv: Option<Io>,
    pub pwritev: Option<Io>,
    pub flush: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    pub pre_write_check: Option<unsafe extern "C" fn(*mut c_void, c_int, u64, u64) -> c_int>,
    pub corruption: Option<unsafe extern "C" fn(*mut c_void, c_int, c_int, u64, *const c_char)>,
    pub max_iov: c_int,
}

pub const HOST_EVENT_LOOP: u32 = 1;

/// The benchmarks use no coroutine callback: all stay NULL.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Host {
    pub struct_size: usize,
    pub kind: u32,
    pub opaque: *mut c_void,
    pub callbacks: [*const c_void; 14],
}

impl Host {
    pub fn event_loop() -> Self {
        Self {
            struct_size: size_of::<Self>(),
            kind: HOST_EVENT_LOOP,
            opaque: core::ptr::null_mut(),
            callbacks: [core::ptr::null(); 14],
        }
    }
}

#[repr(C)]
pub struct CacheOptions {
    pub struct_size: usize,
    pub tables: usize,
    pub table_size: usize,
    pub kind: c_int,
    pub reserved_tables: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheStats {
    pub struct_size: usize,
    pub hits: u64,
    pub misses: u64,
    pub loads: u64,
    pub evictions: u64,
    pub write_backs: u64,
    pub writes: u64,
    pub cleaned: u64,
    pub discarded: u64,
    pub tables: usize,
    pub table_size: usize,
    pub resident_tables: usize,
    pub dirty_tables: usize,
    pub pinned_tables: usize,
    pub resident_bytes: u64,
    pub metadata_bytes: u64,
    pub redirtied: u64,
    pub lost: u64,
    pub flush_error: c_int,
}

pub const OPTION_L2_CACHE_SIZE: u32 = 2;
pub const OPTION_L2_CACHE_ENTRY_SIZE: u32 = 8;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Options {
    pub struct_size: usize,
    pub set: u32,
    pub cache_size: u64,
    pub l2_cache_size: u64,
    pub refcount_cache_size: u64,
    pub l2_cache_entry_size: u64,
    pub cache_clean_interval: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Geometry {
    pub struct_size: usize,
    pub virtual_size: u64,
    pub cluster_size: u32,
    pub l2_entry_size: u32,
}

#[repr(C)]
pub struct StateConfig {
    pub struct_size: usize,
    pub host: *const Host,
    pub l2_storage: *const Storage,
    pub refcount_storage: *const Storage,
    pub l2_kind: c_int,
    pub refcount_kind: c_int,
    pub geometry: *const Geometry,
    pub options: *const Options,
    pub clean_interval_ns: u64,
    pub context: *mut c_void,
}

unsafe extern "C" {
    pub fn q2c_version() -> *const c_char;

    pub fn q2c_cache_create(
        options: *const CacheOptions,
        storage: *const Storage,
        host: *const Host,
        cache: *mut *mut Cache,
        error: *mut Error,
    ) -> c_int;
    pub fn q2c_cache_destroy(cache: *mut *mut Cache) -> c_int;
    pub fn q2c_cache_get(cache: *mut c_void, offset: u64, table: *mut *mut c_void) -> c_int;
    pub fn q2c_cache_get_unlocked(
        cache: *mut c_void,
        offset: u64,
        table: *mut *mut c_void,
    ) -> c_int;
    pub fn q2c_cache_read(
        cache: *mut c_void,
        offset: u64,
        at: usize,
        buf: *mut c_void,
        bytes: usize,
    ) -> c_int;
    pub fn q2c_cache_put(cache: *mut c_void, table: *mut *mut c_void) -> c_int;
    pub fn q2c_cache_mark_dirty(cache: *mut c_void, table: *mut c_void) -> c_int;
    pub fn q2c_cache_flush(cache: *mut c_void) -> c_int;
    pub fn q2c_cache_clean_unused(cache: *mut c_void) -> c_int;
    pub fn q2c_cache_is_table_offset(
        cache: *mut c_void,
        offset: u64,
        table: *mut *mut c_void,
    ) -> c_int;
    pub fn q2c_cache_discard_range(cache: *mut c_void, offset: u64, bytes: u64) -> c_int;
    pub fn q2c_cache_get_stats(cache: *mut c_void, stats: *mut CacheStats) -> c_int;

    pub fn q2c_cleaner_create(
        host: *const Host,
        cleaner: *mut *mut Cleaner,
        error: *mut Error,
    ) -> c_int;
    pub fn q2c_cleaner_destroy(cleaner: *mut *mut Cleaner) -> c_int;
    pub fn q2c_cleaner_start(
        cleaner: *mut Cleaner,
        context: *mut c_void,
        interval_ns: u64,
    ) -> c_int;
    pub fn q2c_cleaner_del_and_wait(cleaner: *mut Cleaner) -> c_int;

    pub fn q2c_options_init(options: *mut Options) -> c_int;
    pub fn q2c_state_open(
        config: *const StateConfig,
        state: *mut *mut State,
        error: *mut Error,
    ) -> c_int;
    pub fn q2c_state_close(state: *mut *mut State) -> c_int;
    pub fn q2c_state_lock(state: *mut State) -> c_int;
    pub fn q2c_state_unlock(state: *mut State) -> c_int;
    pub fn q2c_state_l2_cache(state: *mut State) -> *mut Cache;
    pub fn q2c_update_options_prepare(
        state: *mut State,
        options: *const Options,
        geometry: *const Geometry,
        clean_interval_ns: u64,
        update: *mut *mut Update,
        error: *mut Error,
    ) -> c_int;
    pub fn q2c_update_options_commit(
        state: *mut State,
        update: *mut *mut Update,
        locked: bool,
    ) -> c_int;

    pub fn q2c_loop_new(event_loop: *mut *mut Loop, error: *mut Error) -> c_int;
    pub fn q2c_loop_free(event_loop: *mut *mut Loop) -> c_int;
    pub fn q2c_loop_poll(event_loop: *mut Loop, timeout_ns: i64) -> c_int;
    pub fn q2c_loop_kick(event_loop: *mut Loop) -> c_int;
    pub fn q2c_loop_clock_pause(event_loop: *mut Loop) -> c_int;
}
