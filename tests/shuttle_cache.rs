// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache with several threads that spawn all operations concurrently, on a few tables in fewer
//! slots. No table is mistaken for another, no change is lost, no call starves or hangs. loom
//! checks the memory ordering; shuttle runs the long schedules.
#![cfg(shuttle)]

mod model_checking;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use model_checking::host::{Kind, ModelHost};
use model_checking::storage::{ModelStorage, TABLE, cache_on, fresh};
use model_checking::sync::Mutex;
use model_checking::{join, sample, spawn, thread};
use qcow2cache::cache::{Cache, Pinned};
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use shuttle::rand::{Rng, thread_rng};

struct Model {
    cache: Arc<Cache>,
    storage: Arc<ModelStorage>,
    host: Arc<ModelHost>,
    /// Stands for the state lock. Threads that change tables hold it.
    writers: Mutex<()>,
    /// The number of changes of each table.
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
        let host = ModelHost::new(Kind::Coroutines, false);
        let cache = cache_on(&storage, &host, tables, reserved);
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

    /// Checks a table's words: word 0 counts the changes, word 1 never changes.
    fn check(&self, offset: u64, words: [u64; 2]) {
        let number = (offset / TABLE) as usize;
        assert_eq!(words[1], fresh(offset)[1], "another table's words");
        // A change is stored before it is counted.
        let counted = self.changes[number].load(Relaxed) as u64;
        let found = words[0].checked_sub(fresh(offset)[0]);
        let found = found.expect("another table's words");
        assert!(found <= counted + 1, "a change that no thread made");
    }

    fn check_pinned(&self, pinned: &Pinned<'_>, offset: u64) {
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
        // Single words have a separate code path.
        let mut word = [0; 8];
        match self.cache.read(offset, 8, &mut word) {
            Ok(()) => assert_eq!(u64::from_ne_bytes(word), fresh(offset)[1]),
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }

    fn change(&self, offset: u64) -> Result<(), Errno> {
        let writer = self.writers.lock().unwrap();
        let pinned = self.wait(self.cache.get(offset))?;
        self.check_pinned(&pinned, offset);
        pinned.store(0, pinned.load(0) + 1).unwrap();
        self.changes[(offset / TABLE) as usize].fetch_add(1, Relaxed);
        pinned.mark_dirty().unwrap();
        drop(pinned);
        drop(writer);
        Ok(())
    }

    fn get_unlocked(&self, offset: u64) {
        match self.wait(self.cache.get_unlocked(offset)) {
            Ok(pinned) => self.check_pinned(&pinned, offset),
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }

    fn try_get(&self, offset: u64) {
        match self.cache.try_get(offset) {
            Ok(pinned) => self.check_pinned(&pinned, offset),
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }

    /// Asserts that every change is in the image after a last flush.
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

fn random_offset() -> u64 {
    thread_rng().gen_range(1..5_u64) * TABLE
}

/// Readers, a writer, flushes and cleaning passes run concurrently.
fn mixed_operations(tables: usize, reserved: usize, flaky: bool) {
    let model = Model::new(tables, reserved, flaky);
    let readers = [(), ()].map(|()| {
        spawn(&model, |m| {
            for _ in 0..5 {
                match thread_rng().gen_range(0..3_u8) {
                    0 => m.try_get(random_offset()),
                    1 => m.get_unlocked(random_offset()),
                    _ => m.copy(random_offset()),
                }
            }
        })
    });
    let writer = spawn(&model, |m| {
        for _ in 0..4 {
            match m.change(random_offset()) {
                Ok(()) => {}
                // The write of the victim failed.
                Err(errno) => assert!(m.storage.flaky && errno == Errno::IO, "{errno}"),
            }
        }
    });
    let maintenance = spawn(&model, |m| {
        for _ in 0..3 {
            m.cache.clean_unused();
            let flushed = m.wait(m.cache.flush());
            assert!(flushed.is_ok() || m.storage.flaky);
        }
    });
    join(readers);
    join([writer, maintenance]);
    model.end();
}

#[test]
fn mixed_operations_lose_no_change() {
    // There are more slots than threads that pin, so no locked get may return EBUSY.
    sample(3000, || mixed_operations(4, 0, false));
}

#[test]
fn mixed_operations_with_reserve_lose_no_change() {
    // Two readers pin without the lock; they never use the one reserved slot.
    sample(3000, || mixed_operations(3, 1, false));
}

#[test]
fn mixed_operations_with_failing_writes_lose_no_change() {
    sample(3000, || mixed_operations(3, 1, true));
}

#[test]
fn greedy_unlocked_pins_never_starve_locked_get() {
    sample(3000, || {
        let model = Model::new(3, 1, false);
        let greedy = [(), ()].map(|()| {
            spawn(&model, |m| {
                let mut pinned = Vec::new();
                for number in 1..5 {
                    let offset = number * TABLE;
                    pinned.extend(m.cache.try_get(offset));
                    pinned.extend(m.wait(m.cache.get_unlocked(offset)));
                }
                thread::yield_now();
            })
        });
        let locked = spawn(&model, |m| {
            for _ in 0..4 {
                m.change(random_offset()).unwrap();
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
                spawn(&model, move |m| {
                    let pinned = m.wait(m.cache.get(number * TABLE)).unwrap();
                    m.check_pinned(&pinned, number * TABLE);
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

/// More gets than slots wait for any slot. Each event wakes one of them, so a get that forgets to
/// pass its turn on leaves the others asleep.
#[test]
fn every_get_that_waits_for_any_slot_is_served() {
    let waited = Arc::new(AtomicUsize::new(0));
    sample(3000, {
        let waited = waited.clone();
        move || {
            let model = Model::new(2, 0, false);
            let getters = [1, 2, 3, 3, 4].map(|number| {
                let waited = waited.clone();
                spawn(&model, move |m| {
                    let offset = number * TABLE;
                    let mut get = Box::pin(m.cache.get(offset));
                    let at_first = get.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                    waited.fetch_add(usize::from(at_first.is_pending()), Relaxed);
                    if number == 4 && at_first.is_pending() {
                        // It gives up, perhaps after it was woken.
                        thread::yield_now();
                        return;
                    }
                    let result = match at_first {
                        Poll::Ready(result) => result,
                        Poll::Pending => m.wait(get),
                    };
                    match result {
                        Ok(pinned) => m.check_pinned(&pinned, offset),
                        Err(errno) => assert_eq!(errno, Errno::BUSY),
                    }
                })
            });
            join(getters);
            model.end();
        }
    });
    assert!(waited.load(Relaxed) > 1000, "hardly any get had to wait");
}

#[test]
fn discards_during_reads_leak_no_slot() {
    sample(3000, || {
        let model = Model::new(2, 0, false);
        let readers = [(), ()].map(|()| {
            spawn(&model, |m| {
                for _ in 0..4 {
                    let offset = random_offset();
                    match m.wait(m.cache.get(offset)) {
                        Ok(pinned) => m.check_pinned(&pinned, offset),
                        // There are two slots, and discarded tables that are still pinned occupy
                        // slots.
                        Err(errno) => assert_eq!(errno, Errno::BUSY),
                    }
                    m.copy(random_offset());
                }
            })
        });
        let discarder = spawn(&model, |m| {
            for _ in 0..4 {
                m.cache.discard_offset(random_offset()).unwrap();
                let range = m.cache.discard_range(random_offset(), 2 * TABLE);
                range.unwrap();
            }
        });
        let maintenance = spawn(&model, |m| {
            m.cache.clean_unused();
            m.cache.clean_unused();
        });
        join(readers);
        join([discarder, maintenance]);
        // Every slot is usable.
        let all: Vec<_> = (1..3)
            .map(|number| get_checked(&model, number * TABLE))
            .collect();
        assert_eq!(all.len(), 2);
        drop(all);
        model.end();
    });
}

fn get_checked(model: &Model, offset: u64) -> Pinned<'_> {
    let pinned = model.wait(model.cache.get(offset)).unwrap();
    model.check_pinned(&pinned, offset);
    pinned
}

#[test]
fn table_is_never_written_before_its_dependency() {
    sample(1000, || {
        let refcounts = Model::new(2, 0, false);
        let l2 = Model::new(2, 0, false);
        // Threads that change, flush or may write back hold the state lock; the others do not.
        let state_lock = Arc::new(Mutex::new(()));
        let check_order = |refcounts: &Model, l2: &Model| {
            let refers = l2.storage.contents(TABLE)[0] - fresh(TABLE)[0];
            let counts = refcounts.storage.contents(TABLE)[0] - fresh(TABLE)[0];
            assert!(counts >= refers, "written before its dependency");
        };
        let changer = {
            let (refcounts, l2, lock) = (refcounts.clone(), l2.clone(), state_lock.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    let held = lock.lock().unwrap();
                    // As in an allocation of a driver: first the refcount, then the L2 entry, which
                    // depends on it.
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
                    check_order(&refcounts, &l2);
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
                    check_order(&refcounts, &l2);
                }
            })
        };
        let unlocked = spawn(&l2, |m| {
            for number in 1..5 {
                m.get_unlocked(number * TABLE);
                m.cache.clean_unused();
            }
        });
        join([changer, flusher, evictor, unlocked]);
        l2.end();
        check_order(&refcounts, &l2);
        refcounts.end();
    });
}
