// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tasks and a timer heap that one thread turns: inside the background thread of the thread host,
//! and inside each event loop.
//!
//! | task | wake | turn |
//! |---|---|---|
//! | idle | → queued, the turner is notified | |
//! | queued | stays | → polling |
//! | polling | → queued (polled once more) | → idle, or gone when it is done or was cancelled |
//!
//! A cancelled task is dropped at once if it is not being polled, by whoever cancels it; else by
//! its poller.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use super::CancelHandle;
use crate::primitives::Mutex;
use crate::sync::sleep::{Clock, Timer};

type BoxFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
type TimerKey = (u64, u64);

/// A monotonic clock that can stand still and be stepped.
#[derive(Default)]
struct PausableClock {
    /// How far this clock is behind the monotonic one, in ns.
    behind: i128,
    paused_at: Option<u64>,
}

struct TaskEntry {
    /// Out while it is polled.
    future: Option<BoxFuture>,
    queued: bool,
    cancelled: bool,
}

struct Inner {
    tasks: HashMap<u64, TaskEntry>,
    ready: VecDeque<u64>,
    timers: BTreeMap<TimerKey, Waker>,
    next_id: u64,
    clock: PausableClock,
    /// The turner looks at the timers at this time in any case, in ns of the clock.
    turner_wakes: u64,
}

/// See the module. `notify` is called, with no lock held, when there is something to turn for.
pub struct Executor {
    inner: Mutex<Inner>,
    notify: Box<dyn Fn() + Send + Sync>,
}

impl Executor {
    /// An executor without tasks.
    pub fn new(notify: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                tasks: HashMap::new(),
                ready: VecDeque::new(),
                timers: BTreeMap::new(),
                next_id: 0,
                clock: PausableClock::default(),
                turner_wakes: u64::MAX,
            }),
            notify,
        })
    }

    /// Adds a task; it is polled in the next turn. Any thread.
    pub fn spawn(self: &Arc<Self>, future: BoxFuture) -> Box<dyn CancelHandle> {
        let mut inner = self.inner.lock();
        let id = inner.next_id();
        let entry = TaskEntry {
            future: Some(future),
            queued: true,
            cancelled: false,
        };
        inner.tasks.insert(id, entry);
        inner.ready.push_back(id);
        drop(inner);
        (self.notify)();
        Box::new(TaskHandle {
            executor: Arc::downgrade(self),
            id,
            notifies: true,
        })
    }

    /// Adds a task and polls it once, in the calling thread. The turner is not notified, neither of
    /// a task that waits then, nor of its cancellation. Any thread.
    pub fn spawn_polled(self: &Arc<Self>, future: BoxFuture) -> Box<dyn CancelHandle> {
        let id = {
            let mut inner = self.inner.lock();
            let id = inner.next_id();
            let entry = TaskEntry {
                future: None,
                queued: false,
                cancelled: false,
            };
            inner.tasks.insert(id, entry);
            id
        };
        self.poll_task(id, future);
        Box::new(TaskHandle {
            executor: Arc::downgrade(self),
            id,
            notifies: false,
        })
    }

    fn cancel(&self, id: u64, notifies: bool) {
        let future = {
            let mut inner = self.inner.lock();
            let Some(entry) = inner.tasks.get_mut(&id) else {
                return;
            };
            entry.cancelled = true;
            let future = entry.future.take();
            if future.is_some() {
                inner.tasks.remove(&id);
            }
            future
        };
        // Without the lock: its drop deletes timers and wakes others.
        drop(future);
        if notifies {
            // Whoever turns may wait for the last task to go.
            (self.notify)();
        }
    }

    /// Whether a task is alive.
    pub fn has_tasks(&self) -> bool {
        !self.inner.lock().tasks.is_empty()
    }

    /// Runs due timers and then every task that is ready now; returns how many of both. One thread
    /// at a time.
    pub fn run_ready(self: &Arc<Self>) -> usize {
        let due = self.take_due_timers();
        let mut count = due.len();
        due.into_iter().for_each(Waker::wake);
        let mut left = self.inner.lock().ready.len();
        while left > 0 && self.poll_next() {
            left -= 1;
            count += 1;
        }
        count
    }

    /// ns until there is something to turn for: 0 now, `None` nothing is known of.
    pub fn timeout_ns(&self) -> Option<u64> {
        let inner = self.inner.lock();
        if !inner.ready.is_empty() {
            return Some(0);
        }
        let (&(deadline, _), _) = inner.timers.first_key_value()?;
        let now = inner.clock.now_ns();
        if deadline > now && inner.clock.paused_at.is_some() {
            return None;
        }
        Some(deadline.saturating_sub(now))
    }

    /// ns for which the turner may sleep: until the first timer, or the clock's `limit`
    /// (`u64::MAX`: none), or until it is notified; `None`: until it is notified. It is not
    /// notified of timers that are due later than it wakes anyway. The clock must not be paused.
    pub fn begin_sleep(&self, limit: u64) -> Option<u64> {
        let mut inner = self.inner.lock();
        if !inner.ready.is_empty() {
            return Some(0);
        }
        let first = inner.timers.first_key_value();
        let wakes = first.map_or(limit, |(&(deadline, _), _)| deadline.min(limit));
        inner.turner_wakes = wakes;
        (wakes < u64::MAX).then(|| wakes.saturating_sub(inner.clock.now_ns()))
    }

    /// When the turner wakes at the latest, in ns of the clock: see [`Executor::begin_sleep`].
    pub fn turner_wakes(&self) -> u64 {
        self.inner.lock().turner_wakes
    }

    /// Stops the clock. False if it stands already.
    pub fn pause_clock(&self) -> bool {
        let mut inner = self.inner.lock();
        if inner.clock.paused_at.is_some() {
            return false;
        }
        inner.clock.paused_at = Some(inner.clock.now_ns());
        true
    }

    /// Lets the clock go on from where it stood. False if it runs already.
    pub fn resume_clock(&self) -> bool {
        let mut inner = self.inner.lock();
        let Some(at) = inner.clock.paused_at.take() else {
            return false;
        };
        inner.clock.behind = i128::from(monotonic_ns()) - i128::from(at);
        drop(inner);
        (self.notify)();
        true
    }

    /// Moves a standing clock by `ns`. False if it runs.
    pub fn step_clock(&self, ns: u64) -> bool {
        let mut inner = self.inner.lock();
        let Some(at) = inner.clock.paused_at.as_mut() else {
            return false;
        };
        // Below the furthest deadline there is (see `Sleep::new`): beyond it every sleep would be
        // over at once.
        *at = at.saturating_add(ns).min(i64::MAX as u64 - 1);
        drop(inner);
        (self.notify)();
        true
    }

    fn take_due_timers(&self) -> Vec<Waker> {
        let mut inner = self.inner.lock();
        let now = inner.clock.now_ns();
        let later = inner.timers.split_off(&(now.saturating_add(1), 0));
        std::mem::replace(&mut inner.timers, later)
            .into_values()
            .collect()
    }

    fn poll_next(self: &Arc<Self>) -> bool {
        let (id, future) = {
            let mut inner = self.inner.lock();
            let Some(id) = inner.ready.pop_front() else {
                return false;
            };
            let taken = inner.tasks.get_mut(&id).and_then(|entry| {
                entry.queued = false;
                entry.future.take()
            });
            (id, taken)
        };
        // None: the task is gone.
        if let Some(future) = future {
            self.poll_task(id, future);
        }
        true
    }

    /// Polls a task whose future was taken out of its entry.
    fn poll_task(self: &Arc<Self>, id: u64, mut future: BoxFuture) {
        let waker = Waker::from(Arc::new(TaskWaker {
            executor: self.clone(),
            id,
        }));
        let poll = AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker)));
        // A task that panics is over; the others and their turner go on.
        let polled = catch_unwind(poll).unwrap_or(Poll::Ready(()));
        let mut inner = self.inner.lock();
        match inner.tasks.get_mut(&id) {
            Some(entry) if polled.is_pending() && !entry.cancelled => {
                entry.future = Some(future);
                if entry.queued {
                    inner.ready.push_back(id);
                    drop(inner);
                    (self.notify)();
                }
                return;
            }
            _ => inner.tasks.remove(&id),
        };
        drop(inner);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
    }

    fn wake_task(&self, id: u64) {
        let mut inner = self.inner.lock();
        match inner.tasks.get_mut(&id) {
            Some(entry) if !entry.queued => {
                entry.queued = true;
                if entry.future.is_none() {
                    // Being polled: the poller queues it.
                    return;
                }
            }
            _ => return,
        }
        inner.ready.push_back(id);
        drop(inner);
        (self.notify)();
    }
}

impl Inner {
    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl PausableClock {
    fn now_ns(&self) -> u64 {
        self.paused_at
            .unwrap_or_else(|| u64::try_from(i128::from(monotonic_ns()) - self.behind).unwrap_or(0))
    }
}

struct TaskHandle {
    executor: Weak<Executor>,
    id: u64,
    notifies: bool,
}

impl CancelHandle for TaskHandle {
    fn cancel(&self) {
        if let Some(executor) = self.executor.upgrade() {
            executor.cancel(self.id, self.notifies);
        }
    }
}

struct TaskWaker {
    executor: Arc<Executor>,
    id: u64,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.executor.wake_task(self.id);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.executor.wake_task(self.id);
    }
}

/// The executor's clock, for its tasks.
pub struct ExecutorClock(pub Arc<Executor>);

struct ExecutorTimer {
    executor: Arc<Executor>,
    key: TimerKey,
}

impl Clock for ExecutorClock {
    fn now_ns(&self) -> u64 {
        self.0.inner.lock().clock.now_ns()
    }

    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer> {
        let mut inner = self.0.inner.lock();
        let key = (deadline_ns, inner.next_id());
        inner.timers.insert(key, waker);
        let first = inner.timers.first_key_value().map(|(key, _)| *key) == Some(key);
        let too_late = deadline_ns < inner.turner_wakes;
        drop(inner);
        if first && too_late {
            (self.0.notify)();
        }
        Box::new(ExecutorTimer {
            executor: self.0.clone(),
            key,
        })
    }
}

impl Timer for ExecutorTimer {}

impl Drop for ExecutorTimer {
    fn drop(&mut self) {
        let removed = self.executor.inner.lock().timers.remove(&self.key);
        drop(removed);
    }
}

/// CLOCK_MONOTONIC in ns.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a valid place for the result; CLOCK_MONOTONIC exists on every Unix this is
    // built for.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)).unwrap_or(0)
}
