// SPDX-License-Identifier: MIT OR Apache-2.0
//! A sleep on the host's clock that anybody can end early.
//!
//! The sleep itself knows no stop flag: whoever awaits it polls the sleep and the reason to end it in one future, under
//! one waker (see `cleaner`). A timer that fires early, late, twice or never is harmless: each poll asks the clock.

use std::task::{Context, Poll, Waker};

/// The clock of the context that a cleaner runs in, and its timers. Used from that context alone.
pub trait Clock: Send + Sync {
    /// Now, in ns since some fixed moment. Stands still while the clock is paused.
    fn now_ns(&self) -> u64;

    /// Calls `waker` once when the clock reaches `deadline_ns`. Dropping the timer deletes it; afterwards the clock
    /// calls nothing.
    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer>;
}

/// An armed timer; deleted by its drop.
pub trait Timer: Send {}

/// A sleep until a deadline.
pub struct Sleep<'a> {
    clock: &'a dyn Clock,
    deadline_ns: u64,
    timer: Option<Box<dyn Timer>>,
}

impl<'a> Sleep<'a> {
    /// A sleep of `duration_ns` from `start_ns`, on `clock`.
    pub fn new(clock: &'a dyn Clock, start_ns: u64, duration_ns: u64) -> Self {
        Self {
            clock,
            // i64::MAX ns (292 years) is the furthest deadline that every host's timer can express.
            deadline_ns: start_ns.saturating_add(duration_ns).min(i64::MAX as u64),
            timer: None,
        }
    }

    /// Ready once the deadline is reached; the timer is deleted then. Never at the first poll: however short the sleep, its
    /// context gets to do something else.
    pub fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let slept = self.timer.take().is_some();
        if slept && self.clock.now_ns() >= self.deadline_ns {
            return Poll::Ready(());
        }
        self.timer = Some(self.clock.arm(self.deadline_ns, cx.waker().clone()));
        Poll::Pending
    }
}
