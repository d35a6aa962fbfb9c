// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host: where the library's waits happen and where its cleaners run.
//!
//! The inside of the library is `async`; [`block_on`] is the driver that polls it on whatever the host has. A wait
//! never blocks the host in a way that it did not offer.

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
    /// The coroutine host's own number for one of its contexts; handed through to its `co_spawn`.
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

/// The body of a cleaner: given the clock of its context, a future to run to its end there.
pub type Task = Box<dyn FnOnce(Arc<dyn Clock>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The host's own coroutine mutex, in place of the built-in state lock. Called in coroutines only, in pairs from the
/// same one.
pub trait HostLock: Send + Sync {
    /// Waits for the lock, in the host's way.
    fn lock(&self);
    /// Lets it go.
    fn unlock(&self);
}

/// Ends a task without its context's help, so that nobody who waits for its end depends on that context's progress.
pub trait CancelHandle: Send + Sync {
    /// Drops the task's future now, in the calling thread; or, while the future is being polled in another thread, right after that
    /// poll. Any thread.
    fn cancel(&self);
}

/// What the library needs from its host. Every method may be called from any thread with no lock of the library
/// held, and returns in the caller's own context.
pub trait Host: Send + Sync {
    /// Who calls: the current coroutine, else the current thread (or its leader).
    fn owner(&self) -> Owner;

    /// How the caller sleeps. `turn`: the contexts whose progress ends the wait (those of a stopped cleaner), for a host whose tasks
    /// cannot be ended from outside.
    fn sleeper(&self, contexts: &[Context]) -> Box<dyn Sleeper>;

    /// Has `task` run in `context`, at once inside the call or later. An error: it never runs. On success, a way to end it
    /// from outside, where the host has one.
    fn spawn(&self, context: &Context, task: Task) -> Result<Option<Box<dyn CancelHandle>>, Errno>;

    /// Whether `context` is one that this host can run a cleaner in; else why not.
    fn check_context(&self, context: &Context) -> Result<(), Errno>;

    /// The host's own mutex, if it brought one.
    fn own_lock(&self) -> Option<&dyn HostLock> {
        None
    }

    /// Whether the caller is plain code on a coroutine host: it cannot take the host's lock or yield, only poll.
    fn in_plain_code(&self) -> bool {
        false
    }

    /// Who a cleaner that runs now is, if that is told apart from everybody else in its context.
    fn cleaner_owner(&self) -> Option<Owner> {
        Some(self.owner())
    }

    /// Whether cleaners that were started in the process `pid` are gone for good: the child of a `fork` does not have
    /// the background thread of its parent.
    fn lost_in_fork(&self, pid: u32) -> bool {
        let _ = pid;
        false
    }

    /// Dispatches the caller's own loop until `done`, if this is a place to do so; false if it is not.
    fn dispatch_until(&self, contexts: &[Context], done: &dyn Fn() -> bool) -> bool {
        let _ = (contexts, done);
        false
    }

    /// Makes every [`Host::dispatch_until`] look at its condition again.
    fn kick(&self, contexts: &[Context]) {
        let _ = contexts;
    }

    /// Runs `entry` to its end, in a coroutine where the host has them.
    fn run(&self, entry: Box<dyn FnOnce() + Send>) -> Result<(), Errno> {
        entry();
        Ok(())
    }

    /// Keeps alive what this host's cleaners run on, until dropped; dropping it may wait for them to end. An error: they
    /// cannot run now.
    fn lease(&self) -> Result<Option<Box<dyn std::any::Any + Send + Sync>>, Errno> {
        Ok(None)
    }
}

/// Runs `future` to its end in the caller's own context, waiting in the host's way. `turn`: see [`Host::sleeper`].
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

/// What `poll_until_done` waits on where no loop is to be dispatched.
#[derive(Default)]
pub struct Event {
    waiting: Mutex<WaitList<()>>,
}

impl Event {
    /// Has every waiter look at its condition again. Any thread.
    pub fn notify(&self) {
        let wakes = self.waiting.lock().notify(|()| true);
        wakes.wake();
    }
}

/// Waits until `done`, dispatching the caller's own loop where there is one. `done` is looked at again after each
/// dispatch and after each [`Event::notify`].
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
        // Enrolled before the look: a notification in between is not lost.
        let waiter = event.waiting.lock().register(());
        if done() {
            return;
        }
        block_on(host, contexts, waiter);
    }
}

/// A name for the calling thread that no other living thread has. It is not kept beyond the thread's life.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn thread_owner() -> Owner {
    thread_local! {
        static ANCHOR: u8 = const { 0 };
    }
    Owner(ANCHOR.with(|anchor| std::ptr::from_ref(anchor) as usize))
}
