// SPDX-License-Identifier: MIT OR Apache-2.0
//! The coroutine host. A coroutine that has to wait yields and is woken exactly once. Plain code
//! polls instead.
//!
//! | caller | sleeps in | is woken by |
//! |---|---|---|
//! | coroutine | `yield_self` | `wake`, once, after it announced the sleep (see `sync::parker`) |
//! | plain code | `poll_while`, until the wait ends | `kick` |
//!
//! No thread-specific state is kept across a call into the host, since a coroutine may continue on
//! another thread.

use std::sync::Arc;
use std::task::Waker;

use super::{CancelHandle, Context, Host, HostLock, Task, block_on};
use crate::error::Errno;
use crate::primitives::{AtomicBool, Ordering};
use crate::sync::lock::Owner;
use crate::sync::parker::Sleeper;
use crate::sync::sleep::{Clock, Timer};

/// What a host with stackful coroutines offers. The library holds no internal lock in these calls.
pub trait Coroutines: Send + Sync {
    /// Whether the caller runs in a coroutine, not in plain code of a thread.
    fn in_coroutine(&self) -> bool;
    /// Identifies the current coroutine; in plain code, the thread's leader. Not 0.
    fn current(&self) -> usize;
    /// Suspends the current coroutine until it is woken.
    fn yield_self(&self);
    /// Resumes a coroutine that announced that it is about to yield. Any thread; if the coroutine
    /// has not yielded yet, it is resumed once it has.
    fn wake(&self, coroutine: usize);
    /// Runs `entry` in a new coroutine in `context` (0: the caller's), inside the call or later.
    fn spawn(&self, context: usize, entry: Box<dyn FnOnce() + Send>) -> Result<(), Errno>;
    /// Whether the host has its own mutex; `lock` and `unlock` are called only if it has.
    fn has_lock(&self) -> bool;
    /// Takes the host's own mutex. Called only in a coroutine.
    fn lock(&self);
    /// Releases the host's own mutex. Called in the coroutine that took it.
    fn unlock(&self);
    /// The host's clock, in ns.
    fn now_ns(&self) -> u64;
    /// Makes a timer of the current context that calls `waker` at `deadline_ns`. Dropping it, in
    /// the same context, deletes it.
    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer>;
    /// For plain code: dispatches the caller's context as long as `condition` is true.
    fn poll_while(&self, condition: &dyn Fn() -> bool);
    /// Makes every `poll_while` check its condition again. Any thread.
    fn kick(&self);
}

/// See the module.
#[derive(Clone)]
pub struct CoroutineHost {
    coroutines: Arc<dyn Coroutines>,
}

impl CoroutineHost {
    /// Makes a host that uses `coroutines`.
    pub fn new(coroutines: Arc<dyn Coroutines>) -> Self {
        Self { coroutines }
    }

    fn spawn_in(
        &self,
        context: usize,
        body: impl FnOnce(&CoroutineHost) + Send + 'static,
    ) -> Result<(), Errno> {
        let host = self.clone();
        self.coroutines
            .spawn(context, Box::new(move || body(&host)))
    }
}

impl Host for CoroutineHost {
    fn owner(&self) -> Owner {
        Owner(self.coroutines.current())
    }

    fn sleeper(&self, _contexts: &[Context]) -> Box<dyn Sleeper> {
        let coroutines = self.coroutines.clone();
        if coroutines.in_coroutine() {
            let coroutine = coroutines.current();
            Box::new(CoroutineSleeper {
                coroutines,
                coroutine,
            })
        } else {
            Box::new(PollingSleeper {
                coroutines,
                kicked: AtomicBool::new(false),
            })
        }
    }

    fn spawn(&self, context: &Context, task: Task) -> Result<Option<Box<dyn CancelHandle>>, Errno> {
        let context = match context {
            Context::Default => 0,
            Context::Opaque(context) => *context,
            Context::Loop(_) => return Err(Errno::INVAL),
        };
        self.spawn_in(context, move |host| {
            let future = task(Arc::new(CoroutineClock(host.coroutines.clone())));
            block_on(host, &[], future);
        })?;
        // A coroutine cannot be ended from outside.
        Ok(None)
    }

    fn check_context(&self, context: &Context) -> Result<(), Errno> {
        match context {
            Context::Default | Context::Opaque(_) => Ok(()),
            Context::Loop(_) => Err(Errno::INVAL),
        }
    }

    fn own_lock(&self) -> Option<&dyn HostLock> {
        self.coroutines.has_lock().then_some(self)
    }

    fn in_plain_code(&self) -> bool {
        !self.coroutines.in_coroutine()
    }

    fn dispatch_until(&self, _contexts: &[Context], done: &dyn Fn() -> bool) -> bool {
        if self.coroutines.in_coroutine() {
            return false;
        }
        if !done() {
            self.coroutines.poll_while(&|| !done());
        }
        true
    }

    fn kick(&self, _contexts: &[Context]) {
        self.coroutines.kick();
    }

    fn run(&self, entry: Box<dyn FnOnce() + Send>) -> Result<(), Errno> {
        if self.coroutines.in_coroutine() {
            entry();
            return Ok(());
        }
        let done = Arc::new(AtomicBool::new(false));
        let kicked = Arc::new(AtomicBool::new(false));
        self.spawn_in(0, {
            let (done, kicked) = (done.clone(), kicked.clone());
            move |host| {
                entry();
                // Release: what `entry` did is visible to the poller; pairs with its acquire load.
                done.store(true, Ordering::Release);
                host.coroutines.kick();
                // Release: the kick is over before the poller leaves; pairs with its acquire load.
                kicked.store(true, Ordering::Release);
            }
        })?;
        self.dispatch_until(&[], &|| done.load(Ordering::Acquire));
        wait_for_kick(|| kicked.load(Ordering::Acquire));
        Ok(())
    }
}

impl HostLock for CoroutineHost {
    fn lock(&self) {
        self.coroutines.lock();
    }

    fn unlock(&self) {
        self.coroutines.unlock();
    }
}

struct CoroutineSleeper {
    coroutines: Arc<dyn Coroutines>,
    coroutine: usize,
}

impl Sleeper for CoroutineSleeper {
    fn sleep(&self, notified: &dyn Fn() -> bool) {
        // The sleep is announced (`PARKED`), so any wake from now on belongs to it. One yield gets
        // one wake; the loop is for a host that also resumes coroutines for reasons of its own.
        loop {
            self.coroutines.yield_self();
            if notified() {
                return;
            }
        }
    }

    fn wake(&self) {
        self.coroutines.wake(self.coroutine);
    }
}

/// The sleeper of plain code. `poll_while` may check the condition without a kick, so the caller
/// could return and free the host before the waker has called `kick`. So it returns only after the
/// kick.
struct PollingSleeper {
    coroutines: Arc<dyn Coroutines>,
    kicked: AtomicBool,
}

impl Sleeper for PollingSleeper {
    fn sleep(&self, notified: &dyn Fn() -> bool) {
        while !notified() {
            self.coroutines.poll_while(&|| !notified());
        }
        wait_for_kick(|| self.kicked.swap(false, Ordering::Acquire));
    }

    fn wake(&self) {
        self.coroutines.kick();
        // Release: the kick is over before the sleeper leaves; pairs with the acquire in `sleep`.
        // The host is not used after this.
        self.kicked.store(true, Ordering::Release);
    }
}

/// Spins until the kick is over. That is a short time: the waker has notified already, and `kick`
/// does not wait.
fn wait_for_kick(was_kicked: impl Fn() -> bool) {
    while !was_kicked() {
        std::thread::yield_now();
    }
}

struct CoroutineClock(Arc<dyn Coroutines>);

impl Clock for CoroutineClock {
    fn now_ns(&self) -> u64 {
        self.0.now_ns()
    }

    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer> {
        self.0.arm(deadline_ns, waker)
    }
}
