// SPDX-License-Identifier: MIT OR Apache-2.0
//! The library's version.

use std::ffi::{CStr, c_char};

/// Version of the binary interface, and the number in `libqcow2cache.so.0`: grows when a function
/// or struct changes so that programs have to be built anew.
pub const Q2C_ABI_VERSION: u32 = 0;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no NUL inside"),
    };

/// The version of the library that runs, as `Q2C_VERSION` is that of the header:
/// "major.minor.patch".
///
/// Any thread, never waits, cannot fail. The string is the library's and valid as long as it is
/// loaded.
#[unsafe(no_mangle)]
pub extern "C" fn q2c_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The version of the binary interface of the library that runs; to be compared with
/// `Q2C_ABI_VERSION`.
///
/// Any thread, never waits, cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn q2c_abi_version() -> u32 {
    Q2C_ABI_VERSION
}
