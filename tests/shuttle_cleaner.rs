// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole life cycle of the cleaner with many threads: start, sleep, pass and every kind of
//! stop, on every kind of host. shuttle reports a hang as a deadlock, the host asserts one wake-up
//! for each sleep, and any use of a freed object after a stop fails.
#![cfg(shuttle)]

mod model_checking;

use std::sync::Arc;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use model_checking::host::{Freed, Kind, ModelHost};
use model_checking::sync::{Condvar, Mutex};
use model_checking::{INTERVAL, join, sample, spawn, thread, timeline};
use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::error::Errno;
use qcow2cache::host::Context;

/// The kind of host, and whether a spawned coroutine runs to its first wait inside the spawn call.
const HOSTS: [(Kind, bool); 6] = [
    (Kind::Threads, false),
    (Kind::Coroutines, false),
    (Kind::Coroutines, true),
    (Kind::OwnLock, false),
    (Kind::OwnLock, true),
    (Kind::Tasks, false),
];

fn on_hosts(
    hosts: &[(Kind, bool)],
    iterations: usize,
    model: impl Fn(Kind, bool) + Copy + Send + Sync + 'static,
) {
    for &(kind, eager) in hosts {
        sample(iterations, move || model(kind, eager));
    }
}

fn on_every_host(iterations: usize, model: impl Fn(Kind, bool) + Copy + Send + Sync + 'static) {
    on_hosts(&HOSTS, iterations, model);
}

/// What the state lock protects. Two visitors at the same time fail the model.
#[derive(Default)]
struct Protected(AtomicBool);

impl Protected {
    fn visit(&self) {
        if self.0.swap(true, Relaxed) {
            timeline::fail("two threads hold the state lock");
        }
        thread::yield_now();
        self.0.store(false, Relaxed);
    }
}

/// A cache that counts its passes and may not be used once it is freed.
struct Target {
    freed: Arc<Freed>,
    /// Once freed, no table may be dropped.
    drops: Freed,
    protected: Arc<Protected>,
    passes: Mutex<u32>,
    condvar: Condvar,
}

impl Target {
    fn new(protected: &Arc<Protected>) -> Arc<Self> {
        Arc::new(Self {
            freed: Arc::default(),
            drops: Freed::default(),
            protected: protected.clone(),
            passes: Mutex::new(0),
            condvar: Condvar::new(),
        })
    }

    fn wait_for_a_pass(&self) {
        let mut passes = self.passes.lock().unwrap();
        while *passes == 0 {
            passes = self.condvar.wait(passes).unwrap();
        }
    }
}

impl CleanTarget for Target {
    /// Drops in two steps. Between them other threads can take the lock, and a stop may come.
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>) {
        self.freed.touch("a pass");
        self.drops.touch("a drop of tables");
        self.protected.visit();
        self.drops.touch("a drop of tables");
        self.freed.touch("a pass");
        if from == 0 {
            return (1, Some(1));
        }
        *self.passes.lock().unwrap() += 1;
        self.condvar.notify_one();
        (1, None)
    }

    /// Releases memory in two steps, without the lock. Between them a stop may come.
    fn release_memory(&self, from: usize) -> Option<usize> {
        self.freed.touch("a pass");
        thread::yield_now();
        self.freed.touch("a pass");
        (from == 0).then_some(1)
    }

    fn poison(&self) {
        timeline::fail("an assertion of a pass failed");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Locked,
    Unlocked,
    Mixed,
}

const STOPS: [Stop; 3] = [Stop::Locked, Stop::Unlocked, Stop::Mixed];

struct Model {
    host: Arc<ModelHost>,
    cleaner: Cleaner,
    protected: Arc<Protected>,
    target: Arc<Target>,
    /// The caches of the instances whose start has returned.
    started: StdMutex<Vec<Arc<Target>>>,
}

impl Model {
    fn new(kind: Kind, eager: bool) -> Arc<Self> {
        let host = ModelHost::new(kind, eager);
        let protected = Arc::<Protected>::default();
        let target = Target::new(&protected);
        let cleaner = Cleaner::new(host.clone());
        cleaner.set_caches(vec![target.clone()]);
        Arc::new(Self {
            host,
            cleaner,
            protected,
            target,
            started: StdMutex::default(),
        })
    }

    fn started(kind: Kind, eager: bool) -> Arc<Self> {
        let model = Self::new(kind, eager);
        model.cleaner.start(Context::Default, INTERVAL).unwrap();
        model
    }

    fn with_lock(&self, body: impl FnOnce()) {
        self.cleaner.lock().unwrap();
        self.protected.visit();
        body();
        self.protected.visit();
        self.cleaner.unlock().unwrap();
    }

    fn stop(&self, how: Stop) {
        match how {
            Stop::Locked => self.with_lock(|| self.cleaner.co_locked_del_and_wait().unwrap()),
            Stop::Unlocked => self.cleaner.co_del_and_wait().unwrap(),
            Stop::Mixed => self.cleaner.del_and_wait().unwrap(),
        }
    }

    /// Called when the only instance has been stopped: it holds nothing any more.
    fn free(&self) {
        // This model's reference, and the cleaner's for the next start.
        assert_eq!(Arc::strong_count(&self.target), 2, "a cache is still held");
        assert_eq!(Arc::strong_count(&self.host.clock), 1, "a clock is held");
        self.host.freed.free();
        self.target.freed.free();
    }

    /// Starts another instance with a new cache. Waits while an instance runs that no stop has
    /// reached.
    fn start_another(&self) {
        let target = Target::new(&self.protected);
        self.cleaner.set_caches(vec![target.clone()]);
        loop {
            match self.cleaner.start(Context::Default, INTERVAL) {
                Ok(()) => break,
                Err(errno) => assert_eq!(errno, Errno::ALREADY),
            }
            thread::yield_now();
        }
        self.started.lock().unwrap().push(target);
    }

    /// Stops the cleaner and frees the caches of all earlier starts.
    fn stop_and_free(&self, how: Stop) {
        let before = self.started.lock().unwrap().clone();
        self.stop(how);
        before.iter().for_each(|target| target.freed.free());
    }

    /// Called when all calls have returned: asserts that nothing is left.
    fn end(&self) {
        self.host.join();
        assert_eq!(self.cleaner.stats().instances, 0);
        assert_eq!(self.cleaner.check_idle(), Ok(()));
    }
}

#[test]
fn stop_at_any_moment_returns_and_nothing_is_touched_afterwards() {
    let stuck = (Kind::StuckTasks, false);
    for how in STOPS {
        for (kind, eager) in HOSTS.into_iter().chain([stuck]) {
            sample(600, move || {
                let model = Model::new(kind, eager);
                let stop = spawn(&model, move |m| {
                    m.stop(how);
                    // This stop may have come before the start.
                    if m.cleaner.stats().starts == 0 {
                        m.host.foreign_sleep();
                        m.stop(how);
                    }
                });
                model.cleaner.start(Context::Default, INTERVAL).unwrap();
                join([stop]);
                model.stop(Stop::Mixed);
                model.free();
                model.end();
            });
        }
    }
}

#[test]
fn three_concurrent_stops_and_a_request_all_return() {
    on_every_host(1400, |kind, eager| {
        let model = Model::started(kind, eager);
        let stops = STOPS.map(|how| {
            spawn(&model, move |m| {
                m.stop(how);
                m.free();
                m.host.foreign_sleep();
            })
        });
        model.cleaner.request_stop();
        join(stops);
        model.end();
    });
}

#[test]
fn stops_return_while_timers_fire_and_passes_run() {
    on_every_host(1400, |kind, eager| {
        let model = Model::started(kind, eager);
        let clock = spawn(&model, |m| {
            for _ in 0..3 {
                m.host.advance(INTERVAL);
            }
        });
        let stops = STOPS.map(|how| {
            spawn(&model, move |m| {
                m.stop(how);
                m.free();
            })
        });
        join(stops);
        join([clock]);
        model.end();
    });
}

#[test]
fn timer_ends_sleep() {
    on_every_host(600, |kind, eager| {
        let model = Model::started(kind, eager);
        let driver = spawn(&model, |m| m.with_lock(thread::yield_now));
        // The cleaner may not sleep yet. Its deadline counts from the start of its sleep.
        let clock = spawn(&model, |m| {
            while m.cleaner.stats().passes == 0 {
                m.host.advance(INTERVAL);
                thread::yield_now();
            }
        });
        model.target.wait_for_a_pass();
        join([driver, clock]);
        model.stop(Stop::Mixed);
        model.free();
        model.end();
    });
}

#[test]
fn starts_overlap_ending_instances() {
    on_every_host(1000, |kind, eager| {
        let model = Model::new(kind, eager);
        let starter = spawn(&model, |m| {
            for _ in 0..3 {
                m.start_another();
            }
        });
        let stops = [Stop::Unlocked, Stop::Locked].map(|how| {
            spawn(&model, move |m| {
                m.stop_and_free(how);
                m.stop_and_free(how);
            })
        });
        let request = spawn(&model, |m| {
            while m.cleaner.stats().starts < 3 {
                m.cleaner.request_stop();
                thread::yield_now();
            }
        });
        join(stops);
        join([starter, request]);
        model.stop_and_free(Stop::Mixed);
        model.host.freed.free();
        model.end();
    });
}

#[test]
fn locked_stop_returns_with_lock_held_and_no_instance() {
    on_every_host(1000, |kind, eager| {
        let model = Model::started(kind, eager);
        // Starts hold the lock, as in a driver.
        let starter = spawn(&model, |m| {
            for _ in 0..2 {
                m.with_lock(|| match m.cleaner.start(Context::Default, INTERVAL) {
                    Ok(()) => {}
                    Err(errno) => assert_eq!(errno, Errno::ALREADY),
                });
            }
        });
        let stops = [(), ()].map(|()| {
            spawn(&model, |m| {
                m.with_lock(|| {
                    m.cleaner.co_locked_del_and_wait().unwrap();
                    assert_eq!(m.cleaner.stats().instances, 0);
                });
            })
        });
        join(stops);
        join([starter]);
        model.stop(Stop::Locked);
        model.free();
        model.end();
    });
}

#[test]
fn unlocked_stop_returns_while_lock_is_held() {
    for kind in [Kind::Threads, Kind::Coroutines, Kind::Tasks] {
        sample(1400, move || {
            let model = Model::started(kind, false);
            let clock = spawn(&model, |m| m.host.advance(INTERVAL));
            // The lock is held until the stop has returned, so the cleaner never gets it.
            model.cleaner.lock().unwrap();
            let stop = spawn(&model, |m| {
                m.stop(Stop::Unlocked);
                m.free();
            });
            join([stop, clock]);
            model.cleaner.unlock().unwrap();
            model.end();
        });
    }
}

#[test]
fn stop_request_under_lock_prevents_further_drops() {
    on_every_host(600, |kind, eager| {
        let model = Model::started(kind, eager);
        let clock = spawn(&model, |m| {
            m.host.advance(INTERVAL);
            m.host.advance(INTERVAL);
        });
        model.cleaner.lock().unwrap();
        model.cleaner.request_stop();
        model.target.drops.free();
        model.cleaner.unlock().unwrap();
        join([clock]);
        model.stop(Stop::Mixed);
        model.free();
        model.end();
    });
}

#[test]
fn one_of_two_concurrent_starts_is_refused() {
    on_every_host(300, |kind, eager| {
        let model = Model::new(kind, eager);
        let start = |m: &Model| m.cleaner.start(Context::Default, INTERVAL);
        let refused = Arc::new(AtomicBool::new(false));
        let other = spawn(&model, {
            let refused = refused.clone();
            move |m| refused.store(start(m) == Err(Errno::ALREADY), Relaxed)
        });
        let ours_refused = start(&model) == Err(Errno::ALREADY);
        join([other]);
        assert!(ours_refused != refused.load(Relaxed));
        assert_eq!(model.cleaner.stats().instances, 1);
        model.stop(Stop::Unlocked);
        model.free();
        model.end();
    });
}

#[test]
fn stop_returns_without_loop_progress() {
    for how in STOPS {
        sample(400, move || {
            let model = Model::started(Kind::StuckTasks, false);
            let other = spawn(&model, move |m| {
                m.stop(how);
                m.free();
            });
            model.stop(Stop::Mixed);
            model.free();
            join([other]);
            model.end();
        });
    }
}

#[test]
fn new_interval_takes_effect_during_sleep() {
    // Not on the executor: there the model cannot see whether the cleaner sleeps yet.
    on_hosts(&HOSTS[..5], 800, |kind, eager| {
        let model = Model::started(kind, eager);
        let change = spawn(&model, |m| {
            while m.host.clock.armed() == 0 {
                thread::yield_now();
            }
            // Half of the old interval, which is more than the new one. Only due timers fire,
            // however often the clock is advanced by 0.
            m.host.advance(INTERVAL / 2);
            m.cleaner.set_interval(INTERVAL / 4).unwrap();
            while m.cleaner.stats().passes == 0 {
                m.host.advance(0);
                thread::yield_now();
            }
        });
        model.target.wait_for_a_pass();
        join([change]);
        model.stop(Stop::Mixed);
        model.free();
        model.end();
    });
}

#[test]
fn interval_changes_and_stops_all_return() {
    on_every_host(1000, |kind, eager| {
        let model = Model::started(kind, eager);
        let changes = [2 * INTERVAL, 0].map(|interval| {
            spawn(&model, move |m| {
                // ESRCH: the stop came first.
                let changed = m.cleaner.set_interval(interval);
                assert!(matches!(changed, Ok(()) | Err(Errno::SRCH)));
            })
        });
        let stop = spawn(&model, |m| {
            m.stop(Stop::Unlocked);
            m.free();
        });
        join(changes);
        join([stop]);
        model.end();
    });
}

#[test]
fn refused_start_leaves_no_instance() {
    on_every_host(400, |kind, eager| {
        let model = Model::new(kind, eager);
        model.host.refuse.store(true, Relaxed);
        let stop = spawn(&model, |m| m.stop(Stop::Unlocked));
        let started = model.cleaner.start(Context::Default, INTERVAL);
        assert_eq!(started, Err(Errno::NOMEM));
        model.stop(Stop::Locked);
        join([stop]);
        model.free();
        model.end();
    });
}

#[test]
fn dropped_handle_ends_its_instance() {
    on_every_host(400, |kind, eager| {
        let host = ModelHost::new(kind, eager);
        let protected = Arc::<Protected>::default();
        let target = Target::new(&protected);
        let cleaner = Cleaner::new(host.clone());
        cleaner.set_caches(vec![target.clone()]);
        cleaner.start(Context::Default, INTERVAL).unwrap();
        let clock = thread::spawn({
            let host = host.clone();
            move || host.advance(INTERVAL)
        });
        drop(cleaner);
        join([clock]);
        host.join();
        assert_eq!(
            Arc::strong_count(&target),
            1,
            "its caches were not released"
        );
    });
}
