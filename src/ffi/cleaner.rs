// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cleaner: its handle, its life, its lock.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use super::cache::{q2c_cache, share};
use super::host::{context_from, host_from, q2c_host};
use super::{
    CStruct, Code, Handle, call, call_destroy, call_set_up, errno_of, error::q2c_error, named_out,
    out_struct, value,
};
use crate::cache::tables::CAN_RELEASE;
use crate::cleaner::{CleanTarget, Cleaner};
use crate::error::Errno;

/// A cache cleaner. Again and again it drops the tables that nobody used for an interval, and gives
/// their memory back to the kernel. It comes with the state lock, under which it drops tables.
///
/// Each start makes an *instance*. An instance that was asked to stop may still be on its way to
/// its end when the next one starts.
///
/// Context: usable from any thread, except for its destruction.
///
/// Ownership: made by `q2c_cleaner_create` and destroyed by `q2c_cleaner_destroy`, or borrowed from
/// a state.
pub struct q2c_cleaner {
    _private: [u8; 0],
}

/// The pointer is from `Box::into_raw`, or the address of a cleaner inside a state.
impl Handle for q2c_cleaner {
    type Value = Cleaner;
}

/// What a cleaner has done since its creation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_cleaner_stats {
    /// `sizeof(q2c_cleaner_stats)`, set by the caller before the call.
    pub struct_size: usize,
    /// Instances that were started, including those that `co_spawn` then refused.
    pub starts: u64,
    /// Passes that looked at every table of the caches.
    pub passes: u64,
    /// Tables that passes dropped, including passes that a stop cut short.
    pub tables_cleaned: u64,
    /// Interval in ns that was set last: by `q2c_cleaner_start` or `q2c_cleaner_set_interval` with
    /// a number above 0, or by the options of the state that the cleaner belongs to. A stop does
    /// not change it.
    pub interval_ns: u64,
    /// Instances that are alive, including those that were asked to stop.
    pub instances: u32,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_cleaner_stats {
    const NAME: &'static str = "q2c_cleaner_stats";
}

/// An export on a cleaner.
///
/// # Safety
/// The contract of [`value`].
unsafe fn call_cleaner<T: Code>(
    cleaner: *const q2c_cleaner,
    body: impl FnOnce(&Cleaner) -> Result<T, Errno>,
) -> c_int {
    // SAFETY: the caller keeps this function's contract; the borrow ends with this call.
    call(|| body(unsafe { value(cleaner) }?))
}

/// [`call_cleaner`] for a stop: stopping NULL returns 0.
///
/// # Safety
/// The contract of [`value`].
unsafe fn call_stop(
    cleaner: *const q2c_cleaner,
    stop: impl FnOnce(&Cleaner) -> Result<(), Errno>,
) -> c_int {
    if cleaner.is_null() {
        return 0;
    }
    // SAFETY: the caller keeps this function's contract.
    unsafe { call_cleaner(cleaner, stop) }
}

/// `ENOTSUP`: the interval is above 0, but the kernel cannot take memory back, so that cleaning
/// would be useless.
pub(super) fn check_interval(interval_ns: u64) -> Result<(), Errno> {
    if interval_ns > 0 && !CAN_RELEASE {
        return Err(Errno::NOTSUP);
    }
    Ok(())
}

/// Makes a cleaner on `host`. Its state lock is the host's own, if the host has one, else a
/// built-in one. No instance is started, and the cleaner has no caches yet.
///
/// Parameters:
/// - `host`: NULL means `Q2C_HOST_THREADS`.
/// - `cleaner`: receives the handle; must not be NULL.
/// - `error`: may be NULL.
///
/// Context: any thread; never waits; calls no callback.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `cleaner` is NULL; the host's `struct_size` is too small; its `kind` is unknown; a
///   callback that this kind needs is NULL, or one is set that it does not take.
///
/// Ownership: `*cleaner` is the caller's, to be destroyed by `q2c_cleaner_destroy`. `host` is
/// copied and need not outlive the call. What its `opaque` leads to must live as long as the
/// cleaner.
///
/// # Safety
/// Pointers are NULL or valid. Callbacks keep the contract of `q2c_host`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_create(
    host: *const q2c_host,
    cleaner: *mut *mut q2c_cleaner,
    error: *mut q2c_error,
) -> c_int {
    let create = || {
        // SAFETY: NULL or readable as far as its struct_size says, with callbacks that keep their
        // contract.
        let host = unsafe { host_from(host) }?;
        // SAFETY: NULL or writable, as the caller promised.
        let cleaner = unsafe { named_out(cleaner, "cleaner") }?;
        cleaner.set(Box::into_raw(Box::new(Cleaner::new(host))).cast());
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_cleaner_create", error, create) }
}

/// Destroys a cleaner.
///
/// Parameters:
/// - `cleaner`: set to NULL on success. NULL, or a pointer to NULL, returns 0.
///
/// Context: any thread, state lock not held; never waits. No other call may use the cleaner
/// meanwhile.
///
/// Returns: 0 on success. On an error nothing happened.
/// - `-EBUSY`: an instance is alive (stop it first), or somebody holds the built-in lock.
/// - `-EPERM`: the cleaner belongs to a state, which will destroy it.
///
/// Ownership: frees the handle and lets go of the caches that it was told of.
///
/// # Safety
/// `cleaner` is NULL or points to NULL or to a live cleaner, which nobody else uses during the call
/// and nobody uses after it succeeded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_destroy(cleaner: *mut *mut q2c_cleaner) -> c_int {
    let check = |handle: *mut q2c_cleaner| {
        // SAFETY: live, as the caller promised; the borrow ends before the cleaner does.
        let cleaner = unsafe { value(handle) }?;
        if cleaner.is_owned_by_state() {
            return Err(Errno::PERM);
        }
        cleaner.check_idle()
    };
    // SAFETY: the pointer came from `Box::into_raw` in `q2c_cleaner_create`, since the cleaner
    // belongs to no state.
    let free = |cleaner: *mut Cleaner| drop(unsafe { Box::from_raw(cleaner) });
    // SAFETY: the caller keeps this function's contract for `cleaner`.
    unsafe { call_destroy(cleaner, check, free) }
}

/// Sets the caches that the *next* start cleans. Instances that run keep those that they were
/// started with.
///
/// Parameters:
/// - `caches`: array of `n` handles, none of them NULL. May be NULL if `n` is 0.
/// - `n`: number of caches; 0 means none.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `cleaner` is NULL; `n` is not 0 and `caches` or one of the handles is NULL; `n` is
///   larger than any array can be.
///
/// Ownership: the array is copied and need not outlive the call. The caches stay the caller's and
/// may be destroyed at any time: the cleaner and its instances know when one is gone.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner. `caches` is NULL or an array of `n` pointers, each NULL or
/// to a live cache.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_set_caches(
    cleaner: *mut q2c_cleaner,
    caches: *const *mut q2c_cache,
    n: usize,
) -> c_int {
    let set = |cleaner: &Cleaner| {
        // SAFETY: NULL or an array of `n` handles, as the caller promised.
        cleaner.set_caches(unsafe { targets_from(caches, n) }?);
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, set) }
}

/// The caches of an array of handles. `EINVAL`: NULL, or an impossible length.
///
/// # Safety
/// `caches` is NULL or an array of `n` pointers, each NULL or to a live cache.
unsafe fn targets_from(
    caches: *const *mut q2c_cache,
    n: usize,
) -> Result<Vec<Arc<dyn CleanTarget>>, Errno> {
    if n == 0 {
        return Ok(Vec::new());
    }
    let possible = isize::MAX as usize / size_of::<*mut q2c_cache>();
    if caches.is_null() || n > possible {
        return Err(Errno::INVAL);
    }
    // SAFETY: not NULL, and of a possible length: an array, as the caller promised.
    let caches = unsafe { std::slice::from_raw_parts(caches, n) };
    let shared = caches.iter().map(|cache| {
        // SAFETY: NULL or live, as the caller promised.
        let cache = unsafe { share(*cache) }?;
        // The cleaner does not keep it alive: a destroyed cache is gone.
        let target: Arc<dyn CleanTarget> = Arc::new(Arc::downgrade(&cache));
        Ok(target)
    });
    shared.collect()
}

/// Takes the state lock.
///
/// The built-in lock serves waiting requests in order. A caller that runs may take a lock that was
/// just released before the first waiting request has woken. Once a request has woken and found the
/// lock taken, the next release hands the lock over to it. The cleaner takes the lock only when it
/// is free, and holds it for a few us at a time. A host's own lock has the host's own order.
///
/// Context: a thread or coroutine that does not hold the lock; may wait. Plain code of a coroutine
/// host can take the built-in lock, but not the host's own.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `cleaner` is NULL.
/// - `-EDEADLK`: the caller already holds the built-in lock.
/// - `-EPERM`: the lock is the host's own and the caller is plain code.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_lock(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, Cleaner::lock) }
}

/// Releases the state lock.
///
/// Context: the thread or coroutine that took the lock. Never waits, but may run the next owner
/// inside the call if the host's `co_wake` does so.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `cleaner` is NULL.
/// - `-EPERM`: the caller does not hold the built-in lock; or the lock is the host's own and the
///   caller is plain code.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner. If the lock is the host's own, the caller holds it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_unlock(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, Cleaner::unlock) }
}

/// Starts an instance that makes a pass over the caches every `interval_ns` ns. A pass drops the
/// tables that were not used since the pass before. It takes the state lock for some hundred tables
/// at a time, which is a few us, and gives memory back to the kernel without the lock.
///
/// Parameters:
/// - `context`: where the instance runs. Thread host: NULL. Event loop host: a `q2c_loop`, not
///   NULL. Coroutine host: passed to `co_spawn`; NULL means the caller's current context.
/// - `interval_ns`: ns between two passes. 0 starts nothing and is no error.
///
/// Context: any thread. Never waits, but may run the new coroutine up to its first wait inside the
/// call.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `cleaner` is NULL; `context` does not fit the host.
/// - `-EALREADY`: an instance is alive that was not asked to stop.
/// - `-ENOTSUP`: `interval_ns` is above 0, and the kernel takes no memory back.
/// - `-EAGAIN`, `-EMFILE`, `-ENFILE`, `-ENOMEM`: thread host: the background thread or its
///   descriptor could not be made.
/// - any errno of `co_spawn`: the coroutine could not be made.
///
/// Ownership: the instance holds the cleaner's caches, and its loop, until it ends.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner. On an event loop host, `context` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_start(
    cleaner: *mut q2c_cleaner,
    context: *mut c_void,
    interval_ns: u64,
) -> c_int {
    let start = |cleaner: &Cleaner| {
        check_interval(interval_ns)?;
        // SAFETY: on an event loop host, `context` is NULL or a live loop, as the caller promised.
        let context = unsafe { context_from(&**cleaner.host(), context) }?;
        cleaner.start(context, interval_ns)
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, start) }
}

/// Asks every instance to stop and does not wait: for places where waiting is forbidden. A stop
/// request is never lost and cannot be taken back; the instances end by themselves. Without an
/// instance it does nothing.
///
/// Parameters:
/// - `cleaner`: NULL returns 0.
///
/// Context: any thread, with any lock held. Never waits, but may run a cleaner's coroutine inside
/// the call if the host's `co_wake` does so.
///
/// Returns: 0.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_request_stop(cleaner: *mut q2c_cleaner) -> c_int {
    let stop = |cleaner: &Cleaner| {
        cleaner.request_stop();
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_stop(cleaner, stop) }
}

/// Whether an instance is alive that was not asked to stop.
///
/// Context: any thread; never waits.
///
/// Returns: 1 if there is one, 0 if not.
/// - `-EINVAL`: `cleaner` is NULL.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_is_running(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, |cleaner| Ok(cleaner.is_running())) }
}

/// Gives the running instance a new interval. It takes effect immediately: the present sleep counts
/// from where it began.
///
/// Parameters:
/// - `interval_ns`: ns between two passes. 0 asks the instance to stop.
///
/// Context: any thread. Never waits, but may run a cleaner's coroutine inside the call if the
/// host's `co_wake` does so.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `cleaner` is NULL.
/// - `-ESRCH`: no instance is alive that was not asked to stop.
/// - `-ENOTSUP`: `interval_ns` is above 0, and the kernel takes no memory back.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_set_interval(
    cleaner: *mut q2c_cleaner,
    interval_ns: u64,
) -> c_int {
    let set = |cleaner: &Cleaner| {
        check_interval(interval_ns)?;
        cleaner.set_interval(interval_ns)
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, set) }
}

/// Fills `*stats`.
///
/// Parameters:
/// - `stats`: its `struct_size` must be set; it stays as it is.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: an argument is NULL, or `struct_size` is too small.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner. `stats` is NULL or writable as far as its `struct_size`
/// says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_get_stats(
    cleaner: *mut q2c_cleaner,
    stats: *mut q2c_cleaner_stats,
) -> c_int {
    let fill = |cleaner: &Cleaner| {
        // SAFETY: NULL or writable as far as its struct_size says, as the caller promised.
        let out = unsafe { out_struct(stats) }.map_err(errno_of)?;
        let stats = cleaner.stats();
        out.place.set(q2c_cleaner_stats {
            struct_size: out.struct_size,
            starts: stats.starts,
            passes: stats.passes,
            tables_cleaned: stats.tables_cleaned,
            interval_ns: stats.interval_ns,
            instances: u32::try_from(stats.instances).unwrap_or(u32::MAX),
        });
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, fill) }
}

/// Stops every instance and waits for their ends, for callers that hold the state lock. The lock is
/// released while the call waits. When it returns 0, the lock is held again and no instance is
/// alive, however many starts came in between. A start without the lock that races the return is
/// ordered after it.
///
/// Parameters:
/// - `cleaner`: NULL returns 0.
///
/// Context: a thread or coroutine that holds the state lock; may wait. Any number of stops may run
/// at the same time; all of them return.
///
/// Returns: 0 on success.
/// - `-EPERM`: the caller does not hold the built-in lock, or is plain code on a coroutine host.
/// - `-EDEADLK`: the caller is the cleaner itself.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner. If the lock is the host's own, the caller holds it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_co_locked_del_and_wait(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_stop(cleaner, Cleaner::co_locked_del_and_wait) }
}

/// Stops every instance that is alive when it is called, including those that were asked to stop
/// before, and waits for their ends. A start that races it is ordered before or after it. When it
/// returns 0, these instances touch nothing any more.
///
/// Parameters:
/// - `cleaner`: NULL returns 0.
///
/// Context: thread or coroutine, state lock not held; may wait. Any number of stops may run at the
/// same time; all of them return. Plain code of a coroutine host calls `q2c_cleaner_del_and_wait`.
///
/// Returns: 0 on success.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself. Nothing was stopped.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_co_del_and_wait(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_stop(cleaner, Cleaner::co_del_and_wait) }
}

/// Stops every instance that is alive when it is called, including those that were asked to stop
/// before, and waits for their ends. A start that races it is ordered before or after it. When it
/// returns 0, these instances touch nothing any more. It is `q2c_cleaner_co_del_and_wait` for
/// callers of every kind.
///
/// Parameters:
/// - `cleaner`: NULL returns 0.
///
/// Context: thread, coroutine, or plain code of a coroutine host, which polls; state lock not held;
/// may wait. Any number of stops may run at the same time; all of them return.
///
/// Returns: 0 on success.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself. Nothing was stopped.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_del_and_wait(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_stop(cleaner, Cleaner::del_and_wait) }
}
