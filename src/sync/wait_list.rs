// SPDX-License-Identifier: MIT OR Apache-2.0
//! Wait lists: callers register under the owner's lock, and wait without it.
//!
//! The lock that guards the condition is held both to register and to notify. So nothing can happen
//! between "the condition does not hold" and "the caller is on the list". A `notify` takes waiters
//! off the list; the [`WakeList`] that it returns marks them notified and calls their wakers, after
//! the owner's lock was released.
//!
//! | waiter | `notify`, then [`WakeList::wake`] | `poll` |
//! |---|---|---|
//! | registered, not polled | → notified | → waiting (keeps the waker) |
//! | waiting | → notified, waker called once | stays, newer waker kept |
//! | notified | stays | ready |
//!
//! Cost: registering, notifying one waiter and dropping a waiter take amortized constant time,
//! however many others wait. A dropped waiter leaves its entry behind. A list removes such entries
//! when it has grown to twice what it held after the last removal.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::{BuildHasherDefault, Hash};
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

/// Lists shorter than this are not searched for entries of dropped waiters.
const MIN_SWEEP: usize = 16;

/// Waiters for one event, in the order in which they registered. Guarded by the owner's lock.
#[derive(Default)]
pub struct WaitList {
    waiting: VecDeque<Shared>,
    /// The length at which the entries of dropped waiters are removed.
    sweep_at: usize,
}

impl WaitList {
    /// Puts the caller at the end of the list. Await the waiter after the owner's lock was
    /// released.
    pub fn register(&mut self) -> Waiter {
        if self.waiting.len() >= self.sweep_at.max(MIN_SWEEP) {
            self.waiting.retain(is_awaited);
            self.sweep_at = self.waiting.len() * 2;
        }
        let node = Shared::default();
        self.waiting.push_back(node.clone());
        Waiter(node)
    }

    /// Takes all waiters off the list; [`WakeList::wake`], or dropping the `WakeList`, wakes them.
    #[inline]
    pub fn notify_all(&mut self) -> WakeList {
        // The usual case, kept cheap.
        if self.waiting.is_empty() {
            return WakeList::default();
        }
        WakeList(std::mem::take(&mut self.waiting).into())
    }

    /// Takes the first waiter off the list, if there is one. A waiter that is dropped after this,
    /// instead of being awaited, has consumed the notification.
    #[inline]
    pub fn notify_one(&mut self) -> WakeList {
        if self.waiting.is_empty() {
            return WakeList::default();
        }
        self.take_first()
    }

    fn take_first(&mut self) -> WakeList {
        while let Some(node) = self.waiting.pop_front() {
            if is_awaited(&node) {
                return WakeList(vec![node]);
            }
        }
        WakeList::default()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Whether the waiter of this entry was not dropped.
fn is_awaited(node: &Shared) -> bool {
    Arc::strong_count(node) > 1
}

/// A [`WaitList`] for each of many events. Guarded by the owner's lock.
// The hasher has fixed keys, so that a model checker can repeat a schedule.
pub struct WaitTable<K>(HashMap<K, WaitList, BuildHasherDefault<DefaultHasher>>);

impl<K> Default for WaitTable<K> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Eq + Hash> WaitTable<K> {
    /// Puts the caller on the list of `event`; see [`WaitList::register`].
    pub fn register(&mut self, event: K) -> Waiter {
        self.0.entry(event).or_default().register()
    }

    /// Takes all waiters for `event` off its list; see [`WaitList::notify_all`].
    #[inline]
    pub fn notify_all(&mut self, event: &K) -> WakeList {
        if self.0.is_empty() {
            return WakeList::default();
        }
        self.take(event)
    }

    fn take(&mut self, event: &K) -> WakeList {
        let mut list = self.0.remove(event).unwrap_or_default();
        list.notify_all()
    }

    /// Takes the waiters for all events off their lists.
    pub fn notify_all_events(&mut self) -> WakeList {
        let mut wake_list = WakeList::default();
        for (_, mut list) in self.0.drain() {
            wake_list.append(list.notify_all());
        }
        wake_list
    }

    /// Whether no event has an entry.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A place on a [`WaitList`]; ready once notified. Dropping it gives the place up.
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
        if self.0.is_empty() {
            std::mem::swap(&mut self.0, &mut other.0);
        } else {
            self.0.append(&mut other.0);
        }
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

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    fn is_ready(waiter: &mut Waiter) -> bool {
        Pin::new(waiter)
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn dropped_waiters_take_no_more_room_than_living_ones() {
        let mut list = WaitList::default();
        let living: Vec<_> = (0..100).map(|_| list.register()).collect();
        for _ in 0..10_000 {
            drop(list.register());
            assert!(list.waiting.len() <= 2 * living.len());
        }
        assert_eq!(
            list.notify_all().0.iter().filter(|n| is_awaited(n)).count(),
            100
        );
    }

    #[test]
    fn notify_one_wakes_first_living_waiter() {
        let mut list = WaitList::default();
        let [first, mut second, mut third] = [(), (), ()].map(|()| list.register());
        drop(first);
        list.notify_one().wake();
        assert!(is_ready(&mut second));
        assert!(!is_ready(&mut third));
        list.notify_one().wake();
        assert!(is_ready(&mut third));
        list.notify_one().wake();
        assert!(list.is_empty());
    }

    #[test]
    fn wait_table_notifies_one_event_or_all() {
        let mut table = WaitTable::default();
        let mut waiters = [1, 1, 2, 3].map(|event| table.register(event));
        table.notify_all(&1).wake();
        assert_eq!(waiters.each_mut().map(is_ready), [true, true, false, false]);
        table.notify_all_events().wake();
        assert_eq!(waiters.each_mut().map(is_ready), [true; 4]);
        assert!(table.is_empty());
    }
}
