#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
//! The harness: real processes of the real binary on addresses of their own, and ways to wait for conditions.

pub mod app;
pub mod attack;
pub mod cluster;
pub mod fake_control;
pub mod frames;
pub mod http;
pub mod jaeger;
pub mod kubelet;
pub mod mesh;
pub mod names;
pub mod netns;
pub mod protos;
pub mod recorder;
pub mod require;
pub mod shelf;
pub mod wait;
pub mod way;

/// Lets any user read and enter a directory of ours: sidecars run as their own.
pub fn open_to_all(directory: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory, mode).expect("a directory of our own");
}
