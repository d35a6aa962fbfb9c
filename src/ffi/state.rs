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
/// Made by `q2c_state_open` and destroyed by `q2c_state_close`. Usable from any thread, but for its
/// closing.
pub struct q2c_state {
    _private: [u8; 0],
}

/// `Box::into_raw`.
impl Handle for q2c_state {
    type Value = State;
}

/// What a state is opened with. All of it is copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_state_config {
    /// sizeof(q2c_state_config).
    pub struct_size: usize,
    /// Where callers wait and the cleaner runs. NULL: threads.
    pub host: *const q2c_host,
    /// Below the L2 cache. Must not be NULL.
    pub l2_storage: *const q2c_storage,
    /// Below the refcount cache. NULL: `l2_storage`.
    pub refcount_storage: *const q2c_storage,
    /// The caller's own number for L2 tables, handed to `pre_write_check` and `corruption`.
    pub l2_kind: c_int,
    /// The same for refcount blocks.
    pub refcount_kind: c_int,
    /// The image's. Must not be NULL.
    pub geometry: *const q2c_geometry,
    /// What the user set. NULL: nothing.
    pub options: *const q2c_options,
    /// Time between two cleaning passes in ns, in place of `cache_clean_interval`, for intervals
    /// below a second (tests). 0: by the options.
    pub clean_interval_ns: u64,
    /// Where the cleaner runs. Threads: NULL. Event loop: the `q2c_loop`. Coroutines: handed to
    /// `co_spawn`, NULL is the caller's current context.
    pub context: *mut c_void,
}

// SAFETY: repr(C), its size first, numbers and pointers.
unsafe impl CStruct for q2c_state_config {
    const NAME: &'static str = "q2c_state_config";
}

/// Makes the state of an image that is being opened: both caches, empty, and the cleaner, which is
/// started last, when every option is set.
///
/// Any thread; never waits, calls no storage, but may run the cleaner's new coroutine up to its
/// first wait. What the `opaque`s lead to must live as long as the state. On success `*state` is
/// the caller's, for `q2c_state_close`; on an error it is left alone, nothing is left behind, and
/// the message says which option or argument it was. `error` may be NULL.
///
/// - `-EINVAL`: `config`, `l2_storage`, `geometry` or `state` is NULL; what `q2c_cache_create`
///   refuses of storage and host; what `q2c_options_resolve` refuses; `context` is none of this
///   host.
/// - `-ENOMEM`: there is no address space for so many tables.
/// - `-ENOTSUP`: an interval above 0, and the kernel takes no memory back.
/// - `-EAGAIN`, or `co_spawn`'s own: the cleaner could not be started.
///
/// # Safety
/// Pointers are NULL or valid, those in `config` too; callbacks keep the contracts of `q2c_storage`
/// and `q2c_host`; on an event loop host `context` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_open(
    config: *const q2c_state_config,
    state: *mut *mut q2c_state,
    error: *mut q2c_error,
) -> c_int {
    let open = || {
        // SAFETY: the caller's promise about all that `config` leads to.
        let config = unsafe { config_from(config) }?;
        // SAFETY: NULL or writable, as the caller promised.
        let state = unsafe { named_out(state, "state") }?;
        state.set(Box::into_raw(Box::new(State::open(config)?)).cast());
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_state_open", error, open) }
}

/// # Safety
/// As [`q2c_state_open`] says of `config`.
unsafe fn config_from(config: *const q2c_state_config) -> Result<Config> {
    // SAFETY: NULL or readable as far as its struct_size says, as the caller promised; so is what
    // the calls below are given.
    let config = unsafe { read_struct(config) }?;
    // SAFETY: as above, with callbacks that keep their contract.
    let host = unsafe { host_from(config.host) }?;
    // SAFETY: as above.
    let l2_storage = unsafe { storage_from(config.l2_storage) }?;
    let refcount_storage = if config.refcount_storage.is_null() {
        Arc::clone(&l2_storage)
    } else {
        // SAFETY: as above.
        unsafe { storage_from(config.refcount_storage) }?
    };
    interval_in_words(config.clean_interval_ns)?;
    Ok(Config {
        // SAFETY: as above, for the context.
        context: unsafe { context_from(&*host, config.context) }.map_err(no_context)?,
        host,
        l2_storage,
        refcount_storage,
        l2_kind: config.l2_kind,
        refcount_kind: config.refcount_kind,
        // SAFETY: as above.
        geometry: unsafe { geometry_from(config.geometry) }?,
        // SAFETY: as above.
        options: unsafe { options_from(config.options) }?,
        clean_interval_ns: config.clean_interval_ns,
    })
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn no_context(errno: Errno) -> Error {
    Error::new(
        errno,
        "'context' is none of this host's: allowed are NULL on threads, a q2c_loop on event loops",
    )
}

pub(super) fn interval_in_words(interval_ns: u64) -> Result<()> {
    check_interval(interval_ns).map_err(|errno| {
        let message = format!(
            "'clean_interval_ns' is {interval_ns}: allowed is 0, as this system's kernel takes no \
             memory back"
        );
        Error::new(errno, message)
    })
}

/// Closes a state: stops the cleaner and waits for its end, writes what is dirty, flushes, frees
/// everything, and sets `*state` to NULL. NULL, and a NULL in `*state`, is 0.
///
/// Coroutine, thread or plain code, state lock not held; may wait. Not to be called while another
/// call uses the state or one of its parts.
///
/// On an error the state stays open and nothing is lost, but its cleaner is stopped. Call it again,
/// or give dirty tables up with `q2c_state_invalidate` first.
///
/// - `-EBUSY`: a table is in use, or the state lock is held by somebody else.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself.
/// - `-ENOTEMPTY`: tables were dirtied meanwhile.
/// - `-EIO`: a cache is poisoned; storage's own: of a write or flush.
///
/// # Safety
/// `state` is NULL or points to NULL or to a live state, which nobody uses during the call or, once
/// it is 0, after it; no prepared change of it is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_close(state: *mut *mut q2c_state) -> c_int {
    let check = |handle: *mut q2c_state| {
        // SAFETY: live, as the caller promised; the borrow ends before the state does.
        on_state(unsafe { value(handle) }?, State::close)
    };
    // SAFETY: the pointer came from `Box::into_raw` in `q2c_state_open`, and is freed here alone.
    let free = |state: *mut State| drop(unsafe { Box::from_raw(state) });
    // SAFETY: the caller keeps this function's contract for `state`.
    unsafe { call_destroy(state, check, free) }
}

/// Another process wrote the image: stops the cleaner, drops every table, dirty ones too, and
/// starts the cleaner again.
///
/// Coroutine, thread or plain code, state lock not held (it is taken inside, except by plain code
/// where it is the host's: there the image has to be quiesced); may wait. Never writes.
///
/// - `-EINVAL`: `state` is NULL.
/// - `-EBUSY`: a table is in use. Tables of neither cache were dropped for that, and the cleaner
///   runs again.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself.
/// - as `q2c_cleaner_start`: every table was dropped, but the cleaner could not be started again.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_invalidate(state: *mut q2c_state) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, State::invalidate) }
}

/// The image has come to `context`: starts the cleaner there (see `q2c_cleaner_start`), with the
/// interval that was set last.
///
/// Any thread, state lock held or not; never waits, but may run the new coroutine up to its first
/// wait.
///
/// - `-EINVAL`: `state` is NULL; `context` is none of this host.
/// - `-EALREADY`: the image is attached.
/// - as `q2c_cleaner_start`: the cleaner could not be started; the image is still detached.
///
/// # Safety
/// `state` is NULL or a live state; on an event loop host `context` is NULL or a live loop.
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

/// The image leaves its context: asks the cleaner to stop, and does not wait. Its interval is kept
/// for the next attach. If it is detached already: 0.
///
/// Any thread, any lock held, never waits. `-EINVAL`: `state` is NULL.
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

/// Takes the state lock: `q2c_cleaner_lock` of the state's cleaner, with its context and errors.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_lock(state: *mut q2c_state) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, |state| state.cleaner().lock()) }
}

/// Lets the state lock go: `q2c_cleaner_unlock` of the state's cleaner, with its context and
/// errors.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_unlock(state: *mut q2c_state) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, |state| state.cleaner().unlock()) }
}

/// A part of the state, for a handle that C only borrows. NULL for NULL.
///
/// # Safety
/// As [`value`].
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

/// The L2 cache. Borrowed: valid until the next `q2c_update_options_commit`, `q2c_state_invalidate`
/// or `q2c_state_close`; not to be destroyed.
///
/// Any thread, never waits. NULL for NULL.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_l2_cache(state: *mut q2c_state) -> *mut q2c_cache {
    // The state owns it beyond the temporary Arc, hence the address stays good.
    let l2 = |state: &State| Arc::as_ptr(&state.l2_cache()).cast();
    // SAFETY: NULL or live, as the caller promised.
    unsafe { part(state, l2) }
}

/// The refcount cache. Borrowed, as the L2 cache is.
///
/// Any thread, never waits. NULL for NULL.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_refcount_cache(state: *mut q2c_state) -> *mut q2c_cache {
    // As for the L2 cache.
    let refcount = |state: &State| Arc::as_ptr(&state.refcount_cache()).cast();
    // SAFETY: NULL or live, as the caller promised.
    unsafe { part(state, refcount) }
}

/// The cleaner, with the state lock. Borrowed: valid until `q2c_state_close`; not to be destroyed.
///
/// Any thread, never waits. NULL for NULL.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_state_cleaner(state: *mut q2c_state) -> *mut q2c_cleaner {
    let cleaner = |state: &State| std::ptr::from_ref(state.cleaner()).cast();
    // SAFETY: NULL or live, as the caller promised.
    unsafe { part(state, cleaner) }
}
