//! The way to an endpoint: `connect` makes a connection, `pool` keeps those that can serve again.

pub mod connect;
pub mod outside;
pub mod pool;
pub mod way;
