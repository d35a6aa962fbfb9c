// SPDX-License-Identifier: MIT OR Apache-2.0
//! A change of options, as a transaction.

use std::ffi::c_int;

use parking_lot::Mutex;

use super::options::{optional_geometry_from, options_from, q2c_geometry, q2c_options};
use super::state::{interval_in_words, q2c_state};
use super::{
    Handle, call_destroy, call_set_up, error::q2c_error, guard, internal_error, named_out,
    on_state, poison_state, value,
};
use crate::error::{Errno, Error, Result};
use crate::state::{State, Update};

/// A prepared change of options, with the new caches, which are not in use yet.
///
/// Ownership: made by `q2c_update_options_prepare`. It must be committed or aborted before its
/// state is closed.
pub struct q2c_update {
    _private: [u8; 0],
}

/// The pointer is from `Box::into_raw`.
impl Handle for q2c_update {
    type Value = Prepared;
}

/// What a `q2c_update` stands for. A commit takes the update out, and puts it back if it failed.
pub struct Prepared {
    /// The address of the state that it was prepared for.
    of: usize,
    update: Mutex<Option<Update>>,
}

impl Prepared {
    fn check_state(&self, state: *const q2c_state) -> std::result::Result<(), Errno> {
        if self.of == state.addr() {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }
}

/// Works out new options, allocates their caches, writes what is dirty in the old ones, and flushes
/// storage where that is owed (see `q2c_state_close`). Nothing else changes, and the cleaner runs
/// on.
///
/// Parameters:
/// - `options`: NULL means that no option is set, that is, the defaults.
/// - `geometry`: NULL means that the geometry stays as it is.
/// - `clean_interval_ns`: time between two cleaning passes in ns, in place of the options'
///   interval; 0 means the interval of the options.
/// - `update`: receives the handle; must not be NULL.
/// - `error`: may be NULL. Its message says what was refused or what failed.
///
/// Context: state lock held, or calls serialised otherwise; may wait. Writes what is dirty.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `state` or `update` is NULL; a `struct_size` is too small; `q2c_options_resolve`
///   would refuse the options or the geometry.
/// - `-ENOMEM`: there is not enough address space for the tables, or not enough memory for what the
///   caches keep about them.
/// - `-ENOTSUP`: an interval is above 0, and the kernel takes no memory back.
/// - `-EIO`: an old cache is poisoned, and that cache or one that depends on it has dirty tables.
/// - any errno of `pwritev`, `flush` or `pre_write_check`: the old caches could not be flushed.
///
/// Ownership: `*update` is the caller's, to be ended by `q2c_update_options_commit` or
/// `q2c_update_options_abort`. `options` and `geometry` are copied and need not outlive the call.
///
/// # Safety
/// Pointers are NULL or valid. `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_update_options_prepare(
    state: *mut q2c_state,
    options: *const q2c_options,
    geometry: *const q2c_geometry,
    clean_interval_ns: u64,
    update: *mut *mut q2c_update,
    error: *mut q2c_error,
) -> c_int {
    let prepare = || {
        // SAFETY: NULL or writable, as the caller promised.
        let place = unsafe { named_out(update, "update") }?;
        // SAFETY: the caller keeps this function's contract for these arguments.
        let prepared = unsafe { prepare(state, options, geometry, clean_interval_ns) }?;
        place.set(Box::into_raw(Box::new(prepared)).cast());
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_update_options_prepare", error, prepare) }
}

/// [`q2c_update_options_prepare`] without its output.
///
/// # Safety
/// The contract of [`q2c_update_options_prepare`] for these arguments.
unsafe fn prepare(
    state: *const q2c_state,
    options: *const q2c_options,
    geometry: *const q2c_geometry,
    clean_interval_ns: u64,
) -> Result<Prepared> {
    // SAFETY: NULL or live, as the caller promised.
    let Ok(target) = (unsafe { value(state) }) else {
        return Err(Error::new(Errno::INVAL, "the q2c_state is NULL"));
    };
    // SAFETY: NULL or readable as far as their struct_size says, as the caller promised.
    let (options, geometry) =
        unsafe { (options_from(options)?, optional_geometry_from(geometry)?) };
    interval_in_words(clean_interval_ns)?;
    let update = guard(|| target.prepare(&options, geometry, clean_interval_ns)).unwrap_or_else(
        |panic| {
            poison_state(target);
            Err(internal_error("q2c_update_options_prepare", &*panic))
        },
    )?;
    Ok(Prepared {
        of: state.addr(),
        update: Mutex::new(Some(update)),
    })
}

/// Puts a prepared change into effect: stops the cleaner and waits for its end, swaps the caches,
/// sets every option, and starts the cleaner if the image is attached. If the host cannot start the
/// cleaner, that is no error and does not undo the change: `q2c_cleaner_is_running` tells.
///
/// An old cache in which a table was dirtied since the prepare is flushed first; else the call does
/// not use storage. The new caches take over what the old ones' next writes would wait for, and
/// that an old one is unstable (see `q2c_cache_flush`).
///
/// Parameters:
/// - `update`: set to NULL on success.
/// - `locked`: whether the caller holds the state lock.
///
/// Context: may wait. Writes only what is dirty. No request may use the old caches. With `locked`
/// true: a thread or coroutine that holds the state lock, which is released while the call waits
/// for the cleaner. With `locked` false: thread, coroutine, or plain code of a coroutine host,
/// which polls; the state lock is not held. The call takes it itself. Plain code cannot take a
/// host's own lock: there the image must be quiesced.
///
/// Returns: 0 on success. On an error caches and options are as they were, and `*update` stays, to
/// be committed again or aborted. The cleaner was not touched after `-EINVAL`, `-EPERM` and
/// `-EDEADLK`; after any other error it was stopped, and started again if the image is attached and
/// the host could start it.
/// - `-EINVAL`: `state`, `update` or `*update` is NULL; the update was prepared for another state.
/// - `-EBUSY`: a table of an old cache is pinned, being loaded or being written.
/// - `-ENOTEMPTY`: a table of an old cache was dirtied meanwhile.
/// - `-EPERM`: `locked` is true, and the caller does not hold the built-in lock, or is plain code
///   on a coroutine host.
/// - `-EDEADLK`: `locked` is false, and the caller holds the built-in lock; or the caller is the
///   cleaner itself.
/// - `-EIO`: an old cache is poisoned, and that cache or one that depends on it has dirty tables.
/// - any errno of `pwritev`, `flush` or `pre_write_check`: an old cache could not be flushed.
///
/// Ownership: frees the update. Caches that were borrowed from the state before are invalid from
/// then on.
///
/// # Safety
/// `state` is NULL or a live state. `update` is NULL or points to NULL or to a live update, which
/// nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_update_options_commit(
    state: *mut q2c_state,
    update: *mut *mut q2c_update,
    locked: bool,
) -> c_int {
    let commit = |handle: *mut q2c_update| {
        // SAFETY: the state is NULL or live and the update is live, as the caller promised; the
        // borrows end with this call.
        let (target, prepared) = unsafe { (value(state)?, value(handle)?) };
        prepared.check_state(state)?;
        on_state(target, |target| commit(target, prepared, locked))
    };
    // SAFETY: NULL or readable, as the caller promised.
    if update.is_null() || unsafe { update.read() }.is_null() {
        return -Errno::INVAL.code();
    }
    // SAFETY: the caller keeps this function's contract for `update`; the update is freed once the
    // change is in effect.
    unsafe { call_destroy(update, commit, free) }
}

fn commit(state: &State, prepared: &Prepared, locked: bool) -> std::result::Result<(), Errno> {
    let update = prepared.update.lock().take().ok_or(Errno::INVAL)?;
    state.commit(update, locked).map_err(|(errno, update)| {
        *prepared.update.lock() = Some(update);
        errno
    })
}

fn free(prepared: *mut Prepared) {
    // SAFETY: only `call_destroy` calls this, once, with the pointer from `Box::into_raw` in
    // `q2c_update_options_prepare`.
    drop(unsafe { Box::from_raw(prepared) });
}

/// Gives a prepared change up.
///
/// Parameters:
/// - `update`: set to NULL on success. NULL, or a pointer to NULL, returns 0.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: the update was prepared for another state, or `state` is NULL.
///
/// Ownership: frees the update and its new caches.
///
/// # Safety
/// `state` is NULL or a live state. `update` is NULL or points to NULL or to a live update, which
/// nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_update_options_abort(
    state: *mut q2c_state,
    update: *mut *mut q2c_update,
) -> c_int {
    // SAFETY: live, as the caller promised; the borrow ends before the update does.
    let check = |handle: *mut q2c_update| unsafe { value(handle) }?.check_state(state);
    // SAFETY: the caller keeps this function's contract for `update`.
    unsafe { call_destroy(update, check, free) }
}
