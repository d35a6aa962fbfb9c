// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of an open image: open, detach, attach, invalidate and close, with their error paths,
//! on the thread host and on event loops. For changes of options see `state_options.rs`.

#[macro_use]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::error::Errno;
use qcow2cache::host::Context;
use qcow2cache::host::event_loop::{EventLoop, EventLoopHost};
use qcow2cache::options::{Geometry, Options};
use qcow2cache::state::{Config, State};
use support::hosts::{Fixture, PLACES, run_at};
use support::image::{
    BLOCKS, L2, REFCOUNT, TABLE, config, dirty_both, geometry, open, options, shape,
};
use support::{
    BUSY, Io, Latch, NEVER, TestStorage, cache_on, edit, get, get_empty, lock, pattern, wait_until,
    with_timeout, write,
};

on_every_host! {
    open_applies_every_option_and_starts_cleaner
    open_rejects_bad_options_geometry_and_context
    interval_zero_runs_no_cleaner
    cleaner_cleans_both_caches
    close_writes_all_dirty_tables
    failed_close_loses_no_dirty_table
    close_of_poisoned_state_flushes_what_was_written
    detach_never_waits_and_attach_keeps_interval
    attach_rejects_attached_state_and_foreign_context
    invalidate_drops_all_tables
    invalidate_drops_nothing_while_table_is_pinned
    invalidate_drops_both_caches_or_none
    waiting_calls_return_edeadlk_while_caller_holds_lock
    poll_until_done_returns_once_condition_holds
}

fn open_applies_every_option_and_starts_cleaner(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, 0);
    assert!(state.cleaner().is_running());
    // The default is 600 s.
    assert_eq!(state.cleaner().stats().interval_ns, NEVER);
    assert_eq!(
        (shape(&state.l2_cache()), shape(&state.refcount_cache())),
        ((4, 4096), (5, 4096))
    );
    assert!(state.l2_cache().is_owned_by_state() && state.refcount_cache().is_owned_by_state());
    assert!(state.cleaner().is_owned_by_state());
    drop(get_empty(&state.l2_cache(), TABLE).unwrap());
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

fn open_rejects_bad_options_geometry_and_context(fixture: &dyn Fixture) {
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
        "a failed open leaves no reference to the storage"
    );
}

fn interval_zero_runs_no_cleaner(fixture: &dyn Fixture) {
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

fn cleaner_cleans_both_caches(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, BUSY);
    for n in 1..4 {
        drop(get(&state.l2_cache(), n * TABLE).unwrap());
        drop(get(&state.refcount_cache(), BLOCKS + n * TABLE).unwrap());
    }
    wait_until(|| {
        state.l2_cache().stats().resident_tables + state.refcount_cache().stats().resident_tables
            == 0
    });
    state.close().unwrap();
    assert_eq!(state.cleaner().stats().tables_cleaned, 6);
}

fn close_writes_all_dirty_tables(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    dirty_both(&state, 42);
    fixture.run_in(0, Box::new(|| state.close().unwrap()));
    assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (42, 42));
    let log: Vec<_> = storage
        .log_from(0)
        .into_iter()
        .filter(|io| io.is_write() || *io == Io::Flush)
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

fn failed_close_loses_no_dirty_table(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    dirty_both(&state, 43);
    let refcount = state.refcount_cache();
    let pinned = get(&refcount, BLOCKS + TABLE).unwrap();
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
    // All tables are still there, and the image is still usable.
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

fn close_of_poisoned_state_flushes_what_was_written(fixture: &dyn Fixture) {
    for l2 in [false, true] {
        let (storage, state) = open(fixture, NEVER);
        let (cache, offset) = if l2 {
            (state.l2_cache(), TABLE)
        } else {
            (state.refcount_cache(), BLOCKS)
        };
        edit(&cache, offset, 5).unwrap();
        write(&cache).unwrap();
        cache.poison();
        let from = storage.log_len();
        storage.set_hook(|_, _| Err(Errno::NOSPC));
        assert_eq!(state.close(), Err(Errno::NOSPC));
        storage.clear_hook();
        drop(cache);
        // A poisoned cache cannot write again what that flush may have lost.
        assert_eq!(state.close(), Err(Errno::IO));
        assert_eq!(storage.log_from(from), [Io::Flush]);
    }
}

fn detach_never_waits_and_attach_keeps_interval(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, 50_000);
    for round in 0..30 {
        let passes = state.cleaner().stats().passes;
        wait_until(|| state.cleaner().stats().passes > passes);
        // The driver may or may not hold the lock when it detaches.
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
        assert_eq!(
            stats.interval_ns, 50_000,
            "a stop never changes the interval"
        );
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

fn attach_rejects_attached_state_and_foreign_context(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    assert_eq!(state.attach(fixture.context(0)), Err(Errno::ALREADY));
    assert_eq!(state.attach(fixture.foreign_context()), Err(Errno::INVAL));
    assert!(state.cleaner().is_running());
    state.detach();
    assert_eq!(state.attach(fixture.foreign_context()), Err(Errno::INVAL));
    assert!(!state.cleaner().is_running());
    // The refused attach had no effect: the state can still be attached.
    state.attach(fixture.context(0)).unwrap();
    assert!(state.cleaner().is_running());
    state.close().unwrap();
}

fn invalidate_drops_all_tables(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    dirty_both(&state, 9);
    lock(&storage.disk)[TABLE as usize..][..8].copy_from_slice(&77_u64.to_ne_bytes());
    let writes = storage.write_count();
    fixture.run_in(0, Box::new(|| state.invalidate().unwrap()));
    for cache in [state.l2_cache(), state.refcount_cache()] {
        assert_eq!(
            (cache.stats().resident_tables, cache.stats().dirty_tables),
            (0, 0)
        );
    }
    assert_eq!(
        storage.write_count(),
        writes,
        "invalidate wrote a dirty table"
    );
    assert!(state.cleaner().is_running());
    assert_eq!(state.cleaner().stats().starts, 2);
    let l2 = state.l2_cache();
    assert_eq!(get(&l2, TABLE).unwrap().load(0), 77);
    drop(l2);
    state.close().unwrap();
    assert_eq!(
        (storage.word(TABLE), storage.word(BLOCKS)),
        (77, pattern(BLOCKS))
    );
}

fn invalidate_drops_nothing_while_table_is_pinned(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    for which in 0..2 {
        dirty_both(&state, 10);
        let (l2, refcount) = (state.l2_cache(), state.refcount_cache());
        let pinned = if which == 0 {
            get(&l2, 3 * TABLE).unwrap()
        } else {
            get(&refcount, BLOCKS + 3 * TABLE).unwrap()
        };
        assert_eq!(state.invalidate(), Err(Errno::BUSY));
        assert_eq!(
            (l2.stats().dirty_tables, refcount.stats().dirty_tables),
            (1, 1),
            "a table of cache {which} is pinned"
        );
        assert!(state.cleaner().is_running());
        drop(pinned);
    }
    state.close().unwrap();
    assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (10, 10));
}

fn invalidate_drops_both_caches_or_none(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, 0);
    let (l2, refcount) = (state.l2_cache(), state.refcount_cache());
    let done = AtomicBool::new(false);
    let mut dropped = 0;
    let mut rng = support::Rng::new(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let pinned = support::get_unlocked(&l2, TABLE);
                support::spin(rng.below(200));
                drop(pinned);
                support::spin(rng.below(200));
            }
        });
        for _ in 0..5000 {
            drop(get(&refcount, BLOCKS).unwrap());
            let invalidated = state.invalidate();
            let resident = refcount.try_get(BLOCKS).map(drop).is_ok();
            match invalidated {
                Ok(()) => dropped += usize::from(!resident),
                Err(error) => assert_eq!((error, resident), (Errno::BUSY, true)),
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(dropped > 0);
    drop((l2, refcount));
    state.close().unwrap();
}

fn waiting_calls_return_edeadlk_while_caller_holds_lock(fixture: &dyn Fixture) {
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
    // Another thread holds the lock: it still uses the state.
    std::thread::scope(|scope| {
        let (locked, release) = (Latch::default(), Latch::default());
        let holder = scope.spawn({
            let (locked, release, state) = (locked.clone(), release.clone(), &state);
            move || {
                state.cleaner().lock().unwrap();
                locked.open();
                release.wait();
                state.cleaner().unlock().unwrap();
            }
        });
        locked.wait();
        assert_eq!(state.close(), Err(Errno::BUSY));
        release.open();
        holder.join().unwrap();
    });
    state.close().unwrap();
}

fn poll_until_done_returns_once_condition_holds(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    for place in PLACES {
        let done = AtomicBool::new(false);
        let checks = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The poll waits by now or is about to wait. Both must end.
                wait_until(|| checks.load(Ordering::SeqCst) > 0);
                // A kick alone does not end the poll.
                state.kick();
                done.store(true, Ordering::SeqCst);
                state.kick();
            });
            run_at(fixture, place, || {
                state.poll_until_done(&|| {
                    checks.fetch_add(1, Ordering::SeqCst);
                    done.load(Ordering::SeqCst)
                });
                assert!(done.load(Ordering::SeqCst));
            });
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

#[test]
fn moved_cleaner_runs_only_in_new_loop() {
    with_timeout(|| {
        // Two loops in this thread, run by hand.
        let loops = [EventLoop::new().unwrap(), EventLoop::new().unwrap()];
        loops
            .iter()
            .for_each(|l| assert!(l.executor().pause_clock()));
        let storage = Arc::new(TestStorage::new(1 << 19));
        let context = |n: usize| Context::Loop(loops[n].clone());
        let state =
            State::open(config(EventLoopHost::shared(), &storage, context(0), 1000)).unwrap();
        let run_loop = |n: usize| {
            loops[n].executor().step_clock(1000);
            while loops[n].dispatch().unwrap() > 0 {}
        };
        let passes = || state.cleaner().stats().passes;
        loops[0].dispatch().unwrap();
        run_loop(0);
        assert_eq!(passes(), 1);
        state.detach();
        state.attach(context(1)).unwrap();
        loops[1].dispatch().unwrap();
        run_loop(0);
        assert_eq!(passes(), 1, "the old loop still runs the cleaner");
        assert!(!loops[0].executor().has_tasks());
        run_loop(1);
        run_loop(1);
        assert_eq!(passes(), 3);
        state.close().unwrap();
        run_loop(1);
        assert_eq!(passes(), 3);
        loops
            .iter()
            .for_each(|l| assert!(!l.executor().has_tasks()));
    });
}

#[test]
fn cache_and_cleaner_work_without_state() {
    with_timeout(|| {
        // The parts of a state also work alone.
        let storage = Arc::new(TestStorage::new(1 << 19));
        let cache = cache_on(&storage, 4, 4096, 1);
        assert!(!cache.is_owned_by_state());
        let cleaner = Cleaner::new(qcow2cache::host::threads::ThreadHost::shared());
        assert!(!cleaner.is_owned_by_state());
        let target: Arc<dyn CleanTarget> = cache.clone();
        cleaner.set_caches(vec![target]);
        drop(get(&cache, TABLE).unwrap());
        cleaner.start(Context::Default, BUSY).unwrap();
        wait_until(|| cache.stats().cleaned == 1);
        cleaner.del_and_wait().unwrap();
    });
}
