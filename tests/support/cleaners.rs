// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cleaners to test, and stand-ins for the caches that they clean.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};

use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::host::Host;

use super::hosts::Fixture;
use super::lock;

/// Much longer than any test.
pub const NEVER: u64 = 600_000_000_000;
/// At once, again and again.
pub const BUSY: u64 = 1;

pub type Hook = Box<dyn Fn() + Send + Sync>;

/// A cache's stand-in that knows when it is called and must not be called after a stop.
#[derive(Default)]
pub struct Probe {
    passes: Mutex<usize>,
    called: Condvar,
    hook: Mutex<Option<Arc<Hook>>>,
    in_pass: AtomicBool,
    gone: AtomicBool,
    pub poisoned: AtomicBool,
}

impl Probe {
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

    fn expect_not_gone(&self) {
        if self.gone.load(Ordering::SeqCst) {
            // A panic would be caught by the cleaner.
            eprintln!("a pass after the stop returned");
            std::process::abort();
        }
    }

    /// The stop returned: from now on it must be left alone.
    pub fn must_be_left_alone(&self) {
        assert!(
            !self.in_pass.load(Ordering::SeqCst),
            "the stop returned in the middle of a pass"
        );
        self.gone.store(true, Ordering::SeqCst);
    }
}

impl CleanTarget for Probe {
    fn drop_unused(&self, _from: usize) -> (usize, Option<usize>) {
        self.expect_not_gone();
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
        self.expect_not_gone();
        None
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
    }
}

pub fn cleaner_of(fixture: &dyn Fixture) -> (Arc<Probe>, Arc<Cleaner>) {
    let probe = Arc::new(Probe::default());
    let cleaner = Arc::new(Cleaner::new(fixture.host()));
    cleaner.set_caches(vec![probe.clone()]);
    (probe, cleaner)
}

pub fn with_thread<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(body).join().unwrap())
}

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

/// Looks, when it is dropped, whether the instance that held it is still counted.
pub struct LooksWhenDropped {
    cleaner: Weak<Cleaner>,
    instances: Arc<Mutex<Vec<usize>>>,
}

impl CleanTarget for LooksWhenDropped {
    fn drop_unused(&self, _from: usize) -> (usize, Option<usize>) {
        (0, None)
    }

    fn release_memory(&self, _from: usize) -> Option<usize> {
        None
    }

    fn poison(&self) {}
}

impl Drop for LooksWhenDropped {
    fn drop(&mut self) {
        let instances = self
            .cleaner
            .upgrade()
            .map(|cleaner| cleaner.stats().instances);
        lock(&self.instances).extend(instances);
    }
}

pub type Looks = (Arc<Probe>, Arc<Cleaner>, Arc<Mutex<Vec<usize>>>);

pub fn cleaner_that_looks(host: Arc<dyn Host>) -> Looks {
    let cleaner = Arc::new(Cleaner::new(host));
    let probe = Arc::new(Probe::default());
    let instances = Arc::new(Mutex::new(Vec::new()));
    let looks = LooksWhenDropped {
        cleaner: Arc::downgrade(&cleaner),
        instances: instances.clone(),
    };
    cleaner.set_caches(vec![probe.clone(), Arc::new(looks)]);
    (probe, cleaner, instances)
}

/// A cache's stand-in whose passes have any number of steps, until they are told to end.
#[derive(Default)]
pub struct Steps {
    drops: AtomicUsize,
    given_back: AtomicUsize,
    no_more_drops: AtomicBool,
    no_more_given_back: AtomicBool,
}

impl Steps {
    pub fn drops(&self) -> usize {
        self.drops.load(Ordering::SeqCst)
    }

    pub fn given_back(&self) -> usize {
        self.given_back.load(Ordering::SeqCst)
    }

    pub fn end_drops(&self) {
        self.no_more_drops.store(true, Ordering::SeqCst);
    }

    pub fn end_giving_back(&self) {
        self.no_more_given_back.store(true, Ordering::SeqCst);
    }
}

impl CleanTarget for Steps {
    fn drop_unused(&self, from: usize) -> (usize, Option<usize>) {
        self.drops.fetch_add(1, Ordering::SeqCst);
        let more = !self.no_more_drops.load(Ordering::SeqCst);
        (1, more.then_some(from + 1))
    }

    fn release_memory(&self, from: usize) -> Option<usize> {
        self.given_back.fetch_add(1, Ordering::SeqCst);
        let more = !self.no_more_given_back.load(Ordering::SeqCst);
        more.then_some(from + 1)
    }

    fn poison(&self) {}
}
