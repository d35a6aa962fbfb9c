// SPDX-License-Identifier: MIT OR Apache-2.0
//! A small driver over storage that loses what a failed flush did not make stable, and says 0 to
//! the next flush. Whatever happens, its image stays consistent on disk, and a flush that succeeds
//! has kept its promise.
//!
//! The driver has L2 tables, whose words are clusters, and refcount blocks, whose words are 0 or 1.
//! The storage knows, for each table, every content that a crash could leave on disk. At each
//! moment and for all of these contents:
//!
//! * a cluster that an L2 table names has refcount 1;
//! * no two L2 entries name the same cluster.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use qcow2cache::cache::{Cache, CacheOptions, Pinned};
use qcow2cache::error::Errno;
use qcow2cache::host::block_on;
use qcow2cache::host::threads::ThreadHost;
use qcow2cache::storage::{IoBuf, Storage};
use support::{empty, flush, get, get_unlocked, lock, set_dependency, write};

const TABLE: u64 = 512;
const WORDS: u64 = TABLE / 8;
/// The L2 tables are at 1 to 6 times [`TABLE`], the refcount blocks behind them.
const L2_TABLES: u64 = 6;
const BLOCKS: u64 = 2;
const CLUSTERS: u64 = BLOCKS * WORDS;

type Content = Vec<u64>;

/// One table on storage.
#[derive(Clone)]
struct OnDisk {
    stable: Content,
    /// Written since the last good flush, oldest first.
    written: Vec<Content>,
    /// What a read returns.
    seen: Content,
}

struct Image {
    tables: BTreeMap<u64, OnDisk>,
    flushes: usize,
    writes: usize,
    /// The flushes and the writes that fail, by number, and which fate a failed flush has in store.
    failing_flushes: BTreeMap<usize, u64>,
    failing_writes: BTreeSet<usize>,
    /// The next flush fails.
    lost_in_background: bool,
    /// The first violation.
    broken: Option<String>,
}

struct LossyStorage {
    image: Mutex<Image>,
}

fn is_l2(offset: u64) -> bool {
    offset <= L2_TABLES * TABLE
}

fn block_offset(cluster: u64) -> u64 {
    (1 + L2_TABLES + cluster / WORDS) * TABLE
}

impl Image {
    /// Every content of the table that a crash could leave.
    fn possible(&self, offset: u64) -> impl Iterator<Item = &Content> {
        let table = &self.tables[&offset];
        table.written.iter().chain([&table.stable])
    }

    fn check(&mut self, after: &str) {
        let mut owners = BTreeMap::new();
        let mut found = None;
        for table in 1..=L2_TABLES {
            for content in self.possible(table * TABLE) {
                for (entry, &cluster) in content.iter().enumerate().filter(|(_, c)| **c != 0) {
                    let word = (cluster % WORDS) as usize;
                    let mut blocks = self.possible(block_offset(cluster));
                    if blocks.any(|block| block[word] == 0) {
                        found = Some(format!("cluster {cluster} is in use and may be free"));
                    }
                    if *owners.entry(cluster).or_insert((table, entry)) != (table, entry) {
                        found = Some(format!("cluster {cluster} may have two owners"));
                    }
                }
            }
        }
        if let Some(found) = found {
            self.broken
                .get_or_insert_with(|| format!("{found} after {after}"));
        }
    }

    /// A flush that fails: each table's last write reaches the disk, or is lost. A read of a lost
    /// one still returns it, as long as the kernel keeps the page, or returns what is on disk.
    fn lose(&mut self, mut fate: u64) {
        for table in self.tables.values_mut() {
            let Some(last) = table.written.pop() else {
                continue;
            };
            table.written.clear();
            fate = fate
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            match fate >> 62 {
                0 => table.stable = last,
                1 => table.seen = table.stable.clone(),
                _ => {}
            }
        }
    }
}

impl Storage for LossyStorage {
    fn preadv(&self, _: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        let image = lock(&self.image);
        for (buf, n) in bufs.iter().zip(0..) {
            let seen = &image.tables[&(offset + n * TABLE)].seen;
            buf.fill_from(
                &seen
                    .iter()
                    .flat_map(|w| w.to_ne_bytes())
                    .collect::<Vec<_>>(),
            );
        }
        Ok(())
    }

    fn pwritev(&self, _: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno> {
        let mut image = lock(&self.image);
        image.writes += 1;
        if image.failing_writes.contains(&image.writes) {
            return Err(Errno::NOSPC);
        }
        for (buf, n) in bufs.iter().zip(0..) {
            let bytes = buf.to_vec();
            let words = bytes
                .chunks(8)
                .map(|w| u64::from_ne_bytes(w.try_into().unwrap()));
            let content: Content = words.collect();
            let table = image.tables.get_mut(&(offset + n * TABLE)).unwrap();
            table.seen = content.clone();
            table.written.push(content);
        }
        image.check(&format!(
            "the write of {} tables at {offset:#x}",
            bufs.len()
        ));
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        let mut image = lock(&self.image);
        image.flushes += 1;
        let number = image.flushes;
        let fate = image.failing_flushes.get(&number).copied();
        if fate.is_some() || std::mem::take(&mut image.lost_in_background) {
            image.lose(fate.unwrap_or_default());
            image.check("a failed flush");
            return Err(Errno::IO);
        }
        for table in image.tables.values_mut() {
            if let Some(last) = table.written.pop() {
                table.stable = last;
                table.written.clear();
            }
        }
        Ok(())
    }

    fn max_iov(&self) -> usize {
        3
    }
}

/// What the driver does. Numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Op {
    /// Puts a free cluster into an L2 entry.
    Allocate(u64, u64, u64),
    /// Clears an L2 entry and frees its cluster.
    Free(u64, u64),
    Touch(usize, u64),
    TouchUnlocked(usize, u64),
    Write(usize),
    Flush(usize),
    /// Of both caches, as when an image is closed.
    FlushIfOwed,
    Empty(usize),
    DependsOnFlush(usize),
    Clean(usize),
    /// Destroys a cache, if it can be, and makes another in its place.
    Replace(usize),
    /// Gives both caches up, and opens the image anew.
    Reopen,
    /// The kernel writes pages by itself, and fails. It says so at the next flush.
    LoseInBackground(u64),
}

struct Driver {
    storage: Arc<LossyStorage>,
    /// L2 tables, refcount blocks.
    caches: [Arc<Cache>; 2],
    /// What the driver put into each table.
    expected: BTreeMap<u64, Content>,
}

const L2: usize = 0;
const REFCOUNTS: usize = 1;

fn new_cache(storage: &Arc<LossyStorage>, kind: usize) -> Arc<Cache> {
    let options = CacheOptions {
        tables: 3 - kind,
        table_size: TABLE as usize,
        kind: kind as i32,
        reserved: 1 - kind,
    };
    Cache::new(&options, storage.clone(), ThreadHost::shared()).unwrap()
}

impl Driver {
    fn new(failing_flushes: BTreeMap<usize, u64>, failing_writes: BTreeSet<usize>) -> Self {
        let empty = OnDisk {
            stable: vec![0; WORDS as usize],
            written: Vec::new(),
            seen: vec![0; WORDS as usize],
        };
        let offsets = (1..=L2_TABLES + BLOCKS).map(|n| n * TABLE);
        let storage = Arc::new(LossyStorage {
            image: Mutex::new(Image {
                tables: offsets.clone().map(|at| (at, empty.clone())).collect(),
                flushes: 0,
                writes: 0,
                failing_flushes,
                failing_writes,
                lost_in_background: false,
                broken: None,
            }),
        });
        Self {
            caches: [new_cache(&storage, L2), new_cache(&storage, REFCOUNTS)],
            expected: offsets.map(|at| (at, empty.stable.clone())).collect(),
            storage,
        }
    }

    fn store(&mut self, offset: u64, pinned: &Pinned<'_>, word: u64, value: u64) {
        pinned.store(word as usize * 8, value).unwrap();
        pinned.mark_dirty().unwrap();
        self.expected.get_mut(&offset).unwrap()[word as usize] = value;
    }

    fn set_refcount(&mut self, cluster: u64, refcount: u64) -> Result<(), Errno> {
        let refcounts = self.caches[REFCOUNTS].clone();
        let offset = block_offset(cluster);
        let block = get(&refcounts, offset)?;
        self.store(offset, &block, cluster % WORDS, refcount);
        Ok(())
    }

    fn allocate(&mut self, table: u64, entry: u64, cluster: u64) -> Result<(), Errno> {
        let (offset, entry) = ((1 + table % L2_TABLES) * TABLE, entry % WORDS);
        let is_free =
            |c: &u64| self.expected[&block_offset(*c)][(*c % WORDS) as usize] == 0 && *c != 0;
        let mut clusters = (0..CLUSTERS).map(|n| (cluster + n) % CLUSTERS);
        let Some(cluster) = clusters.find(is_free) else {
            return Ok(());
        };
        if self.expected[&offset][entry as usize] != 0 {
            return Ok(());
        }
        self.set_refcount(cluster, 1)?;
        set_dependency(&self.caches[L2], &self.caches[REFCOUNTS])?;
        let l2 = self.caches[L2].clone();
        let pinned = get(&l2, offset)?;
        self.store(offset, &pinned, entry, cluster);
        Ok(())
    }

    fn free(&mut self, table: u64, entry: u64) -> Result<(), Errno> {
        let offset = (1 + table % L2_TABLES) * TABLE;
        let entries = &self.expected[&offset];
        let Some(entry) = (0..WORDS)
            .map(|n| (entry + n) % WORDS)
            .find(|entry| entries[*entry as usize] != 0)
        else {
            return Ok(());
        };
        let cluster = entries[entry as usize];
        let l2 = self.caches[L2].clone();
        let pinned = get(&l2, offset)?;
        self.store(offset, &pinned, entry, 0);
        drop(pinned);
        set_dependency(&self.caches[REFCOUNTS], &self.caches[L2])?;
        self.set_refcount(cluster, 0)
    }

    /// A table of a cache.
    fn offset(kind: usize, table: u64) -> u64 {
        if kind == L2 {
            (1 + table % L2_TABLES) * TABLE
        } else {
            (1 + L2_TABLES + table % BLOCKS) * TABLE
        }
    }

    fn run(&mut self, op: &Op) -> Result<(), Errno> {
        match *op {
            Op::Allocate(table, entry, cluster) => self.allocate(table, entry, cluster),
            Op::Free(table, entry) => self.free(table, entry),
            Op::Touch(kind, table) => {
                let offset = Self::offset(kind, table);
                let pinned = get(&self.caches[kind], offset)?;
                self.compare(offset, &pinned);
                Ok(())
            }
            Op::TouchUnlocked(kind, table) => {
                let offset = Self::offset(kind, table);
                let pinned = get_unlocked(&self.caches[kind], offset)?;
                self.compare(offset, &pinned);
                Ok(())
            }
            Op::Write(kind) => write(&self.caches[kind]),
            Op::Flush(kind) => {
                flush(&self.caches[kind])?;
                self.check_promise(kind);
                Ok(())
            }
            Op::FlushIfOwed => {
                for cache in &self.caches {
                    block_on(cache.host(), &[], cache.flush_if_owed())?;
                }
                self.check_promise(L2);
                self.check_promise(REFCOUNTS);
                Ok(())
            }
            Op::Empty(kind) => {
                empty(&self.caches[kind])?;
                self.check_promise(kind);
                Ok(())
            }
            Op::DependsOnFlush(kind) => self.caches[kind].depends_on_flush(),
            Op::Clean(kind) => {
                self.caches[kind].clean_unused();
                Ok(())
            }
            Op::Replace(kind) => {
                self.caches[kind].check_destroy()?;
                if self.caches[kind].flush_error().is_some() {
                    // As when an image is opened anew: what was lost is not this cache's any more.
                    self.reopen();
                }
                let (flushes, writes) = self.calls();
                self.caches[kind].retire();
                assert_eq!(self.calls(), (flushes, writes));
                self.caches[kind] = new_cache(&self.storage, kind);
                Ok(())
            }
            Op::Reopen => {
                self.reopen();
                Ok(())
            }
            Op::LoseInBackground(fate) => {
                let mut image = lock(&self.storage.image);
                image.lose(fate);
                image.lost_in_background = true;
                Ok(())
            }
        }
    }

    fn calls(&self) -> (usize, usize) {
        let image = lock(&self.storage.image);
        (image.flushes, image.writes)
    }

    /// What is read is what the driver put there, unless the kernel has forgotten it. Then no flush
    /// succeeds any more.
    fn compare(&self, offset: u64, pinned: &Pinned<'_>) {
        let words: Content = (0..WORDS as usize).map(|n| pinned.load(n * 8)).collect();
        if words == self.expected[&offset] {
            return;
        }
        let mut caches = self.caches.iter();
        let unstable = caches.any(|cache| cache.flush_error().is_some());
        let image = lock(&self.storage.image);
        let told = !image.lost_in_background;
        assert!(unstable || !told, "{offset:#x} was lost silently");
    }

    /// A flush succeeded: everything that the driver put into the cache's tables is stable.
    fn check_promise(&self, kind: usize) {
        let image = lock(&self.storage.image);
        for (offset, expected) in &self.expected {
            if is_l2(*offset) == (kind == L2) {
                let stable = &image.tables[offset].stable;
                assert_eq!(stable, expected, "table {offset:#x} after a good flush");
            }
        }
    }

    /// Gives everything up and drops the page cache. What is on disk then is the image.
    fn reopen(&mut self) {
        for cache in &self.caches {
            cache.discard_range(0, u64::MAX).unwrap();
            assert_eq!(cache.flush_error(), None);
        }
        let image = &mut *lock(&self.storage.image);
        for (offset, table) in &mut image.tables {
            // Nobody flushes for what was given up. The kernel writes it some time.
            if let Some(last) = table.written.pop() {
                table.stable = last;
                table.written.clear();
            }
            table.seen.clone_from(&table.stable);
            self.expected.insert(*offset, table.stable.clone());
        }
    }
}

/// Runs `ops`. Returns how often storage was flushed and written, and how often a cache was
/// unstable.
fn run(
    ops: &[Op],
    failing_flushes: BTreeMap<usize, u64>,
    failing_writes: BTreeSet<usize>,
) -> (usize, usize, usize) {
    let mut driver = Driver::new(failing_flushes, failing_writes);
    let mut unstable = 0;
    for op in ops {
        let result = driver.run(op);
        if let Some(broken) = &lock(&driver.storage.image).broken {
            panic!("{broken}, in {op:?}");
        }
        let is_unstable = driver.caches.iter().any(|c| c.flush_error().is_some());
        if is_unstable {
            unstable += 1;
            // Flushes fail until everything is given up.
            for cache in &driver.caches {
                if cache.flush_error().is_some() {
                    assert!(flush(cache).is_err());
                }
            }
            if unstable % 3 == 0 {
                driver.reopen();
            }
        }
        if let Err(error) = result {
            let possible = [Errno::IO, Errno::NOSPC, Errno::AGAIN, Errno::NOTEMPTY];
            assert!(possible.contains(&error), "{op:?}: {error}");
        }
    }
    // The faults end. Both caches can be flushed, or are given up.
    {
        let mut image = lock(&driver.storage.image);
        image.failing_flushes.clear();
        image.failing_writes.clear();
    }
    let (flushes, writes) = driver.calls();
    if driver.caches.iter().any(|c| c.flush_error().is_some()) {
        driver.reopen();
    }
    for kind in [L2, REFCOUNTS] {
        // One may still tell of a loss.
        if driver.run(&Op::Flush(kind)).is_err() {
            if driver.caches.iter().any(|c| c.flush_error().is_some()) {
                driver.reopen();
            }
            driver.run(&Op::Flush(kind)).unwrap();
        }
    }
    let image = lock(&driver.storage.image);
    assert_eq!(image.broken, None);
    drop(image);
    (flushes, writes, unstable)
}

fn op() -> impl Strategy<Value = Op> {
    let kind = 0..2_usize;
    let table = 0..L2_TABLES;
    prop_oneof![
        12 => (table.clone(), 0..WORDS, 0..CLUSTERS).prop_map(|(t, e, c)| Op::Allocate(t, e, c)),
        6 => (table.clone(), 0..WORDS).prop_map(|(t, e)| Op::Free(t, e)),
        6 => (kind.clone(), table.clone()).prop_map(|(k, t)| Op::Touch(k, t)),
        2 => (kind.clone(), table).prop_map(|(k, t)| Op::TouchUnlocked(k, t)),
        1 => kind.clone().prop_map(Op::Write),
        3 => kind.clone().prop_map(Op::Flush),
        1 => Just(Op::FlushIfOwed),
        1 => kind.clone().prop_map(Op::Empty),
        1 => kind.clone().prop_map(Op::DependsOnFlush),
        2 => kind.clone().prop_map(Op::Clean),
        2 => kind.prop_map(Op::Replace),
        1 => Just(Op::Reopen),
    ]
}

fn op_or_loss() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => op(),
        1 => any::<u64>().prop_map(Op::LoseInBackground),
    ]
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(30))]

    /// One flush fails: the first, the second, and so on to the last.
    #[test]
    fn one_failed_flush_at_every_position(
        ops in proptest::collection::vec(op(), 1..150), fate in any::<u64>(),
    ) {
        let (flushes, _, unstable) = run(&ops, BTreeMap::new(), BTreeSet::new());
        prop_assert_eq!(unstable, 0, "without a fault");
        for failing in 1..=flushes {
            run(&ops, BTreeMap::from([(failing, fate)]), BTreeSet::new());
        }
    }
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn flushes_and_writes_that_fail_at_random(
        ops in proptest::collection::vec(op_or_loss(), 1..200),
        failing_flushes in proptest::collection::btree_map(1..80_usize, any::<u64>(), 0..20),
        failing_writes in proptest::collection::btree_set(1..120_usize, 0..20),
    ) {
        run(&ops, failing_flushes, failing_writes);
    }
}

/// A flush that fails can be made good as long as the tables are still in the cache, and cannot
/// when one has left it. Both happen in the tests above.
#[test]
fn faults_do_what_the_tests_are_for() {
    let change = |n: u64| Op::Allocate(n, n, 10 + n);
    let lost = BTreeMap::from([(1, u64::MAX)]);
    // The first flush is the refcount block's, which the L2 table waits for.
    let (_, _, unstable) = run(
        &[change(0), Op::Flush(L2), Op::Flush(L2)],
        lost.clone(),
        BTreeSet::new(),
    );
    assert_eq!(unstable, 0);
    let evict = [
        Op::Write(REFCOUNTS),
        Op::Clean(REFCOUNTS),
        Op::Clean(REFCOUNTS),
    ];
    let ops = [
        vec![change(0)],
        evict.to_vec(),
        vec![Op::Flush(L2), Op::Flush(L2)],
    ]
    .concat();
    let (_, _, unstable) = run(&ops, lost, BTreeSet::new());
    assert!(unstable > 0);
}

/// A table is written, leaves the cache, and comes back without that write, since the kernel has
/// lost it meanwhile. It is written again. The flush that tells of the loss must not be made good
/// by writing what came back.
#[test]
fn write_that_a_later_one_hides_is_not_forgotten() {
    for fate in 0..64 {
        let ops = [
            Op::Allocate(0, 0, 10),
            Op::Write(REFCOUNTS),
            Op::Clean(REFCOUNTS),
            Op::Clean(REFCOUNTS),
            Op::LoseInBackground(fate << 58),
            Op::Allocate(1, 1, 20),
            Op::Write(REFCOUNTS),
            Op::Flush(REFCOUNTS),
            Op::Flush(REFCOUNTS),
        ];
        let (_, _, unstable) = run(&ops, BTreeMap::new(), BTreeSet::new());
        assert!(unstable > 0);
    }
}
