#![forbid(unsafe_code)]
//! The sidecar: accept, detect, terminate, authorize, route, pick, connect, forward.
pub mod http;
