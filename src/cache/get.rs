// SPDX-License-Identifier: MIT OR Apache-2.0
//! Gets: the lock-free lookup first, then the slow path of `load`.
//!
//! A get goes through up to four stages, each for what the one before could not decide:
//!
//! | stage | handles | waits |
//! |---|---|---|
//! | [`Cache::lookup_fast`] | a table in one of its two first buckets, pinned by one compare-and-swap | no |
//! | [`Cache::lookup_slow`] | any resident table | no |
//! | [`Cache::get_in_one_step`] | a load that has nothing to wait for but storage | for storage |
//! | [`Cache::get_slow`] | waits for other loads, write-back of a victim | yes |

use super::Cache;
use super::fast_path::LookupFailure;
#[cfg(not(any(loom, shuttle)))]
use super::load::Step;
use super::load::{Access, Fill, Progress};
use super::pinned::Pinned;
use crate::error::Errno;
#[cfg(not(any(loom, shuttle)))]
use crate::host::block_on;

/// What a get does with a table that is not resident, and whether its caller holds the state lock.
/// C's layout: it goes in one register.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GetMode {
    /// Loads it. State lock held.
    Load,
    /// Fills it with zeros. State lock held.
    LoadZeros,
    /// Loads it if that needs no write-back. State lock not held.
    LoadUnlocked,
    /// Fails with `EAGAIN`. State lock not held.
    ResidentOnly,
}

impl GetMode {
    /// Which slots the caller may use.
    pub(crate) fn access(self) -> Access {
        match self {
            GetMode::Load | GetMode::LoadZeros => Access::Locked,
            GetMode::LoadUnlocked | GetMode::ResidentOnly => Access::Unlocked,
        }
    }

    /// What fills an absent table; `None`: nothing does.
    fn fill(self) -> Option<Fill> {
        match self {
            GetMode::Load | GetMode::LoadUnlocked => Some(Fill::FromStorage),
            GetMode::LoadZeros => Some(Fill::Zeros),
            GetMode::ResidentOnly => None,
        }
    }
}

impl Cache {
    /// Pins the table at `offset` and gives access to it. Loads it if it is not resident. State
    /// lock held by the caller.
    ///
    /// `EBUSY`: every slot is pinned. `EINVAL`: offset 0. `EIO`: an offset that is not a multiple
    /// of the table size (storage's `corruption` was called), or a poisoned cache. Other errors are
    /// storage's: of the load, or of the write of a dirty table that had to make room.
    pub async fn get(&self, offset: u64) -> Result<Pinned<'_>, Errno> {
        self.get_with(offset, GetMode::Load).await
    }

    /// Pins the table at `offset` for a caller that is about to write all of it: nothing is read. A
    /// table that is not resident enters filled with zeros; a resident one comes as it is. State
    /// lock held by the caller. Errors: those of [`Cache::get`], without a load's.
    pub async fn get_empty(&self, offset: u64) -> Result<Pinned<'_>, Errno> {
        self.get_with(offset, GetMode::LoadZeros).await
    }

    /// Pins the table at `offset` for a caller without the state lock: hits, and loads that need no
    /// write-back. `EAGAIN`: take the lock and use [`Cache::get`]. Other errors: those of
    /// [`Cache::get`], without a write's.
    pub async fn get_unlocked(&self, offset: u64) -> Result<Pinned<'_>, Errno> {
        self.get_with(offset, GetMode::LoadUnlocked).await
    }

    /// Pins a resident table. Never waits, takes no lock.
    ///
    /// `EAGAIN`: it is not resident; it is just being moved; or it is in a slot that is reserved
    /// for callers with the state lock. `EINVAL`, `EIO`: see [`Cache::get`].
    #[inline]
    pub fn try_get(&self, offset: u64) -> Result<Pinned<'_>, Errno> {
        let hit = self.lookup(offset, GetMode::ResidentOnly.access());
        hit.ok_or_else(|| self.lookup_error(offset))
    }

    async fn get_with(&self, offset: u64, mode: GetMode) -> Result<Pinned<'_>, Errno> {
        let access = mode.access();
        if let Some(pinned) = self.lookup(offset, access) {
            return Ok(pinned);
        }
        let fill = mode.fill().ok_or_else(|| self.lookup_error(offset))?;
        let mut miss_counted = false;
        match self.get_in_one_step(offset, fill, access, &mut miss_counted)? {
            Progress::Done(pinned) => Ok(pinned),
            Progress::Continue(step) => {
                let rest = self.get_slow(step, offset, fill, access, miss_counted);
                rest.await
            }
        }
    }

    /// What is left of a get after [`Cache::lookup_fast`] failed, for callers that are not async:
    /// waits as the host lets its caller wait. A get that does not have to wait creates no future.
    // The C API calls it, which is not part of a model.
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn get_blocking(
        &self,
        failure: LookupFailure,
        offset: u64,
        mode: GetMode,
    ) -> Result<Pinned<'_>, Errno> {
        let access = mode.access();
        if let Some(pinned) = self.lookup_slow(failure, offset, access) {
            return Ok(pinned);
        }
        let fill = mode.fill().ok_or_else(|| self.lookup_error(offset))?;
        let mut miss_counted = false;
        match self.get_in_one_step(offset, fill, access, &mut miss_counted)? {
            Progress::Done(pinned) => Ok(pinned),
            Progress::Continue(step) => self.block_on_get(step, offset, fill, access, miss_counted),
        }
    }

    // Not inlined: the caller's stack frame would have room for the future otherwise.
    #[cfg(not(any(loom, shuttle)))]
    #[cold]
    #[inline(never)]
    fn block_on_get<'a>(
        &'a self,
        step: Step<'a>,
        offset: u64,
        fill: Fill,
        access: Access,
        miss_counted: bool,
    ) -> Result<Pinned<'a>, Errno> {
        let rest = self.get_slow(step, offset, fill, access, miss_counted);
        block_on(self.host(), &[], rest)
    }

    /// The lock-free lookup: finds the slot, pins it, looks at its offset again. A caller without
    /// the state lock does not pin a reserved slot, not even for a moment: a get with the lock
    /// could find nothing but pinned slots then.
    pub(crate) fn lookup(&self, offset: u64, access: Access) -> Option<Pinned<'_>> {
        match self.lookup_fast(offset, access) {
            Ok((slot, needs_touch)) => {
                if needs_touch {
                    self.touch(slot);
                }
                Some(Pinned { cache: self, slot })
            }
            Err(failure) => self.lookup_slow(failure, offset, access),
        }
    }

    /// The lookup with every case considered, after [`Cache::lookup_fast`] failed with `failure`.
    fn lookup_slow(
        &self,
        failure: LookupFailure,
        offset: u64,
        access: Access,
    ) -> Option<Pinned<'_>> {
        match failure {
            LookupFailure::NotIndexed => return None,
            LookupFailure::SlotReused(slot) => self.unpin_mismatched(slot),
            LookupFailure::NeedsSlowPath => {}
        }
        let slot_number = self.find_unlocked(offset)?;
        if access == Access::Unlocked && self.is_reserved(slot_number) {
            return None;
        }
        let slot = self.slot(slot_number);
        if self.is_poisoned() || !slot.pin(&self.counters.hits) {
            return None;
        }
        let pinned = Pinned {
            cache: self,
            slot: slot_number,
        };
        if slot.offset() != offset {
            // The slot went to another table between lookup and pin. Dropping `pinned` unpins it.
            return None;
        }
        self.touch(slot_number);
        Some(pinned)
    }

    /// Unpins a slot that turned out to hold another table.
    fn unpin_mismatched(&self, number: u32) {
        let unpinned = self.unpin_slot(number);
        debug_assert!(unpinned.is_ok(), "the lookup's pin is gone");
    }

    /// Why a lookup that found nothing fails, where nothing is loaded: a bad offset, a poisoned
    /// cache, else `EAGAIN`.
    fn lookup_error(&self, offset: u64) -> Errno {
        self.check_offset(offset).err().unwrap_or(Errno::AGAIN)
    }
}
