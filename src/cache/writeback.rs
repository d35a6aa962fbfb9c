// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing dirty tables: in offset order, neighbours joined, what they depend on first.
//!
//! For each batch of neighbours: dependencies satisfied → tables claimed (`DIRTY` → `WRITING`) under the structure lock, with the
//! look at the dependencies repeated there → storage's check, once a table → one write → claims ended. A table that is
//! dirtied during its write stays dirty; one whose check or write failed is dirty again.

use super::{Cache, Counters, Wait, group};
use crate::error::Errno;
use crate::storage::IoBuf;
use crate::sync::wait_list::{Waiter, WakeList};

/// A table to write: offset and the slot that held it when it was listed.
pub(super) type TableRef = (u64, u32);

/// The most bytes one write joins: what a `preadv`/`pwritev` can return in an `int`.
const MAX_WRITE: usize = 1 << 30;

impl Cache {
    /// Writes every dirty table; storage is not flushed. State lock held by the caller.
    ///
    /// Every table is tried; of several errors the first is returned, but `ENOSPC` is kept over all others. What was not written
    /// is still dirty.
    pub async fn write(&self) -> Result<(), Errno> {
        self.check_poison()?;
        let listed = self.list_dirty();
        self.write_back(listed).await
    }

    /// [`Cache::write`], then flushes storage.
    pub async fn flush(&self) -> Result<(), Errno> {
        self.write().await?;
        self.flush_storage()
    }

    /// Flushes, then drops every table. `EBUSY`: one is in use; nothing was dropped, everything was written.
    pub async fn empty(&self) -> Result<(), Errno> {
        self.flush().await?;
        self.drop_all_clean()
    }

    /// Dirty tables, and those whose write somebody else has begun: it may fail.
    fn list_dirty(&self) -> Vec<TableRef> {
        let inner = self.lock_inner();
        let mut listed: Vec<TableRef> = inner
            .writing
            .iter()
            .map(|s| (self.offset_of(*s), *s))
            .collect();
        self.dirty.for_each(&self.groups, |slot| {
            let word = self.slots[slot as usize].word();
            if word.is_readable() && word.is_dirty() && !word.is_writing() {
                listed.push((self.offset_of(slot), slot));
            } else if !word.is_dirty() {
                let is_dirty = || self.slots[slot as usize].is_dirty_seq_cst();
                self.dirty.clear_stale(&self.groups, slot, is_dirty);
            }
        });
        drop(inner);
        listed
    }

    /// Writes the listed tables, as far as they are still there and dirty, and waits for those that others are writing.
    pub(super) async fn write_back(&self, mut listed: Vec<TableRef>) -> Result<(), Errno> {
        let mut result = Ok(());
        while !listed.is_empty() {
            listed.sort_unstable();
            let mut written_by_others = Vec::new();
            let mut rest = &listed[..];
            while !rest.is_empty() {
                let ready = self.satisfy_dependencies().await;
                if let Err(error) = ready.and_then(|()| self.check_poison()) {
                    merge_error(&mut result, Err(error));
                    return result;
                }
                let batch = self.claim_batch(&mut rest, &mut written_by_others);
                merge_error(&mut result, self.write_batch(batch));
            }
            listed.clear();
            for table in written_by_others {
                if let Some(waiter) = self.waiter_while_writing(table) {
                    waiter.await;
                    listed.push(table);
                }
            }
        }
        result
    }

    /// Claims the next run of neighbours. Tables that somebody else writes go to `written_by_others`, those that need no write
    /// are passed over. Takes nothing if a dependency was set since it was looked at.
    fn claim_batch(
        &self,
        rest: &mut &[TableRef],
        written_by_others: &mut Vec<TableRef>,
    ) -> Batch<'_> {
        let before = (*rest, written_by_others.len());
        let mut batch = Batch {
            cache: self,
            tables: Vec::new(),
        };
        let limit = self
            .storage
            .max_iov()
            .clamp(1, (MAX_WRITE >> self.table_shift).max(1));
        let mut inner = self.lock_inner();
        if !self.dependencies_satisfied() {
            return batch;
        }
        while let [(offset, slot), after @ ..] = *rest {
            let neighbour = batch
                .tables
                .last()
                .is_none_or(|(last, _)| last + self.table_size() as u64 == *offset);
            if !neighbour || batch.tables.len() == limit {
                break;
            }
            *rest = after;
            let word = self.slots[*slot as usize].word();
            if self.offset_of(*slot) != *offset || !word.is_readable() {
                continue;
            }
            if word.is_writing() {
                written_by_others.push((*offset, *slot));
                continue;
            }
            let table = &self.slots[*slot as usize];
            let begin_write = || table.begin_write();
            let is_dirty = || table.is_dirty_seq_cst();
            if self
                .dirty
                .claim_for_write(&self.groups, *slot, begin_write, is_dirty)
            {
                inner.writing.push(*slot);
                batch.tables.push((*offset, *slot));
            }
        }
        drop(inner);
        // Claimed first, then looked again: a table that was dirtied after a new dependency was set is not written before it.
        if !self.dependencies_satisfied() {
            *rest = before.0;
            written_by_others.truncate(before.1);
            let claimed = std::mem::take(&mut batch.tables);
            batch.end(&claimed, true);
        }
        batch
    }

    /// Asks storage about each table of a batch and writes the runs of those that it allows. No lock held.
    fn write_batch(&self, mut batch: Batch<'_>) -> Result<(), Errno> {
        let mut result = Ok(());
        let size = self.table_size() as u64;
        let mut run = Vec::with_capacity(batch.tables.len());
        for table in batch.tables.clone() {
            match self.storage.pre_write_check(self.kind, table.0, size) {
                Ok(()) => run.push(table),
                Err(error) => {
                    merge_error(&mut result, Err(error));
                    merge_error(&mut result, self.write_run(&mut batch, &run));
                    run.clear();
                    batch.end(&[table], true);
                }
            }
        }
        merge_error(&mut result, self.write_run(&mut batch, &run));
        result
    }

    fn write_run(&self, batch: &mut Batch<'_>, run: &[TableRef]) -> Result<(), Errno> {
        let Some((offset, _)) = run.first() else {
            return Ok(());
        };
        let bufs: Vec<IoBuf> = run
            .iter()
            // SAFETY: the slots' own memory; they are in state writing, so that they hold these tables until `end`.
            .map(|(_, slot)| unsafe {
                IoBuf::new(self.tables.table(*slot).as_ptr(), self.table_size())
            })
            .collect();
        // The check may have yielded; a cache that was poisoned meanwhile never writes again.
        let written = self
            .check_poison()
            .and_then(|()| self.storage.pwritev(*offset, &bufs));
        batch.end(run, written.is_err());
        if written.is_ok() {
            Counters::add(&self.counters.writes, 1);
            Counters::add(&self.counters.write_backs, run.len());
        }
        written
    }

    fn waiter_while_writing(&self, (offset, slot): TableRef) -> Option<Waiter> {
        let mut inner = self.lock_inner();
        let word = self.slots[slot as usize].word();
        let same = self.offset_of(slot) == offset && word.is_readable();
        (same && (word.is_writing() || word.is_dirty())).then(|| {
            if word.is_writing() {
                Self::register_waiter(&mut inner, Wait::Slot(slot))
            } else {
                // Its write failed, or it was dirtied again: ours to write, at once.
                Waiter::ready()
            }
        })
    }
}

/// Of several errors the first counts, but running out of space is what the caller must hear of (QEMU keeps it, too).
fn merge_error(result: &mut Result<(), Errno>, next: Result<(), Errno>) {
    match (&result, next) {
        (Ok(()), next) => *result = next,
        (Err(_), Err(Errno::NOSPC)) => *result = Err(Errno::NOSPC),
        (Err(_), _) => {}
    }
}

/// Tables claimed for writing; whatever is left in it when it is dropped (a panic in a Rust storage) is dirty again.
struct Batch<'a> {
    cache: &'a Cache,
    tables: Vec<TableRef>,
}

impl Batch<'_> {
    fn end(&mut self, tables: &[TableRef], failed: bool) {
        let cache = self.cache;
        // Both are in offset order.
        self.tables
            .retain(|table| tables.binary_search(table).is_err());
        let wakes = {
            let mut inner = cache.lock_inner();
            let mut wakes = WakeList::default();
            for (_, slot) in tables {
                let number = *slot as usize;
                let word = cache.slots[number].end_write(failed);
                if word.is_dirty() {
                    cache.dirty.insert(&cache.groups, *slot);
                }
                cache.free_discarded_locked(&mut inner, *slot);
                wakes.append(Cache::notify_waiters(&mut inner, *slot));
            }
            inner
                .writing
                .retain(|slot| cache.slots[*slot as usize].word().is_writing());
            wakes
        };
        wakes.wake();
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let left = std::mem::take(&mut self.tables);
        if !left.is_empty() {
            self.end(&left, true);
        }
    }
}

impl Cache {
    /// Drops every table; all or none. `EBUSY`: one is pinned, loading, being written, or dirty again.
    fn drop_all_clean(&self) -> Result<(), Errno> {
        let mut inner = self.lock_inner();
        let taken = || {
            (0..self.groups.len()).flat_map(|number| {
                let taken = self.groups[number]
                    .taken
                    .load(crate::primitives::Ordering::Relaxed);
                group::slots(number, taken)
            })
        };
        let droppable = |slot: u32| {
            let word = self.slots[slot as usize].word();
            word.is_droppable() || word.is_releasing()
        };
        if !taken().all(droppable) {
            return Err(Errno::BUSY);
        }
        let mut result = Ok(());
        for slot in taken() {
            if !self.slots[slot as usize].word().is_releasing() && !self.drop_slot(&mut inner, slot)
            {
                // Pinned without the lock since the look above.
                result = Err(Errno::BUSY);
            }
        }
        result
    }
}
