//! Mirroring: `RouteAction.request_mirror_policies`.

use serde::{Deserialize, Serialize};

/// A cluster that gets copies of requests, whose answers nobody waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mirror {
    /// The name of a cluster.
    pub cluster: String,
    /// Of how many requests, 0–100. Default 100.
    pub percentage: f64,
    /// The copy's host is the request's, instead of having `-shadow` behind its name.
    pub keep_host: bool,
}

impl Default for Mirror {
    fn default() -> Self {
        Self { cluster: String::new(), percentage: 100.0, keep_host: false }
    }
}

impl Mirror {
    /// Copies of all requests.
    pub fn all(cluster: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), ..Self::default() }
    }
}
