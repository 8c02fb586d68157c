//! What the sidecars of workloads are told and take in: which services they know, what becomes of everything else, and where what comes
//! in goes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{ConnectionPool, Host, Origin, Place, RouteIntent, ServiceProtocol, Target};

/// What one object says of the sidecars of its workloads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SidecarIntent {
    /// The object that says so.
    pub origin: Origin,
    /// When it was made, if it says so: the older of two goes first.
    pub created: Option<String>,
    /// Labels of the workloads that it is for; empty: all of its namespace that no other selects.
    pub selector: BTreeMap<String, String>,
    /// Where the labels were written, for findings.
    pub place: Place,
    /// Which services they know; `None`: all.
    pub egress: Option<Vec<Egress>>,
    /// What becomes of connections to what nobody knows; `None`: what each sidecar's own setting says.
    pub unknown: Option<Unknown>,
    /// What comes in. Empty: the registered ports.
    pub ingress: Vec<Ingress>,
    /// Limits of what comes in, where a port has none of its own.
    pub inbound_pool: Option<ConnectionPool>,
}

/// Services that are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// Only with this port; what others say of all ports is then not said of this one.
    pub port: Option<u16>,
    /// What was said to be spoken there.
    pub protocol: Option<ServiceProtocol>,
    /// In order.
    pub hosts: Vec<Import>,
    /// Where it was written.
    pub place: Place,
}

/// Some services of some namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// They are not known, whoever else names them.
    pub exclude: bool,
    /// Only what this says where it is.
    pub namespace: Whose,
    /// What the name may mean: a host, a wildcard, or `*`.
    pub hosts: Vec<Host>,
    /// It is one label: a service of whichever namespace is meant.
    pub is_short: bool,
    /// Where it was written.
    pub place: Place,
}

/// Of which namespace services are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Whose {
    /// That of the workload for which the Sidecar holds: of the root namespace's one it is another for each (Istio's
    /// `SidecarScope.Namespace`).
    Own,
    /// This one.
    Named(String),
    /// Any.
    Any,
}

/// What becomes of connections to what nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unknown {
    /// They go on, unless the sidecar's own setting forbids it.
    Allowed,
    /// They are refused.
    Refused,
    /// They go there, as bytes.
    Through(Target),
}

/// A port for what comes in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ingress {
    /// Its number.
    pub port: u16,
    /// What is spoken there.
    pub protocol: ServiceProtocol,
    /// Only at this address.
    pub bind: Option<IpAddr>,
    /// Where the application listens; `None`: at the very address and port.
    pub app: Option<AppAddress>,
    /// Limits of its own.
    pub pool: Option<ConnectionPool>,
    /// Where it was written.
    pub place: Place,
}

/// Where an application listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppAddress {
    /// On loopback.
    Loopback(SocketAddr),
    /// At the very address that was called, and this port.
    Instance(u16),
}

impl SidecarIntent {
    /// Of two for the same workloads the one with the lesser age goes first.
    pub fn age(&self) -> (bool, Option<&str>, &str) {
        (self.created.is_none(), self.created.as_deref(), &self.origin.name)
    }

    /// Whether a workload of the namespace `own` knows a service at a port; `namespace` is of who says where it is.
    pub fn imports(&self, own: &str, namespace: &str, host: &Host, port: u16) -> bool {
        let Some(egress) = &self.egress else { return true };
        // The listener with the most specific port is the one of a port.
        let named = egress.iter().any(|one| one.port == Some(port));
        let of = egress.iter().filter(|one| if named { one.port == Some(port) } else { one.port.is_none() });
        let all = of.flat_map(|one| &one.hosts).filter(|import| import.covers(own, namespace, host));
        is_in(all)
    }

    /// Whether it says anything of the namespace of the workload for which it holds, so that another means something else.
    pub fn is_relative(&self) -> bool {
        let mut all = self.egress.iter().flatten().flat_map(|one| &one.hosts);
        all.any(|import| import.namespace == Whose::Own)
    }

    /// Whether a rule for hosts holds for a workload of the namespace `own`: those of namespaces of which nothing is known do not.
    pub fn imports_rule(&self, own: &str, rule: &RouteIntent) -> bool {
        let Some(egress) = &self.egress else { return true };
        let namespace = rule.origin.namespace.as_str();
        let names = |import: &Import, host: &Host| {
            // A rule for a wildcard is one for every host that is below it.
            let meets = |known: &Host| host.is_wildcard() && host.covers(known.as_str());
            import.covers(own, namespace, host)
                || (!import.exclude
                    && import.is_of(own, namespace)
                    && import.hosts_for(own).iter().any(meets))
        };
        let all = || egress.iter().flat_map(|one| &one.hosts);
        rule.hosts.iter().any(|host| is_in(all().filter(|import| names(import, host))))
    }

    /// Whether it refuses or redirects what is not known.
    pub fn bars(&self) -> bool {
        self.unknown.as_ref().is_some_and(|unknown| *unknown != Unknown::Allowed)
    }

    /// Whether it says anything of what comes in.
    pub fn admits(&self) -> bool {
        !self.ingress.is_empty() || self.inbound_pool.is_some()
    }

    /// What it says of a port for what comes in.
    pub fn ingress_at(&self, port: u16) -> Option<&Ingress> {
        self.ingress.iter().find(|one| one.port == port)
    }

    /// Limits of what comes in to a port.
    pub fn pool_at(&self, port: u16) -> Option<&ConnectionPool> {
        self.ingress_at(port).and_then(|one| one.pool.as_ref()).or(self.inbound_pool.as_ref())
    }
}

/// Named by one of them, and excluded by none.
fn is_in<'i>(mut named: impl Iterator<Item = &'i Import>) -> bool {
    let mut found = false;
    let excluded = named.any(|import| {
        found |= !import.exclude;
        import.exclude
    });
    found && !excluded
}

impl Import {
    fn is_of(&self, own: &str, namespace: &str) -> bool {
        match &self.namespace {
            Whose::Own => own == namespace,
            Whose::Named(name) => name == namespace,
            Whose::Any => true,
        }
    }

    fn hosts_for(&self, own: &str) -> Cow<'_, [Host]> {
        match self.is_short && self.namespace == Whose::Own {
            true => self.hosts.iter().map(|host| host.moved_to(own)).collect(),
            false => Cow::Borrowed(&self.hosts),
        }
    }

    /// Whether it names a host of a namespace to a workload of the namespace `own`.
    pub fn covers(&self, own: &str, namespace: &str, host: &Host) -> bool {
        let names = |name: &Host| name.as_str() == "*" || name == host || name.covers(host.as_str());
        self.is_of(own, namespace) && self.hosts_for(own).iter().any(names)
    }
}

#[cfg(test)]
mod tests;
