// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread host: a wait parks the operating system thread; one background thread runs all cleaners of the process.
//!
//! The background thread comes with the first cleaner that starts and is joined when the last cleaner handle is
//! destroyed, so that nothing of the library runs once every handle is closed.
//!
//! The thread turns an event loop of the library's own kind; while it waits, it waits in the kernel for a descriptor.
//!
//! `fork`: the child has no background thread. A gate, held by the thread while it turns and by `fork` while it
//! forks, makes sure that the thread held no lock and waited for none at that moment; the child then finds its cleaners
//! lost, a stop returns at once, and a start makes a new thread.

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

/// The thread host. All of them share one background thread.
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

/// See the module: held while the background thread turns, and across `fork`.
static FORK_GATE: ForkGate = ForkGate(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));

/// A mutex that may be taken across a `fork`, which `parking_lot`'s may not: it keeps its waiters in a table of the process, and
/// a child would find the vanished thread there.
struct ForkGate(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a pthread mutex is made to be used from several threads.
unsafe impl Sync for ForkGate {}

impl ForkGate {
    fn lock(&self) {
        // SAFETY: statically initialised and never destroyed. A default mutex has no error to report here.
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    /// # Safety
    /// The calling thread holds it, or is the child of the thread that held it at the fork.
    unsafe fn unlock(&self) {
        // SAFETY: as in `lock`; the caller's promise.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }
}

struct Service {
    event_loop: Arc<EventLoop>,
    finish: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    pid: u32,
}

impl Service {
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
            // The child of a fork: there is no such thread to join.
            std::mem::forget(thread);
            return;
        }
        // Release pairs with the acquire in `run`.
        self.finish.store(true, Ordering::Release);
        self.event_loop.kick();
        // Nothing in the thread panics outside its tasks, which are caught; a failed join leaves nothing to do.
        let _ = thread.join();
    }
}

/// The background thread. Outside the gate it waits and holds no lock; `fork` can come only then.
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
        // SAFETY: locked by this thread four lines above.
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
        // SAFETY: `prepare` locked it in this thread, which is the one that forked and, in the child, the only one.
        unsafe { FORK_GATE.unlock() };
    }
    ONCE.get_or_init(|| {
        // SAFETY: the handlers live as long as the library, and only take and release a lock. A failure (ENOMEM)
        // leaves fork as unsafe as it is without handlers.
        unsafe { libc::pthread_atfork(Some(prepare), Some(release), Some(release)) };
    });
}
