// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be on disk before a table of this cache is written.
//!
//! Before the write, either another cache or this cache's storage is flushed. A cache that others
//! depend on depends on no cache itself, and a cache that depends on another one has no dependents.
//! [`Cache::set_dependency`] flushes until that is so. Hence there are no chains and no cycles.
//! A cache that is destroyed leaves a dependency on a flush of storage behind.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use super::Cache;
use crate::error::Errno;

/// Guarded by its own lock, which is never held together with another cache's.
#[derive(Default)]
pub(super) struct Dependencies {
    /// The cache to flush before a table of this one is written. The number tells one setting of
    /// the dependency from the next.
    on: Option<(u64, Arc<Cache>)>,
    settings: u64,
    /// Caches that depend on this one, or once did.
    dependents: Vec<Weak<Cache>>,
    /// Number of requests for a flush of storage; how many of them were made before the flush began
    /// that runs now; and how many of them flushes have satisfied.
    flushes_requested: u64,
    flushes_running: u64,
    flushes_satisfied: u64,
}

/// What a cache depended on at one moment.
pub(super) struct DependenciesThen {
    flushes_requested: u64,
    setting: Option<u64>,
}

enum Unsatisfied {
    Cache(u64, Arc<Cache>),
    Flush,
}

impl Cache {
    /// Has `dependency` flushed before a table of this cache is written. State lock held by the
    /// caller.
    ///
    /// Where the new dependency would form a chain or a cycle, flushes the older ones first.
    /// `EINVAL`: a cache cannot depend on itself. `EIO`: one of the two is poisoned. Other errors
    /// are storage's. On an error the new dependency is not set.
    pub async fn set_dependency(self: &Arc<Self>, dependency: &Arc<Cache>) -> Result<(), Errno> {
        self.check_poison()?;
        dependency.check_poison()?;
        if Arc::ptr_eq(self, dependency) {
            return Err(Errno::INVAL);
        }
        loop {
            // What `dependency` itself depends on comes first: no chain onwards.
            if dependency.depends_on_a_cache() {
                dependency.satisfy_dependencies().await?;
                continue;
            }
            // An older dependency of this cache comes first, too.
            let current = self.dependencies.lock().on.clone();
            match current {
                Some((_, on)) if Arc::ptr_eq(&on, dependency) => return Ok(()),
                Some(_) => {
                    self.satisfy_dependencies().await?;
                    continue;
                }
                None => {}
            }
            // So do the caches that depend on this one: no chain backwards.
            if let Some(dependent) = self.find_dependent() {
                dependent.satisfy_dependencies().await?;
                continue;
            }
            break;
        }
        self.depend_on(dependency.clone());
        Ok(())
    }

    fn depend_on(self: &Arc<Self>, dependency: Arc<Cache>) {
        {
            let mut theirs = dependency.dependencies.lock();
            theirs.dependents.retain(|weak| weak.strong_count() > 0);
            let ours = Arc::downgrade(self);
            if !theirs.dependents.iter().any(|weak| weak.ptr_eq(&ours)) {
                theirs.dependents.push(ours);
            }
        }
        let mut ours = self.dependencies.lock();
        ours.settings += 1;
        ours.on = Some((ours.settings, dependency));
    }

    /// Has this cache's storage flushed before a table of the cache is written. A flush that is
    /// already running does not satisfy the request. Any thread. `EIO`: the cache is poisoned.
    pub fn depends_on_flush(&self) -> Result<(), Errno> {
        self.check_poison()?;
        self.dependencies.lock().flushes_requested += 1;
        Ok(())
    }

    fn depends_on_a_cache(&self) -> bool {
        self.dependencies.lock().on.is_some()
    }

    fn find_dependent(self: &Arc<Self>) -> Option<Arc<Cache>> {
        let dependents = self.dependencies.lock().dependents.clone();
        let mut alive = dependents.iter().filter_map(Weak::upgrade);
        alive.find(|other| {
            let theirs = other.dependencies.lock();
            theirs
                .on
                .as_ref()
                .is_some_and(|(_, on)| Arc::ptr_eq(on, self))
        })
    }

    /// The cache is about to be destroyed: from now on it depends on nothing, and no other cache
    /// depends on it. Calls no storage.
    ///
    /// What depended on it depends on a flush of storage instead. That is enough, since this cache
    /// has nothing dirty. If it is unstable, so are its dependents: no flush helps them. So they
    /// are if it is poisoned and has dirty tables, which will never be written.
    pub fn retire(self: &Arc<Self>) {
        let lost = self.flush_error().or_else(|| {
            let never_written = self.check_poison().is_err() && self.has_dirty();
            never_written.then_some(Errno::IO)
        });
        let mut former = Vec::new();
        while let Some(dependent) = self.find_dependent() {
            let settled = {
                let mut theirs = dependent.dependencies.lock();
                theirs.flushes_requested += 1;
                theirs.on.take_if(|(_, on)| Arc::ptr_eq(on, self))
            };
            drop(settled);
            if let Some(errno) = lost {
                dependent.set_unstable(errno);
            }
            former.push(dependent);
        }
        let (settled, dependents) = {
            let mut ours = self.dependencies.lock();
            (ours.on.take(), std::mem::take(&mut ours.dependents))
        };
        drop((settled, dependents));
        self.leave_device(&former);
    }

    /// A new cache takes this one's place, and this one will be retired, together with `sibling`.
    /// The new cache's first write waits for what this one's next write would wait for. If this one
    /// is unstable, so is the new one.
    pub fn hand_over_to(&self, successor: &Arc<Cache>, sibling: &Arc<Cache>) {
        let (on, wants_flush) = {
            let ours = self.dependencies.lock();
            let wants_flush = ours.flushes_requested > ours.flushes_satisfied;
            (ours.on.as_ref().map(|(_, on)| on.clone()), wants_flush)
        };
        let on_sibling = on.as_ref().is_some_and(|on| Arc::ptr_eq(on, sibling));
        if wants_flush || on_sibling {
            successor.dependencies.lock().flushes_requested += 1;
        }
        let lost = self.flush_error();
        if let Some(errno) = lost.or_else(|| sibling.flush_error().filter(|_| on_sibling)) {
            successor.set_unstable(errno);
        }
        if let Some(on) = on.filter(|_| !on_sibling) {
            successor.depend_on(on);
        }
    }

    /// Memory of the list of dependents, in bytes.
    pub(super) fn dependents_bytes(&self) -> usize {
        self.dependencies.lock().dependents.capacity() * size_of::<Weak<Cache>>()
    }

    /// Whether a write may go ahead: no flush of another cache or of storage has to come first.
    pub(super) fn dependencies_satisfied(&self) -> bool {
        let ours = self.dependencies.lock();
        ours.on.is_none() && ours.flushes_requested == ours.flushes_satisfied
    }

    fn unsatisfied(&self) -> Option<Unsatisfied> {
        let ours = self.dependencies.lock();
        match &ours.on {
            Some((setting, on)) => Some(Unsatisfied::Cache(*setting, on.clone())),
            None if ours.flushes_requested > ours.flushes_satisfied => Some(Unsatisfied::Flush),
            None => None,
        }
    }

    /// Flushes what this cache depends on. On an error the dependency stays. No lock may be held.
    pub(super) async fn satisfy_dependencies(&self) -> Result<(), Errno> {
        while let Some(unsatisfied) = self.unsatisfied() {
            match unsatisfied {
                Unsatisfied::Cache(setting, on) => {
                    on.flush_boxed().await?;
                    let settled = {
                        let mut ours = self.dependencies.lock();
                        ours.on.take_if(|(now, _)| *now == setting)
                    };
                    // This may be the other cache's last owner, so it is dropped without the lock.
                    drop(settled);
                }
                Unsatisfied::Flush => self.flush_storage().await?,
            }
        }
        Ok(())
    }

    /// Boxed, because the futures are recursive: a flush writes, and a write satisfies dependencies
    /// by a flush.
    fn flush_boxed(&self) -> Pin<Box<dyn Future<Output = Result<(), Errno>> + Send + '_>> {
        Box::pin(self.flush())
    }

    /// A flush of the device begins: it will satisfy the requests that were made until now.
    pub(super) fn requests_begin(&self) {
        let mut ours = self.dependencies.lock();
        ours.flushes_running = ours.flushes_requested;
    }

    /// The flush of the device succeeded.
    pub(super) fn requests_succeeded(&self) {
        let mut ours = self.dependencies.lock();
        ours.flushes_satisfied = ours.flushes_satisfied.max(ours.flushes_running);
    }

    /// What the cache depends on at this moment, for [`Cache::withdraw_dependencies`].
    pub(super) fn dependencies_now(&self) -> DependenciesThen {
        let ours = self.dependencies.lock();
        DependenciesThen {
            flushes_requested: ours.flushes_requested,
            setting: ours.on.as_ref().map(|(setting, _)| *setting),
        }
    }

    /// The tables that had to wait for these dependencies were given up. What was asked for since
    /// stays.
    pub(super) fn withdraw_dependencies(&self, then: DependenciesThen) {
        let withdrawn = {
            let mut ours = self.dependencies.lock();
            ours.flushes_satisfied = ours.flushes_satisfied.max(then.flushes_requested);
            ours.on.take_if(|(now, _)| Some(*now) == then.setting)
        };
        // Without the lock: it may be the other cache's last owner.
        drop(withdrawn);
    }

    pub(super) fn is_flush_requested(&self) -> bool {
        let ours = self.dependencies.lock();
        ours.flushes_requested > ours.flushes_satisfied
    }
}
