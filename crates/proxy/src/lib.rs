#![forbid(unsafe_code)]
//! The sidecar: accept, detect, terminate, authorize, route, pick, connect, forward.
//!
//! N workers share nothing on the hot path but what must be exact; a control runtime beside them has xDS, certificates,
//! telemetry export and the admin pages. `app` starts both, `conn` is the table of contents of a connection's life.

pub mod access_log;
pub mod admin;
pub mod alarm;
pub mod app;
pub mod app_health;
pub mod app_metrics;
pub mod balance;
pub mod bootstrap;
pub mod checks;
pub mod config_feed;
pub mod conn;
pub mod descriptors;
pub mod detect;
pub mod disk;
pub mod dns;
pub mod downstream;
pub mod failure;
pub mod flags;
pub mod health;
pub mod http;
pub mod intercept;
pub mod intervals;
pub mod introduction;
pub mod l4;
pub mod listen;
pub mod loops;
pub mod memory;
pub mod metrics;
pub mod process;
pub mod proof;
pub mod protocol;
pub mod recent;
pub mod record;
pub mod registration;
pub mod resolve;
pub mod runtime;
pub mod stream;
#[cfg(test)]
mod testing;
pub mod upstream;
pub mod wait;
pub mod worker;
