// SPDX-License-Identifier: MIT OR Apache-2.0
//! A wait list: callers register for a key under the owner's lock, and wait without it.
//!
//! The lock that guards the condition is held both to register and to notify. So nothing can happen
//! between "the condition does not hold" and "the caller is on the list". `notify` takes waiters
//! off the list; the [`WakeList`] that it returns marks them notified and calls their wakers, after
//! the owner's lock was released.
//!
//! | waiter | `notify`, then [`WakeList::wake`] | `poll` |
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

/// The waiters and the key that each waits for. Guarded by the owner's lock.
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
    /// Puts the caller on the list. Await the waiter after the owner's lock was released.
    pub fn register(&mut self, key: K) -> Waiter {
        // Removes the entries of waiters that were dropped, so that the list holds no more entries
        // than there are waiters.
        self.waiting.retain(|(_, node)| Arc::strong_count(node) > 1);
        let node = Shared::default();
        self.waiting.push((key, node.clone()));
        Waiter(node)
    }

    /// Takes the waiters for all keys that `matches` accepts off the list; [`WakeList::wake`], or
    /// dropping the `WakeList`, wakes them.
    #[inline]
    pub fn notify(&mut self, matches: impl FnMut(&K) -> bool) -> WakeList {
        // The usual case, kept cheap.
        if self.waiting.is_empty() {
            return WakeList::default();
        }
        self.take(matches)
    }

    fn take(&mut self, mut matches: impl FnMut(&K) -> bool) -> WakeList {
        let mut taken_nodes = Vec::new();
        self.waiting.retain(|(key, node)| {
            let taken = matches(key);
            if taken {
                taken_nodes.push(node.clone());
            }
            !taken
        });
        WakeList(taken_nodes)
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// A place on a [`WaitList`]; ready once notified.
#[must_use = "a waiter waits only when it is awaited"]
pub struct Waiter(Shared);

impl Waiter {
    /// Makes a waiter that is ready already.
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
        // Cloned without the lock: the first clone may ask the host for the caller.
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
    /// Wakes the waiters. No internal lock may be held: a waker may run the woken coroutine inside
    /// the call.
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
            self.wake_all();
        }
    }
}

impl WakeList {
    fn wake_all(&mut self) {
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
