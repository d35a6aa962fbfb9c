// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting and waking: the parker, the wait list, the state lock, and the cleaner's sleep, which
//! can be ended early.
//!
//! Nothing here depends on a host: a wait ends through a [`std::task::Waker`], and the host's part
//! of a parker is its [`parker::Sleeper`]. No waker is called with an internal lock held.

pub mod lock;
pub mod parker;
pub mod sleep;
pub mod wait_list;
