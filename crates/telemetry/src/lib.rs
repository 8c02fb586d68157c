//! Logs, metrics, trace export, the admin server, readiness and drain.
//!
//! This crate knows nothing about meshes and depends on no other crate of the workspace: proxy and control plane
//! bring the names, the labels and the rows of their admin table. Everything here runs on the control runtime, but
//! for the cells of [`metrics`] and for [`trace::SpanSender`], which are made for the hot path of a worker.

#![forbid(unsafe_code)]

pub mod admin;
pub mod descriptors;
pub mod drain;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod ready;
pub mod site;
pub mod trace;

pub use drain::Drain;
pub use logging::LogControl;
pub use metrics::Registry;
pub use ready::Readiness;
