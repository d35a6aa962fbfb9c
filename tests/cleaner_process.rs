// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread host's cleaners and the process: there is one background thread, none some time after
//! the last cleaner, and a forked child can use its cleaners. There is only one test in this
//! process, because it counts threads and forks.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use qcow2cache::cleaner::{CleanTarget, Cleaner};
use qcow2cache::host::Context;
use qcow2cache::host::threads::ThreadHost;
use support::{NEVER, wait_until, with_timeout};

/// Counts passes without a lock, so that a forked child can go on using it.
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

/// The threads with the background thread's name. A new thread has that name only a moment after
/// its start, and an ended thread may be listed for a moment.
fn background_threads() -> Vec<std::ffi::OsString> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let is_ours = |id: &std::ffi::OsString| {
        let name = std::fs::read_to_string(Path::new("/proc/self/task").join(id).join("comm"));
        name.is_ok_and(|name| name.trim() == "qcow2cache")
    };
    tasks
        .map(|task| task.unwrap().file_name())
        .filter(is_ours)
        .collect()
}

fn running_cleaner(interval_ns: u64) -> (Arc<Passes>, Cleaner) {
    let passes = Arc::new(Passes::default());
    let cleaner = Cleaner::new(ThreadHost::shared());
    cleaner.set_caches(vec![passes.clone()]);
    cleaner.start(Context::Default, interval_ns).unwrap();
    (passes, cleaner)
}

/// Runs `child` in a forked process and returns its wait status. An alarm kills a child that hangs.
fn in_child(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs plain Rust code and leaves by `_exit`. malloc and the library handle
    // `fork`, and no other thread of this process holds a lock of theirs: this is the only test.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: an alarm and an exit in the child process.
        unsafe {
            libc::alarm(30);
            libc::_exit(child());
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child that was created above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

fn all_cleaners_share_one_background_thread() {
    assert!(background_threads().is_empty(), "before the first start");
    let cleaners: Vec<_> = (0..50).map(|_| running_cleaner(1_000_000)).collect();
    for (passes, _) in &cleaners {
        wait_until(|| passes.0.load(Ordering::SeqCst) > 1);
    }
    wait_until(|| background_threads().len() == 1);
    for (_, cleaner) in &cleaners {
        cleaner.del_and_wait().unwrap();
    }
    drop(cleaners);
    // The thread ends with the last cleaner, also if that cleaner is dropped while it runs.
    wait_until(|| background_threads().is_empty());
    drop(running_cleaner(1000));
    wait_until(|| background_threads().is_empty());
}

/// Cleaners that follow one another use one thread, which is not woken for them.
fn background_thread_stays_for_a_while() {
    let context_switches = |thread: &std::ffi::OsString| {
        let status = Path::new("/proc/self/task").join(thread).join("status");
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|l| l.starts_with("voluntary_ctxt"));
        let count: u64 = line.unwrap().split('\t').nth(1).unwrap().parse().unwrap();
        count
    };
    drop(running_cleaner(NEVER));
    wait_until(|| background_threads().len() == 1);
    let thread = background_threads().remove(0);
    let before = context_switches(&thread);
    let begun = std::time::Instant::now();
    let mut rounds = 0;
    while begun.elapsed() < Duration::from_millis(500) {
        let (_, cleaner) = running_cleaner(NEVER);
        if rounds % 2 == 0 {
            cleaner.del_and_wait().unwrap();
        }
        rounds += 1;
    }
    assert_eq!(background_threads(), std::slice::from_ref(&thread));
    let switches = context_switches(&thread) - before;
    assert!(
        rounds > 100 && switches < 20,
        "{switches} in {rounds} rounds"
    );
    wait_until(|| background_threads().is_empty());
}

fn forked_child_can_stop_and_restart_cleaners() {
    // A fork may come at any point of the background thread.
    for interval_ns in [1000, NEVER].repeat(10) {
        let (passes, cleaner) = running_cleaner(interval_ns);
        if interval_ns == 1000 {
            wait_until(|| passes.0.load(Ordering::SeqCst) > 0);
        }
        let status = in_child(|| {
            if !background_threads().is_empty()
                || cleaner.check_idle().is_err()
                || cleaner.is_running()
            {
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
            wait_until(|| background_threads().len() == 1);
            wait_until(|| passes.0.load(Ordering::SeqCst) > before);
            if cleaner.del_and_wait().is_err() {
                return 5;
            }
            drop(cleaner);
            wait_until(|| background_threads().is_empty());
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
    with_timeout(|| {
        all_cleaners_share_one_background_thread();
        background_thread_stays_for_a_while();
        forked_child_can_stop_and_restart_cleaners();
    });
}
