// SPDX-License-Identifier: MIT OR Apache-2.0
//! What waits and what wakes: parker, wait list, state lock, the cleaner's wakeable sleep.
//!
//! Nothing here knows a host: a wait ends through a [`std::task::Waker`], and the host's part of a parker is its
//! [`parker::Sleeper`]. No waker is called with a lock of this crate held.

pub mod lock;
pub mod parker;
pub mod sleep;
pub mod wait_list;
