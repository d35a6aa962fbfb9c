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

/// Slots that unlocked gets leave over in an L2 cache: a request that holds the state lock needs one table.
pub const L2_RESERVED: usize = 1;
/// The same for refcount blocks: an allocation touches the old and the new block.
pub const REFCOUNT_RESERVED: usize = 2;

/// What a state is opened with.
pub struct Config {
    /// Where callers wait and the cleaner runs.
    pub host: Arc<dyn Host>,
    /// Below the L2 cache.
    pub l2_storage: Arc<dyn Storage>,
    /// Below the refcount cache.
    pub refcount_storage: Arc<dyn Storage>,
    /// The caller's own numbers for the two, handed to storage's checks.
    pub l2_kind: i32,
    /// See `l2_kind`.
    pub refcount_kind: i32,
    /// The image's geometry.
    pub geometry: Geometry,
    /// What the user set.
    pub options: Options,
    /// In place of `cache-clean-interval`, in ns, for intervals below a second; 0: by the options.
    pub clean_interval_ns: u64,
    /// Where the cleaner runs.
    pub context: Context,
}

/// See the module. Usable from any thread.
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

/// A prepared change of options: new caches, not in use yet. Dropping it aborts the change.
pub struct Update {
    caches: Caches,
    geometry: Geometry,
    interval_ns: u64,
}

impl State {
    /// Allocates the caches and starts the cleaner, last. Errors: the options' (`EINVAL`), `ENOMEM`, and those of
    /// [`Cleaner::start`].
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

    /// Stops the cleaner, writes what is dirty and flushes; afterwards the state can be dropped. Mixed context, state
    /// lock not held.
    ///
    /// On an error nothing is lost: the state is as it was, but for its cleaner, which is stopped. `EBUSY`: a table is in use.
    /// `EDEADLK`: see [`Cleaner::del_and_wait`]. Others are storage's.
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
        // A stop waits for what was started before; a start that came in between is refused here.
        self.cleaner.check_idle()
    }

    /// Another process wrote the image: stops the cleaner, drops every table, dirty ones too, and starts again. Mixed context,
    /// state lock not held (it is taken where the caller can take it). `EBUSY`: a table is in use; nothing was dropped.
    pub fn invalidate(&self) -> core::result::Result<(), Errno> {
        let held = self.stop_and_lock(false)?;
        let caches = self.caches();
        let dropped = if caches.l2.is_in_use() || caches.refcount.is_in_use() {
            Err(Errno::BUSY)
        } else {
            caches
                .refcount
                .discard_all()
                .and_then(|()| caches.l2.discard_all())
        };
        let started = self.start_cleaner();
        drop(held);
        dropped.and(started)
    }

    /// The image moves to `context`: the cleaner starts there, with the interval that was set last. `EALREADY`: it is
    /// attached. Any context; does not wait.
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

    /// The image leaves its context: asks the cleaner to stop and does not wait. Any context, any lock held. Detaching
    /// what is detached is no error.
    pub fn detach(&self) {
        // In one step: an attach is before it, and its cleaner is stopped, or after it, and its cleaner is not.
        let (left, flagged) = {
            let mut inner = self.inner.lock();
            (inner.context.take(), self.cleaner.set_stop_flag())
        };
        flagged.deliver();
        drop(left);
    }

    /// Works out new options and allocates their caches; the old ones are flushed. State lock held. Errors: the options', `ENOMEM`,
    /// storage's; nothing changed then.
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

    /// Puts a prepared change into effect: stops the cleaner, swaps the caches, sets every option, starts the cleaner. `locked`:
    /// whether the caller holds the state lock; if not, it is taken where the caller can take it (plain code cannot take a
    /// host's own lock: there the image must be quiesced).
    ///
    /// On an error nothing changed and the old cleaner runs again: `EBUSY`, a table of the old caches is in use; `EPERM`,
    /// `EDEADLK`, see the stops; others are storage's. The update is given back with the errno. A cleaner that the host cannot start does not
    /// undo the change; [`Cleaner::is_running`] tells.
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

    /// Stops the cleaner. If the caller does not hold the state lock, takes it where the caller can take it; it is held until
    /// the value is dropped.
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
        // Somebody may have started one before the lock was taken.
        self.cleaner.stop_with_lock_held()?;
        Ok(Some(held))
    }

    fn swap(&self, update: Update) -> core::result::Result<(), (Errno, Update)> {
        let old = self.caches();
        let ready = [&old.refcount, &old.l2].into_iter().try_for_each(|cache| {
            if cache.is_in_use() {
                return Err(Errno::BUSY);
            }
            block_on(cache.host(), &[], cache.flush())?;
            cache.check_destroy()
        });
        if let Err(errno) = ready {
            return Err((errno, update));
        }
        let replaced = {
            let mut inner = self.inner.lock();
            inner.geometry = update.geometry;
            std::mem::replace(&mut inner.caches, update.caches)
        };
        self.cleaner.set_next_interval(update.interval_ns);
        // Whoever is about to start a cleaner over the old caches finds that it is too late.
        self.cleaner.request_stop();
        drop(replaced);
        Ok(())
    }

    /// Starts the cleaner over the caches, in the context and with the interval that are set now; if somebody stops it meanwhile, with
    /// those that are set then. One that runs already is left.
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
            let targets: Vec<Arc<dyn CleanTarget>> = vec![caches.l2, caches.refcount];
            // For whoever starts the state's cleaner by hand.
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

    /// The order of QEMU's close: L2 tables last would leave refcounts that nothing points to, so each cache's own dependencies
    /// decide; both are flushed.
    fn flush_caches(&self, caches: &Caches) -> core::result::Result<(), Errno> {
        let host = &**self.cleaner.host();
        block_on(host, &[], async {
            for cache in [&caches.l2, &caches.refcount] {
                // A poisoned cache never writes again; there is nothing to write once its tables were given up.
                if cache.check_poison().is_ok() || cache.has_dirty() {
                    cache.flush().await?;
                }
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

    /// Waits until `done` is true, in the caller's way: dispatching its own loop, polling, or parked until
    /// [`State::kick`]. State lock not held.
    pub fn poll_until_done(&self, done: &dyn Fn() -> bool) {
        let contexts = self.contexts();
        // A kick reaches the loops that are dispatched now, also if the image leaves them meanwhile.
        self.inner.lock().polling.extend(contexts.iter().cloned());
        poll_until_done(&**self.cleaner.host(), &contexts, &self.event, done);
        let mut inner = self.inner.lock();
        for context in &contexts {
            let place = inner.polling.iter().position(|other| other == context);
            place.map(|place| inner.polling.swap_remove(place));
        }
    }

    /// Has every [`State::poll_until_done`] look at its condition again. Any thread.
    pub fn kick(&self) {
        self.event.notify();
        self.cleaner.host().kick(&self.contexts());
    }

    /// Runs `entry` to its end: in a new coroutine if the caller is plain code of a coroutine host, else right here.
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
