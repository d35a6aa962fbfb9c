// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread host: a wait parks the operating system thread; one background thread runs all
//! cleaners of the process.
//!
//! The background thread is created when the first cleaner starts. It stays for a second after the
//! last cleaner that was started is destroyed: a program that opens and closes one image after the
//! other does not make a thread for each.
//!
//! *Unloading*: once every handle is closed, the thread touches nothing of the program's, but its
//! code must stay. The shared library is linked with `-z nodelete`. Where the static library is
//! part of a module that is unloaded, the C library keeps the module as long as one of its threads
//! has a destructor of that module to run; the background thread has one (`STAYS_LOADED`).
//!
//! The thread dispatches an event loop of the library's own kind. While it has nothing to run, it
//! waits in the kernel for the loop's descriptor. A start polls the cleaner's task once in the
//! caller's thread, as far as its first sleep; the thread is not woken for a timer that is due
//! later than it wakes anyway. So a cleaner that is stopped before its first pass never wakes it.
//!
//! `fork`: the child has no background thread. The thread holds a gate while it dispatches, and
//! `fork` holds it while it forks. So at the moment of a `fork` the thread holds no lock and waits
//! for none. The child then finds that its cleaners are lost: a stop returns without waiting, and a
//! start creates a new thread.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::ControlFlow;
use std::sync::Arc;

use once_cell::sync::OnceCell;
use parking_lot::{Mutex, MutexGuard};

use super::event_loop::EventLoop;
use super::executor::monotonic_ns;
use super::{CancelHandle, Context, Host, Task, thread_owner};
use crate::error::Errno;
use crate::sync::lock::Owner;
use crate::sync::parker::{Sleeper, ThreadSleeper};

/// How long the background thread stays when it is not needed any more, in ns.
const LINGER_NS: u64 = 1_000_000_000;

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
        let service = Service::get(&mut CURRENT.lock())?;
        Ok(Some(service.event_loop.spawn_polled(task)))
    }

    fn check_context(&self, context: &Context) -> Result<(), Errno> {
        match context {
            Context::Default => Ok(()),
            Context::Loop(_) | Context::Opaque(_) => Err(Errno::INVAL),
        }
    }

    /// A task is polled first in the thread that starts it, and then in the background thread,
    /// where nothing else runs.
    fn cleaner_owner(&self) -> Option<Owner> {
        None
    }

    fn lost_in_fork(&self, pid: u32) -> bool {
        pid != std::process::id()
    }

    fn lease(&self) -> Result<Option<Box<dyn Any + Send + Sync>>, Errno> {
        Ok(Some(Box::new(Lease::new()?)))
    }
}

/// The process's service, while its thread runs.
static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

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

/// The background thread's event loop.
struct Service {
    event_loop: Arc<EventLoop>,
    pid: u32,
}

struct Current {
    service: Arc<Service>,
    leases: usize,
    /// When the last lease was given back, in ns of the monotonic clock.
    idle_since: u64,
}

impl Service {
    /// The process's service; starts one if there is none, or if a fork left it behind.
    fn get(current: &mut MutexGuard<'_, Option<Current>>) -> Result<Arc<Self>, Errno> {
        if let Some(found) = current.as_ref().filter(|found| !found.service.is_lost()) {
            return Ok(found.service.clone());
        }
        register_fork_handlers();
        let service = Arc::new(Self {
            event_loop: EventLoop::without_home().map_err(|error| error.errno())?,
            pid: std::process::id(),
        });
        // Detached: nobody waits for its end.
        let _thread = std::thread::Builder::new()
            .name("qcow2cache".into())
            .spawn({
                let service = service.clone();
                move || service.run()
            })
            .map_err(|error| Errno::from_code(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        **current = Some(Current {
            service: service.clone(),
            leases: 0,
            idle_since: monotonic_ns(),
        });
        Ok(service)
    }

    /// Whether this is the child of a fork, which does not have the thread.
    fn is_lost(&self) -> bool {
        self.pid != std::process::id()
    }

    /// The background thread. While it does not hold the gate, it waits and holds no lock; a `fork`
    /// can happen only then.
    fn run(&self) {
        STAYS_LOADED.with(|_| ());
        self.event_loop.set_home_thread();
        let mut next = ControlFlow::Continue(Some(0));
        while let ControlFlow::Continue(timeout_ns) = next {
            self.event_loop.wait(timeout_ns);
            FORK_GATE.lock();
            let dispatched = self.event_loop.dispatch();
            debug_assert!(dispatched.is_ok(), "this thread is the loop's home");
            next = self.next_sleep();
            // SAFETY: this thread locked it above, in this round.
            unsafe { FORK_GATE.unlock() };
        }
    }

    /// ns until the thread has to look again, if it is not notified before; `None`: no limit.
    /// `Break`: it is not needed any more, and the process has no service from now on.
    fn next_sleep(&self) -> ControlFlow<(), Option<u64>> {
        let mut current = CURRENT.lock();
        let executor = self.event_loop.executor();
        let unused = current.as_ref().filter(|current| current.leases == 0);
        let Some(idle_since) = unused.map(|current| current.idle_since) else {
            return ControlFlow::Continue(executor.begin_sleep(u64::MAX));
        };
        let (now, end) = (monotonic_ns(), idle_since.saturating_add(LINGER_NS));
        if now < end || executor.has_tasks() {
            // Nobody notifies of the end of a task that is not the thread's own doing.
            let limit = end.max(now.saturating_add(LINGER_NS / 10));
            return ControlFlow::Continue(executor.begin_sleep(limit));
        }
        let ended = current.take();
        drop(current);
        // Without the lock, though the caller keeps the service.
        drop(ended);
        ControlFlow::Break(())
    }
}

/// Keeps the background thread.
struct Lease(Arc<Service>);

impl Lease {
    fn new() -> Result<Self, Errno> {
        let mut current = CURRENT.lock();
        let service = Service::get(&mut current)?;
        if let Some(current) = current.as_mut() {
            current.leases += 1;
        }
        Ok(Self(service))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.0.is_lost() {
            // In the child of a fork.
            return;
        }
        let sleeps_too_long = {
            let mut current = CURRENT.lock();
            let Some(current) = (current.as_mut()).filter(|now| Arc::ptr_eq(&now.service, &self.0))
            else {
                return;
            };
            current.leases -= 1;
            if current.leases > 0 {
                return;
            }
            current.idle_since = monotonic_ns();
            self.0.event_loop.executor().turner_wakes() > current.idle_since + LINGER_NS
        };
        if sleeps_too_long {
            self.0.event_loop.kick();
        }
    }
}

/// Its destructor does nothing. A thread that has it to run keeps the library loaded.
struct StaysLoaded;

impl Drop for StaysLoaded {
    fn drop(&mut self) {}
}

thread_local! {
    static STAYS_LOADED: StaysLoaded = const { StaysLoaded };
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
