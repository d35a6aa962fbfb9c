// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache cleaner: sleep → lock → clean → repeat, and the stop that waits for its end.
//!
//! A pass takes the state lock for each of its steps anew, and gives memory back without it; between two steps its context has a turn. So
//! whoever wants the lock, or only the thread, waits for a step, not for a pass over all tables.
//!
//! Each start makes an *instance*, a record of its own with its stop flag, interval, waker and caches, so that a start
//! succeeds while an older instance is still on its way out in another context.
//!
//! | instance | a stop request | else |
//! |---|---|---|
//! | registered, its task not run yet | flag set; the task finds it before its first sleep → ended | task runs → about to sleep |
//! | about to sleep | flag set | registers its waker under the lock that guards the flag, looks at the flag there → asleep |
//! | asleep | flag set, waker called → ended | deadline → waiting for the lock; interval changed → about to sleep |
//! | waiting for the lock | flag set, waker called → ended (host's own lock: when it gets it) | gets it → in a step |
//! | in a step | flag set; after the step → ended | unlocks → between two steps; after the last one, of all caches → giving back |
//! | between two steps | flag set, waker called → ended | its context had its turn → waiting for the lock, or giving back |
//! | giving back | flag set; after this part → ended | → between two steps; after the last part → about to sleep |
//! | ended | | out of the registry, waiters woken |
//!
//! On hosts that run the instance as a task of theirs (threads, event loops), whoever asks it to stop also takes it out of
//! there and drops it: nobody's wait needs that thread or loop to make progress. A coroutine ends by itself.
//!
//! *No wake-up is lost*: flag and waker are one record under one mutex. Either the sleeper registers first and the
//! stopper takes its waker, or the stopper sets the flag first and the sleeper sees it and does not sleep.
//! *None is doubled*: the waker is taken out under that mutex, so that one of several stoppers calls it.
//! *Sticky*: the flag is never cleared; the instance ends with it.
//! *Nothing comes after the end*: timer and caches are dropped before the report; after it, the instance calls only the
//! wakers of those who wait for it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use crate::error::Errno;
use crate::host::{CancelHandle, Context, Host, block_on};
use crate::primitives::{AtomicU64, Mutex, Ordering};
use crate::sync::lock::{Owner, StateLock};
use crate::sync::sleep::{Clock, Sleep};
use crate::sync::wait_list::{WaitList, Waiter};

/// Something with tables to clean: a cache. A pass is a number of short steps; never one that does I/O, never one that waits.
pub trait CleanTarget: Send + Sync {
    /// Drops tables that were not used since the previous pass, beginning at position `from`, 0 at first. Returns how many, and the position
    /// at which the pass goes on; `None`: all were looked at.
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>);

    /// Gives a part of the memory of what was dropped back to the kernel; likewise.
    fn release_memory(&self, from: usize) -> Option<usize>;

    /// A pass panicked inside: never write again.
    fn poison(&self);
}

/// Counters of a cleaner over its whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleanerStats {
    /// Instances started.
    pub starts: u64,
    /// Passes made: all tables were looked at.
    pub passes: u64,
    /// Tables dropped by them.
    pub tables_cleaned: u64,
    /// The interval in ns that was set last, kept after a stop.
    pub interval_ns: u64,
    /// Instances alive, those asked to stop included.
    pub instances: usize,
}

/// A cleaner over any caches, with the state lock that its passes take. Usable from any thread.
pub struct Cleaner {
    shared: Arc<Shared>,
    lease: Mutex<Option<Box<dyn std::any::Any + Send + Sync>>>,
    is_owned_by_state: bool,
}

struct Shared {
    host: Arc<dyn Host>,
    lock: StateLock,
    registry: Mutex<Registry>,
    passes: AtomicU64,
    tables_cleaned: AtomicU64,
}

#[derive(Default)]
struct Registry {
    targets: Vec<Arc<dyn CleanTarget>>,
    instances: Vec<Arc<Instance>>,
    ended: WaitList<()>,
    starts: u64,
    interval_ns: u64,
    /// Grows with every request to stop.
    epoch: u64,
}

/// What a start is made for, if not for whatever is set.
#[derive(Default)]
struct Plan {
    epoch: Option<u64>,
    targets: Option<Vec<Arc<dyn CleanTarget>>>,
}

struct Instance {
    context: Context,
    pid: u32,
    control: Mutex<Control>,
}

struct Control {
    stop: bool,
    interval_ns: u64,
    waker: Option<Waker>,
    runner: Option<Owner>,
    /// Where the host can end the task from outside.
    cancel: Option<Box<dyn CancelHandle>>,
}

impl Cleaner {
    /// A cleaner on `host`, with the host's lock if it has one, else a built-in one. Starts nothing.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self {
            shared: Arc::new(Shared {
                host,
                lock: StateLock::new(),
                registry: Mutex::new(Registry::default()),
                passes: AtomicU64::new(0),
                tables_cleaned: AtomicU64::new(0),
            }),
            lease: Mutex::new(None),
            is_owned_by_state: false,
        }
    }

    /// A cleaner that is part of a state.
    pub fn for_state(host: Arc<dyn Host>) -> Self {
        let mut cleaner = Self::new(host);
        cleaner.is_owned_by_state = true;
        cleaner
    }

    /// Whether a state owns it: not to be destroyed by itself.
    pub fn is_owned_by_state(&self) -> bool {
        self.is_owned_by_state
    }

    /// The caches that the *next* start cleans; each instance holds its own.
    pub fn set_caches(&self, targets: Vec<Arc<dyn CleanTarget>>) {
        let before = std::mem::replace(&mut self.shared.registry.lock().targets, targets);
        drop(before);
    }

    /// Starts an instance in `context` that makes a pass every `interval_ns`. 0 starts none and is no error.
    ///
    /// `EALREADY`: one runs that was not asked to stop. `EINVAL`: not a context of this host. Others: the host could
    /// not start it. Any thread; does not wait; may run the new coroutine up to its first wait.
    pub fn start(&self, context: Context, interval_ns: u64) -> Result<(), Errno> {
        self.start_as(&Plan::default(), context, interval_ns)
    }

    /// As [`Cleaner::start`], over `targets`, with the interval that was set last, and only if no stop was asked for since
    /// [`Cleaner::epoch`] was `epoch`; else `ESTALE`, and what the caller knew then may be outdated.
    pub fn start_unless_stopped_since(
        &self,
        epoch: u64,
        targets: Vec<Arc<dyn CleanTarget>>,
        context: Context,
    ) -> Result<(), Errno> {
        let plan = Plan {
            epoch: Some(epoch),
            targets: Some(targets),
        };
        let interval_ns = self.interval_ns();
        self.start_as(&plan, context, interval_ns)
    }

    /// Grows with every request to stop.
    pub fn epoch(&self) -> u64 {
        self.shared.registry.lock().epoch
    }

    /// The interval in ns that was set last, by a start, by [`Cleaner::set_interval`] or by [`Cleaner::set_next_interval`].
    pub fn interval_ns(&self) -> u64 {
        self.shared.registry.lock().interval_ns
    }

    /// The interval for the next [`Cleaner::start_unless_stopped_since`]; the running instance keeps its own.
    pub fn set_next_interval(&self, interval_ns: u64) {
        self.shared.registry.lock().interval_ns = interval_ns;
    }

    fn start_as(&self, plan: &Plan, context: Context, interval_ns: u64) -> Result<(), Errno> {
        if interval_ns == 0 {
            return Ok(());
        }
        let shared = &self.shared;
        shared.host.check_context(&context)?;
        self.hold_lease()?;
        let instance = Arc::new(Instance {
            context,
            pid: std::process::id(),
            control: Mutex::new(Control {
                stop: false,
                interval_ns,
                waker: None,
                runner: None,
                cancel: None,
            }),
        });
        let targets = shared.register(&instance, plan, interval_ns)?;
        let end = EndNotice {
            shared: shared.clone(),
            instance: instance.clone(),
        };
        // If the host refuses, the closure is dropped, and with it the report.
        let cancel = shared.host.spawn(
            &instance.context,
            Box::new(move |clock| {
                let body = Body {
                    targets,
                    clock,
                    end,
                };
                Box::pin(run(body))
            }),
        )?;
        instance.set_cancel(cancel);
        Ok(())
    }

    /// Asks every instance to stop and does not wait. Sticky; any context, any lock held.
    pub fn request_stop(&self) {
        self.shared.request_stop();
    }

    /// The first half of [`Cleaner::request_stop`], which calls nothing: from now on every instance is asked to stop. For
    /// callers that change something of their own at the same moment, under a lock of theirs.
    pub(crate) fn set_stop_flag(&self) -> PendingStops {
        self.shared.set_stop_flag()
    }

    /// Whether an instance lives that was not asked to stop.
    pub fn is_running(&self) -> bool {
        self.shared.forget_lost_in_fork();
        let registry = self.shared.registry.lock();
        registry.instances.iter().any(|i| !i.is_stopped())
    }

    /// Gives the running instance a new interval, counted from the beginning of its present sleep. 0 asks it to stop.
    /// `ESRCH`: none runs. Any thread; does not wait.
    pub fn set_interval(&self, interval_ns: u64) -> Result<(), Errno> {
        self.shared.forget_lost_in_fork();
        let running = {
            let mut registry = self.shared.registry.lock();
            let running = registry
                .instances
                .iter()
                .find(|i| !i.is_stopped())
                .cloned()
                .ok_or(Errno::SRCH)?;
            if interval_ns > 0 {
                registry.interval_ns = interval_ns;
            }
            running
        };
        if interval_ns == 0 {
            self.request_stop();
            return Ok(());
        }
        running.update(|control| control.interval_ns = interval_ns);
        Ok(())
    }

    /// Counters.
    pub fn stats(&self) -> CleanerStats {
        let shared = &self.shared;
        shared.forget_lost_in_fork();
        let registry = shared.registry.lock();
        CleanerStats {
            starts: registry.starts,
            passes: shared.passes.load(Ordering::Relaxed),
            tables_cleaned: shared.tables_cleaned.load(Ordering::Relaxed),
            interval_ns: registry.interval_ns,
            instances: registry.instances.len(),
        }
    }

    /// Takes the state lock, waiting in the host's way. `EDEADLK`: the caller holds the built-in one already.
    /// `EPERM`: the host's own lock, from plain code.
    pub fn lock(&self) -> Result<(), Errno> {
        self.shared.lock()
    }

    /// Lets the state lock go. `EPERM`: the caller does not hold the built-in one; the host's own, from plain code.
    pub fn unlock(&self) -> Result<(), Errno> {
        self.shared.unlock()
    }

    /// Whether plain code of this host can take the state lock.
    pub fn can_lock(&self) -> bool {
        let host = &self.shared.host;
        host.own_lock().is_none() || !host.in_plain_code()
    }

    /// `EDEADLK` where a stop would wait for the caller itself: the built-in lock is held by it, or it is the cleaner.
    pub fn check_may_wait(&self) -> Result<(), Errno> {
        let owner = self.shared.host.owner();
        if self.shared.lock.is_held_by(owner) || self.is_cleaner(owner) {
            return Err(Errno::DEADLK);
        }
        Ok(())
    }

    /// Stops every instance and waits for their ends, with the lock held: it is let go while waiting, and on return
    /// it is held and no instance is alive, however many starts came between.
    ///
    /// `EPERM`: the caller does not hold the built-in lock, or is plain code on a coroutine host. `EDEADLK`: from the
    /// cleaner itself.
    pub fn co_locked_del_and_wait(&self) -> Result<(), Errno> {
        let shared = &self.shared;
        let owner = shared.host.owner();
        let built_in = shared.host.own_lock().is_none();
        if shared.host.in_plain_code() || (built_in && !shared.lock.is_held_by(owner)) {
            return Err(Errno::PERM);
        }
        if self.is_cleaner(owner) {
            return Err(Errno::DEADLK);
        }
        self.stop_with_lock_held()
    }

    /// [`Cleaner::co_locked_del_and_wait`] without the checks, also for plain code that holds the built-in lock.
    pub(crate) fn stop_with_lock_held(&self) -> Result<(), Errno> {
        let shared = &self.shared;
        while let Some(stop) = shared.begin_stop() {
            shared.unlock()?;
            shared.wait_for_end(stop);
            shared.lock()?;
        }
        Ok(())
    }

    /// Stops every instance and waits for their ends, lock not held; for coroutines and threads.
    ///
    /// The protocol needs no lock to end an instance, so that none is taken. Waits for the instances that are alive when
    /// it is called; a start that races it is ordered before or after. `EDEADLK`: see [`Cleaner::check_may_wait`].
    pub fn co_del_and_wait(&self) -> Result<(), Errno> {
        self.check_may_wait()?;
        if let Some(stop) = self.shared.begin_stop() {
            self.shared.wait_for_end(stop);
        }
        Ok(())
    }

    /// As [`Cleaner::co_del_and_wait`], from plain code of a coroutine host too, where it polls until done. Since no lock
    /// is needed, plain code waits itself and no coroutine is made for it.
    pub fn del_and_wait(&self) -> Result<(), Errno> {
        self.co_del_and_wait()
    }

    /// `EBUSY` while an instance is alive or the built-in lock is held.
    pub fn check_idle(&self) -> Result<(), Errno> {
        self.shared.forget_lost_in_fork();
        let alive = !self.shared.registry.lock().instances.is_empty();
        if alive || self.shared.lock.is_held() {
            return Err(Errno::BUSY);
        }
        Ok(())
    }

    /// The host it was made with.
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.shared.host
    }

    /// The contexts of the instances that are alive.
    pub fn contexts(&self) -> Vec<Context> {
        self.shared.forget_lost_in_fork();
        let registry = self.shared.registry.lock();
        let contexts = registry.instances.iter().map(|i| i.context.clone());
        contexts.collect()
    }

    fn is_cleaner(&self, owner: Owner) -> bool {
        let registry = self.shared.registry.lock();
        let mut instances = registry.instances.iter();
        instances.any(|i| i.control.lock().runner == Some(owner))
    }

    /// Anew for each start: after a fork, the one of before holds nothing any more.
    fn hold_lease(&self) -> Result<(), Errno> {
        let lease = self.shared.host.lease()?;
        let before = std::mem::replace(&mut *self.lease.lock(), lease);
        // Without the lock: the last one of a service joins its thread.
        drop(before);
        Ok(())
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        // A handle that is dropped with live instances (Rust users; C's destroy refuses): they end by themselves.
        self.request_stop();
    }
}

/// A stop on its way: the instances it waits for, and its place on the list.
struct Stop {
    instances: Vec<Arc<Instance>>,
    contexts: Vec<Context>,
}

impl Shared {
    fn register(
        &self,
        instance: &Arc<Instance>,
        plan: &Plan,
        interval_ns: u64,
    ) -> Result<Vec<Arc<dyn CleanTarget>>, Errno> {
        self.forget_lost_in_fork();
        let mut registry = self.registry.lock();
        if plan.epoch.is_some_and(|epoch| epoch != registry.epoch) {
            return Err(Errno::STALE);
        }
        if registry.instances.iter().any(|i| !i.is_stopped()) {
            return Err(Errno::ALREADY);
        }
        registry.starts += 1;
        registry.interval_ns = interval_ns;
        registry.instances.push(instance.clone());
        Ok(plan
            .targets
            .clone()
            .unwrap_or_else(|| registry.targets.clone()))
    }

    /// Asks every instance to stop; returns them.
    fn request_stop(&self) -> Vec<Arc<Instance>> {
        let flagged = self.set_stop_flag();
        flagged.deliver();
        flagged.0
    }

    fn set_stop_flag(&self) -> PendingStops {
        self.forget_lost_in_fork();
        let mut registry = self.registry.lock();
        registry.epoch += 1;
        registry.instances.iter().for_each(|i| i.set_stop_flag());
        PendingStops(registry.instances.clone())
    }

    fn lock(&self) -> Result<(), Errno> {
        if let Some(own) = self.host.own_lock() {
            if self.host.in_plain_code() {
                return Err(Errno::PERM);
            }
            own.lock();
            return Ok(());
        }
        let owner = self.host.owner();
        if self.lock.is_held_by(owner) {
            return Err(Errno::DEADLK);
        }
        block_on(&*self.host, &[], self.lock.lock(owner));
        Ok(())
    }

    fn unlock(&self) -> Result<(), Errno> {
        if let Some(own) = self.host.own_lock() {
            if self.host.in_plain_code() {
                return Err(Errno::PERM);
            }
            own.unlock();
            return Ok(());
        }
        if self.lock.unlock(self.host.owner()) {
            Ok(())
        } else {
            Err(Errno::PERM)
        }
    }

    /// Asks every instance to stop; `None` if there is none to wait for.
    fn begin_stop(&self) -> Option<Stop> {
        let instances = self.request_stop();
        if instances.is_empty() {
            return None;
        }
        let contexts = instances.iter().map(|i| i.context.clone()).collect();
        Some(Stop {
            instances,
            contexts,
        })
    }

    fn wait_for_end(&self, stop: Stop) {
        while let Some(waiter) = self.waiter_for(&stop) {
            block_on(&*self.host, &stop.contexts, waiter);
        }
    }

    fn waiter_for(&self, stop: &Stop) -> Option<Waiter> {
        let mut registry = self.registry.lock();
        let mut awaited = stop.instances.iter();
        let alive = awaited.any(|i| registry.instances.iter().any(|j| Arc::ptr_eq(i, j)));
        alive.then(|| registry.ended.register(()))
    }

    /// The child of a fork does not have its parent's background thread, nor the tasks in it.
    fn forget_lost_in_fork(&self) {
        let mut registry = self.registry.lock();
        registry
            .instances
            .retain(|i| !self.host.lost_in_fork(i.pid));
    }

    /// The cleaner's way to the lock; false if it was asked to stop instead.
    async fn lock_for_pass(&self, instance: &Instance) -> bool {
        if cfg!(feature = "unsound-no-pin-recheck") {
            // Test-only: the cleaner as it once was, a timer callback without the lock.
            return !instance.is_stopped();
        }
        if let Some(own) = self.host.own_lock() {
            if instance.is_stopped() {
                return false;
            }
            own.lock();
        } else {
            let locked = poll_fn(|cx| {
                if !instance.poll_not_stopped(cx) {
                    return Poll::Ready(false);
                }
                let owner = self.host.owner();
                let cleaner = std::ptr::from_ref(instance) as usize;
                self.lock
                    .poll_lock_cleaner(owner, cleaner, cx)
                    .map(|()| true)
            });
            if !locked.await {
                return false;
            }
        }
        if instance.is_stopped() {
            self.unlock_after_pass();
            return false;
        }
        true
    }

    fn unlock_after_pass(&self) {
        if cfg!(feature = "unsound-no-pin-recheck") {
            return;
        }
        // The cleaner took the lock in this same context; there is no error to have.
        let unlocked = self.unlock();
        debug_assert!(unlocked.is_ok());
    }

    /// A pass over all targets; the lock is held neither before nor after. A stop cuts it short: what was dropped already stays dropped, and
    /// its memory is left to a later pass.
    async fn pass(&self, instance: &Instance, clock: &dyn Clock, targets: &[Arc<dyn CleanTarget>]) {
        // The lock is taken at least once, also with nothing to clean: whoever holds it can be sure that no pass drops a table meanwhile.
        let mut rest = targets.iter();
        let mut step = rest.next().map(|target| (target, 0));
        loop {
            if !self.lock_for_pass(instance).await {
                return;
            }
            let dropped = step
                .and_then(|(target, from)| self.step(instance, target, |t| t.drop_unused(from)));
            self.unlock_after_pass();
            let (cleaned, further) = dropped.unwrap_or_default();
            self.tables_cleaned
                .fetch_add(cleaned as u64, Ordering::Relaxed);
            step = match (step, further) {
                (Some((target, _)), Some(from)) => Some((target, from)),
                _ => rest.next().map(|target| (target, 0)),
            };
            if step.is_none() {
                break;
            }
            if further.is_some() && !instance.yield_to_context(clock).await {
                return;
            }
        }
        // All tables were looked at: that is a pass, also if a stop drops the task while memory goes back.
        let _counted = Counted(&self.passes);
        for target in targets {
            let mut next = Some(0);
            while let Some(from) = next.filter(|_| !instance.is_stopped()) {
                let given_back = self.step(instance, target, |target| target.release_memory(from));
                next = given_back.flatten();
                if next.is_some() {
                    instance.yield_to_context(clock).await;
                }
            }
        }
    }

    /// A step of a pass, during which the cleaner is whoever runs it, on every host. `None`: it panicked.
    fn step<T>(
        &self,
        instance: &Instance,
        target: &Arc<dyn CleanTarget>,
        step: impl FnOnce(&dyn CleanTarget) -> T,
    ) -> Option<T> {
        let before = instance.set_runner(Some(self.host.owner()));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| step(&**target)));
        if done.is_err() {
            // The lock is held: nothing may unwind from here.
            let poison = std::panic::AssertUnwindSafe(|| target.poison());
            let _ = std::panic::catch_unwind(poison);
        }
        instance.set_runner(before);
        done.ok()
    }
}

/// One more when it is dropped.
struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Instances that were asked to stop and do not know it yet.
#[must_use = "those that sleep go on sleeping until `deliver`"]
pub(crate) struct PendingStops(Vec<Arc<Instance>>);

impl PendingStops {
    /// WakeList or ends them. Calls the host: no lock held.
    pub(crate) fn deliver(&self) {
        self.0.iter().for_each(|i| i.deliver_stop());
    }
}

impl Instance {
    /// Returns the one before.
    fn set_runner(&self, runner: Option<Owner>) -> Option<Owner> {
        std::mem::replace(&mut self.control.lock().runner, runner)
    }

    fn is_stopped(&self) -> bool {
        self.control.lock().stop
    }

    /// Sticky.
    fn set_stop_flag(&self) {
        self.control.lock().stop = true;
    }

    /// The instance is flagged: whoever comes here ends the task, if the host lets it; else the task is woken and ends by itself.
    fn deliver_stop(&self) {
        let (waker, cancel) = {
            let mut control = self.control.lock();
            (control.waker.take(), control.cancel.take())
        };
        match (cancel, waker) {
            (Some(cancel), _) => cancel.cancel(),
            (None, Some(waker)) => waker.wake(),
            (None, None) => {}
        }
    }

    /// A stop that came before finds nothing to cancel with: it is done here then.
    fn set_cancel(&self, cancel: Option<Box<dyn CancelHandle>>) {
        let stopped = {
            let mut control = self.control.lock();
            control.cancel = cancel;
            control.stop
        };
        if stopped {
            self.deliver_stop();
        }
    }

    /// Changes the record and wakes the instance, so that it looks again.
    fn update(&self, change: impl FnOnce(&mut Control)) {
        let waker = {
            let mut control = self.control.lock();
            change(&mut control);
            control.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether to go on; if so, an [`Instance::update`] from now on wakes `cx`.
    fn poll_not_stopped(&self, cx: &TaskContext<'_>) -> bool {
        // Cloned without the lock: the first clone may ask the host who calls.
        let waker = cx.waker().clone();
        let mut control = self.control.lock();
        if !control.stop {
            control.waker = Some(waker);
        }
        !control.stop
    }

    /// Lets the context have a turn; false if asked to stop.
    async fn yield_to_context(&self, clock: &dyn Clock) -> bool {
        let mut turn = Sleep::new(clock, clock.now_ns(), 0);
        poll_fn(|cx| {
            if !self.poll_not_stopped(cx) {
                return Poll::Ready(false);
            }
            turn.poll_elapsed(cx).map(|()| true)
        })
        .await
    }

    /// Sleeps for the interval; false if asked to stop. The timer is deleted on return.
    async fn sleep(&self, clock: &dyn Clock) -> bool {
        let start_ns = clock.now_ns();
        let mut current: Option<(u64, Sleep<'_>)> = None;
        poll_fn(|cx| {
            if !self.poll_not_stopped(cx) {
                return Poll::Ready(false);
            }
            let interval_ns = self.control.lock().interval_ns;
            let sleep = match &mut current {
                Some((of, sleep)) if *of == interval_ns => sleep,
                other => {
                    let sleep = Sleep::new(clock, start_ns, interval_ns);
                    &mut other.insert((interval_ns, sleep)).1
                }
            };
            sleep.poll_elapsed(cx).map(|()| true)
        })
        .await
    }
}

/// Takes the instance out of the registry and wakes those who wait for it: its last act, also if the task was never
/// run or is dropped.
struct EndNotice {
    shared: Arc<Shared>,
    instance: Arc<Instance>,
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        let wakes = {
            let mut registry = self.shared.registry.lock();
            registry
                .instances
                .retain(|i| !Arc::ptr_eq(i, &self.instance));
            registry.ended.notify(|()| true)
        };
        wakes.wake();
    }
}

/// The parameters are dropped in this order if the task never runs: the report comes last, since whoever waits for it may
/// free what the others lead to.
struct Body {
    targets: Vec<Arc<dyn CleanTarget>>,
    clock: Arc<dyn Clock>,
    end: EndNotice,
}

async fn run(body: Body) {
    // Variables are dropped in reverse order, when the task ends and when it is dropped in mid-sleep.
    let Body {
        end,
        clock,
        targets,
    } = body;
    let EndNotice { shared, instance } = &end;
    instance.set_runner(shared.host.cleaner_owner());
    while instance.sleep(&*clock).await {
        shared.pass(instance, &*clock, &targets).await;
    }
}
