// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host made of model threads: each stands for a thread or for a coroutine.
//!
//! | kind | a wait is | the state lock is |
//! |---|---|---|
//! | [`Kind::Threads`] | the library's own `ThreadSleeper` | built in |
//! | [`Kind::Coroutines`] | a seat that asserts what a coroutine host asserts: woken once, and only in a sleep of ours | built in |
//! | [`Kind::OwnLock`] | as `Coroutines` | the host's own mutex |
//! | [`Kind::Tasks`] | as `Threads`; the cleaner is a task of the library's own executor, which one thread turns | built in |
//! | [`Kind::StuckTasks`] | as `Tasks`, but nobody ever turns the executor | built in |

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Std, Weak};
use std::task::Waker;

use qcow2cache::error::Errno;
use qcow2cache::host::executor::{Executor, ExecutorClock};
use qcow2cache::host::{CancelHandle, Context, Host, HostLock, Task, block_on};
use qcow2cache::sync::lock::Owner;
use qcow2cache::sync::parker::{Sleeper, ThreadSleeper};
use qcow2cache::sync::sleep::{Clock, Timer};

use super::sync::{Condvar, Mutex};
use super::{thread, timeline};

/// See the module.
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

/// Something that is freed once a stop has returned. Touching it afterwards fails the model, at
/// [`ModelHost::join`] if not at once.
#[derive(Default)]
pub struct Freed(AtomicBool);

impl Freed {
    /// A stop has returned: from now on nothing may be touched.
    pub fn free(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The library calls something of the host's or the state's.
    pub fn touch(&self, what: &str) {
        assert!(
            !self.0.load(Ordering::Relaxed),
            "{what} after a stop returned"
        );
    }
}

/// Where one model thread sleeps, if it stands for a coroutine.
#[derive(Default)]
pub struct Seat {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Seat {
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
}

struct SeatSleeper {
    seat: Arc<Seat>,
    first_wait: Arc<FirstWait>,
}

impl Sleeper for SeatSleeper {
    fn sleep(&self, notified: &dyn Fn() -> bool) {
        self.first_wait.reached();
        self.seat.sleep(notified);
    }

    fn wake(&self) {
        self.seat.wake();
    }
}

/// Lets a spawner go on once what it spawned waits for the first time, or has ended.
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

/// An executor and the thread that turns it, as in an event loop. Its clock stands until it is
/// stepped.
struct Turner {
    executor: Arc<Executor>,
    signal: Arc<Signal>,
    thread: Std<Option<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Signal {
    /// There is something to turn for; no more is to come.
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

    /// False if no more is to come.
    fn wait(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        while !state.0 {
            state = self.condvar.wait(state).unwrap();
        }
        state.0 = false;
        !state.1
    }
}

impl Turner {
    fn new(kind: Kind) -> Self {
        let signal = Arc::new(Signal::default());
        let executor = Executor::new(Box::new({
            let signal = signal.clone();
            move || signal.set(false)
        }));
        executor.pause_clock();
        let turns = (kind == Kind::Tasks).then(|| {
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
            thread: Std::new(turns),
        }
    }

    fn finish(&self) {
        self.signal.set(true);
        let thread = self.thread.lock().unwrap().take();
        if let Some(thread) = thread {
            thread.join().unwrap();
        }
        // Only now: a task that has reported its end may have been on its way out of a turn.
        assert!(!self.executor.has_tasks(), "a task was left over");
        // What is still queued is of tasks that are gone. After that nothing is due, however late
        // it is.
        self.executor.run_ready();
        self.executor.step_clock(u64::MAX / 4);
        assert_eq!(self.executor.run_ready(), 0, "a timer was left over");
    }
}

/// A host whose clock is [`ModelClock`], or an executor's.
pub struct ModelHost {
    me: Weak<Self>,
    kind: Kind,
    /// A spawned coroutine runs to its first wait inside the call.
    eager: bool,
    /// The next spawns are refused.
    pub refuse: AtomicBool,
    pub clock: Arc<ModelClock>,
    pub freed: Arc<Freed>,
    own_lock: OwnLock,
    turner: Option<Turner>,
    seats: Std<HashMap<usize, Arc<Seat>>>,
    first_waits: Std<HashMap<usize, Arc<FirstWait>>>,
    spawned: Std<Vec<thread::JoinHandle<()>>>,
    pub alive: AtomicUsize,
}

/// The model thread's name, for the host.
pub fn me() -> usize {
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
            turner: kind.has_executor().then(|| Turner::new(kind)),
            seats: Std::default(),
            first_waits: Std::default(),
            spawned: Std::default(),
            alive: AtomicUsize::new(0),
        })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn seat(&self) -> Arc<Seat> {
        self.seats.lock().unwrap().entry(me()).or_default().clone()
    }

    fn first_wait(&self) -> Arc<FirstWait> {
        let mut all = self.first_waits.lock().unwrap();
        all.entry(me()).or_default().clone()
    }

    /// The caller sleeps and wakes in its host's own I/O: nobody may wake it there.
    pub fn foreign_sleep(&self) {
        let seat = self.seat();
        assert!(!*seat.woken.lock().unwrap(), "woken in a foreign sleep");
        thread::yield_now();
        assert!(!*seat.woken.lock().unwrap(), "woken in a foreign sleep");
    }

    /// Moves the cleaners' clock and fires what is due.
    pub fn advance(&self, ns: u64) {
        match &self.turner {
            Some(turner) => {
                assert!(turner.executor.step_clock(ns), "the clock was not standing");
            }
            None => self.clock.advance(ns),
        }
    }

    /// Waits for everything that was spawned; then nobody may have a wake-up left over.
    pub fn join(&self) {
        loop {
            let Some(handle) = self.spawned.lock().unwrap().pop() else {
                break;
            };
            handle.join().unwrap();
        }
        if let Some(turner) = &self.turner {
            turner.finish();
        }
        assert_eq!(self.clock.armed(), 0, "a timer was left over");
        timeline::check();
        for seat in self.seats.lock().unwrap().values() {
            assert!(!*seat.woken.lock().unwrap(), "a wake-up too many");
        }
    }
}

impl Host for ModelHost {
    fn owner(&self) -> Owner {
        Owner(me())
    }

    fn sleeper(&self, _contexts: &[Context]) -> Box<dyn Sleeper> {
        if matches!(self.kind, Kind::Threads | Kind::Tasks | Kind::StuckTasks) {
            return Box::new(ThreadSleeper::new());
        }
        Box::new(SeatSleeper {
            seat: self.seat(),
            first_wait: self.first_wait(),
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
        if let Some(turner) = &self.turner {
            let clock = TouchedClock {
                clock: ExecutorClock(turner.executor.clone()),
                freed: self.freed.clone(),
            };
            return Ok(Some(turner.executor.spawn(task(Arc::new(clock)))));
        }
        let host = self.me.upgrade().expect("the host is called, so it lives");
        let first_wait = Arc::new(FirstWait::default());
        let handle = thread::spawn({
            let first_wait = first_wait.clone();
            move || {
                host.first_waits
                    .lock()
                    .unwrap()
                    .insert(me(), first_wait.clone());
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

/// An executor's clock that nobody may touch after a stop.
struct TouchedClock {
    clock: ExecutorClock,
    freed: Arc<Freed>,
}

struct TouchedTimer {
    timer: Option<Box<dyn Timer>>,
    freed: Arc<Freed>,
}

impl Clock for TouchedClock {
    fn now_ns(&self) -> u64 {
        self.freed.touch("the clock was asked");
        self.clock.now_ns()
    }

    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer> {
        self.freed.touch("a timer was armed");
        Box::new(TouchedTimer {
            timer: Some(self.clock.arm(deadline_ns, waker)),
            freed: self.freed.clone(),
        })
    }
}

impl Timer for TouchedTimer {}

impl Drop for TouchedTimer {
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
        assert_ne!(*owner, Some(me()), "locked twice by the same one");
        while owner.is_some() {
            owner = self.condvar.wait(owner).unwrap();
        }
        *owner = Some(me());
    }

    fn unlock(&self) {
        let mut owner = self.owner.lock().unwrap();
        assert_eq!(*owner, Some(me()), "unlocked by somebody else");
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

/// A clock that stands still until it is told to go on; its timers fire then, or are told to fire
/// without reason.
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

    /// Moves the clock and fires what is due.
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

    /// Moves the clock, but no timer fires: tools have such clocks.
    pub fn advance_silently(&self, ns: u64) {
        self.timers.lock().unwrap().now_ns += ns;
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
        // What is due already fires at once, standing clock or not.
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
