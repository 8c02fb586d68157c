//! `service register`: a ServiceEntry from flags.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::bail;
use outrigger_control::api::types::ApplyQuery;
use serde_json::{Map, Value, json};

use crate::command::Server;
use crate::command::instance::register::pair;
use crate::command::rules::send;
use crate::print::yaml;

/// Describe a service.
#[derive(Debug, clap::Args)]
pub(super) struct Register {
    /// What the ServiceEntry is called
    name: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// How clients call it, such as pay.example.com or *.example.com; may be repeated
    #[arg(long = "host", required = true)]
    hosts: Vec<String>,
    /// NUMBER[:TARGET][/PROTOCOL]: http, http2, grpc, https, tls, tcp, or auto, which is found out per connection; may be repeated
    #[arg(long = "port", required = true, value_parser = port)]
    ports: Vec<Port>,
    /// IP address or block that stands for it; may be repeated
    #[arg(long = "address")]
    addresses: Vec<String>,
    /// Where it is served, a name or an IP address; may be repeated
    #[arg(long = "endpoint", conflicts_with = "select")]
    endpoints: Vec<String>,
    /// KEY=VALUE of the labels of the instances that serve it; may be repeated
    #[arg(long, value_parser = pair)]
    select: Vec<(String, String)>,
    /// How it is found [default: static where endpoints are IP addresses or are selected, none for hosts with a wildcard, else dns]
    #[arg(long, value_enum)]
    resolution: Option<Resolution>,
    /// It is a part of the mesh
    #[arg(long)]
    inside: bool,
    /// Who may know it: a namespace, . or *; may be repeated [default: everybody]
    #[arg(long)]
    export_to: Vec<String>,
    /// Only print the ServiceEntry
    #[arg(long, conflicts_with_all = ["wait", "dry_run"])]
    print: bool,
    /// Return when every affected proxy knows it
    #[arg(long)]
    wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
    /// Only check
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Resolution {
    /// The sidecar asks DNS, and calls all addresses.
    Dns,
    /// The same, one address for each connection.
    DnsRoundRobin,
    /// Endpoints are IP addresses, or instances that are selected.
    Static,
    /// Wherever the client was going.
    None,
}

impl Resolution {
    fn word(self) -> &'static str {
        match self {
            Self::Dns => "DNS",
            Self::DnsRoundRobin => "DNS_ROUND_ROBIN",
            Self::Static => "STATIC",
            Self::None => "NONE",
        }
    }
}

/// A port of the service, and where it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    number: u16,
    target: Option<u16>,
    protocol: &'static str,
}

const PROTOCOLS: [(&str, &str); 7] = [
    ("http", "HTTP"),
    ("http2", "HTTP2"),
    ("grpc", "GRPC"),
    ("https", "HTTPS"),
    ("tls", "TLS"),
    ("tcp", "TCP"),
    ("auto", "AUTO"),
];

/// `443/tls`, `80:8080/http`, `9000`.
fn port(text: &str) -> Result<Port, String> {
    let (numbers, word) = text.split_once('/').unwrap_or((text, "auto"));
    let (number, target) = numbers.split_once(':').map_or((numbers, None), |(number, to)| (number, Some(to)));
    let valid = |text: &str| text.parse::<u16>().ok().filter(|number| *number > 0);
    let wrong = || format!("\"{text}\" is no port such as 443/tls or 80:8080/http");
    let target = target.map(|target| valid(target).ok_or_else(wrong)).transpose()?;
    let known = PROTOCOLS.iter().find(|(name, _)| *name == word);
    let (_, protocol) = known.ok_or_else(|| {
        format!("\"{word}\" is no protocol; there are http, http2, grpc, https, tls, tcp and auto")
    })?;
    Ok(Port { number: valid(number).ok_or_else(wrong)?, target, protocol })
}

impl Register {
    pub(super) async fn run(self, server: Server) -> anyhow::Result<ExitCode> {
        let text = yaml::document(&self.entry()?);
        if self.print {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        let Self { wait, timeout, dry_run, namespace, .. } = self;
        let query = ApplyQuery {
            wait,
            timeout: Some(timeout),
            dry_run,
            namespace: Some(namespace),
            ..ApplyQuery::default()
        };
        send(&server, &text, query).await
    }

    fn resolution(&self) -> Resolution {
        let written =
            !self.endpoints.is_empty() && self.endpoints.iter().all(|at| at.parse::<IpAddr>().is_ok());
        match self.resolution {
            Some(resolution) => resolution,
            None if written || !self.select.is_empty() => Resolution::Static,
            None if self.endpoints.is_empty() && self.hosts.iter().any(|host| host.starts_with('*')) => {
                Resolution::None
            }
            None => Resolution::Dns,
        }
    }

    fn entry(&self) -> anyhow::Result<Value> {
        if self.resolution() == Resolution::Static && self.endpoints.is_empty() && self.select.is_empty() {
            bail!("--resolution static: say where it is served, by --endpoint or --select");
        }
        let port = |port: &Port| {
            let name = format!("{}-{}", port.protocol.to_ascii_lowercase(), port.number);
            let mut fields = json!({ "number": port.number, "name": name, "protocol": port.protocol });
            if let Some(target) = port.target {
                fields["targetPort"] = target.into();
            }
            fields
        };
        let mut spec = Map::new();
        spec.insert("hosts".into(), json!(self.hosts));
        spec.insert("location".into(), json!(if self.inside { "MESH_INTERNAL" } else { "MESH_EXTERNAL" }));
        spec.insert("ports".into(), self.ports.iter().map(port).collect());
        spec.insert("resolution".into(), json!(self.resolution().word()));
        let endpoints: Vec<Value> = self.endpoints.iter().map(|at| json!({ "address": at })).collect();
        let labels: Map<String, Value> =
            self.select.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let lists = [
            ("addresses", json!(self.addresses)),
            ("endpoints", json!(endpoints)),
            ("exportTo", json!(self.export_to)),
        ];
        let given =
            lists.into_iter().filter(|(_, list)| list.as_array().is_some_and(|list| !list.is_empty()));
        spec.extend(given.map(|(name, list)| (name.to_owned(), list)));
        if !labels.is_empty() {
            spec.insert("workloadSelector".into(), json!({ "labels": labels }));
        }
        Ok(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": { "name": self.name, "namespace": self.namespace }, "spec": spec,
        }))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use outrigger_rules::parse;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        register: Register,
    }

    fn register(line: &str) -> Register {
        Line::parse_from(std::iter::once("register").chain(line.split(' '))).register
    }

    #[test]
    fn what_is_described_is_a_service_entry_that_rules_take() {
        for (line, resolution) in [
            ("pay --host pay.example.com --port 443/tls", "DNS"),
            (
                "pay -n shop --host pay.example.com --port 80:8080/http --endpoint 10.0.0.7 --endpoint 10.0.0.8",
                "STATIC",
            ),
            (
                "pay --host pay.example.com --port 80/http --endpoint eu.example.com --resolution dns-round-robin",
                "DNS_ROUND_ROBIN",
            ),
            ("pay --host *.example.com --port 443/https --export-to .", "NONE"),
            ("db --host db.shop --port 5432/tcp --select app=db --inside --address 240.1.2.3", "STATIC"),
        ] {
            let entry = register(line).entry().unwrap();
            assert_eq!(entry["spec"]["resolution"], resolution, "{line}");
            let read = parse("flags", &yaml::document(&entry));
            assert!(read.findings.is_empty(), "{line}: {:?}", read.findings);
            assert_eq!(read.objects.len(), 1, "{line}");
        }
        let nowhere = register("pay --host pay.example.com --port 80 --resolution static").entry();
        assert!(nowhere.unwrap_err().to_string().contains("--endpoint"));
    }

    #[test]
    fn ports_have_a_target_and_a_protocol() {
        assert_eq!(port("80:8080/http"), Ok(Port { number: 80, target: Some(8080), protocol: "HTTP" }));
        assert_eq!(port("9000"), Ok(Port { number: 9000, target: None, protocol: "AUTO" }));
        for bad in ["0", "80:", "80:0/http", ":80", "80/ftp", "x"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
