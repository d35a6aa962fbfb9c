// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arrays that start as zeros. If memory runs out, creating one fails instead of aborting.
//!
//! A large array has its own mapping, so that creating it touches no memory. An allocator may reuse
//! memory that was freed before, and has to fill it with zeros then: making a cache of 1 GiB took
//! 1.5 ms in a process that had freed another one, and 0.2 ms in one that had not.

use std::ops::Deref;
use std::ptr::NonNull;

use super::group::Group;
#[cfg(not(any(loom, shuttle)))]
use super::mapping::{map, unmap};
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
// SAFETY: an atomic 0, which is its default.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: two atomics of value 0: a free slot, which is its default.
unsafe impl Zeroable for Slot {}
// SAFETY: atomics of value 0: no bit set, which is its default.
unsafe impl Zeroable for Group {}

/// Arrays of this many bytes or more have their own mapping. The number is glibc's initial
/// `M_MMAP_THRESHOLD`, from which on its allocator maps memory for one allocation.
#[cfg(not(any(loom, shuttle)))]
const MAPPED_FROM: usize = 128 << 10;

/// A fixed number of values that started as zeros.
pub(super) struct Zeroed<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: owns its values, as a boxed slice does.
unsafe impl<T: Send> Send for Zeroed<T> {}
// SAFETY: owns its values, as a boxed slice does.
unsafe impl<T: Sync> Sync for Zeroed<T> {}

impl<T> Deref for Zeroed<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` made `len` values there. They live as long as `self`, and only shared
        // references to them are given out.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<'a, T> IntoIterator for &'a Zeroed<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// `n` default values. `ENOMEM`: not enough memory.
#[cfg(not(any(loom, shuttle)))]
pub(super) fn zeroed<T: Zeroable>(n: usize) -> Result<Zeroed<T>> {
    let layout = std::alloc::Layout::array::<T>(n).map_err(|_| no_memory(n))?;
    let first = match layout.size() {
        0 => NonNull::dangling(),
        bytes if bytes < MAPPED_FROM => {
            // SAFETY: the layout's size is not 0.
            let memory = unsafe { std::alloc::alloc_zeroed(layout) };
            NonNull::new(memory.cast()).ok_or_else(|| no_memory(n))?
        }
        // Page-aligned, which is more than the alignment of any `Zeroable` type.
        bytes => map(bytes, 0).ok_or_else(|| no_memory(n))?.cast(),
    };
    const { assert!(!std::mem::needs_drop::<T>()) };
    Ok(Zeroed { first, len: n })
}

#[cfg(not(any(loom, shuttle)))]
impl<T> Drop for Zeroed<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        // SAFETY: `zeroed` made it in the same way, with the same size; nobody borrows from it any
        // more.
        unsafe {
            if bytes >= MAPPED_FROM {
                unmap(self.first.cast(), bytes);
            } else if bytes > 0 {
                let layout = std::alloc::Layout::from_size_align_unchecked(bytes, align_of::<T>());
                std::alloc::dealloc(self.first.as_ptr().cast(), layout);
            }
        }
    }
}

/// `n` default values. `Default` makes them, since a model checker's atomics are not all zero
/// bytes.
#[cfg(any(loom, shuttle))]
pub(super) fn zeroed<T: Zeroable>(n: usize) -> Result<Zeroed<T>> {
    let values: Box<[T]> = (0..n).map(|_| T::default()).collect();
    let first = NonNull::from(Box::leak(values)).cast();
    Ok(Zeroed { first, len: n })
}

#[cfg(any(loom, shuttle))]
impl<T> Drop for Zeroed<T> {
    fn drop(&mut self) {
        // SAFETY: `zeroed` leaked it; nobody borrows from it any more.
        drop(unsafe {
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(
                self.first.as_ptr(),
                self.len,
            ))
        });
    }
}

#[cfg(not(any(loom, shuttle)))]
fn no_memory(n: usize) -> Error {
    Error::new(
        Errno::NOMEM,
        format!("not enough memory for what {n} tables need besides themselves"),
    )
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::primitives::Ordering;

    #[test]
    fn small_and_large_arrays_start_as_zeros_with_exact_length() {
        let at = MAPPED_FROM / size_of::<AtomicU64>();
        for n in [0, 1, 63, at - 1, at, at + 1, 3 * at + 5] {
            let values = zeroed::<AtomicU64>(n).unwrap();
            assert_eq!(values.len(), n);
            assert!(values.iter().all(|v| v.load(Ordering::Relaxed) == 0));
            values.iter().for_each(|v| v.store(7, Ordering::Relaxed));
        }
    }

    #[test]
    fn too_large_array_fails_with_enomem() {
        for n in [usize::MAX, usize::MAX / 16, 1 << 60] {
            assert_eq!(zeroed::<Slot>(n).err().unwrap().errno(), Errno::NOMEM);
        }
    }
}
