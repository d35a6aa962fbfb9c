// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the model tests share: how a model is run, how a failure is expected, and a host made of
//! model threads.
//!
//! Compiled under `--cfg loom` and `--cfg shuttle`; a test file uses what it needs of it.
#![allow(dead_code, unused_imports, unreachable_pub)]

#[cfg(loom)]
pub use loom::{sync, thread};
#[cfg(shuttle)]
pub use shuttle::{sync, thread};

pub mod host;
pub mod negative_controls;
pub mod storage;
pub mod timeline;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// A model that needs more is for a longer bound than a test run has time for.
#[cfg(loom)]
const MOST_EXECUTIONS: usize = 200_000;

/// Explores every interleaving with at most `preemptions` forced switches (`None`: every one there
/// is), and every value that C11 lets a load return. `LOOM_MAX_PREEMPTIONS` gives another bound.
#[cfg(loom)]
pub fn explore(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = preemptions;
    }
    let bound = builder.preemption_bound;
    builder.max_branches = 20_000;
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = runs.clone();
    builder.check(move || {
        let before = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        assert!(
            bound != preemptions || before < MOST_EXECUTIONS,
            "the model has outgrown its bound"
        );
        timeline::begin();
        model();
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    println!("{runs} executions, forced switches at most {bound:?}");
    assert!(runs > 1, "there was nothing to explore");
}

/// Runs `iterations` schedules of uniform choice and as many of PCT (few, well-placed switches) at
/// depth 3. The seeds are fixed, so that every run is the same; `MODEL_SEED` gives another one,
/// `MODEL_FACTOR` multiplies the schedules.
#[cfg(shuttle)]
pub fn sample(iterations: usize, model: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let number = |name: &str, default: usize| {
        let given = std::env::var(name).ok();
        given.map_or(default, |text| {
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is no number"))
        })
    };
    let seed = number("MODEL_SEED", 1) as u64;
    let iterations = iterations * number("MODEL_FACTOR", 1);
    let mut config = shuttle::Config::new();
    config.silence_warnings = true;
    config.stack_size = 256 * 1024;
    // A model of a few thousand steps that takes so many waits for something that does not come.
    config.max_steps = shuttle::MaxSteps::FailAfter(200_000);
    let model = std::sync::Arc::new(move || {
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

/// Runs a checker and asserts that it finds a failure whose message has `text` in it; prints the
/// failing schedule.
pub fn assert_found(text: &str, check: impl FnOnce()) {
    let found = catch_unwind(AssertUnwindSafe(check));
    let schedule = timeline::take();
    let panic = found.expect_err("the checker went over a failure that is there");
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a text");
    assert!(
        message.contains(text),
        "found something else than '{text}': {message}"
    );
    println!(
        "found: {}\n{schedule}",
        message.lines().next().unwrap_or(text)
    );
}
