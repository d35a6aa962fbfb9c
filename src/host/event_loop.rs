// SPDX-License-Identifier: MIT OR Apache-2.0
//! The built-in event loop: tasks, timers and a kick, turned by its home thread, embeddable in a
//! foreign loop.
//!
//! | call | thread | |
//! |---|---|---|
//! | [`EventLoop::poll`], [`EventLoop::dispatch`] | home | runs timers and tasks |
//! | [`EventLoop::fd`], [`EventLoop::timeout_ns`], [`EventLoop::kick`], the clock | any | |
//!
//! A wait on this host parks the thread. None needs a loop to turn: a cleaner that is asked to stop
//! is taken out of its loop by whoever stops it, so that two threads can stop each other's
//! cleaners, and there is no nested dispatch. Only `poll_until_done` turns the caller's own loop.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use once_cell::sync::OnceCell;

use super::executor::{Executor, ExecutorClock};
use super::{CancelHandle, Context, Host, Task, thread_owner};
use crate::error::{Errno, Error, Result};
use crate::sync::lock::Owner;
use crate::sync::parker::{Sleeper, ThreadSleeper};

/// See the module.
pub struct EventLoop {
    executor: Arc<Executor>,
    wakeup: Arc<OwnedFd>,
    home: OnceCell<Owner>,
}

impl EventLoop {
    /// A loop whose home is the calling thread.
    pub fn new() -> Result<Arc<Self>> {
        let event_loop = Self::without_home()?;
        event_loop.set_home_thread();
        Ok(event_loop)
    }

    /// A loop whose home is the thread that calls [`EventLoop::set_home_thread`] first.
    pub(super) fn without_home() -> Result<Arc<Self>> {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            let error = std::io::Error::last_os_error();
            return Err(Error::new(
                Errno::from_code(error.raw_os_error().unwrap_or(libc::EMFILE)),
                format!("the event loop's eventfd cannot be made: {error}"),
            ));
        }
        // SAFETY: `fd` was opened just above and nobody else owns it.
        let wakeup = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let notified = wakeup.clone();
        Ok(Arc::new(Self {
            executor: Executor::new(Box::new(move || notify(&notified))),
            wakeup,
            home: OnceCell::new(),
        }))
    }

    /// Makes the calling thread the loop's home, if it has none.
    pub(super) fn set_home_thread(&self) {
        self.home.get_or_init(thread_owner);
    }

    /// Waits at most `limit_ns` (`None`: without limit) for something to do, then runs it; returns
    /// how many timers and tasks ran. `EPERM` outside the home thread.
    pub fn poll(&self, limit_ns: Option<u64>) -> core::result::Result<usize, Errno> {
        self.check_home()?;
        let timeout = match (self.executor.timeout_ns(), limit_ns) {
            (Some(next), Some(limit)) => Some(next.min(limit)),
            (next, limit) => next.or(limit),
        };
        self.wait(timeout);
        self.dispatch()
    }

    /// Waits for something to dispatch, at most `timeout_ns`; takes no lock.
    pub(super) fn wait(&self, timeout_ns: Option<u64>) {
        wait_readable(self.fd(), timeout_ns);
    }

    /// Runs what is ready, never waits; returns how many timers and tasks ran. `EPERM` outside the
    /// home thread.
    pub fn dispatch(&self) -> core::result::Result<usize, Errno> {
        self.check_home()?;
        // Drained before the turn: a notification during it leaves the descriptor readable.
        drain(&self.wakeup);
        Ok(self.executor.run_ready())
    }

    /// Readable when there is something to dispatch. Timers are not behind it: see
    /// [`EventLoop::timeout_ns`].
    pub fn fd(&self) -> RawFd {
        self.wakeup.as_raw_fd()
    }

    /// ns until the next dispatch is due; 0 now, `None` not before the descriptor is readable.
    pub fn timeout_ns(&self) -> Option<u64> {
        self.executor.timeout_ns()
    }

    /// Ends a [`EventLoop::poll`] that waits, or the next one.
    pub fn kick(&self) {
        notify(&self.wakeup);
    }

    /// Adds a task, with the loop's clock. Any thread.
    pub(super) fn spawn(&self, task: Task) -> Box<dyn CancelHandle> {
        let clock = Arc::new(ExecutorClock(self.executor.clone()));
        self.executor.spawn(task(clock))
    }

    /// Adds a task, with the loop's clock, and polls it once in the calling thread. Any thread.
    pub(super) fn spawn_polled(&self, task: Task) -> Box<dyn CancelHandle> {
        let clock = Arc::new(ExecutorClock(self.executor.clone()));
        self.executor.spawn_polled(task(clock))
    }

    /// The loop's clock and tasks.
    pub fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    /// Whether the calling thread is the loop's home.
    pub fn is_home(&self) -> bool {
        self.home.get() == Some(&thread_owner())
    }

    fn check_home(&self) -> core::result::Result<(), Errno> {
        if self.is_home() {
            Ok(())
        } else {
            Err(Errno::PERM)
        }
    }
}

fn notify(fd: &OwnedFd) {
    let one = 1_u64;
    // SAFETY: eight readable bytes. EAGAIN means that the counter is full, hence readable, which is
    // all that is wanted.
    unsafe { libc::write(fd.as_raw_fd(), (&raw const one).cast(), 8) };
}

fn drain(fd: &OwnedFd) {
    let mut count = 0_u64;
    // SAFETY: eight writable bytes. EAGAIN means that nothing was there.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) };
}

fn wait_readable(fd: RawFd, timeout_ns: Option<u64>) {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let limit = timeout_ns.map(|ns| libc::timespec {
        tv_sec: libc::time_t::try_from(ns / 1_000_000_000).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::try_from(ns % 1_000_000_000).unwrap_or(0),
    });
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one pollfd, and a timespec that lives to the end of the call. EINTR is as good as a
    // wake-up.
    unsafe { libc::ppoll(&raw mut poll, 1, limit, std::ptr::null()) };
}

/// The event loop host: cleaners are tasks in the loop they are started in.
#[derive(Default)]
pub struct EventLoopHost;

impl EventLoopHost {
    /// A handle to the event loop host.
    pub fn shared() -> Arc<dyn Host> {
        Arc::new(Self)
    }
}

fn home_loop(contexts: &[Context]) -> Option<&Arc<EventLoop>> {
    contexts.iter().find_map(|context| match context {
        Context::Loop(event_loop) if event_loop.is_home() => Some(event_loop),
        _ => None,
    })
}

impl Host for EventLoopHost {
    fn owner(&self) -> Owner {
        thread_owner()
    }

    fn sleeper(&self, _contexts: &[Context]) -> Box<dyn Sleeper> {
        Box::new(ThreadSleeper::new())
    }

    fn spawn(
        &self,
        context: &Context,
        task: Task,
    ) -> core::result::Result<Option<Box<dyn CancelHandle>>, Errno> {
        let Context::Loop(event_loop) = context else {
            return Err(Errno::INVAL);
        };
        Ok(Some(event_loop.spawn(task)))
    }

    fn check_context(&self, context: &Context) -> core::result::Result<(), Errno> {
        match context {
            Context::Loop(_) => Ok(()),
            Context::Default | Context::Opaque(_) => Err(Errno::INVAL),
        }
    }

    /// A task in a loop has the loop's thread for a name, as the plain code around it has.
    fn cleaner_owner(&self) -> Option<Owner> {
        None
    }

    fn dispatch_until(&self, contexts: &[Context], done: &dyn Fn() -> bool) -> bool {
        let Some(event_loop) = home_loop(contexts) else {
            return false;
        };
        turn_until(event_loop, done);
        true
    }

    fn kick(&self, contexts: &[Context]) {
        for context in contexts {
            if let Context::Loop(event_loop) = context {
                event_loop.kick();
            }
        }
    }
}

fn turn_until(event_loop: &EventLoop, done: &dyn Fn() -> bool) {
    while !done() {
        // The only error is a foreign thread, and the callers made sure of the home thread.
        if event_loop.poll(None).is_err() {
            return;
        }
    }
}
