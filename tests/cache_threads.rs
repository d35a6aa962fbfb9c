// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache with several threads: which calls wait for which, and what happens during a load, a
//! write or a discard.
//!
//! No test infers from elapsed time that a call waits. Waits are futures polled by hand, and a
//! pause point holds a thread inside its I/O.

mod support;

use std::sync::{Arc, Barrier};

use qcow2cache::cache::Cache;
use qcow2cache::error::Errno;
use support::{
    Io, Latch, ManualPoll, PausePoint, SMALL_TABLE as SIZE, TestStorage, cache_on, edit, flush,
    get, get_empty, get_unlocked, lock, pattern, set_dependency, small_cache, with_timeout, write,
};

#[test]
fn concurrent_gets_load_table_once() {
    with_timeout(|| {
        let (storage, cache) = small_cache(4, 0);
        let pause = PausePoint::in_storage(&storage, Io::is_read);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| get(&cache, SIZE).unwrap().load(8));
            pause.wait_until_reached();
            let mut locked = ManualPoll::new(cache.get(SIZE));
            let mut empty = ManualPoll::new(cache.get_empty(SIZE));
            let mut unlocked = ManualPoll::new(cache.get_unlocked(SIZE));
            assert!(locked.poll().is_none() && empty.poll().is_none() && unlocked.poll().is_none());
            assert_eq!(cache.try_get(SIZE).err(), Some(Errno::AGAIN));
            assert_eq!(cache.read(SIZE, 0, &mut [0; 8]), Err(Errno::AGAIN));
            assert_eq!(cache.table_at(SIZE), Ok(None));
            pause.resume();
            assert_eq!(first.join().unwrap(), pattern(SIZE + 8));
            for mut waiter in [locked, empty, unlocked] {
                assert!(waiter.wakes() > 0);
                assert_eq!(waiter.poll().unwrap().unwrap().load(8), pattern(SIZE + 8));
            }
        });
        assert_eq!(storage.log_len(), 1);
        assert_eq!(cache.stats().loads, 1);
    });
}

#[test]
fn different_tables_load_in_parallel() {
    with_timeout(|| {
        const THREADS: u64 = 4;
        let (storage, cache) = small_cache(THREADS as usize + 1, 1);
        let barrier = Barrier::new(THREADS as usize);
        storage.set_hook(move |_, _| {
            // Passed only when all threads are inside storage at the same time.
            barrier.wait();
            Ok(())
        });
        std::thread::scope(|scope| {
            for n in 1..=THREADS {
                let cache = &cache;
                scope.spawn(move || {
                    let pinned = if n % 2 == 0 {
                        get(cache, n * SIZE)
                    } else {
                        get_unlocked(cache, n * SIZE)
                    };
                    assert_eq!(pinned.unwrap().load(0), pattern(n * SIZE));
                });
            }
        });
    });
}

#[test]
fn hit_does_not_wait_for_loads_or_writes() {
    with_timeout(|| {
        let (storage, cache) = small_cache(3, 0);
        edit(&cache, SIZE, 1).unwrap();
        drop(get(&cache, 2 * SIZE).unwrap());
        let (reading, writing, go_on) = (Latch::default(), Latch::default(), Latch::default());
        storage.set_hook({
            let (reading, writing, go_on) = (reading.clone(), writing.clone(), go_on.clone());
            move |_, io| {
                match io {
                    Io::Read { .. } => reading.open(),
                    Io::Write { .. } => writing.open(),
                    _ => return Ok(()),
                }
                go_on.wait();
                Ok(())
            }
        });
        std::thread::scope(|scope| {
            scope.spawn(|| flush(&cache).unwrap());
            scope.spawn(|| drop(get(&cache, 3 * SIZE).unwrap()));
            reading.wait();
            writing.wait();
            // A hit on the table that is being written does not wait either.
            assert_eq!(
                ManualPoll::new(cache.get(SIZE))
                    .poll()
                    .unwrap()
                    .unwrap()
                    .load(0),
                1
            );
            assert_eq!(
                ManualPoll::new(cache.get(2 * SIZE))
                    .poll()
                    .unwrap()
                    .unwrap()
                    .load(0),
                pattern(2 * SIZE)
            );
            assert_eq!(cache.try_get(SIZE).unwrap().load(0), 1);
            go_on.open();
        });
    });
}

#[test]
fn get_returns_ebusy_only_when_all_slots_are_pinned() {
    with_timeout(|| {
        let (storage, cache) = small_cache(2, 0);
        let pinned = get(&cache, SIZE).unwrap();
        let pause = PausePoint::in_storage(&storage, Io::is_read);
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| get(&cache, 2 * SIZE).unwrap());
            pause.wait_until_reached();
            let mut waiting = ManualPoll::new(cache.get(3 * SIZE));
            assert!(waiting.poll().is_none(), "a loading slot is not pinned yet");
            assert_eq!(
                ManualPoll::new(cache.get_unlocked(3 * SIZE))
                    .poll()
                    .unwrap()
                    .err(),
                Some(Errno::AGAIN)
            );
            pause.resume();
            let loaded = loader.join().unwrap();
            assert_eq!(waiting.poll().unwrap().err(), Some(Errno::BUSY));
            assert_eq!(get(&cache, 3 * SIZE).err(), Some(Errno::BUSY));
            drop(loaded);
            assert_eq!(get(&cache, 3 * SIZE).unwrap().load(0), pattern(3 * SIZE));
        });
        drop(pinned);
    });
}

#[test]
fn locked_get_waits_for_slot_being_written() {
    with_timeout(|| {
        let (storage, cache) = small_cache(1, 0);
        edit(&cache, SIZE, 7).unwrap();
        let pause = PausePoint::in_storage(&storage, Io::is_write);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| flush(&cache));
            pause.wait_until_reached();
            let mut waiting = ManualPoll::new(cache.get(2 * SIZE));
            assert!(waiting.poll().is_none());
            pause.resume();
            assert_eq!(flusher.join().unwrap(), Ok(()));
            assert!(waiting.wakes() > 0);
            assert_eq!(waiting.poll().unwrap().unwrap().load(0), pattern(2 * SIZE));
        });
        assert_eq!(storage.word(SIZE), 7);
    });
}

#[test]
fn discarded_table_stays_readable_until_last_unpin() {
    let (storage, cache) = small_cache(3, 0);
    type Discard = fn(&Cache) -> Result<(), Errno>;
    let discards: [Discard; 3] = [
        |cache| cache.discard_offset(SIZE),
        |cache| cache.discard_range(SIZE + 100, 1),
        |cache| {
            let table = cache.table_at(SIZE)?.ok_or(Errno::SRCH)?;
            cache.discard_table(SIZE, table.as_ptr() as usize)
        },
    ];
    for (discard, round) in discards.iter().zip(1_u64..) {
        let reader = get(&cache, SIZE).unwrap();
        let old = reader.load(0);
        reader.store(0, !round).unwrap();
        reader.mark_dirty().unwrap();
        discard(&cache).unwrap();
        assert_eq!(cache.try_get(SIZE).err(), Some(Errno::AGAIN));
        assert_eq!(cache.read(SIZE, 0, &mut [0; 8]), Err(Errno::AGAIN));
        assert_eq!(cache.table_at(SIZE), Ok(None));
        assert_eq!(cache.stats().dirty_tables, 0);
        // The cluster gets new contents in storage. A new get sees them; the reader keeps the old
        // ones.
        assert_eq!(storage.word(SIZE), old);
        lock(&storage.disk)[SIZE as usize..][..8].copy_from_slice(&round.to_ne_bytes());
        let fresh = get(&cache, SIZE).unwrap();
        assert_eq!((fresh.load(0), reader.load(0)), (round, !round));
        assert_ne!(fresh.as_ptr(), reader.as_ptr());
        reader.mark_dirty().unwrap();
        assert_eq!(cache.stats().resident_tables, 2);
        drop(reader);
        assert_eq!(
            cache.stats().resident_tables,
            1,
            "the last unpin frees its slot"
        );
        drop(fresh);
        flush(&cache).unwrap();
        assert_eq!(storage.word(SIZE), round, "the discarded table was written");
        cache.discard_all().unwrap();
    }
}

#[test]
fn discard_range_takes_overlapping_tables_and_no_others() {
    let (_storage, cache) = small_cache(8, 0);
    // Ranges that begin or end at the border of a table, one byte before it, or one behind it.
    for (start, end, discarded) in [
        (2 * SIZE, 3 * SIZE, 2..3),
        (2 * SIZE, 3 * SIZE - 1, 2..3),
        (2 * SIZE, 3 * SIZE + 1, 2..4),
        (2 * SIZE - 1, 3 * SIZE, 1..3),
        (2 * SIZE + 1, 5 * SIZE, 2..5),
        (2 * SIZE, 2 * SIZE, 2..2),
    ] {
        for table in 1..7 {
            edit(&cache, table * SIZE, table).unwrap();
        }
        cache.discard_range(start, end - start).unwrap();
        for table in 1..7 {
            let resident = cache.table_at(table * SIZE).unwrap().is_some();
            let expected = !discarded.contains(&table);
            assert_eq!(resident, expected, "table {table} after {start}..{end}");
        }
    }
}

#[test]
fn discard_all_returns_ebusy_while_a_table_is_in_use() {
    with_timeout(|| {
        let (storage, cache) = small_cache(4, 0);
        edit(&cache, SIZE, 5).unwrap();
        let pinned = get(&cache, SIZE).unwrap();
        assert_eq!(cache.discard_all(), Err(Errno::BUSY), "pinned");
        drop(pinned);
        let pause = PausePoint::in_storage(&storage, Io::is_read);
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| get(&cache, 2 * SIZE).map(drop));
            pause.wait_until_reached();
            let discarded = cache.discard_all();
            pause.resume();
            loader.join().unwrap().unwrap();
            assert_eq!(discarded, Err(Errno::BUSY), "loading");
        });
        let pause = PausePoint::in_storage(&storage, Io::is_write);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| flush(&cache));
            pause.wait_until_reached();
            let discarded = cache.discard_all();
            pause.resume();
            assert_eq!(flusher.join().unwrap(), Ok(()));
            assert_eq!(discarded, Err(Errno::BUSY), "being written");
        });
        assert_eq!(cache.stats().resident_tables, 2, "nothing was discarded");
        cache.discard_all().unwrap();
        assert_eq!(cache.stats().resident_tables, 0);
    });
}

#[test]
fn table_discarded_during_load_is_loaded_again() {
    with_timeout(|| {
        let (storage, cache) = small_cache(2, 0);
        let pause = PausePoint::in_storage(&storage, Io::is_read);
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| get(&cache, SIZE).unwrap().load(0));
            pause.wait_until_reached();
            let mut waiter = ManualPoll::new(cache.get(SIZE));
            assert!(waiter.poll().is_none());
            cache.discard_offset(SIZE).unwrap();
            // The running load reads the old contents. They must not become the table.
            let mut fresh = ManualPoll::new(cache.get(SIZE));
            assert_eq!(fresh.poll().unwrap().unwrap().load(0), pattern(SIZE));
            edit(&cache, SIZE, 99).unwrap();
            pause.resume();
            assert_eq!(loader.join().unwrap(), 99);
            assert_eq!(waiter.poll().unwrap().unwrap().load(0), 99);
        });
        assert_eq!(cache.stats().resident_tables, 1);
        assert_eq!(cache.stats().loads + cache.stats().misses, 2 + 3);
        flush(&cache).unwrap();
        assert_eq!(storage.word(SIZE), 99);
    });
}

#[test]
fn table_discarded_during_write_is_dropped() {
    with_timeout(|| {
        let (storage, cache) = small_cache(2, 0);
        for pinned in [false, true] {
            edit(&cache, SIZE, 5).unwrap();
            let pause = PausePoint::in_storage(&storage, Io::is_write);
            std::thread::scope(|scope| {
                let flusher = scope.spawn(|| flush(&cache));
                pause.wait_until_reached();
                let reader = pinned.then(|| get(&cache, SIZE).unwrap());
                cache.discard_offset(SIZE).unwrap();
                assert_eq!(cache.table_at(SIZE), Ok(None));
                pause.resume();
                assert_eq!(flusher.join().unwrap(), Ok(()));
                assert_eq!(cache.stats().resident_tables, usize::from(pinned));
                drop(reader);
            });
            assert_eq!(cache.stats().resident_tables, 0);
            assert_eq!(cache.stats().dirty_tables, 0);
            cache.check_destroy().unwrap();
        }
    });
}

#[test]
fn table_dirtied_during_write_stays_dirty() {
    with_timeout(|| {
        let (storage, cache) = small_cache(2, 0);
        edit(&cache, SIZE, 1).unwrap();
        let pause = PausePoint::in_storage(&storage, Io::is_write);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| flush(&cache));
            pause.wait_until_reached();
            edit(&cache, SIZE, 2).unwrap();
            pause.resume();
            assert_eq!(flusher.join().unwrap(), Ok(()));
        });
        assert_eq!(cache.stats().dirty_tables, 1);
        assert_eq!(cache.check_destroy(), Err(Errno::NOTEMPTY));
        // The next write still finds it, and cleaning does not drop it.
        cache.clean_unused();
        cache.clean_unused();
        assert_eq!(get(&cache, SIZE).unwrap().load(0), 2);
        flush(&cache).unwrap();
        assert_eq!(storage.word(SIZE), 2);
        assert_eq!(cache.stats().dirty_tables, 0);
    });
}

#[test]
fn flush_dependency_set_during_flush_survives() {
    with_timeout(|| {
        for during_flush in [true, false] {
            let (storage, cache) = small_cache(2, 0);
            edit(&cache, SIZE, 1).unwrap();
            if !during_flush {
                cache.depends_on_flush().unwrap();
            }
            let pause = PausePoint::in_storage(&storage, |io| io == Io::Flush);
            std::thread::scope(|scope| {
                // Storage is flushed at the end of a flush, or before a write that depends on a
                // flush.
                let flusher = scope.spawn(|| {
                    if during_flush {
                        flush(&cache)
                    } else {
                        write(&cache)
                    }
                });
                pause.wait_until_reached();
                cache.depends_on_flush().unwrap();
                pause.resume();
                assert_eq!(flusher.join().unwrap(), Ok(()));
            });
            let from = storage.log_len();
            edit(&cache, SIZE, 2).unwrap();
            write(&cache).unwrap();
            let log = storage.log_from(from);
            let flushed = log.iter().position(|io| *io == Io::Flush);
            let written = log.iter().position(|io| io.is_write());
            if during_flush {
                assert!(flushed.is_some() && flushed < written, "{log:?}");
            } else {
                // The write itself had to see the new dependency: storage was flushed twice before
                // it.
                assert_eq!(
                    storage
                        .log_from(0)
                        .iter()
                        .take_while(|io| !io.is_write())
                        .filter(|io| **io == Io::Flush)
                        .count(),
                    2
                );
                assert_eq!(flushed, None, "no dependency is left: {log:?}");
            }
            let from = storage.log_len();
            edit(&cache, SIZE, 3).unwrap();
            write(&cache).unwrap();
            assert!(
                !storage.log_from(from).contains(&Io::Flush),
                "a dependency is satisfied once"
            );
        }
    });
}

#[test]
fn flush_writes_table_moving_out_of_reserve() {
    with_timeout(|| {
        let (storage, cache) = small_cache(3, 1);
        edit(&cache, SIZE, 11).unwrap();
        drop(get(&cache, 9 * SIZE).unwrap());
        let both = (get(&cache, SIZE).unwrap(), get(&cache, 9 * SIZE).unwrap());
        // Both ordinary slots are pinned, so this table goes to the reserve.
        edit(&cache, 5 * SIZE, 55).unwrap();
        drop(both);
        let pause = PausePoint::in_storage(&storage, Io::is_write);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| flush(&cache));
            pause.wait_until_reached();
            // While the first table is written, an unlocked caller gets the second one.
            let moved = get_unlocked(&cache, 5 * SIZE).map(|pinned| pinned.load(0));
            assert!(matches!(moved, Ok(55) | Err(Errno::AGAIN)), "{moved:?}");
            pause.resume();
            assert_eq!(flusher.join().unwrap(), Ok(()));
        });
        assert_eq!(storage.word(SIZE), 11);
        assert_eq!(
            storage.word(5 * SIZE),
            55,
            "flush returned success without this table"
        );
        assert_eq!(cache.stats().dirty_tables, 0);
    });
}

/// How many pages of `[address, address + bytes)` the kernel reports as resident.
fn pages_in_memory(address: usize, bytes: usize) -> usize {
    // SAFETY: sysconf only reads a system constant.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    let mut pages = vec![0_u8; bytes.div_ceil(page)];
    assert_eq!(address % page, 0);
    // SAFETY: the range is the cache's own mapping, and `pages` has one byte for each of its pages.
    let result = unsafe { libc::mincore(address as *mut libc::c_void, bytes, pages.as_mut_ptr()) };
    assert_eq!(result, 0);
    pages.iter().filter(|page| **page & 1 == 1).count()
}

#[test]
fn cleaning_releases_every_page() {
    for (tables, table_size) in [
        (4, 512),
        (8, 512),
        (21, 512),
        (3, 4096),
        (200, 1024),
        (2, 1 << 16),
    ] {
        let storage = Arc::new(TestStorage::new(1 << 20));
        let cache = cache_on(&storage, tables, table_size, 0);
        assert_eq!(cache.stats().resident_bytes, 0);
        let address = |n: usize| {
            let offset = (n * table_size) as u64;
            get_empty(&cache, offset).unwrap().as_ptr().as_ptr() as usize
        };
        let start = (1..=tables).map(address).min().unwrap();
        let bytes = tables * table_size;
        let pages = bytes.div_ceil(4096);
        assert_eq!(pages_in_memory(start, bytes), pages);
        assert!(cache.stats().resident_bytes >= bytes as u64);
        assert_eq!(
            cache.clean_unused(),
            0,
            "the first pass drops nothing: all tables were used before it"
        );
        assert_eq!(cache.clean_unused(), tables);
        assert_eq!(cache.stats().resident_bytes, 0);
        assert_eq!(
            pages_in_memory(start, bytes),
            0,
            "{tables} tables of {table_size}"
        );
    }
}

#[test]
fn cleaning_releases_memory_of_tables_on_probation() {
    // In a cache of this size, a table that evicts another one enters on probation.
    let (_storage, cache) = small_cache(64, 0);
    for _ in 0..2 {
        for table in 1..=192 {
            get(&cache, table * SIZE).unwrap();
        }
        cache.clean_unused();
        assert_eq!(cache.clean_unused(), 64);
        assert_eq!(cache.stats().resident_bytes, 0);
    }
}

#[test]
fn dependency_that_is_set_often_costs_no_memory() {
    let storage = Arc::new(TestStorage::new(64 << 10));
    let (l2, refcounts) = (cache_on(&storage, 2, 512, 0), cache_on(&storage, 2, 512, 0));
    let bytes = || l2.stats().metadata_bytes + refcounts.stats().metadata_bytes;
    let mut before = 0;
    for round in 0..1000 {
        edit(&l2, 512, round).unwrap();
        set_dependency(&l2, &refcounts).unwrap();
        flush(&l2).unwrap();
        if round == 3 {
            before = bytes();
        }
    }
    assert_eq!(bytes(), before);
}

/// A thread without the lock asks for a flush and changes a table while everything is discarded. If
/// the change survives, so does the request.
#[test]
fn discard_of_everything_keeps_newer_flush_request() {
    with_timeout(|| {
        const TABLES: u64 = 1900;
        let mut survived = 0;
        while survived < 20 {
            let storage = Arc::new(TestStorage::new(1 << 20));
            let cache = cache_on(&storage, TABLES as usize, 512, 0);
            for n in 1..=TABLES {
                drop(get(&cache, n * 512).unwrap());
            }
            let offset = TABLES * 512;
            std::thread::scope(|scope| {
                scope.spawn(|| cache.discard_range(0, u64::MAX).unwrap());
                while cache.try_get(offset).is_ok() {}
                cache.depends_on_flush().unwrap();
                let pinned = get_unlocked(&cache, offset).unwrap();
                pinned.store(0, 4).unwrap();
                pinned.mark_dirty().unwrap();
            });
            if cache.stats().dirty_tables == 0 {
                continue;
            }
            survived += 1;
            let from = storage.log_len();
            write(&cache).unwrap();
            assert_eq!(storage.log_from(from)[0], Io::Flush);
        }
    });
}
