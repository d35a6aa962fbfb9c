// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who waits for what in a cache, and whom an event wakes.
//!
//! | waits for | who | woken when it ends |
//! |---|---|---|
//! | one slot's load | gets of the same table | all |
//! | one slot's write | flushes that have listed its table | all |
//! | any load, write or release | gets that find no slot for their table | one, in the order in which they came; then see below |
//!
//! An event frees a slot or two, so waking every get that needs one would be useless work: with n
//! waiters, n² wake-ups for n loads. Instead the woken get has its *turn* ([`Turn`]):
//!
//! | what the get finds in its turn | the turn |
//! |---|---|
//! | its table, a slot, a table to write back, or an error | passes to the next waiter: there may be more for that one, too |
//! | nothing but something in progress | ends: the get registers again, as the last |
//! | (the get is dropped, woken or not) | passes to the next waiter |
//!
//! So no waiter is forgotten. A get registers for any event only while a load, a write or a release
//! is in progress. While there are registered waiters, there is something in progress, whose end
//! gives one of them the turn, or one of them has it. A turn that ends without a result was taken
//! under the structure lock while something else was in progress.

use super::Cache;
use crate::sync::wait_list::{WaitList, WaitTable, Waiter, WakeList};

/// Guarded by the structure lock. What the methods return is woken without it.
#[derive(Default)]
pub(super) struct Waiters {
    /// For the end of a slot's load or write.
    pub(super) slots: WaitTable<u32>,
    /// For the end of any slot's load, write or release.
    pub(super) any: WaitList,
}

impl Waiters {
    /// A load or a write of `slot` has ended: takes its waiters off their list, and the next one of
    /// those that wait for any slot.
    #[inline]
    pub(super) fn notify(&mut self, slot: u32) -> WakeList {
        // The usual case, kept cheap.
        if self.slots.is_empty() && self.any.is_empty() {
            return WakeList::default();
        }
        self.take(slot)
    }

    #[cold]
    #[inline(never)]
    fn take(&mut self, slot: u32) -> WakeList {
        let mut wake_list = self.slots.notify_all(&slot);
        wake_list.append(self.any.notify_one());
        wake_list
    }

    /// Takes all waiters off their lists.
    pub(super) fn notify_all(&mut self) -> WakeList {
        let mut wake_list = self.slots.notify_all_events();
        wake_list.append(self.any.notify_all());
        wake_list
    }
}

/// The place of a get that waits for any slot, and then its turn. Dropping it passes the turn on;
/// the structure lock must not be held.
pub(super) struct Turn<'a> {
    cache: &'a Cache,
    waiter: Option<Waiter>,
}

impl<'a> Turn<'a> {
    /// Registers for the end of any slot's load, write or release, of which one is in progress.
    /// Structure lock held; it must be released before the result is dropped.
    pub(super) fn register(cache: &'a Cache, waiters: &mut Waiters) -> Self {
        let waiter = Some(waiters.any.register());
        Self { cache, waiter }
    }

    /// Waits for the turn.
    pub(super) async fn wait(&mut self) {
        if let Some(waiter) = &mut self.waiter {
            waiter.await;
        }
    }

    /// Ends the turn without a successor.
    pub(super) fn end(mut self) {
        self.waiter = None;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else {
            return;
        };
        // The place is given up first: from here on, this get cannot be given the turn.
        drop(waiter);
        let wake_list = self.cache.lock_inner().waiters.any.notify_one();
        wake_list.wake();
    }
}
