// SPDX-License-Identifier: MIT OR Apache-2.0
//! Negative controls: small models of the protocol that qcow2cache replaces and of its repair. A
//! checker can explore each of them completely.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::sync::atomic::AtomicBool;
use super::sync::{Condvar, Mutex};
use super::thread;
use super::timeline::event;

/// A coroutine's sleep. A second wake-up of the same sleep fails, as in a coroutine host.
#[derive(Default)]
struct Sleeper {
    wakes: Mutex<u32>,
    condvar: Condvar,
}

impl Sleeper {
    fn sleep(&self) {
        let mut wakes = self.wakes.lock().unwrap();
        while *wakes == 0 {
            wakes = self.condvar.wait(wakes).unwrap();
        }
    }

    fn wake(&self) {
        let mut wakes = self.wakes.lock().unwrap();
        *wakes += 1;
        assert!(*wakes == 1, "woken twice");
        drop(wakes);
        self.condvar.notify_one();
    }
}

/// When the cleaner registers as a sleeper.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// After it released the lock under which it read its interval.
    AfterUnlock,
    /// Under that lock.
    UnderLock,
}

struct Cleaner {
    interval: Mutex<u64>,
    registered: Mutex<bool>,
    sleeper: Sleeper,
}

/// The cleaner reads its interval under the lock, and registers as a sleeper under the lock or
/// after it. A stop sets the interval to 0 and wakes the registered sleeper. The clock stands
/// still: only a wake-up ends the sleep.
pub fn stop_by_interval(registration: Registration) {
    let cleaner = Arc::new(Cleaner {
        interval: Mutex::new(600),
        registered: Mutex::new(false),
        sleeper: Sleeper::default(),
    });
    let running = thread::spawn({
        let cleaner = cleaner.clone();
        move || run(&cleaner, registration)
    });
    let mut interval = cleaner.interval.lock().unwrap();
    *interval = 0;
    event("stop", "sets the interval to 0");
    if std::mem::take(&mut *cleaner.registered.lock().unwrap()) {
        event("stop", "wakes the sleeper");
        cleaner.sleeper.wake();
    } else {
        event("stop", "finds nobody to wake");
    }
    drop(interval);
    event("stop", "waits for the cleaner's end");
    running.join().unwrap();
}

fn run(cleaner: &Cleaner, registration: Registration) {
    let interval = cleaner.interval.lock().unwrap();
    if *interval == 0 {
        event("cleaner", "reads interval 0, ends");
        return;
    }
    event("cleaner", format!("reads interval {}", *interval));
    if registration == Registration::AfterUnlock {
        drop(interval);
        event("cleaner", "drops the lock");
        *cleaner.registered.lock().unwrap() = true;
        event("cleaner", "registers as sleeper, sleeps");
    } else {
        *cleaner.registered.lock().unwrap() = true;
        event("cleaner", "registers as sleeper");
        drop(interval);
        event("cleaner", "drops the lock, sleeps");
    }
    cleaner.sleeper.sleep();
    event("cleaner", "is awake, ends");
}

/// How the timer and the stop take the sleeper out of its field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// A load, then a store.
    InTwoSteps,
    /// One atomic exchange.
    Atomically,
}

struct Field {
    sleeper_set: AtomicBool,
    sleeper: Sleeper,
}

impl Field {
    fn wake(&self, actor: &'static str, take: Take) {
        let set = match take {
            Take::Atomically => self.sleeper_set.swap(false, Relaxed),
            Take::InTwoSteps => {
                let set = self.sleeper_set.load(Relaxed);
                if set {
                    event(actor, "sees the sleeper");
                    self.sleeper_set.store(false, Relaxed);
                    event(actor, "clears the field");
                }
                set
            }
        };
        if set {
            event(actor, "wakes the sleeper");
            self.sleeper.wake();
        }
    }
}

/// The cleaner sleeps. Its timer fires in its home thread while another thread stops it.
pub fn timer_against_stop(take: Take) {
    let field = Arc::new(Field {
        sleeper_set: AtomicBool::new(true),
        sleeper: Sleeper::default(),
    });
    let asleep = thread::spawn({
        let field = field.clone();
        move || field.sleeper.sleep()
    });
    let stop = thread::spawn({
        let field = field.clone();
        move || field.wake("stop", take)
    });
    field.wake("timer", take);
    stop.join().unwrap();
    asleep.join().unwrap();
}
