//! Limits of connections and requests, as a user writes them.

use outrigger_model::cluster::{Cluster, Limits, UpstreamProtocol};
use outrigger_rules::intent::{ConnectionPool, H2Upgrade};

pub(super) fn limits(cluster: &mut Cluster, pool: &ConnectionPool) {
    let limits: &mut Limits = &mut cluster.limits;
    limits.max_connections = pool.max_connections.unwrap_or(limits.max_connections);
    limits.max_pending = pool.max_pending_requests.unwrap_or(limits.max_pending);
    limits.max_requests = pool.max_requests.unwrap_or(limits.max_requests);
    if let Some(retries) = pool.max_retries {
        // A limit that the user wrote replaces the budget that we would have used.
        limits.max_retries = retries;
        limits.retry_budget = None;
    }
    cluster.keepalive = pool.keepalive;
    cluster.connect_timeout = pool.connect_timeout.unwrap_or(cluster.connect_timeout);
    cluster.idle_timeout = pool.http_idle_timeout.unwrap_or(cluster.idle_timeout);
    cluster.max_requests_per_connection = pool.max_requests_per_connection.unwrap_or(0);
    cluster.max_connection_duration = pool.max_connection_duration;
    cluster.max_streams_per_connection = pool.max_streams_per_connection.unwrap_or(0);
    if pool.h2_upgrade == Some(H2Upgrade::Always) {
        cluster.protocol = UpstreamProtocol::Http2;
    }
    if pool.use_client_protocol {
        cluster.protocol = UpstreamProtocol::Follow;
    }
}
