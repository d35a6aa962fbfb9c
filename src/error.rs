// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors: an errno for the hot paths, an errno with a message for set-up.

use std::borrow::Cow;
use std::fmt;

/// A positive errno value, as in `<errno.h>`.
///
/// Storage's own errors pass through unchanged, so any value may occur besides the named ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $libc:ident, $meaning:literal;)*) => {
        impl Errno {
            $(#[doc = $meaning] pub const $name: Errno = Errno(libc::$libc);)*

            fn name(self) -> Option<&'static str> {
                match self {
                    $(Errno::$name => Some(stringify!($libc)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    AGAIN = EAGAIN, "Not possible without waiting or without the lock.";
    ALREADY = EALREADY, "It is already so: started, attached, paused.";
    BUSY = EBUSY, "In use: a table is pinned, an instance is alive.";
    DEADLK = EDEADLK, "Waiting here would wait for the caller itself.";
    INVAL = EINVAL, "An argument is not allowed.";
    IO = EIO, "Damaged image, or a poisoned cache.";
    NOMEM = ENOMEM, "Out of memory or address space.";
    NOSPC = ENOSPC, "Storage is full.";
    NOTEMPTY = ENOTEMPTY, "Dirty tables would be lost.";
    NOTSUP = ENOTSUP, "Not possible on this system.";
    PERM = EPERM, "Not in this context: lock not held, wrong thread.";
    SRCH = ESRCH, "There is none.";
    STALE = ESTALE, "The slot holds another table by now.";
}

impl Errno {
    /// From a positive errno or a negative `-errno`; 0 and `i32::MIN`, which are neither, become
    /// `EIO`.
    pub fn from_code(code: i32) -> Self {
        match code.checked_abs() {
            Some(code) if code != 0 => Self(code),
            _ => Self::IO,
        }
    }

    /// The positive value.
    pub fn code(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}

impl std::error::Error for Errno {}

/// An errno and a sentence that says what, where and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    errno: Errno,
    message: Cow<'static, str>,
}

impl Error {
    /// An error with its message.
    pub fn new(errno: Errno, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            errno,
            message: message.into(),
        }
    }

    /// The errno.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The sentence for a person.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::new(errno, errno.to_string())
    }
}

/// The result of set-up functions.
pub type Result<T> = core::result::Result<T, Error>;
