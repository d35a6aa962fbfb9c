// SPDX-License-Identifier: MIT OR Apache-2.0
//! The events of the failing execution, as a table.

use std::cell::RefCell;
use std::fmt::Write;

thread_local! {
    // Both checkers run all model threads in one thread of the operating system, so the order here
    // is the order of the execution.
    static EVENTS: RefCell<Vec<(&'static str, String)>> = RefCell::default();
}

thread_local! {
    static FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Starts a new execution.
pub fn begin() {
    EVENTS.with_borrow_mut(Vec::clear);
    FAILURE.take();
}

/// Fails the model, even if the library catches the panic.
pub fn fail(what: impl Into<String>) -> ! {
    let what = what.into();
    FAILURE.with_borrow_mut(|failure| _ = failure.get_or_insert_with(|| what.clone()));
    panic!("{what}");
}

/// Asserts that no failure was recorded whose panic was caught.
pub fn check() {
    let failure = FAILURE.with_borrow(Clone::clone);
    assert_eq!(failure, None);
}

/// Records that `actor` did `what`.
pub fn event(actor: &'static str, what: impl Into<String>) {
    EVENTS.with_borrow_mut(|events| events.push((actor, what.into())));
}

/// Takes the execution's events, as a table with a column for each actor.
pub fn take() -> String {
    let events = EVENTS.take();
    let mut actors: Vec<&str> = Vec::new();
    for (actor, _) in &events {
        if !actors.contains(actor) {
            actors.push(actor);
        }
    }
    let mut table = format!("| | {} |\n", actors.join(" | "));
    for (number, (actor, what)) in events.iter().enumerate() {
        let cells = actors
            .iter()
            .map(|a| if a == actor { what.as_str() } else { "" });
        let cells: Vec<&str> = cells.collect();
        let _ = writeln!(table, "| {} | {} |", number + 1, cells.join(" | "));
    }
    table
}
