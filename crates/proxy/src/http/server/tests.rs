//! The HTTP data path over loopback sockets: raw bytes in, raw bytes out.

mod access;
mod attacks;
mod authz;
mod concurrency;
mod durations;
mod edits;
mod h1;
mod h2;
mod heads;
mod hedges;
mod limits;
mod measures;
mod mirrors;
mod pooling;
mod retries;
mod rig;
mod sessions;
mod telemetry;
mod world;
