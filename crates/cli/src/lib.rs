#![forbid(unsafe_code)]
//! The outrigger command.
