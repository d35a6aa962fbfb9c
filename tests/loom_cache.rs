// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole cache, with its index, bits and structure lock: hits, copies without a pin and
//! `mark_dirty`, concurrent with whatever removes or writes a table. loom explores every value that
//! C11 lets a load return and every interleaving or, where these are too many, those with at most
//! the given number of forced switches. A switch is forced unless the thread waits or ends.
#![cfg(loom)]

mod model_checking;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use model_checking::host::{Kind, ModelHost};
use model_checking::storage::{ModelStorage, TABLE, cache_on, fresh};
use model_checking::{explore, join, spawn};
use qcow2cache::cache::{Cache, Pinned};
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;

const A: u64 = TABLE;
const B: u64 = 2 * TABLE;

struct Model {
    cache: Arc<Cache>,
    storage: Arc<ModelStorage>,
}

impl Model {
    fn new(tables: usize, reserved: usize) -> Arc<Self> {
        Self::on(ModelStorage::default(), tables, reserved)
    }

    fn on(storage: ModelStorage, tables: usize, reserved: usize) -> Arc<Self> {
        let storage = Arc::new(storage);
        let host = ModelHost::new(Kind::Threads, false);
        let cache = cache_on(&storage, &host, tables, reserved);
        Arc::new(Self { cache, storage })
    }

    fn with_a(tables: usize) -> Arc<Self> {
        let model = Self::new(tables, 0);
        model.check(A);
        model
    }

    fn get(&self, offset: u64) -> Pinned<'_> {
        block_on(self.cache.host(), &[], self.cache.get(offset)).unwrap()
    }

    fn get_unlocked(&self, offset: u64) -> Result<Pinned<'_>, Errno> {
        block_on(self.cache.host(), &[], self.cache.get_unlocked(offset))
    }

    fn flush(&self) {
        block_on(self.cache.host(), &[], self.cache.flush()).unwrap();
    }

    /// Gets a table and checks its contents.
    fn check(&self, offset: u64) {
        expect_fresh(&self.get(offset), offset);
    }

    /// Checks the contents of a table if it is resident; returns whether it is.
    fn try_check(&self, offset: u64) -> bool {
        match self.cache.try_get(offset) {
            Ok(pinned) => {
                expect_fresh(&pinned, offset);
                true
            }
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                false
            }
        }
    }

    /// Copies a table without a pin, if it is resident.
    fn copy(&self, offset: u64) {
        self.copy_to(&mut [0; 16], offset);
    }

    /// Copies one word without a pin, if its table is resident. Single words have a separate code
    /// path.
    fn copy_word(&self, offset: u64) {
        self.copy_to(&mut [0; 8], offset);
    }

    fn copy_to(&self, buf: &mut [u8], offset: u64) {
        match self.cache.read(offset, 0, buf) {
            Ok(()) => {
                let words = fresh(offset).map(u64::to_ne_bytes).concat();
                assert_eq!(buf, &words[..buf.len()], "a copy of another table's words");
            }
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }
}

/// The copies without a pin: of a table and of one word.
const COPIES: [fn(&Model, u64); 2] = [Model::copy, Model::copy_word];

fn expect_fresh(pinned: &Pinned<'_>, offset: u64) {
    let found = [pinned.load(0), pinned.load(8)];
    assert_eq!(found, fresh(offset), "a pin of the wrong table");
}

/// Stores a word and marks its table dirty.
fn change(pinned: &Pinned<'_>, at: usize, value: u64) {
    pinned.store(at, value).unwrap();
    pinned.mark_dirty().unwrap();
}

#[test]
fn hit_is_correct_during_eviction() {
    explore(Some(3), || {
        let model = Model::with_a(1);
        let hit = spawn(&model, |m| {
            m.try_check(A);
            m.try_check(B);
        });
        // EBUSY is correct while the hit holds its pin.
        match block_on(model.cache.host(), &[], model.cache.get(B)) {
            Ok(pinned) => expect_fresh(&pinned, B),
            Err(errno) => assert_eq!(errno, Errno::BUSY),
        }
        hit.join().unwrap();
        // No pin is left: the slot can go to A and to B.
        model.check(A);
        model.check(B);
    });
}

#[test]
fn hit_is_correct_during_cleaning() {
    explore(None, || {
        let model = Model::with_a(1);
        // The first pass only clears the use bit.
        assert_eq!(model.cache.clean_unused(), 0);
        let hit = spawn(&model, |m| {
            m.try_check(A);
        });
        model.cache.clean_unused();
        hit.join().unwrap();
        model.check(A);
    });
}

#[test]
fn hit_is_correct_during_discard() {
    explore(None, || {
        let model = Model::with_a(1);
        let hit = spawn(&model, |m| {
            m.try_check(A);
        });
        model.cache.discard_offset(A).unwrap();
        assert!(
            model.cache.try_get(A).is_err(),
            "a discarded table is still in the index"
        );
        hit.join().unwrap();
        // The slot is free again, whichever thread was last.
        model.check(B);
    });
}

/// Copies A while its slot goes to the tables of `gets`, one after the other.
fn copies_against(bound: usize, gets: &'static [u64]) {
    for copy in COPIES {
        explore(Some(bound), move || {
            let model = Model::with_a(1);
            let copy = spawn(&model, move |m| copy(m, A));
            gets.iter().for_each(|offset| model.check(*offset));
            copy.join().unwrap();
        });
    }
}

#[test]
fn unpinned_copy_is_correct_during_eviction() {
    copies_against(3, &[B]);
}

/// A's slot goes to B and back to A. A copy of A that found the slot by the first index entry may
/// see the slot's last offset but B's bytes. It must then see the claim for A, too.
#[test]
fn unpinned_copy_is_correct_when_table_returns_to_its_slot() {
    copies_against(2, &[B, A]);
}

#[test]
fn unpinned_copy_is_correct_during_load() {
    for copy in COPIES {
        explore(None, move || {
            let model = Model::with_a(1);
            let copy = spawn(&model, move |m| copy(m, B));
            model.check(B);
            copy.join().unwrap();
        });
    }
}

#[test]
fn unpinned_copy_is_correct_during_cleaning_and_page_release() {
    for copy in COPIES {
        explore(None, move || {
            let model = Model::with_a(1);
            assert_eq!(model.cache.clean_unused(), 0);
            let copy = spawn(&model, move |m| copy(m, A));
            model.cache.clean_unused();
            copy.join().unwrap();
        });
    }
}

#[test]
fn unpinned_copy_is_correct_when_zeroed_table_enters() {
    for copy in COPIES {
        explore(Some(3), move || {
            let model = Model::with_a(1);
            let copy = spawn(&model, move |m| copy(m, A));
            let empty = block_on(model.cache.host(), &[], model.cache.get_empty(B)).unwrap();
            assert_eq!([empty.load(0), empty.load(8)], [0, 0]);
            drop(empty);
            copy.join().unwrap();
        });
    }
}

#[test]
fn unpinned_copy_is_correct_during_move_out_of_reserve() {
    for copy in COPIES {
        explore(Some(3), move || {
            let model = Model::new(2, 1);
            // B takes the ordinary slot, A the reserved one.
            model.check(B);
            model.check(A);
            let copy = spawn(&model, move |m| copy(m, B));
            let moved = model.get_unlocked(A).unwrap();
            expect_fresh(&moved, A);
            drop(moved);
            copy.join().unwrap();
            assert_eq!(model.storage.reads.load(Relaxed), 2, "A was copied");
        });
    }
}

#[test]
fn two_gets_of_absent_table_load_it_once() {
    explore(Some(4), || {
        let model = Model::new(2, 0);
        let other = spawn(&model, |m| m.check(A));
        model.check(A);
        other.join().unwrap();
        assert_eq!(model.storage.reads.load(Relaxed), 1);
    });
}

/// A table is changed and marked dirty during a flush. A flush after both leaves nothing dirty.
fn mark_against_flush(first_dirty: bool) {
    explore(None, move || {
        let model = Model::with_a(1);
        let pinned = model.get(A);
        if first_dirty {
            change(&pinned, 0, 7);
        }
        let flush = spawn(&model, Model::flush);
        change(&pinned, 8, 9);
        drop(pinned);
        flush.join().unwrap();
        model.flush();
        let first = if first_dirty { 7 } else { fresh(A)[0] };
        assert_eq!(model.storage.contents(A), [first, 9], "a change was lost");
        assert_eq!(model.cache.check_destroy(), Ok(()));
    });
}

#[test]
fn mark_dirty_during_flush_loses_no_change() {
    mark_against_flush(true);
}

#[test]
fn first_mark_during_flush_loses_no_change() {
    mark_against_flush(false);
}

#[test]
fn two_flushes_return_only_after_table_is_written() {
    explore(Some(4), || {
        let model = Model::with_a(1);
        let pinned = model.get(A);
        change(&pinned, 0, 7);
        drop(pinned);
        let flush = |m: &Model| {
            m.flush();
            assert_eq!(m.storage.contents(A)[0], 7, "a flush returned too early");
        };
        let other = spawn(&model, flush);
        flush(&model);
        other.join().unwrap();
    });
}

#[test]
fn flush_writes_table_whose_write_failed_in_another_flush() {
    explore(Some(3), || {
        // The first write fails, and the second one succeeds.
        let model = Model::on(ModelStorage::flaky(), 1, 0);
        change(&model.get(A), 0, 7);
        let flush = |m: &Model| match block_on(m.cache.host(), &[], m.cache.flush()) {
            Ok(()) => assert_eq!(m.storage.contents(A)[0], 7, "a flush returned too early"),
            Err(errno) => assert_eq!(errno, Errno::IO),
        };
        let other = spawn(&model, flush);
        flush(&model);
        other.join().unwrap();
    });
}

#[test]
fn change_is_not_written_before_the_flush_that_it_depends_on() {
    explore(Some(3), || {
        let model = Model::with_a(1);
        change(&model.get(A), 0, 7);
        let write = |m: &Model| block_on(m.cache.host(), &[], m.cache.write()).unwrap();
        let other = spawn(&model, write);
        write(&model);
        // The other write may have listed the table by now, but it writes only the next change.
        model.cache.depends_on_flush().unwrap();
        change(&model.get(A), 0, 9);
        other.join().unwrap();
        let flushed = model.storage.flushes.load(Relaxed) > 0;
        assert!(
            model.storage.contents(A)[0] == 7 || flushed,
            "written before its dependency"
        );
    });
}

#[test]
fn change_during_eviction_is_not_lost() {
    explore(Some(2), || {
        let model = Model::with_a(1);
        let writer = spawn(&model, |m| {
            let Ok(pinned) = m.cache.try_get(A) else {
                return;
            };
            change(&pinned, 0, 7);
            drop(pinned);
        });
        // Without the state lock, a get does not evict a table that must be written first.
        let evicting = model.get_unlocked(B).map(drop);
        writer.join().unwrap();
        assert!(matches!(evicting, Ok(()) | Err(Errno::AGAIN)));
        let changed = model.get(A).load(0) == 7;
        model.flush();
        assert_eq!(model.storage.contents(A)[0] == 7, changed);
        // The table was resident at first, so the writer changed it unless the eviction was faster.
        assert!(changed || evicting.is_ok(), "a change was lost");
    });
}

#[test]
fn mark_dirty_during_two_flushes_loses_no_change() {
    explore(Some(2), || {
        let model = Model::with_a(1);
        let pinned = model.get(A);
        change(&pinned, 0, 7);
        let flushes = [spawn(&model, Model::flush), spawn(&model, Model::flush)];
        change(&pinned, 8, 9);
        drop(pinned);
        join(flushes);
        model.flush();
        assert_eq!(model.storage.contents(A), [7, 9], "a change was lost");
        assert_eq!(model.cache.check_destroy(), Ok(()));
    });
}

/// A flush, on a storage of which one fails. Returns whether it succeeded.
fn try_flush(cache: &Cache) -> bool {
    match block_on(cache.host(), &[], cache.flush()) {
        Ok(()) => true,
        Err(errno) => {
            assert_eq!(errno, Errno::IO);
            false
        }
    }
}

#[test]
fn flush_beside_one_that_fails_keeps_its_promise() {
    explore(Some(3), || {
        let model = Model::on(ModelStorage::lossy(), 1, 0);
        change(&model.get(A), 0, 7);
        let flush = |m: &Model| {
            if try_flush(&m.cache) {
                assert_eq!(
                    m.storage.stable(A)[0],
                    7,
                    "a flush returned 0 for what was lost"
                );
            }
        };
        let other = spawn(&model, flush);
        flush(&model);
        other.join().unwrap();
        // The table is still there, so that it can be written again.
        assert!(try_flush(&model.cache));
        assert_eq!(model.storage.stable(A)[0], 7);
    });
}

#[test]
fn write_beside_a_flush_that_fails_is_not_taken_for_stable() {
    explore(None, || {
        let storage = Arc::new(ModelStorage::lossy());
        let host = ModelHost::new(Kind::Threads, false);
        let cache = cache_on(&storage, &host, 1, 0);
        let other = cache_on(&storage, &host, 1, 0);
        let model = Arc::new(Model { cache, storage });
        change(&model.get(A), 0, 7);
        // The two caches share a device: a failed flush of one counts for the other.
        let flush = spawn(&other, |other| {
            let _ = try_flush(other);
        });
        let written = block_on(model.cache.host(), &[], model.cache.write());
        assert!(matches!(written, Ok(()) | Err(Errno::IO)));
        flush.join().unwrap();
        while !try_flush(&model.cache) {}
        assert_eq!(model.storage.stable(A)[0], 7, "a lost write was forgotten");
    });
}

#[test]
fn table_lost_by_a_failed_flush_is_dirty_or_the_cache_is_unstable() {
    explore(None, || {
        let model = Model::on(ModelStorage::lossy(), 1, 0);
        change(&model.get(A), 0, 7);
        block_on(model.cache.host(), &[], model.cache.write()).unwrap();
        let flush = spawn(&model, |m| {
            assert!(!try_flush(&m.cache), "the first flush fails");
        });
        // A is clean until the flush has failed, and may be evicted.
        let evicting = model.get_unlocked(B).map(drop);
        assert!(matches!(evicting, Ok(()) | Err(Errno::AGAIN)));
        flush.join().unwrap();
        let unstable = model.cache.flush_error().is_some();
        assert_eq!(unstable, evicting.is_ok());
        assert_eq!(try_flush(&model.cache), !unstable);
        assert_eq!(model.storage.stable(A)[0] == 7, !unstable);
    });
}

#[test]
fn change_during_a_flush_that_fails_is_not_lost() {
    explore(None, || {
        let model = Model::on(ModelStorage::lossy(), 1, 0);
        let pinned = model.get(A);
        change(&pinned, 0, 7);
        block_on(model.cache.host(), &[], model.cache.write()).unwrap();
        let flush = spawn(&model, |m| {
            let _ = try_flush(&m.cache);
        });
        change(&pinned, 8, 9);
        drop(pinned);
        flush.join().unwrap();
        assert!(try_flush(&model.cache));
        assert_eq!(model.storage.stable(A), [7, 9], "a change was lost");
        assert_eq!(model.cache.check_destroy(), Ok(()));
    });
}

#[test]
fn emptying_drops_every_table_or_none() {
    explore(None, || {
        let model = Model::new(2, 0);
        model.check(A);
        model.check(B);
        let reader = spawn(&model, |m| {
            m.try_check(B);
            m.copy(B);
        });
        let emptied = block_on(model.cache.host(), &[], model.cache.empty());
        reader.join().unwrap();
        let left = [A, B].map(|offset| model.cache.try_get(offset).is_ok());
        match emptied {
            Ok(()) => assert_eq!(left, [false; 2]),
            Err(errno) => assert_eq!((errno, left), (Errno::BUSY, [true; 2])),
        }
    });
}
