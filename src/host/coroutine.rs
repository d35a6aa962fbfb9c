// SPDX-License-Identifier: MIT OR Apache-2.0
//! The coroutine host: a wait yields the caller's stackful coroutine, which is woken exactly once; plain code polls.
//!
//! | caller | sleeps by | is woken by |
//! |---|---|---|
//! | coroutine | `yield_self` | `wake`, once, only after it announced the sleep (see `sync::parker`) |
//! | plain code | `poll_while` the wait has not ended | `kick` |
//!
//! Nothing of the caller's thread lives across a call into the host: a coroutine may come back on another thread.

use std::sync::Arc;
use std::task::Waker;

use super::{CancelHandle, Context, Host, HostLock, Task, block_on};
use crate::error::Errno;
use crate::primitives::{AtomicBool, Ordering};
use crate::sync::lock::Owner;
use crate::sync::parker::Sleeper;
use crate::sync::sleep::{Clock, Timer};

/// What a host with stackful coroutines offers. No lock of the library is held in any of these calls.
pub trait Coroutines: Send + Sync {
    /// Whether the caller runs in a coroutine, as opposed to plain code of a thread.
    fn in_coroutine(&self) -> bool;
    /// The current coroutine, or the thread's leader in plain code; not 0.
    fn current(&self) -> usize;
    /// Suspends the current coroutine until it is woken.
    fn yield_self(&self);
    /// Resumes a coroutine that announced that it yields. Any thread; deferred if it has not yielded yet.
    fn wake(&self, coroutine: usize);
    /// Runs `entry` in a new coroutine in `context` (0: the caller's), at once or later.
    fn spawn(&self, context: usize, entry: Box<dyn FnOnce() + Send>) -> Result<(), Errno>;
    /// Whether the host brought its own mutex; `lock` and `unlock` are called only then.
    fn has_lock(&self) -> bool;
    /// Takes the host's own mutex. In a coroutine only.
    fn lock(&self);
    /// Lets the host's own mutex go, in the coroutine that took it.
    fn unlock(&self);
    /// The host's clock, ns.
    fn now_ns(&self) -> u64;
    /// A timer of the current context that calls `waker` at `deadline_ns`; deleted by its drop in the same context.
    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer>;
    /// Plain code: dispatches the caller's context until `condition` is false.
    fn poll_while(&self, condition: &dyn Fn() -> bool);
    /// Makes every `poll_while` look at its condition again. Any thread.
    fn kick(&self);
}

/// See the module.
#[derive(Clone)]
pub struct CoroutineHost {
    coroutines: Arc<dyn Coroutines>,
}

impl CoroutineHost {
    /// A host on `coroutines`.
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
        // A coroutine ends by itself alone.
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
                // Release: what the entry did is visible to the poller, whose load acquires.
                done.store(true, Ordering::Release);
                host.coroutines.kick();
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
        // The announcement (PARKED) is made: a wake from now on is this sleep's. One yield is answered by one wake;
        // the loop is for a host that resumes coroutines on its own account.
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

/// Plain code, which may look at its condition for a reason of its own, return, and free the host before the waker has
/// called `kick`. So it leaves only when the kick was made.
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
        // Release: the kick is over before the sleeper leaves. The last touch of the host.
        self.kicked.store(true, Ordering::Release);
    }
}

/// The waker is between its notification and the end of `kick`, which waits for nothing.
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
