//! A row of the settings' table of registries.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::{Item, Source, consul, dns, etcd, eureka, file, kubernetes, nacos, zookeeper};

/// Labels of a row, at most.
const MOST_LABELS: usize = 16;

/// Labels that all instances of a registry get.
pub(super) type Labels = BTreeMap<String, String>;

/// Gives an instance the labels of its registry. They go before its own, so that nobody there is taken for one of elsewhere.
pub(super) fn mark(item: &mut Item, labels: &Labels) {
    if let Item::Instance(instance) = item
        && labels.iter().any(|(key, value)| instance.labels.get(key) != Some(value))
    {
        let more = labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        let instance = Arc::make_mut(instance);
        instance.labels.extend(more);
        instance.labels = std::mem::take(&mut instance.labels).shared();
    }
}

/// As Kubernetes has it: 63 letters, digits, `-`, `_` and `.`, the outer ones letters or digits; a key may have a domain before a `/`.
fn is_label(key: &str, value: &str) -> bool {
    let word = |text: &str| {
        let outer = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        let all = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        all && text.len() <= 63 && outer(text.bytes().next()) && outer(text.bytes().next_back())
    };
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    domain.is_none_or(crate::instance::is_subdomain) && word(name) && (value.is_empty() || word(value))
}

/// A registry of the settings: its name, and one field that says what it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Row {
    /// How `status`, metrics and errors call it. Default: what it is, such as `file`.
    pub name: Option<String>,
    /// Labels that all its instances get, for subsets: `{from: consul}`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Files on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<file::FileSettings>,
    /// A Consul.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consul: Option<consul::ConsulSettings>,
    /// Names of DNS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<dns::DnsSettings>,
    /// An etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etcd: Option<etcd::EtcdSettings>,
    /// A ZooKeeper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zookeeper: Option<zookeeper::ZooKeeperSettings>,
    /// A Eureka.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eureka: Option<eureka::EurekaSettings>,
    /// A Nacos.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nacos: Option<nacos::NacosSettings>,
    /// A cluster of Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<kubernetes::KubernetesSettings>,
}

impl Row {
    /// What it is called.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_else(|| self.kind())
    }

    /// What it is, each time that a field says so.
    fn kinds(&self) -> impl Iterator<Item = &'static str> {
        [
            self.file.as_ref().map(|_| "file"),
            self.consul.as_ref().map(|_| "consul"),
            self.dns.as_ref().map(|_| "dns"),
            self.etcd.as_ref().map(|_| "etcd"),
            self.zookeeper.as_ref().map(|_| "zookeeper"),
            self.eureka.as_ref().map(|_| "eureka"),
            self.nacos.as_ref().map(|_| "nacos"),
            self.kubernetes.as_ref().map(|_| "kubernetes"),
        ]
        .into_iter()
        .flatten()
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kinds().next().unwrap_or("file")
    }

    fn check(&self) -> Result<(), String> {
        if self.labels.len() > MOST_LABELS {
            return Err(format!("labels: there are {}, the most are {MOST_LABELS}", self.labels.len()));
        }
        if let Some((key, value)) = self.labels.iter().find(|(key, value)| !is_label(key, value)) {
            return Err(format!(
                "labels: \"{key}: {value}\" is no label; write 63 letters, digits, '-', '_' or '.' at most, \
                 with a letter or digit at both ends"
            ));
        }
        let all = [
            ("consul", self.consul.as_ref().map(consul::ConsulSettings::validate)),
            ("etcd", self.etcd.as_ref().map(etcd::EtcdSettings::validate)),
            ("dns", self.dns.as_ref().map(dns::DnsSettings::validate)),
            ("zookeeper", self.zookeeper.as_ref().map(zookeeper::ZooKeeperSettings::validate)),
            ("eureka", self.eureka.as_ref().map(eureka::EurekaSettings::validate)),
            ("nacos", self.nacos.as_ref().map(nacos::NacosSettings::validate)),
        ];
        let wrong = all.into_iter().find_map(|(of, is)| Some((of, is?.err()?)));
        wrong.map_or(Ok(()), |(of, why)| Err(format!("{of}.{why}")))
    }

    /// What cannot work in these rows.
    ///
    /// # Errors
    /// Names the row.
    pub fn validate(rows: &[Self]) -> anyhow::Result<()> {
        for (i, row) in rows.iter().enumerate() {
            let name = row.name();
            if row.kinds().count() != 1 {
                bail!(
                    "registries[{i}]: says not of one registry what it is; write file, consul, dns, etcd, zookeeper, eureka, nacos or kubernetes"
                );
            }
            if let Err(error) = row.check() {
                bail!("registries[{i}].{error}");
            }
            let fits = (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if !fits || name == Source::API {
                bail!(
                    "registries[{i}].name: \"{name}\" must have 1 to 63 letters, digits, '-', '_' or '.', and not be \"{}\"",
                    Source::API
                );
            }
            // Pods are called NAME.NAMESPACE in the mesh, Services by their host: two clusters have both alike.
            if row.kubernetes.is_some()
                && let Some(other) = rows[..i].iter().find(|other| other.kubernetes.is_some())
            {
                bail!(
                    "registries[{i}].kubernetes: there is a cluster already, \"{}\", and two have Pods and Services of the same names: \
                     run a control plane in each",
                    other.name()
                );
            }
            if rows[..i].iter().any(|other| other.name() == name) {
                bail!("registries[{i}].name: \"{name}\" occurs twice; give one of them another name");
            }
        }
        Ok(())
    }
}
