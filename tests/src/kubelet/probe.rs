//! Probes of containers, with their periods and thresholds.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{self as core, Container};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::netns::Host;

/// What is asked of a container.
pub(super) struct Probe {
    host: Host,
    address: SocketAddr,
    /// Of HTTP; without one a connection is enough.
    path: Option<String>,
    period: Duration,
    patience: Duration,
    failures: u32,
}

/// A probe and what it has found.
pub(super) struct Checked {
    probe: Probe,
    next: Instant,
    passes: bool,
    failed: u32,
}

impl Probe {
    pub(super) fn of(probe: &core::Probe, container: &Container, host: &Host) -> Self {
        let named = |name: &str| {
            let ports = container.ports.iter().flatten();
            ports.into_iter().find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
        };
        let port = |port: &IntOrString| match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => named(name).unwrap_or_default(),
        };
        let http = probe.http_get.as_ref().map(|http| (port(&http.port), http.path.clone()));
        let tcp = probe.tcp_socket.as_ref().map(|tcp| (port(&tcp.port), None));
        let (number, path) = http.or(tcp).expect("probes of HTTP and TCP are known here");
        let seconds = |seconds: Option<i32>, default| {
            Duration::from_secs(seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(default))
        };
        Self {
            host: host.clone(),
            address: SocketAddr::new(host.v4(), u16::try_from(number).expect("a port")),
            path: path.or_else(|| probe.http_get.is_some().then(|| "/".to_owned())),
            period: seconds(probe.period_seconds, 10),
            patience: seconds(probe.timeout_seconds, 1),
            failures: probe.failure_threshold.and_then(|times| u32::try_from(times).ok()).unwrap_or(3),
        }
    }

    async fn ask(&self) -> bool {
        let (address, path) = (self.address, self.path.clone());
        let asked = self.host.run(async move {
            match path {
                Some(path) => status(address, &path).await.is_ok_and(|status| (200..400).contains(&status)),
                None => TcpStream::connect(address).await.is_ok(),
            }
        });
        timeout(self.patience, asked).await.unwrap_or(false)
    }
}

/// Of the answer's first line; who answers need not close.
async fn status(address: SocketAddr, path: &str) -> std::io::Result<u16> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| std::io::Error::other(line))
}

impl Checked {
    pub(super) fn new(probe: Probe) -> Self {
        Self { probe, next: Instant::now(), passes: false, failed: 0 }
    }

    /// Asks when it is time to, and answers what holds.
    pub(super) async fn passes(&mut self) -> bool {
        if Instant::now() < self.next {
            return self.passes;
        }
        if self.probe.ask().await {
            (self.passes, self.failed) = (true, 0);
        } else {
            self.failed += 1;
            self.passes &= self.failed < self.probe.failures;
        }
        // What does not pass yet is asked more often than a kubelet would: tests wait for it.
        let pause = if self.passes { self.probe.period } else { Duration::from_millis(100) };
        self.next = Instant::now() + pause;
        self.passes
    }
}
