#![forbid(unsafe_code)]
//! What users write: dialects, positions, validation, the analyzer, mesh intents.
//!
//! [`parse`] turns a text into [`Object`]s with [`intent`]s and into [`Finding`]s; [`analyze`] looks at objects together with
//! the services that exist. Knows nothing of the wire, of proxies, or of how rules are stored.

mod analyze;
pub mod catalog;
pub mod conditions;
mod definitions;
mod dialect;
pub mod finding;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod host;
pub mod intent;
mod object;
mod options;
mod pem;
mod reader;
mod schema;
pub mod suppress;
#[cfg(test)]
mod testing;
mod yaml;

pub use analyze::{CHECKS, Check, analyze};
pub use catalog::ServiceCatalog;
pub use definitions::definitions;
pub use dialect::{elsewhere, foreign, foreign_kinds, service};
pub use finding::{Finding, Severity};
pub use host::{Host, HostError, Resolver};
pub use object::{Object, Parsed, parse, parse_bytes, parse_with};
pub use options::ParseOptions;
pub use reader::duration;
