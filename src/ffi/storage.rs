// SPDX-License-Identifier: MIT OR Apache-2.0
//! C's storage callbacks as the core's [`Storage`].

use std::ffi::{CString, c_char, c_int, c_void};
use std::mem::offset_of;
use std::sync::Arc;

use libc::iovec;

use super::{CStruct, read_struct};
use crate::error::{Errno, Error, Result};
use crate::storage::{Corruption, DeviceKey, IoBuf, Storage};

/// A table's offset is not a multiple of the table size: the image is damaged.
pub const Q2C_CORRUPTION_UNALIGNED_OFFSET: c_int = 1;

const _: () = assert!(Corruption::UnalignedOffset as c_int == Q2C_CORRUPTION_UNALIGNED_OFFSET);
const _: () = assert!(
    size_of::<IoBuf>() == size_of::<iovec>()
        && align_of::<IoBuf>() == align_of::<iovec>()
        && offset_of!(IoBuf, base) == offset_of!(iovec, iov_base)
        && offset_of!(IoBuf, len) == offset_of!(iovec, iov_len),
    "an IoBuf is an iovec"
);

/// The most buffers that one call may have on Linux (`UIO_MAXIOV`); the kernel refuses more.
const IOV_MAX: usize = 1024;

/// The image file below a cache: the caller's callbacks.
///
/// `preadv` and `pwritev` get buffers of one table each. A buffer is aligned to the table size or
/// to the page size, whichever is less.
///
/// Two storages with the same `opaque` and the same `flush` count as one: a flush of one makes the
/// other's writes stable, too, and a failed flush of one counts for the other (see
/// `q2c_cache_flush`). So the caches of one image must share one `opaque` and one `flush`, unless
/// the storage itself sees to it that every flush fails after one has failed. `kind` tells a
/// callback which cache it serves.
///
/// Context: callbacks are called in the caller's own coroutine or thread, never in one that the
/// library made, and with no lock of the library held. They can be called from several threads at
/// the same time for different tables. They may block or yield, and may return in another thread if
/// the host's coroutines do. They must not throw or `longjmp` out. They must not call functions on
/// the same cache that wait for the table at hand; and `flush` must not flush a cache of the same
/// storage.
///
/// Ownership: copied when something is made with it. `opaque` and what it leads to must live as
/// long as the cache or state. Buffers belong to the library and are valid during the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct q2c_storage {
    /// `sizeof(q2c_storage)`.
    pub struct_size: usize,
    /// The caller's own pointer, passed as first argument of each callback; may be NULL.
    pub opaque: *mut c_void,
    /// Reads tables. Must not be NULL.
    ///
    /// Parameters:
    /// - `kind`: the cache's `kind`.
    /// - `offset`: where the first buffer begins in the file, in bytes.
    /// - `iov`, `iovcnt`: 1 to 1024 buffers to fill. Bytes behind the end of the file must be
    ///   filled with zeros.
    ///
    /// Returns: 0 or more if every byte was read.
    /// - `-errno`: passed unchanged to the caller of the get; the table is not in the cache.
    pub preadv: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            kind: c_int,
            offset: u64,
            iov: *const iovec,
            iovcnt: c_int,
        ) -> c_int,
    >,
    /// Writes tables. Must not be NULL. It must not change the buffers; callers that have one of
    /// the tables pinned may change it meanwhile.
    ///
    /// Parameters:
    /// - `kind`: the cache's `kind`.
    /// - `offset`: where the first buffer goes in the file, in bytes.
    /// - `iov`, `iovcnt`: 1 to 1024 buffers, not more than 1 GiB in all.
    ///
    /// Returns: 0 or more if every byte was written.
    /// - `-errno`: passed on unchanged; the tables stay dirty.
    pub pwritev: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            kind: c_int,
            offset: u64,
            iov: *const iovec,
            iovcnt: c_int,
        ) -> c_int,
    >,
    /// Makes stable everything that was written before the call. Must not be NULL.
    ///
    /// Returns: 0 or more when that is done.
    /// - `-errno`: passed on unchanged; what had to wait for the flush still waits.
    pub flush: Option<unsafe extern "C" fn(opaque: *mut c_void) -> c_int>,
    /// Asked once for each table before it is written, for overlap checks. NULL means that every
    /// write is allowed.
    ///
    /// Parameters:
    /// - `kind`: the cache's `kind`.
    /// - `offset`, `bytes`: the part of the file that is about to be written, in bytes.
    ///
    /// Returns: 0 or more to allow the write.
    /// - `-errno`: passed on unchanged; this table is not written and stays dirty, others are
    ///   written.
    pub pre_write_check: Option<
        unsafe extern "C" fn(opaque: *mut c_void, kind: c_int, offset: u64, bytes: u64) -> c_int,
    >,
    /// Told about a damaged image, before the call that found it returns `-EIO`. NULL means that
    /// nobody is told.
    ///
    /// Parameters:
    /// - `reason`: one of `Q2C_CORRUPTION_*`; more may come.
    /// - `kind`: the cache's `kind`.
    /// - `offset`: the table's offset in the file, in bytes.
    /// - `message`: one sentence in UTF-8, valid during the call.
    pub corruption: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            reason: c_int,
            kind: c_int,
            offset: u64,
            message: *const c_char,
        ),
    >,
    /// The most tables that one write may join, 0 or more. 0 means 1024, which is also the most. 1
    /// means no joining. A write never joins more than 1 GiB.
    pub max_iov: c_int,
}

// SAFETY: repr(C), its size first, pointers, optional functions and an int.
unsafe impl CStruct for q2c_storage {
    const NAME: &'static str = "q2c_storage";
}

type Vectored = unsafe extern "C" fn(*mut c_void, c_int, u64, *const iovec, c_int) -> c_int;

/// A copy of C's callbacks, those that must be set unwrapped.
struct CStorage {
    calls: q2c_storage,
    preadv: Vectored,
    pwritev: Vectored,
    flush: unsafe extern "C" fn(*mut c_void) -> c_int,
    max_iov: usize,
}

// SAFETY: `q2c_storage` says that the callbacks, with this `opaque`, are called from any thread.
unsafe impl Send for CStorage {}
// SAFETY: `q2c_storage` allows these calls from several threads at the same time.
unsafe impl Sync for CStorage {}

/// The core's storage on a copy of C's. `EINVAL`: NULL, a `struct_size` that is too small, a
/// missing callback, or a negative `max_iov`.
///
/// # Safety
/// `storage` is NULL or readable as far as its `struct_size` says. Its callbacks and `opaque` keep
/// the contract of [`q2c_storage`] as long as the result lives.
pub(super) unsafe fn storage_from(storage: *const q2c_storage) -> Result<Arc<dyn Storage>> {
    // SAFETY: NULL or readable as far as its struct_size says, as the caller promised.
    let calls = unsafe { read_struct(storage) }?;
    let missing = |name: &str| {
        Error::new(
            Errno::INVAL,
            format!("q2c_storage.{name} is NULL: only pre_write_check and corruption may be"),
        )
    };
    let flush = calls.flush.ok_or_else(|| missing("flush"))?;
    Ok(Arc::new(CStorage {
        calls,
        preadv: calls.preadv.ok_or_else(|| missing("preadv"))?,
        pwritev: calls.pwritev.ok_or_else(|| missing("pwritev"))?,
        flush,
        max_iov: max_iov_of(calls.max_iov)?,
    }))
}

fn max_iov_of(max_iov: c_int) -> Result<usize> {
    match usize::try_from(max_iov) {
        Ok(0) => Ok(IOV_MAX),
        Ok(most) => Ok(most.min(IOV_MAX)),
        Err(_) => Err(Error::new(
            Errno::INVAL,
            format!("q2c_storage.max_iov is {max_iov}: allowed are 0 ({IOV_MAX} tables) and more"),
        )),
    }
}

/// A callback's answer: 0 or more means that all is done; a number below 0 passes through
/// unchanged.
fn answer(code: c_int) -> std::result::Result<(), Errno> {
    if code < 0 {
        return Err(Errno::from_code(code));
    }
    Ok(())
}

impl CStorage {
    fn vectored(
        &self,
        callback: Vectored,
        kind: i32,
        offset: u64,
        bufs: &[IoBuf],
    ) -> std::result::Result<(), Errno> {
        let count = c_int::try_from(bufs.len()).map_err(|_| Errno::INVAL)?;
        let iov = bufs.as_ptr().cast::<iovec>();
        // SAFETY: the callback keeps `q2c_storage`'s contract, promised at creation. `iov` is an
        // array of `count` IoBufs, which have the layout of iovecs (asserted above). They point to
        // table memory that is valid during the call.
        answer(unsafe { callback(self.calls.opaque, kind, offset, iov, count) })
    }
}

impl Storage for CStorage {
    fn preadv(&self, kind: i32, offset: u64, bufs: &[IoBuf]) -> std::result::Result<(), Errno> {
        self.vectored(self.preadv, kind, offset, bufs)
    }

    fn pwritev(&self, kind: i32, offset: u64, bufs: &[IoBuf]) -> std::result::Result<(), Errno> {
        self.vectored(self.pwritev, kind, offset, bufs)
    }

    fn flush(&self) -> std::result::Result<(), Errno> {
        // SAFETY: the callback keeps `q2c_storage`'s contract, promised at creation.
        answer(unsafe { (self.flush)(self.calls.opaque) })
    }

    fn pre_write_check(
        &self,
        kind: i32,
        offset: u64,
        bytes: u64,
    ) -> std::result::Result<(), Errno> {
        let Some(check) = self.calls.pre_write_check else {
            return Ok(());
        };
        // SAFETY: the callback keeps `q2c_storage`'s contract, promised at creation.
        answer(unsafe { check(self.calls.opaque, kind, offset, bytes) })
    }

    fn corruption(&self, reason: Corruption, kind: i32, offset: u64, message: &str) {
        let Some(corruption) = self.calls.corruption else {
            return;
        };
        let message = CString::new(message).unwrap_or_default();
        // SAFETY: the callback keeps `q2c_storage`'s contract, promised at creation; the message
        // outlives the call.
        unsafe {
            corruption(
                self.calls.opaque,
                reason as c_int,
                kind,
                offset,
                message.as_ptr(),
            );
        }
    }

    fn max_iov(&self) -> usize {
        self.max_iov
    }

    fn device(&self) -> Option<DeviceKey> {
        Some((self.calls.opaque.addr(), self.flush as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn vectored(
        _: *mut c_void,
        _: c_int,
        _: u64,
        _: *const iovec,
        _: c_int,
    ) -> c_int {
        0
    }

    unsafe extern "C" fn flush(opaque: *mut c_void) -> c_int {
        c_int::from(opaque.is_null()) - 1
    }

    unsafe extern "C" fn another_flush(opaque: *mut c_void) -> c_int {
        c_int::from(!opaque.is_null()) * 7
    }

    fn storage(
        opaque: usize,
        flush: unsafe extern "C" fn(*mut c_void) -> c_int,
    ) -> Arc<dyn Storage> {
        let calls = q2c_storage {
            struct_size: size_of::<q2c_storage>(),
            opaque: std::ptr::without_provenance_mut(opaque),
            preadv: Some(vectored),
            pwritev: Some(vectored),
            flush: Some(flush),
            pre_write_check: None,
            corruption: None,
            max_iov: 0,
        };
        // SAFETY: a local variable, and callbacks that follow no pointer.
        unsafe { storage_from(&raw const calls) }.expect("a whole storage")
    }

    #[test]
    fn a_device_is_a_pair_of_opaque_and_flush() {
        let first = storage(0, flush);
        let same = storage(0, flush);
        assert_eq!(first.device(), same.device());
        assert_ne!(first.device(), storage(8, flush).device());
        assert_ne!(first.device(), storage(0, another_flush).device());
    }

    #[test]
    fn a_callbacks_error_passes_through_unchanged() {
        assert_eq!(answer(-libc::ENXIO), Err(Errno::from_code(libc::ENXIO)));
        assert_eq!(answer(-12345).map_err(Errno::code), Err(12345));
        assert_eq!(answer(c_int::MIN), Err(Errno::IO));
        assert_eq!((answer(0), answer(4096)), (Ok(()), Ok(())));
    }
}
