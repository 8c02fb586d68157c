#![forbid(unsafe_code)]
//! Registries, the world, per-node compilation, store, CA service, management API.
