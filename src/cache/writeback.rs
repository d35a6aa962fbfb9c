// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writing dirty tables: in offset order, with neighbours joined into one request, and after what
//! they depend on.
//!
//! Steps for each batch of neighbours:
//!
//! 1. Satisfy the dependencies.
//! 2. Under the structure lock, check that no new dependency was set, and claim the tables
//!    (`DIRTY` → `WRITING`). Then check once more; if one was set, give the claims up.
//! 3. Ask storage's `pre_write_check` about each table.
//! 4. Write each run of tables that the check allows, with one request.
//! 5. End the claims, and record what was written: see `unflushed`.
//!
//! A table that is dirtied during its write stays dirty. If a table's check or write fails, the
//! table is dirty again.

use super::{Cache, Counters, group};
use crate::error::Errno;
use crate::primitives::Ordering;
use crate::storage::IoBuf;
use crate::sync::wait_list::{Waiter, WakeList};

/// A table to write: its offset, and the slot that held it when it was listed.
pub(super) type TableRef = (u64, u32);

/// The most bytes that one write joins: a count that C's `preadv`/`pwritev` can return in an `int`.
const MAX_WRITE: usize = 1 << 30;

impl Cache {
    /// Writes every dirty table; does not flush storage. State lock held by the caller.
    ///
    /// If storage's check or write of a table fails, the other tables are still tried. If a
    /// dependency cannot be satisfied, nothing more is written. Of several errors, returns `ENOSPC`
    /// if it is among them, else the first. Tables that were not written are still dirty.
    pub async fn write(&self) -> Result<(), Errno> {
        self.check_poison()?;
        let listed = self.list_dirty();
        self.write_back(listed).await
    }

    /// [`Cache::write`], then flushes storage. If the flush fails, the tables that it may have lost
    /// are dirty again. If one of them has left the cache, this call returns the same error from
    /// then on, until everything is given up: see [`Cache::discard_range`].
    pub async fn flush(&self) -> Result<(), Errno> {
        let failures = self.device.failures();
        self.write().await?;
        self.flush_storage().await?;
        // A flush that another cache asked for may have failed in between.
        self.device.check_since(failures)
    }

    /// [`Cache::write`], then flushes storage if something that was written may not be stable, or
    /// if the next write would have to wait for a flush. Errors: see [`Cache::flush`]; but it is no
    /// error if the cache is poisoned and has nothing dirty.
    pub async fn flush_if_owed(&self) -> Result<(), Errno> {
        let failures = self.device.failures();
        if self.check_poison().is_ok() || self.has_dirty() {
            self.write().await?;
        }
        if self.owes_flush() {
            self.flush_device().await?;
        }
        self.device.check_since(failures)
    }

    /// Flushes, then drops every table. `EBUSY`: everything was flushed, but a table is in use, and
    /// nothing was dropped.
    pub async fn empty(&self) -> Result<(), Errno> {
        self.flush().await?;
        self.drop_all_clean()
    }

    /// Lists the dirty tables, and those that somebody else is writing: that write may fail, and
    /// then the table is dirty again.
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

    /// Writes the listed tables that are still in their slots and dirty, and waits for those that
    /// others are writing.
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

    /// Claims the next run of neighbours and takes it off `rest`. Tables that somebody else is
    /// writing go to `written_by_others`; tables that need no write are skipped. Claims nothing if
    /// a dependency was set since the caller satisfied them.
    fn claim_batch(
        &self,
        rest: &mut &[TableRef],
        written_by_others: &mut Vec<TableRef>,
    ) -> Batch<'_> {
        let before = (*rest, written_by_others.len());
        let mut batch = Batch {
            cache: self,
            failures: self.device.failures(),
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
        // The check comes again after the claims: if a dependency was set and then a table was
        // dirtied, and this batch claimed that change, the table must not be written before the
        // dependency.
        if !self.dependencies_satisfied() {
            *rest = before.0;
            written_by_others.truncate(before.1);
            let claimed = batch.tables.clone();
            let _ = batch.end(&claimed, true);
        }
        batch
    }

    /// Asks storage's `pre_write_check` about each table of a batch, and writes the runs of tables
    /// that it allows. No lock may be held.
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
                    merge_error(&mut result, batch.end(&[table], true));
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
            // SAFETY: the memory of slots of this cache. They are marked as being written, so they
            // hold these tables until `end`.
            .map(|(_, slot)| unsafe {
                IoBuf::new(self.tables.table(*slot).as_ptr(), self.table_size())
            })
            .collect();
        // `pre_write_check` may have yielded; a cache that was poisoned meanwhile never writes
        // again.
        let written = self
            .check_poison()
            .and_then(|()| self.storage.pwritev(self.kind, *offset, &bufs));
        if written.is_ok() {
            Counters::add(&self.counters.writes, 1);
            Counters::add(&self.counters.write_backs, run.len());
        }
        let ended = batch.end(run, written.is_err());
        written.and(ended)
    }

    /// If the listed table still has to be written, a waiter for the moment to try again; `None`:
    /// it is clean or gone.
    fn waiter_while_writing(&self, (offset, slot): TableRef) -> Option<Waiter> {
        let mut inner = self.lock_inner();
        let word = self.slots[slot as usize].word();
        let same = self.offset_of(slot) == offset && word.is_readable();
        (same && (word.is_writing() || word.is_dirty())).then(|| {
            if word.is_writing() {
                inner.waiters.slots.register(slot)
            } else {
                // The other's write failed, or the table was dirtied again. The caller writes it,
                // without waiting.
                Waiter::ready()
            }
        })
    }
}

/// Adds an error to a result. The first error is kept, but `ENOSPC` replaces any other: the caller
/// must learn that storage is full. QEMU keeps `ENOSPC`, too.
fn merge_error(result: &mut Result<(), Errno>, next: Result<(), Errno>) {
    match (&result, next) {
        (Ok(()), next) => *result = next,
        (Err(_), Err(Errno::NOSPC)) => *result = Err(Errno::NOSPC),
        (Err(_), _) => {}
    }
}

/// Tables claimed for writing. Tables that are still in it when it is dropped (after a panic in a
/// Rust storage) become dirty again.
struct Batch<'a> {
    cache: &'a Cache,
    /// [`Device::failures`](super::device::Device::failures) from before the write.
    failures: u64,
    tables: Vec<TableRef>,
}

impl Batch<'_> {
    /// Ends the claims of `tables` and wakes the waiters. A failed write leaves the tables dirty.
    /// So does a write during which a flush failed, which may have lost a part of it: returns the
    /// flush's error then.
    fn end(&mut self, tables: &[TableRef], failed: bool) -> Result<(), Errno> {
        let cache = self.cache;
        // `tables` is in offset order, as binary search needs.
        self.tables
            .retain(|table| tables.binary_search(table).is_err());
        let (result, wake_list) = {
            let mut inner = cache.lock_inner();
            // Under the lock: a flush that fails later finds the tables in the record.
            let result = if failed {
                Ok(())
            } else {
                cache.device.check_since(self.failures)
            };
            let stays_dirty = failed || result.is_err();
            let mut wake_list = WakeList::default();
            for (offset, slot) in tables {
                let number = *slot as usize;
                let word = cache.slots[number].end_write(stays_dirty);
                if word.is_dirty() {
                    cache.dirty.insert(&cache.groups, *slot);
                }
                if !stays_dirty && !word.is_discarded() {
                    let place = cache.place_of(*slot, word);
                    cache.record_write(&mut inner, *offset, place);
                }
                cache.free_discarded_locked(&mut inner, *slot);
                wake_list.append(inner.waiters.notify(*slot));
            }
            inner
                .writing
                .retain(|slot| cache.slots[*slot as usize].word().is_writing());
            (result, wake_list)
        };
        wake_list.wake();
        result
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let left = std::mem::take(&mut self.tables);
        if !left.is_empty() {
            let _ = self.end(&left, true);
        }
    }
}

impl Cache {
    /// Drops every table. `EBUSY`: a table is pinned, being loaded, being written, or was dirtied
    /// again; nothing was dropped then.
    fn drop_all_clean(&self) -> Result<(), Errno> {
        let mut inner = self.lock_inner();
        let taken = || {
            self.touched_groups().flat_map(|number| {
                let taken = self.groups[number].taken.load(Ordering::Relaxed);
                group::slots(number, taken)
            })
        };
        let is_releasing = |slot: &u32| self.slots[*slot as usize].word().is_releasing();
        // First all of them are claimed. A caller without a lock may pin a table until then.
        let tables: Vec<u32> = taken().filter(|slot| !is_releasing(slot)).collect();
        let claim = |slot: &&u32| self.slots[**slot as usize].claim_droppable();
        let claimed = tables.iter().take_while(claim).count();
        if claimed < tables.len() {
            let give_back = |slot: &u32| self.slots[*slot as usize].return_droppable();
            tables[..claimed].iter().for_each(give_back);
            return Err(Errno::BUSY);
        }
        for slot in tables {
            self.remove_from_index(&mut inner, slot);
            let hits = self.slots[slot as usize].word().hits();
            Counters::add(&self.counters.hits, hits as usize);
            self.slots[slot as usize].abandon_load();
            self.mark_free(&mut inner, slot);
        }
        Ok(())
    }
}
