// SPDX-License-Identifier: MIT OR Apache-2.0
//! What several tests share: an in-memory storage with a call log and fault injection, latches, a
//! timeout for tests that hang, and calls that block until a cache operation is done.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses only a part of this module"
)]

pub mod cleaners;
pub mod hosts;
pub mod image;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use qcow2cache::cache::{Cache, CacheOptions, Pinned};
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use qcow2cache::host::threads::ThreadHost;
use qcow2cache::storage::{Corruption, IoBuf, Storage};

/// A clean interval that is much longer than any test.
pub const NEVER: u64 = 600_000_000_000;
/// The shortest clean interval: the next pass is due as soon as one ends.
pub const BUSY: u64 = 1;

/// After this time a test counts as hung. No test comes near it, even on a busy machine.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a test's body in a new thread, so that a body that hangs fails only its own test.
pub fn with_timeout<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (ended, end) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name(std::thread::current().name().unwrap_or("test").to_owned())
        .spawn(move || {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
            // The receiver is gone only if the test failed already.
            let _ = ended.send(());
            result
        })
        .unwrap();
    assert!(end.recv_timeout(HANG_TIMEOUT).is_ok(), "the test hangs");
    match thread.join().unwrap() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Locks a mutex even if a thread panicked while it held it.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An event that happens once. Any number of threads can wait for it.
#[derive(Clone, Default)]
pub struct Latch(Arc<(Mutex<bool>, Condvar)>);

impl Latch {
    pub fn open(&self) {
        *lock(&self.0.0) = true;
        self.0.1.notify_all();
    }

    pub fn is_open(&self) -> bool {
        *lock(&self.0.0)
    }

    pub fn wait(&self) {
        let mut open = lock(&self.0.0);
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }
}

/// A point inside a callback where one thread is held until the test lets it go on.
#[derive(Clone, Default)]
pub struct PausePoint {
    reached: Latch,
    resumed: Latch,
}

impl PausePoint {
    /// Pauses the first storage call that matches `matches`.
    pub fn in_storage(
        storage: &TestStorage,
        matches: impl Fn(Io) -> bool + Send + Sync + 'static,
    ) -> Self {
        let point = Self::default();
        let paused = point.clone();
        storage.set_hook(move |_, io| {
            if matches(io) && !paused.reached.is_open() {
                paused.pause();
            }
            Ok(())
        });
        point
    }

    /// Called where the thread is to be held: reports that it is there and waits for `resume`.
    pub fn pause(&self) {
        self.reached.open();
        self.resumed.wait();
    }

    /// Waits until a thread is held here.
    pub fn wait_until_reached(&self) {
        self.reached.wait();
    }

    /// Lets the held thread go on, and every later one pass.
    pub fn resume(&self) {
        self.resumed.open();
    }
}

/// A waker that counts its wake-ups.
#[derive(Default)]
pub struct CountingWaker(AtomicUsize);

impl CountingWaker {
    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A future that a test polls by hand, so that the test sees whether it waits and need not guess
/// from the time it takes.
pub struct ManualPoll<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    wakes: Arc<CountingWaker>,
}

impl<'a, T> ManualPoll<'a, T> {
    pub fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        Self {
            future: Box::pin(future),
            wakes: Arc::default(),
        }
    }

    pub fn poll(&mut self) -> Option<T> {
        let waker = Waker::from(self.wakes.clone());
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    pub fn wakes(&self) -> usize {
        self.wakes.count()
    }
}

/// One call to storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    Read {
        offset: u64,
        bytes: usize,
    },
    Check {
        kind: i32,
        offset: u64,
        bytes: u64,
    },
    Write {
        offset: u64,
        tables: usize,
        bytes: usize,
    },
    Flush,
    Corruption {
        kind: i32,
        offset: u64,
    },
}

impl Io {
    pub fn is_read(self) -> bool {
        matches!(self, Io::Read { .. })
    }

    pub fn is_write(self) -> bool {
        matches!(self, Io::Write { .. })
    }
}

type Hook = dyn Fn(usize, Io) -> Result<(), Errno> + Send + Sync;

/// An image in memory. Each call is logged and then passed, with its number, to the hook. No lock
/// is held meanwhile: the hook may fail the call, wait or panic.
pub struct TestStorage {
    pub disk: Mutex<Vec<u8>>,
    log: Mutex<Vec<Io>>,
    hook: Mutex<Arc<Hook>>,
    pub max_iov: usize,
}

/// The largest image that a test may create, in bytes.
const MAX_IMAGE: usize = 1 << 20;

/// The eight bytes at `offset` of a new image.
pub fn pattern(offset: u64) -> u64 {
    (offset / 8 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

impl TestStorage {
    pub fn new(bytes: usize) -> Self {
        // Computed once: it is slow in a debug build.
        static FRESH: OnceLock<Vec<u8>> = OnceLock::new();
        let fresh = FRESH.get_or_init(|| {
            (0..MAX_IMAGE as u64 / 8)
                .flat_map(|word| pattern(word * 8).to_ne_bytes())
                .collect()
        });
        Self {
            disk: Mutex::new(fresh[..bytes].to_vec()),
            log: Mutex::default(),
            hook: Mutex::new(Arc::new(|_, _| Ok(()))),
            max_iov: 1024,
        }
    }

    pub fn set_hook(&self, hook: impl Fn(usize, Io) -> Result<(), Errno> + Send + Sync + 'static) {
        *lock(&self.hook) = Arc::new(hook);
    }

    pub fn clear_hook(&self) {
        self.set_hook(|_, _| Ok(()));
    }

    pub fn log_len(&self) -> usize {
        lock(&self.log).len()
    }

    pub fn log_from(&self, from: usize) -> Vec<Io> {
        lock(&self.log)[from..].to_vec()
    }

    /// How many writes the storage was called for so far.
    pub fn write_count(&self) -> usize {
        lock(&self.log).iter().filter(|io| io.is_write()).count()
    }

    pub fn word(&self, offset: u64) -> u64 {
        let at = offset as usize;
        u64::from_ne_bytes(lock(&self.disk)[at..at + 8].try_into().unwrap())
    }

    fn call(&self, io: Io) -> Result<(), Errno> {
        let number = {
            let mut log = lock(&self.log);
            log.push(io);
            log.len() - 1
        };
        let hook = lock(&self.hook).clone();
        hook(number, io)
    }
}

impl Storage for TestStorage {
    fn preadv(&self, _kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        let bytes = bufs.iter().map(IoBuf::len).sum();
        self.call(Io::Read { offset, bytes })?;
        let disk = lock(&self.disk);
        let mut at = offset as usize;
        for buf in bufs {
            buf.fill_from(&disk[at..at + buf.len()]);
            at += buf.len();
        }
        Ok(())
    }

    fn pwritev(&self, _kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        self.call(Io::Write {
            offset,
            tables: bufs.len(),
            bytes: bufs.iter().map(IoBuf::len).sum(),
        })?;
        let mut disk = lock(&self.disk);
        let mut at = offset as usize;
        for buf in bufs {
            disk[at..at + buf.len()].copy_from_slice(&buf.to_vec());
            at += buf.len();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        self.call(Io::Flush)
    }

    fn pre_write_check(&self, kind: i32, offset: u64, bytes: u64) -> Result<(), Errno> {
        self.call(Io::Check {
            kind,
            offset,
            bytes,
        })
    }

    fn corruption(&self, reason: Corruption, kind: i32, offset: u64, message: &str) {
        assert_eq!(reason, Corruption::UnalignedOffset);
        assert!(message.contains(&format!("{offset:#x}")), "{message}");
        // The hook's result is ignored: this call returns nothing.
        let _ = self.call(Io::Corruption { kind, offset });
    }

    fn max_iov(&self) -> usize {
        self.max_iov
    }
}

/// A storage above another one that counts as a device of its own.
pub struct OwnDevice(pub Arc<TestStorage>);

impl Storage for OwnDevice {
    fn preadv(&self, kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        self.0.preadv(kind, offset, bufs)
    }

    fn pwritev(&self, kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        self.0.pwritev(kind, offset, bufs)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.0.flush()
    }

    fn pre_write_check(&self, kind: i32, offset: u64, bytes: u64) -> Result<(), Errno> {
        self.0.pre_write_check(kind, offset, bytes)
    }

    fn corruption(&self, reason: Corruption, kind: i32, offset: u64, message: &str) {
        self.0.corruption(reason, kind, offset, message);
    }

    fn max_iov(&self) -> usize {
        self.0.max_iov()
    }
}

/// A cache of kind 1 on the thread host.
pub fn cache_on(
    storage: &Arc<TestStorage>,
    tables: usize,
    table_size: usize,
    reserved: usize,
) -> Arc<Cache> {
    cache_with(
        storage,
        &CacheOptions {
            tables,
            table_size,
            kind: 1,
            reserved,
        },
    )
}

/// A cache on the thread host.
pub fn cache_with(storage: &Arc<TestStorage>, options: &CacheOptions) -> Arc<Cache> {
    Cache::new(options, storage.clone(), ThreadHost::shared()).unwrap()
}

/// The table size of [`small_cache`], in bytes.
pub const SMALL_TABLE: u64 = 512;

/// A cache of small tables and the 1 MiB storage under it.
pub fn small_cache(tables: usize, reserved: usize) -> (Arc<TestStorage>, Arc<Cache>) {
    let storage = Arc::new(TestStorage::new(1 << 20));
    let cache = cache_on(&storage, tables, SMALL_TABLE as usize, reserved);
    (storage, cache)
}

/// A seeded random number generator (xorshift64*, Vigna 2016): the same numbers in every run.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Sleeps in short steps until `done` returns true: for conditions that nothing signals. If the
/// condition never holds, [`with_timeout`] ends the test.
pub fn wait_until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// Spins for about `n` pauses of the processor, to vary where threads meet.
pub fn spin(n: u64) {
    for _ in 0..n {
        std::hint::spin_loop();
    }
}

/// [`Cache::get`]; blocks until it is done.
pub fn get(cache: &Cache, offset: u64) -> Result<Pinned<'_>, Errno> {
    block_on(cache.host(), &[], cache.get(offset))
}

/// [`Cache::get_empty`]; blocks until it is done.
pub fn get_empty(cache: &Cache, offset: u64) -> Result<Pinned<'_>, Errno> {
    block_on(cache.host(), &[], cache.get_empty(offset))
}

/// [`Cache::get_unlocked`]; blocks until it is done.
pub fn get_unlocked(cache: &Cache, offset: u64) -> Result<Pinned<'_>, Errno> {
    block_on(cache.host(), &[], cache.get_unlocked(offset))
}

/// [`Cache::write`]; blocks until it is done.
pub fn write(cache: &Cache) -> Result<(), Errno> {
    block_on(cache.host(), &[], cache.write())
}

/// [`Cache::flush`]; blocks until it is done.
pub fn flush(cache: &Cache) -> Result<(), Errno> {
    block_on(cache.host(), &[], cache.flush())
}

/// [`Cache::empty`]; blocks until it is done.
pub fn empty(cache: &Cache) -> Result<(), Errno> {
    block_on(cache.host(), &[], cache.empty())
}

/// [`Cache::set_dependency`]; blocks until it is done.
pub fn set_dependency(cache: &Arc<Cache>, on: &Arc<Cache>) -> Result<(), Errno> {
    block_on(cache.host(), &[], cache.set_dependency(on))
}

/// Changes the first word of a table and marks the table dirty.
pub fn edit(cache: &Cache, offset: u64, value: u64) -> Result<(), Errno> {
    let pinned = get(cache, offset)?;
    pinned.store(0, value)?;
    pinned.mark_dirty()
}
