// SPDX-License-Identifier: MIT OR Apache-2.0
//! An open image's state: its handle, open and close, contexts, lock, parts.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use super::cache::q2c_cache;
use super::cleaner::{check_interval, q2c_cleaner};
use super::host::{context_from, host_from, q2c_host};
use super::options::{geometry_from, options_from, q2c_geometry, q2c_options};
use super::storage::{q2c_storage, storage_from};
use super::{
    CStruct, Handle, call_destroy, call_set_up, call_state, error::q2c_error, guard, named_out,
    on_state, poison_state, read_struct, value,
};
use crate::error::{Errno, Error, Result};
use crate::state::{Config, State};

/// An open image's metadata: state lock, L2 cache, refcount cache, cleaner, options.
///
/// Context: usable from any thread, except for its closing.
///
/// Ownership: made by `q2c_state_open` and destroyed by `q2c_state_close`.
pub struct q2c_state {
    _private: [u8; 0],
}

/// The pointer is from `Box::into_raw`.
impl Handle for q2c_state {
    type Value = State;
}

/// What a state is opened with.
///
/// Ownership: all structs are copied and need not outlive the call. A `q2c_loop` in `context` is
/// not copied; the state keeps it alive while it is attached to it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_state_config {
    /// `sizeof(q2c_state_config)`.
    pub struct_size: usize,
    /// Where callers wait and the cleaner runs. NULL means `Q2C_HOST_THREADS`.
    pub host: *const q2c_host,
    /// The storage below the L2 cache. Must not be NULL.
    pub l2_storage: *const q2c_storage,
    /// The storage below the refcount cache. NULL means `l2_storage`; see `q2c_storage` for when it
    /// may be another one.
    pub refcount_storage: *const q2c_storage,
    /// The caller's own number for L2 tables; any value. The library passes it to every callback of
    /// the storage but `flush`.
    pub l2_kind: c_int,
    /// The caller's own number for refcount blocks; any value. The library passes it to every
    /// callback of the storage but `flush`.
    pub refcount_kind: c_int,
    /// The image's geometry. Must not be NULL.
    pub geometry: *const q2c_geometry,
    /// What the user set. NULL means that no option is set.
    pub options: *const q2c_options,
    /// Time between two cleaning passes in ns, in place of `cache_clean_interval`, for intervals
    /// below a second (tests). 0 means the interval of the options.
    pub clean_interval_ns: u64,
    /// Where the cleaner runs. Thread host: NULL. Event loop host: a `q2c_loop`, not NULL.
    /// Coroutine host: passed to `co_spawn`; NULL means the caller's current context.
    pub context: *mut c_void,
}

// SAFETY: repr(C), its size first, numbers and pointers.
unsafe impl CStruct for q2c_state_config {
    const NAME: &'static str = "q2c_state_config";
}

/// Makes the state of an image that is being opened: both caches, empty, and the cleaner, which is
/// started last, when every option is set.
///
/// Parameters:
/// - `config`: must not be NULL.
/// - `state`: receives the handle; must not be NULL.
/// - `error`: may be NULL. Its message says which option or argument was refused.
///
/// Context: any thread. Never waits and calls no storage, but may run the cleaner's new coroutine
/// up to its first wait inside the call.
///
/// Returns: 0 on success. On an error nothing is left behind.
/// - `-EINVAL`: `config`, `state`, `l2_storage` or `geometry` is NULL; a `struct_size` is too
///   small; `q2c_cache_create` would refuse the host or a storage; `q2c_options_resolve` would
///   refuse the options or the geometry; `context` does not fit the host.
/// - `-ENOMEM`: there is not enough address space for the tables, or not enough memory for what the
///   caches keep about them.
/// - `-ENOTSUP`: an interval is above 0, and the kernel takes no memory back.
/// - `-EAGAIN`, `-EMFILE`, `-ENFILE`, `-ENOMEM`: thread host: the background thread for the cleaner
///   or its descriptor could not be made.
/// - any errno of `co_spawn`: the cleaner's coroutine could not be made.
///
/// Ownership: `*state` is the caller's, to be destroyed by `q2c_state_close`. What the `opaque`
/// pointers lead to must live as long as the state.
///
/// # Safety
/// Pointers are NULL or valid, including those in `config`. Callbacks keep the contracts of
/// `q2c_storage` and `q2c_host`. On an event loop host, `context` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_open(
    config: *const q2c_state_config,
    state: *mut *mut q2c_state,
    error: *mut q2c_error,
) -> c_int {
    let open = || {
        // SAFETY: the caller keeps this function's contract for all that `config` leads to.
        let config = unsafe { config_from(config) }?;
        // SAFETY: NULL or writable, as the caller promised.
        let state = unsafe { named_out(state, "state") }?;
        state.set(Box::into_raw(Box::new(State::open(config)?)).cast());
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_state_open", error, open) }
}

/// The core's configuration on copies of C's structs.
///
/// # Safety
/// The contract of [`q2c_state_open`] for `config`.
unsafe fn config_from(config: *const q2c_state_config) -> Result<Config> {
    // SAFETY: NULL or readable as far as its struct_size says, as the caller promised. The caller
    // promised the same for what `config` leads to, which the calls below get.
    let config = unsafe { read_struct(config) }?;
    // SAFETY: promised for all that `config` leads to; its callbacks keep their contract.
    let host = unsafe { host_from(config.host) }?;
    // SAFETY: promised for all that `config` leads to; its callbacks keep their contract.
    let l2_storage = unsafe { storage_from(config.l2_storage) }?;
    let refcount_storage = if config.refcount_storage.is_null() {
        Arc::clone(&l2_storage)
    } else {
        // SAFETY: promised for all that `config` leads to; its callbacks keep their contract.
        unsafe { storage_from(config.refcount_storage) }?
    };
    interval_in_words(config.clean_interval_ns)?;
    Ok(Config {
        // SAFETY: on an event loop host, NULL or a live loop, as the caller promised.
        context: unsafe { context_from(&*host, config.context) }.map_err(no_context)?,
        host,
        l2_storage,
        refcount_storage,
        l2_kind: config.l2_kind,
        refcount_kind: config.refcount_kind,
        // SAFETY: promised for all that `config` leads to.
        geometry: unsafe { geometry_from(config.geometry) }?,
        // SAFETY: promised for all that `config` leads to.
        options: unsafe { options_from(config.options) }?,
        clean_interval_ns: config.clean_interval_ns,
    })
}

/// The error for a `context` that does not fit the host, in words.
#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn no_context(errno: Errno) -> Error {
    Error::new(
        errno,
        "'context' is none of this host's: allowed are NULL on threads, a q2c_loop on event loops",
    )
}

/// [`check_interval`], with the error in words.
pub(super) fn interval_in_words(interval_ns: u64) -> Result<()> {
    check_interval(interval_ns).map_err(|errno| {
        let message = format!(
            "'clean_interval_ns' is {interval_ns}: allowed is 0, as this system's kernel takes no \
             memory back"
        );
        Error::new(errno, message)
    })
}

/// Closes a state: stops the cleaner and waits for its end, writes what is dirty, flushes storage
/// where that is owed, and frees everything.
///
/// A flush is owed if a table was written since the last good flush, if one was asked for with
/// `q2c_cache_depends_on_flush` and has not happened, or if a cache is unstable. Else the call does
/// not flush: a driver that wrote data of its own flushes it before.
///
/// Parameters:
/// - `state`: set to NULL on success. NULL, or a pointer to NULL, returns 0.
///
/// Context: thread, coroutine, or plain code of a coroutine host, which polls; state lock not held;
/// may wait. No other call may use the state or one of its parts meanwhile.
///
/// Returns: 0 on success. On an error the state stays open and nothing is lost, but its cleaner is
/// stopped, unless the list says otherwise. Call it again, or give dirty tables up with
/// `q2c_state_invalidate` first.
/// - `-EBUSY`: a table is pinned, being loaded or being written; somebody else holds the built-in
///   lock; or a cleaner was started meanwhile, and runs.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself. Nothing was stopped.
/// - `-ENOTEMPTY`: tables were dirtied meanwhile.
/// - `-EIO`: a cache is poisoned, and that cache or one that depends on it has dirty tables.
/// - any errno of `pwritev`, `flush` or `pre_write_check`.
///
/// Ownership: frees the handle, both caches and the cleaner. Handles that were borrowed from the
/// state are invalid from then on.
///
/// # Safety
/// `state` is NULL or points to NULL or to a live state, which nobody else uses during the call and
/// nobody uses after it succeeded. No prepared change of the state is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_close(state: *mut *mut q2c_state) -> c_int {
    let check = |handle: *mut q2c_state| {
        // SAFETY: live, as the caller promised; the borrow ends before the state does.
        on_state(unsafe { value(handle) }?, State::close)
    };
    // SAFETY: the pointer came from `Box::into_raw` in `q2c_state_open`, and only this call frees
    // it.
    let free = |state: *mut State| drop(unsafe { Box::from_raw(state) });
    // SAFETY: the caller keeps this function's contract for `state`.
    unsafe { call_destroy(state, check, free) }
}

/// Takes notice that another process wrote the image: stops the cleaner, drops every table, dirty
/// ones too, and starts the cleaner again. It never writes.
///
/// Context: thread, coroutine, or plain code of a coroutine host, which polls; state lock not held;
/// may wait. The call takes the lock itself. Plain code cannot take a host's own lock: there the
/// image must be quiesced.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `state` is NULL.
/// - `-EBUSY`: a table is pinned, being loaded or being written. Nothing was dropped, and the
///   cleaner was started again if the host could start it. A table that comes into use only while
///   others are dropped, by a get without the state lock, is no obstacle: it is dropped, and who
///   has it pinned keeps what it was.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself. Nothing was stopped.
/// - `-EAGAIN`, `-EMFILE`, `-ENFILE`, `-ENOMEM`, any errno of `co_spawn`: every table was dropped,
///   but the cleaner could not be started again; see `q2c_cleaner_start`.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_invalidate(state: *mut q2c_state) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, State::invalidate) }
}

/// Tells the state that the image has come to `context`: starts the cleaner there, with the
/// interval that was set last.
///
/// Parameters:
/// - `context`: where the cleaner runs. Thread host: NULL. Event loop host: a `q2c_loop`, not NULL.
///   Coroutine host: passed to `co_spawn`; NULL means the caller's current context.
///
/// Context: any thread. Never waits, but may run the cleaner's new coroutine up to its first wait
/// inside the call.
///
/// Returns: 0 on success. On an error other than `-EALREADY` the image is still detached.
/// - `-EINVAL`: `state` is NULL; `context` does not fit the host.
/// - `-EALREADY`: the image is attached.
/// - `-EAGAIN`, `-EMFILE`, `-ENFILE`, `-ENOMEM`: thread host: the background thread or its
///   descriptor could not be made.
/// - any errno of `co_spawn`: the coroutine could not be made.
///
/// Ownership: the state keeps a `q2c_loop` alive while it is attached to it.
///
/// # Safety
/// `state` is NULL or a live state. On an event loop host, `context` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_attach_context(
    state: *mut q2c_state,
    context: *mut c_void,
) -> c_int {
    let attach = |state: &State| {
        // SAFETY: the caller keeps this function's contract for `context`.
        let context = unsafe { context_from(&**state.cleaner().host(), context) }?;
        state.attach(context)
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, attach) }
}

/// Tells the state that the image leaves its context: asks the cleaner to stop and does not wait
/// for its end. The interval is kept for the next attach.
///
/// Context: any thread, with any lock held. Never waits, but may run the cleaner's coroutine inside
/// the call if the host's `co_wake` does so.
///
/// Returns: 0 on success, and if the image is detached already.
/// - `-EINVAL`: `state` is NULL.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_detach_context(state: *mut q2c_state) -> c_int {
    let detach = |state: &State| {
        state.detach();
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, detach) }
}

/// Takes the state lock. It is `q2c_cleaner_lock` of the state's cleaner; the order in which
/// callers get the lock is described there.
///
/// Context: a thread or coroutine that does not hold the lock; may wait. Plain code of a coroutine
/// host can take the built-in lock, but not the host's own.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `state` is NULL.
/// - `-EDEADLK`: the caller already holds the built-in lock.
/// - `-EPERM`: the lock is the host's own and the caller is plain code.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_lock(state: *mut q2c_state) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, |state| state.cleaner().lock()) }
}

/// Releases the state lock. It is `q2c_cleaner_unlock` of the state's cleaner.
///
/// Context: the thread or coroutine that took the lock. Never waits, but may run the next owner
/// inside the call if the host's `co_wake` does so.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `state` is NULL.
/// - `-EPERM`: the caller does not hold the built-in lock; or the lock is the host's own and the
///   caller is plain code.
///
/// # Safety
/// `state` is NULL or a live state. If the lock is the host's own, the caller holds it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_unlock(state: *mut q2c_state) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, |state| state.cleaner().unlock()) }
}

/// A part of the state, as a handle that C only borrows. NULL if `state` is NULL, or after a panic.
///
/// # Safety
/// The contract of [`value`].
unsafe fn part<H>(state: *const q2c_state, part: impl FnOnce(&State) -> *const H) -> *mut H {
    // SAFETY: the caller keeps this function's contract; the borrow ends with this call.
    let Ok(state) = (unsafe { value(state) }) else {
        return std::ptr::null_mut();
    };
    guard(|| part(state).cast_mut()).unwrap_or_else(|_| {
        poison_state(state);
        std::ptr::null_mut()
    })
}

/// The state's L2 cache.
///
/// Context: any thread; never waits.
///
/// Returns: the handle; NULL if `state` is NULL, or if the library panicked inside.
///
/// Ownership: borrowed; not to be destroyed. Valid until the next `q2c_update_options_commit`,
/// `q2c_state_invalidate` or `q2c_state_close`.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_l2_cache(state: *mut q2c_state) -> *mut q2c_cache {
    // The state still owns the cache when the temporary Arc is dropped, so the address stays valid.
    let l2 = |state: &State| Arc::as_ptr(&state.l2_cache()).cast();
    // SAFETY: NULL or live, as the caller promised.
    unsafe { part(state, l2) }
}

/// The state's refcount cache.
///
/// Context: any thread; never waits.
///
/// Returns: the handle; NULL if `state` is NULL, or if the library panicked inside.
///
/// Ownership: borrowed; not to be destroyed. Valid until the next `q2c_update_options_commit`,
/// `q2c_state_invalidate` or `q2c_state_close`.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_refcount_cache(state: *mut q2c_state) -> *mut q2c_cache {
    // The state still owns the cache when the temporary Arc is dropped, so the address stays valid.
    let refcount = |state: &State| Arc::as_ptr(&state.refcount_cache()).cast();
    // SAFETY: NULL or live, as the caller promised.
    unsafe { part(state, refcount) }
}

/// The state's cleaner, which comes with the state lock.
///
/// Context: any thread; never waits.
///
/// Returns: the handle; NULL if `state` is NULL, or if the library panicked inside.
///
/// Ownership: borrowed; not to be destroyed. Valid until `q2c_state_close`.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_cleaner(state: *mut q2c_state) -> *mut q2c_cleaner {
    let cleaner = |state: &State| std::ptr::from_ref(state.cleaner()).cast();
    // SAFETY: NULL or live, as the caller promised.
    unsafe { part(state, cleaner) }
}
