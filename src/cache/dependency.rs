// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must be on disk before a table of this cache is written.
//!
//! Either another cache is flushed first, or storage is. A cache that others depend on depends on none itself and a
//! cache that depends on one has nobody depending on it: [`Cache::set_dependency`] flushes until that is so, hence no
//! chains and no rings.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use super::Cache;
use crate::error::Errno;

/// Guarded by its own lock, which is never held together with another cache's.
#[derive(Default)]
pub(super) struct Dependencies {
    /// This cache is flushed before a table is written; the number tells one setting from the next.
    on: Option<(u64, Arc<Cache>)>,
    settings: u64,
    /// Caches that (may) depend on this one.
    dependents: Vec<Weak<Cache>>,
    /// How often a flush of storage was asked for, and up to which of these it was done.
    flushes_requested: u64,
    flushes_satisfied: u64,
}

enum Unsatisfied {
    Cache(u64, Arc<Cache>),
    Flush,
}

impl Cache {
    /// Before a table of this cache is written, `dependency` is flushed. State lock held by the caller.
    ///
    /// Flushes what would become a chain or a ring. `EINVAL`: a cache cannot depend on itself. Others are storage's;
    /// nothing was set then.
    pub async fn set_dependency(self: &Arc<Self>, dependency: &Arc<Cache>) -> Result<(), Errno> {
        self.check_poison()?;
        dependency.check_poison()?;
        if Arc::ptr_eq(self, dependency) {
            return Err(Errno::INVAL);
        }
        loop {
            // The other one's own dependencies: no chain onwards.
            if dependency.depends_on_a_cache() {
                dependency.satisfy_dependencies().await?;
                continue;
            }
            // An older one of ours.
            let current = self.dependencies.lock().on.clone();
            match current {
                Some((_, on)) if Arc::ptr_eq(&on, dependency) => return Ok(()),
                Some(_) => {
                    self.satisfy_dependencies().await?;
                    continue;
                }
                None => {}
            }
            // Those who depend on us: no chain backwards.
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

    /// Before a table of this cache is written, its storage is flushed. Survives a flush that is running already. Any thread.
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

    /// Before this cache goes: whoever depends on it is satisfied now.
    pub async fn flush_dependents(self: &Arc<Self>) -> Result<(), Errno> {
        while let Some(dependent) = self.find_dependent() {
            dependent.satisfy_dependencies().await?;
        }
        Ok(())
    }

    /// Whether a write has to wait for a flush of something else.
    pub(super) fn dependencies_satisfied(&self) -> bool {
        let ours = self.dependencies.lock();
        ours.on.is_none() && ours.flushes_requested <= ours.flushes_satisfied
    }

    fn owed(&self) -> Option<Unsatisfied> {
        let ours = self.dependencies.lock();
        match &ours.on {
            Some((setting, on)) => Some(Unsatisfied::Cache(*setting, on.clone())),
            None if ours.flushes_requested > ours.flushes_satisfied => Some(Unsatisfied::Flush),
            None => None,
        }
    }

    /// Flushes what this cache depends on. On an error the dependency stays. No lock may be held.
    pub(super) async fn satisfy_dependencies(&self) -> Result<(), Errno> {
        while let Some(owed) = self.owed() {
            match owed {
                Unsatisfied::Cache(setting, on) => {
                    let wanted = self.flushes_requested();
                    on.flush_boxed().await?;
                    let same_device =
                        self.storage.device() != 0 && self.storage.device() == on.storage.device();
                    let settled = {
                        let mut ours = self.dependencies.lock();
                        if same_device {
                            ours.flushes_satisfied = ours.flushes_satisfied.max(wanted);
                        }
                        ours.on.take_if(|(now, _)| *now == setting)
                    };
                    // Perhaps the other cache's last owner: dropped without the lock.
                    drop(settled);
                }
                Unsatisfied::Flush => self.flush_storage()?,
            }
        }
        Ok(())
    }

    /// Boxed: a flush writes, a write satisfies dependencies, which is a flush.
    fn flush_boxed(&self) -> Pin<Box<dyn Future<Output = Result<(), Errno>> + Send + '_>> {
        Box::pin(self.flush())
    }

    fn flushes_requested(&self) -> u64 {
        self.dependencies.lock().flushes_requested
    }

    /// Flushes storage, and notes what that satisfies: what was asked for before it began.
    pub(super) fn flush_storage(&self) -> Result<(), Errno> {
        self.check_poison()?;
        let wanted = self.flushes_requested();
        self.storage.flush()?;
        let mut ours = self.dependencies.lock();
        ours.flushes_satisfied = ours.flushes_satisfied.max(wanted);
        Ok(())
    }
}
