#![forbid(unsafe_code)]
//! What users write: dialects, positions, validation, the analyzer, mesh intents.
//!
//! [`parse`] turns a text into [`Object`]s with [`intent`]s and into [`Finding`]s; [`analyze`] looks at objects together with
//! the services that exist. Knows nothing of the wire, of proxies, or of how rules are stored.

pub mod host;
pub mod intent;
