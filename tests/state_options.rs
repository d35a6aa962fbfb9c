// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of options: prepare, commit with and without the state lock, abort, their error paths,
//! and changes under load, on the thread host and on event loops.

#[macro_use]
mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use qcow2cache::error::Errno;
use qcow2cache::options::{Geometry, Options};
use qcow2cache::state::State;
use support::hosts::{Fixture, PLACES, run_at};
use support::image::{
    BLOCKS, L2, TABLE, commit, commit_ok, dirty_both, geometry, open, options, prepared, shape,
};
use support::{
    BUSY, Io, NEVER, Rng, cache_on, edit, flush, get, get_unlocked, lock, pattern, set_dependency,
    wait_until, write,
};

on_every_host! {
    prepare_flushes_old_caches_and_changes_nothing
    failed_prepare_changes_nothing
    commit_applies_every_option
    failed_commit_returns_update_and_changes_nothing
    commit_turns_cleaner_off_and_on
    dropped_update_changes_nothing
    options_change_while_detached
    commit_hands_on_that_a_cache_is_unstable
    commit_keeps_dependency_on_another_cache
    options_change_under_load
}

fn prepare_flushes_old_caches_and_changes_nothing(fixture: &dyn Fixture) {
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

fn failed_prepare_changes_nothing(fixture: &dyn Fixture) {
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
    assert_eq!(storage.write_count(), 0);
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

fn commit_applies_every_option(fixture: &dyn Fixture) {
    for locked in [false, true] {
        for place in PLACES {
            let (storage, state) = open(fixture, NEVER);
            run_at(fixture, place, || {
                dirty_both(&state, 1);
                let larger = Geometry {
                    virtual_size: 128 << 20,
                    ..geometry()
                };
                let update = state
                    .prepare(&options(8, 9), Some(larger), 123_456_789)
                    .unwrap();
                // Dirty again after the prepare: the commit writes the tables.
                dirty_both(&state, 2);
                let old = Arc::downgrade(&state.l2_cache());
                commit_ok(&state, update, locked);
                assert!(old.upgrade().is_none(), "the old cache is gone");
            });
            assert_eq!((storage.word(TABLE), storage.word(BLOCKS)), (2, 2));
            assert_eq!(
                (shape(&state.l2_cache()), shape(&state.refcount_cache())),
                ((8, 4096), (9, 4096))
            );
            assert!(state.l2_cache().is_owned_by_state());
            assert!(state.cleaner().is_running());
            let stats = state.cleaner().stats();
            assert_eq!(
                (stats.interval_ns, stats.instances, stats.starts),
                (123_456_789, 1, 2)
            );
            // The state uses the new cache, which reads what the old one wrote.
            let l2 = state.l2_cache();
            assert_eq!(get(&l2, TABLE).unwrap().load(0), 2);
            state.close().unwrap();
        }
    }
}

fn failed_commit_returns_update_and_changes_nothing(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    let old = state.l2_cache();
    let assert_unchanged = |when: &str| {
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
    assert_unchanged("the lock is not held");

    state.cleaner().lock().unwrap();
    let (errno, mut update) = state.commit(update, false).err().unwrap();
    assert_eq!(errno, Errno::DEADLK);
    state.cleaner().unlock().unwrap();
    assert_unchanged("the lock is held");

    for locked in [false, true] {
        let pinned = get(&old, 5 * TABLE).unwrap();
        let result = commit(&state, update, locked);
        let (errno, back) = result.err().unwrap();
        assert_eq!(errno, Errno::BUSY);
        drop(pinned);
        assert_unchanged("a table is in use");

        storage.set_hook(|_, io| match io {
            Io::Check { kind: L2, .. } => Err(Errno::NOSPC),
            _ => Ok(()),
        });
        edit(&old, TABLE, 4).unwrap();
        let (errno, back) = commit(&state, back, locked).err().unwrap();
        assert_eq!(errno, Errno::NOSPC);
        storage.clear_hook();
        assert_unchanged("a write failed");
        assert_eq!(old.stats().dirty_tables, 1);
        update = back;
    }
    drop(old);
    commit_ok(&state, update, false);
    assert_eq!(storage.word(TABLE), 4);
    assert_eq!(shape(&state.l2_cache()), (8, 4096));
    assert_eq!(state.cleaner().stats().interval_ns, 5_000_000_000);
    state.close().unwrap();
}

fn commit_turns_cleaner_off_and_on(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    let off = Options {
        cache_clean_interval: Some(0),
        ..options(4, 4)
    };
    let update = prepared(&state, &off, 0);
    commit_ok(&state, update, false);
    assert!(!state.cleaner().is_running());
    assert_eq!(state.cleaner().stats().instances, 0);
    let on = Options {
        cache_clean_interval: Some(9),
        ..options(4, 4)
    };
    let update = prepared(&state, &on, 0);
    commit_ok(&state, update, true);
    assert!(state.cleaner().is_running());
    assert_eq!(state.cleaner().stats().interval_ns, 9_000_000_000);
    state.close().unwrap();
}

fn dropped_update_changes_nothing(fixture: &dyn Fixture) {
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

fn options_change_while_detached(fixture: &dyn Fixture) {
    let (_storage, state) = open(fixture, NEVER);
    state.detach();
    let update = prepared(&state, &options(6, 6), 70_000);
    commit_ok(&state, update, false);
    assert!(!state.cleaner().is_running());
    assert_eq!(shape(&state.l2_cache()), (6, 4096));
    state.attach(fixture.context(1)).unwrap();
    assert_eq!(state.cleaner().stats().interval_ns, 70_000);
    let passes = state.cleaner().stats().passes;
    wait_until(|| state.cleaner().stats().passes > passes);
    // The cleaner cleans the new caches.
    let l2 = state.l2_cache();
    drop(get(&l2, TABLE).unwrap());
    wait_until(|| l2.stats().cleaned == 1);
    drop(l2);
    state.close().unwrap();
}

/// A table was lost by a failed flush after the change was prepared. The new caches' flushes fail,
/// as the old ones' did.
fn commit_hands_on_that_a_cache_is_unstable(fixture: &dyn Fixture) {
    for first in [TABLE, BLOCKS] {
        let (storage, state) = open(fixture, NEVER);
        let update = prepared(&state, &options(4, 5), NEVER);
        let cache = || {
            if first == TABLE {
                state.l2_cache()
            } else {
                state.refcount_cache()
            }
        };
        edit(&cache(), first, 77).unwrap();
        write(&cache()).unwrap();
        for n in 1..6 {
            drop(get(&cache(), first + n * TABLE).unwrap());
        }
        storage.set_hook(|_, io| match io {
            Io::Flush => Err(Errno::IO),
            _ => Ok(()),
        });
        assert_eq!(flush(&cache()), Err(Errno::IO));
        storage.clear_hook();
        assert_eq!(flush(&cache()), Err(Errno::IO), "unstable");
        commit_ok(&state, update, false);
        assert_eq!(flush(&cache()), Err(Errno::IO), "still unstable");
        assert_eq!(state.close(), Err(Errno::IO));
        state.invalidate().unwrap();
        state.close().unwrap();
    }
}

fn commit_keeps_dependency_on_another_cache(fixture: &dyn Fixture) {
    let (storage, state) = open(fixture, NEVER);
    let other = cache_on(&storage, 4, TABLE as usize, 0);
    let update = prepared(&state, &options(4, 5), NEVER);
    edit(&other, 40 * TABLE, 1).unwrap();
    set_dependency(&state.l2_cache(), &other).unwrap();
    commit_ok(&state, update, false);
    edit(&state.l2_cache(), TABLE, 2).unwrap();
    write(&state.l2_cache()).unwrap();
    assert_eq!(storage.word(40 * TABLE), 1, "written after the L2 table");
    state.close().unwrap();
}

const LOAD_TABLES: u64 = 30;

/// A request of a driver. It changes tables under the state lock, or reads a table without it.
fn request(state: &State, shadow: &Mutex<Vec<u64>>, rng: &mut Rng, n: u64) {
    let table = rng.below(LOAD_TABLES);
    let (l2_offset, block_offset) = ((table + 1) * TABLE, BLOCKS + table % 5 * TABLE);
    if rng.below(3) > 0 {
        let l2 = state.l2_cache();
        let mut buf = [0; 8];
        let word = l2
            .read(l2_offset, 8, &mut buf)
            .map(|()| u64::from_ne_bytes(buf));
        let word = word.or_else(|_| get_unlocked(&l2, l2_offset).map(|p| p.load(8)));
        match word {
            Ok(word) => assert_eq!(word, pattern(l2_offset + 8)),
            Err(error) => assert_eq!(error, Errno::AGAIN),
        }
        return;
    }
    state.cleaner().lock().unwrap();
    let (l2, refcount) = (state.l2_cache(), state.refcount_cache());
    edit(&refcount, block_offset, n).unwrap();
    set_dependency(&l2, &refcount).unwrap();
    let before = get(&l2, l2_offset).unwrap().load(0);
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
                // A reader without the state lock pins a table.
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
            wait_until(|| requests.load(Ordering::SeqCst) > seen + 20);
        }
        done.store(true, Ordering::SeqCst);
    });
    state.close().unwrap();
    for (table, value) in lock(&shadow).iter().enumerate() {
        assert_eq!(storage.word((table as u64 + 1) * TABLE), *value);
    }
}
