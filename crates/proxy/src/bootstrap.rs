//! The bootstrap: who the workload is, how to join, what to bind. YAML or JSON, in a file or in an environment variable.
//!
//! Everything else comes from the control plane. Reading it is the only thing that may stop the process at start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::time::duration;
use crate::app_health;
use crate::app_metrics;
use crate::intercept;

pub mod dns;
pub mod join;
mod place;
pub mod register;
mod size;
pub(crate) mod time;

pub use place::Locality;

/// Holds the whole text, where no file is named.
pub const VARIABLE: &str = "OUTRIGGER_BOOTSTRAP";

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bootstrap {
    /// Who the workload is.
    pub node: Node,
    /// The join file, or what stands in its place.
    #[serde(default)]
    pub join: Option<join::Join>,
    /// Holds key, certificate, bundle and the last good snapshot.
    pub state_dir: PathBuf,
    /// Worker threads. Default: the CPU quota, at least one.
    #[serde(default)]
    pub workers: Option<usize>,
    /// The admin server. Default 127.0.0.1:15000.
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// Names by which browsers may ask for the admin pages, beside IP addresses and localhost. Default none.
    #[serde(default)]
    pub admin_names: Vec<String>,
    /// Metrics for scrapers, `/metrics` and `/stats/prometheus`. Default off.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// Health for probes, `/healthz/ready`. Default off.
    #[serde(default)]
    pub health: Option<SocketAddr>,
    /// Health of the application, `/app-health/NAME` on the health port, for those who cannot ask it themselves.
    #[serde(default)]
    pub probes: BTreeMap<String, app_health::Entry>,
    /// Metrics of the application, put onto the page of `metrics` for those who cannot ask for them themselves.
    #[serde(default)]
    pub app_metrics: Option<app_metrics::Section>,
    /// What is registered of the workload, and the checks that decide its state. Absent: others register it.
    #[serde(default)]
    pub register: Option<register::Section>,
    /// How connections reach the proxy.
    #[serde(default)]
    pub mode: Mode,
    /// Modes redirect and tproxy: the ports that the rules of interception name.
    #[serde(default)]
    pub interception: Interception,
    /// What is accepted for the workload, beside what interception brings.
    #[serde(default)]
    pub inbound: Vec<InboundBind>,
    /// What the workload calls, beside what interception brings.
    #[serde(default)]
    pub outbound: Vec<OutboundBind>,
    /// What happens with destinations that are not in the mesh.
    #[serde(default)]
    pub outbound_policy: OutboundPolicy,
    /// The workload's own service among the clusters of another control plane, for zone-aware balancing. Default none.
    #[serde(default)]
    pub local_cluster: Option<String>,
    /// The workload's resolver. Default off.
    #[serde(default)]
    pub dns: Option<dns::Section>,
    /// Trace export.
    #[serde(default)]
    pub tracing: Tracing,
    /// The access log.
    #[serde(default)]
    pub access_log: AccessLog,
    /// Which requests that have ended are kept for the admin page `/requests`.
    #[serde(default)]
    pub recent_requests: RecentRequests,
    /// The proxy's own log.
    #[serde(default)]
    pub log: Log,
    /// End when standard input reaches its end.
    #[serde(default)]
    pub parent_pipe: bool,
    /// After SIGTERM connections are accepted for this long. Default 5 s.
    #[serde(default = "default_grace", deserialize_with = "duration")]
    pub grace: Duration,
    /// Longest drain after that. Default 30 s.
    #[serde(default = "default_drain", deserialize_with = "duration")]
    pub drain_timeout: Duration,
    /// What the process may use of memory, in bytes or as `512Mi`. Default: the cgroup's limit, else the host's memory.
    #[serde(default, deserialize_with = "size::optional")]
    pub memory_limit: Option<usize>,
    /// How long a connection waits for configuration that has not arrived yet. Default 10 s.
    #[serde(default = "default_pending", deserialize_with = "duration")]
    pub pending_timeout: Duration,
}

/// Who the workload is; what the control plane decides by is the registration, this is a hint.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The id of the registered instance.
    pub id: String,
    /// For metrics. Default: the id.
    #[serde(default)]
    pub workload: String,
    /// Its namespace. Default `default`.
    #[serde(default = "default_name")]
    pub namespace: String,
    /// The address by which it is known. Default: the first inbound one; with interception none is needed.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Its service account. Default `default`.
    #[serde(default = "default_name")]
    pub service_account: String,
    /// Canonical service.
    #[serde(default)]
    pub app: String,
    /// Canonical revision.
    #[serde(default)]
    pub version: String,
    /// Cluster id. Default `default`.
    #[serde(default = "default_name")]
    pub cluster: String,
    /// Where it runs.
    #[serde(default)]
    pub locality: Locality,
}

/// How connections reach the proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By addresses bound for each destination; no privilege needed.
    #[default]
    Explicit,
    /// By address translation in the kernel: `outrigger-proxy intercept apply`.
    Redirect,
    /// The same, but inbound connections keep the client's address, also towards the application; needs CAP_NET_ADMIN.
    Tproxy,
}

/// What the rules of interception name; the defaults are those of `outrigger-proxy intercept apply`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interception {
    /// Takes connections to the workload, on all addresses. Default 15006.
    pub inbound_port: u16,
    /// Takes connections from the workload, on the loopback addresses. Default 15001.
    pub outbound_port: u16,
    /// Socket mark, of use only with `mode: tproxy`. Default 1337.
    pub mark: u32,
    /// Not ready while the rules are absent. Default true.
    pub required: bool,
}

impl Default for Interception {
    fn default() -> Self {
        Self { inbound_port: 15006, outbound_port: 15001, mark: intercept::MARK, required: true }
    }
}

/// An address that stands for the workload.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboundBind {
    /// The registered address and port; what peers connect to.
    pub bind: SocketAddr,
    /// Where the application listens.
    pub app: SocketAddr,
}

/// An address that stands for a destination.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutboundBind {
    /// What the application connects to.
    pub bind: SocketAddr,
    /// The destination, `host:port`.
    pub to: String,
}

/// What happens with destinations that are not in the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundPolicy {
    /// They are passed through, counted and logged.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// Trace export.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracing {
    /// OTLP/gRPC endpoints, `http://host:port`. Empty: nothing is recorded.
    #[serde(default)]
    pub otlp: Vec<String>,
    /// Percentage of root spans. Absent: what the listener says.
    #[serde(default)]
    pub sampling: Option<f64>,
    /// Export interval in milliseconds. Default 1000.
    #[serde(default = "default_flush")]
    pub flush_ms: u64,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { otlp: Vec::new(), sampling: None, flush_ms: default_flush() }
    }
}

/// Which requests that have ended are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecentRequests {
    /// Those that failed.
    #[default]
    Failed,
    /// All.
    All,
}

/// The access log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// `-` is standard output, `off` none, anything else a file. Default `off`.
    #[serde(default = "default_access_log")]
    pub path: String,
    /// How a line looks.
    #[serde(default)]
    pub format: Format,
}

impl Default for AccessLog {
    fn default() -> Self {
        Self { path: default_access_log(), format: Format::Text }
    }
}

/// The proxy's own log.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// A filter such as `info,outrigger_proxy=debug`. Default `info`.
    #[serde(default = "default_level")]
    pub level: String,
    /// How a line looks.
    #[serde(default)]
    pub format: Format,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: default_level(), format: Format::Text }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// Why a bootstrap file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// Neither file nor text.
    #[error("there is no bootstrap: name a file with --bootstrap, or put the text into {VARIABLE}")]
    Absent,
    /// Not readable.
    #[error("{0}: {1}; give an existing file with --bootstrap")]
    Read(PathBuf, std::io::Error),
    /// Not YAML, or a field that cannot be taken.
    #[error("{0}: {1}")]
    Parse(PathBuf, String),
    /// Fields that do not fit together.
    #[error("{0}: {1}")]
    Invalid(PathBuf, String),
}

impl Bootstrap {
    /// Of a file, else of the text in [`VARIABLE`]; there one word is the path of a file, too.
    ///
    /// # Errors
    /// As [`Bootstrap::read`], or when there is neither.
    pub fn find(file: Option<&Path>, variable: Option<&str>) -> Result<Self, BootstrapError> {
        match (file, variable.map(str::trim).filter(|text| !text.is_empty())) {
            (Some(path), _) => Self::read(path),
            (None, Some(text)) if text.contains([':', '\n']) => Self::parse(Path::new(VARIABLE), text),
            (None, Some(path)) => Self::read(Path::new(path)),
            (None, None) => Err(BootstrapError::Absent),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// Says which file, which field and what would be right.
    pub fn read(path: &Path) -> Result<Self, BootstrapError> {
        let text = std::fs::read_to_string(path).map_err(|e| BootstrapError::Read(path.into(), e))?;
        Self::parse(path, &text)
    }

    /// Parses and checks a text; `path` is for errors.
    ///
    /// # Errors
    /// As [`Bootstrap::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, BootstrapError> {
        let mut bootstrap: Self =
            serde_saphyr::from_str(text).map_err(|e| BootstrapError::Parse(path.into(), e.to_string()))?;
        bootstrap.check().map_err(|reason| BootstrapError::Invalid(path.into(), reason))?;
        if bootstrap.node.workload.is_empty() {
            bootstrap.node.workload = bootstrap.node.id.clone();
        }
        Ok(bootstrap)
    }

    /// Where the sidecar listens.
    fn own_ports(&self) -> Vec<u16> {
        let pages = [Some(self.admin), self.metrics, self.health].into_iter().flatten();
        let data = [self.interception.inbound_port, self.interception.outbound_port].into_iter();
        let data = data.filter(|_| self.mode != Mode::Explicit);
        pages.map(|page| page.port()).chain(data).collect()
    }

    fn check(&self) -> Result<(), String> {
        let mut bound = BTreeSet::new();
        let binds = self.inbound.iter().map(|b| b.bind).chain(self.outbound.iter().map(|b| b.bind));
        for bind in binds.filter(|bind| bind.port() != 0) {
            if !bound.insert(bind) {
                return Err(format!(
                    "{bind} is bound twice; give each inbound and outbound entry its own address or port"
                ));
            }
        }
        for (i, outbound) in self.outbound.iter().enumerate() {
            let valid = outbound
                .to
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
            if !valid {
                return Err(format!("outbound[{i}].to: \"{}\" is not host:port", outbound.to));
            }
        }
        self.join.as_ref().map_or(Ok(()), join::Join::check)?;
        let ports = &self.interception;
        if self.mode != Mode::Explicit {
            intercept::check_ports(ports.inbound_port, ports.outbound_port)
                .map_err(|reason| format!("interception: {reason}"))?;
        }
        self.app_metrics.as_ref().map_or(Ok(()), |section| section.check(&self.own_ports()))?;
        if let Some(dns) = &self.dns {
            dns.check()?;
        }
        if let Some(register) = &self.register {
            register.check()?;
        }
        if self.workers == Some(0) {
            return Err("workers: must be at least 1; leave it out for the CPU quota".into());
        }
        if self.tracing.sampling.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            return Err("tracing.sampling: must be 0 to 100".into());
        }
        Ok(())
    }
}

fn default_admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15000))
}

fn default_name() -> String {
    "default".into()
}

fn default_grace() -> Duration {
    Duration::from_secs(5)
}

fn default_drain() -> Duration {
    Duration::from_secs(30)
}

fn default_pending() -> Duration {
    Duration::from_secs(10)
}

fn default_flush() -> u64 {
    1000
}

fn default_access_log() -> String {
    "off".into()
}

fn default_level() -> String {
    "info".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Bootstrap, BootstrapError> {
        Bootstrap::parse(Path::new("b.yaml"), text)
    }

    const SMALL: &str = "node: {id: web-1, namespace: shop}\nstate_dir: /tmp/x\n";

    #[test]
    fn a_small_file_gets_the_defaults() {
        let b = parse(SMALL).unwrap();
        assert_eq!(b.node.workload, "web-1");
        assert_eq!(b.admin.port(), 15000);
        assert_eq!((b.grace, b.drain_timeout), (Duration::from_secs(5), Duration::from_secs(30)));
        assert_eq!(b.outbound_policy, OutboundPolicy::AllowAny);
    }

    #[test]
    fn the_environment_has_the_text_or_a_path_where_no_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.yaml");
        std::fs::write(&path, SMALL).unwrap();
        let id = |file, variable: Option<&str>| Bootstrap::find(file, variable).map(|b| b.node.id);
        assert_eq!(id(Some(&path), Some("node: {id: other}\nstate_dir: /s")).unwrap(), "web-1");
        assert_eq!(id(None, Some("node: {id: other}\nstate_dir: /s")).unwrap(), "other");
        assert_eq!(id(None, path.to_str()).unwrap(), "web-1");
        let wrong = id(None, Some("node: {id: other}\nstate: /s")).unwrap_err().to_string();
        assert!(wrong.starts_with(VARIABLE) && wrong.contains("state"), "{wrong}");
        assert!(id(None, Some(" ")).unwrap_err().to_string().contains("--bootstrap"));
    }

    #[test]
    fn binds_and_durations_are_read() {
        let b = parse(&format!(
            "{SMALL}grace: 100ms\noutbound_policy: REGISTRY_ONLY\n\
             inbound: [{{bind: \"127.0.0.5:8080\", app: \"127.0.0.5:9080\"}}]\n\
             outbound: [{{bind: \"[::1]:0\", to: \"catalog.shop:8080\"}}]\n"
        ))
        .unwrap();
        assert_eq!(b.grace, Duration::from_millis(100));
        assert_eq!(b.inbound[0].app.port(), 9080);
        assert_eq!(b.outbound[0].to, "catalog.shop:8080");
        assert_eq!(b.outbound_policy, OutboundPolicy::RegistryOnly);
    }

    #[test]
    fn what_cannot_be_taken_is_named() {
        for (extra, word) in [
            ("colour: red\n", "colour"),
            ("workers: 0\n", "workers"),
            ("outbound: [{bind: \"127.0.0.1:1\", to: catalog}]\n", "outbound[0].to"),
            (
                "inbound: [{bind: \"127.0.0.1:1\", app: \"127.0.0.1:2\"}, {bind: \"127.0.0.1:1\", app: \"127.0.0.1:3\"}]\n",
                "twice",
            ),
            ("grace: soon\n", "soon"),
            ("memory_limit: plenty\n", "plenty"),
            ("tracing: {sampling: 101}\n", "tracing.sampling"),
            ("admin: here\n", "admin"),
            ("mode: iptables\n", "iptables"),
            ("mode: redirect\ninterception: {outbound_port: 15006}\n", "interception"),
        ] {
            let error = parse(&format!("{SMALL}{extra}")).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("b.yaml"), "{error}");
        }
    }
}
