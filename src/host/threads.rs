// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread host: a wait parks the operating system thread; one background thread runs all
//! cleaners of the process.
//!
//! The background thread is created when the first cleaner starts. It is joined when the last
//! cleaner that was started is destroyed, so nothing of the library runs once every handle is
//! closed.
//!
//! The thread dispatches an event loop of the library's own kind. While it has nothing to run, it
//! waits in the kernel for the loop's descriptor.
//!
//! `fork`: the child has no background thread. The thread holds a gate while it dispatches, and
//! `fork` holds it while it forks. So at the moment of a `fork` the thread holds no lock and waits
//! for none. The child then finds that its cleaners are lost: a stop returns without waiting, and a
//! start creates a new thread.

use std::any::Any;
use std::cell::UnsafeCell;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::event_loop::EventLoop;
use super::{CancelHandle, Context, Host, Task, thread_owner};
use crate::error::Errno;
use crate::primitives::{AtomicBool, Ordering};
use crate::sync::lock::Owner;
use crate::sync::parker::{Sleeper, ThreadSleeper};

/// The thread host. All values of this type share one background thread.
#[derive(Default)]
pub struct ThreadHost;

impl ThreadHost {
    /// A handle to the process-wide thread host.
    pub fn shared() -> Arc<dyn Host> {
        Arc::new(Self)
    }
}

impl Host for ThreadHost {
    fn owner(&self) -> Owner {
        thread_owner()
    }

    fn sleeper(&self, _contexts: &[Context]) -> Box<dyn Sleeper> {
        Box::new(ThreadSleeper::new())
    }

    fn spawn(&self, context: &Context, task: Task) -> Result<Option<Box<dyn CancelHandle>>, Errno> {
        self.check_context(context)?;
        let service = Service::get()?;
        Ok(Some(service.event_loop.spawn(task)))
    }

    fn check_context(&self, context: &Context) -> Result<(), Errno> {
        match context {
            Context::Default => Ok(()),
            Context::Loop(_) | Context::Opaque(_) => Err(Errno::INVAL),
        }
    }

    fn lost_in_fork(&self, pid: u32) -> bool {
        pid != std::process::id()
    }

    fn lease(&self) -> Result<Option<Box<dyn Any + Send + Sync>>, Errno> {
        Ok(Some(Box::new(Service::get()?)))
    }
}

static CURRENT: Mutex<Weak<Service>> = Mutex::new(Weak::new());

/// Held while the background thread dispatches, and across a `fork`; see the module.
static FORK_GATE: ForkGate = ForkGate(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));

/// A mutex that may be held across a `fork`. `parking_lot`'s may not: it keeps its waiters in a
/// process-wide table, in which a child would still find the background thread that it does not
/// have.
struct ForkGate(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a pthread mutex is made to be used from several threads.
unsafe impl Sync for ForkGate {}

impl ForkGate {
    fn lock(&self) {
        // SAFETY: statically initialised and never destroyed. Locking a default mutex reports no
        // error.
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    /// # Safety
    /// The calling thread holds the gate, or is the child's copy of the thread that held it at the
    /// fork.
    unsafe fn unlock(&self) {
        // SAFETY: statically initialised and never destroyed; held, as the caller promised.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

/// The background thread and its event loop.
struct Service {
    event_loop: Arc<EventLoop>,
    finish: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    pid: u32,
}

impl Service {
    /// The process's service; starts one if there is none, or if a fork left it behind.
    fn get() -> Result<Arc<Self>, Errno> {
        let mut current = CURRENT.lock();
        if let Some(service) = current.upgrade().filter(|service| !service.is_lost()) {
            return Ok(service);
        }
        register_fork_handlers();
        let event_loop = EventLoop::without_home().map_err(|error| error.errno())?;
        let finish = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new()
            .name("qcow2cache".into())
            .spawn({
                let (event_loop, finish) = (event_loop.clone(), finish.clone());
                move || run(&event_loop, &finish)
            })
            .map_err(|error| Errno::from_code(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        let service = Arc::new(Self {
            event_loop,
            finish,
            thread: Some(thread),
            pid: std::process::id(),
        });
        *current = Arc::downgrade(&service);
        Ok(service)
    }

    /// Whether this is the child of a fork, which does not have the thread.
    fn is_lost(&self) -> bool {
        self.pid != std::process::id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if self.is_lost() {
            // The child of a fork does not have the thread, so it cannot join it.
            std::mem::forget(thread);
            return;
        }
        // Release: pairs with the acquire in `run`.
        self.finish.store(true, Ordering::Release);
        self.event_loop.kick();
        // Panics of the tasks are caught, and nothing else in the thread panics. If the join fails,
        // there is nothing left to do.
        let _ = thread.join();
    }
}

/// The background thread. While it does not hold the gate, it waits and holds no lock; a `fork` can
/// happen only then.
fn run(event_loop: &EventLoop, finish: &AtomicBool) {
    event_loop.set_home_thread();
    let mut timeout = None;
    loop {
        event_loop.wait(timeout);
        FORK_GATE.lock();
        let dispatched = event_loop.dispatch();
        debug_assert!(dispatched.is_ok(), "this thread is the loop's home");
        timeout = event_loop.timeout_ns();
        let idle = !event_loop.executor().has_tasks();
        // SAFETY: this thread locked it above, in this round.
        unsafe { FORK_GATE.unlock() };
        if idle && finish.load(Ordering::Acquire) {
            return;
        }
    }
}

fn register_fork_handlers() {
    static ONCE: OnceCell<()> = OnceCell::new();
    extern "C" fn prepare() {
        FORK_GATE.lock();
    }
    extern "C" fn release() {
        // SAFETY: `prepare` locked it in this thread, which is the thread that forked, and the only
        // thread in the child.
        unsafe { FORK_GATE.unlock() };
    }
    ONCE.get_or_init(|| {
        // A failure (ENOMEM) is ignored: a fork is then as unsafe as without the handlers.
        // SAFETY: the handlers live as long as the library, and only take and release a lock.
        unsafe { libc::pthread_atfork(Some(prepare), Some(release), Some(release)) };
    });
}
