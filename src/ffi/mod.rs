// SPDX-License-Identifier: MIT OR Apache-2.0
//! The C API: `include/qcow2cache.h` is generated from this module.
//!
//! This layer decides nothing. An exported function checks its arguments, converts them, calls the
//! safe core and converts the result back:
//!
//! | step | done by |
//! |---|---|
//! | a panic never crosses into C | `guard`; the fast path before it cannot panic |
//! | a panic inside a cache poisons the cache | `call_cache`, `call_state` |
//! | an error becomes `-errno` | `outcome` |
//! | set-up functions fill a `q2c_error` | `call_set_up` |
//! | a handle becomes `&T`, never `&mut T`; NULL is an error | `value` |
//! | `struct_size` is checked | `read_struct`, `out_struct` |
//! | outputs are written only on success | `Out`, `OutStruct` |
//!
//! | file | subject |
//! |---|---|
//! | `library`, `error` | version; `q2c_error` |
//! | `storage`, `host` | the caller's callbacks, as the core's traits |
//! | `cache` | handle, options, statistics |
//! | `table`, `writeback`, `discard` | operations on a cache |
//! | `cleaner`, `options`, `state`, `update`, `poll`, `event_loop` | one group of the API each |
//!
//! The comments of exported functions and structs become the header. Each has the same parts in the
//! same order: what it does, Parameters, Context, Returns, Ownership, Safety. The header's
//! preamble, in `cbindgen.toml`, explains these parts, the conventions and the words.
#![allow(non_camel_case_types)] // C's own names, so that header and source read alike

pub mod library;

pub mod error;

pub mod storage;

pub mod host;

pub mod cache;

pub mod table;

pub mod writeback;

pub mod discard;

pub mod cleaner;

pub mod options;

pub mod state;

pub mod update;

pub mod poll;

pub mod event_loop;

use std::any::Any;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

use self::cache::q2c_cache;
use self::error::q2c_error;
use self::state::q2c_state;
use crate::cache::Cache;
use crate::error::{Errno, Error};
use crate::state::State;

/// What a successful call returns to C: 0, or the number that the caller asked for.
trait Code {
    fn code(self) -> c_int;
}

impl Code for () {
    fn code(self) -> c_int {
        0
    }
}

impl Code for bool {
    fn code(self) -> c_int {
        c_int::from(self)
    }
}

/// A count; `INT_MAX` stands for every larger one.
impl Code for usize {
    fn code(self) -> c_int {
        c_int::try_from(self).unwrap_or(c_int::MAX)
    }
}

/// Converts the result of an export to C's.
#[inline]
fn outcome<T: Code>(result: Result<T, Errno>) -> c_int {
    match result {
        Ok(value) => value.code(),
        Err(errno) => -errno.code(),
    }
}

type Panic = Box<dyn Any + Send>;

/// Catches panics, for all exports.
///
/// This is unwind-safe: a panic can leave only two things half done. One is a cache, which is
/// poisoned then. The other is what belongs to the body alone.
#[inline]
fn guard<T>(body: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(body))
}

/// An export that works on no cache. A panic becomes `EIO`.
#[inline]
fn call<T: Code>(body: impl FnOnce() -> Result<T, Errno>) -> c_int {
    outcome(guard(body).unwrap_or(Err(Errno::IO)))
}

/// Runs `body` on a cache. A panic in it poisons the cache and becomes `EIO`.
#[inline]
fn on_cache<T>(cache: &Cache, body: impl FnOnce(&Cache) -> Result<T, Errno>) -> Result<T, Errno> {
    guard(|| body(cache)).unwrap_or_else(|_| {
        cache.poison();
        Err(Errno::IO)
    })
}

/// An export on a cache.
///
/// # Safety
/// The contract of [`value`].
#[inline]
unsafe fn call_cache<T: Code>(
    cache: *const q2c_cache,
    body: impl FnOnce(&Cache) -> Result<T, Errno>,
) -> c_int {
    // SAFETY: the caller keeps this function's contract; the borrow ends with this call.
    outcome(unsafe { value(cache) }.and_then(|cache| on_cache(cache, body)))
}

/// Runs `body` on a state. A panic in it poisons both caches and becomes `EIO`.
fn on_state<T>(state: &State, body: impl FnOnce(&State) -> Result<T, Errno>) -> Result<T, Errno> {
    guard(|| body(state)).unwrap_or_else(|_| {
        poison_state(state);
        Err(Errno::IO)
    })
}

/// Poisons both caches of a state.
fn poison_state(state: &State) {
    // If the first attempt panics, the second cache is poisoned all the same.
    let _ = guard(|| state.l2_cache().poison());
    let _ = guard(|| state.refcount_cache().poison());
}

/// An export on a state.
///
/// # Safety
/// The contract of [`value`].
unsafe fn call_state<T: Code>(
    state: *const q2c_state,
    body: impl FnOnce(&State) -> Result<T, Errno>,
) -> c_int {
    // SAFETY: the caller keeps this function's contract; the borrow ends with this call.
    outcome(unsafe { value(state) }.and_then(|state| on_state(state, body)))
}

/// A set-up function, which tells its error in words. `what` is its name, for the message of a
/// panic.
///
/// # Safety
/// `error` is NULL or valid for a write.
unsafe fn call_set_up(
    what: &str,
    error: *mut q2c_error,
    body: impl FnOnce() -> Result<(), Error>,
) -> c_int {
    let result = guard(body).unwrap_or_else(|panic| Err(internal_error(what, &*panic)));
    // SAFETY: the caller keeps this function's contract.
    unsafe { error::fill(error, result.as_ref().err()) };
    outcome(result.map_err(|error| error.errno()))
}

/// The error that a panic becomes, with the panic's message.
fn internal_error(what: &str, panic: &(dyn Any + Send)) -> Error {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Error::new(Errno::IO, format!("{what}: internal error: {said}"))
}

/// A handle type of C: an opaque struct. A pointer to it is really a pointer to a Rust value.
trait Handle {
    type Value: Send + Sync;
}

/// The Rust value behind a handle. `EINVAL`: the handle is NULL.
///
/// # Safety
/// `handle` is NULL or a live handle that the library gave out, and stays one for `'a`.
#[inline]
unsafe fn value<'a, H: Handle>(handle: *const H) -> Result<&'a H::Value, Errno> {
    // SAFETY: live handles are made from an `H::Value`, by `into_raw` or by a borrow, so the
    // address is valid and aligned. All values behind handles are Sync and shared: nobody has a
    // `&mut` to them.
    unsafe { handle.cast::<H::Value>().as_ref() }.ok_or(Errno::INVAL)
}

/// A destroying export. If `place` is NULL or holds NULL, it returns 0. Else `check` decides
/// whether the handle may be destroyed. If it may, `place` is set to NULL and `free` takes the
/// handle.
///
/// # Safety
/// `place` is NULL or valid for reads and writes, and holds NULL or a live handle. Nobody else uses
/// that handle any more once `check` has agreed.
unsafe fn call_destroy<H: Handle>(
    place: *mut *mut H,
    check: impl FnOnce(*mut H) -> Result<(), Errno>,
    free: impl FnOnce(*mut H::Value),
) -> c_int {
    call(|| {
        if place.is_null() {
            return Ok(());
        }
        // SAFETY: not NULL, hence readable, as the caller promised.
        let handle = unsafe { place.read() };
        if handle.is_null() {
            return Ok(());
        }
        check(handle)?;
        // SAFETY: not NULL, hence writable, as the caller promised.
        unsafe { place.write(std::ptr::null_mut()) };
        free(handle.cast());
        Ok(())
    })
}

/// The caller's place for an output.
struct Out<T>(NonNull<T>);

/// Takes the caller's place for an output. `EINVAL`: NULL.
///
/// # Safety
/// `place` is NULL or valid for a write as long as the result is in use.
#[inline]
unsafe fn out<T>(place: *mut T) -> Result<Out<T>, Errno> {
    NonNull::new(place).map(Out).ok_or(Errno::INVAL)
}

/// [`out`], with an error in words that says the argument's name.
///
/// # Safety
/// The contract of [`out`].
unsafe fn named_out<T>(place: *mut T, name: &str) -> Result<Out<T>, Error> {
    // SAFETY: the caller keeps this function's contract.
    unsafe { out(place) }.map_err(|errno| {
        Error::new(
            errno,
            format!("'{name}' is NULL: nowhere to put the result"),
        )
    })
}

impl<T> Out<T> {
    #[inline]
    fn set(self, value: T) {
        // SAFETY: the caller of `out` promised that the place is writable. It holds no Rust value
        // that would have to be dropped.
        unsafe { self.0.write(value) };
    }
}

/// A struct that crosses the boundary and begins with its size.
///
/// # Safety
/// `repr(C)`, its first field is `struct_size: usize`, and every bit pattern of its fields is
/// valid.
unsafe trait CStruct: Copy {
    /// Its name in C.
    const NAME: &'static str;
}

/// The `struct_size` of a struct of the caller. `EINVAL`: `at` is NULL, or the size is below that
/// of `T`.
///
/// # Safety
/// `at` is NULL or valid for reads of as many bytes as its `struct_size` says.
unsafe fn struct_size<T: CStruct>(at: *const T) -> Result<usize, Error> {
    if at.is_null() {
        return Err(Error::new(Errno::INVAL, format!("the {} is NULL", T::NAME)));
    }
    // SAFETY: the size is the first field (`CStruct`), and readable, as the caller promised.
    let size = unsafe { at.cast::<usize>().read() };
    let known = size_of::<T>();
    if size < known {
        let message = format!(
            "{}.struct_size is {size}: allowed are {known}, its size in bytes, or more",
            T::NAME
        );
        return Err(Error::new(Errno::INVAL, message));
    }
    Ok(size)
}

/// A copy of a struct of the caller. `EINVAL`: NULL, or its `struct_size` is too small. A larger
/// struct is of a newer version; the fields that this version does not know are not read.
///
/// # Safety
/// The contract of [`struct_size`].
unsafe fn read_struct<T: CStruct>(at: *const T) -> Result<T, Error> {
    // SAFETY: the caller keeps this function's contract.
    unsafe { struct_size(at) }?;
    // SAFETY: readable as far as `struct_size` says, which covers T, as was just checked. Any bytes
    // are a valid T (`CStruct`).
    Ok(unsafe { at.read() })
}

/// [`read_struct`], but NULL is `None`.
///
/// # Safety
/// The contract of [`struct_size`].
unsafe fn read_optional_struct<T: CStruct>(at: *const T) -> Result<Option<T>, Error> {
    if at.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller keeps this function's contract.
    unsafe { read_struct(at) }.map(Some)
}

/// The caller's place for a struct that begins with its size. The size stays as the caller set it.
struct OutStruct<T> {
    place: Out<T>,
    struct_size: usize,
}

/// Takes the caller's place for an output that is a struct. `EINVAL`: NULL, or its `struct_size` is
/// too small. Fields that only a newer version has are not written.
///
/// # Safety
/// The contract of [`struct_size`]. Besides, `place` is writable as long as the result is in use.
unsafe fn out_struct<T: CStruct>(place: *mut T) -> Result<OutStruct<T>, Error> {
    // SAFETY: the caller keeps this function's contract.
    let struct_size = unsafe { struct_size(place) }?;
    // SAFETY: the caller keeps this function's contract.
    let place = unsafe { out(place) }?;
    Ok(OutStruct { place, struct_size })
}

/// Drops the message of an error, for functions without a `q2c_error`.
#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn errno_of(error: Error) -> Errno {
    error.errno()
}

#[cfg(test)]
mod tests {
    use std::ffi::{CStr, c_void};
    use std::ptr::{null, null_mut};

    use super::cache::{q2c_cache_create, q2c_cache_destroy, q2c_cache_options};
    use super::storage::q2c_storage;
    use super::writeback::q2c_cache_write;
    use super::*;

    unsafe extern "C" fn transfer(
        _: *mut c_void,
        _: c_int,
        _: u64,
        _: *const libc::iovec,
        _: c_int,
    ) -> c_int {
        0
    }

    unsafe extern "C" fn flush(_: *mut c_void) -> c_int {
        0
    }

    fn new_cache() -> *mut q2c_cache {
        let options = q2c_cache_options {
            struct_size: size_of::<q2c_cache_options>(),
            tables: 4,
            table_size: 512,
            kind: 0,
            reserved_tables: 1,
        };
        let storage = q2c_storage {
            struct_size: size_of::<q2c_storage>(),
            opaque: null_mut(),
            preadv: Some(transfer),
            pwritev: Some(transfer),
            flush: Some(flush),
            pre_write_check: None,
            corruption: None,
            max_iov: 0,
        };
        let mut cache = null_mut();
        // SAFETY: local variables, and callbacks that follow no pointer.
        let made =
            unsafe { q2c_cache_create(&options, &storage, null(), &raw mut cache, null_mut()) };
        assert_eq!(made, 0);
        cache
    }

    #[test]
    fn a_panic_in_a_cache_poisons_it_and_it_can_still_be_destroyed() {
        let mut cache = new_cache();
        // SAFETY: the cache lives.
        unsafe {
            assert_eq!(q2c_cache_write(cache), 0);
            let panicked = call_cache::<()>(cache, |_| panic!("on purpose"));
            assert_eq!(panicked, -libc::EIO);
            assert_eq!(q2c_cache_write(cache), -libc::EIO);
            assert_eq!(q2c_cache_destroy(&raw mut cache), 0);
        }
        assert!(cache.is_null());
    }

    #[test]
    fn a_panic_without_a_cache_is_eio() {
        assert_eq!(call::<()>(|| panic!("on purpose")), -libc::EIO);
    }

    #[test]
    fn a_panic_in_a_set_up_function_is_told_in_words() {
        let mut error = q2c_error {
            code: 0,
            message: [0; 256],
        };
        // SAFETY: a local variable, NUL-terminated when it is read.
        let message = unsafe {
            let code = call_set_up("q2c_example", &raw mut error, || panic!("{} tables", 3));
            assert_eq!((code, error.code), (-libc::EIO, libc::EIO));
            CStr::from_ptr(error.message.as_ptr())
        };
        assert_eq!(message, c"q2c_example: internal error: 3 tables");
    }

    #[test]
    fn numbers_are_capped() {
        assert_eq!(outcome(Ok(usize::MAX)), c_int::MAX);
        assert_eq!(
            (outcome(Ok(7_usize)), outcome(Ok(true)), outcome(Ok(()))),
            (7, 1, 0)
        );
        assert_eq!(outcome::<()>(Err(Errno::STALE)), -libc::ESTALE);
    }
}
