//! What an operator sets: a YAML file, overridden by flags. Defaults are for one machine; nothing listens beyond loopback
//! but the TLS port for proxies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use outrigger_model::identity::{SpiffeId, is_trust_domain};
use outrigger_model::path::PathNormalization;
use serde::{Deserialize, Serialize};

use crate::inject::InjectSettings;
use crate::provider::{self, ExtensionProvider};
use crate::registry::Row;
use crate::registry::file::FileSettings;
use crate::registry::kubernetes::KubernetesSettings;
use crate::replicas::ReplicaSettings;
use crate::world::MeshSettings;

/// Everything about one control plane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Rules, registrations, tokens, keys. Made with mode 0700. Default `outrigger-data`.
    pub data_dir: PathBuf,
    /// xDS and certificate requests over TLS. Default `[::]:15012`, every address of either
    /// family.
    pub xds_address: SocketAddr,
    /// xDS without TLS: whoever reaches the port can read the configuration. For tests with clients that cannot do mTLS.
    /// Default: closed.
    pub plaintext_xds: Option<PlaintextXds>,
    /// The management socket, mode 0600. Default `<dataDir>/outrigger.sock`.
    pub socket: Option<PathBuf>,
    /// The management API over TLS as well, with an admin token or certificate. Default: closed.
    pub management_address: Option<SocketAddr>,
    /// Metrics, readiness and debug pages, without authentication. Default `127.0.0.1:15014`.
    pub metrics_address: SocketAddr,
    /// Names by which browsers may ask for pages and traces, beside IP addresses, localhost and `dnsNames`; one may begin
    /// with `*.`. Default none.
    pub page_names: Vec<String>,
    /// Where the built-in trace store receives OTLP over gRPC, without authentication. Default `127.0.0.1:15018`.
    pub otlp_address: Option<SocketAddr>,
    /// Where the built-in trace store answers Jaeger's query API, without authentication. Default `127.0.0.1:15019`.
    pub query_address: Option<SocketAddr>,
    /// Spans that the trace store keeps. Default 20,000.
    pub trace_spans: usize,
    /// Bytes of spans that the trace store keeps. Default 64 MiB.
    pub trace_bytes: usize,
    /// Registry files, directories of `.yaml`, `.yml` and `.json` files, or patterns with `*` in the file name: short for a
    /// first row of `registries` that is called `file`.
    pub registry_files: Vec<String>,
    /// Where instances and rules come from beside the management API, in the order in which they go before each other.
    pub registries: Vec<Row>,
    /// Trust domain of all identities. Default `cluster.local`.
    pub trust_domain: String,
    /// DNS domain of services. Default `cluster.local`.
    pub domain: String,
    /// Policies in this namespace hold for the whole mesh. Default `outrigger-system`.
    pub root_namespace: String,
    /// Percentage of root spans that are recorded. Default 1.
    pub sampling: f64,
    /// What is made equal in paths before routing and policy: `NONE`, `BASE`, `MERGE_SLASHES` or `DECODE_AND_MERGE_SLASHES`,
    /// as Istio's. Default `MERGE_SLASHES`.
    pub path_normalization: String,
    /// Whom policies of action CUSTOM may ask, as in Istio's mesh configuration. Default nobody.
    pub extension_providers: Vec<ExtensionProvider>,
    /// The webhook that puts sidecars into Pods. Default: none.
    pub injector: Option<InjectSettings>,
    /// DNS names by which proxies reach the control plane. Default `localhost`.
    pub dns_names: Vec<String>,
    /// IP addresses by which proxies reach the control plane. Besides them always 127.0.0.1, ::1, the address of `xdsAddress`,
    /// and where that is unspecified the host's own.
    pub ips: Vec<IpAddr>,
    /// The authority's directory; see the identity crate for provided roots. Default `<dataDir>/ca`.
    pub authority_dir: Option<PathBuf>,
    /// Seconds that a workload's certificate lives; sidecars renew it halfway. Default 86,400, a day: an outage of hours
    /// is survived.
    pub certificate_ttl_seconds: u64,
    /// This is one of several control planes of a cluster, which share its authority and who is revoked. Default: there is one.
    pub replicas: Option<ReplicaSettings>,
    /// What join files name as the control plane's address, `host:port`. Default: the address of `xdsAddress`; where that is
    /// unspecified the first of `dnsNames` but `localhost`, else the host's own address.
    pub advertise: Option<String>,
    /// End when standard input reaches its end: for children that must not outlive their parent. Default false.
    pub parent_pipe: bool,
    /// Log filter. Default `info`.
    pub log: Option<String>,
    /// `text` or `json`. Default `text`.
    pub log_format: Option<String>,
}

/// xDS without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlaintextXds {
    /// Where, such as `127.0.0.1:15010`.
    pub address: SocketAddr,
    /// The identity that every client on it has. Without one, the node's own metadata `NAMESPACE` and `SERVICE_ACCOUNT` are
    /// believed.
    #[serde(default)]
    pub identity: Option<SpiffeId>,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

impl Default for Settings {
    fn default() -> Self {
        let mesh = MeshSettings::default();
        Self {
            data_dir: "outrigger-data".into(),
            xds_address: SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 15012),
            plaintext_xds: None,
            socket: None,
            management_address: None,
            metrics_address: loopback(15014),
            page_names: Vec::new(),
            otlp_address: Some(loopback(15018)),
            query_address: Some(loopback(15019)),
            trace_spans: 20_000,
            trace_bytes: 64 << 20,
            registry_files: Vec::new(),
            registries: Vec::new(),
            trust_domain: mesh.trust_domain,
            domain: mesh.domain,
            root_namespace: mesh.root_namespace,
            sampling: mesh.sampling,
            path_normalization: "MERGE_SLASHES".into(),
            extension_providers: Vec::new(),
            injector: None,
            dns_names: vec!["localhost".into()],
            ips: Vec::new(),
            authority_dir: None,
            certificate_ttl_seconds: 86_400,
            replicas: None,
            advertise: None,
            parent_pipe: false,
            log: None,
            log_format: None,
        }
    }
}

impl Settings {
    /// Everything on loopback with port 0.
    #[cfg(test)]
    pub(crate) fn ephemeral(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            xds_address: loopback(0),
            management_address: Some(loopback(0)),
            metrics_address: loopback(0),
            otlp_address: Some(loopback(0)),
            query_address: Some(loopback(0)),
            sampling: 100.0,
            ..Self::default()
        }
    }

    /// Reads a YAML or JSON file.
    ///
    /// # Errors
    /// Names the file, and line and column of what is wrong in it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the configuration {} cannot be read", path.display()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        match serde_saphyr::from_str(&text) {
            Ok(settings) => Ok(settings),
            Err(error) => {
                let place = error.location().map(|at| format!(":{}:{}", at.line(), at.column()));
                bail!("{}{}: {}", path.display(), place.unwrap_or_default(), error.without_snippet())
            }
        }
    }

    /// What cannot work, found before anything is started.
    ///
    /// # Errors
    /// Names the setting.
    pub fn validate(&self) -> anyhow::Result<()> {
        if !is_trust_domain(&self.trust_domain) {
            bail!("trustDomain: \"{}\" may have only a-z, 0-9, '.', '-' and '_'", self.trust_domain);
        }
        if self.domain.trim_matches('.').is_empty() {
            bail!("domain: must not be empty; the usual one is cluster.local");
        }
        if !(0.0..=100.0).contains(&self.sampling) {
            bail!("sampling: {} is not a percentage from 0 to 100", self.sampling);
        }
        if PathNormalization::named(&self.path_normalization).is_none() {
            bail!(
                "pathNormalization: \"{}\" is none of {}",
                self.path_normalization,
                PathNormalization::NAMES.map(|(name, _)| name).join(", ")
            );
        }
        provider::validate(&self.extension_providers)?;
        if let Some(injector) = &self.injector {
            injector.validate().map_err(|error| anyhow!("injector.{error}"))?;
        }
        if self.trace_spans == 0 {
            bail!("traceSpans: must be at least 1; to switch the trace store off leave out otlpAddress");
        }
        if self.trace_bytes < 1 << 20 {
            bail!("traceBytes: {} is less than 1048576", self.trace_bytes);
        }
        if !(1..=30 * 86_400).contains(&self.certificate_ttl_seconds) {
            bail!("certificateTtlSeconds: {} is not from 1 to 2592000", self.certificate_ttl_seconds);
        }
        Row::validate(&self.rows())?;
        if self.replicas.is_some() && self.cluster().is_none() {
            bail!("replicas: share what a cluster has, so a row `kubernetes` is needed in registries");
        }
        let plain = self.plaintext_xds.as_ref().and_then(|plain| plain.identity.as_ref());
        if let Some(identity) = plain.filter(|identity| identity.trust_domain() != self.trust_domain) {
            bail!("plaintextXds.identity: {identity} is not of trust domain {}", self.trust_domain);
        }
        Ok(())
    }

    /// All registries, those of `registryFiles` among them.
    pub fn rows(&self) -> Vec<Row> {
        let paths = self.registry_files.clone();
        let short = (!paths.is_empty()).then(|| Row { file: Some(FileSettings { paths }), ..Row::default() });
        short.into_iter().chain(self.registries.iter().cloned()).collect()
    }

    /// The first cluster of Kubernetes among the registries.
    pub fn cluster(&self) -> Option<KubernetesSettings> {
        self.registries.iter().find_map(|row| row.kubernetes.clone())
    }

    /// The part that shapes compilation.
    pub fn mesh(&self) -> MeshSettings {
        MeshSettings {
            trust_domain: self.trust_domain.clone(),
            domain: self.domain.clone(),
            root_namespace: self.root_namespace.clone(),
            sampling: self.sampling,
            // `validate` has refused other names.
            path: PathNormalization::named(&self.path_normalization).unwrap_or_default(),
            providers: self.extension_providers.clone(),
        }
    }

    /// All names by which browsers may ask.
    pub fn names_of_pages(&self) -> Vec<String> {
        self.dns_names.iter().chain(&self.page_names).cloned().collect()
    }

    /// Where the management socket is.
    pub fn socket_path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.data_dir.join("outrigger.sock"))
    }

    /// Where the authority keeps its keys.
    pub fn authority_path(&self) -> PathBuf {
        self.authority_dir.clone().unwrap_or_else(|| self.data_dir.join("ca"))
    }

    /// The DNS names in the control plane's certificate: an API server asks the webhook by the name of its Service.
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names = self.dns_names.clone();
        let service = self.injector.as_ref().and_then(|injector| injector.control_plane.rsplit_once(':'));
        let service = service.map(|(host, _)| host.to_owned()).filter(|host| host.parse::<IpAddr>().is_err());
        names.extend(service.filter(|host| !host.starts_with('[') && !self.dns_names.contains(host)));
        names
    }

    /// The IP addresses in the control plane's certificate.
    pub fn certificate_ips(&self) -> Vec<IpAddr> {
        let mut ips = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let bound = [Some(self.xds_address), self.management_address]
            .into_iter()
            .flatten()
            .map(|address| address.ip());
        let bound = bound.filter_map(|ip| if ip.is_unspecified() { own_address() } else { Some(ip) });
        for ip in bound.chain(self.ips.iter().copied()) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        ips
    }

    /// What join files name, once the real xDS address is known.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        if let Some(advertise) = &self.advertise {
            return advertise.clone();
        }
        if !bound.ip().is_unspecified() {
            return bound.to_string();
        }
        let port = bound.port();
        if let Some(name) = self.dns_names.iter().find(|name| *name != "localhost") {
            return format!("{name}:{port}");
        }
        match self.ips.first().copied().or_else(own_address) {
            Some(ip) => SocketAddr::new(ip, port).to_string(),
            None => format!("localhost:{port}"),
        }
    }
}

/// The address by which this host reaches others, and they it. Nothing is sent: a datagram socket only asks the kernel for
/// its route, here to documentation addresses (RFC 5737, RFC 3849).
fn own_address() -> Option<IpAddr> {
    [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")].into_iter().find_map(|(from, to)| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
    })
}

/// Flags of `outrigger-control` and of `outrigger control-plane`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ControlArgs {
    /// Configuration file, YAML or JSON; flags override it
    #[arg(long, value_name = "FILE", env = "OUTRIGGER_CONTROL_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where rules, registrations and keys are kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// xDS and certificate requests over TLS (default `[::]:15012`)
    #[arg(long, value_name = "ADDRESS")]
    pub xds_address: Option<SocketAddr>,
    /// xDS without TLS; insecure, for tests
    #[arg(long, value_name = "ADDRESS")]
    pub plaintext_xds_address: Option<SocketAddr>,
    /// Management socket [default: outrigger.sock in the data directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Management API over TLS
    #[arg(long, value_name = "ADDRESS")]
    pub management_address: Option<SocketAddr>,
    /// Metrics, readiness and debug pages [default: 127.0.0.1:15014]
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_address: Option<SocketAddr>,
    /// OTLP receiver of the built-in trace store [default: 127.0.0.1:15018]
    #[arg(long, value_name = "ADDRESS")]
    pub otlp_address: Option<SocketAddr>,
    /// Jaeger query API of the built-in trace store [default: 127.0.0.1:15019]
    #[arg(long, value_name = "ADDRESS")]
    pub query_address: Option<SocketAddr>,
    /// Registry file, directory or pattern; may be repeated
    #[arg(long = "registry", value_name = "PATH")]
    pub registry_files: Vec<String>,
    /// Trust domain of all identities [default: cluster.local]
    #[arg(long)]
    pub trust_domain: Option<String>,
    /// DNS domain of services [default: cluster.local]
    #[arg(long)]
    pub domain: Option<String>,
    /// Percentage of root spans that are recorded [default: 1]
    #[arg(long, value_name = "PERCENT")]
    pub sampling: Option<f64>,
    /// DNS name in the control plane's certificate; may be repeated
    #[arg(long = "dns-name", value_name = "NAME")]
    pub dns_names: Vec<String>,
    /// IP address in the control plane's certificate; may be repeated
    #[arg(long = "ip", value_name = "IP")]
    pub ips: Vec<IpAddr>,
    /// The authority's directory; with root.pem, issuer.pem and issuer.key in it these are used
    #[arg(long, value_name = "DIR")]
    pub authority_dir: Option<PathBuf>,
    /// End when standard input ends
    #[arg(long)]
    pub parent_pipe: bool,
    /// Log filter, such as info,outrigger_control=debug
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl ControlArgs {
    /// The file's settings with the flags over them.
    ///
    /// # Errors
    /// When the file cannot be read or a setting cannot work.
    pub fn settings(self) -> anyhow::Result<Settings> {
        fn over<T>(slot: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *slot = value;
            }
        }
        let mut settings = self.config.as_deref().map(Settings::read).transpose()?.unwrap_or_default();
        over(&mut settings.data_dir, self.data_dir);
        over(&mut settings.xds_address, self.xds_address);
        over(&mut settings.metrics_address, self.metrics_address);
        over(&mut settings.trust_domain, self.trust_domain);
        over(&mut settings.domain, self.domain);
        over(&mut settings.sampling, self.sampling);
        settings.socket = self.socket.or(settings.socket);
        settings.management_address = self.management_address.or(settings.management_address);
        settings.otlp_address = self.otlp_address.or(settings.otlp_address);
        settings.query_address = self.query_address.or(settings.query_address);
        settings.authority_dir = self.authority_dir.or(settings.authority_dir);
        settings.log = self.log.or(settings.log);
        settings.log_format = self.log_format.or(settings.log_format);
        settings.parent_pipe |= self.parent_pipe;
        if let Some(address) = self.plaintext_xds_address {
            let identity = settings.plaintext_xds.take().and_then(|plain| plain.identity);
            settings.plaintext_xds = Some(PlaintextXds { address, identity });
        }
        settings.registry_files.extend(self.registry_files);
        settings.dns_names.extend(self.dns_names);
        settings.ips.extend(self.ips);
        settings.validate()?;
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.yaml");
        std::fs::write(&path, "dataDir: /var/lib/o\nsampling: 50\ntrustDomain: mesh.example\n").unwrap();
        let args = ControlArgs { config: Some(path), sampling: Some(25.0), ..ControlArgs::default() };
        let settings = args.settings().unwrap();
        assert_eq!(settings.data_dir, Path::new("/var/lib/o"));
        assert!((settings.sampling - 25.0).abs() < f64::EPSILON);
        assert_eq!(settings.trust_domain, "mesh.example");
        assert_eq!(settings.xds_address.port(), 15012);
    }

    #[test]
    fn join_files_name_an_address_that_others_reach() {
        let advertised = |edit: fn(&mut Settings)| {
            let mut settings = Settings::default();
            edit(&mut settings);
            (settings.advertised(settings.xds_address), settings.certificate_ips())
        };
        let (named, _) = advertised(|s| s.dns_names.push("control.example".into()));
        assert_eq!(named, "control.example:15012", "a flag's name goes before the default");
        let (named, ips) = advertised(|s| s.xds_address = "192.0.2.7:15012".parse().unwrap());
        assert_eq!(named, "192.0.2.7:15012");
        assert!(ips.contains(&"192.0.2.7".parse().unwrap()));
        let (named, ips) = advertised(|_| {});
        match own_address() {
            Some(own) => {
                assert_eq!(named, SocketAddr::new(own, 15012).to_string());
                assert!(!own.is_loopback() && ips.contains(&own), "and the certificate has it");
            }
            None => assert_eq!(named, "localhost:15012", "a host without a network"),
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_with_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.yaml");
        std::fs::write(&path, "sampling: 50\nxdsAdress: 127.0.0.1:1\n").unwrap();
        let error = Settings::read(&path).unwrap_err().to_string();
        assert!(error.contains("control.yaml:2") && error.contains("xdsAdress"), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        let broken = |change: fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.validate().unwrap_err().to_string()
        };
        assert!(broken(|s| s.sampling = 101.0).starts_with("sampling"));
        assert!(broken(|s| s.trust_domain = "A B".into()).starts_with("trustDomain"));
        assert!(broken(|s| s.domain = ".".into()).starts_with("domain"));
        assert!(broken(|s| s.path_normalization = "base".into()).starts_with("pathNormalization"));
        assert!(broken(|s| s.injector = Some(InjectSettings::default())).starts_with("injector.image"));
        let twice = broken(|s| {
            s.registry_files.push("a.yaml".into());
            s.registries.push(Row { file: Some(FileSettings::default()), ..Row::default() });
        });
        assert!(twice.starts_with("registries[1].name: \"file\" occurs twice"), "{twice}");
        let clusters = broken(|s| {
            let row = |name: &str| Row {
                name: Some(name.to_owned()),
                kubernetes: Some(KubernetesSettings::default()),
                ..Row::default()
            };
            s.registries.extend([row("east"), row("west")]);
        });
        let said = "registries[1].kubernetes: there is a cluster already, \"east\"";
        assert!(clusters.starts_with(said), "{clusters}");
        assert!(broken(|s| s.replicas = Some(ReplicaSettings::default())).starts_with("replicas: "));
        assert!(broken(|s| s.registries.push(Row::default())).starts_with("registries[0]: says not of one"));
        let api = Row { name: Some("api".into()), file: Some(FileSettings::default()), ..Row::default() };
        let named = Settings { registries: vec![api], ..Settings::default() };
        assert!(named.validate().unwrap_err().to_string().starts_with("registries[0].name: \"api\""));
    }
}
