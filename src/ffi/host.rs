// SPDX-License-Identifier: MIT OR Apache-2.0
//! C's host as the core's [`Host`]: the three kinds, and the callbacks of a coroutine host.

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::task::Waker;

use super::event_loop::{q2c_loop, share_loop};
use super::{CStruct, guard, read_optional_struct};
use crate::error::{Errno, Error, Result};
use crate::host::coroutine::{CoroutineHost, Coroutines};
use crate::host::event_loop::EventLoopHost;
use crate::host::threads::ThreadHost;
use crate::host::{Context, Host};
use crate::sync::sleep::Timer;

/// Callers are operating system threads, which park where they wait. One background thread for the
/// whole process runs all cleaners. It comes with the first start of a cleaner, and goes a second
/// after the last handle of a cleaner that was started. The library may be unloaded once every
/// handle is closed: its code stays until that thread has ended.
pub const Q2C_HOST_THREADS: u32 = 0;
/// Callers are threads, which park where they wait. Cleaners are tasks of a `q2c_loop`. A wait for
/// the end of a cleaner does not turn its loop: a stop takes the cleaner out of the loop.
pub const Q2C_HOST_EVENT_LOOP: u32 = 1;
/// Callers are the host's own stackful coroutines, which yield where they wait, and plain code of
/// its threads, which polls.
pub const Q2C_HOST_COROUTINES: u32 = 2;

/// Where callers wait and where cleaners run. A NULL host is `Q2C_HOST_THREADS`.
///
/// `kind` says who the callers are. The callbacks are for `Q2C_HOST_COROUTINES` alone. There all of
/// them must be set, except `lock` and `unlock`, which are both set or both NULL. For the other
/// kinds all callbacks must be NULL.
///
/// Context: a callback is called from any thread unless its comment says otherwise, with no lock of
/// the library held, so it may call the library. It must not throw or `longjmp` out. No call of the
/// library needs more than 16 KiB of the caller's stack besides what callbacks use.
///
/// Ownership: copied when something is made with it. `opaque` and what it leads to must live as
/// long as everything that was made with it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_host {
    /// `sizeof(q2c_host)`.
    pub struct_size: usize,
    /// One of `Q2C_HOST_*`.
    pub kind: u32,
    /// The caller's own pointer, passed as first argument of each callback; may be NULL.
    pub opaque: *mut c_void,
    /// Tells whether the caller runs in a coroutine.
    ///
    /// Returns: true in a coroutine, false in plain code of a thread.
    pub in_coroutine: Option<unsafe extern "C" fn(opaque: *mut c_void) -> bool>,
    /// Names the caller.
    ///
    /// Returns: the current coroutine, or, in plain code, something that stands for the thread.
    /// Never NULL, and never the same for two that live at the same time.
    pub co_self: Option<unsafe extern "C" fn(opaque: *mut c_void) -> *mut c_void>,
    /// Suspends the current coroutine until `co_wake`. May return in another thread. (Hosts call
    /// this yield; `co_yield` is a keyword of C++20.)
    ///
    /// Context: in a coroutine only.
    pub co_suspend: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    /// Resumes a coroutine. Called exactly once for each wait in which it suspends, perhaps before
    /// it has reached its `co_suspend`: then the host defers the wake-up to the coroutine's home.
    /// May run the coroutine inside the call.
    ///
    /// Parameters:
    /// - `co`: the coroutine, a value of `co_self`.
    pub co_wake: Option<unsafe extern "C" fn(opaque: *mut c_void, co: *mut c_void)>,
    /// Makes a new coroutine that calls `entry(arg)` once. It may run inside the call up to its
    /// first yield, or later.
    ///
    /// Parameters:
    /// - `context`: where it runs, from the caller of the library; NULL means the current context.
    ///
    /// Returns: 0 or more: the coroutine will run.
    /// - `-errno`: it never will. Passed on to the caller that needed the coroutine.
    pub co_spawn: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            context: *mut c_void,
            entry: unsafe extern "C" fn(arg: *mut c_void),
            arg: *mut c_void,
        ) -> c_int,
    >,
    /// Takes the host's own coroutine mutex, which then is the state lock in place of the built-in
    /// one. May yield. NULL, together with `unlock`, means the built-in lock.
    ///
    /// Context: in a coroutine only.
    pub lock: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    /// Releases the host's own coroutine mutex.
    ///
    /// Context: in the coroutine that took it.
    pub unlock: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    /// The host's clock. It may stand still; then cleaning does too, but stops still work.
    ///
    /// Returns: ns since a moment of the host's choice, 0 or more.
    pub now_ns: Option<unsafe extern "C" fn(opaque: *mut c_void) -> i64>,
    /// Makes a timer, not armed, that calls `cb(arg)` in the thread that makes it.
    ///
    /// Context: this and the other `timer_*` callbacks are called in the cleaner's coroutine, hence
    /// only in its home thread.
    ///
    /// Returns: the timer; never NULL.
    ///
    /// Ownership: the library frees it with `timer_free`.
    pub timer_new: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            cb: unsafe extern "C" fn(arg: *mut c_void),
            arg: *mut c_void,
        ) -> *mut c_void,
    >,
    /// Arms a timer: its callback is called once, when `now_ns` has reached `deadline_ns`.
    pub timer_mod:
        Option<unsafe extern "C" fn(opaque: *mut c_void, timer: *mut c_void, deadline_ns: i64)>,
    /// Disarms a timer: no call of its callback begins from now on. Also called for a timer that
    /// has fired, perhaps from inside its callback.
    pub timer_del: Option<unsafe extern "C" fn(opaque: *mut c_void, timer: *mut c_void)>,
    /// Frees a timer, after `timer_del`; perhaps from inside its callback.
    pub timer_free: Option<unsafe extern "C" fn(opaque: *mut c_void, timer: *mut c_void)>,
    /// Dispatches the calling thread's events while `cond(arg)` is true. It calls `cond` first,
    /// after each event, and after each `kick`, always in the calling thread.
    ///
    /// Context: in plain code only.
    pub poll_while: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            cond: unsafe extern "C" fn(arg: *mut c_void) -> bool,
            arg: *mut c_void,
        ),
    >,
    /// Makes every `poll_while`, in whatever thread, call its condition again, including one that
    /// is only about to wait.
    pub kick: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
}

// SAFETY: repr(C), its size first, a number, a pointer and optional functions.
unsafe impl CStruct for q2c_host {
    const NAME: &'static str = "q2c_host";
}

/// The core's host on a copy of C's; NULL is the thread host. `EINVAL`: `struct_size` is too small,
/// the kind is unknown, a callback is missing, or one is set that the kind does not take.
///
/// # Safety
/// `host` is NULL or readable as far as its `struct_size` says. Its callbacks and `opaque` keep the
/// contract of [`q2c_host`] as long as the result lives.
pub(super) unsafe fn host_from(host: *const q2c_host) -> Result<Arc<dyn Host>> {
    // SAFETY: NULL or readable as far as its struct_size says, as the caller promised.
    let Some(host) = (unsafe { read_optional_struct(host) })? else {
        return Ok(ThreadHost::shared());
    };
    match host.kind {
        Q2C_HOST_THREADS => host.without_callbacks().map(|()| ThreadHost::shared()),
        Q2C_HOST_EVENT_LOOP => host.without_callbacks().map(|()| EventLoopHost::shared()),
        Q2C_HOST_COROUTINES => {
            let callbacks = Callbacks::from_c(&host)?;
            Ok(Arc::new(CoroutineHost::new(Arc::new(callbacks))))
        }
        kind => Err(invalid(format!(
            "q2c_host.kind is {kind}: allowed are {Q2C_HOST_THREADS} (threads), \
             {Q2C_HOST_EVENT_LOOP} (event loop) and {Q2C_HOST_COROUTINES} (coroutines)"
        ))),
    }
}

fn invalid(message: String) -> Error {
    Error::new(Errno::INVAL, message)
}

impl q2c_host {
    fn without_callbacks(&self) -> Result<()> {
        let callbacks = [
            ("in_coroutine", self.in_coroutine.is_some()),
            ("co_self", self.co_self.is_some()),
            ("co_suspend", self.co_suspend.is_some()),
            ("co_wake", self.co_wake.is_some()),
            ("co_spawn", self.co_spawn.is_some()),
            ("lock", self.lock.is_some()),
            ("unlock", self.unlock.is_some()),
            ("now_ns", self.now_ns.is_some()),
            ("timer_new", self.timer_new.is_some()),
            ("timer_mod", self.timer_mod.is_some()),
            ("timer_del", self.timer_del.is_some()),
            ("timer_free", self.timer_free.is_some()),
            ("poll_while", self.poll_while.is_some()),
            ("kick", self.kick.is_some()),
        ];
        match callbacks.iter().find(|(_, given)| *given) {
            Some((name, _)) => Err(invalid(format!(
                "q2c_host.{name} is given: allowed for kind {} is NULL, callbacks are for kind \
                 {Q2C_HOST_COROUTINES}, coroutines",
                self.kind
            ))),
            None => Ok(()),
        }
    }
}

/// C's `context` parameter as a context of this host: where a cleaner is to run. `EINVAL`: it is
/// not a context of this host.
///
/// # Safety
/// On an event loop host, `context` is NULL or a live `q2c_loop`.
pub(super) unsafe fn context_from(
    host: &dyn Host,
    context: *mut c_void,
) -> std::result::Result<Context, Errno> {
    let takes = |context: &Context| host.check_context(context).is_ok();
    if context.is_null() {
        host.check_context(&Context::Default)?;
        return Ok(Context::Default);
    }
    let opaque = Context::Opaque(context.expose_provenance());
    if takes(&opaque) {
        return Ok(opaque);
    }
    // A host that takes no opaque context but a default one is the thread host.
    if takes(&Context::Default) {
        return Err(Errno::INVAL);
    }
    // SAFETY: neither coroutines nor threads, hence an event loop host, for which the caller
    // promised a loop.
    unsafe { share_loop(context.cast::<q2c_loop>()) }.map(Context::Loop)
}

type Entry = Box<dyn FnOnce() + Send>;
type Callback = unsafe extern "C" fn(*mut c_void);
type TimerCall = unsafe extern "C" fn(*mut c_void, *mut c_void);

/// The callbacks of a coroutine host, all of them set.
#[derive(Clone, Copy)]
struct Callbacks {
    opaque: *mut c_void,
    in_coroutine: unsafe extern "C" fn(*mut c_void) -> bool,
    co_self: unsafe extern "C" fn(*mut c_void) -> *mut c_void,
    co_suspend: Callback,
    co_wake: unsafe extern "C" fn(*mut c_void, *mut c_void),
    co_spawn: unsafe extern "C" fn(*mut c_void, *mut c_void, Callback, *mut c_void) -> c_int,
    lock: Option<(Callback, Callback)>,
    now_ns: unsafe extern "C" fn(*mut c_void) -> i64,
    timer_new: unsafe extern "C" fn(*mut c_void, Callback, *mut c_void) -> *mut c_void,
    timer_mod: unsafe extern "C" fn(*mut c_void, *mut c_void, i64),
    timer_del: TimerCall,
    timer_free: TimerCall,
    poll_while:
        unsafe extern "C" fn(*mut c_void, unsafe extern "C" fn(*mut c_void) -> bool, *mut c_void),
    kick: Callback,
}

// SAFETY: `q2c_host` says that the callbacks, with this `opaque`, are called from any thread. A few
// of them name a thread instead, and the core calls them only there.
unsafe impl Send for Callbacks {}
// SAFETY: `q2c_host` allows these calls from several threads at the same time.
unsafe impl Sync for Callbacks {}

impl Callbacks {
    fn from_c(host: &q2c_host) -> Result<Self> {
        fn there<T>(callback: Option<T>, name: &str) -> Result<T> {
            callback.ok_or_else(|| {
                invalid(format!(
                    "q2c_host.{name} is NULL: a coroutine host must have every callback but the \
                     pair lock and unlock"
                ))
            })
        }
        let lock = match (host.lock, host.unlock) {
            (Some(lock), Some(unlock)) => Some((lock, unlock)),
            (None, None) => None,
            (lock, unlock) => Some((there(lock, "lock")?, there(unlock, "unlock")?)),
        };
        Ok(Self {
            opaque: host.opaque,
            in_coroutine: there(host.in_coroutine, "in_coroutine")?,
            co_self: there(host.co_self, "co_self")?,
            co_suspend: there(host.co_suspend, "co_suspend")?,
            co_wake: there(host.co_wake, "co_wake")?,
            co_spawn: there(host.co_spawn, "co_spawn")?,
            lock,
            now_ns: there(host.now_ns, "now_ns")?,
            timer_new: there(host.timer_new, "timer_new")?,
            timer_mod: there(host.timer_mod, "timer_mod")?,
            timer_del: there(host.timer_del, "timer_del")?,
            timer_free: there(host.timer_free, "timer_free")?,
            poll_while: there(host.poll_while, "poll_while")?,
            kick: there(host.kick, "kick")?,
        })
    }
}

/// Runs the entry that [`Callbacks::spawn`] boxed.
///
/// # Safety
/// `arg` is from `spawn`, and this is the only call with it.
unsafe extern "C" fn run_entry(arg: *mut c_void) {
    // SAFETY: `spawn` boxed it and gave it up to this one call.
    let entry: Entry = *unsafe { Box::from_raw(arg.cast::<Entry>()) };
    // A panic ends only the entry. What the entry held has been dropped by then, and that drop
    // reports the end of a cleaner.
    let _ = guard(entry);
}

/// Calls the condition that [`Callbacks::poll_while`] passed.
///
/// # Safety
/// `arg` is that condition, and that call of `poll_while` is still running.
unsafe extern "C" fn look_at_condition(arg: *mut c_void) -> bool {
    // SAFETY: the caller promised that this is the condition of a `poll_while` that still runs.
    let condition = unsafe { &*arg.cast::<&dyn Fn() -> bool>() };
    // A condition that panics ends the polling; the caller of `poll_while` looks again by itself.
    guard(condition).unwrap_or(false)
}

/// Wakes the cleaner that armed the timer.
///
/// # Safety
/// `arg` is the waker of a [`CTimer`] that has not been deleted when this call begins.
unsafe extern "C" fn timer_fired(arg: *mut c_void) {
    // Only a clone is used for the wake-up: it may run the sleeper inside the call, and the sleeper
    // deletes the timer and its waker.
    let _ = guard(|| {
        // SAFETY: the caller promised the waker of a timer that is not deleted yet.
        let waker = unsafe { &*arg.cast::<Waker>() }.clone();
        waker.wake();
    });
}

/// A timer of the host, and the waker that its callback calls.
struct CTimer {
    callbacks: Callbacks,
    timer: *mut c_void,
    waker: *mut Waker,
}

// SAFETY: a coroutine may carry it to another thread. Its host calls are made in the cleaner's
// coroutine, where `q2c_host` wants them, and the waker is Send and Sync.
unsafe impl Send for CTimer {}

impl Timer for CTimer {}

impl Drop for CTimer {
    fn drop(&mut self) {
        let Callbacks {
            opaque,
            timer_del,
            timer_free,
            ..
        } = self.callbacks;
        if !self.timer.is_null() {
            // SAFETY: the timer is from this host's `timer_new`, and only this drop deletes and
            // frees it. The callbacks keep their contract.
            unsafe {
                timer_del(opaque, self.timer);
                timer_free(opaque, self.timer);
            }
        }
        // SAFETY: boxed in `arm`, and only this drop frees it. No callback begins after
        // `timer_del`, and one that runs uses its clone.
        drop(unsafe { Box::from_raw(self.waker) });
    }
}

// For each call below: the caller of `host_from` promised that the callbacks, with this `opaque`,
// keep the contract of `q2c_host`.
impl Coroutines for Callbacks {
    fn in_coroutine(&self) -> bool {
        // SAFETY: callable from any thread; contract: see above.
        unsafe { (self.in_coroutine)(self.opaque) }
    }

    fn current(&self) -> usize {
        // SAFETY: callable from any thread; contract: see above.
        unsafe { (self.co_self)(self.opaque) }.expose_provenance()
    }

    fn yield_self(&self) {
        // SAFETY: the core yields in coroutines only; contract: see above.
        unsafe { (self.co_suspend)(self.opaque) };
    }

    fn wake(&self, coroutine: usize) {
        // SAFETY: the core wakes a coroutine only after the coroutine announced that it yields, and
        // once for each yield; contract: see above.
        unsafe {
            (self.co_wake)(
                self.opaque,
                std::ptr::with_exposed_provenance_mut(coroutine),
            );
        }
    }

    fn spawn(&self, context: usize, entry: Entry) -> std::result::Result<(), Errno> {
        let context = std::ptr::with_exposed_provenance_mut(context);
        let arg: *mut Entry = Box::into_raw(Box::new(entry));
        // SAFETY: `run_entry` frees the box that it gets, and a host that accepts calls it once;
        // contract: see above.
        let code = unsafe { (self.co_spawn)(self.opaque, context, run_entry, arg.cast()) };
        if code < 0 {
            // SAFETY: a host that refuses never calls the entry, so the box still belongs to this
            // function.
            drop(unsafe { Box::from_raw(arg) });
            return Err(Errno::from_code(code));
        }
        Ok(())
    }

    fn has_lock(&self) -> bool {
        self.lock.is_some()
    }

    fn lock(&self) {
        if let Some((lock, _)) = self.lock {
            // SAFETY: the core locks in coroutines only; contract: see above.
            unsafe { lock(self.opaque) };
        }
    }

    fn unlock(&self) {
        if let Some((_, unlock)) = self.lock {
            // SAFETY: the core unlocks in the coroutine in which it, or its caller, locked;
            // contract: see above.
            unsafe { unlock(self.opaque) };
        }
    }

    fn now_ns(&self) -> u64 {
        // SAFETY: callable from any thread; contract: see above.
        u64::try_from(unsafe { (self.now_ns)(self.opaque) }).unwrap_or(0)
    }

    fn arm(&self, deadline_ns: u64, waker: Waker) -> Box<dyn Timer> {
        let waker = Box::into_raw(Box::new(waker));
        // SAFETY: the core arms timers in the cleaner's coroutine, and the waker lives until after
        // `timer_del`; contract: see above.
        let timer = unsafe { (self.timer_new)(self.opaque, timer_fired, waker.cast()) };
        let armed = Box::new(CTimer {
            callbacks: *self,
            timer,
            waker,
        });
        if !timer.is_null() {
            let deadline_ns = i64::try_from(deadline_ns).unwrap_or(i64::MAX);
            // SAFETY: the timer was made just above, in the same coroutine; contract: see above.
            unsafe { (self.timer_mod)(self.opaque, timer, deadline_ns) };
        }
        armed
    }

    fn poll_while(&self, condition: &dyn Fn() -> bool) {
        let arg = (&raw const condition).cast_mut().cast();
        // SAFETY: the core polls in plain code only. `condition` outlives the call and is only read
        // through `arg`. Contract: see above.
        unsafe { (self.poll_while)(self.opaque, look_at_condition, arg) };
    }

    fn kick(&self) {
        // SAFETY: callable from any thread; contract: see above.
        unsafe { (self.kick)(self.opaque) };
    }
}
