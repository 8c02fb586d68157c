//! The Gateway API, with services as parents (GAMMA): routes that are attached to ports of services.
//!
//! What is valid there and cannot be done here makes a condition false, is a warning, and is answered with an error: a filter
//! that is not there must not be skipped. What the API server would refuse is refused.

mod auth;
mod backend;
mod backend_tls;
mod connections;
mod filter;
mod flaw;
mod grant;
mod grpc;
mod headers;
mod http;
mod limits;
mod parent;
mod path;
mod reference;
mod route;
mod session;

pub(super) use backend_tls::{config_map, read as backend_tls_policy};
pub(super) use connections::{tcp as tcp_route, tls as tls_route};
pub(super) use grant::read as grant;
pub(super) use grpc::read as grpc_route;
pub(super) use http::read as http_route;
pub(super) use path::whole as whole_path;

#[cfg(test)]
mod tests;
