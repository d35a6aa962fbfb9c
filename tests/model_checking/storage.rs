// SPDX-License-Identifier: MIT OR Apache-2.0
//! A storage of table words that the checker sees: see `qcow2cache::model`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex as StdMutex};

use qcow2cache::cache::{Cache, CacheOptions};
use qcow2cache::error::Errno;
use qcow2cache::model::{self, Ordering, WORDS};
use qcow2cache::storage::{IoBuf, Storage};

use super::host::ModelHost;

/// Bytes of a table: one page, so that each table's memory can be released separately.
pub const TABLE: u64 = 4096;

pub type Words = [u64; WORDS];

/// The contents of an unchanged table at `offset`: words that no other table has.
pub fn fresh(offset: u64) -> Words {
    std::array::from_fn(|n| offset + n as u64 * 8 + 1)
}

/// Image contents and counters. The checker does not see the storage's own data: a call is one step
/// of its thread, plus one step for each table word.
#[derive(Default)]
pub struct ModelStorage {
    tables: StdMutex<HashMap<u64, Words>>,
    pub reads: AtomicUsize,
    pub writes: AtomicUsize,
    pub flushes: AtomicUsize,
    reading: AtomicUsize,
    /// The largest number of reads that ran at the same time.
    pub parallel_reads: AtomicUsize,
    /// Every second write fails.
    pub flaky: bool,
    /// The first flush fails, and loses what was written since the one before.
    pub lossy: bool,
    /// The tables that are stable, and those that were written since the last flush.
    stable: StdMutex<HashMap<u64, Words>>,
    unflushed: StdMutex<HashMap<u64, Words>>,
}

impl ModelStorage {
    /// A storage of which every second write fails.
    pub fn flaky() -> Self {
        Self {
            flaky: true,
            ..Self::default()
        }
    }

    /// A storage that several caches share, of which the first flush fails and loses what was
    /// written since the one before.
    pub fn lossy() -> Self {
        Self {
            lossy: true,
            ..Self::default()
        }
    }

    /// The table at `offset` as a crash would leave it.
    pub fn stable(&self, offset: u64) -> Words {
        let stable = self.stable.lock().unwrap();
        stable
            .get(&offset)
            .copied()
            .unwrap_or_else(|| fresh(offset))
    }

    /// The table at `offset` in the image.
    pub fn contents(&self, offset: u64) -> Words {
        let tables = self.tables.lock().unwrap();
        tables
            .get(&offset)
            .copied()
            .unwrap_or_else(|| fresh(offset))
    }

    pub fn set(&self, offset: u64, words: Words) {
        self.tables.lock().unwrap().insert(offset, words);
        self.unflushed.lock().unwrap().insert(offset, words);
    }
}

/// A cache of one-page tables over `storage`.
pub fn cache_on(
    storage: &Arc<ModelStorage>,
    host: &Arc<ModelHost>,
    tables: usize,
    reserved: usize,
) -> Arc<Cache> {
    let options = CacheOptions {
        tables,
        table_size: TABLE as usize,
        kind: 0,
        reserved,
    };
    Cache::new(&options, storage.clone(), host.clone()).unwrap()
}

fn addresses(buf: &IoBuf) -> impl Iterator<Item = usize> {
    let base = buf.as_ptr() as usize;
    (0..WORDS).map(move |n| base + n * 8)
}

impl Storage for ModelStorage {
    fn preadv(&self, _kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        self.reads.fetch_add(1, Relaxed);
        let now = self.reading.fetch_add(1, Relaxed) + 1;
        self.parallel_reads.fetch_max(now, Relaxed);
        for (n, buf) in bufs.iter().enumerate() {
            let words = self.contents(offset + n as u64 * TABLE);
            for (address, word) in addresses(buf).zip(words) {
                assert!(model::store(address, word, Ordering::Relaxed));
            }
        }
        self.reading.fetch_sub(1, Relaxed);
        Ok(())
    }

    fn pwritev(&self, _kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        let count = self.writes.fetch_add(1, Relaxed);
        for (n, buf) in bufs.iter().enumerate() {
            let mut words = Words::default();
            for (address, word) in addresses(buf).zip(&mut words) {
                *word = model::load(address).expect("a table's address");
            }
            if self.flaky && count % 2 == 0 {
                return Err(Errno::IO);
            }
            self.set(offset + n as u64 * TABLE, words);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        let count = self.flushes.fetch_add(1, Relaxed);
        let written = std::mem::take(&mut *self.unflushed.lock().unwrap());
        if self.lossy && count == 0 {
            return Err(Errno::IO);
        }
        self.stable.lock().unwrap().extend(written);
        Ok(())
    }
}
