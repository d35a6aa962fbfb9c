// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hosts on which a test runs: the background thread, and event loops with a thread each.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use qcow2cache::host::event_loop::{EventLoop, EventLoopHost};
use qcow2cache::host::threads::ThreadHost;
use qcow2cache::host::{Context, Host};

use super::Latch;

type Job = Box<dyn FnOnce() + Send>;

/// A host with two contexts.
pub trait Fixture: Send + Sync {
    fn host(&self) -> Arc<dyn Host>;
    /// The first or the second context for a cleaner. A host with one context returns it for both.
    fn context(&self, which: usize) -> Context;
    /// A context that this host cannot use.
    fn foreign_context(&self) -> Context;
    /// Runs `job` in the home thread of a context, or in a new thread where contexts have none.
    /// Returns when the job is done.
    fn run_in(&self, which: usize, job: Box<dyn FnOnce() + Send + '_>);
}

/// The threads from which [`run_at`] can call: each context's home thread, and the test's thread.
pub const PLACES: std::ops::Range<usize> = 0..3;

/// Runs `job` in the home thread of context 0 or 1, or, for place 2, in the calling thread.
pub fn run_at(fixture: &dyn Fixture, place: usize, job: impl FnOnce() + Send) {
    match place {
        0 | 1 => fixture.run_in(place, Box::new(job)),
        _ => job(),
    }
}

pub struct Threads;

impl Fixture for Threads {
    fn host(&self) -> Arc<dyn Host> {
        ThreadHost::shared()
    }

    fn context(&self, _which: usize) -> Context {
        Context::Default
    }

    fn foreign_context(&self) -> Context {
        Context::Opaque(1)
    }

    fn run_in(&self, _which: usize, job: Box<dyn FnOnce() + Send + '_>) {
        std::thread::scope(|scope| {
            scope.spawn(job);
        });
    }
}

/// An event loop and the thread that runs it.
pub struct LoopThread {
    pub event_loop: Arc<EventLoop>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl LoopThread {
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (created, event_loop) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let event_loop = EventLoop::new().unwrap();
            created.send(event_loop.clone()).unwrap();
            loop {
                match inbox.try_recv() {
                    Ok(job) => job(),
                    Err(mpsc::TryRecvError::Empty) => {
                        event_loop.poll(None).unwrap();
                    }
                    Err(mpsc::TryRecvError::Disconnected) => break,
                }
            }
            assert!(
                !event_loop.executor().has_tasks(),
                "a cleaner outlived its test"
            );
        });
        Self {
            event_loop: event_loop.recv().unwrap(),
            jobs: Some(jobs),
            thread: Some(thread),
        }
    }

    /// Runs `job` in the loop's thread, between two iterations. Returns when the job is done.
    pub fn run(&self, job: Box<dyn FnOnce() + Send + '_>) {
        // SAFETY: only the lifetime changes. The job has run or was dropped before this call
        // returns: `done` is opened by the drop of a value that the job owns.
        let job: Job = unsafe { std::mem::transmute::<Box<dyn FnOnce() + Send + '_>, Job>(job) };
        struct OpenAtDrop(Latch);
        impl Drop for OpenAtDrop {
            fn drop(&mut self) {
                self.0.open();
            }
        }
        let done = Latch::default();
        let guard = OpenAtDrop(done.clone());
        let (result, outcome) = mpsc::channel();
        let wrapped: Job = Box::new(move || {
            let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            let _ = result.send(ran);
            drop(guard);
        });
        self.jobs.as_ref().unwrap().send(wrapped).unwrap();
        self.event_loop.kick();
        done.wait();
        if let Err(panic) = outcome.recv().unwrap() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for LoopThread {
    fn drop(&mut self) {
        self.jobs = None;
        self.event_loop.kick();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

pub struct Loops([LoopThread; 2]);

impl Loops {
    pub fn new() -> Self {
        Self([LoopThread::new(), LoopThread::new()])
    }
}

impl Fixture for Loops {
    fn host(&self) -> Arc<dyn Host> {
        EventLoopHost::shared()
    }

    fn context(&self, which: usize) -> Context {
        Context::Loop(self.0[which].event_loop.clone())
    }

    fn foreign_context(&self) -> Context {
        Context::Default
    }

    fn run_in(&self, which: usize, job: Box<dyn FnOnce() + Send + '_>) {
        self.0[which].run(job);
    }
}

/// Makes each of the functions `fn(&dyn Fixture)` a test on each host.
#[macro_export]
macro_rules! on_every_host {
    ($($name:ident)*) => {
        mod on_threads {
            $(#[test] fn $name() {
                $crate::support::with_timeout(|| super::$name(&$crate::support::hosts::Threads));
            })*
        }
        mod on_event_loops {
            $(#[test] fn $name() {
                $crate::support::with_timeout(|| {
                    super::$name(&$crate::support::hosts::Loops::new());
                });
            })*
        }
    };
}
