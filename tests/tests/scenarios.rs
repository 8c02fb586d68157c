//! All scenarios, one binary: linking is what they cost most. Each module says what it holds.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a scenario fails by panicking")]

mod layering;
