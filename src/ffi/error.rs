// SPDX-License-Identifier: MIT OR Apache-2.0
//! `q2c_error`: how set-up functions tell an error in words.

use std::ffi::{c_char, c_int};

use crate::error::Error;

/// What went wrong, for a person.
///
/// Set-up functions take a pointer to one, or NULL to get the errno alone. A function that takes
/// one always fills it: on success with code 0 and an empty message.
///
/// Ownership: the caller allocates it; the library does not keep the pointer.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_error {
    /// The errno, as a positive number; the function returned its negative. 0: no error.
    pub code: c_int,
    /// One sentence in UTF-8, NUL-terminated. It names the option or argument, its value and what
    /// is allowed. A longer sentence is cut at the end of a character.
    pub message: [c_char; 256],
}

/// Size of a message in bytes, including its NUL.
const MESSAGE_SIZE: usize = size_of::<q2c_error>() - std::mem::offset_of!(q2c_error, message);
const _: () = assert!(MESSAGE_SIZE == 256, "no padding behind the message");

/// Fills the caller's `q2c_error`; `None` means success.
///
/// # Safety
/// `place` is NULL or valid for a write.
pub(super) unsafe fn fill(place: *mut q2c_error, error: Option<&Error>) {
    if place.is_null() {
        return;
    }
    let code = error.map_or(0, |error| error.errno().code());
    let kept = cut(error.map_or("", Error::message)).as_bytes();
    // SAFETY: the caller promised that both fields can be written; `cut` leaves a byte for the NUL,
    // and a message of the library does not lie in the caller's struct.
    unsafe {
        (&raw mut (*place).code).write(code);
        let message = (&raw mut (*place).message).cast::<u8>();
        message.copy_from_nonoverlapping(kept.as_ptr(), kept.len());
        message.add(kept.len()).write(0);
    }
}

/// The longest prefix of `message` that fits and ends at a character. It also ends before a NUL,
/// which would end the string in C.
fn cut(message: &str) -> &str {
    let message = message.split('\0').next().unwrap_or("");
    let mut end = message.len().min(MESSAGE_SIZE - 1);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Errno;

    fn filled(message: &str) -> (c_int, Vec<u8>) {
        let mut place = q2c_error {
            code: -1,
            message: [0x55; 256],
        };
        let error = Error::new(Errno::NOSPC, message.to_owned());
        // SAFETY: a local variable.
        unsafe { fill(&raw mut place, Some(&error)) };
        let bytes: Vec<u8> = place.message.iter().map(|c| c.to_ne_bytes()[0]).collect();
        let end = bytes.iter().position(|byte| *byte == 0).expect("a NUL");
        (place.code, bytes[..end].to_vec())
    }

    #[test]
    fn a_message_that_fits_is_whole() {
        let longest = "x".repeat(255);
        for message in ["", "tables: 0", &longest] {
            assert_eq!(filled(message), (libc::ENOSPC, message.as_bytes().to_vec()));
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_characters_end() {
        assert_eq!(filled(&"x".repeat(256)).1, "x".repeat(255).as_bytes());
        // Characters of 2, 3 and 4 bytes that begin before byte 255 and end after it.
        for (before, wide) in [(254, "é"), (253, "€"), (254, "€"), (252, "𝄞"), (254, "𝄞")]
        {
            let kept = "x".repeat(before);
            assert_eq!(filled(&format!("{kept}{wide}{wide}")).1, kept.as_bytes());
        }
        let fits = format!("{}é", "x".repeat(253));
        assert_eq!(filled(&format!("{fits}y")).1, fits.as_bytes());
    }

    #[test]
    fn a_nul_inside_ends_the_message() {
        assert_eq!(filled("one\0two").1, b"one");
    }

    #[test]
    fn success_is_0_and_empty() {
        let mut place = q2c_error {
            code: -1,
            message: [0x55; 256],
        };
        // SAFETY: a local variable.
        unsafe { fill(&raw mut place, None) };
        assert_eq!((place.code, place.message[0]), (0, 0));
    }

    #[test]
    fn nowhere_to_tell_it_is_fine() {
        // SAFETY: NULL is allowed.
        unsafe { fill(std::ptr::null_mut(), None) };
    }
}
