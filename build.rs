// SPDX-License-Identifier: MIT OR Apache-2.0
//! Build script.
fn main() {}
