// SPDX-License-Identifier: MIT OR Apache-2.0
//! An open image's metadata, by the driver's events: open, change of options, detach and attach, invalidate, close; with their
//! error paths, on the thread host and on event loops.

#[macro_use]
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use qcow2cache::cache::Cache;
use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use qcow2cache::host::event_loop::{EventLoop, EventLoopHost};
use qcow2cache::host::{Context, Host};
use qcow2cache::options::{Geometry, Options};
use qcow2cache::state::{Config, State, Update};
use support::hosts::Fixture;
use support::{Io, Latch, Rng, TestStorage, lock, pattern, until, watched};

const NEVER: u64 = 600_000_000_000;
const BUSY: u64 = 1;
const L2: i32 = 10;
const REFCOUNT: i32 = 20;
const TABLE: u64 = 4096;
/// L2 tables lie below, refcount blocks above.
const BLOCKS: u64 = 1 << 18;

on_every_host! {
    open_starts_the_cleaner_with_every_option_set
    open_refuses_what_it_cannot_do
    without_an_interval_there_is_no_cleaner
    the_caches_are_cleaned
    close_writes_everything
    close_loses_nothing_when_it_fails
    prepare_flushes_the_old_caches_and_changes_nothing
    prepare_changes_nothing_when_it_fails
    commit_puts_every_option_into_effect
    commit_gives_the_update_back_when_it_fails
    a_change_can_switch_the_cleaner_off_and_on
    a_dropped_update_changes_nothing
    detach_never_waits_and_attach_keeps_the_interval
    attach_refuses_what_is_attached_or_foreign
    options_can_change_while_detached
    invalidate_drops_everything
    invalidate_drops_nothing_when_a_table_is_in_use
    waiting_where_one_holds_the_lock_is_refused
    polling_ends_when_it_is_done
    options_change_under_load
}

fn geometry() -> Geometry {
    Geometry {
        virtual_size: 64 << 20,
        cluster_size: 4096,
        l2_entry_size: 8,
    }
}

fn options(l2_tables: u64, blocks: u64) -> Options {
    Options {
        l2_cache_size: Some(l2_tables * TABLE),
        refcount_cache_size: Some(blocks * TABLE),
        ..Options::default()
    }
}

fn config(
    host: Arc<dyn Host>,
    storage: &Arc<TestStorage>,
    context: Context,
    clean_interval_ns: u64,
) -> Config {
    Config {
        host,
        l2_storage: storage.clone(),
        refcount_storage: storage.clone(),
        l2_kind: L2,
        refcount_kind: REFCOUNT,
        geometry: geometry(),
        options: options(4, 5),
        clean_interval_ns,
        context,
    }
}

fn open(fixture: &dyn Fixture, clean_interval_ns: u64) -> (Arc<TestStorage>, State) {
    let storage = Arc::new(TestStorage::new(1 << 19));
    let config = config(
        fixture.host(),
        &storage,
        fixture.context(0),
        clean_interval_ns,
    );
    (storage, State::open(config).unwrap())
}

fn edit(cache: &Cache, offset: u64, value: u64) -> Result<(), Errno> {
    let pinned = block_on(cache.host(), &[], cache.get(offset))?;
    pinned.store(0, value)?;
    pinned.mark_dirty()
}

/// A table in each cache is changed; L2 depends on the refcounts.
fn dirty_both(state: &State, value: u64) {
    let (l2, refcount) = (state.l2_cache(), state.refcount_cache());
    edit(&refcount, BLOCKS, value).unwrap();
    block_on(l2.host(), &[], l2.set_dependency(&refcount)).unwrap();
    edit(&l2, TABLE, value).unwrap();
}

fn shape(cache: &Cache) -> (usize, usize) {
    (cache.stats().tables, cache.stats().table_size)
}

fn prepared(state: &State, options: &Options, clean_interval_ns: u64) -> Update {
    let lock = state.cleaner().lock();
    let update = state.prepare(options, None, clean_interval_ns).unwrap();
    if lock.is_ok() {
        state.cleaner().unlock().unwrap();
    }
    update
}

fn commit(state: &State, update: Update, locked: bool) -> Result<(), (Errno, Update)> {
    if locked {
        state.cleaner().lock().unwrap();
    }
    let result = state.commit(update, locked);
    if locked {
        state.cleaner().unlock().expect("the lock is still held");
    }
    result
}

fn open_starts_the_cleaner_with_every_option_set(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, 0);
    assert!(state.cleaner().is_running());
    // 600 s, the default.
    assert_eq!(state.cleaner().stats().interval_ns, NEVER);
    assert_eq!(
        (shape(&state.l2_cache()), shape(&state.refcount_cache())),
        ((4, 4096), (5, 4096))
    );
    assert!(state.l2_cache().belongs_to_state() && state.refcount_cache().belongs_to_state());
    assert!(state.cleaner().belongs_to_state());
    drop(block_on(&*fixture.host(), &[], state.l2_cache().get_empty(TABLE)).unwrap());
    edit(&state.l2_cache(), TABLE, 1).unwrap();
    edit(&state.refcount_cache(), BLOCKS, 1).unwrap();
    state.close().unwrap();
    let kinds: Vec<_> = storage
        .log_from(0)
        .iter()
        .filter_map(|io| match io {
            Io::Check {
                kind,
                offset,
                bytes,
            } => Some((*kind, *offset, *bytes)),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [(L2, TABLE, 4096), (REFCOUNT, BLOCKS, 4096)]);

    let seconds = Options {
        cache_clean_interval: Some(7),
        ..options(4, 5)
    };
    let config = Config {
        options: seconds,
        ..config(fixture.host(), &storage, fixture.context(1), 0)
    };
    let state = State::open(config).unwrap();
    assert_eq!(state.cleaner().stats().interval_ns, 7_000_000_000);
    state.close().unwrap();
}

fn open_refuses_what_it_cannot_do(fixture: &dyn Fixture) {
    let storage = Arc::new(TestStorage::new(1 << 19));
    let config = || config(fixture.host(), &storage, fixture.context(0), 0);
    let bad = Options {
        cache_size: Some(1 << 20),
        ..options(4, 5)
    };
    let error = State::open(Config {
        options: bad,
        ..config()
    })
    .err()
    .unwrap();
    assert_eq!(error.errno(), Errno::INVAL);
    assert!(error.message().contains("cache-size"), "{error}");
    let bad = Geometry {
        cluster_size: 4095,
        ..geometry()
    };
    assert_eq!(
        State::open(Config {
            geometry: bad,
            ..config()
        })
        .err()
        .unwrap()
        .errno(),
        Errno::INVAL
    );
    let error = State::open(Config {
        context: fixture.foreign_context(),
        ..config()
    })
    .err()
    .unwrap();
    assert_eq!(error.errno(), Errno::INVAL);
    assert!(error.message().contains("cleaner"), "{error}");
    assert_eq!(storage.log_len(), 0);
    assert_eq!(
        Arc::strong_count(&storage),
        1,
        "nothing is left of what was not opened"
    );
}

fn without_an_interval_there_is_no_cleaner(fixture: &dyn Fixture) {
    let storage = Arc::new(TestStorage::new(1 << 19));
    let options = Options {
        cache_clean_interval: Some(0),
        ..options(4, 5)
    };
    let config = Config {
        options,
        ..config(fixture.host(), &storage, fixture.context(0), 0)
    };
    let state = State::open(config).unwrap();
    assert!(!state.cleaner().is_running());
    state.detach();
    state.attach(fixture.context(1)).unwrap();
    assert!(!state.cleaner().is_running());
    state.invalidate().unwrap();
    assert_eq!(state.cleaner().stats().starts, 0);
    state.close().unwrap();
}

fn the_caches_are_cleaned(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, BUSY);
    for n in 1..4 {
        drop(block_on(&*fixture.host(), &[], state.l2_cache().get(n * TABLE)).unwrap());
        drop(
            block_on(
                &*fixture.host(),
                &[],
                state.refcount_cache().get(BLOCKS + n * TABLE),
            )
            .unwrap(),
        );
    }
    until(|| {
        state.l2_cache().stats().resident_tables + state.refcount_cache().stats().resident_tables
            == 0
    });
    state.close().unwrap();
    assert_eq!(state.cleaner().stats().tables_cleaned, 6);
}

fn close_writes_everything(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    dirty_both(&state, 42);
    fixture.run_in(0, Box::new(|| state.close().unwrap()));
    assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (42, 42));
    let log: Vec<_> = storage
        .log_from(0)
        .into_iter()
        .filter(|io| matches!(io, Io::Write { .. } | Io::Flush))
        .collect();
    let write = |offset| Io::Write {
        offset,
        tables: 1,
        bytes: 4096,
    };
    let at = |io: Io| log.iter().position(|i| *i == io).unwrap();
    assert!(
        at(write(BLOCKS)) < at(Io::Flush) && at(Io::Flush) < at(write(TABLE)),
        "{log:?}"
    );
    assert_eq!(log.last(), Some(&Io::Flush));
    assert_eq!(state.cleaner().stats().instances, 0);
    drop(state);
    assert_eq!(Arc::strong_count(&storage), 1);
}

fn close_loses_nothing_when_it_fails(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    dirty_both(&state, 43);
    let refcount = state.refcount_cache();
    let pinned = block_on(&*fixture.host(), &[], refcount.get(BLOCKS + TABLE)).unwrap();
    assert_eq!(state.close(), Err(Errno::BUSY));
    assert!(!state.cleaner().is_running());
    drop(pinned);
    for (io, errno) in [
        (Io::Flush, Errno::NOSPC),
        (
            Io::Write {
                offset: TABLE,
                tables: 1,
                bytes: 4096,
            },
            Errno::IO,
        ),
    ] {
        storage.set_hook(move |_, i| if i == io { Err(errno) } else { Ok(()) });
        assert_eq!(state.close(), Err(errno));
        assert_eq!(state.l2_cache().stats().dirty_tables, 1);
    }
    storage.clear_hook();
    // What was there before is there still, and the image can be used on.
    edit(&state.l2_cache(), 2 * TABLE, 44).unwrap();
    state.close().unwrap();
    assert_eq!(
        (
            storage.word(TABLE),
            storage.word(BLOCKS),
            storage.word(2 * TABLE)
        ),
        (43, 43, 44)
    );
}

fn prepare_flushes_the_old_caches_and_changes_nothing(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    let old = state.l2_cache();
    dirty_both(&state, 5);
    let update = prepared(&state, &options(8, 9), 77);
    assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (5, 5));
    assert!(Arc::ptr_eq(&old, &state.l2_cache()));
    assert_eq!(
        state.l2_cache().stats().resident_tables,
        1,
        "flushed, not dropped"
    );
    assert_eq!(state.cleaner().stats().interval_ns, NEVER);
    assert!(state.cleaner().is_running());
    drop(update);
    state.close().unwrap();
}

fn prepare_changes_nothing_when_it_fails(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    dirty_both(&state, 6);
    let old = (state.l2_cache(), state.refcount_cache());
    let bad = Options {
        l2_cache_entry_size: Some(3000),
        ..Options::default()
    };
    let error = state.prepare(&bad, None, 0).err().unwrap();
    assert_eq!(error.errno(), Errno::INVAL);
    assert!(error.message().contains("l2-cache-entry-size"), "{error}");
    assert_eq!(
        storage
            .log_from(0)
            .iter()
            .filter(|io| matches!(io, Io::Write { .. }))
            .count(),
        0
    );
    let bad = Geometry {
        cluster_size: 1,
        ..geometry()
    };
    assert_eq!(
        state
            .prepare(&options(4, 4), Some(bad), 0)
            .err()
            .unwrap()
            .errno(),
        Errno::INVAL
    );
    storage.set_hook(|_, io| {
        if io == Io::Flush {
            Err(Errno::NOSPC)
        } else {
            Ok(())
        }
    });
    let error = state.prepare(&options(4, 4), None, 0).err().unwrap();
    assert_eq!(error.errno(), Errno::NOSPC);
    storage.clear_hook();
    assert!(Arc::ptr_eq(&old.0, &state.l2_cache()) && Arc::ptr_eq(&old.1, &state.refcount_cache()));
    assert!(state.cleaner().is_running());
    assert_eq!(state.l2_cache().stats().dirty_tables, 1);
    drop(old);
    state.close().unwrap();
    assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (6, 6));
}

fn commit_puts_every_option_into_effect(fixture: &dyn Fixture) {
    for locked in [false, true] {
        for place in 0..3 {
            let (storage, state) = open(fixture, NEVER);
            let change = || {
                dirty_both(&state, 1);
                let larger = Geometry {
                    virtual_size: 128 << 20,
                    ..geometry()
                };
                let update = state
                    .prepare(&options(8, 9), Some(larger), 123_456_789)
                    .unwrap();
                // Dirty again since: the commit writes it.
                dirty_both(&state, 2);
                let old = Arc::downgrade(&state.l2_cache());
                commit(&state, update, locked)
                    .map_err(|(errno, _)| errno)
                    .unwrap();
                assert!(old.upgrade().is_none(), "the old cache is gone");
            };
            match place {
                0 | 1 => fixture.run_in(place, Box::new(change)),
                _ => change(),
            }
            assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (2, 2));
            assert_eq!(
                (shape(&state.l2_cache()), shape(&state.refcount_cache())),
                ((8, 4096), (9, 4096))
            );
            assert!(state.l2_cache().belongs_to_state());
            assert!(state.cleaner().is_running());
            let stats = state.cleaner().stats();
            assert_eq!(
                (stats.interval_ns, stats.instances, stats.starts),
                (123_456_789, 1, 2)
            );
            // The new cache is the one that is used, and reads what the old one wrote.
            let l2 = state.l2_cache();
            assert_eq!(block_on(l2.host(), &[], l2.get(TABLE)).unwrap().load(0), 2);
            state.close().unwrap();
        }
    }
}

fn commit_gives_the_update_back_when_it_fails(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    let old = state.l2_cache();
    let unchanged = |when: &str| {
        assert!(Arc::ptr_eq(&old, &state.l2_cache()), "{when}");
        assert_eq!(state.cleaner().stats().interval_ns, NEVER, "{when}");
        assert!(
            state.cleaner().is_running(),
            "the old cleaner runs again: {when}"
        );
    };
    let update = prepared(&state, &options(8, 9), 5_000_000_000);
    dirty_both(&state, 3);

    let (errno, update) = state.commit(update, true).err().unwrap();
    assert_eq!(errno, Errno::PERM);
    unchanged("the lock is not held");

    state.cleaner().lock().unwrap();
    let (errno, mut update) = state.commit(update, false).err().unwrap();
    assert_eq!(errno, Errno::DEADLK);
    state.cleaner().unlock().unwrap();
    unchanged("the lock is held");

    for locked in [false, true] {
        let pinned = block_on(old.host(), &[], old.get(5 * TABLE)).unwrap();
        let result = commit(&state, update, locked);
        let (errno, back) = result.err().unwrap();
        assert_eq!(errno, Errno::BUSY);
        drop(pinned);
        unchanged("a table is in use");

        storage.set_hook(|_, io| match io {
            Io::Check { kind: L2, .. } => Err(Errno::NOSPC),
            _ => Ok(()),
        });
        edit(&old, TABLE, 4).unwrap();
        let (errno, back) = commit(&state, back, locked).err().unwrap();
        assert_eq!(errno, Errno::NOSPC);
        storage.clear_hook();
        unchanged("a write failed");
        assert_eq!(old.stats().dirty_tables, 1);
        update = back;
    }
    drop(old);
    commit(&state, update, false)
        .map_err(|(errno, _)| errno)
        .unwrap();
    assert_eq!(storage.word(TABLE), 4);
    assert_eq!(shape(&state.l2_cache()), (8, 4096));
    assert_eq!(state.cleaner().stats().interval_ns, 5_000_000_000);
    state.close().unwrap();
}

fn a_change_can_switch_the_cleaner_off_and_on(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    let off = Options {
        cache_clean_interval: Some(0),
        ..options(4, 4)
    };
    let update = prepared(&state, &off, 0);
    commit(&state, update, false)
        .map_err(|(errno, _)| errno)
        .unwrap();
    assert!(!state.cleaner().is_running());
    assert_eq!(state.cleaner().stats().instances, 0);
    let on = Options {
        cache_clean_interval: Some(9),
        ..options(4, 4)
    };
    let update = prepared(&state, &on, 0);
    commit(&state, update, true)
        .map_err(|(errno, _)| errno)
        .unwrap();
    assert!(state.cleaner().is_running());
    assert_eq!(state.cleaner().stats().interval_ns, 9_000_000_000);
    state.close().unwrap();
}

fn a_dropped_update_changes_nothing(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    let holders = Arc::strong_count(&storage);
    let old = state.l2_cache();
    dirty_both(&state, 8);
    for _ in 0..50 {
        drop(prepared(&state, &options(1000, 1000), BUSY));
    }
    assert_eq!(
        Arc::strong_count(&storage),
        holders,
        "the new caches are gone"
    );
    assert!(Arc::ptr_eq(&old, &state.l2_cache()));
    assert_eq!(
        (
            state.cleaner().stats().starts,
            state.cleaner().stats().interval_ns
        ),
        (1, NEVER)
    );
    drop(old);
    state.close().unwrap();
}

fn detach_never_waits_and_attach_keeps_the_interval(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, 50_000);
    for round in 0..30 {
        let passes = state.cleaner().stats().passes;
        until(|| state.cleaner().stats().passes > passes);
        // Where the driver detaches it holds whatever locks it holds.
        let locked = round % 2 == 0;
        if locked {
            state.cleaner().lock().unwrap();
        }
        state.detach();
        assert!(!state.cleaner().is_running());
        state.detach();
        if locked {
            state.cleaner().unlock().unwrap();
        }
        let stats = state.cleaner().stats();
        assert_eq!(stats.interval_ns, 50_000, "stopping never changes it");
        let which = (round + 1) % 2;
        fixture.run_in(
            which,
            Box::new(|| state.attach(fixture.context(which)).unwrap()),
        );
        assert!(state.cleaner().is_running());
        assert_eq!(state.cleaner().stats().interval_ns, 50_000);
    }
    assert_eq!(state.cleaner().stats().starts, 31);
    state.close().unwrap();
    assert_eq!(state.cleaner().stats().instances, 0);
}

fn attach_refuses_what_is_attached_or_foreign(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    assert_eq!(state.attach(fixture.context(0)), Err(Errno::ALREADY));
    assert_eq!(state.attach(fixture.foreign_context()), Err(Errno::INVAL));
    assert!(state.cleaner().is_running());
    state.detach();
    assert_eq!(state.attach(fixture.foreign_context()), Err(Errno::INVAL));
    assert!(!state.cleaner().is_running());
    // The refused one did not happen: it can still be attached.
    state.attach(fixture.context(0)).unwrap();
    assert!(state.cleaner().is_running());
    state.close().unwrap();
}

fn options_can_change_while_detached(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    state.detach();
    let update = prepared(&state, &options(6, 6), 70_000);
    commit(&state, update, false)
        .map_err(|(errno, _)| errno)
        .unwrap();
    assert!(!state.cleaner().is_running());
    assert_eq!(shape(&state.l2_cache()), (6, 4096));
    state.attach(fixture.context(1)).unwrap();
    assert_eq!(state.cleaner().stats().interval_ns, 70_000);
    let passes = state.cleaner().stats().passes;
    until(|| state.cleaner().stats().passes > passes);
    // Its caches are the new ones.
    let l2 = state.l2_cache();
    drop(block_on(l2.host(), &[], l2.get(TABLE)).unwrap());
    until(|| l2.stats().cleaned == 1);
    drop(l2);
    state.close().unwrap();
}

fn invalidate_drops_everything(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    dirty_both(&state, 9);
    lock(&storage.disk)[TABLE as usize..][..8].copy_from_slice(&77_u64.to_ne_bytes());
    let writes = storage
        .log_from(0)
        .iter()
        .filter(|io| matches!(io, Io::Write { .. }))
        .count();
    fixture.run_in(0, Box::new(|| state.invalidate().unwrap()));
    for cache in [state.l2_cache(), state.refcount_cache()] {
        assert_eq!(
            (cache.stats().resident_tables, cache.stats().dirty_tables),
            (0, 0)
        );
    }
    assert_eq!(
        storage
            .log_from(0)
            .iter()
            .filter(|io| matches!(io, Io::Write { .. }))
            .count(),
        writes,
        "nothing was written over it"
    );
    assert!(state.cleaner().is_running());
    assert_eq!(state.cleaner().stats().starts, 2);
    let l2 = state.l2_cache();
    assert_eq!(block_on(l2.host(), &[], l2.get(TABLE)).unwrap().load(0), 77);
    drop(l2);
    state.close().unwrap();
    assert_eq!(
        (storage.word(TABLE), storage.word(BLOCKS)),
        (77, pattern(BLOCKS))
    );
}

fn invalidate_drops_nothing_when_a_table_is_in_use(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    for which in 0..2 {
        dirty_both(&state, 10);
        let (l2, refcount) = (state.l2_cache(), state.refcount_cache());
        let pinned = if which == 0 {
            block_on(l2.host(), &[], l2.get(3 * TABLE)).unwrap()
        } else {
            block_on(l2.host(), &[], refcount.get(BLOCKS + 3 * TABLE)).unwrap()
        };
        assert_eq!(state.invalidate(), Err(Errno::BUSY));
        assert_eq!(
            (l2.stats().dirty_tables, refcount.stats().dirty_tables),
            (1, 1),
            "in use: {which}"
        );
        assert!(state.cleaner().is_running());
        drop(pinned);
    }
    state.close().unwrap();
    assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (10, 10));
}

fn waiting_where_one_holds_the_lock_is_refused(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    state.cleaner().lock().unwrap();
    assert_eq!(state.close(), Err(Errno::DEADLK));
    assert_eq!(state.invalidate(), Err(Errno::DEADLK));
    assert_eq!(
        state.run_until_done(Box::new(|| unreachable!("it must not run"))),
        Err(Errno::DEADLK)
    );
    assert!(state.cleaner().is_running());
    state.cleaner().unlock().unwrap();
    state.close().unwrap();
    // Another thread's lock: somebody is still at work in it.
    std::thread::scope(|scope| {
        let (locked, go_on) = (Latch::default(), Latch::default());
        let holder = scope.spawn({
            let (locked, go_on, state) = (locked.clone(), go_on.clone(), &state);
            move || {
                state.cleaner().lock().unwrap();
                locked.open();
                go_on.wait();
                state.cleaner().unlock().unwrap();
            }
        });
        locked.wait();
        assert_eq!(state.close(), Err(Errno::BUSY));
        go_on.open();
        holder.join().unwrap();
    });
    state.close().unwrap();
}

fn polling_ends_when_it_is_done(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    for place in 0..3 {
        let done = AtomicBool::new(false);
        let looked = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It waits by now, or is about to: both must end.
                until(|| looked.load(Ordering::SeqCst) > 0);
                // A kick alone ends nothing.
                state.kick();
                done.store(true, Ordering::SeqCst);
                state.kick();
            });
            let poll = || {
                state.poll_until_done(&|| {
                    looked.fetch_add(1, Ordering::SeqCst);
                    done.load(Ordering::SeqCst)
                });
                assert!(done.load(Ordering::SeqCst));
            };
            match place {
                0 | 1 => fixture.run_in(place, Box::new(poll)),
                _ => poll(),
            }
        });
    }
    let ran = Arc::new(AtomicBool::new(false));
    let entry = ran.clone();
    state
        .run_until_done(Box::new(move || entry.store(true, Ordering::SeqCst)))
        .unwrap();
    assert!(ran.load(Ordering::SeqCst));
    state.close().unwrap();
}

const LOAD_TABLES: u64 = 30;

/// Requests of a driver: with the state lock, tables are changed; without it, they are only looked at.
fn request(state: &State, shadow: &Mutex<Vec<u64>>, rng: &mut Rng, n: u64) {
    let table = rng.below(LOAD_TABLES);
    let (l2_offset, block_offset) = ((table + 1) * TABLE, BLOCKS + table % 5 * TABLE);
    if rng.below(3) > 0 {
        let l2 = state.l2_cache();
        let mut buf = [0; 8];
        let word = l2
            .read(l2_offset, 8, &mut buf)
            .map(|()| u64::from_ne_bytes(buf));
        let word = word
            .or_else(|_| block_on(l2.host(), &[], l2.get_unlocked(l2_offset)).map(|p| p.load(8)));
        match word {
            Ok(word) => assert_eq!(word, pattern(l2_offset + 8)),
            Err(error) => assert_eq!(error, Errno::AGAIN),
        }
        return;
    }
    state.cleaner().lock().unwrap();
    let (l2, refcount) = (state.l2_cache(), state.refcount_cache());
    edit(&refcount, block_offset, n).unwrap();
    block_on(l2.host(), &[], l2.set_dependency(&refcount)).unwrap();
    let before = block_on(l2.host(), &[], l2.get(l2_offset)).unwrap().load(0);
    assert_eq!(before, lock(shadow)[table as usize]);
    edit(&l2, l2_offset, n).unwrap();
    lock(shadow)[table as usize] = n;
    state.cleaner().unlock().unwrap();
}

fn options_change_under_load(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, BUSY);
    let shadow = Mutex::new(
        (0..LOAD_TABLES)
            .map(|table| pattern((table + 1) * TABLE))
            .collect::<Vec<_>>(),
    );
    let done = AtomicBool::new(false);
    let requests = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (state, shadow, done, requests) = (&state, &shadow, &done, &requests);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                while !done.load(Ordering::SeqCst) {
                    let n = requests.fetch_add(1, Ordering::SeqCst);
                    request(state, shadow, &mut rng, n);
                }
            });
        }
        let mut rng = Rng::new(77);
        for round in 0..60 {
            let tables = 4 + rng.below(20);
            let mut update = prepared(
                &state,
                &options(tables, 5),
                [BUSY, 100_000, NEVER][round % 3],
            );
            let mut tries = 0;
            while let Err((errno, back)) = commit(&state, update, (round + tries) % 2 == 0) {
                // A reader without the state lock has a table pinned.
                assert_eq!(errno, Errno::BUSY);
                update = back;
                tries += 1;
            }
            assert_eq!(state.l2_cache().stats().tables as u64, tables);
            if round % 4 == 0 {
                state.detach();
                state.attach(fixture.context(round % 2)).unwrap();
            }
            let seen = requests.load(Ordering::SeqCst);
            until(|| requests.load(Ordering::SeqCst) > seen + 20);
        }
        done.store(true, Ordering::SeqCst);
    });
    state.close().unwrap();
    for (table, value) in lock(&shadow).iter().enumerate() {
        assert_eq!(storage.word((table as u64 + 1) * TABLE), *value);
    }
}

#[test]
fn a_moved_cleaner_cleans_in_the_new_loop_alone() {
    watched(|| {
        // Two loops in this one thread, turned by hand.
        let loops = [EventLoop::new().unwrap(), EventLoop::new().unwrap()];
        loops
            .iter()
            .for_each(|l| assert!(l.executor().pause_clock()));
        let storage = Arc::new(TestStorage::new(1 << 19));
        let context = |n: usize| Context::Loop(loops[n].clone());
        let state =
            State::open(config(EventLoopHost::shared(), &storage, context(0), 1000)).unwrap();
        let turn = |n: usize| {
            loops[n].executor().step_clock(1000);
            while loops[n].dispatch().unwrap() > 0 {}
        };
        let passes = || state.cleaner().stats().passes;
        loops[0].dispatch().unwrap();
        turn(0);
        assert_eq!(passes(), 1);
        state.detach();
        state.attach(context(1)).unwrap();
        loops[1].dispatch().unwrap();
        turn(0);
        assert_eq!(
            passes(),
            1,
            "the old loop has nothing to do with it any more"
        );
        assert!(!loops[0].executor().has_tasks());
        turn(1);
        turn(1);
        assert_eq!(passes(), 3);
        state.close().unwrap();
        turn(1);
        assert_eq!(passes(), 3);
        loops
            .iter()
            .for_each(|l| assert!(!l.executor().has_tasks()));
    });
}

#[test]
fn the_cleaner_of_a_state_and_caches_alone_do_the_same() {
    watched(|| {
        // What the state offers is made of parts that work alone, too.
        let storage = Arc::new(TestStorage::new(1 << 19));
        let cache = support::cache_on(&storage, 4, 4096, 1);
        assert!(!cache.belongs_to_state());
        let cleaner = Cleaner::new(qcow2cache::host::threads::ThreadHost::shared());
        assert!(!cleaner.belongs_to_state());
        let target: Arc<dyn CleanTarget> = cache.clone();
        cleaner.set_caches(vec![target]);
        drop(block_on(cache.host(), &[], cache.get(TABLE)).unwrap());
        cleaner.start(Context::Default, BUSY).unwrap();
        until(|| cache.stats().cleaned == 1);
        cleaner.del_and_wait().unwrap();
    });
}
