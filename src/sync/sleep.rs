// SPDX-License-Identifier: MIT OR Apache-2.0
//! A sleep on the host's clock that can be ended early.
//!
//! The sleep itself has no stop flag. The caller polls the sleep and its own reason to end it in
//! one future, with one waker (see `cleaner`). A timer that fires early, late or twice is harmless,
//! since each poll asks the clock; if it never fires, the caller's own reason still ends the sleep.

use std::task::{Context, Poll, Waker};

/// The clock of the context that a cleaner runs in, and its timers. Used only in that context,
/// except that a host that cancels tasks from outside drops their timers in the thread that
/// cancels.
pub trait Clock: Send + Sync {
    /// The time now, in ns since some fixed moment. It does not change while the clock is paused.
    fn now_ns(&self) -> u64;

    /// Calls `waker` once, when the clock reaches `deadline_ns`. Dropping the timer deletes it;
    /// after that the clock does not call the waker.
    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer>;
}

/// An armed timer; dropping it deletes it.
pub trait Timer: Send {}

/// A sleep until a deadline.
pub struct Sleep<'a> {
    clock: &'a dyn Clock,
    deadline_ns: u64,
    timer: Option<Box<dyn Timer>>,
}

impl<'a> Sleep<'a> {
    /// Makes a sleep that ends `duration_ns` after `start_ns`, on `clock`.
    pub fn new(clock: &'a dyn Clock, start_ns: u64, duration_ns: u64) -> Self {
        Self {
            clock,
            // i64::MAX ns (292 years) is the furthest deadline that every host's timer can express.
            deadline_ns: start_ns.saturating_add(duration_ns).min(i64::MAX as u64),
            timer: None,
        }
    }

    /// Ready once the deadline is reached; the timer is deleted then. Never ready at the first
    /// poll, so that its context can run other work, however short the sleep is.
    pub fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let slept = self.timer.take().is_some();
        if slept && self.clock.now_ns() >= self.deadline_ns {
            return Poll::Ready(());
        }
        self.timer = Some(self.clock.arm(self.deadline_ns, cx.waker().clone()));
        Poll::Pending
    }
}
