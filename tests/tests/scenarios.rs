//! All scenarios, one binary: linking is what they cost most. Each module says what it holds.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a scenario fails by panicking")]

mod answered_here;
mod bodies;
mod bounds;
mod breakers;
mod certificates;
mod cli;
mod connection_routes;
mod consul;
mod control_flood;
mod copies;
mod crash;
mod cross_origin;
mod custom;
mod demo;
mod deploy;
mod differential;
mod dns;
mod dns_clusters;
mod documents;
mod etcd;
mod eureka;
mod exact;
mod explains;
mod ext_authz;
mod failures;
mod fake_control;
mod figures;
mod foreign;
mod foreign_rules;
mod gateway_api;
mod gateway_conformance;
mod hashing;
mod health_checks;
mod hedging;
mod interception;
mod jaeger;
mod kubernetes;
mod layering;
mod limiter;
mod limits;
mod localities;
mod messages;
mod moves;
mod nacos;
mod operators_view;
mod outage;
mod paths;
mod pushes;
mod registration;
mod registries;
mod registry_dns;
mod registry_tls;
mod revocation;
mod rotation;
mod rules;
mod services;
mod sidecars;
mod silent;
mod thin_thread;
mod tokens;
mod virtual_services;
mod zookeeper;

/// The command under test.
const BINARY: &str = env!("CARGO_BIN_EXE_outrigger-under-test");
