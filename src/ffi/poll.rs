// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for what the library knows nothing of.

use std::ffi::{c_int, c_void};

use super::call_state;
use super::state::q2c_state;
use crate::error::Errno;
use crate::state::State;

/// An entry of C's and its argument.
struct Entry {
    entry: unsafe extern "C" fn(arg: *mut c_void),
    arg: *mut c_void,
}

// SAFETY: `q2c_run_until_done` says that the entry may run in another thread than its caller, who
// waits for it.
unsafe impl Send for Entry {}

impl Entry {
    fn run(self) {
        // SAFETY: the caller of `q2c_run_until_done` promised that this function takes this
        // argument.
        unsafe { (self.entry)(self.arg) };
    }
}

/// Waits until `done(arg)` is true. It is looked at first, then after each event that the host
/// dispatches meanwhile, and after each `q2c_poll_kick`, perhaps more often.
///
/// Coroutine, thread or plain code, state lock not held; waits: the home thread of the state's
/// event loop turns it, plain code of a coroutine host polls, a coroutine yields, anybody else
/// sleeps until a kick. `done` is called in the caller's own context.
///
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

/// Has every `q2c_poll_until_done` of the state look at its condition again, after whatever may
/// have made it true.
///
/// Any thread, any lock held, never waits. `-EINVAL`: `state` is NULL.
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

/// Runs `entry(arg)` to its end. Plain code of a coroutine host: in a new coroutine, while the
/// caller polls. Everybody else: right here.
///
/// Coroutine, thread or plain code, state lock not held; waits.
///
/// - `-EINVAL`: `state` or `entry` is NULL.
/// - `-EDEADLK`: the caller holds the built-in lock, or is the cleaner itself.
/// - `co_spawn`'s own: the coroutine could not be made. `entry` was not called.
///
/// # Safety
/// `state` is NULL or a live state. `entry` takes `arg` and does not throw; on a coroutine host it
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
