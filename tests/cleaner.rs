// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cleaner's protocol. The same tests run on the thread host and on event loops in several
//! threads.

#[macro_use]
mod support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use qcow2cache::cleaner::Cleaner;
use qcow2cache::error::Errno;
use qcow2cache::host::Context;
use qcow2cache::host::threads::ThreadHost;
use support::cleaners::{
    FakeCache, STOPS, SteppedCache, Stop, cleaner_of, cleaner_with_drop_observer, in_new_thread,
    stop,
};
use support::hosts::{Fixture, PLACES, run_at};
use support::{
    BUSY, NEVER, PausePoint, Rng, TestStorage, cache_on, get, lock, pattern, spin, wait_until,
    with_timeout,
};

on_every_host! {
    passes_run_periodically_and_are_counted
    start_with_interval_zero_starts_no_instance
    second_start_returns_ealready
    start_rejects_foreign_context
    stop_without_cleaner_returns_immediately
    each_kind_of_stop_ends_sleep_from_any_thread
    each_kind_of_stop_ends_new_instance
    stop_waits_for_running_pass
    unlocked_stop_returns_while_cleaner_waits_for_lock
    locked_stop_releases_and_reacquires_lock
    wrong_lock_context_returns_error_instead_of_hanging
    stop_inside_pass_returns_edeadlk
    start_succeeds_while_old_instance_ends
    each_instance_holds_its_own_caches
    caches_are_released_before_end_is_reported
    new_interval_takes_effect_during_sleep
    set_interval_zero_requests_stop
    pass_holds_state_lock
    pass_releases_lock_between_steps
    stop_between_steps_aborts_pass
    panicking_cache_is_poisoned_and_others_are_cleaned
    check_idle_requires_no_instance_and_no_lock
    random_stops_and_starts_all_return
    stop_request_is_never_lost
    cleaner_drops_unused_tables_of_real_caches
}

fn passes_run_periodically_and_are_counted(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    assert!(!cleaner.is_running());
    cleaner.start(fixture.context(0), 1_000_000).unwrap();
    assert!(cleaner.is_running());
    cache.wait_for_passes(5);
    cleaner.del_and_wait().unwrap();
    cache.forbid_passes();
    let stats = cleaner.stats();
    assert_eq!(
        (stats.starts, stats.instances, stats.interval_ns),
        (1, 0, 1_000_000)
    );
    assert_eq!(stats.passes, cache.passes() as u64);
    assert_eq!(stats.tables_cleaned, 3 * stats.passes);
    cleaner.check_idle().unwrap();
}

fn start_with_interval_zero_starts_no_instance(fixture: &dyn Fixture) {
    let (_cache, cleaner) = cleaner_of(fixture);
    cleaner.start(fixture.context(0), 0).unwrap();
    assert!(!cleaner.is_running());
    assert_eq!(cleaner.stats().starts, 0);
    cleaner.check_idle().unwrap();
}

fn second_start_returns_ealready(fixture: &dyn Fixture) {
    let (_cache, cleaner) = cleaner_of(fixture);
    cleaner.start(fixture.context(0), NEVER).unwrap();
    assert_eq!(cleaner.start(fixture.context(0), 5), Err(Errno::ALREADY));
    assert_eq!(cleaner.start(fixture.context(1), 5), Err(Errno::ALREADY));
    assert_eq!(
        (cleaner.stats().starts, cleaner.stats().interval_ns),
        (1, NEVER)
    );
    cleaner.del_and_wait().unwrap();
    cleaner.start(fixture.context(1), NEVER).unwrap();
    cleaner.del_and_wait().unwrap();
}

fn start_rejects_foreign_context(fixture: &dyn Fixture) {
    let (_cache, cleaner) = cleaner_of(fixture);
    assert_eq!(
        cleaner.start(fixture.foreign_context(), 5),
        Err(Errno::INVAL)
    );
    assert!(!cleaner.is_running());
    cleaner.check_idle().unwrap();
    cleaner.start(fixture.context(0), NEVER).unwrap();
    cleaner.del_and_wait().unwrap();
}

fn stop_without_cleaner_returns_immediately(fixture: &dyn Fixture) {
    let (_cache, cleaner) = cleaner_of(fixture);
    for how in STOPS {
        stop(&cleaner, how);
        fixture.run_in(0, Box::new(|| stop(&cleaner, how)));
    }
    // A stop after an instance has ended returns immediately, too.
    cleaner.start(fixture.context(0), NEVER).unwrap();
    for how in STOPS {
        stop(&cleaner, how);
    }
}

fn each_kind_of_stop_ends_sleep_from_any_thread(fixture: &dyn Fixture) {
    for how in STOPS {
        for place in PLACES {
            let (cache, cleaner) = cleaner_of(fixture);
            cleaner.start(fixture.context(0), BUSY).unwrap();
            cache.wait_for_passes(1);
            cleaner.set_interval(NEVER).unwrap();
            run_at(fixture, place, || stop(&cleaner, how));
            cache.forbid_passes();
            assert_eq!(cleaner.stats().instances, 0, "{how:?} from place {place}");
        }
    }
}

fn each_kind_of_stop_ends_new_instance(fixture: &dyn Fixture) {
    for how in STOPS {
        for place in PLACES {
            for interval_ns in [BUSY, NEVER] {
                let (cache, cleaner) = cleaner_of(fixture);
                run_at(fixture, place, || {
                    cleaner.start(fixture.context(0), interval_ns).unwrap();
                    stop(&cleaner, how);
                    cache.forbid_passes();
                });
                assert_eq!(cleaner.stats().instances, 0);
            }
        }
    }
}

fn stop_waits_for_running_pass(fixture: &dyn Fixture) {
    for how in [Stop::Unlocked, Stop::Mixed, Stop::Requested] {
        let (cache, cleaner) = cleaner_of(fixture);
        let pause = PausePoint::default();
        cache.set_hook({
            let pause = pause.clone();
            move || pause.pause()
        });
        cleaner.start(fixture.context(0), BUSY).unwrap();
        pause.wait_until_reached();
        // A stop request does not wait, not even for a running pass.
        if how == Stop::Requested {
            cleaner.request_stop();
        }
        let returned = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    stop(&cleaner, how);
                    returned.fetch_add(1, Ordering::SeqCst);
                    cache.forbid_passes();
                });
            }
            wait_until(|| !cleaner.is_running());
            assert_eq!(
                (cleaner.stats().instances, returned.load(Ordering::SeqCst)),
                (1, 0)
            );
            assert_eq!(cleaner.check_idle(), Err(Errno::BUSY));
            pause.resume();
        });
        assert_eq!((cache.passes(), cleaner.stats().instances), (1, 0));
    }
}

fn unlocked_stop_returns_while_cleaner_waits_for_lock(fixture: &dyn Fixture) {
    for how in [Stop::Unlocked, Stop::Mixed, Stop::Requested] {
        let (cache, cleaner) = cleaner_of(fixture);
        cleaner.lock().unwrap();
        cleaner.start(fixture.context(0), BUSY).unwrap();
        // The cleaner cannot pass the lock.
        for place in 0..2 {
            fixture.run_in(place, Box::new(|| stop(&cleaner, how)));
        }
        cache.forbid_passes();
        assert_eq!((cache.passes(), cleaner.stats().instances), (0, 0));
        cleaner.unlock().unwrap();
    }
}

fn locked_stop_releases_and_reacquires_lock(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for which in 0..2 {
            let (cleaner, done) = (&cleaner, &done);
            // Each start holds the lock, so the stops come between the starts.
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    cleaner.lock().unwrap();
                    let started = cleaner.start(
                        fixture.context(which),
                        if which == 0 { BUSY } else { NEVER },
                    );
                    assert!(matches!(started, Ok(()) | Err(Errno::ALREADY)));
                    cleaner.unlock().unwrap();
                }
            });
        }
        let mut rounds = 0;
        while rounds < 300 || cleaner.stats().starts < 20 {
            rounds += 1;
            cleaner.lock().unwrap();
            cleaner.co_locked_del_and_wait().unwrap();
            assert_eq!(cleaner.unlock(), Ok(()), "the lock is held again");
            cleaner.lock().unwrap();
            cleaner.co_locked_del_and_wait().unwrap();
            assert_eq!(
                cleaner.stats().instances,
                0,
                "a start succeeded although the lock was held"
            );
            cleaner.unlock().unwrap();
        }
        done.store(true, Ordering::SeqCst);
    });
    cleaner.del_and_wait().unwrap();
    cache.forbid_passes();
}

fn wrong_lock_context_returns_error_instead_of_hanging(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    cleaner.start(fixture.context(0), NEVER).unwrap();
    assert_eq!(cleaner.unlock(), Err(Errno::PERM));
    assert_eq!(cleaner.co_locked_del_and_wait(), Err(Errno::PERM));
    cleaner.lock().unwrap();
    assert_eq!(cleaner.lock(), Err(Errno::DEADLK));
    assert_eq!(cleaner.co_del_and_wait(), Err(Errno::DEADLK));
    assert_eq!(cleaner.del_and_wait(), Err(Errno::DEADLK));
    assert_eq!(cleaner.check_may_wait(), Err(Errno::DEADLK));
    // Only this thread owns the lock.
    fixture.run_in(
        0,
        Box::new(|| {
            assert_eq!(cleaner.unlock(), Err(Errno::PERM));
            assert_eq!(cleaner.co_locked_del_and_wait(), Err(Errno::PERM));
            assert_eq!(cleaner.check_may_wait(), Ok(()));
        }),
    );
    assert!(cleaner.is_running(), "a refused stop sets no stop flag");
    cleaner.unlock().unwrap();
    assert_eq!(cleaner.unlock(), Err(Errno::PERM));
    cleaner.del_and_wait().unwrap();
    cache.forbid_passes();
}

fn stop_inside_pass_returns_edeadlk(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    let results = Arc::new(Mutex::new(Vec::new()));
    cache.set_hook({
        let cleaner: Weak<Cleaner> = Arc::downgrade(&cleaner);
        let results = results.clone();
        move || {
            let Some(cleaner) = cleaner.upgrade() else {
                return;
            };
            let mut results = lock(&results);
            if results.is_empty() {
                results.push(cleaner.co_del_and_wait());
                results.push(cleaner.del_and_wait());
                results.push(cleaner.co_locked_del_and_wait());
                results.push(cleaner.lock());
            }
        }
    });
    cleaner.start(fixture.context(0), BUSY).unwrap();
    // The second pass shows that the cleaner goes on.
    cache.wait_for_passes(2);
    assert_eq!(*lock(&results), [Err(Errno::DEADLK); 4]);
    assert!(cleaner.is_running());
    cleaner.del_and_wait().unwrap();
}

fn start_succeeds_while_old_instance_ends(fixture: &dyn Fixture) {
    let (old, cleaner) = cleaner_of(fixture);
    let pause = PausePoint::default();
    old.set_hook({
        let pause = pause.clone();
        move || pause.pause()
    });
    cleaner.start(fixture.context(0), BUSY).unwrap();
    pause.wait_until_reached();
    cleaner.request_stop();
    let new = Arc::new(FakeCache::default());
    cleaner.set_caches(vec![new.clone()]);
    cleaner.start(fixture.context(1), NEVER).unwrap();
    assert_eq!((cleaner.stats().instances, cleaner.stats().starts), (2, 2));
    assert!(cleaner.is_running());
    let returned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cleaner.del_and_wait().unwrap();
            returned.store(true, Ordering::SeqCst);
            old.forbid_passes();
            new.forbid_passes();
        });
        wait_until(|| !cleaner.is_running());
        assert!(
            !returned.load(Ordering::SeqCst),
            "the stop waits for the instance that was stopped before, too"
        );
        pause.resume();
    });
    assert_eq!(cleaner.stats().instances, 0);
}

fn each_instance_holds_its_own_caches(fixture: &dyn Fixture) {
    let (first, cleaner) = cleaner_of(fixture);
    let second = Arc::new(FakeCache::default());
    cleaner.start(fixture.context(0), 100_000).unwrap();
    cleaner.set_caches(vec![second.clone()]);
    first.wait_for_passes(2);
    assert_eq!(second.passes(), 0, "set_caches affects only the next start");
    cleaner.del_and_wait().unwrap();
    first.forbid_passes();
    assert_eq!(
        Arc::strong_count(&first),
        1,
        "released before the end is reported"
    );
    cleaner.start(fixture.context(1), 100_000).unwrap();
    cleaner.set_caches(Vec::new());
    second.wait_for_passes(2);
    cleaner.del_and_wait().unwrap();
    assert_eq!(Arc::strong_count(&second), 1);
}

fn caches_are_released_before_end_is_reported(fixture: &dyn Fixture) {
    for wait in [false, true] {
        let (cache, cleaner, instances) = cleaner_with_drop_observer(fixture.host());
        // In the home thread the task cannot run before the stop.
        fixture.run_in(
            0,
            Box::new(|| {
                cleaner
                    .start(fixture.context(0), if wait { BUSY } else { NEVER })
                    .unwrap();
                cleaner.set_caches(Vec::new());
                if !wait {
                    cleaner.del_and_wait().unwrap();
                }
            }),
        );
        if wait {
            cache.wait_for_passes(1);
            cleaner.del_and_wait().unwrap();
        }
        assert_eq!(*lock(&instances), [1], "waited for a pass: {wait}");
    }
}

fn new_interval_takes_effect_during_sleep(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    assert_eq!(cleaner.set_interval(5), Err(Errno::SRCH));
    cleaner.start(fixture.context(0), NEVER).unwrap();
    for _ in 0..20 {
        cleaner.set_interval(BUSY).unwrap();
        cache.wait_for_passes(1);
        cleaner.set_interval(NEVER).unwrap();
        assert_eq!(cleaner.stats().interval_ns, NEVER);
    }
    cleaner.request_stop();
    assert_eq!(cleaner.set_interval(5), Err(Errno::SRCH));
    cleaner.del_and_wait().unwrap();
    assert_eq!(
        cleaner.stats().interval_ns,
        NEVER,
        "a stop never changes the interval"
    );
}

fn set_interval_zero_requests_stop(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    cleaner.start(fixture.context(0), NEVER).unwrap();
    cleaner.set_interval(0).unwrap();
    assert!(!cleaner.is_running());
    wait_until(|| cleaner.stats().instances == 0);
    cache.forbid_passes();
    assert_eq!(cleaner.stats().interval_ns, NEVER);
}

fn pass_holds_state_lock(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    let inside = Arc::new(AtomicUsize::new(0));
    cache.set_hook({
        let inside = inside.clone();
        move || {
            if inside.fetch_add(1, Ordering::SeqCst) != 0 {
                eprintln!("a pass runs while another thread holds the lock");
                std::process::abort();
            }
            std::thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
        }
    });
    cleaner.start(fixture.context(0), BUSY).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    cleaner.lock().unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    std::hint::spin_loop();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    cleaner.unlock().unwrap();
                }
            });
        }
    });
    // Threads that take the lock all the time do not starve the cleaner.
    cache.wait_for_passes(1);
    cleaner.del_and_wait().unwrap();
}

fn panicking_cache_is_poisoned_and_others_are_cleaned(fixture: &dyn Fixture) {
    let (panicking, cleaner) = cleaner_of(fixture);
    let healthy = Arc::new(FakeCache::default());
    cleaner.set_caches(vec![panicking.clone(), healthy.clone()]);
    panicking.set_hook(|| std::panic::resume_unwind(Box::new("a pass panicked")));
    cleaner.start(fixture.context(0), BUSY).unwrap();
    healthy.wait_for_passes(3);
    cleaner.lock().unwrap();
    cleaner.unlock().unwrap();
    cleaner.del_and_wait().unwrap();
    assert!(panicking.poisoned.load(Ordering::SeqCst));
    assert!(!healthy.poisoned.load(Ordering::SeqCst));
}

fn check_idle_requires_no_instance_and_no_lock(fixture: &dyn Fixture) {
    let (_cache, cleaner) = cleaner_of(fixture);
    cleaner.check_idle().unwrap();
    cleaner.lock().unwrap();
    assert_eq!(cleaner.check_idle(), Err(Errno::BUSY));
    cleaner.unlock().unwrap();
    cleaner.start(fixture.context(0), NEVER).unwrap();
    assert_eq!(cleaner.check_idle(), Err(Errno::BUSY));
    cleaner.del_and_wait().unwrap();
    cleaner.check_idle().unwrap();
}

fn random_stops_and_starts_all_return(fixture: &dyn Fixture) {
    let (cache, cleaner) = cleaner_of(fixture);
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            let cleaner = &cleaner;
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..400 {
                    let interval_ns = [BUSY, 20_000, NEVER][rng.below(3) as usize];
                    match rng.below(10) {
                        0..=3 => {
                            let started =
                                cleaner.start(fixture.context(rng.below(2) as usize), interval_ns);
                            assert!(
                                matches!(started, Ok(()) | Err(Errno::ALREADY)),
                                "{started:?}"
                            );
                        }
                        4 => {
                            let set = cleaner.set_interval(interval_ns);
                            assert!(matches!(set, Ok(()) | Err(Errno::SRCH)), "{set:?}");
                        }
                        5 => cleaner.request_stop(),
                        6 => {
                            cleaner.lock().unwrap();
                            cleaner.co_locked_del_and_wait().unwrap();
                            cleaner.unlock().unwrap();
                        }
                        7 => {
                            let which = rng.below(2) as usize;
                            fixture.run_in(which, Box::new(|| cleaner.del_and_wait().unwrap()));
                        }
                        _ => cleaner.co_del_and_wait().unwrap(),
                    }
                }
            });
        }
    });
    cleaner.del_and_wait().unwrap();
    cache.forbid_passes();
    cleaner.check_idle().unwrap();
}

fn stop_request_is_never_lost(fixture: &dyn Fixture) {
    let mut rng = Rng::new(7);
    for round in 0..400 {
        let (cache, cleaner) = cleaner_of(fixture);
        cleaner
            .start(fixture.context(round % 2), [BUSY, 1000, NEVER][round % 3])
            .unwrap();
        spin(rng.below(2000));
        if rng.below(2) == 0 {
            // From another thread, so that the request can meet the cleaner at any point.
            in_new_thread(|| cleaner.request_stop());
        } else {
            cleaner.request_stop();
        }
        wait_until(|| cleaner.stats().instances == 0);
        cache.forbid_passes();
    }
}

/// A running cleaner whose pass goes on until the test ends its two phases.
fn stepped_cleaner(fixture: &dyn Fixture) -> (Arc<SteppedCache>, Cleaner) {
    let steps = Arc::new(SteppedCache::default());
    let cleaner = Cleaner::new(fixture.host());
    cleaner.set_caches(vec![steps.clone()]);
    cleaner.start(fixture.context(0), BUSY).unwrap();
    (steps, cleaner)
}

fn pass_releases_lock_between_steps(fixture: &dyn Fixture) {
    let (steps, cleaner) = stepped_cleaner(fixture);
    wait_until(|| steps.drops() > 0);
    // The pass goes on until the test ends it. If it pinned the lock or its thread, this job would
    // never run.
    fixture.run_in(0, Box::new(|| ()));
    for _ in 0..3 {
        cleaner.lock().unwrap();
        let dropped = steps.drops();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(steps.drops(), dropped, "a step ran without the lock");
        cleaner.unlock().unwrap();
        wait_until(|| steps.drops() > dropped);
    }
    steps.end_drops();
    wait_until(|| steps.releases() > 0);
    // Memory is released while this thread holds the lock.
    cleaner.lock().unwrap();
    let before = steps.releases();
    wait_until(|| steps.releases() > before);
    cleaner.unlock().unwrap();
    fixture.run_in(0, Box::new(|| ()));
    assert_eq!(cleaner.stats().passes, 0);
    steps.end_releases();
    wait_until(|| cleaner.stats().passes > 0);
    cleaner.del_and_wait().unwrap();
}

fn stop_between_steps_aborts_pass(fixture: &dyn Fixture) {
    for how in STOPS {
        let (steps, cleaner) = stepped_cleaner(fixture);
        wait_until(|| steps.drops() > 0);
        stop(&cleaner, how);
        assert_eq!(steps.releases(), 0);
        assert_eq!(cleaner.stats().passes, 0);
        assert_eq!(cleaner.stats().tables_cleaned, steps.drops() as u64);

        let (steps, cleaner) = stepped_cleaner(fixture);
        steps.end_drops();
        wait_until(|| steps.releases() > 0);
        stop(&cleaner, how);
        // All tables were examined: that counts as a pass.
        assert_eq!(cleaner.stats().passes, 1);
    }
}

fn cleaner_drops_unused_tables_of_real_caches(fixture: &dyn Fixture) {
    let storage = Arc::new(TestStorage::new(1 << 16));
    let caches = [
        cache_on(&storage, 8, 512, 0),
        cache_on(&storage, 4, 1024, 0),
    ];
    let cleaner = Cleaner::new(fixture.host());
    cleaner.set_caches(vec![caches[0].clone(), caches[1].clone()]);
    let pinned = get(&caches[0], 512).unwrap();
    let dirty = get(&caches[0], 1024).unwrap();
    dirty.mark_dirty().unwrap();
    drop(dirty);
    for n in 3..8 {
        drop(get(&caches[0], n * 512).unwrap());
        drop(get(&caches[1], n * 1024).unwrap());
    }
    cleaner.start(fixture.context(0), BUSY).unwrap();
    wait_until(|| caches[0].stats().resident_tables == 2 && caches[1].stats().resident_tables == 0);
    // Memory is released after all tables are dropped. A stop now would leave the rest to a later
    // pass.
    wait_until(|| caches[1].stats().resident_bytes == 0);
    cleaner.del_and_wait().unwrap();
    // The fifth table of the second cache evicted one.
    assert_eq!(
        (caches[0].stats().cleaned, caches[1].stats().cleaned),
        (5, 4)
    );
    assert_eq!(cleaner.stats().tables_cleaned, 9);
    assert_eq!(pinned.load(0), pattern(512));
    assert_eq!(caches[0].stats().dirty_tables, 1);
}

#[test]
fn dropping_running_cleaner_ends_its_instance() {
    with_timeout(|| {
        for round in 0..300_u64 {
            let cache = Arc::new(FakeCache::default());
            let cleaner = Cleaner::new(ThreadHost::shared());
            cleaner.set_caches(vec![cache.clone()]);
            cleaner
                .start(Context::Default, [BUSY, 5000, NEVER][round as usize % 3])
                .unwrap();
            spin((round * 37) % 3000);
            drop(cleaner);
            wait_until(|| Arc::strong_count(&cache) == 1);
            cache.forbid_passes();
        }
    });
}
