// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parker: how one caller, thread or coroutine, waits and is woken exactly once.
//!
//! | state | `park` | `unpark` |
//! |---|---|---|
//! | `EMPTY` | → `PARKED`, then [`Sleeper::sleep`] | → `NOTIFIED` |
//! | `PARKED` | (one owner: does not happen) | → `NOTIFIED`, then [`Sleeper::wake`] once |
//! | `NOTIFIED` | → `EMPTY`, returns | stays |
//!
//! The sleeper's `wake` runs for the transition `PARKED` → `NOTIFIED` alone, and each `PARKED` stands for one
//! announced sleep of this very wait: a coroutine that sleeps in its host's own I/O has its parker in `EMPTY` or
//! `NOTIFIED` and is never woken by us. "The wait is over" and "somebody sleeps" are one word, so that there is no
//! moment at which the one is visible without the other.

use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Wake, Waker};

use once_cell::sync::OnceCell;

use crate::primitives::{AtomicU8, Ordering};

const EMPTY: u8 = 0;
const PARKED: u8 = 1;
const NOTIFIED: u8 = 2;

/// The host's part of a parker: how this caller sleeps and is woken.
pub trait Sleeper: Send + Sync {
    /// Sleeps until `notified` returns true. May return only then. Called by the owner alone.
    fn sleep(&self, notified: &dyn Fn() -> bool);

    /// Wakes the owner, which has announced its sleep and may or may not have fallen asleep yet. Any thread; called
    /// once for each sleep, after `notified` became true.
    fn wake(&self);
}

/// One caller's parker. It lives behind an [`Arc`], so that a waker may outlast the wait.
pub struct Parker {
    state: AtomicU8,
    sleeper: Box<dyn Sleeper>,
}

impl Parker {
    /// A parker for the caller that `sleeper` knows how to put to sleep.
    pub fn new(sleeper: Box<dyn Sleeper>) -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            sleeper,
        }
    }

    /// Waits for a notification and consumes it. The owner alone; no lock may be held.
    pub fn park(&self) {
        // Release: what the owner did before it sleeps is visible to whoever wakes it. Pairs with `unpark`.
        if self
            .state
            .compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.sleeper
                .sleep(&|| self.state.load(Ordering::Acquire) == NOTIFIED);
        }
        // A swap, not a store: an `unpark` that came since then is consumed with its effects (pairs with the
        // release in `unpark`), instead of being overwritten unseen.
        let before = self.state.swap(EMPTY, Ordering::AcqRel);
        debug_assert_eq!(
            before, NOTIFIED,
            "a sleeper returned without a notification"
        );
    }

    /// Ends the current wait, or the next one. Any thread; no lock may be held.
    pub fn unpark(&self) {
        // Release: what happened before is visible to the owner after `park`. Acquire: see `park`.
        if self.state.swap(NOTIFIED, Ordering::AcqRel) == PARKED {
            self.sleeper.wake();
        }
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.unpark();
    }
}

/// Makes the parker when somebody first keeps the waker: a future that is ready at once costs no allocation.
pub struct LazyParker<'a> {
    cell: OnceCell<Arc<Parker>>,
    sleeper: &'a (dyn Fn() -> Box<dyn Sleeper> + Sync),
}

impl<'a> LazyParker<'a> {
    /// `sleeper` makes the host's part, for the caller it is called by.
    pub fn new(sleeper: &'a (dyn Fn() -> Box<dyn Sleeper> + Sync)) -> Self {
        Self {
            cell: OnceCell::new(),
            sleeper,
        }
    }

    /// The parker, made on first use.
    pub fn parker(&self) -> &Arc<Parker> {
        self.cell
            .get_or_init(|| Arc::new(Parker::new((self.sleeper)())))
    }

    /// Calls `f` with a waker that borrows this parker; its clones own the parker.
    pub fn with_waker<R>(&self, f: impl FnOnce(&Waker) -> R) -> R {
        const VTABLE: RawWakerVTable = RawWakerVTable::new(
            |data| {
                // SAFETY: `data` is the `LazyParker` of the `with_waker` call that is still running, since the
                // borrowed waker is dropped before that call returns.
                let lazy = unsafe { &*data.cast::<LazyParker<'_>>() };
                RawWaker::from(lazy.parker().clone())
            },
            |_| unreachable!("the borrowed waker is never consumed by wake()"),
            |data| {
                // SAFETY: as above.
                let lazy = unsafe { &*data.cast::<LazyParker<'_>>() };
                lazy.parker().unpark();
            },
            |_| {},
        );
        let raw = RawWaker::new(std::ptr::from_ref(self).cast(), &VTABLE);
        // SAFETY: the vtable keeps the contract of RawWaker: `clone` gives an owned waker of its own; wake_by_ref and
        // drop only look at `self`, which outlives `waker`; `LazyParker` is Sync.
        let waker = unsafe { std::mem::ManuallyDrop::new(Waker::from_raw(raw)) };
        f(&waker)
    }
}

pub use thread::ThreadSleeper;

mod thread {
    use super::Sleeper;
    use crate::primitives::{Condvar, Mutex, wait_while};

    /// An operating system thread sleeps on a condition variable.
    pub struct ThreadSleeper {
        mutex: Mutex<()>,
        condvar: Condvar,
    }

    impl ThreadSleeper {
        /// A sleeper for the calling thread, or any other one thread.
        pub fn new() -> Self {
            Self {
                mutex: Mutex::new(()),
                condvar: Condvar::new(),
            }
        }
    }

    impl Default for ThreadSleeper {
        fn default() -> Self {
            Self::new()
        }
    }

    impl Sleeper for ThreadSleeper {
        fn sleep(&self, notified: &dyn Fn() -> bool) {
            drop(wait_while(&self.condvar, self.mutex.lock(), |()| {
                !notified()
            }));
        }

        fn wake(&self) {
            // Taken and let go: the sleeper is either before its look at `notified` (and sees it) or waiting.
            drop(self.mutex.lock());
            self.condvar.notify_one();
        }
    }
}
