// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be on disk before a table of this cache is written.
//!
//! Before the write, either another cache or this cache's storage is flushed. A cache that others
//! depend on depends on no cache itself, and a cache that depends on another one has no dependents.
//! [`Cache::set_dependency`] flushes until that is so. Hence there are no chains and no cycles.

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
    /// Number of requests for a flush of storage, and how many of them flushes have satisfied.
    flushes_requested: u64,
    flushes_satisfied: u64,
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
        {
            let mut ours = self.dependencies.lock();
            ours.settings += 1;
            ours.on = Some((ours.settings, dependency.clone()));
        }
        let mut theirs = dependency.dependencies.lock();
        theirs.dependents.retain(|weak| weak.strong_count() > 0);
        theirs.dependents.push(Arc::downgrade(self));
        Ok(())
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

    /// For a cache that is about to be destroyed: satisfies the dependencies of every cache that
    /// depends on it.
    pub async fn flush_dependents(self: &Arc<Self>) -> Result<(), Errno> {
        while let Some(dependent) = self.find_dependent() {
            dependent.satisfy_dependencies().await?;
        }
        Ok(())
    }

    /// Whether a write may go ahead: no flush of another cache or of storage has to come first.
    pub(super) fn dependencies_satisfied(&self) -> bool {
        let ours = self.dependencies.lock();
        ours.on.is_none() && ours.flushes_requested <= ours.flushes_satisfied
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
                    let requested = self.flushes_requested();
                    on.flush_boxed().await?;
                    let same_device =
                        self.storage.device() != 0 && self.storage.device() == on.storage.device();
                    let settled = {
                        let mut ours = self.dependencies.lock();
                        if same_device {
                            ours.flushes_satisfied = ours.flushes_satisfied.max(requested);
                        }
                        ours.on.take_if(|(now, _)| *now == setting)
                    };
                    // This may be the other cache's last owner, so it is dropped without the lock.
                    drop(settled);
                }
                Unsatisfied::Flush => self.flush_storage()?,
            }
        }
        Ok(())
    }

    /// Boxed, because the futures are recursive: a flush writes, and a write satisfies dependencies
    /// by a flush.
    fn flush_boxed(&self) -> Pin<Box<dyn Future<Output = Result<(), Errno>> + Send + '_>> {
        Box::pin(self.flush())
    }

    fn flushes_requested(&self) -> u64 {
        self.dependencies.lock().flushes_requested
    }

    /// Flushes storage. Records that this satisfies every request made before it began.
    pub(super) fn flush_storage(&self) -> Result<(), Errno> {
        self.check_poison()?;
        let requested = self.flushes_requested();
        self.storage.flush()?;
        let mut ours = self.dependencies.lock();
        ours.flushes_satisfied = ours.flushes_satisfied.max(requested);
        Ok(())
    }
}
