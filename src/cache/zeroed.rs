// SPDX-License-Identifier: MIT OR Apache-2.0
//! Large arrays that begin as zeros: allocated without touching the memory where the allocator can, and without an
//! abort where there is not enough.

use super::group::Group;
use super::slot::Slot;
use crate::error::Result;
#[cfg(not(any(loom, shuttle)))]
use crate::error::{Errno, Error};
use crate::primitives::{AtomicU32, AtomicU64};

/// Types whose default value is all zero bytes.
///
/// # Safety
/// All-zero bytes are a valid value, equal to the default.
pub(super) unsafe trait Zeroable: Default {}

// SAFETY: an atomic 0, which is its default.
unsafe impl Zeroable for AtomicU64 {}
// SAFETY: as above.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: two atomics of value 0: a free slot, which is its default.
unsafe impl Zeroable for Slot {}
// SAFETY: atomics of value 0: no bit set, which is its default.
unsafe impl Zeroable for Group {}

/// `n` default values. `ENOMEM`: not enough memory.
#[cfg(not(any(loom, shuttle)))]
pub(super) fn zeroed<T: Zeroable>(n: usize) -> Result<Box<[T]>> {
    let layout = std::alloc::Layout::array::<T>(n).map_err(|_| no_memory(n))?;
    if layout.size() == 0 {
        return Ok(Box::default());
    }
    // SAFETY: the layout's size is not 0.
    let first = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
    if first.is_null() {
        return Err(no_memory(n));
    }
    // SAFETY: allocated by the global allocator with the layout of `[T; n]`; zeros are valid values of T.
    Ok(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(first, n)) })
}

/// `n` default values; a model checker's atomics are not made of zeros.
#[cfg(any(loom, shuttle))]
pub(super) fn zeroed<T: Zeroable>(n: usize) -> Result<Box<[T]>> {
    Ok((0..n).map(|_| T::default()).collect())
}

#[cfg(not(any(loom, shuttle)))]
fn no_memory(n: usize) -> Error {
    Error::new(
        Errno::NOMEM,
        format!("not enough memory for what {n} tables need besides themselves"),
    )
}
