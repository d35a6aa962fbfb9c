// SPDX-License-Identifier: MIT OR Apache-2.0
//! Anonymous memory straight from the kernel: zeros, page-aligned, resident where it is touched.

use std::ptr::NonNull;

/// New memory; `None`: there is none, or no address space. `extra`: flags for `mmap` besides.
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
/// `base` and `bytes` are of one [`map`], which nobody uses any more.
pub(super) unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(base.as_ptr().cast(), bytes) };
}
