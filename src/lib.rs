// SPDX-License-Identifier: MIT OR Apache-2.0
//! `qcow2cache`: the metadata table cache and the cache cleaner of QEMU-like qcow2 drivers.
//!
//! The layers, top floor first; each uses only what stands below it:
//!
//! | module | subject |
//! |---|---|
//! | `ffi` | the C API, `include/qcow2cache.h` |
//! | [`state`] | an open image's metadata: state lock, two caches, cleaner, option changes |
//! | [`cleaner`], [`cache`] | the two parts, which work alone, too |
//! | [`host`] | threads, event loops, coroutines |
//! | [`sync`] | parker, wait list, state lock, sleep |
//! | [`options`], [`storage`], [`error`] | what all of them speak of |

pub mod cache;
pub mod cleaner;
pub mod error;
#[cfg(not(any(loom, shuttle)))]
pub mod ffi;
pub mod host;
#[cfg(any(loom, shuttle))]
pub mod model;
pub mod options;
mod primitives;
pub mod state;
pub mod storage;
pub mod sync;
mod test_delay;
