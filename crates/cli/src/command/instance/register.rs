//! `instance register`: from flags, or from a file in the form of registry files.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use outrigger_control::client::Client;
use outrigger_control::instance::{Instance, Port, Protocol};
use serde_json::Value;

use super::Wait;
use crate::command::rules::read;

/// Register.
#[derive(Debug, clap::Args)]
pub(super) struct Register {
    /// Unique in the mesh, and `node.id` of its sidecar
    #[arg(required_unless_present = "file")]
    id: Option<String>,
    /// A file of instances instead: `instances: [...]` as registries read it, or one instance; - is standard input
    #[arg(short, long, conflicts_with = "id")]
    file: Option<PathBuf>,
    /// The service
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    service: Option<String>,
    /// Namespace of the service and of the identity
    #[arg(short, long, default_value = "default", conflicts_with = "file")]
    namespace: String,
    /// The identity that it runs as [default: as the service is called]
    #[arg(long, conflicts_with = "file")]
    service_account: Option<String>,
    /// IP address that others connect to; may be repeated, the first is the main one
    #[arg(long = "address", required_unless_present = "file", conflicts_with = "file")]
    addresses: Vec<IpAddr>,
    /// Network that the addresses belong to, where there are several
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "file")]
    network: String,
    /// NUMBER or NUMBER/PROTOCOL: http, http2, grpc, tls, tcp, or auto, which is found out per connection; may be repeated
    #[arg(long = "port", value_parser = port, conflicts_with = "file")]
    ports: Vec<Port>,
    /// Version of the software, the label `version`
    #[arg(long, conflicts_with = "file")]
    version: Option<String>,
    /// KEY=VALUE; may be repeated
    #[arg(long = "label", value_parser = pair, conflicts_with = "file")]
    labels: Vec<(String, String)>,
    /// KEY=VALUE; may be repeated
    #[arg(long = "metadata", value_parser = pair, conflicts_with = "file")]
    metadata: Vec<(String, String)>,
    /// Share of traffic relative to its siblings
    #[arg(long, default_value_t = 100, conflicts_with = "file")]
    weight: u32,
    /// Zone
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "file")]
    zone: String,
    /// Region
    #[arg(long, default_value = "", hide_default_value = true, conflicts_with = "file")]
    region: String,
    /// Seconds that it lives without a heartbeat; its sidecar sends them, or `outrigger instance heartbeat` [default: until it is
    /// deregistered]
    #[arg(long, conflicts_with = "file")]
    ttl: Option<u32>,
    /// It has no sidecar: clients call it in plain text
    #[arg(long, conflicts_with = "file")]
    no_sidecar: bool,
    #[command(flatten)]
    wait: Wait,
}

impl Register {
    pub(super) async fn run(self, client: &Client) -> anyhow::Result<ExitCode> {
        let wait = self.wait;
        let instances = match &self.file {
            Some(file) => instances(&read(file)?)
                .with_context(|| format!("{}: nothing was registered", file.display()))?,
            None => vec![self.instance()?],
        };
        // All are looked at before any is registered.
        instances.iter().try_for_each(|instance| instance.validate()).map_err(anyhow::Error::msg)?;
        let mut last = 0;
        for instance in instances {
            last = client.register(&instance).await?.generation;
            println!("{} registered as {}/{}", instance.id, instance.namespace, instance.service);
        }
        wait.settle(client, last).await
    }

    fn instance(self) -> anyhow::Result<Instance> {
        let (Some(id), Some(service)) = (self.id, self.service) else {
            bail!("an id and --service are needed, or --file")
        };
        Ok(Instance {
            id,
            service_account: self.service_account.unwrap_or_else(|| service.clone()),
            service,
            namespace: self.namespace,
            addresses: self.addresses,
            network: self.network,
            ports: self.ports,
            labels: self.labels.into_iter().collect(),
            metadata: self.metadata.into_iter().collect(),
            tags: Vec::new(),
            version: self.version,
            weight: self.weight,
            zone: self.zone,
            region: self.region,
            state: Default::default(),
            sidecar: !self.no_sidecar,
            ttl_seconds: self.ttl,
            word: Default::default(),
            services: None,
        })
    }
}

/// `8080`, `8080/http`.
fn port(text: &str) -> Result<Port, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "auto"));
    let number = number.parse().ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| format!("\"{text}\" is no port such as 8080 or 8080/http"))?;
    let protocol = serde_json::from_value::<Protocol>(Value::from(protocol)).map_err(|_| {
        format!("\"{protocol}\" is no protocol; there are http, http2, grpc, tls, tcp and auto")
    })?;
    Ok(Port { number, name: String::new(), protocol, aliases: Vec::new(), upgrades: Vec::new() })
}

/// `KEY=VALUE`.
pub(in crate::command) fn pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = pair.ok_or_else(|| format!("\"{text}\" is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// One instance, a list of them, or the list under `instances`; each also as `get` and `list` print it.
fn instances(text: &str) -> anyhow::Result<Vec<Instance>> {
    let value: Value = serde_saphyr::from_str(text)?;
    let (value, listed) = match value {
        Value::Object(mut fields) if fields.len() == 1 && fields.contains_key("instances") => {
            (fields.remove("instances").unwrap_or_default(), true)
        }
        value => (value, false),
    };
    let all = match value {
        Value::Array(all) => all,
        Value::Object(_) if !listed => vec![value],
        _ => bail!("neither an instance nor a list of instances"),
    };
    let one = |(i, value): (usize, Value)| {
        let printed = value.get("instance").filter(|instance| instance.is_object()).cloned();
        serde_json::from_value(printed.unwrap_or(value)).with_context(|| format!("instance {}", i + 1))
    };
    all.into_iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_pairs_are_read_and_what_is_none_is_named() {
        let http = port("8080/http").unwrap();
        assert_eq!((http.number, http.protocol), (8080, Protocol::Http));
        assert_eq!(port("9000").unwrap().protocol, Protocol::Auto);
        for bad in ["0", "x", "70000", "80/ftp"] {
            assert!(port(bad).unwrap_err().contains(bad.rsplit('/').next().unwrap()), "{bad}");
        }
        assert_eq!(pair("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(pair("=b").is_err() && pair("ab").is_err());
    }

    #[test]
    fn a_file_has_one_instance_or_several_also_as_they_were_printed() {
        let one = "id: c1\nservice: catalog\naddresses: [10.0.0.7]\nports: [{number: 80, protocol: http}]\n";
        let flow = "{id: c1, service: catalog, addresses: [10.0.0.7], ports: [{number: 80, protocol: http}]}";
        let all = [
            one.to_owned(),
            format!("instances: [{flow}]"),
            format!("[{flow}]"),
            format!("[{{instance: {flow}, registry: api}}]"),
        ];
        for text in &all {
            let read = instances(text).unwrap();
            assert_eq!((read.len(), &*read[0].id, read[0].ports[0].number), (1, "c1", 80), "{text}");
        }
        let wrong = format!("{:#}", instances("[{id: c1, colour: red}]").unwrap_err());
        assert!(wrong.contains("instance 1") && wrong.contains("colour"), "{wrong}");
        assert!(instances("instances: 7").is_err());
    }
}
