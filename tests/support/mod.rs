// SPDX-License-Identifier: MIT OR Apache-2.0
//! What several tests share: a storage in memory that logs and can be tampered with, latches, a watchdog.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses its own part of it"
)]

pub mod hosts;
pub mod image;
pub mod cleaners;

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

/// How long a test may take before it counts as hung: far beyond what it needs on a busy machine.
const HUNG: Duration = Duration::from_secs(60);

/// Runs a test's body in a thread of its own; a body that hangs fails the test instead of the whole run.
pub fn watched<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
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
    assert!(end.recv_timeout(HUNG).is_ok(), "the test hangs");
    match thread.join().unwrap() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Locks, whatever a panicking thread left behind.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Something that happens once, for several threads to wait for.
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

/// Counts how often it was woken.
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

/// A future that a test polls by hand: that it waits is seen, not guessed from the time it takes.
pub struct ByHand<'a, T> {
    future: Pin<Box<dyn Future<Output = T> + Send + 'a>>,
    wakes: Arc<CountingWaker>,
}

impl<'a, T> ByHand<'a, T> {
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

/// One call of storage.
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

type Hook = dyn Fn(usize, Io) -> Result<(), Errno> + Send + Sync;

/// An image in memory. Each call is logged, then given to the hook with no lock held, with the call's number: the hook may fail
/// the call, wait or panic.
pub struct TestStorage {
    pub disk: Mutex<Vec<u8>>,
    log: Mutex<Vec<Io>>,
    hook: Mutex<Arc<Hook>>,
    pub max_iov: usize,
    pub device: usize,
}

/// The largest image that a test may ask for.
const IMAGE: usize = 1 << 20;

/// What the eight bytes at `offset` of a fresh image are.
pub fn pattern(offset: u64) -> u64 {
    (offset / 8 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

impl TestStorage {
    pub fn new(bytes: usize) -> Self {
        // Made once: it is not cheap in a debug build.
        static FRESH: OnceLock<Vec<u8>> = OnceLock::new();
        let fresh = FRESH.get_or_init(|| {
            (0..IMAGE as u64 / 8)
                .flat_map(|word| pattern(word * 8).to_ne_bytes())
                .collect()
        });
        Self {
            disk: Mutex::new(fresh[..bytes].to_vec()),
            log: Mutex::default(),
            hook: Mutex::new(Arc::new(|_, _| Ok(()))),
            max_iov: 1024,
            device: 0,
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
    fn preadv(&self, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
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

    fn pwritev(&self, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
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
        // What the hook says does not matter here: nothing is returned.
        let _ = self.call(Io::Corruption { kind, offset });
    }

    fn max_iov(&self) -> usize {
        self.max_iov
    }

    fn device(&self) -> usize {
        self.device
    }
}

/// A cache on the thread host.
pub fn cache_on(
    storage: &Arc<TestStorage>,
    tables: usize,
    table_size: usize,
    reserved: usize,
) -> Arc<Cache> {
    let options = CacheOptions {
        tables,
        table_size,
        kind: 1,
        reserved,
    };
    Cache::new(&options, storage.clone(), ThreadHost::shared()).unwrap()
}

/// A small seeded generator (xorshift64*, Vigna 2016): the same numbers in every run.
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

/// Gives the processor away until `done`: for what nobody signals. Ended by the watchdog if it never comes.
pub fn until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// [`Cache::get`], waited for.
pub fn get(cache: &Cache, offset: u64) -> Result<Pinned<'_>, Errno> {
    block_on(cache.host(), &[], cache.get(offset))
}

/// [`Cache::get_unlocked`], waited for.
pub fn get_unlocked(cache: &Cache, offset: u64) -> Result<Pinned<'_>, Errno> {
    block_on(cache.host(), &[], cache.get_unlocked(offset))
}

/// [`Cache::flush`], waited for.
pub fn flush(cache: &Cache) -> Result<(), Errno> {
    block_on(cache.host(), &[], cache.flush())
}

/// Changes the first word of a table.
pub fn edit(cache: &Cache, offset: u64, value: u64) -> Result<(), Errno> {
    let pinned = get(cache, offset)?;
    pinned.store(0, value)?;
    pinned.mark_dirty()
}
