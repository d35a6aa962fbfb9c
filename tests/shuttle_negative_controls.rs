// SPDX-License-Identifier: MIT OR Apache-2.0
//! Negative controls: the protocol that this library replaces, sampled with the same schedulers and
//! no more schedules than the library's own, must hang and must wake twice; its repaired twin must
//! not.
#![cfg(shuttle)]

mod model_checking;

use model_checking::negative_controls::{Registers, Takes, stop_by_interval, timer_against_stop};
use model_checking::{assert_found, sample};

/// As many as the fewest that any model of the library's gets.
const SCHEDULES: usize = 200;

#[test]
fn registering_after_unlock_loses_wake_up() {
    assert_found("deadlock", || {
        sample(SCHEDULES, || stop_by_interval(Registers::AfterTheLock));
    });
    sample(SCHEDULES, || stop_by_interval(Registers::UnderTheLock));
}

#[test]
fn unsynchronised_sleeper_field_wakes_twice() {
    assert_found("woken twice", || {
        sample(SCHEDULES, || timer_against_stop(Takes::InTwoSteps));
    });
    sample(SCHEDULES, || timer_against_stop(Takes::AtOnce));
}
