// SPDX-License-Identifier: MIT OR Apache-2.0
//! Table memory, one 8-byte word at a time.
//!
//! A copy without a pin (`read`) may run while its slot goes to another table. So whatever the
//! cache itself does to table memory that such a copy may see is atomic, word by word; the copy
//! finds out afterwards that it must be thrown away. Under a model checker, the first words of each
//! table have shadow words that the checker knows (see `model`).

use core::sync::atomic::{AtomicU64, Ordering};
use std::ptr::NonNull;

/// # Safety
/// `at + 8` bytes from `table` are inside one mapping, 8-aligned.
#[inline]
pub(super) unsafe fn load_word(table: NonNull<u8>, at: usize) -> u64 {
    #[cfg(any(loom, shuttle))]
    if let Some(value) = crate::model::load(table.as_ptr() as usize + at) {
        return value;
    }
    // SAFETY: the caller's promise.
    unsafe { word_at(table, at) }.load(Ordering::Relaxed)
}

/// # Safety
/// See [`load_word`].
pub(super) unsafe fn store_word(table: NonNull<u8>, at: usize, value: u64) {
    #[cfg(any(loom, shuttle))]
    if crate::model::store(
        table.as_ptr() as usize + at,
        value,
        crate::model::Ordering::Release,
    ) {
        return;
    }
    // SAFETY: the caller's promise. Release: what the writer did before is visible to a reader that
    // sees the value and acquires (the fence in `read`).
    unsafe { word_at(table, at) }.store(value, Ordering::Release);
}

/// Fills a table with zeros. A copy without a pin may still be reading the table that was there
/// before; it throws away what it copied.
///
/// # Safety
/// `bytes`, a multiple of 8, from `table` are inside one mapping, 8-aligned, and nobody has the
/// table pinned.
pub(super) unsafe fn zero_words(table: NonNull<u8>, bytes: usize) {
    for at in (0..bytes).step_by(8) {
        // SAFETY: the caller's promise. Relaxed: the end of the load publishes them.
        unsafe { word_at(table, at) }.store(0, Ordering::Relaxed);
    }
    #[cfg(any(loom, shuttle))]
    crate::model::zero(table);
}

/// Copies one table's memory to another's. As in [`zero_words`], a copy without a pin may be
/// reading either of them.
///
/// # Safety
/// See [`zero_words`], for both.
pub(super) unsafe fn copy_words(from: NonNull<u8>, to: NonNull<u8>, bytes: usize) {
    for at in (0..bytes).step_by(8) {
        // SAFETY: the caller's promise. Relaxed: the end of the move publishes them.
        unsafe {
            let word = word_at(from, at).load(Ordering::Relaxed);
            word_at(to, at).store(word, Ordering::Relaxed);
        }
    }
    #[cfg(any(loom, shuttle))]
    crate::model::copy(from, to);
}

/// core's atomic, since a model checker's does not live in table memory.
///
/// # Safety
/// `at + 8` bytes from `table` are inside one mapping, 8-aligned, and stay mapped as long as the
/// result is used.
#[inline(always)]
unsafe fn word_at<'a>(table: NonNull<u8>, at: usize) -> &'a AtomicU64 {
    // SAFETY: the caller's promise. Others that change these bytes at the same time do so
    // atomically. A load from storage does not, but whoever sees its bytes throws them away after
    // the second look at the slot's word.
    unsafe { table.add(at).cast().as_ref() }
}
