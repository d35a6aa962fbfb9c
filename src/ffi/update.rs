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

/// A prepared change of options, with the new caches, not in use yet. Ends by
/// `q2c_update_options_commit` or `q2c_update_options_abort`, before its state is closed.
pub struct q2c_update {
    _private: [u8; 0],
}

/// `Box::into_raw`.
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

/// Works out new options, allocates their caches and flushes the old ones. Nothing else changes,
/// and the cleaner runs on.
///
/// State lock held, or calls serialised otherwise; may wait, writes. `options` NULL: nothing set,
/// that is, the defaults. `geometry` NULL: as it is. `clean_interval_ns`: as in `q2c_state_config`.
/// On success `*update` is the caller's, for commit or abort; on an error it is left alone, and the
/// message says what it was. `error` may be NULL.
///
/// - `-EINVAL`: `state` or `update` is NULL; what `q2c_options_resolve` refuses.
/// - `-ENOMEM`: there is no address space for so many tables.
/// - `-ENOTSUP`: an interval above 0, and the kernel takes no memory back.
/// - `-EIO`: a cache is poisoned; storage's own: the old caches could not be flushed.
///
/// # Safety
/// Pointers are NULL or valid; `state` is NULL or a live state.
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
        // SAFETY: the caller's promise about all three.
        let prepared = unsafe { prepare(state, options, geometry, clean_interval_ns) }?;
        place.set(Box::into_raw(Box::new(prepared)).cast());
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_update_options_prepare", error, prepare) }
}

/// # Safety
/// As [`q2c_update_options_prepare`] says of these.
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
/// sets every option, starts the cleaner. Frees the update and sets `*update` to NULL. Caches that
/// were borrowed from the state are gone.
///
/// `locked` tells whether the caller holds the state lock. True: coroutine or thread that holds it;
/// it is let go while waiting for the cleaner. False: coroutine, thread or plain code; the lock is
/// taken inside, except by plain code where the lock is the host's: there the image has to be
/// quiesced. May wait, may write. No request may use the old caches.
///
/// On an error nothing changed, the cleaner is as it was, and `*update` stays, to be committed
/// again or aborted. A cleaner that the host cannot start is no error and does not undo the change:
/// `q2c_cleaner_is_running` tells.
///
/// - `-EINVAL`: `state`, `update` or `*update` is NULL; the update is of another state.
/// - `-EBUSY`: a table of an old cache is in use.
/// - `-ENOTEMPTY`: a table of an old cache was dirtied meanwhile.
/// - `-EPERM`: `locked`, and the caller does not hold the built-in lock, or is plain code on a
///   coroutine host.
/// - `-EDEADLK`: not `locked`, and the caller holds the built-in lock; or the caller is the cleaner
///   itself.
/// - `-EIO`: a cache is poisoned; storage's own: an old cache could not be flushed.
///
/// # Safety
/// `state` is NULL or a live state; `update` is NULL or points to NULL or to a live update, which
/// nobody else uses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_update_options_commit(
    state: *mut q2c_state,
    update: *mut *mut q2c_update,
    locked: bool,
) -> c_int {
    let commit = |handle: *mut q2c_update| {
        // SAFETY: NULL or live, and live, as the caller promised; the borrows end with this call.
        let (target, prepared) = unsafe { (value(state)?, value(handle)?) };
        prepared.check_state(state)?;
        on_state(target, |target| commit(target, prepared, locked))
    };
    // SAFETY: NULL or readable, as the caller promised.
    if update.is_null() || unsafe { update.read() }.is_null() {
        return -Errno::INVAL.code();
    }
    // SAFETY: the caller's promise about `update`; the update is freed once the change is in
    // effect.
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
    // SAFETY: called by `call_destroy` alone, with the pointer of `Box::into_raw` in
    // `q2c_update_options_prepare`, once.
    drop(unsafe { Box::from_raw(prepared) });
}

/// Gives a prepared change up: frees the new caches and sets `*update` to NULL. NULL, and a NULL in
/// `*update`, is 0.
///
/// Any thread, state lock held or not, never waits.
///
/// - `-EINVAL`: the update is of another state.
///
/// # Safety
/// `state` is NULL or a live state; `update` is NULL or points to NULL or to a live update, which
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
