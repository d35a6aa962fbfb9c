// SPDX-License-Identifier: MIT OR Apache-2.0
//! What happened in the execution that failed, as a table.

use std::cell::RefCell;
use std::fmt::Write;

thread_local! {
    // Both checkers run all of a model's threads in one thread of the operating system: the order
    // here is the real one.
    static EVENTS: RefCell<Vec<(&'static str, String)>> = RefCell::default();
}

thread_local! {
    static FAILURE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// A new execution.
pub fn begin() {
    EVENTS.with_borrow_mut(Vec::clear);
    FAILURE.take();
}

/// Fails the model, also where the library catches the panic.
pub fn fail(what: impl Into<String>) -> ! {
    let what = what.into();
    FAILURE.with_borrow_mut(|failure| _ = failure.get_or_insert_with(|| what.clone()));
    panic!("{what}");
}

/// Nothing has failed in a place where the panic was caught.
pub fn check() {
    let failure = FAILURE.with_borrow(Clone::clone);
    assert_eq!(failure, None);
}

/// `who` did `what`.
pub fn event(who: &'static str, what: impl Into<String>) {
    EVENTS.with_borrow_mut(|events| events.push((who, what.into())));
}

/// The execution's events, a column for each who.
pub fn take() -> String {
    let events = EVENTS.take();
    let mut actors: Vec<&str> = Vec::new();
    for (who, _) in &events {
        if !actors.contains(who) {
            actors.push(who);
        }
    }
    let mut table = format!("| | {} |\n", actors.join(" | "));
    for (number, (who, what)) in events.iter().enumerate() {
        let cells = actors
            .iter()
            .map(|a| if a == who { what.as_str() } else { "" });
        let cells: Vec<&str> = cells.collect();
        let _ = writeln!(table, "| {} | {} |", number + 1, cells.join(" | "));
    }
    table
}
