// SPDX-License-Identifier: MIT OR Apache-2.0
//! Negative controls: wrong protocols in which loom must find the failure, each with a repaired
//! twin in which it must find none. A check that cannot fail proves nothing.
#![cfg(loom)]

mod model_checking;

use std::sync::Arc;

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU64, Ordering};
use model_checking::negative_controls::{Registration, Take, stop_by_interval, timer_against_stop};
use model_checking::timeline::event;
use model_checking::{assert_found, explore, thread};

#[test]
fn registering_after_unlock_loses_wake_up() {
    assert_found("deadlock", || {
        explore(None, || stop_by_interval(Registration::AfterUnlock));
    });
    explore(None, || stop_by_interval(Registration::UnderLock));
}

#[test]
fn unsynchronised_sleeper_field_wakes_twice() {
    assert_found("woken twice", || {
        explore(None, || timer_against_stop(Take::InTwoSteps));
    });
    explore(None, || timer_against_stop(Take::Atomically));
}

/// A minimal slot. `word` is 0 while the slot is free or claimed, else 1 + pins.
struct Slot {
    word: AtomicU64,
    offset: AtomicU64,
    table: AtomicU64,
}

const A: u64 = 0xA000;
const B: u64 = 0xB000;

impl Slot {
    fn with_a() -> Arc<Self> {
        Arc::new(Self {
            word: AtomicU64::new(1),
            offset: AtomicU64::new(A),
            table: AtomicU64::new(A),
        })
    }

    fn pin(&self) -> bool {
        let mut word = self.word.load(Ordering::Acquire);
        while word > 0 {
            match self
                .word
                .compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    fn put(&self) {
        self.word.fetch_sub(1, Ordering::Release);
    }

    fn table(&self) -> u64 {
        self.table.load(Ordering::Relaxed)
    }

    fn fill(&self, with: u64) {
        self.table.store(with, Ordering::Relaxed);
    }

    fn claim(&self) -> bool {
        let claimed = self
            .word
            .compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed);
        claimed.is_ok()
    }

    fn evict_for(&self, offset: u64) {
        if self.claim() {
            event("eviction", "claims the slot");
            self.offset.store(offset, Ordering::Relaxed);
            self.fill(offset);
            event("eviction", "the slot holds B");
            self.word.store(1, Ordering::Release);
        }
    }
}

fn hit_against_eviction(recheck: bool) {
    let slot = Slot::with_a();
    let eviction = thread::spawn({
        let slot = slot.clone();
        move || slot.evict_for(B)
    });
    if slot.offset.load(Ordering::Relaxed) == A {
        event("hit", "looks up A: this slot");
        if slot.pin() {
            event("hit", "pins the slot");
            if !recheck || slot.offset.load(Ordering::Relaxed) == A {
                let found = slot.table();
                event("hit", format!("reads table {found:#x}"));
                assert!(found == A, "a pin of the wrong table");
            }
            slot.put();
        }
    }
    eviction.join().unwrap();
}

#[test]
fn pin_without_recheck_returns_wrong_table() {
    assert_found("a pin of the wrong table", || {
        explore(None, || hit_against_eviction(false));
    });
    explore(None, || hit_against_eviction(true));
}

fn hit_against_cleaning(recheck: bool) {
    let slot = Slot::with_a();
    let cleaning = thread::spawn({
        let slot = slot.clone();
        move || {
            if slot.word.load(Ordering::Acquire) != 1 {
                return;
            }
            event("cleaning", "chooses A: nobody pins it");
            if recheck {
                if !slot.claim() {
                    return;
                }
            } else {
                slot.word.store(0, Ordering::Release);
            }
            event("cleaning", "drops A");
            slot.fill(0);
            event("cleaning", "gives its memory back");
        }
    });
    if slot.pin() {
        event("hit", "pins A");
        let found = slot.table();
        event("hit", format!("reads table {found:#x}"));
        assert!(found == A, "a pinned table was dropped");
        slot.put();
    }
    cleaning.join().unwrap();
}

#[test]
fn drop_without_pin_recheck_frees_pinned_table() {
    assert_found("a pinned table was dropped", || {
        explore(None, || hit_against_cleaning(false));
    });
    explore(None, || hit_against_cleaning(true));
}

/// A dirty flag, a table's word in memory, and the same word in the image.
struct Dirty {
    flag: AtomicU64,
    memory: AtomicU64,
    image: Mutex<u64>,
}

fn mark_against_write_back(always_read_modify_write: bool) {
    let table = Arc::new(Dirty {
        flag: AtomicU64::new(1),
        memory: AtomicU64::new(0),
        image: Mutex::new(0),
    });
    let write_back = thread::spawn({
        let table = table.clone();
        move || {
            table.flag.fetch_and(0, Ordering::AcqRel);
            event("write-back", "clears the dirty flag");
            let word = table.memory.load(Ordering::Relaxed);
            event("write-back", format!("writes {word}"));
            *table.image.lock().unwrap() = word;
        }
    });
    table.memory.store(7, Ordering::Relaxed);
    event("mark_dirty", "has changed the table to 7");
    if always_read_modify_write {
        table.flag.fetch_or(1, Ordering::AcqRel);
    } else if table.flag.load(Ordering::Acquire) == 0 {
        table.flag.fetch_or(1, Ordering::AcqRel);
        event("mark_dirty", "sets the flag");
    } else {
        event("mark_dirty", "sees the flag set, does nothing");
    }
    write_back.join().unwrap();
    let clean = table.flag.load(Ordering::Relaxed) == 0;
    let image = *table.image.lock().unwrap();
    assert!(!clean || image == 7, "a change was lost");
}

#[test]
fn mark_dirty_skipped_when_flag_is_set_loses_change() {
    assert_found("a change was lost", || {
        explore(None, || mark_against_write_back(false));
    });
    explore(None, || mark_against_write_back(true));
}
