// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state lock: an asynchronous mutex with an owner.
//!
//! Two kinds of callers take it. *Requests* (threads, coroutines) queue in order. The *cleaner*
//! never queues: it is woken when the lock becomes free, and tries again. The reason is that a
//! cleaner may run in an event loop whose own thread is parked in the queue. If the lock were
//! handed to such a cleaner, it would never be released.
//!
//! | lock | queue | what `unlock` does |
//! |---|---|---|
//! | held | empty | frees the lock; wakes every cleaner |
//! | held | the first request has not lost a race | frees the lock; wakes every cleaner and the first request, which stays first until it has the lock |
//! | held | the first request was woken once and found the lock taken again | hands the lock over to it: the lock is never free in between |
//!
//! So a running caller can take a free lock without waiting for the queue (no convoy), and no
//! request in the queue is overtaken for ever.
//!
//! No wake-up is lost: every `unlock` wakes the first request in the queue until that request has
//! the lock, and a request that gives up passes its wake-up on.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::primitives::Mutex;

/// A possible holder of the lock: a coroutine or a thread, as its host identifies it. The number is
/// never compared after that coroutine or thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(pub usize);

struct Request {
    owner: Owner,
    waker: Waker,
    /// It was woken and has not been polled since.
    woken: bool,
    /// It was woken and found the lock taken: the next `unlock` hands the lock over to it.
    lost_race: bool,
}

#[derive(Default)]
struct Inner {
    owner: Option<Owner>,
    /// The request that the lock was handed over to, until it is polled and notices.
    granted: Option<u64>,
    /// The requests that wait, by their number, which is their order. To enter, to leave and to be
    /// the first takes O(log n) with n requests.
    queue: BTreeMap<u64, Request>,
    cleaners: Vec<(usize, Waker)>,
    next_id: u64,
}

/// See the module.
#[derive(Default)]
pub struct StateLock {
    inner: Mutex<Inner>,
}

impl StateLock {
    /// Makes a free lock.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for the lock, in the queue's order. The caller must make sure that it does not hold
    /// the lock already.
    pub fn lock(&self, owner: Owner) -> LockFuture<'_> {
        LockFuture {
            lock: self,
            owner,
            id: None,
        }
    }

    /// Takes the lock if it is free; else wakes `cx` when it next becomes free. For the cleaner: it
    /// may poll any number of times and stop polling at any time. `cleaner` identifies the cleaner.
    pub fn poll_lock_cleaner(
        &self,
        owner: Owner,
        cleaner: usize,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        // Cloned without the lock: the first clone may ask the host for the caller.
        let waker = cx.waker().clone();
        let mut inner = self.inner.lock();
        if inner.owner.is_none() {
            inner.owner = Some(owner);
            return Poll::Ready(());
        }
        inner.cleaners.retain(|(other, _)| *other != cleaner);
        inner.cleaners.push((cleaner, waker));
        Poll::Pending
    }

    /// Whether `owner` holds the lock.
    pub fn is_held_by(&self, owner: Owner) -> bool {
        self.inner.lock().owner == Some(owner)
    }

    /// Whether anybody holds the lock.
    pub fn is_held(&self) -> bool {
        self.inner.lock().owner.is_some()
    }

    /// Releases the lock. Returns false, and changes nothing, if `owner` does not hold it. Calls
    /// wakers, with no internal lock held.
    pub fn unlock(&self, owner: Owner) -> bool {
        let mut inner = self.inner.lock();
        if inner.owner != Some(owner) {
            return false;
        }
        let wakers = Self::release(&mut inner);
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
        true
    }

    /// Frees the lock or hands it over; see the module's table. Returns the wakers to call.
    fn release(inner: &mut Inner) -> Vec<Waker> {
        let first = inner.queue.first_entry();
        if let Some(first) = first.filter(|first| first.get().lost_race) {
            let (id, request) = first.remove_entry();
            inner.owner = Some(request.owner);
            inner.granted = Some(id);
            return vec![request.waker];
        }
        inner.owner = None;
        let cleaners = std::mem::take(&mut inner.cleaners);
        let mut wakers: Vec<Waker> = cleaners.into_iter().map(|(_, waker)| waker).collect();
        wakers.extend(Self::wake_first(inner));
        wakers
    }

    fn wake_first(inner: &mut Inner) -> Option<Waker> {
        inner.queue.first_entry().map(|mut first| {
            let request = first.get_mut();
            request.woken = true;
            request.waker.clone()
        })
    }
}

/// A request for the lock; ready when the caller owns it.
#[must_use = "the lock is taken when this is awaited"]
pub struct LockFuture<'a> {
    lock: &'a StateLock,
    owner: Owner,
    id: Option<u64>,
}

impl Future for LockFuture<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.take() {
            return Poll::Ready(());
        }
        // Cloned without the lock: the first clone may ask the host for the caller. The lock may
        // become free meanwhile, so `take_from` is tried again under the lock.
        let waker = cx.waker().clone();
        let mut inner = self.lock.inner.lock();
        if Self::take_from(&mut inner, self.id, self.owner) {
            drop(inner);
            self.id = None;
            return Poll::Ready(());
        }
        let queued = self.id.and_then(|id| inner.queue.get_mut(&id));
        if let Some(request) = queued {
            request.lost_race |= std::mem::take(&mut request.woken);
            request.waker = waker;
            return Poll::Pending;
        }
        let id = inner.next_id;
        inner.next_id += 1;
        let request = Request {
            owner: self.owner,
            waker,
            woken: false,
            lost_race: false,
        };
        inner.queue.insert(id, request);
        drop(inner);
        self.id = Some(id);
        Poll::Pending
    }
}

impl LockFuture<'_> {
    fn take(&mut self) -> bool {
        let taken = Self::take_from(&mut self.lock.inner.lock(), self.id, self.owner);
        if taken {
            self.id = None;
        }
        taken
    }

    /// Returns true if the lock was handed over to this request, or if it was free and is taken
    /// now.
    fn take_from(inner: &mut Inner, id: Option<u64>, owner: Owner) -> bool {
        if id.is_some() && inner.granted == id {
            inner.granted = None;
            return true;
        }
        if inner.owner.is_some() {
            return false;
        }
        inner.owner = Some(owner);
        id.map(|id| inner.queue.remove(&id));
        true
    }
}

impl Drop for LockFuture<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        let mut inner = self.lock.inner.lock();
        let wakers = if inner.granted == Some(id) {
            inner.granted = None;
            StateLock::release(&mut inner)
        } else {
            inner.queue.remove(&id);
            if inner.owner.is_none() {
                StateLock::wake_first(&mut inner).into_iter().collect()
            } else {
                Vec::new()
            }
        };
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }
}
