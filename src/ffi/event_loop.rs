// SPDX-License-Identifier: MIT OR Apache-2.0
//! The built-in event loop's handle.

use std::ffi::c_int;
use std::sync::Arc;

use super::{
    Code, Handle, call, call_destroy, call_set_up, error::q2c_error, named_out, out, value,
};
use crate::error::Errno;
use crate::host::event_loop::EventLoop;

/// An event loop of the library, in which cleaners live as tasks. Its *home* is the thread that
/// made it, which turns it by `q2c_loop_poll`, or by `q2c_loop_dispatch` from inside a foreign loop
/// that watches the descriptor and the timeout.
pub struct q2c_loop {
    _private: [u8; 0],
}

/// `Arc::into_raw`.
impl Handle for q2c_loop {
    type Value = EventLoop;
}

/// A further owner of a loop. `EINVAL`: NULL.
///
/// # Safety
/// As [`value`].
pub(super) unsafe fn share_loop(event_loop: *const q2c_loop) -> Result<Arc<EventLoop>, Errno> {
    if event_loop.is_null() {
        return Err(Errno::INVAL);
    }
    let event_loop = event_loop.cast::<EventLoop>();
    // SAFETY: every handle came from `Arc::into_raw` in `q2c_loop_new`, and its count is above 0
    // since it is live; the count that is added here belongs to the result.
    unsafe {
        Arc::increment_strong_count(event_loop);
        Ok(Arc::from_raw(event_loop))
    }
}

/// # Safety
/// As [`value`].
unsafe fn call_loop<T: Code>(
    event_loop: *const q2c_loop,
    body: impl FnOnce(&EventLoop) -> Result<T, Errno>,
) -> c_int {
    // SAFETY: the caller's promise; the borrow ends with this call.
    call(|| body(unsafe { value(event_loop) }?))
}

/// Makes an event loop whose home is the calling thread. It holds one file descriptor.
///
/// Any thread, never waits. On success `*loop` is the caller's, for `q2c_loop_free`; on an error it
/// is left alone. `error` may be NULL.
///
/// - `-EINVAL`: `loop` is NULL.
/// - `-EMFILE`, `-ENFILE`, `-ENOMEM`: there is no descriptor to be had.
///
/// # Safety
/// Pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_new(r#loop: *mut *mut q2c_loop, error: *mut q2c_error) -> c_int {
    let create = || {
        // SAFETY: NULL or writable, as the caller promised.
        let place = unsafe { named_out(r#loop, "loop") }?;
        place.set(Arc::into_raw(EventLoop::new()?).cast_mut().cast());
        Ok(())
    };
    // SAFETY: NULL or writable, as the caller promised.
    unsafe { call_set_up("q2c_loop_new", error, create) }
}

/// Frees a loop and sets `*loop` to NULL. NULL, and a NULL in `*loop`, is 0.
///
/// Home thread, never waits. Not to be called while another call uses the loop, or from inside its
/// dispatch.
///
/// - `-EPERM`: not the home thread.
/// - `-EBUSY`: a cleaner lives in it, asked to stop or not: a loop has to be turned until its last
///   one has ended.
///
/// # Safety
/// `loop` is NULL or points to NULL or to a live loop, which nobody uses during the call or after
/// it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_free(r#loop: *mut *mut q2c_loop) -> c_int {
    let check = |handle: *mut q2c_loop| {
        // SAFETY: live, as the caller promised; the borrow ends before the loop does.
        let event_loop = unsafe { value(handle) }?;
        if !event_loop.is_home() {
            return Err(Errno::PERM);
        }
        if event_loop.executor().has_tasks() {
            return Err(Errno::BUSY);
        }
        Ok(())
    };
    // SAFETY: the pointer came from `Arc::into_raw` in `q2c_loop_new`; its count is given back here
    // alone.
    let free = |event_loop: *mut EventLoop| drop(unsafe { Arc::from_raw(event_loop) });
    // SAFETY: the caller's promise about `loop`.
    unsafe { call_destroy(r#loop, check, free) }
}

/// Waits at most `timeout_ns` ns (-1: without limit, 0: not at all) until there is something to
/// dispatch, and dispatches it. A kick or a signal ends the wait, too.
///
/// Home thread, state lock not held; waits.
///
/// Returns how many tasks and timers ran, perhaps 0, or
/// - `-EINVAL`: `loop` is NULL; `timeout_ns` is below -1.
/// - `-EPERM`: not the home thread.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_poll(r#loop: *mut q2c_loop, timeout_ns: i64) -> c_int {
    let poll = |event_loop: &EventLoop| match timeout_ns {
        -1 => event_loop.poll(None),
        limit => event_loop.poll(Some(u64::try_from(limit).map_err(|_| Errno::INVAL)?)),
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_loop(r#loop, poll) }
}

/// The loop's file descriptor, for `poll` and its like: readable when there is something to
/// dispatch, but for timers, which `q2c_loop_timeout_ns` tells of. It stays the loop's: neither
/// read nor close it.
///
/// Any thread, never waits. Returns the descriptor, 0 or more, or `-EINVAL`: `loop` is NULL.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_fd(r#loop: *mut q2c_loop) -> c_int {
    struct Descriptor(c_int);
    impl Code for Descriptor {
        fn code(self) -> c_int {
            self.0
        }
    }
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_loop(r#loop, |event_loop| Ok(Descriptor(event_loop.fd()))) }
}

/// Sets `*timeout_ns` to how long a foreign loop may wait before the next dispatch is due: ns; 0:
/// now; -1: until the descriptor is readable. It changes with whatever runs in between: ask before
/// each wait.
///
/// Any thread, never waits. `-EINVAL`: an argument is NULL.
///
/// # Safety
/// `loop` is NULL or a live loop; `timeout_ns` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_timeout_ns(r#loop: *mut q2c_loop, timeout_ns: *mut i64) -> c_int {
    let ask = |event_loop: &EventLoop| {
        // SAFETY: NULL or writable, as the caller promised.
        let place = unsafe { out(timeout_ns) }?;
        let timeout = event_loop.timeout_ns();
        place.set(timeout.map_or(-1, |ns| i64::try_from(ns).unwrap_or(i64::MAX)));
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_loop(r#loop, ask) }
}

/// Runs the timers that are due and the tasks that are ready, and makes the descriptor unreadable
/// until there is more.
///
/// Home thread, state lock not held; never waits.
///
/// Returns how many tasks and timers ran, perhaps 0, or
/// - `-EINVAL`: `loop` is NULL.
/// - `-EPERM`: not the home thread.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_dispatch(r#loop: *mut q2c_loop) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_loop(r#loop, EventLoop::dispatch) }
}

/// Makes the descriptor readable, so that a `q2c_loop_poll` that waits, or the next one, returns.
///
/// Any thread, never waits. `-EINVAL`: `loop` is NULL.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_kick(r#loop: *mut q2c_loop) -> c_int {
    let kick = |event_loop: &EventLoop| {
        event_loop.kick();
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_loop(r#loop, kick) }
}

/// # Safety
/// As [`value`].
unsafe fn call_clock(
    event_loop: *const q2c_loop,
    otherwise: Errno,
    change: impl FnOnce(&EventLoop) -> bool,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        call_loop(event_loop, |event_loop| {
            change(event_loop).then_some(()).ok_or(otherwise)
        })
    }
}

/// Stops the loop's clock, as a virtual machine's stands still while it is stopped. Cleaners in the
/// loop sleep on, and can be stopped.
///
/// Any thread, never waits.
///
/// - `-EINVAL`: `loop` is NULL.
/// - `-EALREADY`: it stands already.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_clock_pause(r#loop: *mut q2c_loop) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe {
        call_clock(r#loop, Errno::ALREADY, |event_loop| {
            event_loop.executor().pause_clock()
        })
    }
}

/// Lets the loop's clock go on from where it stands.
///
/// Any thread, never waits.
///
/// - `-EINVAL`: `loop` is NULL.
/// - `-EALREADY`: it runs already.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_clock_resume(r#loop: *mut q2c_loop) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe {
        call_clock(r#loop, Errno::ALREADY, |event_loop| {
            event_loop.executor().resume_clock()
        })
    }
}

/// Moves a paused clock forward by `ns` ns, for tests, to `INT64_MAX - 1` at most. What becomes due
/// runs in the home thread's next dispatch.
///
/// Any thread, never waits. `-EINVAL`: `loop` is NULL, or its clock runs.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_clock_step(r#loop: *mut q2c_loop, ns: u64) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe {
        call_clock(r#loop, Errno::INVAL, |event_loop| {
            event_loop.executor().step_clock(ns)
        })
    }
}
