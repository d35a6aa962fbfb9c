// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host of model threads, each of which stands for a thread or for a coroutine.
//!
//! | kind | a wait is | the state lock is |
//! |---|---|---|
//! | [`Kind::Threads`] | the library's own `ThreadSleeper` | built in |
//! | [`Kind::Coroutines`] | a [`Coroutine`], with the asserts of a coroutine host | built in |
//! | [`Kind::OwnLock`] | as `Coroutines` | the host's own mutex |
//! | [`Kind::Tasks`] | as `Threads`; the cleaner is a task of an executor | built in |
//! | [`Kind::StuckTasks`] | as `Tasks`, but no thread runs the executor | built in |

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, Weak};
use std::task::Waker;

use qcow2cache::error::Errno;
use qcow2cache::host::executor::{Executor, ExecutorClock};
use qcow2cache::host::{CancelHandle, Context, Host, HostLock, Task, block_on};
use qcow2cache::sync::lock::Owner;
use qcow2cache::sync::parker::{Sleeper, ThreadSleeper};
use qcow2cache::sync::sleep::{Clock, Timer};

use super::sync::{Condvar, Mutex};
use super::{thread, timeline};

/// The kind of host: see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Threads,
    Coroutines,
    OwnLock,
    Tasks,
    StuckTasks,
}

impl Kind {
    fn has_executor(self) -> bool {
        matches!(self, Kind::Tasks | Kind::StuckTasks)
    }
}

/// Something that is freed once a stop has returned. Using it afterwards fails the model,
/// immediately or in [`ModelHost::join`].
#[derive(Default)]
pub struct Freed(AtomicBool);

impl Freed {
    /// Called when a stop has returned: no use is allowed from now on.
    pub fn free(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Called when the library uses something of the host or of the state.
    pub fn touch(&self, what: &str) {
        assert!(
            !self.0.load(Ordering::Relaxed),
            "{what} after a stop returned"
        );
    }
}

/// The sleep of a model thread that stands for a coroutine. It asserts what a coroutine host
/// asserts: each sleep is woken exactly once, and only by the library's own waits.
#[derive(Default)]
pub struct Coroutine {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Coroutine {
    fn sleep(&self, notified: &dyn Fn() -> bool) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.condvar.wait(woken).unwrap();
        }
        *woken = false;
        drop(woken);
        assert!(notified(), "woken before the wait was over");
    }

    fn wake(&self) {
        let mut woken = self.woken.lock().unwrap();
        assert!(!*woken, "woken twice");
        *woken = true;
        drop(woken);
        self.condvar.notify_one();
    }

    /// Asserts that no wake-up is pending that no sleep has taken.
    pub fn assert_no_wake_up_left(&self) {
        assert!(!*self.woken.lock().unwrap(), "a wake-up too many");
    }
}

/// The library's view of a [`Coroutine`].
pub struct CoroutineSleeper {
    coroutine: Arc<Coroutine>,
    first_wait: Option<Arc<FirstWait>>,
}

impl CoroutineSleeper {
    /// A sleeper for a coroutine that a test looks at from outside.
    pub fn new(coroutine: Arc<Coroutine>) -> Self {
        Self {
            coroutine,
            first_wait: None,
        }
    }
}

impl Sleeper for CoroutineSleeper {
    fn sleep(&self, notified: &dyn Fn() -> bool) {
        if let Some(first_wait) = &self.first_wait {
            first_wait.reached();
        }
        self.coroutine.sleep(notified);
    }

    fn wake(&self) {
        self.coroutine.wake();
    }
}

/// Lets a spawner go on once the spawned coroutine waits for the first time, or has ended.
#[derive(Default)]
struct FirstWait {
    reached: Mutex<bool>,
    condvar: Condvar,
}

impl FirstWait {
    fn reached(&self) {
        *self.reached.lock().unwrap() = true;
        self.condvar.notify_one();
    }

    fn wait(&self) {
        let mut reached = self.reached.lock().unwrap();
        while !*reached {
            reached = self.condvar.wait(reached).unwrap();
        }
    }
}

/// An executor and the thread that runs it, as in an event loop. Its clock stands still between
/// steps.
struct ExecutorThread {
    executor: Arc<Executor>,
    signal: Arc<Signal>,
    thread: StdMutex<Option<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Signal {
    /// Whether there is work, and whether no more work will come.
    state: Mutex<(bool, bool)>,
    condvar: Condvar,
}

impl Signal {
    fn set(&self, finish: bool) {
        let mut state = self.state.lock().unwrap();
        *state = (true, state.1 | finish);
        drop(state);
        self.condvar.notify_one();
    }

    /// Waits for work. Returns false once no more work will come.
    fn wait(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        while !state.0 {
            state = self.condvar.wait(state).unwrap();
        }
        state.0 = false;
        !state.1
    }
}

impl ExecutorThread {
    fn new(kind: Kind) -> Self {
        let signal = Arc::new(Signal::default());
        let executor = Executor::new(Box::new({
            let signal = signal.clone();
            move || signal.set(false)
        }));
        executor.pause_clock();
        let runs = (kind == Kind::Tasks).then(|| {
            let (executor, signal) = (executor.clone(), signal.clone());
            thread::spawn(move || {
                while signal.wait() {
                    executor.run_ready();
                }
            })
        });
        Self {
            executor,
            signal,
            thread: StdMutex::new(runs),
        }
    }

    fn finish(&self) {
        self.signal.set(true);
        let thread = self.thread.lock().unwrap().take();
        if let Some(thread) = thread {
            thread.join().unwrap();
        }
        // Checked only after the join: a task that has reported its end may still have been inside
        // a run of the executor.
        assert!(!self.executor.has_tasks(), "a task was left over");
        // Queue entries of ended tasks may be left. After they have run, nothing may become due,
        // however far the clock moves.
        self.executor.run_ready();
        self.executor.step_clock(u64::MAX / 4);
        assert_eq!(self.executor.run_ready(), 0, "a timer was left over");
    }
}

/// A host whose clock is [`ModelClock`], or an executor's.
pub struct ModelHost {
    me: Weak<Self>,
    kind: Kind,
    /// Whether a spawned coroutine runs to its first wait inside the spawn call.
    eager: bool,
    /// Whether spawns are refused.
    pub refuse: AtomicBool,
    pub clock: Arc<ModelClock>,
    pub freed: Arc<Freed>,
    own_lock: OwnLock,
    executor_thread: Option<ExecutorThread>,
    coroutines: StdMutex<HashMap<usize, Arc<Coroutine>>>,
    first_waits: StdMutex<HashMap<usize, Arc<FirstWait>>>,
    spawned: StdMutex<Vec<thread::JoinHandle<()>>>,
    pub alive: AtomicUsize,
}

/// The calling model thread's identity, for the host.
pub fn thread_identity() -> usize {
    let mut hasher = DefaultHasher::new();
    thread::current().id().hash(&mut hasher);
    hasher.finish() as usize
}

impl ModelHost {
    pub fn new(kind: Kind, eager: bool) -> Arc<Self> {
        let freed = Arc::new(Freed::default());
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            kind,
            eager,
            refuse: AtomicBool::new(false),
            clock: Arc::new(ModelClock::new(freed.clone())),
            freed,
            own_lock: OwnLock::default(),
            executor_thread: kind.has_executor().then(|| ExecutorThread::new(kind)),
            coroutines: StdMutex::default(),
            first_waits: StdMutex::default(),
            spawned: StdMutex::default(),
            alive: AtomicUsize::new(0),
        })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn coroutine(&self) -> Arc<Coroutine> {
        self.coroutines
            .lock()
            .unwrap()
            .entry(thread_identity())
            .or_default()
            .clone()
    }

    fn first_wait(&self) -> Arc<FirstWait> {
        let mut all = self.first_waits.lock().unwrap();
        all.entry(thread_identity()).or_default().clone()
    }

    /// The caller sleeps in its host's own I/O, where the library may not wake it.
    pub fn foreign_sleep(&self) {
        let coroutine = self.coroutine();
        assert!(
            !*coroutine.woken.lock().unwrap(),
            "woken in a foreign sleep"
        );
        thread::yield_now();
        assert!(
            !*coroutine.woken.lock().unwrap(),
            "woken in a foreign sleep"
        );
    }

    /// Advances the cleaners' clock and fires the timers that are due.
    pub fn advance(&self, ns: u64) {
        match &self.executor_thread {
            Some(executor_thread) => {
                assert!(
                    executor_thread.executor.step_clock(ns),
                    "the clock was not standing"
                );
            }
            None => self.clock.advance(ns),
        }
    }

    /// Joins all spawned threads and asserts that no timer and no wake-up is left.
    pub fn join(&self) {
        loop {
            let Some(handle) = self.spawned.lock().unwrap().pop() else {
                break;
            };
            handle.join().unwrap();
        }
        if let Some(executor_thread) = &self.executor_thread {
            executor_thread.finish();
        }
        assert_eq!(self.clock.armed(), 0, "a timer was left over");
        timeline::check();
        for coroutine in self.coroutines.lock().unwrap().values() {
            coroutine.assert_no_wake_up_left();
        }
    }
}

impl Host for ModelHost {
    fn owner(&self) -> Owner {
        Owner(thread_identity())
    }

    fn sleeper(&self, _contexts: &[Context]) -> Box<dyn Sleeper> {
        if matches!(self.kind, Kind::Threads | Kind::Tasks | Kind::StuckTasks) {
            return Box::new(ThreadSleeper::new());
        }
        Box::new(CoroutineSleeper {
            coroutine: self.coroutine(),
            first_wait: Some(self.first_wait()),
        })
    }

    fn spawn(
        &self,
        _context: &Context,
        task: Task,
    ) -> Result<Option<Box<dyn CancelHandle>>, Errno> {
        if self.refuse.load(Ordering::Relaxed) {
            return Err(Errno::NOMEM);
        }
        if let Some(executor_thread) = &self.executor_thread {
            let clock = GuardedClock {
                clock: ExecutorClock(executor_thread.executor.clone()),
                freed: self.freed.clone(),
            };
            return Ok(Some(executor_thread.executor.spawn(task(Arc::new(clock)))));
        }
        let host = self.me.upgrade().expect("the host is called, so it lives");
        let first_wait = Arc::new(FirstWait::default());
        let handle = thread::spawn({
            let first_wait = first_wait.clone();
            move || {
                host.first_waits
                    .lock()
                    .unwrap()
                    .insert(thread_identity(), first_wait.clone());
                host.alive.fetch_add(1, Ordering::Relaxed);
                block_on(&*host, &[], task(host.clock.clone()));
                host.alive.fetch_sub(1, Ordering::Relaxed);
                first_wait.reached();
            }
        });
        self.spawned.lock().unwrap().push(handle);
        if self.eager {
            first_wait.wait();
        }
        Ok(None)
    }

    fn check_context(&self, _context: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn cleaner_owner(&self) -> Option<Owner> {
        (!self.kind.has_executor()).then(|| self.owner())
    }

    fn own_lock(&self) -> Option<&dyn HostLock> {
        (self.kind == Kind::OwnLock).then_some(&self.own_lock)
    }
}

/// An executor's clock that may not be used after a stop.
struct GuardedClock {
    clock: ExecutorClock,
    freed: Arc<Freed>,
}

struct GuardedTimer {
    timer: Option<Box<dyn Timer>>,
    freed: Arc<Freed>,
}

impl Clock for GuardedClock {
    fn now_ns(&self) -> u64 {
        self.freed.touch("the clock was asked");
        self.clock.now_ns()
    }

    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer> {
        self.freed.touch("a timer was armed");
        Box::new(GuardedTimer {
            timer: Some(self.clock.arm(deadline_ns, waker)),
            freed: self.freed.clone(),
        })
    }
}

impl Timer for GuardedTimer {}

impl Drop for GuardedTimer {
    fn drop(&mut self) {
        self.freed.touch("a timer was deleted");
        self.timer = None;
    }
}

/// The host's own mutex.
#[derive(Default)]
struct OwnLock {
    owner: Mutex<Option<usize>>,
    condvar: Condvar,
}

impl HostLock for OwnLock {
    fn lock(&self) {
        let mut owner = self.owner.lock().unwrap();
        assert_ne!(
            *owner,
            Some(thread_identity()),
            "locked twice by the same thread"
        );
        while owner.is_some() {
            owner = self.condvar.wait(owner).unwrap();
        }
        *owner = Some(thread_identity());
    }

    fn unlock(&self) {
        let mut owner = self.owner.lock().unwrap();
        assert_eq!(
            *owner,
            Some(thread_identity()),
            "unlocked by another thread"
        );
        *owner = None;
        drop(owner);
        self.condvar.notify_one();
    }
}

struct Armed {
    id: u64,
    deadline_ns: u64,
    waker: Waker,
}

#[derive(Default)]
struct Timers {
    now_ns: u64,
    next_id: u64,
    armed: Vec<Armed>,
}

/// A clock that stands still until a model advances it. Its timers fire then.
pub struct ModelClock {
    timers: Arc<Mutex<Timers>>,
    freed: Arc<Freed>,
}

impl ModelClock {
    fn new(freed: Arc<Freed>) -> Self {
        Self {
            timers: Arc::default(),
            freed,
        }
    }

    /// Advances the clock and fires the timers that are due.
    pub fn advance(&self, ns: u64) {
        let due = {
            let mut timers = self.timers.lock().unwrap();
            timers.now_ns += ns;
            let now = timers.now_ns;
            let all = std::mem::take(&mut timers.armed);
            let (due, left) = all.into_iter().partition(|t| t.deadline_ns <= now);
            timers.armed = left;
            let due: Vec<Armed> = due;
            due
        };
        due.into_iter().for_each(|timer| timer.waker.wake());
    }

    /// How many timers are armed.
    pub fn armed(&self) -> usize {
        self.timers.lock().unwrap().armed.len()
    }
}

impl Clock for ModelClock {
    fn now_ns(&self) -> u64 {
        self.freed.touch("the clock was asked");
        self.timers.lock().unwrap().now_ns
    }

    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer> {
        self.freed.touch("a timer was armed");
        let mut timers = self.timers.lock().unwrap();
        let id = timers.next_id;
        timers.next_id += 1;
        // A timer that is already due fires now, although the clock stands still.
        let due = (deadline_ns <= timers.now_ns).then(|| waker.clone());
        timers.armed.push(Armed {
            id,
            deadline_ns,
            waker,
        });
        drop(timers);
        due.into_iter().for_each(Waker::wake);
        Box::new(ModelTimer {
            timers: self.timers.clone(),
            freed: self.freed.clone(),
            id,
        })
    }
}

struct ModelTimer {
    timers: Arc<Mutex<Timers>>,
    freed: Arc<Freed>,
    id: u64,
}

impl Timer for ModelTimer {}

impl Drop for ModelTimer {
    fn drop(&mut self) {
        self.freed.touch("a timer was deleted");
        let id = self.id;
        let mut timers = self.timers.lock().unwrap();
        let place = timers.armed.iter().position(|t| t.id == id);
        let removed = place.map(|place| timers.armed.swap_remove(place));
        drop(timers);
        drop(removed);
    }
}
