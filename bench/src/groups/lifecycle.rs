// SPDX-License-Identifier: MIT OR Apache-2.0
//! The life of cleaners and states: how long a stop takes, what idle cleaners cost, what is leaked,
//! and whether option changes hang.

use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Setting;
use crate::figure::{Report, Target};
use crate::image_state::Opener;
use crate::measure::{Samples, process_cpu, time};
use crate::{ffi, ours, programs, progress};

/// How often a sleeping cleaner is stopped.
const STOPS: usize = 10_000;
/// Life cycles a second that a state with default options must reach.
const OPENS: f64 = 50_000.0;
/// µs that 99 of 100 stops may take.
const STOP_P99: f64 = 200.0;
/// Switches to a coroutine that a stop may need on the coroutine host.
const SWITCHES: f64 = 3.0;
/// States that idle, each with a cleaner whose interval is one second.
const IDLE_STATES: usize = 1000;
/// Per cent of one processor that all idle cleaners together may use.
const IDLE_COST: f64 = 1.0;
/// Life cycles (open, close) after which nothing may be leaked.
const CYCLES: usize = 100_000;
/// The option changes count as hung after this time without one.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// The interval of the cleaners that are stopped: 600 s.
const SLEEP_NS: u64 = 600_000_000_000;

/// Runs the group: see the module.
pub fn run(setting: &Setting, report: &mut Report) -> Result<(), String> {
    // First, while the process has few threads.
    fork(report)?;
    progress::show("lifecycle: stops, threads");
    stop_figures(report, "threads", stops(None, null_mut())?);
    progress::show("lifecycle: stops, event loop");
    let io = IoThread::new(false);
    let host = ffi::Host::event_loop();
    stop_figures(
        report,
        "event_loop",
        stops(Some(&host), io.event_loop.cast())?,
    );
    drop(io);
    coroutine_stops(setting, report)?;
    idle(report)?;
    open_close(report);
    leaks(report)?;
    changes(setting, report)
}

/// Stops a sleeping cleaner [`STOPS`] times. Returns the ns of each stop, sorted.
fn stops(host: Option<&ffi::Host>, context: *mut core::ffi::c_void) -> Result<Vec<u64>, String> {
    let mut cleaner = null_mut();
    let host = host.map_or(null(), core::ptr::from_ref);
    let check = |what: &str, r: i32| {
        if r == 0 {
            Ok(())
        } else {
            Err(format!("{what}: {r}"))
        }
    };
    let mut taken = Vec::with_capacity(STOPS);
    // SAFETY: only this thread uses the handle, between create and destroy; the context outlives
    // the call.
    unsafe {
        check(
            "q2c_cleaner_create",
            ffi::q2c_cleaner_create(host, &mut cleaner, null_mut()),
        )?;
        for _ in 0..STOPS {
            check(
                "q2c_cleaner_start",
                ffi::q2c_cleaner_start(cleaner, context, SLEEP_NS),
            )?;
            // Give the cleaner time to fall asleep.
            std::thread::sleep(Duration::from_micros(100));
            let begun = Instant::now();
            check(
                "q2c_cleaner_del_and_wait",
                ffi::q2c_cleaner_del_and_wait(cleaner),
            )?;
            taken.push(begun.elapsed().as_nanos() as u64);
        }
        check(
            "q2c_cleaner_destroy",
            ffi::q2c_cleaner_destroy(&mut cleaner),
        )?;
    }
    taken.sort_unstable();
    Ok(taken)
}

fn stop_figures(report: &mut Report, host: &str, sorted: Vec<u64>) {
    let at = |share: f64| {
        let ns = sorted[((sorted.len() - 1) as f64 * share) as usize];
        Samples::exact(ns as f64 / 1000.0)
    };
    report.info(format!("lifecycle.stop.{host}.p50"), "us", &at(0.5));
    report.figure(
        format!("lifecycle.stop.{host}.p99"),
        "us",
        Target::AtMost(STOP_P99),
        at(0.99),
    );
    report.info(format!("lifecycle.stop.{host}.max"), "us", &at(1.0));
}

/// Has the C test program measure stops on the coroutine host, and adds what it prints.
fn coroutine_stops(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let Some(program) = &setting.coroutine_stop else {
        progress::clear();
        eprintln!(
            "lifecycle: no --coroutine-stop given; the figures lifecycle.stop.coroutines.* are \
             missing"
        );
        return Ok(());
    };
    progress::show("lifecycle: stops, coroutines");
    let text = programs::output(&mut Command::new(program))?;
    let shown = program.display().to_string();
    let value = |name: &str| programs::field(&shown, &text, name);
    for (name, field) in [("p50", "p50_ns"), ("p99", "p99_ns"), ("max", "max_ns")] {
        let samples = Samples::exact(value(field)? / 1000.0);
        report.info(format!("lifecycle.stop.coroutines.{name}"), "us", &samples);
    }
    report.figure(
        "lifecycle.stop.coroutines.switches",
        "switches",
        Target::AtMost(SWITCHES),
        Samples::exact(value("max_switches")?),
    );
    Ok(())
}

/// A thread that runs an event loop. It is joined when dropped.
struct IoThread {
    event_loop: *mut ffi::Loop,
    done: Arc<AtomicBool>,
    /// Dropped after the last kick; only then does the thread free the loop.
    last_kick: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl IoThread {
    fn new(clock_stands_still: bool) -> Self {
        struct Ptr(*mut ffi::Loop);
        // SAFETY: any thread may kick a loop and start cleaners in it.
        unsafe impl Send for Ptr {}
        let (send, receive) = mpsc::channel();
        let (last_kick, kicked) = mpsc::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let done = done.clone();
            move || {
                let mut event_loop = null_mut();
                // SAFETY: this is the loop's home thread. When `done` is set, nobody uses the loop
                // any more, except for the last kick, which `kicked` waits for.
                unsafe {
                    let r = ffi::q2c_loop_new(&mut event_loop, null_mut());
                    assert!(r == 0, "q2c_loop_new: {r}");
                    if clock_stands_still {
                        ffi::q2c_loop_clock_pause(event_loop);
                    }
                    send.send(Ptr(event_loop)).expect("the creator waits");
                    while !done.load(Ordering::Acquire) {
                        ffi::q2c_loop_poll(event_loop, -1);
                    }
                    let _ = kicked.recv();
                    let r = ffi::q2c_loop_free(&mut event_loop);
                    assert!(r == 0, "q2c_loop_free: {r}");
                }
            }
        });
        let Ptr(event_loop) = receive.recv().expect("the thread sends");
        Self {
            event_loop,
            done,
            last_kick: Some(last_kick),
            thread: Some(thread),
        }
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        // SAFETY: the thread frees the loop only once `last_kick` is dropped.
        unsafe { ffi::q2c_loop_kick(self.event_loop) };
        drop(self.last_kick.take());
        let joined = self.thread.take().expect("joined once").join();
        assert!(joined.is_ok(), "the I/O thread panicked");
    }
}

/// What many idle cleaners cost.
fn idle(report: &mut Report) -> Result<(), String> {
    progress::show("lifecycle: 1,000 idle cleaners");
    let threads_before = entries("/proc/self/task")?;
    let opener = Opener {
        clean_interval_ns: 1_000_000_000,
        ..Opener::on_threads(ours::null_storage())
    };
    let states: Vec<_> = (0..IDLE_STATES).map(|_| opener.open()).collect();
    let threads = entries("/proc/self/task")? - threads_before;
    std::thread::sleep(Duration::from_secs(1));
    let (begun, cpu) = (Instant::now(), process_cpu());
    std::thread::sleep(Duration::from_secs(10));
    let share = (process_cpu() - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
    drop(states);
    report.figure(
        "lifecycle.idle_1000.threads",
        "threads",
        Target::AtMost(1.0),
        Samples::exact(threads as f64),
    );
    report.figure(
        "lifecycle.idle_1000.cpu",
        "%",
        Target::AtMost(IDLE_COST),
        Samples::exact(share * 100.0),
    );
    Ok(())
}

/// Number of entries of a directory.
fn entries(directory: &str) -> Result<i64, String> {
    let list = std::fs::read_dir(directory).map_err(|e| format!("{directory}: {e}"))?;
    Ok(list.count() as i64)
}

/// Life cycles of a state with default options per second, and the writes and flushes of one in
/// which tables are only read.
fn open_close(report: &mut Report) {
    progress::show("lifecycle: open and close");
    let calls = ours::WriteCounter::default();
    // SAFETY: the counter outlives every state below.
    let mut opener = Opener::on_threads(unsafe { ours::counting_storage(&calls) });
    opener.l2_cache_size = 0;
    // Once with another state open, as in a program with several images, and once alone.
    for (name, other) in [("beside_another", Some(opener.open())), ("alone", None)] {
        let mut rates = Samples::default();
        for _ in 0..10 {
            let mut count = 0;
            let (taken, disturbed) = time(|| {
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_millis(200) {
                    drop(opener.open());
                    count += 1;
                }
            });
            rates.push(f64::from(count) / taken.as_secs_f64(), disturbed);
        }
        drop(other);
        report.figure(
            format!("lifecycle.open_close.{name}"),
            "/s",
            Target::AtLeast(OPENS),
            rates,
        );
    }
    let before = calls.get();
    let state = opener.open();
    for n in 1..100 {
        state.read_table(n * 4096);
    }
    drop(state);
    report.figure(
        "lifecycle.open_close.writes_and_flushes_of_a_reader",
        "",
        Target::AtMost(0.0),
        Samples::exact((calls.get() - before) as f64),
    );
}

/// Memory and file descriptors that are left after many life cycles.
fn leaks(report: &mut Report) -> Result<(), String> {
    let opener = Opener::on_threads(ours::null_storage());
    let cycle = |count: usize| {
        for i in 0..count {
            if i % 1000 == 0 {
                progress::show(&format!("lifecycle: {i} of {count} life cycles"));
            }
            drop(opener.open());
        }
    };
    let allocated = || {
        // SAFETY: only reads the allocator's counters.
        let info = unsafe { libc::mallinfo2() };
        (info.uordblks + info.hblkhd) as f64
    };
    cycle(1000);
    let (bytes, files) = (allocated(), entries("/proc/self/fd")?);
    cycle(CYCLES);
    report.figure(
        "lifecycle.leak_100000.memory",
        "B/cycle",
        Target::AtMost(0.1),
        Samples::exact((allocated() - bytes).max(0.0) / CYCLES as f64),
    );
    report.figure(
        "lifecycle.leak_100000.files",
        "files",
        Target::AtMost(0.0),
        Samples::exact((entries("/proc/self/fd")? - files) as f64),
    );
    Ok(())
}

/// Whether forked children can close the state that they inherited.
fn fork(report: &mut Report) -> Result<(), String> {
    let mut closed = 0;
    const TIMES: i32 = 20;
    for _ in 0..TIMES {
        let state = Opener::on_threads(ours::null_storage()).open();
        // SAFETY: the child only calls alarm, the library, which promises to work there, and _exit.
        let child = unsafe { libc::fork() };
        match child {
            -1 => return Err("fork failed".into()),
            0 => {
                // SAFETY: the library promises that this works in a child; the alarm ends a child
                // that hangs.
                unsafe {
                    libc::alarm(10);
                    let mut inherited = state.0;
                    let r = ffi::q2c_state_close(&mut inherited);
                    libc::_exit(i32::from(r != 0));
                }
            }
            _ => {}
        }
        let mut status = 0;
        // SAFETY: waits for the child just made; the status is local.
        unsafe { libc::waitpid(child, &mut status, 0) };
        closed += i32::from(status == 0);
    }
    report.figure(
        "lifecycle.fork.closed_by_children",
        "of 20",
        Target::AtLeast(f64::from(TIMES)),
        Samples::exact(f64::from(closed)),
    );
    Ok(())
}

/// Processes that keep the machine busy. They are ended when dropped.
struct Busy(Vec<Child>);

impl Busy {
    fn new(count: usize) -> Result<Self, String> {
        let one = || {
            Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn()
        };
        let all: Result<_, _> = (0..count).map(|_| one()).collect();
        Ok(Self(all.map_err(|e| format!("sh: {e}"))?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Option changes in a row, each of which stops and restarts the cleaner. They would hang if a stop
/// could be lost between the cleaner's check of its flag and its sleep.
fn changes(setting: &Setting, report: &mut Report) -> Result<(), String> {
    let wanted = setting.changes;
    let io = IoThread::new(true);
    let busy = Busy::new(3)?;
    let state = Opener {
        host: Some(ffi::Host::event_loop()),
        context: io.event_loop.cast(),
        ..Opener::on_threads(ours::null_storage())
    }
    .open();
    let done = Arc::new(AtomicU64::new(0));
    let changer = std::thread::spawn({
        let done = done.clone();
        move || {
            for i in 0..wanted {
                state.change_options((1 + i % 2) << 20);
                done.store(i + 1, Ordering::Relaxed);
            }
        }
    });
    let begun = Instant::now();
    let (mut seen, mut since) = (0, Instant::now());
    while !changer.is_finished() {
        std::thread::sleep(Duration::from_millis(200));
        let now = done.load(Ordering::Relaxed);
        progress::show(&format!("lifecycle: {now} of {wanted} option changes"));
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > HANGS_AFTER {
            break;
        }
    }
    let hangs = !changer.is_finished();
    let seconds = begun.elapsed().as_secs_f64();
    drop(busy);
    report.figure(
        "lifecycle.option_changes.without_a_hang",
        "changes",
        Target::AtLeast(wanted as f64),
        Samples::exact(done.load(Ordering::Relaxed) as f64),
    );
    report.info(
        "lifecycle.option_changes.rate",
        "/s",
        &Samples::exact(wanted as f64 / seconds),
    );
    if hangs {
        // A hung thread cannot be joined; it ends with the process.
        std::mem::forget(io);
        return Ok(());
    }
    changer.join().map_err(|_| "an option change failed")?;
    drop(io);
    Ok(())
}
