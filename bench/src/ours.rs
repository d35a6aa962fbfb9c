// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library as a contender, and the storages of the measured caches. None of them makes I/O:
//! what is measured is the cache.

use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use contenders::{Contender, Ops, TABLE_SIZE, linear};

use crate::ffi;

/// Loads by any contender since the program began. Counted by a load and a store, not by a locked
/// instruction, so that counting adds hardly anything to a miss.
static LOADS: AtomicU64 = AtomicU64::new(0);

/// Loads by any contender since the program began. Exact as long as only one thread misses.
pub fn loads() -> u64 {
    LOADS.load(Ordering::Relaxed)
}

thread_local! {
    /// Whether loads by this thread do not touch the table's memory.
    static LEAVES_MEMORY: Cell<bool> = const { Cell::new(false) };
}

/// From now on, loads by the calling thread from [`touching_storage`] do not touch the table's
/// memory. What is measured then has no page fault in it.
pub fn leave_memory_alone() {
    LEAVES_MEMORY.set(true);
}

fn count_load() {
    LOADS.store(LOADS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// What the other contenders call in place of I/O.
pub unsafe extern "C" fn load_nothing(_: u64, _: *mut c_void) {
    count_load();
}

/// What the other contenders call in place of I/O, to make the table's memory resident.
pub unsafe extern "C" fn load_touching(offset: u64, table: *mut c_void) {
    count_load();
    // SAFETY: a contender passes its own table of TABLE_SIZE bytes.
    unsafe { table.cast::<u64>().write(offset) };
}

/// What the other contenders call for each table that they write.
pub unsafe extern "C" fn store_nothing(_: u64, _: *mut c_void) {}

unsafe extern "C" fn read_nothing(
    _: *mut c_void,
    _: c_int,
    _: u64,
    _: *const libc::iovec,
    _: c_int,
) -> c_int {
    count_load();
    0
}

unsafe extern "C" fn read_touching(
    _: *mut c_void,
    _: c_int,
    offset: u64,
    iov: *const libc::iovec,
    count: c_int,
) -> c_int {
    count_load();
    if LEAVES_MEMORY.get() {
        return 0;
    }
    for i in 0..count as usize {
        // SAFETY: the library passes `count` buffers, each at least 8 bytes long.
        unsafe { (*iov.add(i)).iov_base.cast::<u64>().write(offset) };
    }
    0
}

unsafe extern "C" fn read_whole(
    _: *mut c_void,
    _: c_int,
    offset: u64,
    iov: *const libc::iovec,
    count: c_int,
) -> c_int {
    for i in 0..count as usize {
        // SAFETY: the library passes `count` buffers with their lengths.
        unsafe {
            let buf = &*iov.add(i);
            buf.iov_base
                .cast::<u8>()
                .write_bytes(offset as u8, buf.iov_len);
        }
    }
    0
}

unsafe extern "C" fn write_nothing(
    _: *mut c_void,
    _: c_int,
    _: u64,
    _: *const libc::iovec,
    _: c_int,
) -> c_int {
    0
}

unsafe extern "C" fn flush_nothing(_: *mut c_void) -> c_int {
    0
}

unsafe extern "C" fn record_write(
    opaque: *mut c_void,
    _: c_int,
    offset: u64,
    _: *const libc::iovec,
    count: c_int,
) -> c_int {
    // SAFETY: `opaque` is the `Recorder` that the caller of `recording_storage` keeps alive.
    let recorder = unsafe { &*opaque.cast::<Recorder>() };
    recorder.lock().unwrap().push((offset, count as usize));
    0
}

/// How often a storage was written and flushed.
#[derive(Default)]
pub struct WriteCounter(AtomicU64);

impl WriteCounter {
    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

unsafe extern "C" fn count_write(
    opaque: *mut c_void,
    _: c_int,
    _: u64,
    _: *const libc::iovec,
    _: c_int,
) -> c_int {
    // SAFETY: see `count_flush`.
    unsafe { count_flush(opaque) }
}

unsafe extern "C" fn count_flush(opaque: *mut c_void) -> c_int {
    // SAFETY: `opaque` is the counter that the caller of `counting_storage` keeps alive.
    let counter = unsafe { &*opaque.cast::<WriteCounter>() };
    counter.0.fetch_add(1, Ordering::Relaxed);
    0
}

unsafe extern "C" fn read_file(
    opaque: *mut c_void,
    _: c_int,
    offset: u64,
    iov: *const libc::iovec,
    count: c_int,
) -> c_int {
    // SAFETY: the library passes `count` buffers; `opaque` is a descriptor.
    let n = unsafe { libc::preadv(opaque.addr() as c_int, iov, count, offset as libc::off_t) };
    if n < 0 { -libc::EIO } else { 0 }
}

/// A storage that reads a file, which must outlive every cache on it.
pub fn file_storage(file: &std::fs::File) -> ffi::Storage {
    let fd = std::os::fd::AsRawFd::as_raw_fd(file);
    ffi::Storage {
        opaque: core::ptr::without_provenance_mut(fd as usize),
        preadv: Some(read_file),
        ..null_storage()
    }
}

/// A storage that counts writes and flushes.
///
/// # Safety
/// `counter` outlives every cache on this storage.
pub unsafe fn counting_storage(counter: &WriteCounter) -> ffi::Storage {
    ffi::Storage {
        opaque: core::ptr::from_ref(counter).cast_mut().cast(),
        pwritev: Some(count_write),
        flush: Some(count_flush),
        ..null_storage()
    }
}

/// The writes seen: offset and number of tables.
pub type Recorder = Mutex<Vec<(u64, usize)>>;

/// A storage whose reads and writes do nothing.
pub fn null_storage() -> ffi::Storage {
    ffi::Storage {
        struct_size: size_of::<ffi::Storage>(),
        opaque: null_mut(),
        preadv: Some(read_nothing),
        pwritev: Some(write_nothing),
        flush: Some(flush_nothing),
        pre_write_check: None,
        corruption: None,
        max_iov: 0,
    }
}

/// A storage whose reads make the table's memory resident.
pub fn touching_storage() -> ffi::Storage {
    ffi::Storage {
        preadv: Some(read_touching),
        ..null_storage()
    }
}

/// A storage whose reads fill the table.
pub fn filling_storage() -> ffi::Storage {
    ffi::Storage {
        preadv: Some(read_whole),
        ..null_storage()
    }
}

/// A storage that records its writes.
///
/// # Safety
/// `recorder` outlives every cache on this storage.
pub unsafe fn recording_storage(recorder: &Recorder) -> ffi::Storage {
    ffi::Storage {
        opaque: core::ptr::from_ref(recorder).cast_mut().cast(),
        pwritev: Some(record_write),
        ..null_storage()
    }
}

/// The library's operations.
pub const OPS: Ops = Ops {
    get: Some(ffi::q2c_cache_get),
    put: Some(ffi::q2c_cache_put),
    read: Some(ffi::q2c_cache_read),
    probe: None,
    mark_dirty: Some(ffi::q2c_cache_mark_dirty),
    flush: Some(ffi::q2c_cache_flush),
    clean: Some(ffi::q2c_cache_clean_unused),
    lookup: Some(ffi::q2c_cache_is_table_offset),
};

/// Creates a cache of the library whose loads and writes do nothing, on the thread host.
pub fn without_io(tables: usize) -> Contender {
    create(tables, &null_storage())
}

/// Creates the contender `linear`, whose loads and writes do nothing.
pub fn linear_without_io(tables: usize) -> Contender {
    linear::create(tables, load_nothing, store_nothing)
}

/// Creates a cache of the library on `storage`, on the thread host.
pub fn create(tables: usize, storage: &ffi::Storage) -> Contender {
    create_sized(tables, TABLE_SIZE, storage)
}

/// [`create`], with tables of any size.
pub fn create_sized(tables: usize, table_size: usize, storage: &ffi::Storage) -> Contender {
    let options = ffi::CacheOptions {
        struct_size: size_of::<ffi::CacheOptions>(),
        tables,
        table_size,
        kind: 1,
        reserved_tables: 0,
    };
    let mut cache = null_mut();
    let mut error = ffi::Error::default();
    // SAFETY: the structs are complete and tell their sizes; a null host means the thread host.
    let r = unsafe { ffi::q2c_cache_create(&options, storage, null(), &mut cache, &mut error) };
    assert!(r == 0, "q2c_cache_create: {r}");
    // SAFETY: the library's functions take this handle from any thread until `destroy`.
    unsafe { Contender::foreign(cache.cast(), OPS, destroy) }
}

/// # Safety
/// `handle` is a cache of [`create`] that nobody uses any more.
unsafe fn destroy(handle: *mut c_void) {
    let mut cache: *mut ffi::Cache = handle.cast();
    // SAFETY: the caller's promise. Dirty tables are discarded first.
    let r = unsafe {
        ffi::q2c_cache_discard_range(handle, 0, u64::MAX);
        ffi::q2c_cache_destroy(&mut cache)
    };
    assert!(r == 0, "q2c_cache_destroy: {r}");
}

/// The statistics of a cache of the library.
///
/// # Safety
/// `cache` is a living cache of the library.
pub unsafe fn stats(cache: *mut c_void) -> ffi::CacheStats {
    let mut stats = ffi::CacheStats {
        struct_size: size_of::<ffi::CacheStats>(),
        ..ffi::CacheStats::default()
    };
    // SAFETY: the caller's promise; the struct tells its size.
    let r = unsafe { ffi::q2c_cache_get_stats(cache, &mut stats) };
    assert!(r == 0, "q2c_cache_get_stats: {r}");
    stats
}
