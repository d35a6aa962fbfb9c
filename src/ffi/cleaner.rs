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

/// A cache cleaner: drops the tables that nobody used for an interval, again and again, and gives
/// their memory back. With it comes the state lock, under which it drops tables.
///
/// Made by `q2c_cleaner_create` and destroyed by `q2c_cleaner_destroy`, or borrowed from a state.
/// Each start makes an *instance*; one that was asked to stop may still be on its way out when the
/// next one starts. Usable from any thread.
pub struct q2c_cleaner {
    _private: [u8; 0],
}

/// `Box::into_raw`, or the address of a state's own.
impl Handle for q2c_cleaner {
    type Value = Cleaner;
}

/// What a cleaner did since its creation.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_cleaner_stats {
    /// sizeof(q2c_cleaner_stats), set by the caller before the call.
    pub struct_size: usize,
    /// Instances started.
    pub starts: u64,
    /// Passes over the caches that looked at every table.
    pub passes: u64,
    /// Tables that they dropped.
    pub tables_cleaned: u64,
    /// Interval of the newest instance in ns, kept after its stop.
    pub interval_ns: u64,
    /// Instances alive, those that were asked to stop included.
    pub instances: u32,
}

// SAFETY: repr(C), its size first, numbers.
unsafe impl CStruct for q2c_cleaner_stats {
    const NAME: &'static str = "q2c_cleaner_stats";
}

/// # Safety
/// As [`value`].
unsafe fn call_cleaner<T: Code>(
    cleaner: *const q2c_cleaner,
    body: impl FnOnce(&Cleaner) -> Result<T, Errno>,
) -> c_int {
    // SAFETY: the caller's promise; the borrow ends with this call.
    call(|| body(unsafe { value(cleaner) }?))
}

/// As [`call_cleaner`]; stopping NULL is 0.
///
/// # Safety
/// As [`value`].
unsafe fn call_stop(
    cleaner: *const q2c_cleaner,
    stop: impl FnOnce(&Cleaner) -> Result<(), Errno>,
) -> c_int {
    if cleaner.is_null() {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { call_cleaner(cleaner, stop) }
}

/// `ENOTSUP`: cleaning makes no sense where the kernel takes no memory back.
pub(super) fn check_interval(interval_ns: u64) -> Result<(), Errno> {
    if interval_ns > 0 && !CAN_RELEASE {
        return Err(Errno::NOTSUP);
    }
    Ok(())
}

/// Makes a cleaner on `host` (NULL: threads), with the host's own lock if it brought one, else with
/// a built-in one. Nothing is started, and it has no caches yet.
///
/// Any thread, never waits, calls no callback. `host` is copied; what its `opaque` leads to must
/// live as long as the cleaner. On success `*cleaner` is the caller's, for `q2c_cleaner_destroy`;
/// on an error it is left alone. `error` may be NULL.
///
/// - `-EINVAL`: `cleaner` is NULL; `host` is too small, of no known kind, lacks a callback or has
///   one that is not for its kind.
///
/// # Safety
/// Pointers are NULL or valid; callbacks keep the contract of `q2c_host`.
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

/// Destroys a cleaner and sets `*cleaner` to NULL. NULL, and a NULL in `*cleaner`, is 0.
///
/// Any thread, state lock not held. On the thread host the last cleaner's end waits for the
/// background thread's. Not to be called while another call uses the cleaner.
///
/// - `-EBUSY`: an instance is alive (stop it first), or the built-in lock is held. Nothing
///   happened.
/// - `-EPERM`: the cleaner belongs to a state.
///
/// # Safety
/// `cleaner` is NULL or points to NULL or to a live cleaner, which nobody uses during the call or
/// after it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_destroy(cleaner: *mut *mut q2c_cleaner) -> c_int {
    let check = |handle: *mut q2c_cleaner| {
        // SAFETY: live, as the caller promised; the borrow ends before the cleaner does.
        let cleaner = unsafe { value(handle) }?;
        if cleaner.belongs_to_state() {
            return Err(Errno::PERM);
        }
        cleaner.check_idle()
    };
    // SAFETY: the pointer came from `Box::into_raw` in `q2c_cleaner_create`, since the cleaner
    // belongs to no state.
    let free = |cleaner: *mut Cleaner| drop(unsafe { Box::from_raw(cleaner) });
    // SAFETY: the caller's promise about `cleaner`.
    unsafe { call_destroy(cleaner, check, free) }
}

/// Sets the caches that the *next* start cleans. Each instance holds those it was started with,
/// also beyond their destruction by the caller.
///
/// Any thread, never waits. The array is copied; `n` 0: none, and `caches` may be NULL.
///
/// - `-EINVAL`: `cleaner`, `caches` or one of them is NULL; `n` is no possible length.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner; `caches` is NULL or an array of `n` pointers, NULL or to
/// live caches.
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

/// # Safety
/// `caches` is NULL or an array of `n` pointers, NULL or to live caches.
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
        unsafe { share(*cache) }.map(|cache| cache as Arc<dyn CleanTarget>)
    });
    shared.collect()
}

/// Takes the state lock.
///
/// Thread or coroutine that does not hold it; may wait in the host's way. On a coroutine host with
/// a lock of its own, from a coroutine only. Requests are served in order; the cleaner never goes
/// before them for long.
///
/// - `-EINVAL`: `cleaner` is NULL.
/// - `-EDEADLK`: the caller holds the built-in lock already.
/// - `-EPERM`: the host's own lock, from plain code.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_lock(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, Cleaner::lock) }
}

/// Lets the state lock go. By the thread or coroutine that took it; never waits, but may run the
/// next owner at once where the host's `co_wake` does.
///
/// - `-EINVAL`: `cleaner` is NULL.
/// - `-EPERM`: the caller does not hold the built-in lock; the host's own lock, from plain code.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_unlock(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, Cleaner::unlock) }
}

/// Starts an instance that makes a pass over the caches every `interval_ns` ns. 0 starts none and
/// is no error. A pass drops what was not used since the one before. It takes the state lock for
/// some hundred tables at a time, some us, and gives their memory back to the kernel without it.
///
/// `context` says where it runs. Threads: NULL. Event loop: the `q2c_loop`, which lives on as long
/// as it is needed here. Coroutines: handed to `co_spawn`; NULL is the caller's current context.
/// Any thread, state lock held or not; never waits, but may run the new coroutine up to its first
/// wait.
///
/// - `-EINVAL`: `cleaner` is NULL; `context` is none of this host.
/// - `-EALREADY`: an instance lives that was not asked to stop.
/// - `-ENOTSUP`: the interval is above 0, and the kernel takes no memory back.
/// - `-EAGAIN`, or `co_spawn`'s own: the host could not start it.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner; on an event loop host `context` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_start(
    cleaner: *mut q2c_cleaner,
    context: *mut c_void,
    interval_ns: u64,
) -> c_int {
    let start = |cleaner: &Cleaner| {
        check_interval(interval_ns)?;
        // SAFETY: the caller's promise about `context`.
        let context = unsafe { context_from(&**cleaner.host(), context) }?;
        cleaner.start(context, interval_ns)
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, start) }
}

/// Asks every instance to stop, and does not wait: for places where waiting is forbidden. The
/// instances end by themselves. With none, and for NULL, it does nothing.
///
/// Any thread, any lock held, never waits. Returns 0.
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

/// Returns 1 if an instance lives that was not asked to stop, else 0. Any thread, never waits.
/// `-EINVAL`: `cleaner` is NULL.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_is_running(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_cleaner(cleaner, |cleaner| Ok(cleaner.is_running())) }
}

/// Gives the running instance a new interval in ns, at once: its present sleep counts from where it
/// began. 0 asks it to stop.
///
/// Any thread, state lock held or not, never waits.
///
/// - `-EINVAL`: `cleaner` is NULL.
/// - `-ESRCH`: none runs that was not asked to stop.
/// - `-ENOTSUP`: as `q2c_cleaner_start`.
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

/// Fills `*stats`, whose `struct_size` the caller has set. Any thread, never waits. `-EINVAL`: an
/// argument is NULL, or `struct_size` is too small; `*stats` is left alone then.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner; `stats` is NULL or writable.
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

/// Stops every instance and waits for their ends, with the state lock held: it is let go while
/// waiting. On return it is held again and no instance is alive, however many starts came between.
/// NULL: 0.
///
/// Coroutine or thread that holds the state lock; may wait. Any number of stops may run at once.
///
/// - `-EPERM`: the caller does not hold the built-in lock; or it is plain code on a coroutine host.
/// - `-EDEADLK`: from the cleaner itself.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner. With a host's own lock, the caller holds it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_co_locked_del_and_wait(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_stop(cleaner, Cleaner::co_locked_del_and_wait) }
}

/// Stops every instance that is alive when it is called, those that were asked to stop before too,
/// and waits for their ends. A start that races it is ordered before or after it. When it returns,
/// they touch nothing any more. NULL: 0.
///
/// Coroutine or thread, state lock not held; may wait. Any number of stops may run at once.
///
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself. Nothing was stopped.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_co_del_and_wait(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_stop(cleaner, Cleaner::co_del_and_wait) }
}

/// As `q2c_cleaner_co_del_and_wait`, from coroutine, thread, or plain code of a coroutine host,
/// which polls until done. Same errors.
///
/// # Safety
/// `cleaner` is NULL or a live cleaner.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_cleaner_del_and_wait(cleaner: *mut q2c_cleaner) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_stop(cleaner, Cleaner::del_and_wait) }
}
