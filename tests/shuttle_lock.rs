// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state lock with many threads: one holder, no lost wake-up, no starvation, cancelled
//! requests, and cleaners, which never queue. Also the wait list and `poll_until_done`.
#![cfg(shuttle)]

mod model_checking;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use model_checking::host::{Kind, ModelHost};
use model_checking::sync::Mutex;
use model_checking::{join, sample, spawn, thread};
use qcow2cache::host::{Event, block_on, poll_until_done};
use qcow2cache::sync::lock::{Owner, StateLock};
use qcow2cache::sync::wait_list::WaitTable;

/// The lock, what it protects, and the host that its waiters sleep in.
struct Model {
    host: Arc<ModelHost>,
    lock: StateLock,
    held: AtomicBool,
    /// How often the lock was acquired.
    acquired: AtomicUsize,
}

impl Model {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            host: ModelHost::new(Kind::Coroutines, false),
            lock: StateLock::new(),
            held: AtomicBool::new(false),
            acquired: AtomicUsize::new(0),
        })
    }

    fn hold_and_unlock(&self, owner: Owner) {
        assert!(!self.held.swap(true, Relaxed), "two threads hold the lock");
        self.acquired.fetch_add(1, Relaxed);
        assert!(self.lock.is_held_by(owner));
        thread::yield_now();
        assert!(self.held.swap(false, Relaxed), "two threads hold the lock");
        assert!(self.lock.unlock(owner));
    }

    fn request(&self, owner: Owner) {
        block_on(&*self.host, &[], self.lock.lock(owner));
        self.hold_and_unlock(owner);
        self.host.foreign_sleep();
    }

    /// Acquires the lock as a cleaner does.
    fn clean(&self, owner: Owner) {
        let take = poll_fn(|cx| self.lock.poll_lock_cleaner(owner, owner.0, cx));
        block_on(&*self.host, &[], take);
        self.hold_and_unlock(owner);
        self.host.foreign_sleep();
    }

    /// A cleaner that tries once and gives up if the lock is held.
    fn clean_or_leave(&self, owner: Owner) {
        let mut cx = Context::from_waker(Waker::noop());
        if self
            .lock
            .poll_lock_cleaner(owner, owner.0, &mut cx)
            .is_ready()
        {
            self.hold_and_unlock(owner);
        }
    }

    /// A request that is dropped after `polls` polls unless it has acquired the lock by then.
    fn request_or_cancel(&self, owner: Owner, polls: usize) {
        let request = self.lock.lock(owner);
        let mut left = polls;
        let mut request = pin!(Some(request));
        let is_acquired = block_on(
            &*self.host,
            &[],
            poll_fn(|cx| {
                let Some(inner) = request.as_mut().as_pin_mut() else {
                    return Poll::Ready(false);
                };
                if inner.poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                left -= 1;
                if left == 0 {
                    // A wake-up for this request must be passed on to another one.
                    thread::yield_now();
                    request.set(None);
                    return Poll::Ready(false);
                }
                Poll::Pending
            }),
        );
        if is_acquired {
            self.hold_and_unlock(owner);
        }
    }

    /// Requests the lock and counts how often it is overtaken after it lost its first race.
    fn request_fairly(&self, owner: Owner) {
        let mut request = pin!(self.lock.lock(owner));
        let mut pending = 0;
        let mut acquired_then = None;
        block_on(
            &*self.host,
            &[],
            poll_fn(|cx| {
                if request.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                pending += 1;
                if pending == 2 {
                    acquired_then = Some(self.acquired.load(Relaxed));
                }
                Poll::Pending
            }),
        );
        if let Some(acquired_then) = acquired_then {
            // The current holder may not have counted itself yet.
            let overtaken = self.acquired.load(Relaxed) - acquired_then;
            assert!(overtaken <= 1, "overtaken {overtaken} times");
        }
        self.hold_and_unlock(owner);
    }

    fn end(&self) {
        assert!(!self.lock.is_held());
        self.host.join();
    }
}

#[test]
fn requests_and_cleaners_all_acquire_lock() {
    sample(6000, || {
        let model = Model::new();
        let requests = (1..=3).map(|n| {
            spawn(&model, move |m| {
                m.request(Owner(n));
                m.request(Owner(n));
            })
        });
        let requests: Vec<_> = requests.collect();
        let cleaners = (4..=5).map(|n| spawn(&model, move |m| m.clean(Owner(n))));
        let cleaners: Vec<_> = cleaners.collect();
        join(requests);
        join(cleaners);
        assert_eq!(model.acquired.load(Relaxed), 8);
        model.end();
    });
}

#[test]
fn cancelled_requests_pass_on_their_wake_up() {
    for polls in [1, 2, 3] {
        sample(4000, move || {
            let model = Model::new();
            let cancelled = (1..=2).map(|n| {
                spawn(&model, move |m| {
                    m.request_or_cancel(Owner(n), polls);
                    m.request_or_cancel(Owner(n), polls);
                })
            });
            let cancelled: Vec<_> = cancelled.collect();
            let others = (3..=5).map(|n| {
                spawn(&model, move |m| {
                    m.request(Owner(n));
                    m.request(Owner(n));
                })
            });
            let others: Vec<_> = others.collect();
            let cleaner = spawn(&model, |m| {
                m.clean_or_leave(Owner(6));
                m.clean(Owner(6));
            });
            join(cancelled);
            join(others);
            join([cleaner]);
            model.end();
        });
    }
}

#[test]
fn cancelled_request_wakes_last_waiter() {
    for polls in [1, 2] {
        sample(4000, move || {
            let model = Model::new();
            let cancelled = spawn(&model, move |m| m.request_or_cancel(Owner(1), polls));
            let other = spawn(&model, |m| m.request(Owner(2)));
            model.request(Owner(3));
            join([cancelled, other]);
            model.end();
        });
    }
}

#[test]
fn request_that_lost_a_race_is_not_overtaken_again() {
    sample(6000, || {
        let model = Model::new();
        let fair = spawn(&model, |m| {
            m.request_fairly(Owner(1));
            m.request_fairly(Owner(1));
        });
        let others = (2..=4).map(|n| {
            spawn(&model, move |m| {
                for _ in 0..3 {
                    m.request(Owner(n));
                }
            })
        });
        let others: Vec<_> = others.collect();
        let cleaner = spawn(&model, |m| m.clean(Owner(5)));
        join([fair]);
        join(others);
        join([cleaner]);
        model.end();
    });
}

/// A condition under a lock, and its waiters.
#[derive(Default)]
struct Gate {
    open: bool,
    waiting: WaitTable<u32>,
}

#[test]
fn wait_table_wakes_every_waiter_of_notified_events() {
    sample(4000, || {
        let host = ModelHost::new(Kind::Coroutines, false);
        let gate = Arc::new(Mutex::new(Gate::default()));
        let waiters = (0..3).map(|key| {
            let (host, gate) = (host.clone(), gate.clone());
            thread::spawn(move || {
                // One thread drops its first waiter without awaiting it.
                let mut waits = key != 2;
                loop {
                    let waiter = {
                        let mut gate = gate.lock().unwrap();
                        if gate.open {
                            break;
                        }
                        gate.waiting.register(key % 2)
                    };
                    if waits {
                        block_on(&*host, &[], waiter);
                    }
                    waits = true;
                }
                host.foreign_sleep();
            })
        });
        let waiters: Vec<_> = waiters.collect();
        let opener = {
            let gate = gate.clone();
            thread::spawn(move || {
                let (even, odd) = {
                    let mut gate = gate.lock().unwrap();
                    gate.open = true;
                    (gate.waiting.notify_all(&0), gate.waiting.notify_all(&1))
                };
                even.wake();
                odd.wake();
            })
        };
        join(waiters);
        join([opener]);
        assert!(gate.lock().unwrap().waiting.is_empty());
        host.join();
    });
}

#[test]
fn poll_until_done_sees_condition_set_at_any_moment() {
    sample(4000, || {
        let host = ModelHost::new(Kind::Coroutines, false);
        let event = Arc::new(Event::default());
        let done = Arc::new(AtomicBool::new(false));
        let pollers = [(), ()].map(|()| {
            let (host, event, done) = (host.clone(), event.clone(), done.clone());
            thread::spawn(move || {
                poll_until_done(&*host, &[], &event, &|| {
                    thread::yield_now();
                    done.load(Relaxed)
                });
                host.foreign_sleep();
            })
        });
        let kicker = thread::spawn(move || {
            event.notify();
            done.store(true, Relaxed);
            event.notify();
        });
        join(pollers);
        join([kicker]);
        host.join();
    });
}
