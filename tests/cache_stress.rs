// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several threads at everything at once, for a bounded number of steps: no wrong byte, nothing lost, nobody forgotten, and no
//! error but those that the contract has.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use qcow2cache::cache::Cache;
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use support::{Io, Rng, TestStorage, cache_on, flush, get, get_unlocked, lock, pattern, watched};

const SIZE: u64 = 512;

fn new(tables: usize, reserved: usize) -> (Arc<TestStorage>, Arc<Cache>) {
    let storage = Arc::new(TestStorage::new(1 << 20));
    let cache = cache_on(&storage, tables, SIZE as usize, reserved);
    (storage, cache)
}

#[test]
fn unlocked_pins_never_make_locked_get_fail() {
    watched(|| {
        const TABLES: u64 = 40;
        for (tables, reserved) in [(2, 1), (4, 2), (70, 1)] {
            let (_storage, cache) = new(tables, reserved);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for seed in 1..=3 {
                    let (cache, done) = (&cache, &done);
                    scope.spawn(move || {
                        let mut rng = Rng::new(seed);
                        let mut held = Vec::new();
                        while !done.load(Ordering::Relaxed) {
                            let offset = (rng.below(TABLES) + 1) * SIZE;
                            match get_unlocked(cache, offset) {
                                Ok(pinned) => {
                                    assert_eq!(pinned.load(0), pattern(offset));
                                    held.push(pinned);
                                }
                                Err(error) => {
                                    assert_eq!(error, Errno::AGAIN);
                                    // Nearly everything goes: what follows fills the cache again.
                                    held.truncate(rng.below(2) as usize);
                                }
                            }
                        }
                    });
                }
                let mut rng = Rng::new(99);
                for _ in 0..6000 {
                    let offset = |rng: &mut Rng| (rng.below(TABLES) + 1) * SIZE;
                    // One request may use as many as are reserved, at once.
                    let pins: Vec<_> = (0..reserved)
                        .map(|_| get(&cache, offset(&mut rng)))
                        .collect();
                    let failed = pins
                        .iter()
                        .filter_map(|pinned| pinned.as_ref().err())
                        .count();
                    if failed > 0 {
                        done.store(true, Ordering::Relaxed);
                        panic!(
                            "{tables} tables, {reserved} reserved: {:?}",
                            pins.iter().map(|p| p.as_ref().err()).collect::<Vec<_>>()
                        );
                    }
                }
                done.store(true, Ordering::Relaxed);
            });
        }
    });
}

#[test]
fn refused_unlocked_get_never_pins_a_slot() {
    watched(|| {
        let (_storage, cache) = new(2, 1);
        // The ordinary slot is pinned, the reserved one holds a table that unlocked callers want all the time.
        let _ordinary = get_unlocked(&cache, SIZE).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        for n in [2, 3] {
                            assert_eq!(get_unlocked(&cache, n * SIZE).err(), Some(Errno::AGAIN));
                        }
                    }
                });
            }
            for round in 0..30_000 {
                let error = get(&cache, (2 + round % 2) * SIZE).err();
                if error.is_some() {
                    done.store(true, Ordering::Relaxed);
                    panic!(
                        "{error:?} in round {round}: no locked get pins anything, one slot is reserved"
                    );
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn read_copies_right_table_during_evictions() {
    watched(|| {
        // A few more than slots: most are resident, and all of them come and go.
        const TABLES: u64 = 9;
        let (storage, cache) = new(6, 1);
        // Nobody discards here, so that two loads of one table at once would be one too many.
        let loading = Mutex::new(BTreeSet::new());
        storage.set_hook(move |_, io| {
            let Io::Read { offset, .. } = io else {
                return Ok(());
            };
            assert!(
                lock(&loading).insert(offset),
                "{offset:#x} is loaded twice at once"
            );
            std::thread::yield_now();
            lock(&loading).remove(&offset);
            Ok(())
        });
        // Whoever copies has something to copy from the beginning, however late the others come.
        (1..=TABLES).for_each(|n| drop(get(&cache, n * SIZE).unwrap()));
        let copied = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seed in 1..=2 {
                let (cache, copied) = (&cache, &copied);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for _ in 0..60_000 {
                        let offset = (rng.below(TABLES) + 1) * SIZE;
                        // The whole table: long enough for it to go in the middle.
                        let mut buf = [0; SIZE as usize];
                        match cache.read(offset, 0, &mut buf) {
                            Ok(()) => {
                                let words = buf.chunks_exact(8).zip(0_u64..);
                                for (word, n) in words {
                                    assert_eq!(word, pattern(offset + n * 8).to_ne_bytes());
                                }
                                copied.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) => assert_eq!(error, Errno::AGAIN),
                        }
                    }
                });
            }
            for seed in 3..=4 {
                let cache = &cache;
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for _ in 0..15_000 {
                        let offset = (rng.below(TABLES) + 1) * SIZE;
                        match get_unlocked(cache, offset).or_else(|_| get(cache, offset)) {
                            Ok(pinned) => assert_eq!(pinned.load(64), pattern(offset + 64)),
                            Err(error) => panic!("{error:?}: two threads pin two tables of six"),
                        }
                        if rng.below(50) == 0 {
                            cache.clean_unused();
                        }
                    }
                });
            }
        });
        assert!(copied.load(Ordering::Relaxed) > 0);
        assert_eq!(cache.stats().pinned_tables, 0);
    });
}

/// What the storm's threads know: the last value of each table, under the state lock.
type Shadow = Mutex<BTreeMap<u64, u64>>;

const STORM_TABLES: u64 = 24;

/// One request that holds the state lock. `n` makes every value new.
fn locked_step(
    storage: &TestStorage,
    caches: &[Arc<Cache>; 2],
    shadow: &Shadow,
    rng: &mut Rng,
    n: u64,
) {
    let mut shadow = lock(shadow);
    let which = rng.below(2);
    let (cache, other) = (&caches[which as usize], &caches[1 - which as usize]);
    let offset = which * (1 << 16) + (rng.below(STORM_TABLES) + 1) * SIZE;
    match rng.below(40) {
        0 => flush(cache).unwrap(),
        1 => block_on(cache.host(), &[], cache.set_dependency(other)).unwrap(),
        2 => cache.depends_on_flush().unwrap(),
        3 => {
            // The cluster is freed and used anew: what the old table held does not matter any more.
            cache.discard_offset(offset).unwrap();
            let pinned = block_on(cache.host(), &[], cache.get_empty(offset)).unwrap();
            // Somebody without the lock may have loaded it again meanwhile: then it comes as storage has it, not as it was.
            let found = pinned.load(0);
            assert!(found == 0 || found == storage.word(offset), "{found}");
            pinned.store(0, 0).unwrap();
            for at in (8..SIZE).step_by(8) {
                pinned.store(at as usize, pattern(offset + at)).unwrap();
            }
            pinned.mark_dirty().unwrap();
            shadow.insert(offset, 0);
        }
        _ => {
            let pinned = get(cache, offset).unwrap();
            let expected = shadow
                .get(&offset)
                .copied()
                .unwrap_or_else(|| pattern(offset));
            assert_eq!(pinned.load(0), expected, "{offset:#x}");
            assert_eq!(pinned.load(8), pattern(offset + 8));
            pinned.store(0, n).unwrap();
            pinned.mark_dirty().unwrap();
            shadow.insert(offset, n);
        }
    }
    drop(shadow);
}

/// One request without the state lock: words other than the first never change, but when a table is made anew.
fn unlocked_step(caches: &[Arc<Cache>; 2], rng: &mut Rng) {
    let which = rng.below(2);
    let cache = &caches[which as usize];
    let offset = which * (1 << 16) + (rng.below(STORM_TABLES) + 1) * SIZE;
    let at = (rng.below(SIZE / 8 - 1) + 1) * 8;
    let word = match rng.below(4) {
        0 => {
            cache.clean_unused();
            return;
        }
        1 => cache.try_get(offset).map(|pinned| pinned.load(at as usize)),
        2 => {
            let mut buf = [0; 8];
            cache
                .read(offset, at as usize, &mut buf)
                .map(|()| u64::from_ne_bytes(buf))
        }
        _ => get_unlocked(cache, offset).map(|pinned| pinned.load(at as usize)),
    };
    match word {
        Ok(word) => assert!(
            word == pattern(offset + at) || word == 0,
            "{offset:#x} + {at}: {word:#x}"
        ),
        Err(error) => assert_eq!(error, Errno::AGAIN),
    }
}

#[test]
fn concurrent_operations_lose_no_change() {
    watched(|| {
        let storage = Arc::new(TestStorage::new(1 << 18));
        let caches = [cache_on(&storage, 5, 512, 2), cache_on(&storage, 9, 512, 2)];
        let shadow = Shadow::default();
        std::thread::scope(|scope| {
            for seed in 1..=4_u64 {
                let (storage, caches, shadow) = (&storage, &caches, &shadow);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for n in 0..4000 {
                        if seed % 2 == 0 {
                            locked_step(storage, caches, shadow, &mut rng, n * 8 + seed);
                        } else {
                            for _ in 0..3 {
                                unlocked_step(caches, &mut rng);
                            }
                        }
                    }
                });
            }
        });
        for cache in &caches {
            block_on(cache.host(), &[], cache.empty()).unwrap();
            assert_eq!(cache.stats().resident_tables, 0);
        }
        for (offset, value) in lock(&shadow).iter() {
            assert_eq!(storage.word(*offset), *value, "{offset:#x}");
            assert_eq!(
                storage.word(*offset + 8),
                pattern(*offset + 8),
                "{offset:#x}"
            );
        }
    });
}

#[test]
fn waiters_for_any_slot_are_all_woken() {
    watched(|| {
        let (storage, cache) = new(2, 0);
        storage.set_hook(|_, _| {
            std::thread::yield_now();
            Ok(())
        });
        let served = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seed in 1..=4 {
                let (cache, served) = (&cache, &served);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for n in 0..4000 {
                        let offset = (rng.below(8) + 1) * SIZE;
                        match get(cache, offset) {
                            Ok(pinned) => {
                                assert_eq!(pinned.load(8), pattern(offset + 8));
                                if n % 3 == 0 {
                                    pinned.mark_dirty().unwrap();
                                }
                                served.fetch_add(1, Ordering::Relaxed);
                            }
                            // Two of the others hold the two slots.
                            Err(error) => assert_eq!(error, Errno::BUSY),
                        }
                        if n % 7 == 0 {
                            cache.clean_unused();
                        }
                    }
                });
            }
        });
        assert!(served.load(Ordering::Relaxed) > 4000);
        block_on(cache.host(), &[], cache.empty()).unwrap();
    });
}

#[test]
fn get_succeeds_while_memory_is_released() {
    watched(|| {
        // One slot, and a table as large as they come: giving it back takes a while, in which there is no slot at all.
        const LARGE: usize = 2 << 20;
        let storage = Arc::new(TestStorage::new(512));
        let cache = cache_on(&storage, 1, LARGE, 0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    cache.clean_unused();
                }
            });
            let mut rng = Rng::new(5);
            for round in 0..300_u64 {
                let offset = (round % 3 + 1) * LARGE as u64;
                let got = block_on(cache.host(), &[], cache.get_empty(offset)).map(|p| p.load(0));
                if got != Ok(0) {
                    done.store(true, Ordering::Relaxed);
                    panic!("{got:?} in round {round}");
                }
                // Once it has been dropped, its memory is given back; the next get comes somewhere in there.
                while cache.stats().resident_tables > 0 {
                    std::thread::yield_now();
                }
                for _ in 0..rng.below(1500) {
                    std::hint::spin_loop();
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(cache.stats().cleaned > 0);
    });
}
