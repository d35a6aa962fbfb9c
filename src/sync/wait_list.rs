// SPDX-License-Identifier: MIT OR Apache-2.0
//! A wait list: callers enrol for a key under the owner's lock and wait without it.
//!
//! Enrolling happens under the lock that guards the condition, notifying too, so that there is no moment between "the
//! condition does not hold" and "I am on the list". The wakers are called by [`WakeList`] once the lock is dropped.
//!
//! | waiter | `notify` | `poll` |
//! |---|---|---|
//! | registered, not polled | → notified | → waiting (keeps the waker) |
//! | waiting | → notified, waker called once | stays, newer waker kept |
//! | notified | stays | ready |

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::primitives::Mutex;

#[derive(Default)]
struct Node {
    notified: bool,
    waker: Option<Waker>,
}

type Shared = Arc<Mutex<Node>>;

/// Who waits for what. Guarded by the owner's lock.
pub struct WaitList<K> {
    waiting: Vec<(K, Shared)>,
}

impl<K> Default for WaitList<K> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
        }
    }
}

impl<K: PartialEq> WaitList<K> {
    /// Puts the caller on the list. Await the waiter after the owner's lock was dropped.
    pub fn register(&mut self, key: K) -> Waiter {
        // Tickets that were dropped unawaited are swept here: the list never outgrows those who wait.
        self.waiting.retain(|(_, node)| Arc::strong_count(node) > 1);
        let node = Shared::default();
        self.waiting.push((key, node.clone()));
        Waiter(node)
    }

    /// Takes all who wait for a key that `matches`; they are woken by [`WakeList::wake`] or its drop.
    #[inline]
    pub fn notify(&mut self, matches: impl FnMut(&K) -> bool) -> WakeList {
        // Nearly always.
        if self.waiting.is_empty() {
            return WakeList::default();
        }
        self.take(matches)
    }

    fn take(&mut self, mut matches: impl FnMut(&K) -> bool) -> WakeList {
        let mut wakes = Vec::new();
        self.waiting.retain(|(key, node)| {
            let taken = matches(key);
            if taken {
                wakes.push(node.clone());
            }
            !taken
        });
        WakeList(wakes)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// A place on a [`WaitList`]; ready once notified.
#[must_use = "a waiter waits only when it is awaited"]
pub struct Waiter(Shared);

impl Waiter {
    /// A waiter that is ready: nothing to wait for.
    pub fn ready() -> Self {
        Self(Arc::new(Mutex::new(Node {
            notified: true,
            waker: None,
        })))
    }
}

impl Future for Waiter {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.lock().notified {
            return Poll::Ready(());
        }
        // Cloned without the lock: the first clone may ask the host who calls.
        let waker = cx.waker().clone();
        let mut node = self.0.lock();
        if node.notified {
            return Poll::Ready(());
        }
        node.waker = Some(waker);
        Poll::Pending
    }
}

/// Waiters taken off a list, to be woken without a lock.
#[must_use = "drop it after the lock, so that the waiters are woken"]
#[derive(Default)]
pub struct WakeList(Vec<Shared>);

impl WakeList {
    /// Wakes them. No lock of the crate may be held: a waker may run the woken coroutine at once.
    pub fn wake(self) {
        drop(self);
    }

    /// Adds the waiters of `other`.
    pub fn append(&mut self, mut other: WakeList) {
        self.0.append(&mut other.0);
    }
}

impl Drop for WakeList {
    #[inline]
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.call();
        }
    }
}

impl WakeList {
    fn call(&mut self) {
        for node in std::mem::take(&mut self.0) {
            let waker = {
                let mut node = node.lock();
                node.notified = true;
                node.waker.take()
            };
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
