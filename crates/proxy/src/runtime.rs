//! What serves traffic: `model` compiled, with handles to what lives longer than one configuration.
//!
//! A snapshot is immutable and shared by all workers; clusters, limits and endpoint state are shared atomics and survive
//! it. Pools, regex caches and metric shards belong to the workers.

pub mod breaker;
pub mod build;
pub mod cluster;
pub mod concurrency;
pub mod endpoint;
pub mod ewma;
pub mod latency;
pub mod limits;
pub mod measures;
pub mod outlier;
pub mod rate;
pub mod reports;
pub mod snapshot;
pub mod table;
pub mod turns;
pub mod usage;
pub mod verdict;
