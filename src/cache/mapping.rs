// SPDX-License-Identifier: MIT OR Apache-2.0
//! An anonymous mapping from the kernel: page-aligned, filled with zeros; a page becomes resident
//! when it is first touched.

use std::ptr::NonNull;

/// See the module. Its drop unmaps it.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: owns memory that no thread is special to.
unsafe impl Send for Mapping {}
// SAFETY: only gives out its address.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, not 0. `None`: the kernel has no memory or no address space left.
    pub(super) fn new(len: usize) -> Option<Self> {
        // NORESERVE: nobody touches all of it, so none is set aside.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let mapping = Self {
            base: NonNull::new(base.cast())?,
            len,
        };
        #[cfg(target_os = "linux")]
        // Without this advice, one touched table could cost a huge page of 2 MiB. A kernel that
        // does not know the advice has no huge pages, so its error is ignored.
        // SAFETY: the mapping made above.
        unsafe {
            libc::madvise(base, len, libc::MADV_NOHUGEPAGE);
        }
        Some(mapping)
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made, with its length; nobody uses it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn new_returns_none_for_more_than_the_address_space() {
        assert!(Mapping::new(1 << 62).is_none());
    }
}
