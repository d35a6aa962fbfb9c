// SPDX-License-Identifier: MIT OR Apache-2.0
//! The synchronisation primitives that everything else imports from here, so that a model checker can swap them.
//!
//! | `--cfg` | atomics, mutex, condition variable | used by |
//! |---|---|---|
//! | (none) | core, `parking_lot` | the library |
//! | `loom` | loom: every interleaving and every C11 ordering, few threads | the pin, the parker, write-back |
//! | `shuttle` | shuttle: sampled schedules, many threads | the cleaner's protocol, the state lock |

#[cfg(not(any(loom, shuttle)))]
mod chosen {
    pub(crate) use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

    /// Waits while `condition` holds; the guard goes in and comes out, as in std.
    pub(crate) fn wait_while<'a, T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        while condition(&mut *guard) {
            condvar.wait(&mut guard);
        }
        guard
    }
}

#[cfg(any(loom, shuttle))]
mod chosen {
    #[cfg(loom)]
    use loom::sync as model;
    #[cfg(shuttle)]
    use shuttle::sync as model;

    pub(crate) use model::MutexGuard;
    pub(crate) use model::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

    /// The checker's mutex with `parking_lot`'s interface: no poisoning.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(model::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(model::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        }
    }

    pub(crate) use model::Condvar;

    pub(crate) fn wait_while<'a, T>(
        condvar: &Condvar,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> MutexGuard<'a, T> {
        while condition(&mut *guard) {
            guard = condvar
                .wait(guard)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        guard
    }
}

pub(crate) use chosen::*;
