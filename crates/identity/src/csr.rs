//! Certificate requests: what both ends of the CSR service share. `client` asks, `renewal` keeps asking in time,
//! `service` answers.

#[cfg(feature = "csr")]
pub mod client;
#[cfg(feature = "csr")]
pub mod renewal;
#[cfg(feature = "ca")]
pub mod service;

/// The generated types of `istio.v1.auth`.
pub mod proto {
    #![allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications, rustdoc::all)]
    tonic::include_proto!("istio.v1.auth");
}

/// Response metadata: the control plane's clock in milliseconds since 1970, to measure skew.
pub const TIME_METADATA: &str = "x-outrigger-time";
/// Response metadata: how many elements at the end of `cert_chain` are roots, the whole bundle of the trust domain.
/// A foreign CA does not send it; its last element is then one root among those already known.
pub const ROOTS_METADATA: &str = "x-outrigger-roots";
/// Longest certificate request that is looked at; a real one has less than 4 KiB.
pub const MAX_CSR_BYTES: usize = 64 << 10;
