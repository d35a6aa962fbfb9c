// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parker, its wakers, the wait list, and the cleaner's start, sleep and stop, which use them.
//! loom explores every interleaving and every value that C11 lets a load return; where a bound is
//! given, at most that number of forced switches. A lost wake-up is a deadlock, which loom reports.
#![cfg(loom)]

mod model_checking;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Condvar, Mutex};
use model_checking::host::{Coroutine, CoroutineSleeper, Freed, Kind, ModelHost};
use model_checking::{INTERVAL, explore, join, thread, timeline};
use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::host::executor::Executor;
use qcow2cache::host::{Context as Place, Event, block_on, poll_until_done};
use qcow2cache::sync::lock::{Owner, StateLock};
use qcow2cache::sync::parker::{LazyParker, Parker, Sleeper, ThreadSleeper};
use qcow2cache::sync::wait_list::WaitTable;

fn coroutine() -> (Arc<Parker>, Arc<Coroutine>) {
    let coroutine = Arc::new(Coroutine::default());
    let parker = Parker::new(Box::new(CoroutineSleeper::new(coroutine.clone())));
    (Arc::new(parker), coroutine)
}

/// Plain memory: written before a wake-up, read after it.
struct Message(UnsafeCell<u32>);

// SAFETY: loom checks every access.
unsafe impl Send for Message {}
// SAFETY: loom checks every access, as for `Send`.
unsafe impl Sync for Message {}

impl Message {
    fn write(&self) {
        // SAFETY: before the wake-up only the waker uses it; loom checks that.
        self.0.with_mut(|m| unsafe { *m = 7 });
    }

    fn read(&self) -> u32 {
        // SAFETY: after the wake-up only the owner uses it; loom checks that.
        self.0.with(|m| unsafe { *m })
    }
}

fn pass_message(parker: &Arc<Parker>) {
    let message = Arc::new(Message(UnsafeCell::new(0)));
    let waker = thread::spawn({
        let (parker, message) = (parker.clone(), message.clone());
        move || {
            message.write();
            parker.unpark();
        }
    });
    parker.park();
    assert_eq!(message.read(), 7);
    waker.join().unwrap();
}

#[test]
fn writes_before_wake_up_are_visible_after_it() {
    explore(None, || {
        pass_message(&Arc::new(Parker::new(Box::new(ThreadSleeper::new()))));
    });
    explore(None, || {
        let (parker, coroutine) = coroutine();
        pass_message(&parker);
        coroutine.assert_no_wake_up_left();
    });
}

#[test]
fn two_wakers_wake_one_sleep_once() {
    explore(Some(4), || {
        let (parker, coroutine) = coroutine();
        let arrived = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let wakers = [0, 1].map(|n| {
            let (parker, arrived) = (parker.clone(), arrived.clone());
            thread::spawn(move || {
                arrived[n].store(true, Ordering::Relaxed);
                parker.unpark();
            })
        });
        // Relaxed: the parker makes the stores visible.
        while !arrived.iter().all(|a| a.load(Ordering::Relaxed)) {
            parker.park();
        }
        join(wakers);
        // A wake-up that is too late for the last sleep ends the next one immediately, without a
        // wake-up by the host.
        coroutine.assert_no_wake_up_left();
    });
}

#[test]
fn wake_up_before_sleep_needs_no_host_call() {
    explore(None, || {
        let (parker, coroutine) = coroutine();
        parker.unpark();
        let late = thread::spawn({
            let parker = parker.clone();
            move || parker.unpark()
        });
        parker.park();
        late.join().unwrap();
        coroutine.assert_no_wake_up_left();
    });
}

/// A future that another thread completes. Completion wakes the waker of the last poll.
#[derive(Default)]
struct Completion {
    state: Mutex<(bool, Option<std::task::Waker>)>,
}

impl Completion {
    fn complete(&self) {
        let waker = {
            let mut state = self.state.lock().unwrap();
            state.0 = true;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake_by_ref();
            waker.wake();
        }
    }

    async fn wait(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.state.lock().unwrap();
            if state.0 {
                return Poll::Ready(());
            }
            state.1 = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

#[test]
fn waker_outliving_its_wait_wakes_nobody() {
    explore(None, || {
        let coroutine = Arc::new(Coroutine::default());
        let completion = Arc::new(Completion::default());
        let other = thread::spawn({
            let completion = completion.clone();
            move || completion.complete()
        });
        {
            let sleeper = || Box::new(CoroutineSleeper::new(coroutine.clone())) as Box<dyn Sleeper>;
            let parker = LazyParker::new(&sleeper);
            let mut wait = pin!(completion.wait());
            while parker
                .with_waker(|waker| wait.as_mut().poll(&mut Context::from_waker(waker)))
                .is_pending()
            {
                parker.parker().park();
            }
        }
        // Now the coroutine would sleep in its host's own I/O.
        coroutine.assert_no_wake_up_left();
        other.join().unwrap();
        coroutine.assert_no_wake_up_left();
    });
}

#[test]
fn waiter_completes_after_its_key_is_notified() {
    explore(Some(4), || {
        let host = ModelHost::new(Kind::Coroutines, false);
        let gate = Arc::new(Mutex::new((false, WaitTable::default())));
        let waiters = [(), ()].map(|()| {
            let (host, gate) = (host.clone(), gate.clone());
            thread::spawn(move || {
                let waiter = {
                    let mut gate = gate.lock().unwrap();
                    if gate.0 {
                        return;
                    }
                    gate.1.register(1)
                };
                block_on(&*host, &[], waiter);
            })
        });
        let wakes = {
            let mut gate = gate.lock().unwrap();
            gate.0 = true;
            gate.1.notify_all(&1)
        };
        wakes.wake();
        join(waiters);
        host.join();
    });
}

#[test]
fn poll_until_done_misses_no_notification() {
    explore(None, || {
        let host = ModelHost::new(Kind::Coroutines, false);
        let event = Arc::new(Event::default());
        let done = Arc::new(AtomicBool::new(false));
        let kicker = thread::spawn({
            let (event, done) = (event.clone(), done.clone());
            move || {
                done.store(true, Ordering::Relaxed);
                event.notify();
            }
        });
        poll_until_done(&*host, &[], &event, &|| done.load(Ordering::Relaxed));
        kicker.join().unwrap();
        host.join();
    });
}

#[test]
fn state_lock_is_exclusive_and_loses_no_wake_up() {
    explore(Some(4), || {
        let host = ModelHost::new(Kind::Coroutines, false);
        let lock = Arc::new(StateLock::new());
        let held = Arc::new(Message(UnsafeCell::new(0)));
        let hold = |lock: &StateLock, held: &Message, owner| {
            held.write();
            assert!(lock.unlock(Owner(owner)));
        };
        let request = thread::spawn({
            let (host, lock, held) = (host.clone(), lock.clone(), held.clone());
            move || {
                block_on(&*host, &[], lock.lock(Owner(1)));
                hold(&lock, &held, 1);
            }
        });
        let cleaner = thread::spawn({
            let (host, lock, held) = (host.clone(), lock.clone(), held.clone());
            move || {
                let take = std::future::poll_fn(|cx| lock.poll_lock_cleaner(Owner(2), 2, cx));
                block_on(&*host, &[], take);
                hold(&lock, &held, 2);
            }
        });
        block_on(&*host, &[], lock.lock(Owner(3)));
        hold(&lock, &held, 3);
        request.join().unwrap();
        cleaner.join().unwrap();
        assert_eq!(held.read(), 7);
        host.join();
    });
}

#[test]
fn cancelled_lock_request_wakes_next_waiter() {
    explore(Some(4), || {
        let host = ModelHost::new(Kind::Coroutines, false);
        let lock = Arc::new(StateLock::new());
        let stayer = thread::spawn({
            let (host, lock) = (host.clone(), lock.clone());
            move || {
                block_on(&*host, &[], lock.lock(Owner(1)));
                assert!(lock.unlock(Owner(1)));
            }
        });
        let leaver = thread::spawn({
            let lock = lock.clone();
            move || {
                let mut request = pin!(lock.lock(Owner(2)));
                let mut cx = Context::from_waker(std::task::Waker::noop());
                if request.as_mut().poll(&mut cx).is_ready() {
                    assert!(lock.unlock(Owner(2)));
                }
            }
        });
        block_on(&*host, &[], lock.lock(Owner(3)));
        assert!(lock.unlock(Owner(3)));
        stayer.join().unwrap();
        leaver.join().unwrap();
        assert!(!lock.is_held());
        host.join();
    });
}

/// Wakes the thread that runs an executor.
#[derive(Default)]
struct Doorbell {
    rung: Mutex<bool>,
    condvar: Condvar,
}

#[test]
fn task_woken_during_poll_is_polled_again() {
    explore(None, || {
        let doorbell = Arc::new(Doorbell::default());
        let executor = Executor::new(Box::new({
            let doorbell = doorbell.clone();
            move || {
                *doorbell.rung.lock().unwrap() = true;
                doorbell.condvar.notify_one();
            }
        }));
        executor.pause_clock();
        let completion = Arc::new(Completion::default());
        let handle = executor.spawn(Box::pin({
            let completion = completion.clone();
            async move { completion.wait().await }
        }));
        let completer = thread::spawn(move || completion.complete());
        while executor.has_tasks() {
            let mut rung = doorbell.rung.lock().unwrap();
            while !*rung {
                rung = doorbell.condvar.wait(rung).unwrap();
            }
            *rung = false;
            drop(rung);
            executor.run_ready();
        }
        completer.join().unwrap();
        handle.cancel();
    });
}

/// A cache that may not be used once it is freed. Its memory is plain, so that loom reports a pass
/// that races the free.
struct Target {
    freed: Freed,
    memory: Message,
    passes: AtomicUsize,
}

impl CleanTarget for Target {
    fn drop_unused(&self, _from: usize) -> (usize, Option<usize>) {
        self.freed.touch("a pass");
        self.memory.write();
        self.passes.fetch_add(1, Ordering::Relaxed);
        (1, None)
    }

    fn release_memory(&self, _from: usize) -> Option<usize> {
        self.freed.touch("a pass");
        None
    }

    fn poison(&self) {
        timeline::fail("an assertion of a pass failed");
    }
}

struct StartedCleaner {
    host: Arc<ModelHost>,
    cleaner: Arc<Cleaner>,
    target: Arc<Target>,
}

impl StartedCleaner {
    fn new(kind: Kind) -> Self {
        let host = ModelHost::new(kind, false);
        let cleaner = Arc::new(Cleaner::new(host.clone()));
        let target = Arc::new(Target {
            freed: Freed::default(),
            memory: Message(UnsafeCell::new(0)),
            passes: AtomicUsize::new(0),
        });
        cleaner.set_caches(vec![target.clone()]);
        cleaner.start(Place::Default, INTERVAL).unwrap();
        Self {
            host,
            cleaner,
            target,
        }
    }

    /// Called when a stop has returned: only the caller uses the cache from now on.
    fn free(&self) {
        assert_eq!(Arc::strong_count(&self.target), 2, "a cache is still held");
        self.target.freed.free();
        self.host.freed.free();
        self.target.memory.write();
    }
}

#[test]
fn stop_at_any_moment_ends_cleaner() {
    for kind in [Kind::Threads, Kind::Coroutines, Kind::Tasks] {
        explore(Some(5), move || {
            let started = StartedCleaner::new(kind);
            started.cleaner.del_and_wait().unwrap();
            started.free();
            started.host.join();
        });
    }
}

#[test]
fn stop_during_timer_and_pass_ends_cleaner() {
    for kind in [Kind::Threads, Kind::Coroutines, Kind::OwnLock] {
        explore(Some(3), move || {
            let started = StartedCleaner::new(kind);
            let clock = thread::spawn({
                let host = started.host.clone();
                move || host.advance(INTERVAL)
            });
            started.cleaner.del_and_wait().unwrap();
            started.free();
            clock.join().unwrap();
            started.host.join();
        });
    }
}

#[test]
fn two_concurrent_stops_both_return() {
    for kind in [Kind::Coroutines, Kind::Tasks] {
        explore(Some(3), move || {
            let started = StartedCleaner::new(kind);
            let other = thread::spawn({
                let cleaner = started.cleaner.clone();
                move || cleaner.del_and_wait().unwrap()
            });
            started.cleaner.del_and_wait().unwrap();
            other.join().unwrap();
            started.free();
            started.host.join();
        });
    }
}
