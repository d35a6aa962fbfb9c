// SPDX-License-Identifier: MIT OR Apache-2.0
//! An open image's metadata: state lock, L2 cache, refcount cache, cleaner, options.
//!
//! | driver event | here |
//! |---|---|
//! | open | [`State::open`]: the cleaner is started last, when every option is set |
//! | change of options | [`State::prepare`], then [`State::commit`] or drop of the [`Update`] |
//! | detach from a context / attach to one | [`State::detach`], [`State::attach`] |
//! | another process wrote the image | [`State::invalidate`] |
//! | close | [`State::close`] |

use std::sync::Arc;

use crate::cache::{Cache, CacheOptions};
use crate::cleaner::{CleanTarget, Cleaner};
use crate::error::{Errno, Error, Result};
use crate::host::{Context, Event, Host, block_on, poll_until_done};
use crate::options::{Geometry, Options, Resolved};
use crate::primitives::Mutex;
use crate::storage::Storage;

/// Slots that unlocked gets do not take in an L2 cache. A request that holds the state lock pins
/// two slices at the same time when it copies an L2 table (QEMU's `l2_allocate`).
pub const L2_RESERVED: usize = 2;
/// Slots that unlocked gets do not take in a refcount cache. An allocation that holds the state
/// lock touches the old and the new block.
pub const REFCOUNT_RESERVED: usize = 2;

/// What a state is opened with.
pub struct Config {
    /// Where callers wait and the cleaner runs.
    pub host: Arc<dyn Host>,
    /// What the L2 cache reads and writes.
    pub l2_storage: Arc<dyn Storage>,
    /// What the refcount cache reads and writes.
    pub refcount_storage: Arc<dyn Storage>,
    /// The caller's own number for L2 tables, passed to the storage.
    pub l2_kind: i32,
    /// The caller's own number for refcount blocks, passed to the storage.
    pub refcount_kind: i32,
    /// The image's geometry.
    pub geometry: Geometry,
    /// The options that the user set.
    pub options: Options,
    /// Replaces `cache-clean-interval`; in ns, for intervals below a second. 0: the option holds.
    pub clean_interval_ns: u64,
    /// Where the cleaner runs.
    pub context: Context,
}

/// An open image's metadata (see the module). Usable from any thread.
pub struct State {
    cleaner: Cleaner,
    l2_storage: Arc<dyn Storage>,
    refcount_storage: Arc<dyn Storage>,
    l2_kind: i32,
    refcount_kind: i32,
    event: Event,
    inner: Mutex<Inner>,
}

struct Inner {
    caches: Caches,
    geometry: Geometry,
    /// Where the cleaner runs; `None` while detached.
    context: Option<Context>,
    /// The contexts that `poll_until_done` is dispatching, for `kick`.
    polling: Vec<Context>,
}

#[derive(Clone)]
struct Caches {
    l2: Arc<Cache>,
    refcount: Arc<Cache>,
}

impl Caches {
    /// They are about to be destroyed.
    fn retire(&self) {
        self.l2.retire();
        self.refcount.retire();
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.caches().retire();
    }
}

/// A prepared change of options: new caches, not in use yet. Dropping it aborts the change.
pub struct Update {
    caches: Caches,
    geometry: Geometry,
    interval_ns: u64,
}

impl State {
    /// Allocates the caches, then starts the cleaner. Errors: `EINVAL` (the options), `ENOMEM`, and
    /// those of [`Cleaner::start`].
    pub fn open(config: Config) -> Result<Self> {
        let resolved = config.options.resolve(&config.geometry)?;
        let new_caches = NewCaches {
            host: &config.host,
            l2_storage: &config.l2_storage,
            refcount_storage: &config.refcount_storage,
            l2_kind: config.l2_kind,
            refcount_kind: config.refcount_kind,
        };
        let caches = new_caches.allocate(&resolved)?;
        let interval_ns = interval_of(&resolved, config.clean_interval_ns);
        let state = Self {
            cleaner: Cleaner::for_state(config.host),
            l2_storage: config.l2_storage,
            refcount_storage: config.refcount_storage,
            l2_kind: config.l2_kind,
            refcount_kind: config.refcount_kind,
            event: Event::default(),
            inner: Mutex::new(Inner {
                caches,
                geometry: config.geometry,
                context: Some(config.context),
                polling: Vec::new(),
            }),
        };
        state.cleaner.set_next_interval(interval_ns);
        state.start_cleaner().map_err(|errno| {
            Error::new(
                errno,
                format!("the cache cleaner cannot be started: {errno}"),
            )
        })?;
        Ok(state)
    }

    /// Stops the cleaner, writes dirty tables, and flushes storage if something that was written
    /// may not be stable or a flush was asked for. Afterwards the state can be dropped, which calls
    /// no storage. Mixed context, state lock not held.
    ///
    /// On an error nothing is lost: the cleaner is stopped, and the state is otherwise unchanged.
    /// `EBUSY`: a table is in use. `EDEADLK`: see [`Cleaner::del_and_wait`]. Other errors are the
    /// storage's.
    pub fn close(&self) -> core::result::Result<(), Errno> {
        self.cleaner.del_and_wait()?;
        let caches = self.caches();
        for cache in [&caches.l2, &caches.refcount] {
            if cache.is_in_use() {
                return Err(Errno::BUSY);
            }
        }
        self.flush_caches(&caches)?;
        caches.l2.check_destroy()?;
        caches.refcount.check_destroy()?;
        // The stop waited for instances that were started before it. If one was started since, the
        // close fails here.
        self.cleaner.check_idle()
    }

    /// Drops every table, dirty ones too, since another process wrote the image. Stops the cleaner
    /// before and starts it after. Mixed context, state lock not held (it is taken where the caller
    /// can take it). `EBUSY`: a table is in use; nothing was dropped.
    pub fn invalidate(&self) -> core::result::Result<(), Errno> {
        let held = self.stop_and_lock(false)?;
        let caches = self.caches();
        let dropped = if caches.l2.is_in_use() || caches.refcount.is_in_use() {
            Err(Errno::BUSY)
        } else {
            // A caller without the lock may pin a table from now on. It keeps what it pinned; the
            // next get loads it anew.
            caches.refcount.give_up();
            caches.l2.give_up();
            Ok(())
        };
        let started = self.start_cleaner();
        drop(held);
        dropped.and(started)
    }

    /// Starts the cleaner in `context`, where the image moved to, with the interval that was set
    /// last. Any context; does not wait. `EALREADY`: the state is attached.
    pub fn attach(&self, context: Context) -> core::result::Result<(), Errno> {
        self.cleaner.host().check_context(&context)?;
        {
            let mut inner = self.inner.lock();
            if inner.context.is_some() {
                return Err(Errno::ALREADY);
            }
            inner.context = Some(context);
        }
        let started = self.start_cleaner();
        if started.is_err() {
            self.inner.lock().context = None;
        }
        started
    }

    /// Asks the cleaner to stop, since the image leaves its context, and does not wait. Any
    /// context, any lock held. It is no error if the state is detached already.
    pub fn detach(&self) {
        // One step under the mutex: an attach comes before it, and its cleaner is stopped, or after
        // it, and its cleaner runs on.
        let (left, flagged) = {
            let mut inner = self.inner.lock();
            (inner.context.take(), self.cleaner.set_stop_flag())
        };
        flagged.deliver();
        drop(left);
    }

    /// Resolves new options, allocates their caches and flushes the old caches. State lock held.
    /// Errors: `EINVAL` (the options), `ENOMEM`, the storage's; nothing changed then.
    pub fn prepare(
        &self,
        options: &Options,
        geometry: Option<Geometry>,
        clean_interval_ns: u64,
    ) -> Result<Update> {
        let (old, current) = {
            let inner = self.inner.lock();
            (inner.caches.clone(), inner.geometry)
        };
        let geometry = geometry.unwrap_or(current);
        let resolved = options.resolve(&geometry)?;
        let new_caches = NewCaches {
            host: self.cleaner.host(),
            l2_storage: &self.l2_storage,
            refcount_storage: &self.refcount_storage,
            l2_kind: self.l2_kind,
            refcount_kind: self.refcount_kind,
        };
        let caches = new_caches.allocate(&resolved)?;
        self.flush_caches(&old).map_err(|errno| {
            Error::new(errno, format!("the old caches cannot be flushed: {errno}"))
        })?;
        Ok(Update {
            caches,
            geometry,
            interval_ns: interval_of(&resolved, clean_interval_ns),
        })
    }

    /// Applies a prepared change: stops the cleaner, swaps the caches, sets every option, starts
    /// the cleaner. `locked`: whether the caller holds the state lock. If not, it is taken where
    /// the caller can take it. Plain code cannot take a host's own lock; there the image must be
    /// quiesced.
    ///
    /// On an error nothing changed, the old cleaner runs again, and the update is returned with the
    /// errno. `EBUSY`: a table of the old caches is in use. `EPERM`, `EDEADLK`: see the stops.
    /// Other errors are the storage's. If the host cannot start the new cleaner, the change still
    /// holds; [`Cleaner::is_running`] tells.
    pub fn commit(
        &self,
        update: Update,
        locked: bool,
    ) -> core::result::Result<(), (Errno, Update)> {
        let held = match self.stop_and_lock(locked) {
            Ok(held) => held,
            Err(errno) => return Err((errno, update)),
        };
        let result = self.swap(update);
        let _ = self.start_cleaner();
        drop(held);
        result
    }

    /// Stops the cleaner. If the caller does not hold the state lock, takes it where the caller can
    /// take it; the lock is held until the returned value is dropped.
    fn stop_and_lock(&self, locked: bool) -> core::result::Result<Option<HeldLock<'_>>, Errno> {
        if locked {
            self.cleaner.co_locked_del_and_wait()?;
            return Ok(None);
        }
        self.cleaner.del_and_wait()?;
        if !self.cleaner.can_lock() {
            return Ok(None);
        }
        self.cleaner.lock()?;
        let held = HeldLock(&self.cleaner);
        // Another thread may have started an instance before the lock was taken.
        self.cleaner.stop_with_lock_held()?;
        Ok(Some(held))
    }

    fn swap(&self, update: Update) -> core::result::Result<(), (Errno, Update)> {
        let old = self.caches();
        let ready = [&old.refcount, &old.l2].into_iter().try_for_each(|cache| {
            if cache.is_in_use() {
                return Err(Errno::BUSY);
            }
            // What is not dirty needs no storage here: the other caches of the device see to it
            // that it becomes stable.
            if cache.has_dirty() {
                block_on(cache.host(), &[], cache.flush())?;
            }
            cache.check_destroy()
        });
        if let Err(errno) = ready {
            return Err((errno, update));
        }
        old.l2.hand_over_to(&update.caches.l2, &old.refcount);
        old.refcount.hand_over_to(&update.caches.refcount, &old.l2);
        let replaced = {
            let mut inner = self.inner.lock();
            inner.geometry = update.geometry;
            std::mem::replace(&mut inner.caches, update.caches)
        };
        self.cleaner.set_next_interval(update.interval_ns);
        // Advances the stop epoch: a start over the old caches that is under way now is refused.
        self.cleaner.request_stop();
        replaced.retire();
        Ok(())
    }

    /// Starts the cleaner with the present caches, context and interval. If a stop comes in
    /// between, tries again with those that are set then. Leaves a running instance alone.
    fn start_cleaner(&self) -> core::result::Result<(), Errno> {
        loop {
            let epoch = self.cleaner.stop_epoch();
            let (caches, context) = {
                let inner = self.inner.lock();
                (inner.caches.clone(), inner.context.clone())
            };
            let Some(context) = context else {
                return Ok(());
            };
            let targets: Vec<Arc<dyn CleanTarget>> = vec![
                Arc::new(Arc::downgrade(&caches.l2)),
                Arc::new(Arc::downgrade(&caches.refcount)),
            ];
            // For a caller that starts the state's cleaner itself.
            self.cleaner.set_caches(targets.clone());
            match self
                .cleaner
                .start_unless_stopped_since(epoch, targets, context)
            {
                Err(Errno::STALE) => {}
                Err(Errno::ALREADY) => return Ok(()),
                other => return other,
            }
        }
    }

    /// Writes what is dirty in both caches, L2 first as QEMU's close does, and flushes storage
    /// where that is owed. The caches' dependencies decide the order of the writes.
    fn flush_caches(&self, caches: &Caches) -> core::result::Result<(), Errno> {
        let host = &**self.cleaner.host();
        block_on(host, &[], async {
            for cache in [&caches.l2, &caches.refcount] {
                // A poisoned cache never writes again. If it has nothing dirty, that is no error.
                cache.flush_if_owed().await?;
            }
            Ok(())
        })
    }

    fn caches(&self) -> Caches {
        self.inner.lock().caches.clone()
    }

    /// The L2 cache, until the next commit.
    pub fn l2_cache(&self) -> Arc<Cache> {
        self.caches().l2
    }

    /// The refcount cache, until the next commit.
    pub fn refcount_cache(&self) -> Arc<Cache> {
        self.caches().refcount
    }

    /// The cleaner, with the state lock.
    pub fn cleaner(&self) -> &Cleaner {
        &self.cleaner
    }

    fn contexts(&self) -> Vec<Context> {
        let mut contexts = self.cleaner.contexts();
        let inner = self.inner.lock();
        contexts.extend(inner.context.clone());
        contexts.extend(inner.polling.iter().cloned());
        contexts
    }

    /// Waits until `done` returns true. The caller dispatches its own loop, polls, or is parked
    /// until [`State::kick`], by the host and context it has. State lock not held.
    pub fn poll_until_done(&self, done: &dyn Fn() -> bool) {
        let contexts = self.contexts();
        // A kick has to reach the loops that are dispatched now, also if the image leaves them
        // before the wait ends.
        self.inner.lock().polling.extend(contexts.iter().cloned());
        poll_until_done(&**self.cleaner.host(), &contexts, &self.event, done);
        let mut inner = self.inner.lock();
        for context in &contexts {
            let place = inner.polling.iter().position(|other| other == context);
            place.map(|place| inner.polling.swap_remove(place));
        }
    }

    /// Makes every [`State::poll_until_done`] check its condition again. Any thread.
    pub fn kick(&self) {
        self.event.notify();
        self.cleaner.host().kick(&self.contexts());
    }

    /// Runs `entry` to its end: in a new coroutine if the caller is plain code of a coroutine host,
    /// else inside the call.
    pub fn run_until_done(
        &self,
        entry: Box<dyn FnOnce() + Send>,
    ) -> core::result::Result<(), Errno> {
        self.cleaner.check_may_wait()?;
        self.cleaner.host().run(entry)
    }
}

/// The state lock, taken by one of the state's own operations.
struct HeldLock<'a>(&'a Cleaner);

impl Drop for HeldLock<'_> {
    fn drop(&mut self) {
        let unlocked = self.0.unlock();
        debug_assert!(unlocked.is_ok(), "taken in this same context");
    }
}

fn interval_of(resolved: &Resolved, clean_interval_ns: u64) -> u64 {
    if clean_interval_ns != 0 {
        return clean_interval_ns;
    }
    u64::try_from(resolved.clean_interval.as_nanos()).unwrap_or(u64::MAX)
}

struct NewCaches<'a> {
    host: &'a Arc<dyn Host>,
    l2_storage: &'a Arc<dyn Storage>,
    refcount_storage: &'a Arc<dyn Storage>,
    l2_kind: i32,
    refcount_kind: i32,
}

impl NewCaches<'_> {
    fn allocate(&self, resolved: &Resolved) -> Result<Caches> {
        let l2 = CacheOptions {
            tables: resolved.l2_tables,
            table_size: resolved.l2_table_size,
            kind: self.l2_kind,
            reserved: L2_RESERVED,
        };
        let refcount = CacheOptions {
            tables: resolved.refcount_tables,
            table_size: resolved.refcount_table_size,
            kind: self.refcount_kind,
            reserved: REFCOUNT_RESERVED,
        };
        let caches = Caches {
            l2: Cache::new(&l2, self.l2_storage.clone(), self.host.clone())?,
            refcount: Cache::new(&refcount, self.refcount_storage.clone(), self.host.clone())?,
        };
        caches.l2.set_owned_by_state();
        caches.refcount.set_owned_by_state();
        Ok(caches)
    }
}
