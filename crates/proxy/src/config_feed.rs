//! The feed of configuration: what the control plane sends becomes snapshots.

pub mod state;
