// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parker: one caller, a thread or a coroutine, waits with it and is woken exactly once.
//!
//! | state | `park` | `unpark` |
//! |---|---|---|
//! | `EMPTY` | → `PARKED`, then [`Sleeper::sleep`] | → `NOTIFIED` |
//! | `PARKED` | (does not happen: only the owner parks) | → `NOTIFIED`, then [`Sleeper::wake`] once |
//! | `NOTIFIED` | → `EMPTY`, returns | stays |
//!
//! Only the transition `PARKED` → `NOTIFIED` calls the sleeper's `wake`, and each `PARKED` stands
//! for one announced sleep of this wait. A coroutine that sleeps in its host's own I/O has its
//! parker in `EMPTY` or `NOTIFIED`, so the library never wakes it there. "The wait is over" and
//! "the owner sleeps" are states of one atomic word, so one cannot become visible without the
//! other.

use std::sync::Arc;
use std::task::{RawWaker, RawWakerVTable, Wake, Waker};

use once_cell::sync::OnceCell;

use crate::primitives::{AtomicU8, Ordering};

const EMPTY: u8 = 0;
const PARKED: u8 = 1;
const NOTIFIED: u8 = 2;

/// The host's part of a parker: puts one caller to sleep and wakes it.
pub trait Sleeper: Send + Sync {
    /// Sleeps until `notified` returns true; must not return earlier. Only the owner calls it.
    fn sleep(&self, notified: &dyn Fn() -> bool);

    /// Wakes the owner, which has announced its sleep but may not sleep yet. Any thread; called
    /// once for each announced sleep, after `notified` became true.
    fn wake(&self);
}

/// One caller's parker. It is kept in an [`Arc`], since a waker may live longer than the wait.
pub struct Parker {
    state: AtomicU8,
    sleeper: Box<dyn Sleeper>,
}

impl Parker {
    /// Makes a parker for the caller that `sleeper` puts to sleep.
    pub fn new(sleeper: Box<dyn Sleeper>) -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            sleeper,
        }
    }

    /// Waits for a notification and consumes it. Only the owner calls it; no lock may be held.
    pub fn park(&self) {
        // Release: what the owner did before it sleeps is visible to the waker; pairs with the
        // acquire of the swap in `unpark`. Acquire on failure: see the swap below.
        if self
            .state
            .compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.sleeper
                .sleep(&|| self.state.load(Ordering::Acquire) == NOTIFIED);
        }
        // A swap, not a store: if another `unpark` came since then, its notification is consumed,
        // and what its caller did before is visible here (acquire; pairs with the release in
        // `unpark`). A store would overwrite it unseen.
        let before = self.state.swap(EMPTY, Ordering::AcqRel);
        debug_assert_eq!(
            before, NOTIFIED,
            "a sleeper returned without a notification"
        );
    }

    /// Ends the owner's current wait, or its next one if it does not wait now. Any thread; no lock
    /// may be held.
    pub fn unpark(&self) {
        // Release: what this caller did before is visible to the owner after `park` (pairs with the
        // acquires there). Acquire: pairs with the release of `EMPTY` → `PARKED` in `park`.
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

/// A parker that is made when its waker is first cloned: a future that is ready at its first poll
/// costs no allocation.
pub struct LazyParker<'a> {
    cell: OnceCell<Arc<Parker>>,
    sleeper: &'a (dyn Fn() -> Box<dyn Sleeper> + Sync),
}

impl<'a> LazyParker<'a> {
    /// `sleeper` makes the host's part, for the thread or coroutine that calls it.
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
                // SAFETY: `data` is the `LazyParker` of the `with_waker` call that is still
                // running: `f` cannot keep the borrowed waker, only clones of it.
                let lazy = unsafe { &*data.cast::<LazyParker<'_>>() };
                RawWaker::from(lazy.parker().clone())
            },
            |_| unreachable!("the borrowed waker is never consumed by wake()"),
            |data| {
                // SAFETY: `data` is that `LazyParker`, as in `clone` above.
                let lazy = unsafe { &*data.cast::<LazyParker<'_>>() };
                lazy.parker().unpark();
            },
            |_| {},
        );
        let raw = RawWaker::new(std::ptr::from_ref(self).cast(), &VTABLE);
        // SAFETY: the vtable keeps the contract of RawWaker: `clone` returns an independent, owned
        // waker; `wake_by_ref` only borrows `self`, which outlives `waker`; `drop` does nothing;
        // `LazyParker` is Sync.
        let waker = unsafe { std::mem::ManuallyDrop::new(Waker::from_raw(raw)) };
        f(&waker)
    }
}

pub use thread::ThreadSleeper;

mod thread {
    use super::Sleeper;
    use crate::primitives::{Condvar, Mutex, wait_while};

    /// The sleeper of an operating system thread: a condition variable.
    pub struct ThreadSleeper {
        mutex: Mutex<()>,
        condvar: Condvar,
    }

    impl ThreadSleeper {
        /// Makes a sleeper for one thread, the calling one or another.
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
            // Locked and unlocked, so that this wake-up is not lost: the sleeper checks `notified`
            // under the mutex. Either it checks after this, and sees the notification, or it waits
            // on the condition variable already.
            drop(self.mutex.lock());
            self.condvar.notify_one();
        }
    }
}
