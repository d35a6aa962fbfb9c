// SPDX-License-Identifier: MIT OR Apache-2.0
//! Negative controls. The protocol that this library replaces is sampled with the same schedulers
//! as the library's own models, and with no more schedules. It must hang and must wake twice; its
//! repaired twin must do neither.
#![cfg(shuttle)]

mod model_checking;

use model_checking::negative_controls::{Registration, Take, stop_by_interval, timer_against_stop};
use model_checking::{assert_found, sample};

/// The smallest number of schedules that any of the library's own models gets.
const SCHEDULES: usize = 200;

#[test]
fn registering_after_unlock_loses_wake_up() {
    assert_found("deadlock", || {
        sample(SCHEDULES, || stop_by_interval(Registration::AfterUnlock));
    });
    sample(SCHEDULES, || stop_by_interval(Registration::UnderLock));
}

#[test]
fn unsynchronised_sleeper_field_wakes_twice() {
    assert_found("woken twice", || {
        sample(SCHEDULES, || timer_against_stop(Take::InTwoSteps));
    });
    sample(SCHEDULES, || timer_against_stop(Take::Atomically));
}
