//! Why something did not work, as one value: built where the knowledge is, turned into text only by the response and the
//! access log.
//!
//! Owns the table from kind to response flag, HTTP status and gRPC status; decides nothing about retries beyond what the
//! place of failure can prove.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use outrigger_model::grpc::grpc_of_http;
use outrigger_model::resource::Origin;
use outrigger_model::route::FaultStatus;

/// On whose side it happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The peer that connected to us.
    Downstream,
    /// The peer that we connected to.
    Upstream,
    /// We ourselves: configuration, limits, policy.
    Local,
}

/// In which stage of a connection's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    Accept,
    Detect,
    Terminate,
    Authorize,
    Route,
    Pick,
    Connect,
    Forward,
}

/// Whether the request can be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// No.
    Never,
    /// As long as no byte of it was given to the upstream.
    IfUnsent,
    /// Yes: the application provably never saw it.
    Safe,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FailureKind {
    /// No route takes the request.
    NoRoute,
    /// The listener has no filter chain for the connection.
    NoChain,
    /// The route names a cluster that is not there; with the status that it wants answered.
    NoCluster(u16),
    /// The configuration did not arrive in time.
    Pending,
    /// Not in the mesh, and the outbound policy is `REGISTRY_ONLY`.
    Blocked,
    /// The name could not be resolved.
    DnsFailed,
    /// The cluster has no endpoint at all.
    NoEndpoints,
    /// It has, but none is healthy.
    NoHealthyUpstream,
    /// It has healthy ones, but all are ejected.
    AllEjected,
    /// The endpoint of a strict session takes no requests any more; answered with this status.
    SessionLost(u16),
    /// TCP unreachable, reset while connecting.
    ConnectFailed,
    /// TCP refused: nobody listens there. Told as the one before.
    ConnectRefused,
    /// No answer to the connect in time.
    ConnectTimeout,
    /// The TLS handshake with the upstream failed: identity, trust, protocol.
    TlsFailed,
    /// The TLS handshake with the downstream failed, or its certificate is no longer trusted.
    DownstreamTls,
    /// A limit is reached.
    Overflow {
        /// Such as `max_requests`.
        limit: &'static str,
        /// Its value.
        value: u32,
    },
    /// Too much has failed of late: nothing is sent for a while.
    CircuitOpen,
    /// The route's timeout.
    UpstreamTimeout,
    /// The time of one attempt.
    PerTryTimeout,
    /// A stream has lasted as long as it may; answered with this status.
    StreamDuration(u16),
    /// An attempt has lasted as long as its cluster lets it; answered with this status.
    UpstreamDuration(u16),
    /// Reset by the upstream.
    UpstreamReset,
    /// The upstream closed the connection before its response was complete.
    UpstreamClosed,
    /// REFUSED_STREAM, GOAWAY below the stream, or the peer's own mark.
    RefusedStream,
    /// The upstream broke the protocol.
    UpstreamProtocol,
    /// The downstream broke the protocol; answered with this status.
    BadRequest(u16),
    /// The downstream broke a protocol that has no status to answer with.
    DownstreamProtocol,
    /// The downstream went away.
    DownstreamClosed,
    /// The first bytes or the request head did not come in time.
    RequestTimeout,
    /// An authorization policy denies it; named in the detail.
    Denied,
    /// The request asks for a tunnel that neither its route nor its port allows; named in the detail.
    UpgradeRefused,
    /// An injected abort.
    FaultAbort(FaultStatus),
    /// A rate limit has no room.
    RateLimited {
        /// So many requests pass in its time; 0: nobody says.
        limit: u32,
        /// Until one more does, rounded up; 0: nobody says.
        seconds: u32,
        /// A service says so.
        global: bool,
    },
    /// Another control plane's limit has no room.
    LocalLimited {
        /// What is answered.
        status: u16,
        /// To calls of gRPC: RESOURCE_EXHAUSTED.
        exhausted: bool,
    },
    /// As many requests are under way as latency allows.
    ConcurrencyLimit {
        /// So many.
        limit: u32,
        /// What is answered.
        status: u16,
    },
    /// The service that authorizes could not be asked; answered with this status.
    AuthzUnavailable(u16),
    /// The service that keeps a rate limit could not be asked; answered with this status.
    LimiterUnavailable(u16),
    /// Its tokens are not those that it needs; answered with this status.
    BadToken(u16),
    /// A client of the mesh must use mTLS (STRICT).
    PlainText,
    /// Nothing moved for too long; answered with this status.
    IdleTimeout(u16),
    /// Clients hold all memory that is handed out.
    Overload,
    /// We could not go on: sockets, memory, a broken invariant.
    Internal,
}

/// The one failure type of the data path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub side: Side,
    pub stage: Stage,
    pub kind: FailureKind,
    pub retry: Retry,
    /// What an operator needs beyond the kind: names, addresses, the system's words. May be empty.
    pub detail: Cow<'static, str>,
    /// The user object that caused it.
    pub origin: Option<Arc<Origin>>,
    /// There were attempts before.
    pub retried: bool,
    /// It would have been tried again, and what had been sent of its body is no longer there.
    pub unreplayable: bool,
}

impl Failure {
    /// A failure of our own making, not to be retried.
    pub fn local(stage: Stage, kind: FailureKind, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        let (retried, unreplayable) = (false, false);
        Self {
            side: Side::Local,
            stage,
            kind,
            retry: Retry::Never,
            detail,
            origin: None,
            retried,
            unreplayable,
        }
    }

    /// A failure of the peer that connected to us.
    pub fn downstream(stage: Stage, kind: FailureKind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { side: Side::Downstream, ..Self::local(stage, kind, detail) }
    }

    /// A failure of the peer that we connect to.
    pub fn upstream(
        stage: Stage,
        kind: FailureKind,
        retry: Retry,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { side: Side::Upstream, retry, ..Self::local(stage, kind, detail) }
    }

    /// The same, with the user object that caused it.
    #[must_use]
    pub fn because_of(mut self, origin: Option<Arc<Origin>>) -> Self {
        self.origin = origin;
        self
    }
}

impl FailureKind {
    /// Envoy's response flag; `-` where Envoy has none.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NoRoute | Self::NoChain | Self::Blocked => "NR",
            Self::NoCluster(_) | Self::Pending => "NC",
            Self::DnsFailed => "DF",
            Self::NoEndpoints | Self::NoHealthyUpstream | Self::AllEjected | Self::SessionLost(_) => "UH",
            Self::ConnectFailed | Self::ConnectRefused | Self::ConnectTimeout | Self::TlsFailed => "UF",
            Self::Overflow { .. } | Self::CircuitOpen | Self::ConcurrencyLimit { .. } => "UO",
            Self::UpstreamTimeout | Self::PerTryTimeout => "UT",
            Self::StreamDuration(_) => "DT",
            Self::UpstreamDuration(_) => "UMSDR",
            Self::UpstreamReset | Self::RefusedStream => "UR",
            Self::UpstreamClosed => "UC",
            Self::UpstreamProtocol => "UPE",
            Self::BadRequest(_) | Self::DownstreamProtocol | Self::DownstreamTls => "DPE",
            Self::DownstreamClosed => "DC",
            Self::FaultAbort(_) => "FI",
            Self::AuthzUnavailable(_) => "UAEX",
            Self::RateLimited { .. } | Self::LocalLimited { .. } => "RL",
            Self::LimiterUnavailable(_) => "RLSE",
            Self::IdleTimeout(_) => "SI",
            Self::Overload => "OM",
            Self::RequestTimeout
            | Self::Denied
            | Self::BadToken(_)
            | Self::UpgradeRefused
            | Self::PlainText
            | Self::Internal => "-",
        }
    }

    /// The HTTP status of the response that we make.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoRoute => 404,
            Self::Blocked => 502,
            Self::Denied | Self::PlainText | Self::UpgradeRefused => 403,
            Self::BadRequest(status)
            | Self::NoCluster(status)
            | Self::AuthzUnavailable(status)
            | Self::LimiterUnavailable(status)
            | Self::BadToken(status)
            | Self::StreamDuration(status)
            | Self::UpstreamDuration(status)
            | Self::SessionLost(status)
            | Self::ConcurrencyLimit { status, .. }
            | Self::LocalLimited { status, .. }
            | Self::IdleTimeout(status) => *status,
            Self::FaultAbort(status) => status.answered(false),
            Self::RateLimited { .. } => 429,
            Self::DownstreamProtocol => 400,
            Self::RequestTimeout => 408,
            Self::UpstreamTimeout | Self::PerTryTimeout => 504,
            Self::UpstreamProtocol => 502,
            Self::DownstreamClosed => 499,
            Self::Internal => 500,
            _ => 503,
        }
    }

    /// The gRPC status: the mapping of HTTP statuses in gRPC's documentation, as Envoy does.
    pub fn grpc_status(&self) -> u32 {
        if let Self::FaultAbort(FaultStatus::Grpc(status)) = self {
            return *status;
        }
        if let Self::RateLimited { .. } | Self::LocalLimited { exhausted: true, .. } = self {
            // RESOURCE_EXHAUSTED: clients take UNAVAILABLE for leave to try again at once.
            return 8;
        }
        if let Self::StreamDuration(_) = self {
            return 4;
        }
        grpc_of_http(self.status())
    }

    /// Whether it is the time of one attempt that has passed: others may have theirs.
    pub fn is_time_of_attempt(&self) -> bool {
        matches!(self, Self::PerTryTimeout | Self::UpstreamDuration(_))
    }

    /// The limit that is reached, and its value.
    pub fn limit(&self) -> Option<(&'static str, u32)> {
        match self {
            Self::Overflow { limit, value } => Some((limit, *value)),
            Self::ConcurrencyLimit { limit, .. } => Some(("adaptive_concurrency", *limit)),
            _ => None,
        }
    }

    /// The kind in one word, for `x-outrigger-error`, logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoRoute => "no_route",
            Self::NoChain => "no_filter_chain",
            Self::NoCluster(_) => "no_cluster",
            Self::Pending => "config_pending",
            Self::Blocked => "not_in_mesh",
            Self::DnsFailed => "dns_failed",
            Self::NoEndpoints => "no_endpoints",
            Self::NoHealthyUpstream => "no_healthy_upstream",
            Self::AllEjected => "all_ejected",
            Self::SessionLost(_) => "session_lost",
            Self::ConnectFailed | Self::ConnectRefused => "connect_failed",
            Self::ConnectTimeout => "connect_timeout",
            Self::TlsFailed | Self::DownstreamTls => "tls_failed",
            Self::Overflow { .. } => "overflow",
            Self::CircuitOpen => "circuit_open",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::PerTryTimeout => "per_try_timeout",
            Self::StreamDuration(_) => "stream_duration",
            Self::UpstreamDuration(_) => "upstream_stream_duration",
            Self::UpstreamReset => "upstream_reset",
            Self::UpstreamClosed => "upstream_closed",
            Self::RefusedStream => "refused_stream",
            Self::UpstreamProtocol => "upstream_protocol_error",
            Self::BadRequest(_) => "bad_request",
            Self::DownstreamProtocol => "protocol_error",
            Self::DownstreamClosed => "downstream_closed",
            Self::RequestTimeout => "request_timeout",
            Self::Denied => "denied",
            Self::UpgradeRefused => "upgrade_refused",
            Self::FaultAbort(_) => "fault_abort",
            Self::AuthzUnavailable(_) => "ext_authz_error",
            Self::BadToken(_) => "bad_token",
            Self::LimiterUnavailable(_) => "rate_limit_error",
            Self::RateLimited { .. } | Self::LocalLimited { .. } => "rate_limited",
            Self::ConcurrencyLimit { .. } => "concurrency_limit",
            Self::PlainText => "mtls_required",
            Self::IdleTimeout(_) => "idle_timeout",
            Self::Overload => "overload",
            Self::Internal => "internal",
        }
    }
}

impl Side {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Local => "local",
        }
    }
}

impl Stage {
    /// In one word: the verbs of the path.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Detect => "detect",
            Self::Terminate => "terminate",
            Self::Authorize => "authorize",
            Self::Route => "route",
            Self::Pick => "pick",
            Self::Connect => "connect",
            Self::Forward => "forward",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.side.name(), self.stage.name(), self.kind.name())?;
        if let Some((limit, value)) = self.kind.limit() {
            write!(f, " of {limit}={value}")?;
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        if let Some(origin) = &self.origin {
            write!(f, " ({origin})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_names_limit_value_scope_and_cause() {
        let origin =
            Origin { kind: "DestinationRule".into(), namespace: "shop".into(), name: "catalog".into() };
        let failure = Failure::local(
            Stage::Pick,
            FailureKind::Overflow { limit: "max_requests", value: 5 },
            "cluster outbound|8080||catalog",
        )
        .because_of(Some(Arc::new(origin)));
        assert_eq!(
            failure.to_string(),
            "local pick: overflow of max_requests=5: cluster outbound|8080||catalog (DestinationRule shop/catalog)"
        );
        assert_eq!((failure.kind.flag(), failure.kind.status(), failure.kind.grpc_status()), ("UO", 503, 14));
    }

    #[test]
    fn a_failure_stays_small() {
        assert!(size_of::<Failure>() <= 72, "{}", size_of::<Failure>());
    }
}
