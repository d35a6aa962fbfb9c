// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a cache does when a flush of its device begins, succeeds and fails: see `device` for who
//! flushes, `unflushed` for the record of what a flush has to make stable.

use std::sync::Arc;

use super::dependency::DependenciesThen;
use super::device::Orphans;
use super::slot::Word;
use super::unflushed::Place;
use super::{Cache, Counters, Inner};
use crate::error::Errno;
use crate::primitives::Ordering;

impl Cache {
    /// Flushes storage, without a write: what was written before the call is stable then, by
    /// whatever cache of the device. Needs no lock. On an error, what has to wait for a flush still
    /// waits, and the tables that storage may have lost are dirty again.
    ///
    /// The error may be that of an earlier flush which cannot be made good: the cache is unstable.
    pub async fn flush_storage(&self) -> Result<(), Errno> {
        self.check_poison()?;
        self.flush_device().await
    }

    /// [`Cache::flush_storage`] also of a poisoned cache, which may have written before.
    pub(super) async fn flush_device(&self) -> Result<(), Errno> {
        self.check_stable()?;
        let failures = self.device.failures();
        self.device.flush(self).await?;
        // While this flush waited for its turn, another one may have failed.
        self.device.check_since(failures)?;
        self.check_stable()
    }

    /// Whether something that was written may not be stable, or the next write has to wait for a
    /// flush of storage.
    pub(super) fn owes_flush(&self) -> bool {
        let orphans = self.device.orphans();
        let unflushed = {
            let inner = self.lock_inner();
            inner.unflushed.count() + unsettled(orphans, &inner)
        };
        unflushed > 0 || self.is_flush_requested() || self.flush_error().is_some()
    }

    /// The error that every flush returns: a flush failed that should have made stable what is no
    /// longer here to be written again. `None`: the cache is stable.
    pub fn flush_error(&self) -> Option<Errno> {
        match self.flush_error.load(Ordering::SeqCst) {
            0 => None,
            code => Some(Errno::from_code(code as i32)),
        }
    }

    fn check_stable(&self) -> Result<(), Errno> {
        self.flush_error().map_or(Ok(()), Err)
    }

    /// The first error is kept.
    pub(super) fn set_unstable(&self, errno: Errno) {
        let code = errno.code() as u32;
        let _ = self
            .flush_error
            .compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub(super) fn place_of(&self, slot: u32, word: Word) -> Place {
        let version = word.version();
        Place { slot, version }
    }

    /// A table was written. Structure lock held.
    pub(super) fn record_write(&self, inner: &mut Inner, offset: u64, place: Place) {
        let is_there =
            |place: Place| self.slots[place.slot as usize].word().version() == place.version;
        let slots = self.slots.len();
        inner.unflushed.record(offset, place, slots, is_there);
    }

    /// A flush of the device begins.
    pub(super) fn flush_begins(&self) {
        self.lock_inner().unflushed.flush_begins();
        self.requests_begin();
    }

    /// The flush of the device succeeded.
    pub(super) fn flush_succeeded(&self) {
        let stable = self.lock_inner().unflushed.flush_succeeded();
        // Without the lock: it may be large.
        drop(stable);
        if self.flush_error().is_none() {
            self.requests_succeeded();
        }
    }

    /// The flush of the device failed, with `errno`. What was written since the last good flush is
    /// dirty again. What of it has left the cache is lost, and so are the orphans.
    ///
    /// All under one hold of the structure lock, however long: a table that was evicted in between
    /// would be lost without need.
    pub(super) fn flush_failed(&self, errno: Errno, orphans: Orphans) {
        let (mut redirtied, mut lost) = (0, 0);
        {
            let mut inner = self.lock_inner();
            let written = inner.unflushed.take_all();
            lost += (written.gone + unsettled(orphans, &inner)) as usize;
            for place in written.tables.into_values() {
                match self.slots[place.slot as usize].redirty(place.version) {
                    Some(before) => {
                        self.dirty.insert(&self.groups, place.slot);
                        redirtied += usize::from(!before.is_dirty());
                    }
                    None => lost += 1,
                }
            }
        }
        Counters::add(&self.counters.redirtied, redirtied);
        Counters::add(&self.counters.lost, lost);
        if lost > 0 {
            self.set_unstable(errno);
        }
    }

    /// Every table was given up: nothing of this cache has to become stable any more, and nothing
    /// has to wait for what [`Cache::dependencies_now`] returned before.
    pub(super) fn forget_writes(&self, dependencies: DependenciesThen) {
        let orphans = self.device.orphans();
        let written = {
            let mut inner = self.lock_inner();
            inner.orphans_given_up = orphans.left;
            inner.unflushed.take_all()
        };
        drop(written);
        self.flush_error.store(0, Ordering::SeqCst);
        self.withdraw_dependencies(dependencies);
    }

    /// Leaves the device. What is in the record is the device's from now on, and also that of its
    /// `dependents` on other devices.
    pub(super) fn leave_device(&self, dependents: &[Arc<Cache>]) {
        {
            // One step: a flush that fails finds them here, or with the device.
            let mut inner = self.lock_inner();
            let left = inner.unflushed.take_all().count();
            if left > 0 {
                self.device.adopt(left);
                for dependent in dependents {
                    if !Arc::ptr_eq(&dependent.device, &self.device) {
                        dependent.device.adopt(left);
                    }
                }
            }
        }
        self.device.leave(self);
    }
}

/// How many orphans are not settled that the cache was not given up with.
fn unsettled(orphans: Orphans, inner: &Inner) -> u64 {
    let settled = orphans.settled.max(inner.orphans_given_up);
    orphans.left.saturating_sub(settled)
}
