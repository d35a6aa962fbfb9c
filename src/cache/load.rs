// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slow path of a get: wait for a load of the same table, make room, load.
//!
//! One decision at a time is made under the structure lock (`Cache::next_step`). A pin and a move
//! are carried out there, too; a wait, a write-back and a load are carried out without the lock.
//! After a wait, a write-back or a load that was discarded meanwhile, everything is looked at
//! again.
//!
//! | the table is | and | step |
//! |---|---|---|
//! | resident | | pin it |
//! | resident in a reserved slot | unlocked | move it to an ordinary slot, else `EAGAIN` |
//! | being loaded | | wait for that load |
//! | absent | a slot is free or its table droppable | load (unlocked: in ordinary slots; `EAGAIN` if the only free ones are reserved) |
//! | absent | slots are being released | locked: wait for any; unlocked: `EAGAIN` |
//! | absent | only dirty tables can be evicted | locked: write one back; unlocked: `EAGAIN` |
//! | absent | slots are loading or being written | locked: wait for any; unlocked: `EAGAIN` |
//! | absent | a slot was unpinned meanwhile | locked: look again; unlocked: `EAGAIN` |
//! | absent | all are pinned | locked: `EBUSY`; unlocked: `EAGAIN` |

use std::ops::Range;
use std::sync::Arc;

use super::waiters::Turn;
use super::words::{copy_words, zero_words};
use super::{Cache, Counters, Inner, Pinned, group};
use crate::error::Errno;
use crate::primitives::{Ordering, fence};
use crate::storage::{IoBuf, Storage};
use crate::sync::wait_list::Waiter;

/// Whether the caller of a get holds the state lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The caller holds it: write-back is allowed, and every slot may be used.
    Locked,
    /// The caller does not hold it: no write-back, and the reserved slots are left alone.
    Unlocked,
}

/// What an absent table is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The content of storage at the table's offset.
    FromStorage,
    /// Zeros, without a read from storage.
    Zeros,
}

/// What a get does next.
pub(super) enum Step<'a> {
    /// It has a pin of its table's slot.
    Pinned(u32),
    /// Wait for the end of one slot's load.
    WaitForSlot(Waiter),
    /// Wait for the end of any slot's load, write or release.
    WaitForAny(Turn<'a>),
    /// Look again.
    Again,
    /// Write the table at this offset, in this slot, to make room.
    WriteBack(u64, u32),
    /// Load the table into this slot.
    Load(u32),
}

/// How far a get came without a wait.
pub(super) enum Progress<'a> {
    /// To its end.
    Done(Pinned<'a>),
    /// To this step, which [`Cache::get_slow`] carries out.
    Continue(Step<'a>),
}

impl Cache {
    /// The rest of a get after [`Cache::lookup`] found nothing, as far as it goes without a wait.
    /// Most gets end here. Otherwise [`Cache::get_slow`] continues, with the same `miss_counted`.
    pub(super) fn get_in_one_step(
        &self,
        offset: u64,
        fill: Fill,
        access: Access,
        miss_counted: &mut bool,
    ) -> Result<Progress<'_>, Errno> {
        self.check_offset(offset)?;
        self.ghosts.prefetch(offset >> self.table_shift);
        let slot = match self.next_step(offset, access, miss_counted)? {
            Step::Pinned(slot) => slot,
            Step::Load(slot) => {
                if !self.load(slot, offset, fill)? {
                    return Ok(Progress::Continue(Step::Again));
                }
                slot
            }
            step => return Ok(Progress::Continue(step)),
        };
        Ok(Progress::Done(Pinned { cache: self, slot }))
    }

    /// The rest of a get, from the step on at which [`Cache::get_in_one_step`] ended. Waits where
    /// it has to.
    pub(super) async fn get_slow<'a>(
        &'a self,
        mut step: Step<'a>,
        offset: u64,
        fill: Fill,
        access: Access,
        mut miss_counted: bool,
    ) -> Result<Pinned<'a>, Errno> {
        // Dropped on every way out, and before everything that may take long.
        let mut turn: Option<Turn<'a>> = None;
        loop {
            match step {
                Step::Pinned(slot) => return Ok(Pinned { cache: self, slot }),
                Step::WaitForSlot(waiter) => {
                    turn = None;
                    waiter.await;
                }
                Step::WaitForAny(next) => {
                    if let Some(turn) = turn.take() {
                        turn.end();
                    }
                    turn.insert(next).wait().await;
                }
                Step::Again => {}
                Step::WriteBack(victim, slot) => {
                    turn = None;
                    self.write_back(vec![(victim, slot)]).await?;
                }
                Step::Load(slot) => {
                    turn = None;
                    if self.load(slot, offset, fill)? {
                        return Ok(Pinned { cache: self, slot });
                    }
                }
            }
            self.check_poison()?;
            step = self.next_step(offset, access, &mut miss_counted)?;
        }
    }

    fn next_step(
        &self,
        offset: u64,
        access: Access,
        miss_counted: &mut bool,
    ) -> Result<Step<'_>, Errno> {
        let mut inner = self.lock_inner();
        // Checked again under the lock. `poison` sets the flag and then wakes the registered
        // waiters under the lock; a caller that is not registered by then sees the flag here.
        self.check_poison()?;
        if let Some(slot) = self.find_unlocked(offset) {
            if self.slots[slot as usize].word().is_loading() {
                self.count_miss(miss_counted);
                return Ok(Step::WaitForSlot(inner.waiters.slots.register(slot)));
            }
            if access == Access::Unlocked && self.is_reserved(slot) {
                return self.move_out_of_reserve(&mut inner, slot);
            }
            return self.pin_found(slot);
        }
        self.count_miss(miss_counted);
        if let Some(slot) = self.allocate_slot(&mut inner, offset, access) {
            self.index.insert(offset, slot);
            inner.loading += 1;
            return Ok(Step::Load(slot));
        }
        if access == Access::Unlocked {
            return Err(Errno::AGAIN);
        }
        if inner.releasing > 0 {
            // In a quarter of a ms at most there are free slots again. That is better than writing
            // a table that could stay.
            let turn = Turn::register(self, &mut inner.waiters);
            return Ok(Step::WaitForAny(turn));
        }
        if let Some(slot) = self.find_dirty_victim(&mut inner) {
            return Ok(Step::WriteBack(self.slots[slot as usize].offset(), slot));
        }
        if inner.loading + inner.writing.len() > 0 {
            let turn = Turn::register(self, &mut inner.waiters);
            return Ok(Step::WaitForAny(turn));
        }
        // A slot is unpinned now, but could not be taken a moment ago: look again.
        if self.slots.iter().any(|slot| slot.word().pins() == 0) {
            return Ok(Step::Again);
        }
        Err(Errno::BUSY)
    }

    /// Pins the table of a slot that is in the index and not loading, so it is resident. The pin
    /// can fail only because the table has the most pins that are possible (2^20 − 1).
    fn pin_found(&self, slot: u32) -> Result<Step<'_>, Errno> {
        if !self.slots[slot as usize].pin(&self.counters.hits) {
            return Err(Errno::BUSY);
        }
        let (group, bit) = group::place(slot);
        self.groups[group].touch(bit);
        Ok(Step::Pinned(slot))
    }

    fn count_miss(&self, miss_counted: &mut bool) {
        if !std::mem::replace(miss_counted, true) {
            Counters::increment_locked(&self.counters.misses);
        }
    }

    pub(super) fn unreserved_slots(&self) -> Range<usize> {
        0..self.slots.len() - self.reserved
    }

    pub(super) fn reserved_slots(&self) -> Range<usize> {
        self.slots.len() - self.reserved..self.slots.len()
    }

    /// A slot for `offset`, now in state loading: a free one, else that of a droppable table. Free
    /// ordinary slots are taken before free reserved ones; for evictions there is no such order.
    fn allocate_slot(&self, inner: &mut Inner, offset: u64, access: Access) -> Option<u32> {
        let unreserved = self.unreserved_slots();
        match access {
            Access::Unlocked => self.allocate_free(inner, &unreserved, offset).or_else(|| {
                // A free slot that only a caller with the state lock may fill is better than the
                // eviction of a table: this caller comes back with the lock. So a cache that is as
                // large as the image needs holds all of the image's tables.
                if self.has_free_reserve() {
                    return None;
                }
                self.allocate_by_eviction(inner, &unreserved, offset)
            }),
            Access::Locked => {
                let free = if inner.free_hint == self.groups.len() {
                    None
                } else {
                    self.allocate_free(inner, &unreserved, offset)
                        .or_else(|| self.allocate_free(inner, &self.reserved_slots(), offset))
                };
                free.or_else(|| self.allocate_by_eviction(inner, &(0..self.slots.len()), offset))
            }
        }
    }

    fn has_free_reserve(&self) -> bool {
        self.reserved_slots().any(|slot| {
            let (group, bit) = group::place(slot as u32);
            self.groups[group].taken.load(Ordering::Relaxed) & bit == 0
        })
    }

    /// A slot for a table that leaves the reserve. The table's reserved slot is free afterwards.
    fn allocate_unreserved(&self, inner: &mut Inner, offset: u64) -> Option<u32> {
        let unreserved = self.unreserved_slots();
        self.allocate_free(inner, &unreserved, offset)
            .or_else(|| self.allocate_by_eviction(inner, &unreserved, offset))
    }

    /// Moves a table that an unlocked caller asks for from its reserved slot to an ordinary one. A
    /// dirty table stays in its slot: a flush that has listed it finds it there.
    fn move_out_of_reserve(&self, inner: &mut Inner, from: u32) -> Result<Step<'_>, Errno> {
        let source = &self.slots[from as usize];
        let offset = source.offset();
        if !source.word().is_droppable() {
            return Err(Errno::AGAIN);
        }
        let to = self
            .allocate_unreserved(inner, offset)
            .ok_or(Errno::AGAIN)?;
        let Some(before) = source.begin_move() else {
            // The table was pinned meanwhile by another caller, which holds the state lock.
            self.slots[to as usize].abandon_load();
            self.mark_free(inner, to);
            return Err(Errno::AGAIN);
        };
        // Release: the claims' words come before the bytes that follow, as in `load`. Pairs with
        // the acquire fence in `read`.
        fence(Ordering::Release);
        // SAFETY: two different slots of one cache. Nobody has either of them pinned: the source
        // was claimed while it had no pins, and the destination was allocated. Both are in state
        // loading.
        unsafe {
            let (from, to) = (self.tables.table(from), self.tables.table(to));
            copy_words(from, to, self.table_size());
        }
        self.remove_from_index(inner, from);
        self.index.insert(offset, to);
        Counters::add(&self.counters.hits, before.hits() as usize + 1);
        let moved_from = self.place_of(from, before);
        self.slots[to as usize].finish_load();
        let moved_to = self.place_of(to, self.slots[to as usize].word());
        inner.unflushed.moved(offset, moved_from, moved_to);
        source.abandon_load();
        self.mark_free(inner, from);
        Ok(Step::Pinned(to))
    }

    /// Fills a slot that is in state loading. Returns false if the table was discarded meanwhile.
    /// No lock held.
    fn load(&self, slot: u32, offset: u64, fill: Fill) -> Result<bool, Errno> {
        let guard = LoadGuard {
            cache: self,
            slot,
            from_storage: fill == Fill::FromStorage,
            ended: false,
        };
        // Release: the claim's word comes before the bytes that follow. Pairs with the acquire
        // fence in `read`.
        fence(Ordering::Release);
        let table = self.tables.table(slot);
        match fill {
            Fill::FromStorage => {
                // SAFETY: the slot's own memory. In state loading nobody else uses it, except for
                // readers that copy without a pin; they throw away what they copied.
                let buf = unsafe { IoBuf::new(table.as_ptr(), self.table_size()) };
                let storage: &Arc<dyn Storage> = &self.storage;
                storage.preadv(self.kind, offset, std::slice::from_ref(&buf))?;
            }
            // SAFETY: see the other case.
            Fill::Zeros => unsafe { zero_words(table, self.table_size()) },
        }
        Ok(guard.succeed())
    }
}

/// Ends a load, whether by success, by storage's error, or by a panic in a Rust storage.
struct LoadGuard<'a> {
    cache: &'a Cache,
    slot: u32,
    from_storage: bool,
    ended: bool,
}

impl LoadGuard<'_> {
    fn succeed(mut self) -> bool {
        self.ended = true;
        self.end(true)
    }

    fn end(&self, loaded: bool) -> bool {
        let cache = self.cache;
        let slot = &cache.slots[self.slot as usize];
        let (resident, wakes) = {
            let mut inner = cache.lock_inner();
            inner.loading -= 1;
            if loaded && self.from_storage {
                Counters::increment_locked(&cache.counters.loads);
            }
            let resident = loaded && slot.finish_load();
            if !resident {
                // A discarded table left the index already. `finish_load` has freed its slot.
                if !loaded && !slot.word().is_discarded() {
                    cache.remove_from_index(&mut inner, self.slot);
                }
                if !loaded {
                    slot.abandon_load();
                }
                cache.mark_free(&mut inner, self.slot);
            }
            (resident, inner.waiters.notify(self.slot))
        };
        wakes.wake();
        resident
    }
}

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(false);
        }
    }
}
