// SPDX-License-Identifier: MIT OR Apache-2.0
//! Storage fails, or panics, at every position of fixed sequences: the error comes back unchanged, nothing dirty is lost, the
//! failed operation changes nothing else (the model says what it may change), the retry succeeds.

mod reference_model;
mod support;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use reference_model::How;
use reference_model::harness::{Op, Rig, Shape};
use qcow2cache::cache::{Cache, CacheOptions};
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use qcow2cache::host::threads::ThreadHost;
use support::{ByHand, Io, Latch, TestStorage, cache_on, lock, watched};

const UNIVERSE: u64 = 12;

/// Loads a table, changes it, gives it back.
fn edit(cache: usize, table: u64, value: u64) -> [Op; 3] {
    [
        Op::Get(cache, table, How::Locked),
        Op::Change(0, 8 * (table as usize % 8), value),
        Op::Put(0),
    ]
}

/// Loads a table and gives it back.
fn look(cache: usize, table: u64, how: How) -> [Op; 2] {
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
            "dirty tables make room",
            &[(2, 512, 0)],
            8,
            &[
                &edit(0, 1, 1),
                &edit(0, 2, 2),
                &edit(0, 3, 3),
                &edit(0, 4, 4),
                &look(0, 5, How::Locked),
                &look(0, 1, How::Empty),
                &[Flush(0)],
                &edit(0, 2, 5),
            ],
        ),
        sequence(
            "neighbours are joined",
            &[(7, 1024, 0)],
            2,
            &[
                &edit(0, 5, 1),
                &edit(0, 2, 2),
                &edit(0, 1, 3),
                &edit(0, 3, 4),
                &edit(0, 8, 5),
                &edit(0, 9, 6),
                &[Write(0)],
                &edit(0, 2, 7),
                &edit(0, 3, 8),
                &[Flush(0), Flush(0)],
                &edit(0, 4, 9),
                &[Empty(0)],
                &look(0, 4, How::Locked),
            ],
        ),
        sequence(
            "a cache depends on another",
            &[(2, 512, 0), (3, 2048, 1)],
            8,
            &[
                &edit(1, 1, 1),
                &edit(1, 2, 2),
                &[SetDependency(0, 1)],
                &edit(0, 1, 3),
                &edit(0, 2, 4),
                &edit(0, 3, 5),
                &edit(1, 3, 6),
                &[SetDependency(0, 1)],
                &edit(1, 1, 7),
                &[DependsOnFlush(1), Flush(0)],
                &edit(1, 5, 8),
                &[Empty(1)],
            ],
        ),
        sequence(
            "a cache depends on a flush",
            &[(2, 4096, 0)],
            8,
            &[
                &edit(0, 1, 1),
                &[DependsOnFlush(0)],
                &edit(0, 2, 2),
                &edit(0, 3, 3),
                &[DependsOnFlush(0), Write(0)],
                &[DependsOnFlush(0), Flush(0)],
                &edit(0, 1, 4),
                &[Flush(0)],
            ],
        ),
        sequence(
            "what would be a chain or a ring is flushed",
            &[(2, 512, 0), (2, 512, 0), (2, 512, 0)],
            8,
            &[
                &edit(0, 1, 1),
                &edit(1, 1, 2),
                &edit(2, 1, 3),
                &[SetDependency(0, 1), SetDependency(1, 2)],
                &edit(0, 1, 4),
                &edit(2, 1, 5),
                &[SetDependency(0, 2)],
                &edit(1, 1, 6),
                &[SetDependency(0, 1), SetDependency(1, 0)],
                &edit(1, 2, 7),
                &edit(1, 3, 8),
                &[Flush(0), Flush(1), Flush(2)],
            ],
        ),
        sequence(
            "unlocked gets and the reserve",
            &[(3, 512, 1)],
            8,
            &[
                &look(0, 1, How::Unlocked),
                &edit(0, 1, 1),
                &edit(0, 2, 2),
                &edit(0, 3, 3),
                &look(0, 3, How::Unlocked),
                &look(0, 4, How::Locked),
                &look(0, 4, How::Unlocked),
                &[Write(0)],
                &look(0, 5, How::Unlocked),
                &look(0, 4, How::Try),
            ],
        ),
        // No eviction here: whether a table was written before it is discarded would be the policy's choice.
        sequence(
            "discards and cleaning in between",
            &[(7, 1024, 0)],
            8,
            &[
                &edit(0, 1, 1),
                &edit(0, 2, 2),
                &edit(0, 3, 3),
                &[DiscardOffset(0, 2)],
                &edit(0, 4, 4),
                &edit(0, 5, 5),
                &edit(0, 6, 6),
                &[
                    Clean(0),
                    DiscardRange(0, 3000, 2000),
                    Flush(0),
                    Clean(0),
                    Clean(0),
                ],
                &look(0, 2, How::Locked),
            ],
        ),
    ]
}

/// Runs `ops` with `faults`, each failed operation again until it succeeds. Returns how many failed, the storage calls, and
/// what storage holds in the end.
fn run(shape: &Shape, ops: &[Op], faults: &BTreeMap<usize, Errno>) -> (usize, usize, Vec<u8>) {
    let mut rig = Rig::new(shape, UNIVERSE, faults);
    let injected = |error: &Errno| faults.values().any(|e| e == error);
    let mut failed = 0;
    for op in ops {
        let mut result = rig.apply(op);
        while let Err(error) = result {
            if error == Errno::AGAIN {
                // The one error that is not storage's here: an unlocked get that would have had to write.
                break;
            }
            assert!(injected(&error), "{op:?}: {error:?}");
            failed += 1;
            assert!(failed <= faults.len(), "{op:?} fails again and again");
            result = rig.apply(op);
        }
    }
    let calls = rig.storage.log_len();
    let storage = rig.storage.clone();
    rig.finish();
    let disk = lock(&storage.disk).clone();
    (failed, calls, disk)
}

fn on_each_device(mut check: impl FnMut(&Sequence)) {
    for mut sequence in sequences() {
        for one_device in [false, true] {
            sequence.shape.one_device = one_device;
            check(&sequence);
        }
    }
}

#[test]
fn storage_error_is_returned_and_retry_succeeds() {
    on_each_device(|Sequence { name, shape, ops }| {
        let (failed, calls, good) = run(shape, ops, &BTreeMap::new());
        assert_eq!(failed, 0, "{name}");
        for position in 0..calls {
            for errno in [Errno::IO, Errno::NOSPC] {
                let (failed, _, disk) = run(shape, ops, &BTreeMap::from([(position, errno)]));
                assert_eq!(
                    failed, 1,
                    "{name}: {errno:?} of call {position} was swallowed"
                );
                assert!(
                    disk == good,
                    "{name}: storage after {errno:?} of call {position}"
                );
            }
        }
    });
}

#[test]
fn two_storage_errors_lose_no_dirty_table() {
    on_each_device(|Sequence { name, shape, ops }| {
        let (_, calls, good) = run(shape, ops, &BTreeMap::new());
        for first in 0..calls {
            for second in first + 1..(first + 7).min(calls + 1) {
                for errnos in [(Errno::IO, Errno::NOSPC), (Errno::NOSPC, Errno::IO)] {
                    let faults = BTreeMap::from([(first, errnos.0), (second, errnos.1)]);
                    let (failed, _, disk) = run(shape, ops, &faults);
                    assert!((1..=2).contains(&failed), "{name}: {faults:?}");
                    assert!(disk == good, "{name}: storage after {faults:?}");
                }
            }
        }
    });
}

fn dirty_tables(cache: &Cache, offsets: &[u64]) {
    for offset in offsets {
        let pinned = block_on(cache.host(), &[], cache.get(*offset)).unwrap();
        pinned.store(0, !*offset).unwrap();
        pinned.mark_dirty().unwrap();
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
    let result = block_on(cache.host(), &[], cache.flush());
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
        "the first one"
    );
    assert_eq!(
        flush_with_failing_writes(&[(8192, Errno::BUSY)]).0,
        Err(Errno::BUSY)
    );
    assert_eq!(odd.code(), libc::EREMOTEIO);
    let unchanged = || {
        let storage = Arc::new(TestStorage::new(64 << 10));
        let cache = cache_on(&storage, 8, 512, 0);
        storage.set_hook(move |_, _| Err(odd));
        block_on(cache.host(), &[], cache.get(512)).map(drop)
    };
    assert_eq!(
        unchanged(),
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
    assert_eq!(block_on(cache.host(), &[], cache.flush()), Err(Errno::PERM));
    let writes = storage
        .log_from(0)
        .into_iter()
        .filter(|io| matches!(io, Io::Write { .. }));
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
    block_on(cache.host(), &[], cache.flush()).unwrap();
    assert_eq!(storage.word(1536), !1536);
}

/// A call of storage that panics, without the noise on stderr.
fn blow_up() -> ! {
    resume_unwind(Box::new("storage panicked"))
}

/// Two caches, the first depending on the second; one step of what a driver does with them. Returns whether the step was done.
fn driver_step(caches: &[Arc<Cache>; 2], step: u64) -> Result<(), Errno> {
    let [l2, refcount] = caches;
    let host = l2.host();
    let table = |cache: u64, n: u64| cache * 32768 + (n % 7 + 1) * 512;
    match step % 5 {
        0 => block_on(host, &[], l2.flush()),
        1 => block_on(host, &[], l2.set_dependency(refcount)),
        2 => block_on(host, &[], refcount.write()),
        n => {
            let which = n % 2;
            let offset = table(which, step * 3);
            let pinned = block_on(host, &[], caches[which as usize].get(offset))?;
            pinned.store(8, step)?;
            pinned.mark_dirty()
        }
    }
}

const STEPS: u64 = 60;

fn shadow_of(steps: u64) -> BTreeMap<u64, u64> {
    let table = |step: u64| (step % 5 % 2) * 32768 + (step * 3 % 7 + 1) * 512 + 8;
    (0..steps)
        .filter(|step| step % 5 > 2)
        .map(|step| (table(step), step))
        .collect()
}

/// Runs the steps with a panic in storage call `position`; false if there is no such call.
fn run_with_panic(position: usize) -> bool {
    let storage = Arc::new(TestStorage::new(64 << 10));
    let cache = |tables, kind| {
        let options = CacheOptions {
            tables,
            table_size: 512,
            kind,
            reserved: 1,
        };
        Cache::new(&options, storage.clone(), ThreadHost::shared()).unwrap()
    };
    let caches = [cache(3, 1), cache(2, 2)];
    let panicked = Arc::new(AtomicUsize::new(0));
    storage.set_hook({
        let panicked = panicked.clone();
        move |number, _| {
            if number == position {
                panicked.fetch_add(1, Ordering::SeqCst);
                blow_up();
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
                still_after_poison(&storage, &caches);
                return true;
            }
            // Usable: the same step again, as after an error.
            Err(_) => assert_eq!(driver_step(&caches, step), Ok(()), "step {step} again"),
        }
    }
    for cache in &caches {
        let empty = || block_on(cache.host(), &[], cache.empty());
        let emptied = catch_unwind(AssertUnwindSafe(empty));
        assert_eq!(emptied.unwrap_or_else(|_| empty()), Ok(()));
    }
    for (offset, step) in shadow_of(STEPS) {
        assert_eq!(
            storage.word(offset),
            step,
            "a panic in call {position}: lost at {offset:#x}"
        );
    }
    panicked.load(Ordering::SeqCst) == 1
}

fn still_after_poison(storage: &TestStorage, caches: &[Arc<Cache>; 2]) {
    let calls = storage.log_len();
    for cache in caches.iter().filter(|cache| cache.check_poison().is_err()) {
        let host = cache.host();
        assert_eq!(block_on(host, &[], cache.get(512)).err(), Some(Errno::IO));
        assert_eq!(block_on(host, &[], cache.flush()), Err(Errno::IO));
    }
    assert_eq!(storage.log_len(), calls);
}

#[test]
fn storage_panic_loses_no_dirty_table() {
    watched(|| {
        let calls = (0..)
            .take_while(|position| run_with_panic(*position))
            .count();
        // Reads, checks, writes and flushes were among them.
        assert!(calls > 60, "{calls}");
    });
}

#[test]
fn waiters_for_load_continue_after_load_fails_or_panics() {
    for panics in [false, true] {
        watched(move || {
            let storage = Arc::new(TestStorage::new(64 << 10));
            let cache = cache_on(&storage, 1, 512, 0);
            let (inside, go_on) = (Latch::default(), Latch::default());
            storage.set_hook({
                let (inside, go_on) = (inside.clone(), go_on.clone());
                move |number, _| {
                    if number > 0 {
                        return Ok(());
                    }
                    inside.open();
                    go_on.wait();
                    if panics { blow_up() } else { Err(Errno::NOSPC) }
                }
            });
            std::thread::scope(|scope| {
                let loader = scope.spawn(|| {
                    let get = || block_on(cache.host(), &[], cache.get(512)).map(drop);
                    catch_unwind(AssertUnwindSafe(get))
                });
                inside.wait();
                let mut same = ByHand::new(cache.get(512));
                let mut other = ByHand::new(cache.get(1024));
                assert!(
                    same.poll().is_none() && other.poll().is_none(),
                    "the only slot is loading"
                );
                go_on.open();
                match loader.join().unwrap() {
                    Ok(result) => assert_eq!((result, panics), (Err(Errno::NOSPC), false)),
                    Err(_) => assert!(panics),
                }
                assert!(same.wakes() > 0 && other.wakes() > 0);
                assert_eq!(same.poll().unwrap().unwrap().load(0), support::pattern(512));
                assert_eq!(
                    other.poll().unwrap().unwrap().load(0),
                    support::pattern(1024)
                );
            });
        });
    }
}

#[test]
fn waiters_for_write_continue_after_write_fails_or_panics() {
    for panics in [false, true] {
        watched(move || {
            let storage = Arc::new(TestStorage::new(64 << 10));
            let cache = cache_on(&storage, 1, 512, 0);
            dirty_tables(&cache, &[512]);
            let (inside, go_on) = (Latch::default(), Latch::default());
            let writes = AtomicUsize::new(0);
            storage.set_hook({
                let (inside, go_on) = (inside.clone(), go_on.clone());
                move |_, io| {
                    if !matches!(io, Io::Write { .. }) || writes.fetch_add(1, Ordering::SeqCst) > 0
                    {
                        return Ok(());
                    }
                    inside.open();
                    go_on.wait();
                    if panics { blow_up() } else { Err(Errno::IO) }
                }
            });
            std::thread::scope(|scope| {
                let flusher = scope.spawn(|| {
                    let flush = || block_on(cache.host(), &[], cache.flush());
                    catch_unwind(AssertUnwindSafe(flush))
                });
                inside.wait();
                let mut get = ByHand::new(cache.get(1024));
                let mut flush = ByHand::new(cache.flush());
                assert!(
                    get.poll().is_none() && flush.poll().is_none(),
                    "the only slot is being written"
                );
                go_on.open();
                match flusher.join().unwrap() {
                    Ok(result) => assert_eq!((result, panics), (Err(Errno::IO), false)),
                    Err(_) => assert!(panics),
                }
                assert!(get.wakes() > 0 && flush.wakes() > 0);
                // The other flush may not report success before the table is on storage.
                assert_eq!(flush.poll(), Some(Ok(())));
                assert_eq!(storage.word(512), !512);
                assert_eq!(get.poll().unwrap().unwrap().load(0), support::pattern(1024));
            });
        });
    }
}

#[test]
fn poisoned_cache_returns_eio_and_never_writes() {
    // Before the flush, or in the middle of it, where storage is asked about the table.
    for in_the_middle in [false, true] {
        let storage = Arc::new(TestStorage::new(64 << 10));
        let cache = cache_on(&storage, 4, 512, 1);
        let other = cache_on(&storage, 4, 512, 1);
        dirty_tables(&cache, &[512, 2048]);
        dirty_tables(&other, &[8192]);
        block_on(other.host(), &[], other.set_dependency(&cache)).unwrap();
        let pinned = block_on(cache.host(), &[], cache.get(512)).unwrap();
        let table = pinned.into_ptr().as_ptr() as usize;
        if in_the_middle {
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
        let host = cache.host();
        assert_eq!(block_on(host, &[], cache.flush()), Err(Errno::IO));
        storage.clear_hook();
        assert_eq!(cache.check_poison(), Err(Errno::IO));
        let from = storage.log_len();
        for result in [
            block_on(host, &[], cache.write()),
            block_on(host, &[], cache.empty()),
            block_on(host, &[], cache.get(512)).map(drop),
            block_on(host, &[], cache.get(4096)).map(drop),
            block_on(host, &[], cache.get_empty(4096)).map(drop),
            block_on(host, &[], cache.get_unlocked(512)).map(drop),
            cache.try_get(512).map(drop),
            cache.read(512, 0, &mut [0; 8]),
            cache.depends_on_flush(),
            block_on(host, &[], cache.set_dependency(&other)),
            cache.mark_dirty(table),
            cache.store(table, 0, 1),
            cache.discard_offset(2048),
            cache.discard_range(2048, 512),
            // What must be stable first cannot become stable any more.
            block_on(host, &[], other.flush()),
        ] {
            assert_eq!(result, Err(Errno::IO));
        }
        assert_eq!(cache.stats().pinned_tables, 1);
        assert_eq!(cache.put(table), Err(Errno::IO));
        assert_eq!(cache.stats().pinned_tables, 0, "the pin is given back");
        assert_eq!(storage.log_len(), from);
        let wrote = |io: &Io| matches!(io, Io::Write { .. });
        assert!(!storage.log_from(0).iter().any(wrote));
        // What it would have written is lost; it can go, so that the image can be closed.
        assert_eq!(cache.check_destroy(), Ok(()));
    }
}
