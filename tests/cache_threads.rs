// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache under several threads: who waits for whom, what happens in the middle of a load, a write or a discard.
//!
//! No test guesses from time that somebody waits: waits are futures polled by hand, and what happens in the middle of I/O is
//! held there by latches.

mod support;

use std::sync::{Arc, Barrier};

use qcow2cache::cache::Cache;
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use support::{
    ByHand, Io, Latch, TestStorage, cache_on, edit, flush, get, get_unlocked, lock, pattern,
    watched,
};

const SIZE: u64 = 512;

fn new(tables: usize, reserved: usize) -> (Arc<TestStorage>, Arc<Cache>) {
    let storage = Arc::new(TestStorage::new(1 << 20));
    let cache = cache_on(&storage, tables, SIZE as usize, reserved);
    (storage, cache)
}

/// Stops storage inside the first call that matches, until told to go on.
struct Hold {
    inside: Latch,
    go_on: Latch,
}

impl Hold {
    fn new(storage: &TestStorage, matches: impl Fn(Io) -> bool + Send + Sync + 'static) -> Self {
        let (inside, go_on) = (Latch::default(), Latch::default());
        let hold = Self {
            inside: inside.clone(),
            go_on: go_on.clone(),
        };
        storage.set_hook(move |_, io| {
            if matches(io) && !inside.is_open() {
                inside.open();
                go_on.wait();
            }
            Ok(())
        });
        hold
    }
}

fn is_write(io: Io) -> bool {
    matches!(io, Io::Write { .. })
}

fn is_read(io: Io) -> bool {
    matches!(io, Io::Read { .. })
}

#[test]
fn concurrent_gets_load_table_once() {
    watched(|| {
        let (storage, cache) = new(4, 0);
        let hold = Hold::new(&storage, is_read);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| get(&cache, SIZE).unwrap().load(8));
            hold.inside.wait();
            let mut locked = ByHand::new(cache.get(SIZE));
            let mut empty = ByHand::new(cache.get_empty(SIZE));
            let mut unlocked = ByHand::new(cache.get_unlocked(SIZE));
            assert!(locked.poll().is_none() && empty.poll().is_none() && unlocked.poll().is_none());
            assert_eq!(cache.try_get(SIZE).err(), Some(Errno::AGAIN));
            assert_eq!(cache.read(SIZE, 0, &mut [0; 8]), Err(Errno::AGAIN));
            assert_eq!(cache.table_at(SIZE), Ok(None));
            hold.go_on.open();
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
    watched(|| {
        const THREADS: u64 = 4;
        let (storage, cache) = new(THREADS as usize + 1, 1);
        let barrier = Barrier::new(THREADS as usize);
        storage.set_hook(move |_, _| {
            // Passed only when all of them are in storage at once.
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
    watched(|| {
        let (storage, cache) = new(3, 0);
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
            // The one that is being written, too.
            assert_eq!(
                ByHand::new(cache.get(SIZE))
                    .poll()
                    .unwrap()
                    .unwrap()
                    .load(0),
                1
            );
            assert_eq!(
                ByHand::new(cache.get(2 * SIZE))
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
    watched(|| {
        let (storage, cache) = new(2, 0);
        let pinned = get(&cache, SIZE).unwrap();
        let hold = Hold::new(&storage, is_read);
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| get(&cache, 2 * SIZE).unwrap());
            hold.inside.wait();
            let mut waiting = ByHand::new(cache.get(3 * SIZE));
            assert!(
                waiting.poll().is_none(),
                "a slot that loads is not pinned yet"
            );
            assert_eq!(
                ByHand::new(cache.get_unlocked(3 * SIZE))
                    .poll()
                    .unwrap()
                    .err(),
                Some(Errno::AGAIN)
            );
            hold.go_on.open();
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
    watched(|| {
        let (storage, cache) = new(1, 0);
        edit(&cache, SIZE, 7).unwrap();
        let hold = Hold::new(&storage, is_write);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| flush(&cache));
            hold.inside.wait();
            let mut waiting = ByHand::new(cache.get(2 * SIZE));
            assert!(waiting.poll().is_none());
            hold.go_on.open();
            assert_eq!(flusher.join().unwrap(), Ok(()));
            assert!(waiting.wakes() > 0);
            assert_eq!(waiting.poll().unwrap().unwrap().load(0), pattern(2 * SIZE));
        });
        assert_eq!(storage.word(SIZE), 7);
    });
}

#[test]
fn discarded_table_stays_readable_until_last_unpin() {
    let (storage, cache) = new(3, 0);
    type Discard = fn(&Cache) -> Result<(), Errno>;
    let ways: [Discard; 3] = [
        |cache| cache.discard_offset(SIZE),
        |cache| cache.discard_range(SIZE + 100, 1),
        |cache| {
            let table = cache.table_at(SIZE)?.ok_or(Errno::SRCH)?;
            cache.discard_table(SIZE, table.as_ptr() as usize)
        },
    ];
    for (discard, round) in ways.iter().zip(1_u64..) {
        let reader = get(&cache, SIZE).unwrap();
        let old = reader.load(0);
        reader.store(0, !round).unwrap();
        reader.mark_dirty().unwrap();
        discard(&cache).unwrap();
        assert_eq!(cache.try_get(SIZE).err(), Some(Errno::AGAIN));
        assert_eq!(cache.read(SIZE, 0, &mut [0; 8]), Err(Errno::AGAIN));
        assert_eq!(cache.table_at(SIZE), Ok(None));
        assert_eq!(cache.stats().dirty_tables, 0);
        // Somebody writes the cluster otherwise; a get sees that, the reader what it had.
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
            "its slot is free at the last put"
        );
        drop(fresh);
        flush(&cache).unwrap();
        assert_eq!(storage.word(SIZE), round, "nobody wrote the discarded one");
        cache.discard_all().unwrap();
    }
}

#[test]
fn table_discarded_during_load_is_loaded_again() {
    watched(|| {
        let (storage, cache) = new(2, 0);
        let hold = Hold::new(&storage, is_read);
        std::thread::scope(|scope| {
            let loader = scope.spawn(|| get(&cache, SIZE).unwrap().load(0));
            hold.inside.wait();
            let mut waiter = ByHand::new(cache.get(SIZE));
            assert!(waiter.poll().is_none());
            cache.discard_offset(SIZE).unwrap();
            // The load under way reads what was there before; it must not become the table.
            let mut fresh = ByHand::new(cache.get(SIZE));
            assert_eq!(fresh.poll().unwrap().unwrap().load(0), pattern(SIZE));
            edit(&cache, SIZE, 99).unwrap();
            hold.go_on.open();
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
    watched(|| {
        let (storage, cache) = new(2, 0);
        for pinned in [false, true] {
            edit(&cache, SIZE, 5).unwrap();
            let hold = Hold::new(&storage, is_write);
            std::thread::scope(|scope| {
                let flusher = scope.spawn(|| flush(&cache));
                hold.inside.wait();
                let reader = pinned.then(|| get(&cache, SIZE).unwrap());
                cache.discard_offset(SIZE).unwrap();
                assert_eq!(cache.table_at(SIZE), Ok(None));
                hold.go_on.open();
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
    watched(|| {
        let (storage, cache) = new(2, 0);
        edit(&cache, SIZE, 1).unwrap();
        let hold = Hold::new(&storage, is_write);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| flush(&cache));
            hold.inside.wait();
            edit(&cache, SIZE, 2).unwrap();
            hold.go_on.open();
            assert_eq!(flusher.join().unwrap(), Ok(()));
        });
        assert_eq!(cache.stats().dirty_tables, 1);
        assert_eq!(cache.check_destroy(), Err(Errno::NOTEMPTY));
        // It is still found by the next write, and not dropped by whatever drops clean tables.
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
    watched(|| {
        for in_a_flush_of_its_own in [true, false] {
            let (storage, cache) = new(2, 0);
            edit(&cache, SIZE, 1).unwrap();
            if !in_a_flush_of_its_own {
                cache.depends_on_flush().unwrap();
            }
            let hold = Hold::new(&storage, |io| io == Io::Flush);
            std::thread::scope(|scope| {
                // The flush at the end of a flush, or the one that a write owes.
                let flusher = scope.spawn(|| {
                    if in_a_flush_of_its_own {
                        flush(&cache)
                    } else {
                        block_on(cache.host(), &[], cache.write())
                    }
                });
                hold.inside.wait();
                cache.depends_on_flush().unwrap();
                hold.go_on.open();
                assert_eq!(flusher.join().unwrap(), Ok(()));
            });
            let from = storage.log_len();
            edit(&cache, SIZE, 2).unwrap();
            block_on(cache.host(), &[], cache.write()).unwrap();
            let log = storage.log_from(from);
            let flushed = log.iter().position(|io| *io == Io::Flush);
            let written = log.iter().position(|io| is_write(*io));
            if in_a_flush_of_its_own {
                assert!(flushed.is_some() && flushed < written, "{log:?}");
            } else {
                // The write itself had to see the new one: storage was flushed twice before it.
                assert_eq!(
                    storage
                        .log_from(0)
                        .iter()
                        .take_while(|io| !is_write(**io))
                        .filter(|io| **io == Io::Flush)
                        .count(),
                    2
                );
                assert_eq!(flushed, None, "and nothing is owed now: {log:?}");
            }
            let from = storage.log_len();
            edit(&cache, SIZE, 3).unwrap();
            block_on(cache.host(), &[], cache.write()).unwrap();
            assert!(
                !storage.log_from(from).contains(&Io::Flush),
                "a dependency is satisfied once"
            );
        }
    });
}

#[test]
fn flush_writes_table_moving_out_of_reserve() {
    watched(|| {
        let (storage, cache) = new(3, 1);
        edit(&cache, SIZE, 11).unwrap();
        drop(get(&cache, 9 * SIZE).unwrap());
        let both = (get(&cache, SIZE).unwrap(), get(&cache, 9 * SIZE).unwrap());
        // Both ordinary slots are pinned: this one goes to the reserve.
        edit(&cache, 5 * SIZE, 55).unwrap();
        drop(both);
        let hold = Hold::new(&storage, is_write);
        std::thread::scope(|scope| {
            let flusher = scope.spawn(|| flush(&cache));
            hold.inside.wait();
            // In the middle of the write of the first table, an unlocked caller wants the second one.
            let moved = get_unlocked(&cache, 5 * SIZE).map(|pinned| pinned.load(0));
            assert!(matches!(moved, Ok(55) | Err(Errno::AGAIN)), "{moved:?}");
            hold.go_on.open();
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

/// Pages of `[address, address + bytes)` that are in memory, by the kernel's account.
fn pages_in_memory(address: usize, bytes: usize) -> usize {
    // SAFETY: sysconf reads a constant of the system.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
    let mut pages = vec![0_u8; bytes.div_ceil(page)];
    assert_eq!(address % page, 0);
    // SAFETY: the range is the cache's own mapping; one byte of `pages` for each of its pages.
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
            block_on(cache.host(), &[], cache.get_empty(offset))
                .unwrap()
                .as_ptr()
                .as_ptr() as usize
        };
        let start = (1..=tables).map(address).min().unwrap();
        let bytes = tables * table_size;
        let pages = bytes.div_ceil(4096);
        assert_eq!(pages_in_memory(start, bytes), pages);
        assert!(cache.stats().resident_bytes >= bytes as u64);
        assert_eq!(
            cache.clean_unused(),
            0,
            "all were used since the previous pass, of which there is none"
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
