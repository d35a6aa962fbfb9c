// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pass over the caches, in short steps.
//!
//! A pass takes the state lock anew for each step, and releases memory without it. Between two
//! steps its context runs other work. So a caller that wants the lock, or only the thread, waits
//! for one step, not for a pass over all tables.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::instance::Instance;
use super::{CleanTarget, Shared};
use crate::primitives::{AtomicU64, Ordering};
use crate::sync::sleep::Clock;

impl Shared {
    /// Takes the state lock; false if the instance was asked to stop meanwhile, without the lock
    /// then.
    async fn lock_for_pass(&self, instance: &Instance) -> bool {
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
        // It cannot fail: the cleaner took the lock in this same context.
        let unlocked = self.unlock();
        debug_assert!(unlocked.is_ok());
    }

    /// A pass over all targets; the lock is held neither before nor after. A stop cuts it short:
    /// the tables that were dropped stay dropped, and their memory is left to a later pass.
    pub(super) async fn pass(
        &self,
        instance: &Instance,
        clock: &dyn Clock,
        targets: &[Arc<dyn CleanTarget>],
    ) {
        // The lock is taken at least once, also with nothing to clean: no pass begins or goes on
        // while a caller holds it.
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
        // All tables were looked at: that counts as a pass, also if a stop drops the task while
        // memory is being released.
        let _counted = Counted(&self.passes);
        for target in targets {
            let mut next = Some(0);
            while let Some(from) = next.filter(|_| !instance.is_stopped()) {
                let released = self.step(instance, target, |target| target.release_memory(from));
                next = released.flatten();
                if next.is_some() {
                    instance.yield_to_context(clock).await;
                }
            }
        }
    }

    /// Runs one step of a pass. While it runs, its thread or coroutine counts as the cleaner, on
    /// every host. `None`: it panicked, and the target is poisoned.
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

/// Increments the counter when it is dropped.
struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
