//! The admin server: a small HTTP/1 server over a table of endpoints.
//!
//! The table is the single source: dispatch, the index page, `/help` and the texts of 404 and 405 derive from it.
//! Rows that every process wants stand in [`rows`]; the others belong to those who know what they show. Nothing here
//! authenticates: whoever binds the server to more than loopback mounts only rows that may be seen.

mod crowd;
pub mod endpoint;
mod index;
pub mod rows;
pub mod server;
pub mod table;

pub use endpoint::{AdminRequest, AdminResponse, Row};
pub use server::{AdminError, AdminServer, Limits};
pub use table::Table;

#[cfg(test)]
mod tests;
