#![forbid(unsafe_code)]
//! Logs, metric registry, trace export, admin server, readiness, drain.
