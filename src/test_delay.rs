// SPDX-License-Identifier: MIT OR Apache-2.0
//! Named delay points, for tests of races. With the feature `test-delay`, and with
//! `QCOW2CACHE_TEST_DELAY=name:microseconds` in the environment, a thread sleeps where it passes
//! the point `name`. Without the feature a point does nothing.
//!
//! | name | where |
//! |---|---|
//! | `clean-chosen` | a cleaning pass has chosen a table and not dropped it yet |

/// Sleeps here if a test asked for it.
#[cfg(feature = "test-delay")]
pub(crate) fn point(name: &str) {
    use once_cell::sync::Lazy;
    static ASKED: Lazy<Option<(String, std::time::Duration)>> = Lazy::new(|| {
        let asked = std::env::var("QCOW2CACHE_TEST_DELAY").ok()?;
        let (name, microseconds) = asked.split_once(':')?;
        let delay = std::time::Duration::from_micros(microseconds.parse().ok()?);
        Some((name.to_owned(), delay))
    });
    if let Some((asked, delay)) = &*ASKED {
        if asked == name {
            std::thread::sleep(*delay);
        }
    }
}

/// Sleeps here if a test asked for it.
#[cfg(not(feature = "test-delay"))]
#[inline]
pub(crate) fn point(_name: &str) {}
