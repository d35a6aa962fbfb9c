// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the thread host's cleaners are to the whole process: one background thread, none when nobody needs it, and a `fork` that
//! leaves the child usable. One test, alone in its process, since it counts threads and forks.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::host::Context;
use qcow2cache::host::threads::ThreadHost;
use support::{until, watched};

#[derive(Default)]
struct Passes(AtomicUsize);

impl CleanTarget for Passes {
    fn drop_unused(&self, _from: usize) -> (usize, Option<usize>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        (0, None)
    }

    fn release_memory(&self, _from: usize) -> Option<usize> {
        None
    }

    fn poison(&self) {}
}

/// By their name, which a thread gives itself a moment after it was made; it is seen a moment after it was joined.
fn background_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "qcow2cache").count()
}

fn running_cleaner(interval_ns: u64) -> (Arc<Passes>, Cleaner) {
    let passes = Arc::new(Passes::default());
    let cleaner = Cleaner::new(ThreadHost::shared());
    cleaner.set_caches(vec![passes.clone()]);
    cleaner.start(Context::Default, interval_ns).unwrap();
    (passes, cleaner)
}

/// Runs `child` in a forked process; its exit code, or the signal that ended it. A child that hangs is killed by its alarm.
fn in_a_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs plain Rust code and leaves by `_exit`; malloc and the library know `fork`, and no other thread of this process
    // holds a lock of theirs: this test is alone.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: an alarm and an exit, in a process of our own.
        unsafe {
            libc::alarm(30);
            libc::_exit(child());
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

fn all_cleaners_share_one_background_thread() {
    assert_eq!(background_threads(), 0, "none before the first start");
    let cleaners: Vec<_> = (0..50).map(|_| running_cleaner(1_000_000)).collect();
    for (passes, _) in &cleaners {
        until(|| passes.0.load(Ordering::SeqCst) > 1);
    }
    until(|| background_threads() == 1);
    for (_, cleaner) in &cleaners {
        cleaner.del_and_wait().unwrap();
    }
    drop(cleaners);
    // It ends with the last cleaner, also if that was dropped while it ran.
    until(|| background_threads() == 0);
    drop(running_cleaner(1000));
    until(|| background_threads() == 0);
}

fn forked_child_can_stop_and_restart_cleaners() {
    // A fork may come while the background thread is at anything.
    for interval_ns in [1000, 600_000_000_000].repeat(10) {
        let (passes, cleaner) = running_cleaner(interval_ns);
        if interval_ns == 1000 {
            until(|| passes.0.load(Ordering::SeqCst) > 0);
        }
        let status = in_a_child(|| {
            if background_threads() != 0 || cleaner.check_idle().is_err() || cleaner.is_running() {
                return 1;
            }
            if cleaner.del_and_wait().is_err() || cleaner.lock().is_err() {
                return 2;
            }
            if cleaner.co_locked_del_and_wait().is_err() || cleaner.unlock().is_err() {
                return 3;
            }
            let before = passes.0.load(Ordering::SeqCst);
            if cleaner.start(Context::Default, 1000).is_err() {
                return 4;
            }
            until(|| background_threads() == 1);
            until(|| passes.0.load(Ordering::SeqCst) > before);
            if cleaner.del_and_wait().is_err() {
                return 5;
            }
            drop(cleaner);
            until(|| background_threads() == 0);
            0
        });
        assert_eq!(
            status, 0,
            "wait status of the child, interval {interval_ns}"
        );
    }
}

#[test]
fn process_has_one_background_thread_and_survives_fork() {
    watched(|| {
        all_cleaners_share_one_background_thread();
        forked_child_can_stop_and_restart_cleaners();
    });
}
