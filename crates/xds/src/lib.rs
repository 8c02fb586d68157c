#![forbid(unsafe_code)]
//! xDS v3: conversion between wire and model, ADS client and server.
//!
//! Owns the only place where protobuf becomes model and back (`wire` is private, so breaking that is a compile error),
//! and the two ends of the Aggregated Discovery Service. Knows nothing of proxies, registries or rules.

pub mod convert;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod kind;
pub mod node;

#[cfg(any(feature = "client", feature = "server"))]
mod nack;
mod wire;

#[cfg(feature = "client")]
pub mod authz;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "client")]
pub mod limits;
#[cfg(feature = "client")]
pub mod orca;
#[cfg(feature = "server")]
pub mod server;

pub use convert::{Encoded, decode, encode};
pub use kind::{ClientKind, kind_of, type_url};
pub use node::NodeInfo;
