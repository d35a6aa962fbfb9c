// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaners to test, and fake caches for them to clean.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::host::Host;

use super::hosts::Fixture;
use super::lock;

pub type Hook = Box<dyn Fn() + Send + Sync>;

/// A fake cache that counts its passes and aborts the process if it is called after a stop.
#[derive(Default)]
pub struct FakeCache {
    passes: Mutex<usize>,
    called: Condvar,
    hook: Mutex<Option<Arc<Hook>>>,
    in_pass: AtomicBool,
    stopped: AtomicBool,
    pub poisoned: AtomicBool,
}

impl FakeCache {
    pub fn wait_for_passes(&self, n: usize) {
        let mut passes = lock(&self.passes);
        let target = *passes + n;
        while *passes < target {
            passes = self.called.wait(passes).unwrap();
        }
    }

    pub fn passes(&self) -> usize {
        *lock(&self.passes)
    }

    pub fn set_hook(&self, hook: impl Fn() + Send + Sync + 'static) {
        *lock(&self.hook) = Some(Arc::new(Box::new(hook)));
    }

    fn assert_not_stopped(&self) {
        if self.stopped.load(Ordering::SeqCst) {
            // The cleaner would catch a panic.
            eprintln!("a pass after the stop returned");
            std::process::abort();
        }
    }

    /// Called when a stop has returned: no pass may run now, and none may start later.
    pub fn forbid_passes(&self) {
        assert!(
            !self.in_pass.load(Ordering::SeqCst),
            "the stop returned during a pass"
        );
        self.stopped.store(true, Ordering::SeqCst);
    }
}

impl CleanTarget for FakeCache {
    fn drop_unused(&self, _from: usize) -> (usize, Option<usize>) {
        self.assert_not_stopped();
        self.in_pass.store(true, Ordering::SeqCst);
        let hook = lock(&self.hook).clone();
        if let Some(hook) = hook {
            hook();
        }
        self.in_pass.store(false, Ordering::SeqCst);
        *lock(&self.passes) += 1;
        self.called.notify_all();
        (3, None)
    }

    fn release_memory(&self, _from: usize) -> Option<usize> {
        self.assert_not_stopped();
        None
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
    }
}

/// A cleaner that is not started yet, and the fake cache that it cleans.
pub fn cleaner_of(fixture: &dyn Fixture) -> (Arc<FakeCache>, Arc<Cleaner>) {
    let cache = Arc::new(FakeCache::default());
    let cleaner = Arc::new(Cleaner::new(fixture.host()));
    cleaner.set_caches(vec![cache.clone()]);
    (cache, cleaner)
}

/// Runs `body` in a new thread and returns its result.
pub fn in_new_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

/// The ways to stop a cleaner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Unlocked,
    Mixed,
    Locked,
    Requested,
}

pub const STOPS: [Stop; 4] = [Stop::Unlocked, Stop::Mixed, Stop::Locked, Stop::Requested];

pub fn stop(cleaner: &Cleaner, how: Stop) {
    match how {
        Stop::Unlocked => cleaner.co_del_and_wait().unwrap(),
        Stop::Mixed => cleaner.del_and_wait().unwrap(),
        Stop::Locked => {
            cleaner.lock().unwrap();
            cleaner.co_locked_del_and_wait().unwrap();
            assert_eq!(cleaner.stats().instances, 0);
            cleaner.unlock().unwrap();
        }
        Stop::Requested => {
            cleaner.request_stop();
            assert!(!cleaner.is_running());
            cleaner.del_and_wait().unwrap();
        }
    }
}

/// Records, when it is dropped, how many instances the cleaner still counts.
pub struct DropObserver {
    cleaner: Weak<Cleaner>,
    instances: Arc<Mutex<Vec<usize>>>,
}

impl CleanTarget for DropObserver {
    fn drop_unused(&self, _from: usize) -> (usize, Option<usize>) {
        (0, None)
    }

    fn release_memory(&self, _from: usize) -> Option<usize> {
        None
    }

    fn poison(&self) {}
}

impl Drop for DropObserver {
    fn drop(&mut self) {
        let instances = self
            .cleaner
            .upgrade()
            .map(|cleaner| cleaner.stats().instances);
        lock(&self.instances).extend(instances);
    }
}

/// A fake cache, its cleaner, and what the [`DropObserver`] recorded.
pub type ObservedCleaner = (Arc<FakeCache>, Arc<Cleaner>, Arc<Mutex<Vec<usize>>>);

/// A cleaner that holds a [`DropObserver`] beside its fake cache.
pub fn cleaner_with_drop_observer(host: Arc<dyn Host>) -> ObservedCleaner {
    let cleaner = Arc::new(Cleaner::new(host));
    let cache = Arc::new(FakeCache::default());
    let instances = Arc::new(Mutex::new(Vec::new()));
    let observer = DropObserver {
        cleaner: Arc::downgrade(&cleaner),
        instances: instances.clone(),
    };
    cleaner.set_caches(vec![cache.clone(), Arc::new(observer)]);
    (cache, cleaner, instances)
}

/// A fake cache whose passes go on, step by step, until the test ends each of their two phases.
#[derive(Default)]
pub struct SteppedCache {
    drops: AtomicUsize,
    releases: AtomicUsize,
    drops_ended: AtomicBool,
    releases_ended: AtomicBool,
}

impl SteppedCache {
    /// How many steps dropped tables.
    pub fn drops(&self) -> usize {
        self.drops.load(Ordering::SeqCst)
    }

    /// How many steps released memory.
    pub fn releases(&self) -> usize {
        self.releases.load(Ordering::SeqCst)
    }

    pub fn end_drops(&self) {
        self.drops_ended.store(true, Ordering::SeqCst);
    }

    pub fn end_releases(&self) {
        self.releases_ended.store(true, Ordering::SeqCst);
    }
}

impl CleanTarget for SteppedCache {
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>) {
        self.drops.fetch_add(1, Ordering::SeqCst);
        let more = !self.drops_ended.load(Ordering::SeqCst);
        (1, more.then_some(from + 1))
    }

    fn release_memory(&self, from: usize) -> Option<usize> {
        self.releases.fetch_add(1, Ordering::SeqCst);
        let more = !self.releases_ended.load(Ordering::SeqCst);
        more.then_some(from + 1)
    }

    fn poison(&self) {}
}
