// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library's version.

use std::ffi::{CStr, c_char};

/// Version of the binary interface. It grows when a function or struct changes in such a way that
/// programs have to be built again. The number in `libqcow2cache.so.0` follows from version 1.0 of
/// the library on; before, a program compares this one with `q2c_abi_version`.
pub const Q2C_ABI_VERSION: u32 = 1;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no NUL inside"),
    };

/// The version of the library that runs, "major.minor.patch". `Q2C_VERSION` is that of the header.
///
/// Context: any thread; never waits.
///
/// Returns: the string; never NULL.
///
/// Ownership: the string belongs to the library and is valid as long as the library is loaded.
#[unsafe(no_mangle)]
pub extern "C" fn q2c_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The version of the binary interface of the library that runs, to be compared with
/// `Q2C_ABI_VERSION`.
///
/// Context: any thread; never waits.
///
/// Returns: the version; cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn q2c_abi_version() -> u32 {
    Q2C_ABI_VERSION
}
