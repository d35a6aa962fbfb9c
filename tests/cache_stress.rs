// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several threads run all operations concurrently, for a bounded number of steps. No byte is
//! wrong, no change is lost, every waiter is woken, and only errors of the contract are returned.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use qcow2cache::cache::Cache;
use qcow2cache::error::Errno;
use support::{
    Io, Rng, SMALL_TABLE as SIZE, TestStorage, cache_on, empty, flush, get, get_empty,
    get_unlocked, lock, pattern, set_dependency, small_cache, spin, with_timeout,
};

#[test]
fn unlocked_pins_never_make_locked_get_fail() {
    with_timeout(|| {
        const TABLES: u64 = 40;
        for (tables, reserved) in [(2, 1), (4, 2), (70, 1)] {
            let (_storage, cache) = small_cache(tables, reserved);
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
                                    // Unpins all but at most one table. The next gets fill the
                                    // cache again.
                                    held.truncate(rng.below(2) as usize);
                                }
                            }
                        }
                    });
                }
                let mut rng = Rng::new(99);
                for _ in 0..6000 {
                    let offset = |rng: &mut Rng| (rng.below(TABLES) + 1) * SIZE;
                    // One request may pin as many tables as slots are reserved.
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
    with_timeout(|| {
        let (_storage, cache) = small_cache(2, 1);
        // The ordinary slot is pinned. The reserved one holds a table that unlocked callers keep
        // asking for.
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
                        "{error:?} in round {round}: one slot is reserved, no locked pin exists"
                    );
                }
            }
            done.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn read_copies_right_table_during_evictions() {
    with_timeout(|| {
        // A few more tables than slots: most are resident, and each is evicted now and then.
        const TABLES: u64 = 9;
        let (storage, cache) = small_cache(6, 1);
        // No thread discards here, so no table may be loaded twice at the same time.
        let loading = Mutex::new(BTreeSet::new());
        storage.set_hook(move |_, io| {
            let Io::Read { offset, .. } = io else {
                return Ok(());
            };
            assert!(
                lock(&loading).insert(offset),
                "{offset:#x} is loaded twice at the same time"
            );
            std::thread::yield_now();
            lock(&loading).remove(&offset);
            Ok(())
        });
        // The copying threads find tables from the start, however late the other threads run.
        (1..=TABLES).for_each(|n| drop(get(&cache, n * SIZE).unwrap()));
        let copied = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seed in 1..=2 {
                let (cache, copied) = (&cache, &copied);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for _ in 0..60_000 {
                        let offset = (rng.below(TABLES) + 1) * SIZE;
                        // Copies the whole table: long enough for it to be evicted meanwhile.
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
                            Err(error) => panic!("{error:?}: at most two of six slots are pinned"),
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

/// The last value of each changed table, as the threads know it. Its mutex is the state lock.
type Shadow = Mutex<BTreeMap<u64, u64>>;

const STRESS_TABLES: u64 = 24;

/// One request that holds the state lock. `n` differs in each call and becomes the new value.
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
    let offset = which * (1 << 16) + (rng.below(STRESS_TABLES) + 1) * SIZE;
    match rng.below(40) {
        0 => flush(cache).unwrap(),
        1 => set_dependency(cache, other).unwrap(),
        2 => cache.depends_on_flush().unwrap(),
        3 => {
            // The cluster is freed and allocated again: the old contents do not matter any more.
            cache.discard_offset(offset).unwrap();
            let pinned = get_empty(cache, offset).unwrap();
            // An unlocked get may have loaded it again meanwhile. Then it holds what storage holds,
            // not the old contents.
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

/// One request without the state lock. Words other than the first never change, except while a
/// table is created again.
fn unlocked_step(caches: &[Arc<Cache>; 2], rng: &mut Rng) {
    let which = rng.below(2);
    let cache = &caches[which as usize];
    let offset = which * (1 << 16) + (rng.below(STRESS_TABLES) + 1) * SIZE;
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
    with_timeout(|| {
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
            empty(cache).unwrap();
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
    with_timeout(|| {
        let (storage, cache) = small_cache(2, 0);
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
                            // Two other threads pin the two slots.
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
        empty(&cache).unwrap();
    });
}

#[test]
fn get_succeeds_while_memory_is_released() {
    with_timeout(|| {
        // One slot and a table of the largest size: releasing its memory takes a while, during
        // which no slot is available.
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
                let got = get_empty(&cache, offset).map(|p| p.load(0));
                if got != Ok(0) {
                    done.store(true, Ordering::Relaxed);
                    panic!("{got:?} in round {round}");
                }
                // Once the table is dropped, its memory is released. The next get comes at a random
                // moment of that.
                while cache.stats().resident_tables > 0 {
                    std::thread::yield_now();
                }
                spin(rng.below(1500));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(cache.stats().cleaned > 0);
    });
}
