// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device: what one flush of storage makes stable. All caches that write to it are its members.
//!
//! A flush counts for every member, whichever asks for it: what it wrote before is stable, and the
//! flush that its next write waits for is done. If a flush fails, that counts for every member,
//! too: see `unflushed`.
//!
//! One flush runs at a time. A second one waits: of two flushes that run at the same time, only one
//! may be told of the error that both met.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::Cache;
use crate::error::Errno;
use crate::primitives::{AtomicU64, Mutex, Ordering};
use crate::storage::DeviceKey;
use crate::sync::wait_list::WaitList;

/// See the module.
pub(super) struct Device {
    key: Option<DeviceKey>,
    /// How many flushes have failed, shifted by 32 bits, and the errno of the last.
    failures: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    members: Vec<Weak<Cache>>,
    flushing: bool,
    waiting: WaitList,
}

/// The devices with a key. Not one of the model's mutexes: it outlives a model's run.
static DEVICES: parking_lot::Mutex<BTreeMap<DeviceKey, Weak<Device>>> =
    parking_lot::Mutex::new(BTreeMap::new());

impl Device {
    /// The device with this key. `None`: a device of its own.
    pub(super) fn of(key: Option<DeviceKey>) -> Arc<Self> {
        let device = || {
            Arc::new(Self {
                key,
                failures: AtomicU64::new(0),
                inner: Mutex::default(),
            })
        };
        let Some(key) = key else {
            return device();
        };
        let mut devices = DEVICES.lock();
        let entry = devices.entry(key).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let device = device();
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

    /// The caches that are alive. Without the lock: a member's own locks come first, and the caller
    /// may become a member's last owner.
    pub(super) fn members(&self) -> Vec<Arc<Cache>> {
        let members = self.inner.lock().members.clone();
        members.iter().filter_map(Weak::upgrade).collect()
    }

    /// A number that every failed flush changes.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
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

    /// Begins a flush, after the one that runs now. The caller calls storage, and then
    /// [`Flush::end`].
    pub(super) async fn begin_flush(&self) -> Flush<'_> {
        loop {
            let waiter = {
                let mut inner = self.inner.lock();
                if !inner.flushing {
                    inner.flushing = true;
                    break;
                }
                inner.waiting.register()
            };
            waiter.await;
        }
        let flush = Flush {
            device: self,
            result: None,
        };
        for member in self.members() {
            member.flush_begins();
        }
        flush
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Some(key) = self.key else {
            return;
        };
        let mut devices = DEVICES.lock();
        // After the last owner dropped this one, a new one may have been made for the same key.
        if devices.get(&key).is_some_and(|now| now.strong_count() == 0) {
            devices.remove(&key);
        }
    }
}

/// A flush that runs. If it is dropped without a result (after a panic in a Rust storage), it has
/// failed.
pub(super) struct Flush<'a> {
    device: &'a Device,
    result: Option<Result<(), Errno>>,
}

impl Flush<'_> {
    /// Storage's answer. Returns it after every member took notice.
    pub(super) fn end(mut self, result: Result<(), Errno>) -> Result<(), Errno> {
        self.result = Some(result);
        result
    }
}

impl Drop for Flush<'_> {
    fn drop(&mut self) {
        let device = self.device;
        if let Err(errno) = self.result.unwrap_or(Err(Errno::IO)) {
            // Before the members look at their records: a write that ends meanwhile is either in
            // its cache's record by then, or sees that a flush has failed. Nobody else changes the
            // number, since one flush runs at a time.
            let failed = (device.failures() >> 32) + 1;
            let failures = failed << 32 | u64::from(errno.code() as u32);
            device.failures.store(failures, Ordering::SeqCst);
            for member in device.members() {
                member.flush_failed(errno);
            }
        } else {
            for member in device.members() {
                member.flush_succeeded();
            }
        }
        let wakes = {
            let mut inner = device.inner.lock();
            inner.flushing = false;
            inner.waiting.notify_all()
        };
        wakes.wake();
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn storages_with_one_key_share_a_device() {
        let first = Device::of(Some((0, 1)));
        assert!(Arc::ptr_eq(&first, &Device::of(Some((0, 1)))));
        assert!(!Arc::ptr_eq(&first, &Device::of(Some((8, 1)))));
        assert!(!Arc::ptr_eq(&first, &Device::of(Some((0, 2)))));
        assert!(!Arc::ptr_eq(&Device::of(None), &Device::of(None)));
    }

    #[test]
    fn devices_are_forgotten_with_their_last_owner() {
        let key = (0x1230, 7);
        let first = Device::of(Some(key));
        let second = Device::of(Some(key));
        drop(first);
        assert!(DEVICES.lock().contains_key(&key));
        drop(second);
        assert!(!DEVICES.lock().contains_key(&key));
    }
}
