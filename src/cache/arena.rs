// SPDX-License-Identifier: MIT OR Apache-2.0
//! A cache's memory: one mapping. Arrays are taken from its front, one behind the other, the tables
//! from its end: so a caller that writes past the last table does not hit the arrays.
//!
//! Everything starts as zeros, and no page is resident before it is touched. So the creation of a
//! cache costs the same for 16 tables and for 262,144. An allocator may reuse memory that was freed
//! before, and has to fill it with zeros then.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use super::group::Group;
use super::mapping::Mapping;
use super::slot::Slot;
use crate::primitives::{AtomicU32, AtomicU64};

/// Types whose default value is all zero bytes.
///
/// # Safety
/// All-zero bytes are a valid value, equal to the default. The alignment is at most [`ALIGNMENT`].
pub unsafe trait Zeroable: Default {}

// SAFETY: an atomic 0, which is its default.
unsafe impl Zeroable for AtomicU64 {}
// SAFETY: an atomic 0, which is its default.
unsafe impl Zeroable for AtomicU32 {}
// SAFETY: two atomics of value 0: a free slot, which is its default.
unsafe impl Zeroable for Slot {}
// SAFETY: atomics of value 0: no bit set, which is its default.
unsafe impl Zeroable for Group {}

/// Arrays begin at multiples of this: a cache line.
const ALIGNMENT: usize = 64;

/// How many bytes of an arena an array of `n` values takes. Saturates.
pub(super) const fn array_bytes<T>(n: usize) -> usize {
    let bytes = n.saturating_mul(size_of::<T>());
    match bytes.checked_next_multiple_of(ALIGNMENT) {
        Some(bytes) => bytes,
        None => usize::MAX,
    }
}

/// See the module.
pub struct Arena {
    mapping: Arc<Mapping>,
    /// What is not taken yet: from here
    start: usize,
    /// to here.
    end: usize,
}

impl Arena {
    /// An arena of `bytes` bytes. `None`: the kernel has no memory or no address space left.
    pub fn new(bytes: usize) -> Option<Self> {
        Some(Self {
            mapping: Arc::new(Mapping::new(bytes)?),
            start: 0,
            end: bytes,
        })
    }

    /// The next [`array_bytes`] from the front.
    ///
    /// # Panics
    /// If the arena was made too small.
    fn take_front<T>(&mut self, n: usize) -> NonNull<u8> {
        let bytes = array_bytes::<T>(n);
        assert!(bytes <= self.end - self.start, "the arena is too small");
        // SAFETY: `start` is inside the mapping, or just behind it if nothing is left and taken.
        let first = unsafe { self.mapping.base().add(self.start) };
        self.start += bytes;
        first
    }

    /// The last `bytes` bytes, for tables.
    ///
    /// # Panics
    /// If the arena was made too small.
    pub(super) fn take_end(&mut self, bytes: usize) -> Pages {
        assert!(bytes <= self.end - self.start, "the arena is too small");
        self.end -= bytes;
        Pages {
            // SAFETY: inside the mapping.
            base: unsafe { self.mapping.base().add(self.end) },
            _mapping: self.mapping.clone(),
        }
    }

    /// An array of `n` default values. It takes [`array_bytes`].
    #[cfg(not(any(loom, shuttle)))]
    pub(super) fn zeroed<T: Zeroable>(&mut self, n: usize) -> Zeroed<T> {
        const { assert!(align_of::<T>() <= ALIGNMENT && !std::mem::needs_drop::<T>()) };
        Zeroed {
            first: self.take_front::<T>(n).cast(),
            len: n,
            _mapping: self.mapping.clone(),
        }
    }

    /// An array of `n` default values. `Default` makes them, since a model checker's atomics are
    /// not all zero bytes.
    #[cfg(any(loom, shuttle))]
    pub(super) fn zeroed<T: Zeroable>(&mut self, n: usize) -> Zeroed<T> {
        let _ = self.take_front::<T>(n);
        Zeroed {
            values: (0..n).map(|_| T::default()).collect(),
        }
    }
}

/// Part of an arena.
pub(super) struct Pages {
    pub(super) base: NonNull<u8>,
    /// Keeps the memory.
    _mapping: Arc<Mapping>,
}

/// A fixed number of values that started as zeros.
#[cfg(not(any(loom, shuttle)))]
pub(super) struct Zeroed<T> {
    first: NonNull<T>,
    len: usize,
    /// Keeps the memory.
    _mapping: Arc<Mapping>,
}

/// A fixed number of values that started as defaults.
#[cfg(any(loom, shuttle))]
pub(super) struct Zeroed<T> {
    values: Box<[T]>,
}

#[cfg(not(any(loom, shuttle)))]
// SAFETY: owns its values, as a boxed slice does.
unsafe impl<T: Send> Send for Zeroed<T> {}
#[cfg(not(any(loom, shuttle)))]
// SAFETY: owns its values, as a boxed slice does.
unsafe impl<T: Sync> Sync for Zeroed<T> {}

impl<T> Deref for Zeroed<T> {
    type Target = [T];

    #[cfg(not(any(loom, shuttle)))]
    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `zeroed` took memory for `len` values there, all zero bytes, which are valid
        // values (`Zeroable`). The mapping lives as long as `self`, and only shared references to
        // the values are given out.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }

    #[cfg(any(loom, shuttle))]
    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<'a, T> IntoIterator for &'a Zeroed<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::primitives::Ordering;

    #[test]
    fn arrays_are_zeros_of_exact_length_and_do_not_overlap() {
        let sizes = [1, 0, 63, 1000, 5];
        let bytes = sizes.iter().map(|n| array_bytes::<AtomicU64>(*n)).sum();
        let mut arena = Arena::new(bytes).unwrap();
        let arrays = sizes.map(|n| arena.zeroed::<AtomicU64>(n));
        for (n, array) in (1..).zip(&arrays) {
            assert!(array.iter().all(|v| v.load(Ordering::Relaxed) == 0));
            array.iter().for_each(|v| v.store(n, Ordering::Relaxed));
        }
        drop(arena);
        for ((n, array), len) in (1..).zip(&arrays).zip(sizes) {
            assert_eq!(array.len(), len);
            assert!(array.iter().all(|v| v.load(Ordering::Relaxed) == n));
        }
    }

    #[test]
    #[should_panic(expected = "the arena is too small")]
    fn an_array_that_does_not_fit_panics() {
        let mut arena = Arena::new(64).unwrap();
        let _ = arena.zeroed::<Group>(1);
        let _ = arena.zeroed::<AtomicU32>(1);
    }

    #[test]
    fn array_bytes_saturates() {
        assert_eq!(array_bytes::<Slot>(1), 64);
        assert_eq!(array_bytes::<Slot>(usize::MAX), usize::MAX);
        assert!(Arena::new(usize::MAX).is_none());
    }
}
