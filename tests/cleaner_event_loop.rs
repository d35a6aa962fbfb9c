// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cleaner on event loops. Most tests run a loop in their own thread and step its clock by
//! hand, so that they can examine each moment of the protocol. Also the errors that only loops can
//! make.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qcow2cache::cleaner::Cleaner;
use qcow2cache::host::Context;
use qcow2cache::host::event_loop::{EventLoop, EventLoopHost};
use qcow2cache::host::executor::Executor;
use support::cleaners::{
    FakeCache, STOPS, cleaner_of, cleaner_with_drop_observer, in_new_thread, stop,
};
use support::hosts::{Fixture, Loops};
use support::{BUSY, NEVER, lock, with_timeout};

/// A loop for the test's own thread, whose clock the test steps, and a cleaner to start on it.
fn stepped_loop() -> (Arc<EventLoop>, Arc<FakeCache>, Cleaner) {
    let event_loop = EventLoop::new().unwrap();
    assert!(event_loop.executor().pause_clock());
    let cache = Arc::new(FakeCache::default());
    let cleaner = Cleaner::new(EventLoopHost::shared());
    cleaner.set_caches(vec![cache.clone()]);
    (event_loop, cache, cleaner)
}

fn dispatch_all(event_loop: &EventLoop) {
    while event_loop.dispatch().unwrap() > 0 {}
}

#[test]
fn pass_runs_exactly_when_interval_elapses() {
    let (event_loop, cache, cleaner) = stepped_loop();
    cleaner
        .start(Context::Loop(event_loop.clone()), 100)
        .unwrap();
    dispatch_all(&event_loop);
    assert_eq!(event_loop.timeout_ns(), None, "the clock stands still");
    for (step, passes) in [(99, 0), (1, 1), (99, 1), (1, 2), (1000, 3), (99, 3), (1, 4)] {
        assert!(event_loop.executor().step_clock(step));
        dispatch_all(&event_loop);
        assert_eq!(cache.passes(), passes);
    }
    cleaner.del_and_wait().unwrap();
    dispatch_all(&event_loop);
    assert!(!event_loop.executor().has_tasks());
    assert_eq!(
        event_loop.timeout_ns(),
        None,
        "the cleaner's timer is deleted"
    );
}

#[test]
fn stop_at_each_await_releases_caches_before_end_is_reported() {
    with_timeout(|| {
        for how in STOPS {
            for turns in 0..4 {
                let event_loop = EventLoop::new().unwrap();
                let (_cache, cleaner, instances) =
                    cleaner_with_drop_observer(EventLoopHost::shared());
                cleaner
                    .start(Context::Loop(event_loop.clone()), NEVER)
                    .unwrap();
                cleaner.set_caches(Vec::new());
                if turns == 3 {
                    // The cleaner is awake; the lock keeps it from its pass.
                    cleaner.set_interval(BUSY).unwrap();
                    cleaner.lock().unwrap();
                }
                for _ in 0..turns {
                    event_loop.dispatch().unwrap();
                }
                if turns == 3 {
                    // Unlocked again, so that a locked stop can take the lock.
                    assert_eq!(*lock(&instances), []);
                    in_new_thread(|| cleaner.co_del_and_wait().unwrap());
                    cleaner.unlock().unwrap();
                }
                stop(&cleaner, how);
                assert_eq!(*lock(&instances), [1], "{how:?} after {turns} turns");
            }
        }
    });
}

#[test]
fn poll_waits_for_earlier_of_timer_and_limit() {
    with_timeout(|| {
        let (event_loop, cache, cleaner) = stepped_loop();
        assert!(event_loop.executor().resume_clock());
        cleaner
            .start(Context::Loop(event_loop.clone()), 1_000_000)
            .unwrap();
        while cache.passes() == 0 {
            event_loop.poll(Some(NEVER)).unwrap();
        }
        cleaner.set_interval(NEVER).unwrap();
        dispatch_all(&event_loop);
        assert_eq!(event_loop.poll(Some(0)), Ok(0));
        assert_eq!(event_loop.poll(Some(1_000_000)), Ok(0));
        cleaner.del_and_wait().unwrap();
    });
}

#[test]
fn short_interval_does_not_starve_event_loop() {
    with_timeout(|| {
        let event_loop = EventLoop::new().unwrap();
        let cache = Arc::new(FakeCache::default());
        let cleaner = Cleaner::new(EventLoopHost::shared());
        cleaner.set_caches(vec![cache.clone()]);
        // The next pass is due before the current one ends.
        cleaner
            .start(Context::Loop(event_loop.clone()), BUSY)
            .unwrap();
        let mut before = 0;
        for _ in 0..50 {
            event_loop.dispatch().unwrap();
            let passes = cache.passes();
            assert!(passes <= before + 1, "two passes in one loop iteration");
            before = passes;
        }
        assert!(before > 0);
        cleaner.del_and_wait().unwrap();
    });
}

#[test]
fn new_interval_counts_from_start_of_sleep() {
    let (event_loop, cache, cleaner) = stepped_loop();
    cleaner
        .start(Context::Loop(event_loop.clone()), 1000)
        .unwrap();
    dispatch_all(&event_loop);
    event_loop.executor().step_clock(300);
    dispatch_all(&event_loop);
    for (interval_ns, step, passes) in [
        (500, 199, 0),
        (2000, 1, 0),
        (600, 99, 0),
        (600, 1, 1),
        (50, 49, 1),
        (50, 1, 2),
    ] {
        cleaner.set_interval(interval_ns).unwrap();
        dispatch_all(&event_loop);
        event_loop.executor().step_clock(step);
        dispatch_all(&event_loop);
        assert_eq!(cache.passes(), passes, "{interval_ns}, {step}");
    }
    cleaner.set_interval(1_000_000).unwrap();
    dispatch_all(&event_loop);
    event_loop.executor().step_clock(500);
    // Shorter than the time that has passed already: the pass is due now.
    cleaner.set_interval(400).unwrap();
    dispatch_all(&event_loop);
    assert_eq!(cache.passes(), 3);
    cleaner.del_and_wait().unwrap();
}

#[test]
fn stop_returns_without_clock_or_loop_progress() {
    with_timeout(|| {
        for how in STOPS {
            let (event_loop, cache, cleaner) = stepped_loop();
            for polled in [false, true] {
                cleaner
                    .start(Context::Loop(event_loop.clone()), 100)
                    .unwrap();
                if polled {
                    dispatch_all(&event_loop);
                }
                stop(&cleaner, how);
                assert_eq!((cleaner.stats().instances, cache.passes()), (0, 0));
                dispatch_all(&event_loop);
                assert!(!event_loop.executor().has_tasks());
            }
        }
    });
}

#[test]
fn two_loops_stop_each_others_cleaners_concurrently() {
    with_timeout(|| {
        let loops = Loops::new();
        for _ in 0..200 {
            let (caches, cleaners): (Vec<_>, Vec<_>) = (0..2).map(|_| cleaner_of(&loops)).unzip();
            for (which, cleaner) in cleaners.iter().enumerate() {
                cleaner.start(loops.context(which), NEVER).unwrap();
            }
            let barrier = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                for which in 0..2 {
                    let (loops, cleaners, barrier) = (&loops, &cleaners, &barrier);
                    scope.spawn(move || {
                        loops.run_in(
                            which,
                            Box::new(|| {
                                barrier.wait();
                                cleaners[1 - which].del_and_wait().unwrap();
                            }),
                        );
                    });
                }
            });
            caches.iter().for_each(|cache| cache.forbid_passes());
        }
    });
}

#[test]
fn wake_up_during_poll_is_not_lost() {
    let executor = Executor::new(Box::new(|| {}));
    let polls = Arc::new(AtomicUsize::new(0));
    let task = {
        let (executor, polls) = (executor.clone(), polls.clone());
        std::future::poll_fn(move |cx| {
            if polls.fetch_add(1, Ordering::SeqCst) == 2 {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            // The task waits by running the loop that it runs in.
            executor.run_ready();
            std::task::Poll::Pending
        })
    };
    let _handle = executor.spawn(Box::pin(task));
    for _ in 0..3 {
        executor.run_ready();
    }
    assert_eq!(polls.load(Ordering::SeqCst), 3);
    assert!(!executor.has_tasks());
}
