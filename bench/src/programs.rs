// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs other programs and reads what they print.

use std::process::{Command, Stdio};

/// Runs a program to its end and returns its standard output. Fails unless its exit status is 0.
pub fn output(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("{shown}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{shown}: {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The number in the line `name: number` of what `program` printed.
pub fn field(program: &str, text: &str, name: &str) -> Result<f64, String> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
        .ok_or_else(|| format!("{program}: printed no line '{name}: number'"))
}
