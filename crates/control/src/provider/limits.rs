//! A rate limit service of Envoy's protocol as a provider: `envoyRateLimitGrpc`, a kind of ours, which Istio's settings lack.

use std::time::Duration;

use anyhow::ensure;
use outrigger_model::global_limit::{GlobalLimit, GlobalLimits};
use serde::{Deserialize, Serialize};

use super::{Status, duration, is_service};

/// Envoy's, when nothing is said.
const TIMEOUT: Duration = Duration::from_millis(20);
/// Clients wait as long.
const LONGEST: Duration = Duration::from_secs(60);
/// Of a domain: bytes.
const MOST_DOMAIN: usize = 256;
const STATUS: u16 = 500;

/// Whom to ask how many requests pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RateLimitService {
    /// `HOST` or `NAMESPACE/HOST`, of a service of the mesh or of a ServiceEntry.
    pub service: String,
    /// Of the service.
    pub port: u16,
    /// Which of its limits are meant. Default: the provider's name.
    pub domain: Option<String>,
    /// For an answer. Default 20 ms, as Envoy's.
    pub timeout: Option<String>,
    /// Requests pass when nobody answers. Default true, as Envoy's.
    pub fail_open: Option<bool>,
    /// What requests get when nobody answers, with `failOpen: false`. Default 500.
    pub status_on_error: Option<Status>,
}

impl RateLimitService {
    /// The filter that asks it, at that cluster.
    ///
    /// # Errors
    /// The field that says nothing that can be done.
    pub(super) fn filter(
        &self,
        name: &str,
        cluster: &str,
        limits: Vec<GlobalLimit>,
    ) -> anyhow::Result<GlobalLimits> {
        is_service(&self.service, self.port)?;
        let timeout = self.timeout.as_deref().map_or(Ok(TIMEOUT), duration)?;
        ensure!(timeout <= LONGEST, "timeout: is longer than a minute");
        let domain = self.domain.clone().unwrap_or_else(|| name.to_owned());
        ensure!((1..=MOST_DOMAIN).contains(&domain.len()), "domain: must have 1 to {MOST_DOMAIN} bytes");
        let status = self.status_on_error.as_ref().map_or(Ok(STATUS), Status::code)?;
        let fail_open = self.fail_open.unwrap_or(true);
        let unused = fail_open && self.status_on_error.is_some();
        ensure!(
            !unused,
            "statusOnError: requests pass when nobody answers; write failOpen: false, or leave it out"
        );
        Ok(GlobalLimits {
            cluster: cluster.to_owned(),
            // A gRPC library refuses an authority with a bar; this is Istio's.
            authority: cluster.replace('|', "_."),
            domain,
            timeout,
            status_on_error: (!fail_open).then_some(status),
            limits,
        })
    }
}
