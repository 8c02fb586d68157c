#![forbid(unsafe_code)]
//! The harness.

pub mod require;
