// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for conditions of the caller, which the library knows nothing about.

use std::ffi::{c_int, c_void};

use super::call_state;
use super::state::q2c_state;
use crate::error::Errno;
use crate::state::State;

/// A C function and its argument.
struct Entry {
    entry: unsafe extern "C" fn(arg: *mut c_void),
    arg: *mut c_void,
}

// SAFETY: `q2c_run_until_done` says that the entry may run in another thread than its caller. The
// caller waits for it.
unsafe impl Send for Entry {}

impl Entry {
    fn run(self) {
        // SAFETY: the caller of `q2c_run_until_done` promised that this function takes this
        // argument.
        unsafe { (self.entry)(self.arg) };
    }
}

/// Waits until `done(arg)` is true. `done` is called first, after each event that the host
/// dispatches meanwhile, after each `q2c_poll_kick`, and perhaps more often.
///
/// Parameters:
/// - `done`: called in the caller's own context; must not be NULL.
/// - `arg`: passed to `done`; may be NULL.
///
/// Context: thread, coroutine or plain code, state lock not held; waits. The home thread of an
/// event loop turns the loop if the state is attached to it or a cleaner of the state lives in it.
/// Plain code of a coroutine host polls, a coroutine yields, and any other caller sleeps until a
/// kick.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `state` or `done` is NULL.
///
/// # Safety
/// `state` is NULL or a live state. `done` takes `arg` and does not throw.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_poll_until_done(
    state: *mut q2c_state,
    done: Option<unsafe extern "C" fn(arg: *mut c_void) -> bool>,
    arg: *mut c_void,
) -> c_int {
    let poll = |state: &State| {
        let done = done.ok_or(Errno::INVAL)?;
        // SAFETY: the caller promised that this function takes this argument.
        state.poll_until_done(&|| unsafe { done(arg) });
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, poll) }
}

/// Makes every `q2c_poll_until_done` of the state call its condition again. Call it after whatever
/// may have made the condition true.
///
/// Context: any thread, with any lock held. Never waits, but may run a waiting coroutine inside the
/// call if the host's `co_wake` does so.
///
/// Returns: 0 on success.
/// - `-EINVAL`: `state` is NULL.
///
/// # Safety
/// `state` is NULL or a live state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_poll_kick(state: *mut q2c_state) -> c_int {
    let kick = |state: &State| {
        state.kick();
        Ok(())
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, kick) }
}

/// Runs `entry(arg)` to its end. If the caller is plain code of a coroutine host, `entry` runs in a
/// new coroutine while the caller polls. For every other caller it runs inside the call.
///
/// Parameters:
/// - `entry`: must not be NULL.
/// - `arg`: passed to `entry`; may be NULL.
///
/// Context: thread, coroutine or plain code, state lock not held; waits.
///
/// Returns: 0 on success. On an error `entry` was not called.
/// - `-EINVAL`: `state` or `entry` is NULL.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself.
/// - any errno of `co_spawn`: the coroutine could not be made.
///
/// # Safety
/// `state` is NULL or a live state. `entry` takes `arg` and does not throw. On a coroutine host it
/// may run in another thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn q2c_run_until_done(
    state: *mut q2c_state,
    entry: Option<unsafe extern "C" fn(arg: *mut c_void)>,
    arg: *mut c_void,
) -> c_int {
    let run = |state: &State| {
        let entry = entry.ok_or(Errno::INVAL)?;
        let entry = Entry { entry, arg };
        state.run_until_done(Box::new(move || entry.run()))
    };
    // SAFETY: NULL or live, as the caller promised.
    unsafe { call_state(state, run) }
}
