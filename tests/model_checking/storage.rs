// SPDX-License-Identifier: MIT OR Apache-2.0
//! A storage of table words that the checker sees, see `qcow2cache::model`.

use std::collections::HashMap;
use std::sync::Mutex as Std;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use qcow2cache::error::Errno;
use qcow2cache::model::{self, Ordering, WORDS};
use qcow2cache::storage::{IoBuf, Storage};

/// Bytes of a table: a page, so that each table's memory can be given back by itself.
pub const TABLE: u64 = 4096;

pub type Words = [u64; WORDS];

/// What a table at `offset` holds before anybody changed it: words that tell it from every other.
pub fn fresh(offset: u64) -> Words {
    std::array::from_fn(|n| offset + n as u64 * 8 + 1)
}

/// Image contents and counters. Its own data are no part of the model: a call is one step of its
/// thread, but for the table words, each of which is one.
#[derive(Default)]
pub struct ModelStorage {
    tables: Std<HashMap<u64, Words>>,
    pub reads: AtomicUsize,
    pub writes: AtomicUsize,
    reading: AtomicUsize,
    /// The most reads that were under way at once.
    pub parallel_reads: AtomicUsize,
    /// Every second write fails.
    pub flaky: bool,
}

impl ModelStorage {
    /// A storage of which every second write fails.
    pub fn flaky() -> Self {
        Self {
            flaky: true,
            ..Self::default()
        }
    }

    /// What the image has at `offset`.
    pub fn contents(&self, offset: u64) -> Words {
        let tables = self.tables.lock().unwrap();
        tables
            .get(&offset)
            .copied()
            .unwrap_or_else(|| fresh(offset))
    }

    pub fn set(&self, offset: u64, words: Words) {
        self.tables.lock().unwrap().insert(offset, words);
    }
}

fn addresses(buf: &IoBuf) -> impl Iterator<Item = usize> {
    let base = buf.as_ptr() as usize;
    (0..WORDS).map(move |n| base + n * 8)
}

impl Storage for ModelStorage {
    fn preadv(&self, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
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

    fn pwritev(&self, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
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
        Ok(())
    }
}
