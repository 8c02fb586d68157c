//! Active health checks of a cluster's endpoints (`envoy.config.core.v3.HealthCheck`).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Methods that a check may have (`RequestMethod`).
pub const CHECK_METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];

/// Endpoints are asked whether they are well; those that are not get no requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// How they are asked.
    pub how: CheckHow,
    /// For one check, the connection included. Default 1 s.
    pub timeout: Duration,
    /// From the end of a check to the next. Default 10 s.
    pub interval: Duration,
    /// The first check of an endpoint comes up to so much later. Default none.
    pub initial_jitter: Duration,
    /// Each next one comes up to so much later. Default none.
    pub interval_jitter: Duration,
    /// And up to so much of the interval. Default 0.
    pub interval_jitter_percent: u32,
    /// So many failures in a row take an endpoint away. Default 3.
    pub unhealthy_threshold: u32,
    /// So many successes in a row bring it back; of a new one the first. Default 2.
    pub healthy_threshold: u32,
    /// In place of the interval while the cluster has had no requests for this time. Default 60 s.
    pub no_traffic_interval: Duration,
}

/// How an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckHow {
    /// By a request.
    Http(HttpCheck),
    /// By a connection, and bytes on it.
    Tcp(TcpCheck),
    /// By `grpc.health.v1.Health/Check`; SERVING is well, everything else is not, at once.
    Grpc(GrpcCheck),
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpCheck {
    /// `Host`; empty: the cluster's name.
    pub host: String,
    /// With its query.
    pub path: String,
    /// One of [`CHECK_METHODS`].
    pub method: String,
    /// Over HTTP/2.
    pub http2: bool,
    /// Statuses that are well, from and to; none: 200.
    pub expected: Vec<(u16, u16)>,
    /// Statuses that count towards the threshold; all others that are not expected are a failure at once.
    pub retriable: Vec<(u16, u16)>,
}

/// A connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpCheck {
    /// What is sent. Empty: nothing.
    pub send: Vec<u8>,
    /// What must come, in this order, whatever is between. None: that the connection stands is enough.
    pub receive: Vec<Vec<u8>>,
}

/// A call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrpcCheck {
    /// Which service of the server; empty: the whole server.
    pub service: String,
    /// `:authority`; empty: the cluster's name.
    pub authority: String,
}

impl HealthCheck {
    /// With all defaults.
    pub fn new(how: CheckHow) -> Self {
        Self {
            how,
            timeout: Duration::from_secs(1),
            interval: Duration::from_secs(10),
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            no_traffic_interval: Duration::from_secs(60),
        }
    }

    /// What is wrong with it, by the field: what the wire could bring and no rule would.
    ///
    /// # Errors
    /// The field and the reason.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        for (field, time) in [
            ("timeout", self.timeout),
            ("interval", self.interval),
            ("no_traffic_interval", self.no_traffic_interval),
        ] {
            if time.is_zero() {
                return Err((field, "must be longer than nothing"));
            }
        }
        for (field, threshold) in
            [("unhealthy_threshold", self.unhealthy_threshold), ("healthy_threshold", self.healthy_threshold)]
        {
            if threshold == 0 {
                return Err((field, "must be at least 1"));
            }
        }
        match &self.how {
            CheckHow::Http(http) if !http.path.starts_with('/') => {
                Err(("http_health_check.path", "must begin with a slash"))
            }
            CheckHow::Http(http) if !CHECK_METHODS.contains(&http.method.as_str()) => {
                Err(("http_health_check.method", "must be a method that Envoy knows, and not CONNECT"))
            }
            _ => Ok(()),
        }
    }
}

impl HttpCheck {
    /// A GET of a path.
    pub fn of(path: impl Into<String>) -> Self {
        let (host, method) = (String::new(), "GET".to_owned());
        Self { host, path: path.into(), method, http2: false, expected: Vec::new(), retriable: Vec::new() }
    }

    /// Whether a status is well.
    pub fn expects(&self, status: u16) -> bool {
        if self.expected.is_empty() { status == 200 } else { among(&self.expected, status) }
    }

    /// Whether a status that is not counts towards the threshold.
    pub fn retries(&self, status: u16) -> bool {
        among(&self.retriable, status)
    }
}

fn among(ranges: &[(u16, u16)], status: u16) -> bool {
    ranges.iter().any(|(from, to)| (*from..=*to).contains(&status))
}
