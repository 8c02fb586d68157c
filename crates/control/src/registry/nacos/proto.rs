//! What of Nacos' API is called, as `build.rs` made it from its own description; what messages say is JSON.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, unused_qualifications, rustdoc::all)]
tonic::include_proto!("_");
