// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a cache does when a flush of its device begins, succeeds and fails: see `device` for who
//! flushes, `unflushed` for the record of what a flush has to make stable.

use std::sync::Arc;

use super::slot::Word;
use super::unflushed::Place;
use super::{Cache, Counters, Inner};
use crate::error::Errno;
use crate::primitives::Ordering;

/// How many tables are made dirty again under one hold of the structure lock.
const CHUNK: usize = 256;

impl Cache {
    /// Flushes storage. Records that this satisfies every request made before it began. On an
    /// error, requests stay, and the tables that storage may have lost are dirty again. No lock may
    /// be held.
    ///
    /// The error of an earlier flush, if it cannot be made good: the cache is unstable.
    pub(super) async fn flush_storage(&self) -> Result<(), Errno> {
        self.check_poison()?;
        self.check_stable()?;
        let flush = self.device.begin_flush().await;
        flush.end(self.storage.flush())?;
        // While this flush waited for its turn, another one may have failed.
        self.check_stable()
    }

    /// Whether something that was written may not be stable, or the next write has to wait for a
    /// flush of storage.
    pub(super) fn owes_flush(&self) -> bool {
        self.flush_error().is_some()
            || self.is_flush_requested()
            || self.lock_inner().unflushed.count() > 0
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
    /// dirty again. What of it has left the cache is lost.
    pub(super) fn flush_failed(&self, errno: Errno) {
        let written = self.lock_inner().unflushed.take_all();
        let tables: Vec<Place> = written.tables.into_values().collect();
        let (mut redirtied, mut lost) = (0, written.gone as usize);
        for chunk in tables.chunks(CHUNK) {
            let inner = self.lock_inner();
            for place in chunk {
                match self.slots[place.slot as usize].redirty(place.version) {
                    Some(before) => {
                        self.dirty.insert(&self.groups, place.slot);
                        redirtied += usize::from(!before.is_dirty());
                    }
                    None => lost += 1,
                }
            }
            self.inner.yield_to_waiters(inner);
        }
        Counters::add(&self.counters.redirtied, redirtied);
        Counters::add(&self.counters.lost, lost);
        if lost > 0 {
            self.set_unstable(errno);
        }
    }

    /// Every table was given up: nothing of this cache has to become stable any more, and nothing
    /// has to wait for a flush.
    pub(super) fn forget_writes(&self) {
        let written = self.lock_inner().unflushed.take_all();
        drop(written);
        self.flush_error.store(0, Ordering::SeqCst);
        self.withdraw_requests();
    }

    /// Leaves the device. `heirs` take over what is in this cache's record: if the next flush
    /// fails, they are unstable.
    pub(super) fn leave_device(&self, heirs: &[Arc<Cache>]) {
        self.device.leave(self);
        let left = self.lock_inner().unflushed.take_all().count();
        if left == 0 {
            return;
        }
        for heir in heirs {
            if !std::ptr::eq(&**heir, self) {
                heir.lock_inner().unflushed.inherit(left);
            }
        }
    }
}
