// SPDX-License-Identifier: MIT OR Apache-2.0
//! Anonymous mappings from the kernel: page-aligned, filled with zeros; a page becomes resident
//! when it is first touched.

use std::ptr::NonNull;

/// Maps `bytes` bytes of new memory. `extra`: further `mmap` flags. `None`: the kernel has no
/// memory or no address space left.
pub(super) fn map(bytes: usize, extra: libc::c_int) -> Option<NonNull<u8>> {
    // SAFETY: a new anonymous mapping touches no memory that exists.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | extra,
            -1,
            0,
        )
    };
    NonNull::new(base.cast()).filter(|_| base != libc::MAP_FAILED)
}

/// # Safety
/// `base` and `bytes` describe a mapping that [`map`] made, and nobody uses it any more.
pub(super) unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn map_returns_none_for_more_than_the_address_space() {
        assert!(map(1 << 62, 0).is_none());
        assert!(map(1 << 62, libc::MAP_NORESERVE).is_none());
    }
}
