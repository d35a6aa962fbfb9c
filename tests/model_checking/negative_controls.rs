// SPDX-License-Identifier: MIT OR Apache-2.0
//! Negative controls: the shape of the protocol that qcow2cache replaces, and of its repair, small
//! enough to be gone through whole.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::sync::atomic::AtomicBool;
use super::sync::{Condvar, Mutex};
use super::thread;
use super::timeline::event;

/// Where a coroutine sleeps; a second wake of one sleep aborts, as in a coroutine host.
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
pub enum Registers {
    /// After the lock is dropped under which it read its interval.
    AfterTheLock,
    /// Under that lock, before it looks.
    UnderTheLock,
}

struct Cleaner {
    interval: Mutex<u64>,
    registered: Mutex<bool>,
    sleeper: Sleeper,
}

/// Interval read under the lock, lock dropped, then registered; a stop sets the interval to 0 and
/// wakes whoever is registered. The clock stands still: only a wake ends the sleep.
pub fn stop_by_interval(registers: Registers) {
    let cleaner = Arc::new(Cleaner {
        interval: Mutex::new(600),
        registered: Mutex::new(false),
        sleeper: Sleeper::default(),
    });
    let running = thread::spawn({
        let cleaner = cleaner.clone();
        move || run(&cleaner, registers)
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

fn run(cleaner: &Cleaner, registers: Registers) {
    let interval = cleaner.interval.lock().unwrap();
    if *interval == 0 {
        event("cleaner", "reads interval 0, ends");
        return;
    }
    event("cleaner", format!("reads interval {}", *interval));
    if registers == Registers::AfterTheLock {
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

/// How timer and stopper take the sleeper out of its field.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Read, then cleared.
    InTwoSteps,
    /// By one exchange.
    AtOnce,
}

struct Field {
    sleeper_set: AtomicBool,
    sleeper: Sleeper,
}

impl Field {
    fn wake(&self, who: &'static str, takes: Takes) {
        let set = match takes {
            Takes::AtOnce => self.sleeper_set.swap(false, Relaxed),
            Takes::InTwoSteps => {
                let set = self.sleeper_set.load(Relaxed);
                if set {
                    event(who, "sees the sleeper");
                    self.sleeper_set.store(false, Relaxed);
                    event(who, "clears the field");
                }
                set
            }
        };
        if set {
            event(who, "wakes the sleeper");
            self.sleeper.wake();
        }
    }
}

/// A cleaner asleep; its timer fires in its home thread while another thread stops it.
pub fn timer_against_stop(takes: Takes) {
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
        move || field.wake("stop", takes)
    });
    field.wake("timer", takes);
    stop.join().unwrap();
    asleep.join().unwrap();
}
