// SPDX-License-Identifier: MIT OR Apache-2.0
//! The structure lock: a mutex that is held for short, and by those who take it again and again for short (cleaning, discards of a range) only
//! as long as nobody else wants it.
//!
//! A mutex alone starves its waiters there: who gave it back and wants it again is faster than any thread that has to be woken, and
//! `parking_lot` hands it over by force only every half a millisecond on average. So whoever does not get the lock at once says so, and the
//! long user looks at that each time. Nobody pays for it who gets the lock at once.
//!
//! Who waits looks for a while, longer than anybody holds the lock as a rule, before it sleeps: to be woken takes tens of µs.

use crate::primitives::{
    AtomicU32, Mutex, MutexGuard, Ordering, spin_until, try_lock, unlock_fair, yield_now,
};

/// How often one who waits looks before it sleeps: 10 µs to 50 µs, by how long the processor takes for a pause.
const SPIN_LIMIT: u32 = 1000;
/// How often the long user looks whether the one it gave way to has come: the other may have lost its processor.
const HANDOVER_SPIN_LIMIT: u32 = 100;

/// See the module.
#[derive(Default)]
pub(super) struct StructureLock<T> {
    mutex: Mutex<T>,
    /// How many wait.
    waiting: AtomicU32,
    /// How many waited and got it; counted under the lock.
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
        // Relaxed: a hint.
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

    /// Gives the lock back; if somebody waits for it, then so that one of them gets it before the caller does again.
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

    /// Whoever gives way, to a waiter that looks or to one that sleeps: nobody is let in beside another, and all come to their end.
    #[test]
    fn a_lock_that_gives_way_lets_one_in_at_a_time() {
        const ROUNDS: u64 = 20_000;
        let lock = StructureLock::new((0_u64, 0_u64));
        std::thread::scope(|scope| {
            for long_user in [true, true, false, false] {
                let lock = &lock;
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let mut both = lock.lock();
                        both.0 += 1;
                        if round % 4096 == 0 {
                            // Longer than anybody looks.
                            std::thread::sleep(std::time::Duration::from_millis(1));
                        }
                        both.1 += 1;
                        assert_eq!(both.0, both.1);
                        if long_user {
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
