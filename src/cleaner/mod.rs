// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache cleaner: sleep → lock → clean → repeat, and the stop that waits for its end.
//!
//! | file | subject |
//! |---|---|
//! | `mod` | the public type: start, interval, state lock, counters; the registry of instances |
//! | `instance` | one instance: its states, its sleep, its end |
//! | `pass` | a pass and its steps |
//! | `stop` | the stop: ask, wake, wait for the end |
//!
//! Each start makes an *instance*, with its own stop flag, interval, waker and caches. So a start
//! succeeds while an older instance is still on its way out in another context.

mod instance;
mod pass;
mod stop;

use std::sync::Arc;

use self::instance::{Body, EndNotice, Instance, run};
use crate::error::Errno;
use crate::host::{Context, Host, block_on};
use crate::primitives::{AtomicU64, Mutex, Ordering};
use crate::sync::lock::StateLock;
use crate::sync::wait_list::WaitList;

/// Something with tables to clean: a cache. A pass calls it in short steps. No step does I/O or
/// waits.
pub trait CleanTarget: Send + Sync {
    /// Drops tables that were not used since the previous pass, from position `from` on, 0 at
    /// first. Returns how many were dropped, and the position of the next step; `None`: this was
    /// the last.
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>);

    /// Returns part of the dropped tables' memory to the kernel, from position `from` on, 0 at
    /// first. Returns the position of the next step; `None`: this was the last.
    fn release_memory(&self, from: usize) -> Option<usize>;

    /// A step panicked: the target never writes again.
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
    /// Live instances, including those asked to stop.
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
    ended: WaitList,
    starts: u64,
    interval_ns: u64,
    /// Incremented by every request to stop.
    stop_epoch: u64,
}

/// Conditions and caches of one start. Default: no condition, the caches of
/// [`Cleaner::set_caches`].
#[derive(Default)]
struct Plan {
    stop_epoch: Option<u64>,
    targets: Option<Vec<Arc<dyn CleanTarget>>>,
}

impl Cleaner {
    /// Makes a cleaner on `host`, with the host's lock if it has one, else a built-in one. Starts
    /// nothing.
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

    /// Makes a cleaner that is part of a state.
    pub fn for_state(host: Arc<dyn Host>) -> Self {
        let mut cleaner = Self::new(host);
        cleaner.is_owned_by_state = true;
        cleaner
    }

    /// Whether a state owns the cleaner: it must not be destroyed by itself.
    pub fn is_owned_by_state(&self) -> bool {
        self.is_owned_by_state
    }

    /// The caches that the *next* start cleans; each instance holds its own.
    pub fn set_caches(&self, targets: Vec<Arc<dyn CleanTarget>>) {
        let before = std::mem::replace(&mut self.shared.registry.lock().targets, targets);
        drop(before);
    }

    /// Starts an instance in `context` that makes a pass every `interval_ns`. 0 starts none and
    /// succeeds.
    ///
    /// `EALREADY`: an instance runs that was not asked to stop. `EINVAL`: not a context of this
    /// host. Other errors: the host could not start it. Any thread; does not wait; may run the new
    /// coroutine up to its first wait.
    pub fn start(&self, context: Context, interval_ns: u64) -> Result<(), Errno> {
        self.start_as(&Plan::default(), context, interval_ns)
    }

    /// [`Cleaner::start`] over `targets`, with the interval that was set last. `ESTALE`: a stop was
    /// requested since [`Cleaner::stop_epoch`] returned `stop_epoch`; what the caller knew then may
    /// be outdated, and nothing was started.
    pub fn start_unless_stopped_since(
        &self,
        stop_epoch: u64,
        targets: Vec<Arc<dyn CleanTarget>>,
        context: Context,
    ) -> Result<(), Errno> {
        let plan = Plan {
            stop_epoch: Some(stop_epoch),
            targets: Some(targets),
        };
        let interval_ns = self.interval_ns();
        self.start_as(&plan, context, interval_ns)
    }

    /// A number that every request to stop increments.
    pub fn stop_epoch(&self) -> u64 {
        self.shared.registry.lock().stop_epoch
    }

    /// The interval in ns that was set last, by a start, by [`Cleaner::set_interval`] or by
    /// [`Cleaner::set_next_interval`].
    pub fn interval_ns(&self) -> u64 {
        self.shared.registry.lock().interval_ns
    }

    /// Sets the interval for the next [`Cleaner::start_unless_stopped_since`]. A running instance
    /// keeps its own.
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
        let instance = Arc::new(Instance::new(context, interval_ns));
        let targets = shared.register(&instance, plan, interval_ns)?;
        let end = EndNotice {
            shared: shared.clone(),
            instance: instance.clone(),
        };
        // If the host refuses, the closure is dropped, and with it the end notice.
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
        shared.registry.lock().starts += 1;
        instance.set_cancel(cancel);
        Ok(())
    }

    /// Whether there is an instance that was not asked to stop.
    pub fn is_running(&self) -> bool {
        self.shared.forget_lost_in_fork();
        let registry = self.shared.registry.lock();
        registry.instances.iter().any(|i| !i.is_stopped())
    }

    /// Gives the running instance a new interval, counted from the beginning of its present sleep.
    /// 0 asks it to stop. `ESRCH`: none runs. Any thread; does not wait.
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
        running.set_interval(interval_ns);
        Ok(())
    }

    /// The counters now.
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

    /// Takes the state lock; waits as the host lets its caller wait. `EDEADLK`: the caller holds
    /// the built-in lock already. `EPERM`: it is the host's own lock, and the caller is plain code.
    pub fn lock(&self) -> Result<(), Errno> {
        self.shared.lock()
    }

    /// Releases the state lock. `EPERM`: the caller does not hold the built-in lock; or it is the
    /// host's own lock, and the caller is plain code.
    pub fn unlock(&self) -> Result<(), Errno> {
        self.shared.unlock()
    }

    /// Whether the caller can take the state lock; plain code cannot take a host's own one.
    pub fn can_lock(&self) -> bool {
        let host = &self.shared.host;
        host.own_lock().is_none() || !host.in_plain_code()
    }

    /// `EBUSY`: an instance is alive or the built-in lock is held.
    pub fn check_idle(&self) -> Result<(), Errno> {
        self.shared.forget_lost_in_fork();
        let alive = !self.shared.registry.lock().instances.is_empty();
        if alive || self.shared.lock.is_held() {
            return Err(Errno::BUSY);
        }
        Ok(())
    }

    /// The host that the cleaner was made with.
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

    /// Keeps the host's threads alive as long as the cleaner. Renewed at each start: after a fork,
    /// an older lease keeps nothing alive.
    fn hold_lease(&self) -> Result<(), Errno> {
        let lease = self.shared.host.lease()?;
        let before = std::mem::replace(&mut *self.lease.lock(), lease);
        // Dropped without the lock: that takes the host's own.
        drop(before);
        Ok(())
    }
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
        if plan
            .stop_epoch
            .is_some_and(|stop_epoch| stop_epoch != registry.stop_epoch)
        {
            return Err(Errno::STALE);
        }
        if registry.instances.iter().any(|i| !i.is_stopped()) {
            return Err(Errno::ALREADY);
        }
        registry.interval_ns = interval_ns;
        registry.instances.push(instance.clone());
        Ok(plan
            .targets
            .clone()
            .unwrap_or_else(|| registry.targets.clone()))
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

    /// Forgets the instances that a fork left behind: the child does not have its parent's
    /// background thread, nor the tasks in it.
    fn forget_lost_in_fork(&self) {
        let mut registry = self.registry.lock();
        registry
            .instances
            .retain(|i| !self.host.lost_in_fork(i.pid));
    }
}
