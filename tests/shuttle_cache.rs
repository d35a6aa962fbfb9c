// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache with many threads that do everything at once, on a few tables in fewer slots: no table
//! is ever mistaken for another, no change is lost, nobody starves and nobody hangs. Memory
//! ordering is loom's part; here are the long schedules.
#![cfg(shuttle)]

mod model_checking;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use model_checking::host::{Kind, ModelHost};
use model_checking::storage::{ModelStorage, TABLE, fresh};
use model_checking::sync::Mutex;
use model_checking::{sample, thread};
use qcow2cache::cache::{Cache, CacheOptions, Pinned};
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use shuttle::rand::{Rng, thread_rng};

struct Model {
    cache: Arc<Cache>,
    storage: Arc<ModelStorage>,
    host: Arc<ModelHost>,
    /// In place of the state lock, for those who change tables.
    writers: Mutex<()>,
    /// Changes made to each table.
    changes: [AtomicUsize; 5],
}

impl Model {
    fn new(tables: usize, reserved: usize, flaky: bool) -> Arc<Self> {
        let storage = if flaky {
            ModelStorage::flaky()
        } else {
            ModelStorage::default()
        };
        let storage = Arc::new(storage);
        let options = CacheOptions {
            tables,
            table_size: TABLE as usize,
            kind: 0,
            reserved,
        };
        let host = ModelHost::new(Kind::Coroutines, false);
        let cache = Cache::new(&options, storage.clone(), host.clone()).unwrap();
        Arc::new(Self {
            cache,
            storage,
            host,
            writers: Mutex::new(()),
            changes: Default::default(),
        })
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        block_on(&*self.host, &[], future)
    }

    /// Word 0 counts the changes, word 1 never changes.
    fn check(&self, offset: u64, words: [u64; 2]) {
        let number = (offset / TABLE) as usize;
        assert_eq!(words[1], fresh(offset)[1], "another table's words");
        // The change comes before its count.
        let counted = self.changes[number].load(Relaxed) as u64;
        let found = words[0].checked_sub(fresh(offset)[0]);
        let found = found.expect("another table's words");
        assert!(found <= counted + 1, "a change nobody made");
    }

    fn look(&self, pinned: &Pinned<'_>, offset: u64) {
        self.check(offset, [pinned.load(0), pinned.load(8)]);
    }

    fn copy(&self, offset: u64) {
        let mut copied = [0; 16];
        match self.cache.read(offset, 0, &mut copied) {
            Ok(()) => {
                let word = |n: usize| u64::from_ne_bytes(copied[n..n + 8].try_into().unwrap());
                self.check(offset, [word(0), word(8)]);
            }
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
        // One word is a way of its own.
        let mut word = [0; 8];
        match self.cache.read(offset, 8, &mut word) {
            Ok(()) => assert_eq!(u64::from_ne_bytes(word), fresh(offset)[1]),
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }

    fn change(&self, offset: u64) -> Result<(), Errno> {
        let writer = self.writers.lock().unwrap();
        let pinned = self.wait(self.cache.get(offset))?;
        self.look(&pinned, offset);
        pinned.store(0, pinned.load(0) + 1).unwrap();
        self.changes[(offset / TABLE) as usize].fetch_add(1, Relaxed);
        pinned.mark_dirty().unwrap();
        drop(pinned);
        drop(writer);
        Ok(())
    }

    fn get_unlocked(&self, offset: u64) {
        match self.wait(self.cache.get_unlocked(offset)) {
            Ok(pinned) => self.look(&pinned, offset),
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }

    fn try_get(&self, offset: u64) {
        match self.cache.try_get(offset) {
            Ok(pinned) => self.look(&pinned, offset),
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }

    /// Whatever was changed is in the image after a last flush.
    fn end(&self) {
        while let Err(errno) = self.wait(self.cache.flush()) {
            assert!(self.storage.flaky);
            assert_eq!(errno, Errno::IO);
        }
        for (number, changes) in self.changes.iter().enumerate().skip(1) {
            let offset = number as u64 * TABLE;
            let mut words = fresh(offset);
            words[0] += changes.load(Relaxed) as u64;
            assert_eq!(self.storage.contents(offset), words, "a change was lost");
        }
        assert_eq!(self.cache.stats().dirty_tables, 0);
        assert_eq!(self.cache.stats().pinned_tables, 0);
        assert_eq!(self.cache.check_destroy(), Ok(()));
        self.host.join();
    }
}

fn some_offset() -> u64 {
    thread_rng().gen_range(1..5_u64) * TABLE
}

fn run(model: &Arc<Model>, body: impl FnOnce(&Model) + Send + 'static) -> thread::JoinHandle<()> {
    let model = model.clone();
    thread::spawn(move || body(&model))
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// Readers, writers, flushes and passes over each other.
fn storm(tables: usize, reserved: usize, flaky: bool) {
    let model = Model::new(tables, reserved, flaky);
    let readers = [(), ()].map(|()| {
        run(&model, |m| {
            for _ in 0..5 {
                match thread_rng().gen_range(0..3_u8) {
                    0 => m.try_get(some_offset()),
                    1 => m.get_unlocked(some_offset()),
                    _ => m.copy(some_offset()),
                }
            }
        })
    });
    let writer = run(&model, |m| {
        for _ in 0..4 {
            match m.change(some_offset()) {
                Ok(()) => {}
                // Its victim's write failed.
                Err(errno) => assert!(m.storage.flaky && errno == Errno::IO, "{errno}"),
            }
        }
    });
    let keeper = run(&model, |m| {
        for _ in 0..3 {
            m.cache.clean_unused();
            let flushed = m.wait(m.cache.flush());
            assert!(flushed.is_ok() || m.storage.flaky);
        }
    });
    join(readers);
    join([writer, keeper]);
    model.end();
}

#[test]
fn mixed_operations_lose_no_change() {
    // With more slots than threads that pin, no locked get may say EBUSY.
    sample(3000, || storm(4, 0, false));
}

#[test]
fn mixed_operations_with_reserve_lose_no_change() {
    // Two readers that pin without the lock, and one slot that they leave alone.
    sample(3000, || storm(3, 1, false));
}

#[test]
fn mixed_operations_with_failing_writes_lose_no_change() {
    sample(3000, || storm(3, 1, true));
}

#[test]
fn greedy_unlocked_pins_never_starve_locked_get() {
    sample(3000, || {
        let model = Model::new(3, 1, false);
        let greedy = [(), ()].map(|()| {
            run(&model, |m| {
                let mut pinned = Vec::new();
                for number in 1..5 {
                    let offset = number * TABLE;
                    pinned.extend(m.cache.try_get(offset));
                    pinned.extend(m.wait(m.cache.get_unlocked(offset)));
                }
                thread::yield_now();
            })
        });
        let locked = run(&model, |m| {
            for _ in 0..4 {
                m.change(some_offset()).unwrap();
            }
        });
        join([locked]);
        join(greedy);
        model.end();
    });
}

#[test]
fn each_table_loads_once_and_loads_run_in_parallel() {
    let parallel = Arc::new(AtomicUsize::new(0));
    sample(1000, {
        let parallel = parallel.clone();
        move || {
            let model = Model::new(4, 0, false);
            let getters = [1, 1, 2, 2].map(|number| {
                run(&model, move |m| {
                    let pinned = m.wait(m.cache.get(number * TABLE)).unwrap();
                    m.look(&pinned, number * TABLE);
                })
            });
            join(getters);
            assert_eq!(model.storage.reads.load(Relaxed), 2);
            parallel.fetch_max(model.storage.parallel_reads.load(Relaxed), Relaxed);
            model.end();
        }
    });
    assert_eq!(parallel.load(Relaxed), 2, "no two loads ever overlapped");
}

#[test]
fn discards_during_reads_leak_no_slot() {
    sample(3000, || {
        let model = Model::new(2, 0, false);
        let readers = [(), ()].map(|()| {
            run(&model, |m| {
                for _ in 0..4 {
                    let offset = some_offset();
                    match m.wait(m.cache.get(offset)) {
                        Ok(pinned) => m.look(&pinned, offset),
                        // Two slots, and discarded tables that are still read take them, too.
                        Err(errno) => assert_eq!(errno, Errno::BUSY),
                    }
                    m.copy(some_offset());
                }
            })
        });
        let discarder = run(&model, |m| {
            for _ in 0..4 {
                m.cache.discard_offset(some_offset()).unwrap();
                let range = m.cache.discard_range(some_offset(), 2 * TABLE);
                range.unwrap();
            }
        });
        let keeper = run(&model, |m| {
            m.cache.clean_unused();
            m.cache.clean_unused();
        });
        join(readers);
        join([discarder, keeper]);
        // Every slot can be used.
        let all: Vec<_> = (1..3).map(|number| m_get(&model, number * TABLE)).collect();
        assert_eq!(all.len(), 2);
        drop(all);
        model.end();
    });
}

fn m_get(model: &Model, offset: u64) -> Pinned<'_> {
    let pinned = model.wait(model.cache.get(offset)).unwrap();
    model.look(&pinned, offset);
    pinned
}

#[test]
fn table_is_never_written_before_its_dependency() {
    sample(1000, || {
        let refcounts = Model::new(2, 0, false);
        let l2 = Model::new(2, 0, false);
        // Whoever changes, flushes or gets with write-back holds the state lock; the others do not.
        let state_lock = Arc::new(Mutex::new(()));
        let look = |refcounts: &Model, l2: &Model| {
            let refers = l2.storage.contents(TABLE)[0] - fresh(TABLE)[0];
            let counts = refcounts.storage.contents(TABLE)[0] - fresh(TABLE)[0];
            assert!(counts >= refers, "written before its dependency");
        };
        let changer = {
            let (refcounts, l2, lock) = (refcounts.clone(), l2.clone(), state_lock.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let held = lock.lock().unwrap();
                    // As a driver allocates: the refcount first, then, dependent on it, the entry
                    // that refers to it.
                    refcounts.change(TABLE).unwrap();
                    l2.wait(l2.cache.set_dependency(&refcounts.cache)).unwrap();
                    l2.change(TABLE).unwrap();
                    drop(held);
                }
            })
        };
        let flusher = {
            let (refcounts, l2, lock) = (refcounts.clone(), l2.clone(), state_lock.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let held = lock.lock().unwrap();
                    l2.wait(l2.cache.flush()).unwrap();
                    drop(held);
                    look(&refcounts, &l2);
                }
            })
        };
        let evictor = {
            let (refcounts, l2, lock) = (refcounts.clone(), l2.clone(), state_lock);
            thread::spawn(move || {
                for number in 2..5 {
                    let held = lock.lock().unwrap();
                    drop(l2.wait(l2.cache.get(number * TABLE)));
                    drop(held);
                    look(&refcounts, &l2);
                }
            })
        };
        let unlocked = run(&l2, |m| {
            for number in 1..5 {
                m.get_unlocked(number * TABLE);
                m.cache.clean_unused();
            }
        });
        join([changer, flusher, evictor, unlocked]);
        l2.end();
        look(&refcounts, &l2);
        refcounts.end();
    });
}
