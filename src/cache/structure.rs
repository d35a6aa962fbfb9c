// SPDX-License-Identifier: MIT OR Apache-2.0
//! The structure lock: a mutex that is held for a few µs at a time.
//!
//! Some operations (cleaning, discarding a range) take it again and again. A plain mutex would
//! starve its waiters then: the thread that has just unlocked it and locks it again is faster than
//! any thread that has to be woken, and `parking_lot` forces a handover only every half a
//! millisecond on average. So a thread that finds the lock held counts itself as waiting. A
//! repeated user looks at that count whenever it unlocks, and lets a waiter go first. A thread that
//! finds the lock free pays nothing for this.
//!
//! A waiter spins before it sleeps, normally for longer than anybody holds the lock, because waking
//! a thread takes tens of µs.

use crate::primitives::{
    AtomicU32, Mutex, MutexGuard, Ordering, spin_until, try_lock, unlock_fair, yield_now,
};

/// How often a waiter tries the lock before it sleeps: this takes 10 µs to 50 µs, depending on how
/// long the processor's pause instruction takes.
const SPIN_LIMIT: u32 = 1000;
/// How often a repeated user checks whether a waiter has taken the lock. It then goes on: the
/// waiter's thread may not be running.
const HANDOVER_SPIN_LIMIT: u32 = 100;

/// See the module.
#[derive(Default)]
pub(super) struct StructureLock<T> {
    mutex: Mutex<T>,
    /// How many threads wait for the lock.
    waiting: AtomicU32,
    /// How many threads have got the lock after waiting; changed only under the lock.
    handovers: AtomicU32,
}

impl<T> StructureLock<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            mutex: Mutex::new(value),
            waiting: AtomicU32::new(0),
            handovers: AtomicU32::new(0),
        }
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        try_lock(&self.mutex).unwrap_or_else(|| self.wait())
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) -> MutexGuard<'_, T> {
        // Relaxed: the count is only a hint.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let mut taken = None;
        let _ = spin_until(SPIN_LIMIT, || {
            taken = try_lock(&self.mutex);
            taken.is_some()
        });
        let guard = taken.unwrap_or_else(|| self.mutex.lock());
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let handovers = self.handovers.load(Ordering::Relaxed).wrapping_add(1);
        self.handovers.store(handovers, Ordering::Relaxed);
        guard
    }

    /// Unlocks. If threads wait for the lock, gives one of them time to take it before the caller
    /// returns, and so before the caller can lock it again.
    #[inline]
    pub(super) fn yield_to_waiters(&self, guard: MutexGuard<'_, T>) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let handovers = self.handovers.load(Ordering::Relaxed);
        unlock_fair(guard);
        let came = || self.handovers.load(Ordering::Relaxed) != handovers;
        if !spin_until(HANDOVER_SPIN_LIMIT, came) {
            yield_now();
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// Waiters spin or sleep, and some users yield to them. The lock is exclusive, and every thread
    /// finishes.
    #[test]
    fn yielding_lock_is_exclusive_and_every_thread_finishes() {
        const ROUNDS: u64 = 20_000;
        let lock = StructureLock::new((0_u64, 0_u64));
        std::thread::scope(|scope| {
            for repeated_user in [true, true, false, false] {
                let lock = &lock;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let mut both = lock.lock();
                        both.0 += 1;
                        if round % 4096 == 0 {
                            // Longer than a waiter spins, so that waiters sleep.
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                        both.1 += 1;
                        assert_eq!(both.0, both.1);
                        if repeated_user {
                            lock.yield_to_waiters(both);
                        }
                    }
                });
            }
        });
        assert_eq!(*lock.lock(), (4 * ROUNDS, 4 * ROUNDS));
        assert_eq!(lock.waiting.load(Ordering::Relaxed), 0);
    }
}
