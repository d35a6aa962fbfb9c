// SPDX-License-Identifier: MIT OR Apache-2.0
//! A line on standard error that says what is being done. It is shown only on a terminal.

use std::io::{IsTerminal, Write, stderr};
use std::sync::OnceLock;
use std::time::Instant;

fn wanted() -> bool {
    static TERMINAL: OnceLock<bool> = OnceLock::new();
    *TERMINAL.get_or_init(|| stderr().is_terminal())
}

/// Shows `what`, after the seconds since the first call.
pub fn show(what: &str) {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let seconds = BEGUN.get_or_init(Instant::now).elapsed().as_secs();
    if wanted() {
        let _ = write!(stderr(), "\r\x1b[K[{seconds:>4} s] {what}");
    }
}

/// Removes the line. Call it before something else is printed.
pub fn clear() {
    if wanted() {
        let _ = write!(stderr(), "\r\x1b[K");
    }
}
