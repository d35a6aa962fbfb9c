// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slot's word, the dirty set, and the two orders in which they are changed. loom explores
//! every interleaving and every value that C11 lets a load return; with three threads, at most
//! three forced switches. Table contents are plain memory here, so that loom reports races on them,
//! too.
#![cfg(loom)]

mod model_checking;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::cell::UnsafeCell;
use loom::sync::{Mutex, MutexGuard};
use model_checking::{explore, join, spawn};
use qcow2cache::cache::arena::Arena;
use qcow2cache::cache::dirty::DirtySet;
use qcow2cache::cache::group::Group;
use qcow2cache::cache::slot::{Discard, Slot, UnpinResult};
use qcow2cache::model::{AtomicU64, Ordering};

const A: u64 = 0xA000;
const B: u64 = 0xB000;
const C: u64 = 0xC000;

/// One slot, its memory, and the structure lock of its cache.
struct Table {
    slot: Slot,
    memory: UnsafeCell<u64>,
    spilled_hits: AtomicU64,
    structure: Mutex<()>,
    freed: AtomicUsize,
}

// SAFETY: loom checks every access to `memory`; the models exist to find races on it.
unsafe impl Send for Table {}
// SAFETY: loom checks every access to `memory`, as for `Send`.
unsafe impl Sync for Table {}

impl Table {
    fn free() -> Arc<Self> {
        Arc::new(Self {
            slot: Slot::default(),
            memory: UnsafeCell::new(0),
            spilled_hits: AtomicU64::new(0),
            structure: Mutex::new(()),
            freed: AtomicUsize::new(0),
        })
    }

    /// Resident and pinned once.
    fn pinned(offset: u64) -> Arc<Self> {
        let table = Self::free();
        assert!(table.slot.allocate(offset));
        table.fill(offset);
        assert!(table.slot.finish_load());
        table
    }

    fn resident(offset: u64) -> Arc<Self> {
        let table = Self::pinned(offset);
        table.put();
        table
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.structure.lock().unwrap()
    }

    fn fill(&self, with: u64) {
        // SAFETY: by the protocol, no other thread uses the memory; loom checks that.
        self.memory.with_mut(|memory| unsafe { *memory = with });
    }

    fn contents(&self) -> u64 {
        // SAFETY: by the protocol, no thread writes the memory; loom checks that.
        self.memory.with(|memory| unsafe { *memory })
    }

    fn put(&self) {
        match self.slot.unpin() {
            UnpinResult::Unpinned => {}
            UnpinResult::LastOfDiscarded => self.free_discarded(&self.lock()),
            UnpinResult::NotPinned => panic!("a pin was lost"),
        }
    }

    fn discard(&self) {
        let structure = self.lock();
        self.discard_locked(&structure);
        drop(structure);
    }

    fn discard_locked(&self, _structure: &MutexGuard<'_, ()>) {
        let (outcome, _) = self.slot.discard();
        if outcome == Discard::Freed {
            self.count_freed();
        }
    }

    fn free_discarded(&self, _structure: &MutexGuard<'_, ()>) {
        if self.slot.free_discarded().is_some() {
            self.count_freed();
        }
    }

    fn count_freed(&self) {
        self.freed.fetch_add(1, Relaxed);
        // The freed slot gets new contents. This is a race unless every user is done.
        self.fill(0xDEAD);
    }

    fn times_freed(&self) -> usize {
        self.freed.load(Relaxed)
    }

    /// A hit: compare the offset, pin, compare again; then read and unpin.
    fn read_pinned(&self, offset: u64) -> Option<u64> {
        if self.slot.offset() != offset || !self.slot.pin(&self.spilled_hits) {
            return None;
        }
        let found = (self.slot.offset() == offset).then(|| self.contents());
        self.put();
        found
    }

    /// A hit on the fast path. Returns `None` also if the fast path cannot decide.
    fn read_fast(&self, offset: u64) -> Option<u64> {
        if self.slot.offset() != offset || !self.slot.pin_fast() {
            return None;
        }
        let found = (self.slot.offset() == offset).then(|| self.contents());
        if !self.slot.unpin_fast() {
            self.put();
        }
        found
    }

    /// Evicts the table and loads another one into the slot.
    fn evict_for(&self, offset: u64) -> bool {
        let structure = self.lock();
        if self.slot.evict_for(offset).is_none() {
            return false;
        }
        drop(structure);
        self.fill(offset);
        let structure = self.lock();
        assert!(self.slot.finish_load());
        drop(structure);
        self.put();
        true
    }
}

fn expect_own(table: &Table, offset: u64) {
    if let Some(found) = table.read_pinned(offset) {
        assert_eq!(found, offset, "a pin of the wrong table");
    }
}

#[test]
fn pin_holds_looked_up_table_during_eviction() {
    explore(Some(3), || {
        let table = Table::resident(A);
        let threads = [
            spawn(&table, |t| expect_own(t, A)),
            spawn(&table, |t| expect_own(t, B)),
        ];
        table.evict_for(B);
        join(threads);
    });
}

#[test]
fn slot_returning_to_first_table_shows_new_contents() {
    explore(None, || {
        let table = Table::resident(A);
        let threads = [spawn(&table, |t| expect_own(t, A))];
        if table.evict_for(B) {
            table.evict_for(A);
        }
        join(threads);
    });
}

/// A cleaning pass, then a load into the slot that it freed, concurrent with `readers`.
fn clean_during_reads(preemptions: Option<usize>, readers: &'static [u64]) {
    explore(preemptions, move || {
        let table = Table::resident(A);
        let threads = readers.iter().map(|o| spawn(&table, |t| expect_own(t, *o)));
        let threads: Vec<_> = threads.collect();
        let structure = table.lock();
        let dropped = table.slot.drop_clean().is_some();
        assert!(!dropped || table.slot.begin_release());
        drop(structure);
        if dropped {
            table.fill(0);
            let structure = table.lock();
            table.slot.end_release();
            assert!(table.slot.allocate(C));
            drop(structure);
            table.fill(C);
            let structure = table.lock();
            assert!(table.slot.finish_load());
            drop(structure);
            table.put();
        }
        join(threads);
    });
}

#[test]
fn cleaning_drops_no_pinned_table_and_no_pin_sees_released_memory() {
    clean_during_reads(None, &[A]);
    clean_during_reads(Some(3), &[A, C]);
}

/// How often the fast path succeeded in any execution, for the readers of A and of B.
#[derive(Default)]
struct FastHits([AtomicUsize; 2]);

impl FastHits {
    fn expect_own(&self, table: &Table, offset: u64) {
        if let Some(found) = table.read_fast(offset) {
            assert_eq!(found, offset, "a pin of the wrong table");
            self.0[usize::from(offset == B)].fetch_add(1, Relaxed);
        }
    }

    fn of(&self, offset: u64) -> usize {
        self.0[usize::from(offset == B)].load(Relaxed)
    }
}

#[test]
fn fast_path_pin_is_of_looked_up_table_and_unpin_allows_eviction() {
    let fast_hits = Arc::new(FastHits::default());
    explore(Some(3), {
        let fast_hits = fast_hits.clone();
        move || {
            let table = Table::resident(A);
            let threads = [A, B].map(|offset| {
                let fast_hits = fast_hits.clone();
                spawn(&table, move |t| fast_hits.expect_own(t, offset))
            });
            table.evict_for(B);
            join(threads);
        }
    });
    assert!(fast_hits.of(A) > 0 && fast_hits.of(B) > 0);
}

#[test]
fn fast_path_unpin_frees_discarded_table_once() {
    let fast_hits = Arc::new(FastHits::default());
    explore(None, {
        let fast_hits = fast_hits.clone();
        move || {
            let table = Table::resident(A);
            let discard = spawn(&table, Table::discard);
            fast_hits.expect_own(&table, A);
            join([discard]);
            assert_eq!(table.times_freed(), 1);
            assert!(table.slot.allocate(B));
        }
    });
    assert!(fast_hits.of(A) > 0);
}

#[test]
fn discarded_table_is_freed_once_after_last_reader() {
    explore(None, || {
        let table = Table::pinned(A);
        let discard = spawn(&table, Table::discard);
        let reader = spawn(&table, |t| expect_own(t, A));
        assert_eq!(table.contents(), A);
        table.put();
        join([discard, reader]);
        assert_eq!(table.times_freed(), 1);
        assert!(table.slot.allocate(B));
    });
}

#[test]
fn table_discarded_during_write_is_freed_once() {
    explore(None, || {
        let table = Table::pinned(A);
        assert!(table.slot.mark_dirty());
        assert!(table.slot.begin_write());
        let writer = spawn(&table, |t| {
            assert_eq!(t.contents(), A);
            let structure = t.lock();
            t.slot.end_write(false);
            t.free_discarded(&structure);
            drop(structure);
        });
        let discard = spawn(&table, Table::discard);
        table.put();
        join([writer, discard]);
        assert_eq!(table.times_freed(), 1);
    });
}

#[test]
fn pin_sees_loaded_contents_or_fails() {
    explore(Some(3), || {
        let table = Table::free();
        assert!(table.slot.allocate(A));
        let threads = [
            spawn(&table, |t| expect_own(t, A)),
            spawn(&table, |t| expect_own(t, A)),
        ];
        table.fill(A);
        let structure = table.lock();
        assert!(table.slot.finish_load());
        drop(structure);
        table.put();
        join(threads);
    });
}

#[test]
fn discarded_or_failed_load_frees_slot_once_and_is_never_pinned() {
    for fails in [false, true] {
        explore(Some(3), move || {
            let table = Table::free();
            assert!(table.slot.allocate(A));
            let discard = spawn(&table, |t| {
                let structure = t.lock();
                // The table is in the index only while the slot loads or holds it.
                let word = t.slot.word();
                if word.is_loading() || word.is_resident() {
                    t.discard_locked(&structure);
                }
                drop(structure);
            });
            let reader = spawn(&table, |t| expect_own(t, A));
            table.fill(A);
            let structure = table.lock();
            let kept = if fails {
                table.slot.abandon_load();
                false
            } else {
                table.slot.finish_load()
            };
            if !kept {
                table.count_freed();
            }
            drop(structure);
            if kept {
                assert_eq!(table.contents(), A);
                table.put();
            }
            join([discard, reader]);
            assert!(table.times_freed() <= 1);
            assert_eq!(table.times_freed() == 1, table.slot.allocate(B));
        });
    }
}

/// A word of a table in memory, which may be changed during a write-back, and the same word in the
/// image.
struct SharedWord {
    memory: loom::sync::atomic::AtomicU64,
    image: Mutex<u64>,
}

impl SharedWord {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: loom::sync::atomic::AtomicU64::new(0),
            image: Mutex::new(0),
        })
    }

    fn change(&self, bit: u64) {
        self.memory.fetch_or(bit, Ordering::Relaxed);
    }

    fn write_back(&self, table: &Table, failed: bool) {
        let structure = table.lock();
        let begun = table.slot.begin_write();
        drop(structure);
        if !begun {
            return;
        }
        let word = self.memory.load(Ordering::Relaxed);
        if !failed {
            *self.image.lock().unwrap() = word;
        }
        let structure = table.lock();
        table.slot.end_write(failed);
        drop(structure);
    }
}

/// Two changes race with two write-backs, one of which may fail. If the image lacks a change, the
/// table is still dirty.
fn mark_during_write_back(failed: bool) {
    explore(None, move || {
        let table = Table::pinned(A);
        let contents = SharedWord::new();
        contents.change(1);
        assert!(table.slot.mark_dirty());
        let marker = spawn(&table, {
            let contents = contents.clone();
            move |t| {
                contents.change(2);
                assert!(t.slot.mark_dirty());
            }
        });
        let writer = spawn(&table, {
            let contents = contents.clone();
            move |t| contents.write_back(t, failed)
        });
        contents.write_back(&table, false);
        join([marker, writer]);
        let image = *contents.image.lock().unwrap();
        assert!(
            table.slot.word().is_dirty() || image == 3,
            "a change was lost"
        );
    });
}

#[test]
fn change_missed_by_write_back_leaves_table_dirty() {
    mark_during_write_back(false);
}

#[test]
fn failed_write_back_leaves_table_dirty() {
    mark_during_write_back(true);
}

#[test]
fn dirty_table_is_never_evicted_cleaned_or_moved() {
    for remove in [Slot::drop_clean, Slot::begin_move, |slot: &Slot| {
        slot.evict_for(B)
    }] {
        explore(None, move || {
            let table = Table::resident(A);
            let changed = Arc::new(AtomicUsize::new(0));
            let writer = spawn(&table, {
                let changed = changed.clone();
                move |t| {
                    if t.slot.offset() == A && t.slot.pin(&t.spilled_hits) {
                        assert!(t.slot.mark_dirty());
                        t.put();
                        changed.store(1, Relaxed);
                    }
                }
            });
            let structure = table.lock();
            let dropped = remove(&table.slot).is_some();
            drop(structure);
            join([writer]);
            let changed = changed.load(Relaxed) == 1;
            assert!(!(dropped && changed), "a dirty table was dropped");
            assert_eq!(changed, table.slot.word().is_dirty());
        });
    }
}

/// A failed flush marks the table dirty again if it is still there: against whatever removes it,
/// and a thread that pins it and marks it dirty.
#[test]
fn table_made_dirty_by_a_failed_flush_is_never_dropped() {
    for remove in [Slot::drop_clean, Slot::begin_move, |slot: &Slot| {
        slot.evict_for(B)
    }] {
        for marks in [false, true] {
            explore(Some(3), move || {
                let table = Table::resident(A);
                let version = table.slot.word().version();
                let redirtied = Arc::new(AtomicUsize::new(0));
                let flush = spawn(&table, {
                    let redirtied = redirtied.clone();
                    move |t| {
                        let structure = t.lock();
                        let found = t.slot.redirty(version).is_some();
                        drop(structure);
                        redirtied.store(usize::from(found), Relaxed);
                    }
                });
                let user = spawn(&table, move |t| {
                    if t.slot.offset() == A && t.slot.pin(&t.spilled_hits) {
                        if marks {
                            assert!(t.slot.mark_dirty());
                        }
                        t.put();
                    }
                });
                let structure = table.lock();
                let dropped = remove(&table.slot).is_some();
                drop(structure);
                join([flush, user]);
                let redirtied = redirtied.load(Relaxed) == 1;
                assert_ne!(dropped, redirtied, "dropped although dirty, or neither");
                let word = table.slot.word();
                assert_eq!((word.is_dirty(), word.pins()), (redirtied, 0));
            });
        }
    }
}

#[test]
fn discarded_table_is_not_made_dirty_by_a_failed_flush() {
    explore(None, || {
        let table = Table::pinned(A);
        let version = table.slot.word().version();
        let flush = spawn(&table, move |t| {
            let structure = t.lock();
            let _ = t.slot.redirty(version);
            drop(structure);
        });
        let discard = spawn(&table, Table::discard);
        table.put();
        join([flush, discard]);
        assert_eq!(table.times_freed(), 1);
        assert!(table.slot.allocate(B));
        assert!(!table.slot.word().is_dirty());
        // The next table in the slot is another one.
        assert!(table.slot.redirty(version).is_none());
    });
}

/// A failed flush finds the table in the middle of a write-back, or dirty, or clean: it is dirty
/// afterwards, and a change that the image lacks keeps it dirty.
#[test]
fn failed_flush_during_write_back_leaves_table_dirty() {
    explore(None, || {
        let table = Table::pinned(A);
        let version = table.slot.word().version();
        let contents = SharedWord::new();
        contents.change(1);
        assert!(table.slot.mark_dirty());
        let flush = spawn(&table, move |t| {
            let structure = t.lock();
            assert!(t.slot.redirty(version).is_some());
            drop(structure);
        });
        let writer = spawn(&table, {
            let contents = contents.clone();
            move |t| contents.write_back(t, false)
        });
        contents.change(2);
        assert!(table.slot.mark_dirty());
        join([flush, writer]);
        let image = *contents.image.lock().unwrap();
        assert!(
            table.slot.word().is_dirty() || image == 3,
            "a change was lost"
        );
    });
}

/// A slot and the dirty set. A marking thread and the holder of the structure lock change both.
struct SlotAndDirtySet {
    table: Arc<Table>,
    groups: [Group; 1],
    dirty: DirtySet,
}

impl SlotAndDirtySet {
    /// Slot 0 is pinned and clean. Either its bit is still set, or only its group's bit in the
    /// summary.
    fn stale(bit: bool) -> Arc<Self> {
        let set = Self {
            table: Table::pinned(A),
            groups: [Group::default()],
            dirty: DirtySet::new(&mut Arena::new(DirtySet::bytes(1)).unwrap(), 1),
        };
        set.dirty.insert(&set.groups, 0);
        if !bit {
            set.dirty.remove(&set.groups, 0);
        }
        Arc::new(set)
    }

    fn mark_dirty(&self) {
        assert!(self.table.slot.mark_dirty());
        self.dirty.insert(&self.groups, 0);
    }

    /// Claims the slot as a flush does for each slot on its list.
    fn claim(&self) -> bool {
        let structure = self.table.lock();
        let slot = &self.table.slot;
        let begin_write = || slot.begin_write();
        let is_dirty = || slot.is_dirty_seq_cst();
        let begun = self
            .dirty
            .claim_for_write(&self.groups, 0, begin_write, is_dirty);
        drop(structure);
        begun
    }

    /// Lists the dirty slots as a flush does.
    fn list(&self) -> Vec<u32> {
        let structure = self.table.lock();
        let mut listed = Vec::new();
        self.dirty.for_each(&self.groups, |slot| {
            if self.table.slot.word().is_dirty() {
                listed.push(slot);
            } else {
                let is_dirty = || self.table.slot.is_dirty_seq_cst();
                self.dirty.clear_stale(&self.groups, slot, is_dirty);
            }
        });
        drop(structure);
        listed
    }
}

/// A flush after `mark_dirty` returned lists the table, even if a concurrent flush did not.
fn marked_is_listed(bit: bool) {
    explore(None, move || {
        let set = SlotAndDirtySet::stale(bit);
        let marker = spawn(&set, SlotAndDirtySet::mark_dirty);
        set.list();
        join([marker]);
        assert_eq!(set.list(), [0], "a dirty table is not listed");
    });
}

#[test]
fn mark_racing_clear_of_stale_bit_is_listed() {
    marked_is_listed(true);
}

#[test]
fn mark_racing_sweep_of_stale_summary_is_listed() {
    marked_is_listed(false);
}

/// A flush has listed the table, but another flush has written it meanwhile. The claim fails unless
/// the table is marked again.
#[test]
fn mark_racing_failed_claim_is_listed() {
    explore(None, || {
        let set = SlotAndDirtySet::stale(true);
        let marker = spawn(&set, SlotAndDirtySet::mark_dirty);
        let claimed = set.claim();
        join([marker]);
        assert!(claimed || set.list() == [0], "a dirty table is not listed");
    });
}
