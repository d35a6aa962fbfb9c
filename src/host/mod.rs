// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host: how the library waits, and where its cleaners run.
//!
//! Inside, the library is `async`. [`block_on`] polls a future in the caller's own context and puts
//! the caller to sleep by the means that the host offers. No wait blocks the host in another way.

#[cfg(not(any(loom, shuttle)))]
pub mod coroutine;
#[cfg(not(any(loom, shuttle)))]
pub mod event_loop;
pub mod executor;
#[cfg(not(any(loom, shuttle)))]
pub mod threads;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};

use crate::error::Errno;
use crate::primitives::Mutex;
use crate::sync::lock::Owner;
use crate::sync::parker::{LazyParker, Sleeper};
use crate::sync::sleep::Clock;
use crate::sync::wait_list::WaitList;

/// Where a cleaner runs.
#[derive(Clone)]
pub enum Context {
    /// Thread host: the process's background thread. Coroutine host: the caller's current context.
    Default,
    /// An event loop of the library.
    #[cfg(not(any(loom, shuttle)))]
    Loop(Arc<event_loop::EventLoop>),
    /// The coroutine host's own number for one of its contexts; passed unchanged to its `co_spawn`.
    Opaque(usize),
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Default, Self::Default) => true,
            #[cfg(not(any(loom, shuttle)))]
            (Self::Loop(a), Self::Loop(b)) => Arc::ptr_eq(a, b),
            (Self::Opaque(a), Self::Opaque(b)) => a == b,
            _ => false,
        }
    }
}

/// The body of a cleaner: takes the clock of its context, and returns the future to be run there to
/// its end.
pub type Task = Box<dyn FnOnce(Arc<dyn Clock>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The host's own coroutine mutex, which replaces the built-in state lock. Only coroutines call it,
/// and the coroutine that locks it also unlocks it.
pub trait HostLock: Send + Sync {
    /// Takes the lock; waits as the host's coroutines wait.
    fn lock(&self);
    /// Releases the lock.
    fn unlock(&self);
}

/// Ends a task from outside its context. A caller that waits for the task's end then does not
/// depend on that context making progress.
pub trait CancelHandle: Send + Sync {
    /// Drops the task's future inside the call, in the calling thread. If the future is being
    /// polled just now, the polling thread drops it right after that poll. Any thread.
    fn cancel(&self);
}

/// What the library needs from its host. Every method may be called from any thread, with no
/// internal lock held, and returns in the caller's own context.
pub trait Host: Send + Sync {
    /// Identifies the caller: the current coroutine, else the current thread (or its leader).
    fn owner(&self) -> Owner;

    /// Makes the sleeper of the caller. `contexts`: the contexts whose progress ends the wait
    /// (those of a stopped cleaner's instances), for a host whose tasks cannot be ended from
    /// outside.
    fn sleeper(&self, contexts: &[Context]) -> Box<dyn Sleeper>;

    /// Runs `task` in `context`, inside the call or later. On success, returns the means to end the
    /// task from outside, if the host has any. On an error the task never runs.
    fn spawn(&self, context: &Context, task: Task) -> Result<Option<Box<dyn CancelHandle>>, Errno>;

    /// Checks that this host can run a cleaner in `context`. An error tells why not.
    fn check_context(&self, context: &Context) -> Result<(), Errno>;

    /// The host's own mutex, if it has one.
    fn own_lock(&self) -> Option<&dyn HostLock> {
        None
    }

    /// Whether the caller is plain code on a coroutine host. Plain code cannot take the host's own
    /// lock and cannot yield; it can only poll.
    fn in_plain_code(&self) -> bool {
        false
    }

    /// Identifies the cleaner that is the caller. `None`: on this host, a cleaner has the same
    /// owner as other code in its context.
    fn cleaner_owner(&self) -> Option<Owner> {
        Some(self.owner())
    }

    /// Whether cleaners that were started in the process `pid` can never run again: the child of a
    /// `fork` does not have its parent's background thread.
    fn lost_in_fork(&self, pid: u32) -> bool {
        let _ = pid;
        false
    }

    /// Dispatches the caller's own loop until `done` returns true. Returns false, without
    /// dispatching, if the caller has no loop to dispatch.
    fn dispatch_until(&self, contexts: &[Context], done: &dyn Fn() -> bool) -> bool {
        let _ = (contexts, done);
        false
    }

    /// Makes every [`Host::dispatch_until`] in these contexts check its condition again.
    fn kick(&self, contexts: &[Context]) {
        let _ = contexts;
    }

    /// Runs `entry` to its end; in a coroutine if the host has coroutines.
    fn run(&self, entry: Box<dyn FnOnce() + Send>) -> Result<(), Errno> {
        entry();
        Ok(())
    }

    /// Returns a lease that keeps alive what this host's cleaners run on, such as a thread, until
    /// it is dropped. An error: cleaners cannot run now.
    fn lease(&self) -> Result<Option<Box<dyn std::any::Any + Send + Sync>>, Errno> {
        Ok(None)
    }
}

/// Runs `future` to its end in the caller's own context, and waits as the host lets its caller
/// wait. `contexts`: see [`Host::sleeper`].
pub fn block_on<F: Future>(host: &dyn Host, contexts: &[Context], future: F) -> F::Output {
    let mut future = pin!(future);
    let sleeper = || host.sleeper(contexts);
    let parker = LazyParker::new(&sleeper);
    loop {
        let polled =
            parker.with_waker(|waker| future.as_mut().poll(&mut TaskContext::from_waker(waker)));
        match polled {
            Poll::Ready(output) => return output,
            Poll::Pending => parker.parker().park(),
        }
    }
}

/// What [`poll_until_done`] waits on if the caller has no loop to dispatch.
#[derive(Default)]
pub struct Event {
    waiting: Mutex<WaitList>,
}

impl Event {
    /// Makes every waiter check its condition again. Any thread.
    pub fn notify(&self) {
        let wake_list = self.waiting.lock().notify_all();
        wake_list.wake();
    }
}

/// Waits until `done` returns true, and dispatches the caller's own loop meanwhile if there is one.
/// `done` is called again after each dispatch and after each [`Event::notify`].
pub fn poll_until_done(
    host: &dyn Host,
    contexts: &[Context],
    event: &Event,
    done: &dyn Fn() -> bool,
) {
    if host.dispatch_until(contexts, done) {
        return;
    }
    loop {
        // Registered before the condition is checked: a notification in between is not lost.
        let waiter = event.waiting.lock().register();
        if done() {
            return;
        }
        block_on(host, contexts, waiter);
    }
}

/// Identifies the calling thread: no other living thread has the same number. Must not be kept
/// longer than the thread lives.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn thread_owner() -> Owner {
    thread_local! {
        static ANCHOR: u8 = const { 0 };
    }
    Owner(ANCHOR.with(|anchor| std::ptr::from_ref(anchor) as usize))
}
