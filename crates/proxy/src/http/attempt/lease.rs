//! A connection for an attempt, and what its endpoint is told afterwards.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use outrigger_model::cluster::UpstreamProtocol;
use outrigger_model::grpc::http_of_grpc;
use tokio::time::Instant;

use crate::failure::{Failure, FailureKind, Retry, Side, Stage};
use crate::http::head::{RequestHead, ResponseHead};
use crate::protocol::Protocol;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::{EndpointState, Outcome};
use crate::upstream::pool::{Leased, Pools};

/// Where a connection is wanted to.
pub struct Leases<'l> {
    pub pools: &'l Pools,
    pub cluster: &'l Arc<ClusterHandle>,
    pub endpoint: &'l Arc<EndpointState>,
    /// Not a pooled one of HTTP/1.
    pub fresh: bool,
    pub now: Instant,
}

impl Leases<'_> {
    /// The protocol to ask for.
    pub fn want(&self, head: &RequestHead) -> Protocol {
        match self.cluster.config.protocol {
            UpstreamProtocol::Http1 => Protocol::Http1,
            UpstreamProtocol::Http2 => Protocol::Http2,
            UpstreamProtocol::Follow if head.is_h2() => Protocol::Http2,
            UpstreamProtocol::Follow => Protocol::Http1,
        }
    }

    /// One that is there and free, without waiting: nearly always. `extended`: it must take extended CONNECT.
    #[inline]
    pub fn now(&self, head: &RequestHead, extended: bool) -> Option<Leased> {
        let want = (self.want(head), self.fresh);
        let mut leased = self.pools.lease_now(self.cluster, self.endpoint, want, self.now)?;
        if let Leased::H2(lease) = &mut leased {
            let ready = lease.sender.poll_ready(&mut Context::from_waker(Waker::noop()));
            if extended || !matches!(ready, Poll::Ready(Ok(()))) {
                return None;
            }
        }
        Some(leased)
    }

    /// One that is made if there is none.
    pub async fn any(&self, want: Protocol, extended: bool) -> Result<Leased, Failure> {
        let want = (want, self.fresh);
        let mut leased = self.pools.lease(self.cluster, self.endpoint, want, self.now).await?;
        if let Leased::H2(lease) = &mut leased {
            if extended && !lease.takes_extended_connect().await {
                let detail = "the upstream's HTTP/2 takes no extended CONNECT (RFC 8441)";
                let kind = FailureKind::UpstreamProtocol;
                return Err(Failure::upstream(Stage::Connect, kind, Retry::Never, detail));
            }
            if let Err(error) = poll_fn(|cx| lease.sender.poll_ready(cx)).await {
                lease.condemn();
                let kind = FailureKind::RefusedStream;
                return Err(Failure::upstream(Stage::Forward, kind, Retry::Safe, error.to_string()));
            }
        }
        Ok(leased)
    }
}

/// What a failure tells of an endpoint.
pub fn outcome_of(failure: &Failure) -> Outcome {
    match (failure.side, &failure.kind) {
        (Side::Upstream, FailureKind::ConnectRefused) => Outcome::Refused,
        (Side::Upstream, _) if failure.stage == Stage::Connect => Outcome::Unconnected,
        (Side::Upstream, _) => Outcome::GatewayError,
        // Time spent waiting for it is the endpoint's, wherever the clock was.
        (_, FailureKind::UpstreamTimeout) => Outcome::GatewayError,
        (_, kind) if kind.is_time_of_attempt() => Outcome::GatewayError,
        _ => Outcome::LocalFailure,
    }
}

/// The status, or what stands for the one of gRPC where the head of a call has it already, as Envoy reads them.
pub fn status_of(head: &ResponseHead, grpc: Option<u32>) -> u16 {
    grpc.map_or_else(|| head.status(), http_of_grpc)
}
