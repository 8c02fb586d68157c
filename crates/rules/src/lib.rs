#![forbid(unsafe_code)]
//! What users write: dialects, positions, validation, the analyzer, mesh intents.
