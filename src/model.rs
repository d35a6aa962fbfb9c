// SPDX-License-Identifier: MIT OR Apache-2.0
//! Only under a model checker: table memory as the checker sees it.
//!
//! A checker explores accesses to its own atomics and does not see a mapping's bytes. So the first
//! words of each table have a shadow word here. The cache's 8-byte loads and stores, its copies and
//! its release of memory go to the shadow words, and a test's storage fills and reads them by
//! address. Accesses to shadow words are relaxed, so that only the cache's own words and fences
//! order them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr::NonNull;
use std::rc::Rc;

pub use crate::primitives::{AtomicU64, Ordering};

/// How many 8-byte words of each table have a shadow word.
pub const WORDS: usize = 2;

thread_local! {
    // Both checkers run all of a model's threads in one thread of the operating system.
    static SHADOW_WORDS: RefCell<HashMap<usize, Rc<AtomicU64>>> = RefCell::default();
}

fn addresses(table: NonNull<u8>) -> impl Iterator<Item = usize> {
    (0..WORDS).map(move |n| table.as_ptr() as usize + n * 8)
}

fn shadow_word(address: usize) -> Option<Rc<AtomicU64>> {
    SHADOW_WORDS.with_borrow(|shadow_words| shadow_words.get(&address).cloned())
}

pub(crate) fn create(table: NonNull<u8>) {
    for address in addresses(table) {
        let word = Rc::new(AtomicU64::new(0));
        SHADOW_WORDS.with_borrow_mut(|shadow_words| shadow_words.insert(address, word));
    }
}

pub(crate) fn remove(table: NonNull<u8>) {
    for address in addresses(table) {
        SHADOW_WORDS.with_borrow_mut(|shadow_words| shadow_words.remove(&address));
    }
}

/// The word at `address`; `None` if it has no shadow word.
pub fn load(address: usize) -> Option<u64> {
    shadow_word(address).map(|word| word.load(Ordering::Relaxed))
}

/// Stores the word at `address`; false if it has no shadow word.
pub fn store(address: usize, value: u64, ordering: Ordering) -> bool {
    shadow_word(address)
        .map(|word| word.store(value, ordering))
        .is_some()
}

pub(crate) fn copy(from: NonNull<u8>, to: NonNull<u8>) {
    for (from, to) in addresses(from).zip(addresses(to)) {
        if let Some(value) = load(from) {
            store(to, value, Ordering::Relaxed);
        }
    }
}

pub(crate) fn zero(table: NonNull<u8>) {
    for address in addresses(table) {
        store(address, 0, Ordering::Relaxed);
    }
}
