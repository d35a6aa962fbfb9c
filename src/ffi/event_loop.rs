// SPDX-License-Identifier: MIT OR Apache-2.0
//! The handle of the built-in event loop.

use std::ffi::c_int;
use std::sync::Arc;

use super::{
    Code, Handle, call, call_destroy, call_set_up, error::q2c_error, named_out, out, value,
};
use crate::error::Errno;
use crate::host::event_loop::EventLoop;

/// An event loop of the library, in which cleaners live as tasks. Its *home* is the thread that
/// made it. That thread turns the loop by `q2c_loop_poll`; or by `q2c_loop_dispatch` from inside a
/// foreign loop, which watches the loop's descriptor and timeout.
///
/// Ownership: made by `q2c_loop_new` and freed by `q2c_loop_free`.
pub struct q2c_loop {
    _private: [u8; 0],
}

/// The pointer is from `Arc::into_raw`.
impl Handle for q2c_loop {
    type Value = EventLoop;
}

/// Adds an owner to a loop. `EINVAL`: NULL.
///
/// # Safety
/// The contract of [`value`].
pub(super) unsafe fn share_loop(event_loop: *const q2c_loop) -> Result<Arc<EventLoop>, Errno> {
    if event_loop.is_null() {
        return Err(Errno::INVAL);
    }
    let event_loop = event_loop.cast::<EventLoop>();
    // SAFETY: every handle came from `Arc::into_raw` in `q2c_loop_new`. Its count is above 0, since
    // the handle is live. The count that is added here belongs to the result.
    unsafe {
        Arc::increment_strong_count(event_loop);
        Ok(Arc::from_raw(event_loop))
    }
}

/// An export on a loop.
///
/// # Safety
/// The contract of [`value`].
unsafe fn call_loop<T: Code>(
    event_loop: *const q2c_loop,
    body: impl FnOnce(&EventLoop) -> Result<T, Errno>,
) -> c_int {
    // SAFETY: the caller keeps this function's contract; the borrow ends with this call.
    call(|| body(unsafe { value(event_loop) }?))
}

/// Makes an event loop whose home is the calling thread. It holds one file descriptor.
///
/// Parameters:
/// - `loop`: receives the handle; must not be NULL.
/// - `error`: may be NULL.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `loop` is NULL.
/// - `-EMFILE`, `-ENFILE`, `-ENOMEM`, or another errno of `eventfd`: no descriptor could be made.
///
/// Ownership: `*loop` is the caller's, to be freed by `q2c_loop_free`.
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

/// Frees a loop.
///
/// Parameters:
/// - `loop`: set to NULL on success. NULL, or a pointer to NULL, returns 0.
///
/// Context: home thread; never waits. Not from inside the loop's own dispatch, and no other call
/// may use the loop meanwhile.
///
/// Returns: 0 on success.
/// - `-EPERM`: the caller is not the home thread.
/// - `-EBUSY`: a cleaner lives in the loop, asked to stop or not. Stop it and wait for its end
///   first; a stop ends it without the loop being turned.
///
/// Ownership: frees the handle and closes the descriptor as soon as no cleaner and no state refers
/// to the loop.
///
/// # Safety
/// `loop` is NULL or points to NULL or to a live loop, which nobody else uses during the call and
/// nobody uses after it succeeded.
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
    // SAFETY: the pointer came from `Arc::into_raw` in `q2c_loop_new`; only this call gives its
    // count back.
    let free = |event_loop: *mut EventLoop| drop(unsafe { Arc::from_raw(event_loop) });
    // SAFETY: the caller keeps this function's contract for `loop`.
    unsafe { call_destroy(r#loop, check, free) }
}

/// Waits until there is something to dispatch, and dispatches it. A kick or a signal ends the wait,
/// too.
///
/// Parameters:
/// - `timeout_ns`: the longest wait in ns; 0: do not wait; -1: without limit.
///
/// Context: home thread, state lock not held; waits.
///
/// Returns: the number of tasks and timers that ran, perhaps 0; `INT_MAX` stands for more than
/// that.
/// - `-EINVAL`: `loop` is NULL; `timeout_ns` is below -1.
/// - `-EPERM`: the caller is not the home thread.
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

/// The loop's file descriptor, for `poll` and similar calls. It is readable when there is something
/// to dispatch, except for timers: ask `q2c_loop_timeout_ns` about those.
///
/// Context: any thread; never waits.
///
/// Returns: the descriptor, 0 or more.
/// - `-EINVAL`: `loop` is NULL.
///
/// Ownership: the descriptor belongs to the loop; neither read nor close it.
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

/// Tells how long a foreign loop may wait before the next dispatch is due. The answer changes with
/// whatever runs in between, so ask before each wait.
///
/// Parameters:
/// - `timeout_ns`: receives the time in ns; 0: a dispatch is due now; -1: wait until the descriptor
///   is readable. Must not be NULL.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: an argument is NULL.
///
/// # Safety
/// `loop` is NULL or a live loop. `timeout_ns` is NULL or writable.
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

/// Runs the timers that are due and the tasks that are ready. The descriptor is unreadable then
/// until there is more to dispatch.
///
/// Context: home thread, state lock not held; never waits.
///
/// Returns: the number of tasks and timers that ran, perhaps 0; `INT_MAX` stands for more than
/// that.
/// - `-EINVAL`: `loop` is NULL.
/// - `-EPERM`: the caller is not the home thread.
///
/// # Safety
/// `loop` is NULL or a live loop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_loop_dispatch(r#loop: *mut q2c_loop) -> c_int {
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_loop(r#loop, EventLoop::dispatch) }
}

/// Makes the descriptor readable, so that a `q2c_loop_poll` that waits, or else the next one,
/// returns.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `loop` is NULL.
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

/// An export that changes a loop's clock; `otherwise` is the error if `change` returns false.
///
/// # Safety
/// The contract of [`value`].
unsafe fn call_clock(
    event_loop: *const q2c_loop,
    otherwise: Errno,
    change: impl FnOnce(&EventLoop) -> bool,
) -> c_int {
    // SAFETY: the caller keeps this function's contract.
    unsafe {
        call_loop(event_loop, |event_loop| {
            change(event_loop).then_some(()).ok_or(otherwise)
        })
    }
}

/// Stops the loop's clock, as the clock of a virtual machine stands still while the machine is
/// stopped. Cleaners in the loop sleep on, and can still be stopped.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `loop` is NULL.
/// - `-EALREADY`: the clock already stands still.
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

/// Lets the loop's clock run on from where it stands.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `loop` is NULL.
/// - `-EALREADY`: the clock already runs.
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

/// Moves a paused clock forward, for tests. What becomes due runs in the home thread's next
/// dispatch.
///
/// Parameters:
/// - `ns`: how far, in ns. The clock goes no further than `INT64_MAX - 1`.
///
/// Context: any thread; never waits.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `loop` is NULL, or its clock runs.
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
