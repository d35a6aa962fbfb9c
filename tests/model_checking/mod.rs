// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests under loom and shuttle share: running a model, expecting a failure, and a host of
//! model threads.
//!
//! Compiled under `--cfg loom` and `--cfg shuttle`.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "each test binary uses only a part of this module"
)]

#[cfg(loom)]
pub use loom::{sync, thread};
#[cfg(shuttle)]
pub use shuttle::{sync, thread};

pub mod host;
pub mod negative_controls;
pub mod storage;
pub mod timeline;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The cleaner's interval in the models, in nanoseconds.
pub const INTERVAL: u64 = 600_000_000_000;

/// Starts a model thread that works on `model`.
pub fn spawn<M: Send + Sync + 'static>(
    model: &Arc<M>,
    body: impl FnOnce(&M) + Send + 'static,
) -> thread::JoinHandle<()> {
    let model = model.clone();
    thread::spawn(move || body(&model))
}

/// Waits for model threads; a panic in one of them fails the model.
pub fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// A model that needs more executions than this takes too long for a test run.
#[cfg(loom)]
const MAX_EXECUTIONS: usize = 200_000;

/// Explores every interleaving with at most `preemptions` forced switches (`None`: every
/// interleaving), and every value that C11 lets a load return. `LOOM_MAX_PREEMPTIONS` overrides the
/// bound.
#[cfg(loom)]
pub fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = preemptions;
    }
    let bound = builder.preemption_bound;
    builder.max_branches = 20_000;
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = runs.clone();
    builder.check(move || {
        let before = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(
            bound != preemptions || before < MAX_EXECUTIONS,
            "the model has too many executions for its bound"
        );
        timeline::begin();
        model();
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    println!("{runs} executions, forced switches at most {bound:?}");
    assert!(runs > 1, "there was nothing to explore");
}

/// Runs `iterations` random schedules and as many PCT schedules (few, well-placed switches) of
/// depth 3. The seeds are fixed, so that every run is the same. `MODEL_SEED` sets another seed;
/// `MODEL_FACTOR` multiplies the number of schedules.
#[cfg(shuttle)]
pub fn sample(iterations: usize, model: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let number = |name: &str, default: usize| {
        let given = std::env::var(name).ok();
        given.map_or(default, |text| {
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is not a number"))
        })
    };
    let seed = number("MODEL_SEED", 1) as u64;
    let iterations = iterations * number("MODEL_FACTOR", 1);
    let mut config = shuttle::Config::new();
    config.silence_warnings = true;
    config.stack_size = 256 * 1024;
    // A model has a few thousand steps. One that takes this many waits for an event that never
    // comes.
    config.max_steps = shuttle::MaxSteps::FailAfter(200_000);
    let model = Arc::new(move || {
        timeline::begin();
        model();
    });
    let uniform = RandomScheduler::new_from_seed(seed, iterations);
    shuttle::Runner::new(uniform, config.clone()).run({
        let model = model.clone();
        move || model()
    });
    let pct = PctScheduler::new_from_seed(seed, 3, iterations);
    shuttle::Runner::new(pct, config).run(move || model());
}

/// Runs a checker and asserts that it finds a failure whose message contains `text`. Prints the
/// failing schedule.
pub fn assert_found(text: &str, check: impl FnOnce()) {
    let found = catch_unwind(AssertUnwindSafe(check));
    let schedule = timeline::take();
    let panic = found.expect_err("the checker did not find the failure");
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    assert!(
        message.contains(text),
        "found another failure than '{text}': {message}"
    );
    println!(
        "found: {}\n{schedule}",
        message.lines().next().unwrap_or(text)
    );
}
