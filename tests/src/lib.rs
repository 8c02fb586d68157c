#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
//! The harness: real processes of the real binary on addresses of their own, and ways to wait for conditions.

pub mod app;
pub mod fake_control;
pub mod http;
pub mod jaeger;
pub mod mesh;
pub mod names;
pub mod netns;
pub mod recorder;
pub mod require;
pub mod wait;
