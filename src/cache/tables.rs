// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tables' memory: one page-aligned anonymous mapping that costs nothing until it is touched.

use std::ops::Range;
use std::ptr::NonNull;

use crate::error::{Errno, Error, Result};

/// Smallest table: qcow2's smallest cluster (QEMU's `MIN_CLUSTER_BITS`, 9).
pub const MIN_TABLE_SIZE: usize = 512;
/// Largest table: qcow2's largest cluster (QEMU's `MAX_CLUSTER_BITS`, 21).
pub const MAX_TABLE_SIZE: usize = 2 << 20;

/// Whether the kernel can be given pages back (`MADV_DONTNEED` that really drops them is Linux's).
pub const CAN_RELEASE: bool = cfg!(target_os = "linux");

/// Memory for a number of tables of one size.
pub struct Tables {
    base: NonNull<u8>,
    table_shift: u32,
    count: usize,
    page: usize,
}

// SAFETY: the mapping belongs to this value alone; who may touch which table when is the slots' business.
unsafe impl Send for Tables {}
// SAFETY: as above; every method only computes addresses or calls the kernel.
unsafe impl Sync for Tables {}

impl Tables {
    /// Maps memory for `count` tables of `1 << table_shift` bytes. `ENOMEM`: no address space.
    pub fn new(count: usize, table_shift: u32) -> Result<Self> {
        let too_large = || {
            Error::new(
                Errno::NOMEM,
                format!(
                    "{count} tables of {} bytes do not fit into the address space",
                    1_u64 << table_shift
                ),
            )
        };
        let bytes = count
            .checked_mul(1 << table_shift)
            .filter(|bytes| isize::try_from(*bytes).is_ok())
            .ok_or_else(too_large)?;
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(too_large());
        }
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping made above. With huge pages, one touched table would cost 2 MiB; a kernel that does not
        // know the advice refuses it, which is as good.
        unsafe {
            libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE);
        }
        // SAFETY: sysconf reads a constant of the system.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let base = NonNull::new(base.cast()).ok_or_else(too_large)?;
        Ok(Self {
            base,
            table_shift,
            count,
            page,
        })
    }

    /// Bytes of one table.
    pub fn table_size(&self) -> usize {
        1 << self.table_shift
    }

    /// Number of tables.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Address of a slot's table.
    #[inline]
    pub fn table(&self, slot: u32) -> NonNull<u8> {
        debug_assert!((slot as usize) < self.count);
        // SAFETY: slots are below `count` (every slot number comes from this cache's own index, bits or `slot_of`), so
        // that the address lies in the mapping.
        unsafe { self.base.add((slot as usize) << self.table_shift) }
    }

    /// The slot whose table begins exactly at `address`.
    #[inline]
    pub fn slot_of(&self, address: usize) -> Option<u32> {
        let distance = address.wrapping_sub(self.base.as_ptr() as usize);
        let slot = distance >> self.table_shift;
        (slot < self.count && distance & (self.table_size() - 1) == 0).then_some(slot as u32)
    }

    /// How many neighbouring slots share a page; 1 when a table is a page or more.
    pub fn slots_per_page(&self) -> usize {
        (self.page >> self.table_shift).max(1)
    }

    /// Bytes of the pages that the slots in `range` lie in.
    pub fn page_bytes(&self, slots: usize) -> u64 {
        (slots as u64) << self.table_shift
    }

    /// Gives the whole pages inside the slots' memory back to the kernel; they read as zero afterwards. The caller
    /// made sure that nobody uses these slots.
    pub fn release(&self, slots: Range<usize>) {
        let start = (slots.start << self.table_shift).next_multiple_of(self.page);
        let end = (slots.end << self.table_shift) & !(self.page - 1);
        if !CAN_RELEASE || start >= end {
            return;
        }
        // SAFETY: whole pages inside the mapping, of slots that are in state `releasing`: no reader has them pinned,
        // and one that copies without a pin checks the slot's version afterwards. A failure keeps the memory.
        unsafe {
            libc::madvise(
                self.base.as_ptr().add(start).cast(),
                end - start,
                libc::MADV_DONTNEED,
            );
        }
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, with its length; no table pointer outlives the cache.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.count << self.table_shift) };
    }
}
