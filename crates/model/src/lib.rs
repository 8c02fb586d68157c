#![forbid(unsafe_code)]
//! What a proxy must do, validated; and the pure decisions on it: route matching, authorization, and the explanation of either.
//!
//! Knows nothing of tokio, hyper, prost or tonic. `xds` turns wire messages into these types and back; the control plane
//! compiles rules into them; the proxy compiles them into its runtime. The types follow Envoy's v3 API closely, because
//! that is how they travel; each says which message it stands for.

mod claims;
pub mod cluster;
pub mod concurrency;
pub mod endpoint;
pub mod ext_authz;
mod filter;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod global_limit;
pub mod grpc;
pub mod identity;
mod invalid;
mod kind;
pub mod listener;
pub mod load_report;
pub mod local_limit;
pub mod matcher;
pub mod names;
mod origin;
pub mod path;
pub mod policy;
pub mod rate_limit;
mod references;
pub mod request;
pub mod resource;
pub mod route;
pub mod token;
mod words;
