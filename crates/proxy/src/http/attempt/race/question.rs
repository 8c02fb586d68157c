//! What a rival asks: the request once more, with a body of its own.

use std::sync::Arc;

use tokio::time::{Duration, Instant, timeout};

use crate::failure::{Failure, FailureKind, Stage};
use crate::http::attempt::lease::Leases;
use crate::http::attempt::live::{Live, Outgoing};
use crate::http::attempt::plan::Failed;
use crate::http::body::Body;
use crate::http::duration;
use crate::http::h1::Framing;
use crate::http::head::RequestHead;
use crate::http::upgrade::Upgrade;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::EndpointState;
use crate::upstream::pool::Pools;

/// What a rival asks.
pub(super) struct Question {
    pub(super) head: RequestHead,
    pub(super) framing: Framing,
    pub(super) body: Body,
    /// The head says who we are.
    pub(super) introduced: bool,
}

impl Question {
    /// As [`Question::ask`], within this time and the one that the cluster gives an attempt.
    pub(super) async fn ask_within(
        self,
        limit: Option<Duration>,
        pools: &Pools,
        cluster: &Arc<ClusterHandle>,
        endpoint: &Arc<EndpointState>,
        is_grpc: bool,
    ) -> Result<Live, Failed> {
        let longest = cluster.config.max_stream_duration;
        let asked = self.ask(pools, cluster, endpoint, is_grpc);
        let Some(first) = limit.into_iter().chain(longest).min() else { return asked.await };
        timeout(first, asked).await.unwrap_or_else(|_| {
            let (kind, detail) = match longest == Some(first) {
                // Its body is whole.
                true => (FailureKind::UpstreamDuration(504), duration::OF_ATTEMPT),
                false => (FailureKind::PerTryTimeout, "the time of one attempt"),
            };
            Err(Failure::local(Stage::Forward, kind, detail).into())
        })
    }

    /// Asks an endpoint, once more on a fresh connection where a pooled one was dead; up to the head of its response.
    pub(super) async fn ask(
        mut self,
        pools: &Pools,
        cluster: &Arc<ClusterHandle>,
        endpoint: &Arc<EndpointState>,
        is_grpc: bool,
    ) -> Result<Live, Failed> {
        let mut fresh = false;
        loop {
            let leases = Leases { pools, cluster, endpoint, fresh, now: Instant::now() };
            let leased = leases.any(leases.want(&self.head), false).await?;
            let mut out = Outgoing {
                head: &mut self.head,
                framing: self.framing,
                upgrade: Upgrade::None,
                empty: self.body.is_end(),
                introduced: &mut self.introduced,
                metrics: &pools.way().metrics,
                now: Instant::now(),
            };
            let mut live = Live::send(&mut out, cluster, endpoint, leased)?;
            live.upload.count_messages(is_grpc);
            live.cells.attempt();
            match live.until_head(&mut self.body, &pools.way().credentials).await {
                // What it has not taken by now comes from the client's own body, if it is the one that is taken.
                Ok(()) => return Ok(live),
                Err(_) if !fresh && live.is_stale() => {
                    fresh = true;
                    self.body.rewind();
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}
