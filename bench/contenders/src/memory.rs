// SPDX-License-Identifier: MIT OR Apache-2.0
//! Anonymous memory for tables.

use core::ffi::c_void;

use crate::TABLE_SIZE;

pub(crate) struct Memory {
    base: *mut c_void,
    tables: usize,
}

impl Memory {
    pub(crate) fn new(tables: usize) -> Self {
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                tables * TABLE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert!(
            base != libc::MAP_FAILED,
            "no address space for {tables} tables"
        );
        // SAFETY: the mapping just made. The library's tables have no huge pages either.
        unsafe { libc::madvise(base, tables * TABLE_SIZE, libc::MADV_NOHUGEPAGE) };
        Self { base, tables }
    }

    #[inline]
    pub(crate) fn table(&self, slot: usize) -> *mut c_void {
        self.base.wrapping_byte_add(slot * TABLE_SIZE)
    }

    #[inline]
    pub(crate) fn slot_of(&self, table: *mut c_void) -> usize {
        (table as usize - self.base as usize) / TABLE_SIZE
    }

    /// Makes every page resident.
    pub(crate) fn touch(&self) {
        for slot in 0..self.tables {
            // SAFETY: inside the mapping, 8-aligned.
            unsafe { self.table(slot).cast::<u64>().write(slot as u64) };
        }
    }

    /// Returns the memory of `count` tables to the kernel.
    pub(crate) fn release(&self, first: usize, count: usize) {
        // SAFETY: inside the mapping; the caller's tables are unused.
        unsafe { libc::madvise(self.table(first), count * TABLE_SIZE, libc::MADV_DONTNEED) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`; nobody uses it after its owner.
        unsafe { libc::munmap(self.base, self.tables * TABLE_SIZE) };
    }
}
