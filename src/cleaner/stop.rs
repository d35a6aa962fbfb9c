// SPDX-License-Identifier: MIT OR Apache-2.0
//! The stop: set the flags, wake or cancel the instances, wait for their ends.
//!
//! On hosts that run the instance as a task of theirs (threads, event loops), the caller that asks
//! it to stop also takes the task out of its host and drops it: no stop depends on that thread or
//! loop making progress. A coroutine ends by itself.

use std::sync::Arc;

use super::instance::Instance;
use super::{Cleaner, Shared};
use crate::error::Errno;
use crate::host::{Context, block_on};
use crate::sync::lock::Owner;
use crate::sync::wait_list::Waiter;

impl Cleaner {
    /// Asks every instance to stop and does not wait. Cannot be undone. Any context, any lock held.
    pub fn request_stop(&self) {
        self.shared.request_stop();
    }

    /// The first half of [`Cleaner::request_stop`]: sets every instance's stop flag, and calls
    /// nothing. For callers that change something of their own in the same critical section.
    pub(crate) fn set_stop_flag(&self) -> PendingStops {
        self.shared.set_stop_flag()
    }

    /// `EDEADLK`: a stop would wait for the caller itself, since it holds the built-in lock or is
    /// the cleaner.
    pub fn check_may_wait(&self) -> Result<(), Errno> {
        let owner = self.shared.host.owner();
        if self.shared.lock.is_held_by(owner) || self.is_cleaner(owner) {
            return Err(Errno::DEADLK);
        }
        Ok(())
    }

    /// Stops every instance and waits for their ends. The caller holds the lock; it is released
    /// while waiting. On return it is held and no instance is alive, however many were started
    /// meanwhile.
    ///
    /// `EPERM`: the caller does not hold the built-in lock, or is plain code on a coroutine host.
    /// `EDEADLK`: the caller is the cleaner itself.
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

    /// [`Cleaner::co_locked_del_and_wait`] without the checks, also for plain code that holds the
    /// built-in lock.
    pub(crate) fn stop_with_lock_held(&self) -> Result<(), Errno> {
        let shared = &self.shared;
        while let Some(stop) = shared.begin_stop() {
            shared.unlock()?;
            shared.wait_for_end(stop);
            shared.lock()?;
        }
        Ok(())
    }

    /// Stops every instance and waits for their ends. Lock not held; for coroutines and threads.
    ///
    /// Takes no lock, since an instance can end without it. Waits for the instances that are alive
    /// at the call; a start at the same time comes before or after it. `EDEADLK`: see
    /// [`Cleaner::check_may_wait`].
    pub fn co_del_and_wait(&self) -> Result<(), Errno> {
        self.check_may_wait()?;
        if let Some(stop) = self.shared.begin_stop() {
            self.shared.wait_for_end(stop);
        }
        Ok(())
    }

    /// [`Cleaner::co_del_and_wait`], also for plain code of a coroutine host, which polls until
    /// done. Since no lock is needed, plain code waits itself and no coroutine is made for it.
    pub fn del_and_wait(&self) -> Result<(), Errno> {
        self.co_del_and_wait()
    }

    fn is_cleaner(&self, owner: Owner) -> bool {
        let registry = self.shared.registry.lock();
        let mut instances = registry.instances.iter();
        instances.any(|i| i.is_run_by(owner))
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        // Rust users may drop a cleaner with live instances (C's destroy refuses): they end by
        // themselves.
        self.request_stop();
    }
}

/// A stop that waits: for which instances, in which contexts.
struct Stop {
    instances: Vec<Arc<Instance>>,
    contexts: Vec<Context>,
}

impl Shared {
    /// Asks every instance to stop; returns them.
    fn request_stop(&self) -> Vec<Arc<Instance>> {
        let flagged = self.set_stop_flag();
        flagged.deliver();
        flagged.0
    }

    fn set_stop_flag(&self) -> PendingStops {
        self.forget_lost_in_fork();
        let mut registry = self.registry.lock();
        registry.stop_epoch += 1;
        registry.instances.iter().for_each(|i| i.set_stop_flag());
        PendingStops(registry.instances.clone())
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
        alive.then(|| registry.ended.register())
    }
}

/// Instances whose stop flag is set but that have not been woken yet.
#[must_use = "those that sleep go on sleeping until `deliver`"]
pub(crate) struct PendingStops(Vec<Arc<Instance>>);

impl PendingStops {
    /// Wakes or cancels them. Calls the host: no lock may be held.
    pub(crate) fn deliver(&self) {
        self.0.iter().for_each(|i| i.deliver_stop());
    }
}
