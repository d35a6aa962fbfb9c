// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interface to the image file that a cache reads tables from and writes them to.

use crate::error::Errno;

/// One table's memory, handed to [`Storage`]: address and length, laid out like `struct iovec`.
///
/// The memory belongs to the cache and is valid for the duration of the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoBuf {
    pub(crate) base: *mut u8,
    pub(crate) len: usize,
}

impl IoBuf {
    /// # Safety
    /// `base` is valid for reads and writes of `len` bytes for as long as the value is used.
    pub(crate) unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// Address of the first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `bytes` into the table.
    ///
    /// # Panics
    /// If `bytes` is not as long as the table.
    pub fn fill_from(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.len, "a table is filled whole");
        // SAFETY: `new` promised `len` valid bytes, and a caller's slice cannot overlap the cache's
        // own mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base, self.len) }
    }

    /// Copies the table out of the cache.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = vec![0; self.len];
        // SAFETY: as in `fill_from`; `out` was allocated with `len` bytes.
        unsafe { std::ptr::copy_nonoverlapping(self.base, out.as_mut_ptr(), self.len) }
        out
    }
}

/// Why [`Storage::corruption`] is called. The numbers are part of the C ABI.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Corruption {
    /// A table's offset is not a multiple of the table size.
    UnalignedOffset = 1,
}

/// Any two numbers that tell one device from all others of the process.
pub type DeviceKey = (usize, usize);

/// The image file below a cache.
///
/// Every call runs in the caller's own coroutine or thread, with no internal lock of the library
/// held. It may block or yield. Several threads may call at the same time, for different tables.
pub trait Storage: Send + Sync {
    /// Reads the buffers' whole length from `offset` (bytes). `kind`: the cache's own number.
    fn preadv(&self, kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno>;

    /// Writes the buffers' whole length to `offset` (bytes). `kind`: the cache's own number.
    fn pwritev(&self, kind: i32, offset: u64, bufs: &[IoBuf]) -> Result<(), Errno>;

    /// Makes all earlier writes stable.
    fn flush(&self) -> Result<(), Errno>;

    /// Called once for each table before it is written. On an error that table is not written, and
    /// the error is returned to the caller.
    fn pre_write_check(&self, kind: i32, offset: u64, bytes: u64) -> Result<(), Errno> {
        let _ = (kind, offset, bytes);
        Ok(())
    }

    /// Called when a damaged image is found.
    fn corruption(&self, reason: Corruption, kind: i32, offset: u64, message: &str) {
        let _ = (reason, kind, offset, message);
    }

    /// The largest number of tables in one write, at least 1.
    fn max_iov(&self) -> usize {
        1024
    }

    /// Identifies the device: equal for two storages exactly if a flush of one also makes the
    /// other's writes stable. `None`: that is so only for the same value of this type.
    fn device(&self) -> Option<DeviceKey> {
        None
    }
}
