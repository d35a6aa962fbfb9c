// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread host: a wait parks the operating system thread; one background thread runs all cleaners of the process.
//!
//! The background thread comes with the first cleaner that starts and is joined when the last cleaner handle is
//! destroyed, so that nothing of the library runs once every handle is closed.
//!
//! `fork`: the child has no background thread. A gate, held by the thread while it turns and by `fork` while it
//! forks, makes sure that the thread held no lock at that moment; the child then finds its cleaners lost, a stop
//! returns at once, and a start makes a new thread.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use once_cell::sync::OnceCell;
use parking_lot::{Condvar, Mutex, RawMutex, lock_api::RawMutex as _};

use super::executor::{Executor, ExecutorClock};
use super::{Cancel, Context, Host, Task, thread_owner};
use crate::error::Errno;
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

    fn sleeper(&self, _turn: &[Context]) -> Box<dyn Sleeper> {
        Box::new(ThreadSleeper::new())
    }

    fn spawn(&self, context: &Context, task: Task) -> Result<Option<Box<dyn Cancel>>, Errno> {
        self.check_context(context)?;
        let service = Service::get()?;
        let clock = Arc::new(ExecutorClock(service.executor.clone()));
        Ok(Some(service.executor.spawn(task(clock))))
    }

    fn check_context(&self, context: &Context) -> Result<(), Errno> {
        match context {
            Context::Default => Ok(()),
            Context::Loop(_) | Context::Opaque(_) => Err(Errno::INVAL),
        }
    }

    fn lost_cleaners_of(&self, pid: u32) -> bool {
        pid != std::process::id()
    }

    fn lease(&self) -> Option<Box<dyn Any + Send + Sync>> {
        Service::get()
            .ok()
            .map(|service| Box::new(service) as Box<dyn Any + Send + Sync>)
    }
}

static CURRENT: Mutex<Weak<Service>> = Mutex::new(Weak::new());

/// See the module: held while the background thread turns, and across `fork`.
static FORK_GATE: RawMutex = RawMutex::INIT;

#[derive(Default)]
struct Pending {
    /// There is something to turn for.
    turn: bool,
    /// The last lease is gone: the thread ends with its last task.
    finish: bool,
}

#[derive(Default)]
struct Signal {
    pending: Mutex<Pending>,
    condvar: Condvar,
}

impl Signal {
    fn notify(&self, finish: bool) {
        let mut pending = self.pending.lock();
        pending.turn = true;
        pending.finish |= finish;
        self.condvar.notify_one();
    }
}

struct Service {
    executor: Arc<Executor>,
    signal: Arc<Signal>,
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
        let signal = Arc::new(Signal::default());
        let executor = Executor::new(Box::new({
            let signal = signal.clone();
            move || signal.notify(false)
        }));
        let thread = std::thread::Builder::new()
            .name("qcow2cache".into())
            .spawn({
                let (executor, signal) = (executor.clone(), signal.clone());
                move || run(&executor, &signal)
            })
            .map_err(|error| Errno::from_code(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
        let service = Arc::new(Self {
            executor,
            signal,
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
        self.signal.notify(true);
        // The thread itself catches panics of its tasks; a failed join leaves nothing to do.
        let _ = thread.join();
    }
}

fn run(executor: &Arc<Executor>, signal: &Signal) {
    loop {
        FORK_GATE.lock();
        executor.turn();
        let timeout = executor.timeout_ns();
        // SAFETY: locked by this thread just above.
        unsafe { FORK_GATE.unlock() };
        let mut pending = signal.pending.lock();
        if pending.finish && !executor.has_tasks() {
            return;
        }
        if !pending.turn {
            match timeout {
                Some(ns) => {
                    let limit = Duration::from_nanos(ns);
                    signal.condvar.wait_for(&mut pending, limit);
                }
                None => signal.condvar.wait(&mut pending),
            }
        }
        pending.turn = false;
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
