// SPDX-License-Identifier: MIT OR Apache-2.0
//! One instance of the cleaner, from its start to its end.
//!
//! | instance | a stop request | else |
//! |---|---|---|
//! | registered, its task not run yet | flag set; the task finds it before its first sleep → ended | task runs → about to sleep |
//! | about to sleep | flag set | registers its waker under the lock that guards the flag, looks at the flag there → asleep |
//! | asleep | flag set, waker called → ended | deadline → waiting for the lock; interval changed → about to sleep |
//! | waiting for the lock | flag set, waker called → ended (host's own lock: when it gets it) | gets it → in a step |
//! | in a step | flag set; after the step → ended | unlocks → between two steps; after the last one, of all caches → releasing memory |
//! | between two steps | flag set, waker called → ended | its context ran other work → waiting for the lock, or releasing memory |
//! | releasing memory | flag set; after this part → ended | → between two steps; after the last part → about to sleep |
//! | ended | | out of the registry, waiters woken |
//!
//! * *No wake-up is lost*: flag and waker are one record under one mutex. Either the sleeper
//!   registers first and the stopper takes its waker, or the stopper sets the flag first and the
//!   sleeper sees it and does not sleep.
//! * *None is doubled*: the waker is taken out under that mutex, so that one of several stoppers
//!   calls it.
//! * *Sticky*: the flag is never cleared; the instance ends with it.
//! * *Nothing comes after the end*: timer and caches are dropped before the end notice; after it,
//!   the instance calls only the wakers of those who wait for its end.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use super::{CleanTarget, Shared};
use crate::host::{CancelHandle, Context};
use crate::primitives::Mutex;
use crate::sync::lock::Owner;
use crate::sync::sleep::{Clock, Sleep};

pub(super) struct Instance {
    pub(super) context: Context,
    pub(super) pid: u32,
    control: Mutex<Control>,
}

struct Control {
    stop: bool,
    interval_ns: u64,
    waker: Option<Waker>,
    runner: Option<Owner>,
    /// Set on hosts that can end the task from outside.
    cancel: Option<Box<dyn CancelHandle>>,
}

impl Instance {
    pub(super) fn new(context: Context, interval_ns: u64) -> Self {
        Self {
            context,
            pid: std::process::id(),
            control: Mutex::new(Control {
                stop: false,
                interval_ns,
                waker: None,
                runner: None,
                cancel: None,
            }),
        }
    }

    /// Whether `owner` runs this instance, now in a step or as its task.
    pub(super) fn is_run_by(&self, owner: Owner) -> bool {
        self.control.lock().runner == Some(owner)
    }

    /// Sets another interval; a sleep that is under way is measured anew.
    pub(super) fn set_interval(&self, interval_ns: u64) {
        self.update(|control| control.interval_ns = interval_ns);
    }

    /// Sets which thread or coroutine counts as this cleaner; returns the previous one.
    pub(super) fn set_runner(&self, runner: Option<Owner>) -> Option<Owner> {
        std::mem::replace(&mut self.control.lock().runner, runner)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.control.lock().stop
    }

    /// Never cleared.
    pub(super) fn set_stop_flag(&self) {
        self.control.lock().stop = true;
    }

    /// After the flag was set: cancels the task if the host can; else wakes it, and it ends by
    /// itself.
    pub(super) fn deliver_stop(&self) {
        let (waker, cancel) = {
            let mut control = self.control.lock();
            (control.waker.take(), control.cancel.take())
        };
        match (cancel, waker) {
            (Some(cancel), _) => cancel.cancel(),
            (None, Some(waker)) => waker.wake(),
            (None, None) => {}
        }
    }

    /// Sets what cancels the task. A stop that came earlier had nothing to cancel with: it is
    /// delivered here then.
    pub(super) fn set_cancel(&self, cancel: Option<Box<dyn CancelHandle>>) {
        let stopped = {
            let mut control = self.control.lock();
            control.cancel = cancel;
            control.stop
        };
        if stopped {
            self.deliver_stop();
        }
    }

    /// Changes the record and wakes the instance, which then looks at it again.
    fn update(&self, change: impl FnOnce(&mut Control)) {
        let waker = {
            let mut control = self.control.lock();
            change(&mut control);
            control.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether to go on. If so, a stop or an [`Instance::update`] from now on wakes `cx`.
    pub(super) fn poll_not_stopped(&self, cx: &TaskContext<'_>) -> bool {
        // Cloned without the lock: the first clone may ask the host for the caller.
        let waker = cx.waker().clone();
        let mut control = self.control.lock();
        if !control.stop {
            control.waker = Some(waker);
        }
        !control.stop
    }

    /// Lets the context run other work once; false if asked to stop.
    pub(super) async fn yield_to_context(&self, clock: &dyn Clock) -> bool {
        let mut yielded = Sleep::new(clock, clock.now_ns(), 0);
        poll_fn(|cx| {
            if !self.poll_not_stopped(cx) {
                return Poll::Ready(false);
            }
            yielded.poll_elapsed(cx).map(|()| true)
        })
        .await
    }

    /// Sleeps for the interval; false if asked to stop. The timer is deleted on return.
    async fn sleep(&self, clock: &dyn Clock) -> bool {
        let start_ns = clock.now_ns();
        let mut current: Option<(u64, Sleep<'_>)> = None;
        poll_fn(|cx| {
            if !self.poll_not_stopped(cx) {
                return Poll::Ready(false);
            }
            let interval_ns = self.control.lock().interval_ns;
            let sleep = match &mut current {
                Some((of, sleep)) if *of == interval_ns => sleep,
                other => {
                    let sleep = Sleep::new(clock, start_ns, interval_ns);
                    &mut other.insert((interval_ns, sleep)).1
                }
            };
            sleep.poll_elapsed(cx).map(|()| true)
        })
        .await
    }
}

/// Its drop takes the instance out of the registry and wakes those who wait for its end: the
/// instance's last act, also if its task was never run or is dropped.
pub(super) struct EndNotice {
    pub(super) shared: Arc<Shared>,
    pub(super) instance: Arc<Instance>,
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        let wakes = {
            let mut registry = self.shared.registry.lock();
            registry
                .instances
                .retain(|i| !Arc::ptr_eq(i, &self.instance));
            registry.ended.notify_all()
        };
        wakes.wake();
    }
}

/// The fields are dropped in this order if the task never runs: the notice comes last, since those
/// who wait for it may then free what the others point to.
pub(super) struct Body {
    pub(super) targets: Vec<Arc<dyn CleanTarget>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) end: EndNotice,
}

pub(super) async fn run(body: Body) {
    // Variables are dropped in reverse order, both when the task ends and when it is dropped in its
    // sleep: the notice comes last here, too.
    let Body {
        end,
        clock,
        targets,
    } = body;
    let EndNotice { shared, instance } = &end;
    instance.set_runner(shared.host.cleaner_owner());
    while instance.sleep(&*clock).await {
        shared.pass(instance, &*clock, &targets).await;
    }
}
