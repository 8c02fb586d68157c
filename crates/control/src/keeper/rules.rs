//! Rules as the keeper holds them, and what the analyzer needs to know of the world.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrigger_rules::catalog::{CatalogProvider, CatalogService, CatalogWorkload, Unselected};
use outrigger_rules::{Finding, Object, ServiceCatalog, analyze};
use serde::{Deserialize, Serialize};

use crate::instance::Word;
use crate::store::records::{StoredRule, rule_key};
use crate::world::World;

/// A rule and what it means.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub(crate) stored: StoredRule,
    /// Nothing when this release does not understand the stored text.
    pub object: Option<Object>,
    /// Why it is not understood.
    pub problem: Option<String>,
}

/// What an application did to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It has changed.
    Updated,
    /// It was there already, exactly so.
    Unchanged,
}

/// A deletion that was carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Removed {
    /// The version that the history gives the deletion.
    pub version: u64,
    /// The generation without the rule.
    pub generation: u64,
    /// What others miss now.
    pub findings: Vec<Finding>,
}

/// One object of an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AppliedObject {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The version that it has now (in a dry run: would have).
    pub version: u64,
    /// What happened.
    pub action: Action,
}

/// An application that was carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The generation that has it.
    pub generation: u64,
    /// Nothing was really changed.
    pub dry_run: bool,
    /// The objects, in the order of the text.
    pub objects: Vec<AppliedObject>,
    /// Warnings of the analyzer.
    pub findings: Vec<Finding>,
}

/// Whether two findings are the same but for the place of the text.
fn same_finding(a: &Finding, b: &Finding) -> bool {
    a.code == b.code && a.object == b.object && a.path == b.path && a.message == b.message
}

/// What the analyzer finds when the rules of these keys make way for these objects, and did not find before. What it said before, of
/// others, is not their fault. It looks at everything twice: not for the runtime's threads where there may be many.
pub(crate) fn consequences(
    rules: &BTreeMap<String, Arc<Rule>>,
    world: &World,
    gone: &BTreeSet<String>,
    new: &[Object],
) -> Vec<Finding> {
    let present: Vec<Object> = rules.values().filter_map(|rule| rule.object.clone()).collect();
    let mut merged: Vec<Object> =
        present.iter().filter(|object| !gone.contains(&rule_key(object))).cloned().collect();
    merged.extend(new.iter().cloned());
    let catalog = catalog(world);
    let before = analyze(&present, Some(&catalog));
    let ids: BTreeSet<String> = new.iter().map(Object::id).collect();
    let mut findings = analyze(&merged, Some(&catalog));
    findings.retain(|finding| {
        let own = finding.object.as_ref().is_some_and(|object| ids.contains(object));
        own || !before.iter().any(|old| same_finding(old, finding))
    });
    findings
}

/// What the analyzer needs to know of a world.
pub fn catalog(world: &World) -> ServiceCatalog {
    let mut catalog = ServiceCatalog {
        root_namespace: world.settings.root_namespace.clone(),
        trust_domain: world.settings.trust_domain.clone(),
        domain: world.resolver.domain().to_owned(),
        path: world.settings.path,
        ..ServiceCatalog::default()
    };
    for provider in &world.settings.providers {
        let (namespace, host, port) = provider.service();
        if let Ok(host) = world.resolver.resolve(host, namespace.unwrap_or_default()) {
            let (grpc, limiter) = (provider.is_grpc(), provider.is_limiter());
            let namespace = namespace.map(str::to_owned);
            let known = CatalogProvider { host, namespace, port, grpc, limiter };
            catalog.providers.insert(provider.name.clone(), known);
        }
    }
    for service in world.services() {
        let known = CatalogService {
            ports: service.ports.iter().map(|(port, spoken)| (*port, spoken.in_catalog())).collect(),
            registered: service.registered.keys().copied().collect(),
            names: service.port_names().map(|(name, number)| (name.to_owned(), number)).collect(),
            instances: service.instances.iter().map(|instance| (*instance.labels).clone()).collect(),
            sidecars: service.instances.iter().all(|instance| instance.sidecar),
        };
        catalog.services.insert(service.host.clone(), known);
    }
    for instance in world.instances() {
        catalog.workloads.push(CatalogWorkload {
            namespace: instance.namespace.clone(),
            service_account: instance.service_account.clone(),
            labels: (*instance.labels).clone(),
            unselected: match instance.word {
                Word::Trusted | Word::Any => Unselected::Never,
                Word::Named => Unselected::WithoutApp,
                Word::Own => Unselected::Always,
            },
            ports: instance.ports.iter().map(|port| (port.number, port.protocol.in_catalog())).collect(),
            addresses: instance.addresses.iter().copied().collect(),
        });
    }
    catalog
}
