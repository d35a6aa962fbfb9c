// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device: what one flush of storage makes stable. All caches that write to it are its members.
//!
//! A flush counts for every member, whichever asks for it: what it wrote before is stable, and the
//! flush that its next write waits for is done. If a flush fails, that counts for every member,
//! too: see `unflushed`.
//!
//! A cache that is destroyed leaves the tables behind that it wrote and that are not stable yet:
//! the device's *orphans*. If a flush fails that should have made them stable, they are lost, and
//! every member is unstable, except for those that were given up since.
//!
//! One flush runs at a time. Others wait: of two flushes that run at the same time, only one may be
//! told of the error that both met. Those who wait share the next flush, so that each waits for two
//! at most.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::Cache;
use crate::error::Errno;
use crate::primitives::{AtomicU64, Mutex, Ordering};
use crate::storage::{DeviceKey, Storage};
use crate::sync::wait_list::WaitList;

/// See the module.
pub(super) struct Device {
    key: Key,
    /// Twice how many flushes have failed, shifted by 32 bits, and the errno of the last.
    failures: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    members: Vec<Weak<Cache>>,
    flushing: bool,
    /// How many flushes have begun.
    begun: u64,
    /// The number of the flush that ended last, and what storage answered.
    ended: (u64, Result<(), Errno>),
    waiting: WaitList,
    orphans: Orphans,
    /// How many of the orphans were there when the flush began that runs now.
    orphans_flushing: u64,
}

/// Numbers of orphans over a device's whole life.
#[derive(Clone, Copy, Default)]
pub(super) struct Orphans {
    /// Left behind by caches.
    pub(super) left: u64,
    /// Of these, the ones that are stable by now, or are known to be lost.
    pub(super) settled: u64,
}

/// What tells a device from all others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Device(DeviceKey),
    /// The address of a storage that has no key.
    Storage(usize),
}

/// The devices with members. Not one of the model's mutexes: it outlives a model's run.
static DEVICES: parking_lot::Mutex<BTreeMap<Key, Weak<Device>>> =
    parking_lot::Mutex::new(BTreeMap::new());

impl Device {
    /// The device of a storage.
    pub(super) fn of(storage: &Arc<dyn Storage>) -> Arc<Self> {
        // The address is the storage's own as long as a member keeps it.
        let address = Arc::as_ptr(storage).cast::<u8>().addr();
        Self::with_key(storage.device().map_or(Key::Storage(address), Key::Device))
    }

    fn with_key(key: Key) -> Arc<Self> {
        let mut devices = DEVICES.lock();
        let entry = devices.entry(key).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let device = Arc::new(Self {
                key,
                failures: AtomicU64::new(0),
                inner: Mutex::new(Inner {
                    members: Vec::new(),
                    flushing: false,
                    begun: 0,
                    ended: (0, Ok(())),
                    waiting: WaitList::default(),
                    orphans: Orphans::default(),
                    orphans_flushing: 0,
                }),
            });
            *entry = Arc::downgrade(&device);
            device
        })
    }

    /// Adds a new cache.
    pub(super) fn join(&self, cache: &Arc<Cache>) {
        self.inner.lock().members.push(Arc::downgrade(cache));
    }

    /// Removes a cache.
    pub(super) fn leave(&self, cache: *const Cache) {
        let mut inner = self.inner.lock();
        inner.members.retain(|member| member.as_ptr() != cache);
    }

    /// A destroyed cache has left `count` tables behind that are not stable yet.
    pub(super) fn adopt(&self, count: u64) {
        self.inner.lock().orphans.left += count;
    }

    pub(super) fn orphans(&self) -> Orphans {
        self.inner.lock().orphans
    }

    /// Calls `f` for `asking` and for the other caches that are alive. Without the lock: a cache's
    /// own locks come first, and this may become a member's last owner.
    fn for_each_member(&self, asking: &Cache, f: impl Fn(&Cache)) {
        // A cache that was retired is no member, but may still be in use by Rust code.
        f(asking);
        let members = self.inner.lock().members.clone();
        for member in members.iter().filter_map(Weak::upgrade) {
            if !std::ptr::eq(&*member, asking) {
                f(&member);
            }
        }
    }

    /// A number that every failed flush changes, before and after the members take notice.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    /// Changes [`Device::failures`]. Only the flush that runs calls it.
    fn count_failure(&self, errno: Errno) {
        let count = (self.failures() >> 32) + 1;
        let failures = count << 32 | u64::from(errno.code() as u32);
        self.failures.store(failures, Ordering::SeqCst);
    }

    /// The errno of the last flush that failed, if one did since [`Device::failures`] returned
    /// `before`.
    pub(super) fn check_since(&self, before: u64) -> Result<(), Errno> {
        let now = self.failures();
        if now != before {
            return Err(Errno::from_code(now as u32 as i32));
        }
        Ok(())
    }

    /// Flushes the storage of `asking`, which is on this device, or waits for a flush that another
    /// caller begins after this call. Returns what storage answered, after every member took
    /// notice.
    pub(super) async fn flush(&self, asking: &Cache) -> Result<(), Errno> {
        let mut asked = None;
        loop {
            let waiter = {
                let mut inner = self.inner.lock();
                let begun = *asked.get_or_insert(inner.begun);
                if inner.ended.0 > begun {
                    return inner.ended.1;
                }
                if !inner.flushing {
                    inner.flushing = true;
                    inner.begun += 1;
                    inner.orphans_flushing = inner.orphans.left;
                    break;
                }
                inner.waiting.register()
            };
            waiter.await;
        }
        let mut flush = Flush {
            device: self,
            asking,
            result: Err(Errno::IO),
        };
        self.for_each_member(asking, Cache::flush_begins);
        flush.result = asking.storage.flush();
        flush.result
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mut devices = DEVICES.lock();
        // After the last owner dropped this one, a new one may have been made for the same key.
        if (devices.get(&self.key)).is_some_and(|now| now.strong_count() == 0) {
            devices.remove(&self.key);
        }
    }
}

/// A flush that runs. Its drop tells the members how it ended. It has failed if a Rust storage
/// panicked.
struct Flush<'a> {
    device: &'a Device,
    asking: &'a Cache,
    result: Result<(), Errno>,
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        let device = self.device;
        if let Err(errno) = self.result {
            // Before the members look at their records: a write that ends meanwhile is either in
            // its cache's record by then, or sees that a flush has failed.
            device.count_failure(errno);
            let orphans = {
                let mut inner = device.inner.lock();
                let orphans = inner.orphans;
                inner.orphans.settled = orphans.left;
                orphans
            };
            device.for_each_member(self.asking, |member| member.flush_failed(errno, orphans));
            // And afterwards: a flush that began to look for dirty tables too early sees it.
            device.count_failure(errno);
        } else {
            {
                let mut inner = device.inner.lock();
                inner.orphans.settled = inner.orphans_flushing;
            }
            device.for_each_member(self.asking, Cache::flush_succeeded);
        }
        let wakes = {
            let mut inner = device.inner.lock();
            inner.flushing = false;
            inner.ended = (inner.begun, self.result);
            inner.waiting.notify_all()
        };
        wakes.wake();
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn devices_are_told_apart_by_their_keys() {
        let key = Key::Device((0, 1));
        let first = Device::with_key(key);
        assert!(Arc::ptr_eq(&first, &Device::with_key(key)));
        for other in [Key::Device((8, 1)), Key::Device((0, 2)), Key::Storage(1)] {
            assert!(!Arc::ptr_eq(&first, &Device::with_key(other)));
        }
    }

    #[test]
    fn devices_are_forgotten_with_their_last_owner() {
        let key = Key::Device((0x1230, 7));
        let first = Device::with_key(key);
        let second = Device::with_key(key);
        drop(first);
        assert!(DEVICES.lock().contains_key(&key));
        drop(second);
        assert!(!DEVICES.lock().contains_key(&key));
    }
}
