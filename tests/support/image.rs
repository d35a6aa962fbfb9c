// SPDX-License-Identifier: MIT OR Apache-2.0
//! States to test, each of a small image whose L2 tables lie in front of its refcount blocks.

use std::sync::Arc;

use qcow2cache::cache::Cache;
use qcow2cache::error::Errno;
use qcow2cache::host::{Context, Host};
use qcow2cache::options::{Geometry, Options};
use qcow2cache::state::{Config, State, Update};

use super::hosts::Fixture;
use super::{TestStorage, edit, set_dependency};

pub const L2: i32 = 10;
pub const REFCOUNT: i32 = 20;
/// Bytes of an L2 table and of a refcount block.
pub const TABLE: u64 = 4096;
/// The offset of the first refcount block. L2 tables lie below it.
pub const BLOCKS: u64 = 1 << 18;

pub fn geometry() -> Geometry {
    Geometry {
        virtual_size: 64 << 20,
        cluster_size: 4096,
        l2_entry_size: 8,
    }
}

pub fn options(l2_tables: u64, blocks: u64) -> Options {
    Options {
        l2_cache_size: Some(l2_tables * TABLE),
        refcount_cache_size: Some(blocks * TABLE),
        ..Options::default()
    }
}

pub fn config(
    host: Arc<dyn Host>,
    storage: &Arc<TestStorage>,
    context: Context,
    clean_interval_ns: u64,
) -> Config {
    Config {
        host,
        l2_storage: storage.clone(),
        refcount_storage: storage.clone(),
        l2_kind: L2,
        refcount_kind: REFCOUNT,
        geometry: geometry(),
        options: options(4, 5),
        clean_interval_ns,
        context,
    }
}

pub fn open(fixture: &dyn Fixture, clean_interval_ns: u64) -> (Arc<TestStorage>, State) {
    let storage = Arc::new(TestStorage::new(1 << 19));
    let config = config(
        fixture.host(),
        &storage,
        fixture.context(0),
        clean_interval_ns,
    );
    (storage, State::open(config).unwrap())
}

/// Changes one table in each cache. The L2 cache depends on the refcount cache.
pub fn dirty_both(state: &State, value: u64) {
    let (l2, refcount) = (state.l2_cache(), state.refcount_cache());
    edit(&refcount, BLOCKS, value).unwrap();
    set_dependency(&l2, &refcount).unwrap();
    edit(&l2, TABLE, value).unwrap();
}

/// The number of tables and the table size, in bytes.
pub fn shape(cache: &Cache) -> (usize, usize) {
    (cache.stats().tables, cache.stats().table_size)
}

/// Prepares an update while the state lock is held, by this call or already by the caller.
pub fn prepared(state: &State, options: &Options, clean_interval_ns: u64) -> Update {
    let lock = state.cleaner().lock();
    let update = state.prepare(options, None, clean_interval_ns).unwrap();
    if lock.is_ok() {
        state.cleaner().unlock().unwrap();
    }
    update
}

/// Commits an update, with or without the state lock held.
pub fn commit(state: &State, update: Update, locked: bool) -> Result<(), (Errno, Update)> {
    if locked {
        state.cleaner().lock().unwrap();
    }
    let result = state.commit(update, locked);
    if locked {
        state.cleaner().unlock().expect("the lock is still held");
    }
    result
}

/// Commits an update; a failure fails the test.
pub fn commit_ok(state: &State, update: Update, locked: bool) {
    commit(state, update, locked)
        .map_err(|(errno, _)| errno)
        .unwrap();
}
