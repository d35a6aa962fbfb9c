// SPDX-License-Identifier: MIT OR Apache-2.0
//! The synchronisation primitives. Everything else imports them from here, so that a model checker
//! can replace them.
//!
//! | `--cfg` | atomics, mutex, condition variable | used by |
//! |---|---|---|
//! | (none) | core, `parking_lot` | the library |
//! | `loom` | loom: every interleaving and every C11 ordering, few threads | the pin, the parker, write-back |
//! | `shuttle` | shuttle: sampled schedules, many threads | the cleaner's protocol, the state lock |

#[cfg(not(any(loom, shuttle)))]
mod imp {
    pub(crate) use core::sync::atomic::{
        AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence,
    };
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};

    /// Locks the mutex if it is free.
    #[inline]
    pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
        mutex.try_lock()
    }

    /// Unlocks a mutex and hands it to a thread that sleeps for it, if there is one.
    pub(crate) fn unlock_fair<T>(guard: MutexGuard<'_, T>) {
        MutexGuard::unlock_fair(guard);
    }

    /// Spins until `done` returns true, `limit` times at most. Returns whether it did.
    pub(crate) fn spin_until(limit: u32, mut done: impl FnMut() -> bool) -> bool {
        (0..limit).any(|_| {
            core::hint::spin_loop();
            done()
        })
    }

    /// Lets other threads have the processor.
    pub(crate) fn yield_now() {
        std::thread::yield_now();
    }

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
mod imp {
    #[cfg(loom)]
    use loom::sync as model;
    #[cfg(shuttle)]
    use shuttle::sync as model;

    #[cfg(loom)]
    pub use super::ordered::AtomicU64;
    pub(crate) use model::MutexGuard;
    #[cfg(shuttle)]
    pub use model::atomic::AtomicU64;
    pub use model::atomic::Ordering;
    pub(crate) use model::atomic::{AtomicBool, AtomicU8, AtomicU32, fence};

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

    /// As the real one, the checkers' `try_lock` fails only if the lock is held.
    pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
        mutex.0.try_lock().ok()
    }

    /// The checkers' mutexes are not handed over: the schedule decides which thread is next.
    pub(crate) fn unlock_fair<T>(guard: MutexGuard<'_, T>) {
        drop(guard);
    }

    /// Does not spin: a checker takes a spinning thread for one that makes no progress, and it
    /// explores the other threads' steps anyway.
    pub(crate) fn spin_until(_looks: u32, _done: impl FnMut() -> bool) -> bool {
        true
    }

    pub(crate) fn yield_now() {}

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

pub(crate) use imp::*;

/// Tells the processor that the memory at `at` will be used soon. Any address may be passed, also
/// one that is not mapped.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, shuttle))))]
    // SAFETY: every x86-64 processor has it; a prefetch of an address that is not mapped does
    // nothing.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, shuttle)))))]
    let _ = at;
}

/// A value in cache lines of its own. It keeps data that one thread writes often away from data
/// that others read often (false sharing). 128 bytes: x86-64 processors fetch lines of 64 bytes in
/// pairs, and some AArch64 processors have lines of 128.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct CachePadded<T>(pub(crate) T);

impl<T> core::ops::Deref for CachePadded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}
#[cfg(any(loom, shuttle))]
pub use imp::{AtomicU64, Ordering};

#[cfg(loom)]
#[allow(missing_docs)] // core's methods
mod ordered {
    use loom::sync::atomic::{self, Ordering, fence};

    /// loom's `AtomicU64` with the single total order of `SeqCst` operations. loom treats a
    /// `SeqCst` access as an acquire-release one, and so reports outcomes that cannot happen; its
    /// `SeqCst` fences are exact. A fence in front of each `SeqCst` load gives what C11 promises
    /// for the pair "store mine, then load yours", which is all that this crate needs of `SeqCst`.
    #[derive(Debug, Default)]
    pub struct AtomicU64(atomic::AtomicU64);

    impl AtomicU64 {
        pub fn new(value: u64) -> Self {
            Self(atomic::AtomicU64::new(value))
        }

        pub fn load(&self, ordering: Ordering) -> u64 {
            if ordering == Ordering::SeqCst {
                fence(Ordering::SeqCst);
            }
            self.0.load(ordering)
        }

        pub fn store(&self, value: u64, ordering: Ordering) {
            self.0.store(value, ordering);
        }

        pub fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
            self.0.fetch_add(value, ordering)
        }

        pub fn fetch_sub(&self, value: u64, ordering: Ordering) -> u64 {
            self.0.fetch_sub(value, ordering)
        }

        pub fn fetch_or(&self, value: u64, ordering: Ordering) -> u64 {
            self.0.fetch_or(value, ordering)
        }

        pub fn fetch_and(&self, value: u64, ordering: Ordering) -> u64 {
            self.0.fetch_and(value, ordering)
        }

        pub fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange_weak(current, new, success, failure)
        }
    }
}
