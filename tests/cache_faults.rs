// SPDX-License-Identifier: MIT OR Apache-2.0
//! Storage fails, or panics, at every position of fixed sequences. The error is returned unchanged,
//! no dirty table is lost, the failed operation changes only what the reference model allows, and
//! the retry succeeds.

mod reference_model;
mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qcow2cache::cache::{Cache, CacheOptions};
use qcow2cache::error::Errno;
use reference_model::GetMode;
use reference_model::harness::{Harness, Op, Shape};
use support::{
    Io, ManualPoll, PausePoint, TestStorage, cache_on, cache_with, empty, flush, get, get_empty,
    get_unlocked, lock, pattern, set_dependency, with_timeout, write,
};

/// How many tables each cache's region of the image has.
const REGION_TABLES: u64 = 12;

/// Gets a table, changes it and unpins it.
fn change(cache: usize, table: u64, value: u64) -> [Op; 3] {
    [
        Op::Get(cache, table, GetMode::Locked),
        Op::Change(0, 8 * (table as usize % 8), value),
        Op::Put(0),
    ]
}

/// Gets a table and unpins it.
fn load(cache: usize, table: u64, how: GetMode) -> [Op; 2] {
    [Op::Get(cache, table, how), Op::Put(0)]
}

struct Sequence {
    name: &'static str,
    shape: Shape,
    ops: Vec<Op>,
}

fn sequence(
    name: &'static str,
    caches: &[(usize, usize, usize)],
    max_iov: usize,
    ops: &[&[Op]],
) -> Sequence {
    Sequence {
        name,
        shape: Shape {
            caches: caches.to_vec(),
            max_iov,
            one_device: false,
        },
        ops: ops.concat(),
    }
}

fn sequences() -> Vec<Sequence> {
    use Op::{
        Clean, DependsOnFlush, DiscardOffset, DiscardRange, Empty, Flush, SetDependency, Write,
    };
    vec![
        sequence(
            "dirty tables are evicted",
            &[(2, 512, 0)],
            8,
            &[
                &change(0, 1, 1),
                &change(0, 2, 2),
                &change(0, 3, 3),
                &change(0, 4, 4),
                &load(0, 5, GetMode::Locked),
                &load(0, 1, GetMode::Empty),
                &[Flush(0)],
                &change(0, 2, 5),
            ],
        ),
        sequence(
            "writes of adjacent tables are coalesced",
            &[(7, 1024, 0)],
            2,
            &[
                &change(0, 5, 1),
                &change(0, 2, 2),
                &change(0, 1, 3),
                &change(0, 3, 4),
                &change(0, 8, 5),
                &change(0, 9, 6),
                &[Write(0)],
                &change(0, 2, 7),
                &change(0, 3, 8),
                &[Flush(0), Flush(0)],
                &change(0, 4, 9),
                &[Empty(0)],
                &load(0, 4, GetMode::Locked),
            ],
        ),
        sequence(
            "a cache depends on another",
            &[(2, 512, 0), (3, 2048, 1)],
            8,
            &[
                &change(1, 1, 1),
                &change(1, 2, 2),
                &[SetDependency(0, 1)],
                &change(0, 1, 3),
                &change(0, 2, 4),
                &change(0, 3, 5),
                &change(1, 3, 6),
                &[SetDependency(0, 1)],
                &change(1, 1, 7),
                &[DependsOnFlush(1), Flush(0)],
                &change(1, 5, 8),
                &[Empty(1)],
            ],
        ),
        sequence(
            "a cache depends on a flush",
            &[(2, 4096, 0)],
            8,
            &[
                &change(0, 1, 1),
                &[DependsOnFlush(0)],
                &change(0, 2, 2),
                &change(0, 3, 3),
                &[DependsOnFlush(0), Write(0)],
                &[DependsOnFlush(0), Flush(0)],
                &change(0, 1, 4),
                &[Flush(0)],
            ],
        ),
        sequence(
            "dependency chains and cycles are flushed",
            &[(2, 512, 0), (2, 512, 0), (2, 512, 0)],
            8,
            &[
                &change(0, 1, 1),
                &change(1, 1, 2),
                &change(2, 1, 3),
                &[SetDependency(0, 1), SetDependency(1, 2)],
                &change(0, 1, 4),
                &change(2, 1, 5),
                &[SetDependency(0, 2)],
                &change(1, 1, 6),
                &[SetDependency(0, 1), SetDependency(1, 0)],
                &change(1, 2, 7),
                &change(1, 3, 8),
                &[Flush(0), Flush(1), Flush(2)],
            ],
        ),
        sequence(
            "unlocked gets and the reserve",
            &[(3, 512, 1)],
            8,
            &[
                &load(0, 1, GetMode::Unlocked),
                &change(0, 1, 1),
                &change(0, 2, 2),
                &change(0, 3, 3),
                &load(0, 3, GetMode::Unlocked),
                &load(0, 4, GetMode::Locked),
                &load(0, 4, GetMode::Unlocked),
                &[Write(0)],
                &load(0, 5, GetMode::Unlocked),
                &load(0, 4, GetMode::Try),
            ],
        ),
        // No eviction here: otherwise the policy would decide whether a table is written before it
        // is discarded.
        sequence(
            "discards and cleaning",
            &[(7, 1024, 0)],
            8,
            &[
                &change(0, 1, 1),
                &change(0, 2, 2),
                &change(0, 3, 3),
                &[DiscardOffset(0, 2)],
                &change(0, 4, 4),
                &change(0, 5, 5),
                &change(0, 6, 6),
                &[
                    Clean(0),
                    DiscardRange(0, 3000, 2000),
                    Flush(0),
                    Clean(0),
                    Clean(0),
                ],
                &load(0, 2, GetMode::Locked),
            ],
        ),
    ]
}

struct Outcome {
    /// How many operations failed.
    failed: usize,
    /// The number of storage calls.
    calls: usize,
    /// The final contents of storage. `None`: a cache became unstable, and the run ended there.
    disk: Option<Vec<u8>>,
}

/// Runs `ops` with `faults` and repeats each failed operation until it succeeds.
fn run(shape: &Shape, ops: &[Op], faults: &BTreeMap<usize, Errno>) -> Outcome {
    let mut harness = Harness::new(shape, REGION_TABLES, faults);
    let injected = |error: &Errno| faults.values().any(|e| e == error);
    let mut failed = 0;
    'ops: for op in ops {
        let mut result = harness.apply(op);
        while let Err(error) = result {
            if error == Errno::AGAIN {
                // The only error that does not come from storage here: an unlocked get that would
                // have to write.
                break;
            }
            assert!(injected(&error), "{op:?}: {error:?}");
            failed += 1;
            if harness.is_unstable() {
                // A flush failed that should have made an evicted table stable. A retry does not
                // help, as the harness checks when it finishes.
                break 'ops;
            }
            assert!(failed <= faults.len(), "{op:?} fails again and again");
            result = harness.apply(op);
        }
    }
    let calls = harness.storage.log_len();
    let storage = harness.storage.clone();
    let stable = !harness.is_unstable();
    harness.finish();
    Outcome {
        failed,
        calls,
        disk: stable.then(|| lock(&storage.disk).clone()),
    }
}

fn for_each_sequence(mut check: impl FnMut(&Sequence)) {
    for mut sequence in sequences() {
        for one_device in [false, true] {
            sequence.shape.one_device = one_device;
            check(&sequence);
        }
    }
}

#[test]
fn storage_error_is_returned_and_retry_succeeds() {
    let (mut stable, mut unstable) = (0, 0);
    for_each_sequence(|Sequence { name, shape, ops }| {
        let good = run(shape, ops, &BTreeMap::new());
        assert_eq!(good.failed, 0, "{name}");
        for position in 0..good.calls {
            for errno in [Errno::IO, Errno::NOSPC] {
                let bad = run(shape, ops, &BTreeMap::from([(position, errno)]));
                assert_eq!(
                    bad.failed, 1,
                    "{name}: {errno:?} of call {position} was not returned"
                );
                if bad.disk.is_none() {
                    unstable += 1;
                    continue;
                }
                stable += 1;
                assert!(
                    bad.disk == good.disk,
                    "{name}: storage after {errno:?} of call {position}"
                );
            }
        }
    });
    // Both happen: nearly every error can be made good, and some failed flushes cannot.
    assert!(
        unstable > 0 && stable > 10 * unstable,
        "{stable} {unstable}"
    );
}

#[test]
fn two_storage_errors_lose_no_dirty_table() {
    for_each_sequence(|Sequence { name, shape, ops }| {
        let good = run(shape, ops, &BTreeMap::new());
        for first in 0..good.calls {
            for second in first + 1..(first + 7).min(good.calls + 1) {
                for errnos in [(Errno::IO, Errno::NOSPC), (Errno::NOSPC, Errno::IO)] {
                    let faults = BTreeMap::from([(first, errnos.0), (second, errnos.1)]);
                    let bad = run(shape, ops, &faults);
                    assert!((1..=2).contains(&bad.failed), "{name}: {faults:?}");
                    let same = bad.disk.is_none() || bad.disk == good.disk;
                    assert!(same, "{name}: storage after {faults:?}");
                }
            }
        }
    });
}

fn dirty_tables(cache: &Cache, offsets: &[u64]) {
    for offset in offsets {
        support::edit(cache, *offset, !*offset).unwrap();
    }
}

fn flush_with_failing_writes(
    errors: &'static [(u64, Errno)],
) -> (Result<(), Errno>, Arc<TestStorage>, Arc<Cache>) {
    let storage = Arc::new(TestStorage::new(64 << 10));
    let cache = cache_on(&storage, 8, 512, 0);
    dirty_tables(&cache, &[512, 2048, 4096, 8192]);
    storage.set_hook(|_, io| match io {
        Io::Write { offset, .. } => errors
            .iter()
            .find(|(at, _)| *at == offset)
            .map_or(Ok(()), |(_, e)| Err(*e)),
        _ => Ok(()),
    });
    let result = flush(&cache);
    (result, storage, cache)
}

#[test]
fn flush_tries_every_table_and_enospc_takes_precedence() {
    let odd = Errno::from_code(libc::EREMOTEIO);
    for (errors, expected) in [
        (&[(512, Errno::NOSPC), (4096, Errno::IO)][..], Errno::NOSPC),
        (&[(512, Errno::IO), (4096, Errno::NOSPC)], Errno::NOSPC),
        (
            &[(512, Errno::IO), (2048, Errno::NOSPC), (4096, Errno::IO)],
            Errno::NOSPC,
        ),
    ] {
        let (result, storage, cache) = flush_with_failing_writes(errors);
        assert_eq!(result, Err(expected), "{errors:?}");
        let failed = |offset: u64| errors.iter().any(|(at, _)| *at == offset);
        for offset in [512, 2048, 4096, 8192] {
            assert_eq!(
                storage.word(offset) == !offset,
                !failed(offset),
                "{errors:?}: {offset}"
            );
        }
        assert_eq!(cache.stats().dirty_tables, errors.len());
        assert!(
            !storage.log_from(0).contains(&Io::Flush),
            "no flush after a failed write"
        );
    }
    assert_eq!(
        flush_with_failing_writes(&[(512, Errno::IO), (2048, Errno::BUSY)]).0,
        Err(Errno::IO),
        "the first error counts"
    );
    assert_eq!(
        flush_with_failing_writes(&[(8192, Errno::BUSY)]).0,
        Err(Errno::BUSY)
    );
    assert_eq!(odd.code(), libc::EREMOTEIO);
    let get_failing = || {
        let storage = Arc::new(TestStorage::new(64 << 10));
        let cache = cache_on(&storage, 8, 512, 0);
        storage.set_hook(move |_, _| Err(odd));
        get(&cache, 512).map(drop)
    };
    assert_eq!(
        get_failing(),
        Err(odd),
        "an errno that the library does not know passes through"
    );
}

#[test]
fn table_refused_by_pre_write_check_is_left_out_of_coalesced_write() {
    let storage = Arc::new(TestStorage::new(64 << 10));
    let cache = cache_on(&storage, 8, 512, 0);
    dirty_tables(&cache, &[512, 1024, 1536, 2048, 2560]);
    storage.set_hook(|_, io| match io {
        Io::Check { offset: 1536, .. } => Err(Errno::PERM),
        _ => Ok(()),
    });
    assert_eq!(flush(&cache), Err(Errno::PERM));
    let writes = storage.log_from(0).into_iter().filter(|io| io.is_write());
    assert_eq!(
        writes.collect::<Vec<_>>(),
        [
            Io::Write {
                offset: 512,
                tables: 2,
                bytes: 1024
            },
            Io::Write {
                offset: 2048,
                tables: 2,
                bytes: 1024
            },
        ]
    );
    assert_eq!(cache.stats().dirty_tables, 1);
    storage.clear_hook();
    flush(&cache).unwrap();
    assert_eq!(storage.word(1536), !1536);
}

/// Panics inside a storage call, without a message on stderr.
fn panic_in_storage() -> ! {
    resume_unwind(Box::new("storage panicked"))
}

/// One step of what a driver does with two caches, the first of which depends on the second.
fn driver_step(caches: &[Arc<Cache>; 2], step: u64) -> Result<(), Errno> {
    let [l2, refcount] = caches;
    let table = |cache: u64, n: u64| cache * 32768 + (n % 7 + 1) * 512;
    match step % 5 {
        0 => flush(l2),
        1 => set_dependency(l2, refcount),
        2 => write(refcount),
        n => {
            let which = n % 2;
            let offset = table(which, step * 3);
            let pinned = get(&caches[which as usize], offset)?;
            pinned.store(8, step)?;
            pinned.mark_dirty()
        }
    }
}

const STEPS: u64 = 60;

/// The word that each changed table holds after `steps` steps, by its offset.
fn expected_words(steps: u64) -> BTreeMap<u64, u64> {
    let table = |step: u64| (step % 5 % 2) * 32768 + (step * 3 % 7 + 1) * 512 + 8;
    (0..steps)
        .filter(|step| step % 5 > 2)
        .map(|step| (table(step), step))
        .collect()
}

/// Runs the steps with a panic in storage call `position`. Returns false if there is no such call.
fn run_with_panic(position: usize) -> bool {
    let storage = Arc::new(TestStorage::new(64 << 10));
    let cache = |tables, kind| {
        let options = CacheOptions {
            tables,
            table_size: 512,
            kind,
            reserved: 1,
        };
        cache_with(&storage, &options)
    };
    let caches = [cache(3, 1), cache(2, 2)];
    let panicked = Arc::new(AtomicUsize::new(0));
    storage.set_hook({
        let panicked = panicked.clone();
        move |number, _| {
            if number == position {
                panicked.fetch_add(1, Ordering::SeqCst);
                panic_in_storage();
            }
            Ok(())
        }
    });
    for step in 0..STEPS {
        let result = catch_unwind(AssertUnwindSafe(|| driver_step(&caches, step)));
        let poisoned = caches.iter().any(|cache| cache.check_poison().is_err());
        match result {
            Ok(result) => assert_eq!(result, Ok(()), "step {step}"),
            Err(_) if poisoned => {
                assert_poisoned_caches_fail(&storage, &caches);
                return true;
            }
            // The caches are usable: repeat the step, as after an error.
            Err(_) => assert_eq!(driver_step(&caches, step), Ok(()), "step {step} again"),
        }
    }
    for cache in &caches {
        let emptied = catch_unwind(AssertUnwindSafe(|| empty(cache)));
        assert_eq!(emptied.unwrap_or_else(|_| empty(cache)), Ok(()));
    }
    for (offset, step) in expected_words(STEPS) {
        assert_eq!(
            storage.word(offset),
            step,
            "a panic in call {position}: the change at {offset:#x} is lost"
        );
    }
    panicked.load(Ordering::SeqCst) == 1
}

fn assert_poisoned_caches_fail(storage: &TestStorage, caches: &[Arc<Cache>; 2]) {
    let calls = storage.log_len();
    for cache in caches.iter().filter(|cache| cache.check_poison().is_err()) {
        assert_eq!(get(cache, 512).err(), Some(Errno::IO));
        assert_eq!(flush(cache), Err(Errno::IO));
    }
    assert_eq!(storage.log_len(), calls);
}

#[test]
fn storage_panic_loses_no_dirty_table() {
    with_timeout(|| {
        let calls = (0..)
            .take_while(|position| run_with_panic(*position))
            .count();
        // These are reads, checks, writes and flushes.
        assert!(calls > 60, "{calls}");
    });
}

#[test]
fn waiters_for_load_continue_after_load_fails_or_panics() {
    for panics in [false, true] {
        with_timeout(move || {
            let storage = Arc::new(TestStorage::new(64 << 10));
            let cache = cache_on(&storage, 1, 512, 0);
            let pause = PausePoint::default();
            storage.set_hook({
                let pause = pause.clone();
                move |number, _| {
                    if number > 0 {
                        return Ok(());
                    }
                    pause.pause();
                    if panics {
                        panic_in_storage()
                    } else {
                        Err(Errno::NOSPC)
                    }
                }
            });
            std::thread::scope(|scope| {
                let loader =
                    scope.spawn(|| catch_unwind(AssertUnwindSafe(|| get(&cache, 512).map(drop))));
                pause.wait_until_reached();
                let mut same = ManualPoll::new(cache.get(512));
                let mut other = ManualPoll::new(cache.get(1024));
                assert!(
                    same.poll().is_none() && other.poll().is_none(),
                    "the only slot is loading"
                );
                pause.resume();
                match loader.join().unwrap() {
                    Ok(result) => assert_eq!((result, panics), (Err(Errno::NOSPC), false)),
                    Err(_) => assert!(panics),
                }
                assert!(same.wakes() > 0 && other.wakes() > 0);
                assert_eq!(same.poll().unwrap().unwrap().load(0), pattern(512));
                assert_eq!(other.poll().unwrap().unwrap().load(0), pattern(1024));
            });
        });
    }
}

#[test]
fn waiters_for_write_continue_after_write_fails_or_panics() {
    for panics in [false, true] {
        with_timeout(move || {
            let storage = Arc::new(TestStorage::new(64 << 10));
            let cache = cache_on(&storage, 1, 512, 0);
            dirty_tables(&cache, &[512]);
            let pause = PausePoint::default();
            let writes = AtomicUsize::new(0);
            storage.set_hook({
                let pause = pause.clone();
                move |_, io| {
                    if !io.is_write() || writes.fetch_add(1, Ordering::SeqCst) > 0 {
                        return Ok(());
                    }
                    pause.pause();
                    if panics {
                        panic_in_storage()
                    } else {
                        Err(Errno::IO)
                    }
                }
            });
            std::thread::scope(|scope| {
                let flusher = scope.spawn(|| catch_unwind(AssertUnwindSafe(|| flush(&cache))));
                pause.wait_until_reached();
                let mut get = ManualPoll::new(cache.get(1024));
                let mut flush = ManualPoll::new(cache.flush());
                assert!(
                    get.poll().is_none() && flush.poll().is_none(),
                    "the only slot is being written"
                );
                pause.resume();
                match flusher.join().unwrap() {
                    Ok(result) => assert_eq!((result, panics), (Err(Errno::IO), false)),
                    Err(_) => assert!(panics),
                }
                assert!(get.wakes() > 0 && flush.wakes() > 0);
                // The second flush may not report success before the table is in storage.
                assert_eq!(flush.poll(), Some(Ok(())));
                assert_eq!(storage.word(512), !512);
                assert_eq!(get.poll().unwrap().unwrap().load(0), pattern(1024));
            });
        });
    }
}

#[test]
fn poisoned_cache_returns_eio_and_never_writes() {
    // The cache is poisoned before the flush, or during it, in the pre-write check.
    for during_flush in [false, true] {
        let storage = Arc::new(TestStorage::new(64 << 10));
        let cache = cache_on(&storage, 4, 512, 1);
        let other = cache_on(&storage, 4, 512, 1);
        dirty_tables(&cache, &[512, 2048]);
        dirty_tables(&other, &[8192]);
        set_dependency(&other, &cache).unwrap();
        let pinned = get(&cache, 512).unwrap();
        let table = pinned.into_ptr().as_ptr() as usize;
        if during_flush {
            let cache = Arc::downgrade(&cache);
            storage.set_hook(move |_, io| {
                if matches!(io, Io::Check { .. }) {
                    cache.upgrade().unwrap().poison();
                }
                Ok(())
            });
        } else {
            cache.poison();
        }
        assert_eq!(flush(&cache), Err(Errno::IO));
        storage.clear_hook();
        assert_eq!(cache.check_poison(), Err(Errno::IO));
        let from = storage.log_len();
        for result in [
            write(&cache),
            empty(&cache),
            get(&cache, 512).map(drop),
            get(&cache, 4096).map(drop),
            get_empty(&cache, 4096).map(drop),
            get_unlocked(&cache, 512).map(drop),
            cache.try_get(512).map(drop),
            cache.read(512, 0, &mut [0; 8]),
            cache.depends_on_flush(),
            set_dependency(&cache, &other),
            cache.mark_dirty(table),
            cache.store(table, 0, 1),
            cache.discard_offset(2048),
            cache.discard_range(2048, 512),
            // The other cache depends on this one, which can never be flushed now.
            flush(&other),
        ] {
            assert_eq!(result, Err(Errno::IO));
        }
        assert_eq!(cache.stats().pinned_tables, 1);
        assert_eq!(cache.put(table), Err(Errno::IO));
        assert_eq!(cache.stats().pinned_tables, 0, "the table is unpinned");
        assert_eq!(storage.log_len(), from);
        assert_eq!(storage.write_count(), 0);
        // Its dirty tables are lost. It can be destroyed, so that the image can be closed.
        assert_eq!(cache.check_destroy(), Ok(()));
    }
}
