//! Rules that affect nobody: for hosts that nobody serves, callers that nobody is, methods that nobody sends. Well-formed, taken,
//! and without effect.

use std::collections::BTreeSet;

use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::request::METHODS;

use super::references::MOST_CANDIDATES;
use super::{Scene, finding, short};
use crate::catalog::ServiceCatalog;
use crate::finding::{Finding, Severity, closest, code, quote};
use crate::intent::{AuthorizationRule, Condition, Host, ObjectKind, Origin, Place, Source, TextKey};

pub(super) fn hosts(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let routed =
        scene.routes.iter().flat_map(|r| r.hosts.iter().map(move |host| (&r.origin, &r.place, host)));
    let governed = scene.destinations.iter().filter(|rule| rule.origin.kind == ObjectKind::TrafficRules);
    let governed = governed.map(|rule| (&rule.origin, &rule.place, &rule.host));
    let limited = scene.limits.iter().map(|rule| (&rule.origin, &rule.place, &rule.host));
    absent(scene, routed.chain(governed).chain(limited), code::NOBODY, findings);
}

/// The same of a DestinationRule has a code of its own in istioctl.
pub(super) fn destinations(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let governed = scene.destinations.iter().filter(|rule| rule.origin.kind == ObjectKind::DestinationRule);
    let governed = governed.map(|rule| (&rule.origin, &rule.place, &rule.host));
    absent(scene, governed, code::UNKNOWN_HOST, findings);
}

fn absent<'o>(
    scene: &Scene<'_>,
    rules: impl Iterator<Item = (&'o Origin, &'o Place, &'o Host)>,
    code: &'static str,
    findings: &mut Vec<Finding>,
) {
    // Without any service there is nothing to compare with: the rules came first.
    let Some(catalog) = scene.catalog.filter(|catalog| !catalog.services.is_empty()) else { return };
    let mut told = BTreeSet::new();
    for (origin, place, host) in rules {
        let exists = match host.is_wildcard() {
            true => {
                let described = scene.services.iter().flat_map(|service| &service.hosts);
                catalog
                    .services
                    .keys()
                    .chain(described)
                    .any(|known| known == host || host.covers(known.as_str()))
            }
            false => scene.ports_of(catalog, host).is_some(),
        };
        // A native page is two intents of one object.
        if exists || !told.insert((origin, host)) {
            continue;
        }
        let wildcard = scene.services.iter().flat_map(|service| &service.hosts);
        let wildcard = wildcard.into_iter().find(|known| known.is_wildcard() && known.covers(short(host)));
        let message = match wildcard {
            Some(wildcard) => format!(
                "{origin} is for host {}, which is described only as a part of {}: write the rule for that, or describe the host",
                quote(short(host)),
                quote(wildcard.as_str())
            ),
            None => format!(
                "{origin} is for host {}, but there is no such service, so it affects nobody",
                quote(short(host))
            ),
        };
        let mut found = finding(Severity::Warning, code, origin, place, message);
        let names: Vec<&str> = catalog.services.keys().take(MOST_CANDIDATES).map(short).collect();
        found.suggestion = closest(short(host), names);
        findings.push(found);
    }
}

/// What callers there are.
struct Callers<'c> {
    /// As policies write them, `td/ns/NS/sa/SA`.
    principals: BTreeSet<String>,
    namespaces: BTreeSet<&'c str>,
    accounts: BTreeSet<(&'c str, &'c str)>,
}

impl<'c> Callers<'c> {
    fn of(catalog: &'c ServiceCatalog) -> Self {
        let all = catalog.workloads.iter();
        Self {
            principals: all
                .clone()
                .map(|w| format!("{}/ns/{}/sa/{}", catalog.trust_domain, w.namespace, w.service_account))
                .collect(),
            namespaces: all.clone().map(|w| w.namespace.as_str()).collect(),
            accounts: all.map(|w| (w.namespace.as_str(), w.service_account.as_str())).collect(),
        }
    }

    fn principal(&self, wanted: &StringMatch) -> bool {
        self.principals.iter().any(|principal| matches(wanted, principal))
    }

    fn namespace(&self, wanted: &StringMatch) -> bool {
        self.namespaces.iter().any(|namespace| matches(wanted, namespace))
    }
}

/// A pattern counts as met: compiling it here would cost more than it tells.
fn matches(wanted: &StringMatch, text: &str) -> bool {
    match &wanted.pattern {
        Pattern::Exact(exact) => text == exact,
        Pattern::Prefix(prefix) => text.starts_with(prefix.as_str()),
        Pattern::Suffix(suffix) => text.ends_with(suffix.as_str()),
        Pattern::Contains(part) => text.contains(part.as_str()),
        Pattern::Regex(_) | Pattern::Present | Pattern::Range(..) => true,
    }
}

fn written(wanted: &StringMatch) -> String {
    match &wanted.pattern {
        Pattern::Exact(text) | Pattern::Regex(text) => text.clone(),
        Pattern::Prefix(text) => format!("{text}*"),
        Pattern::Suffix(text) => format!("*{text}"),
        Pattern::Contains(text) => format!("*{text}*"),
        Pattern::Present => "*".to_owned(),
        Pattern::Range(start, end) => format!("{start}..{end}"),
    }
}

pub(super) fn callers(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(catalog) = scene.catalog.filter(|catalog| !catalog.workloads.is_empty()) else { return };
    let callers = Callers::of(catalog);
    for policy in &scene.authorization {
        for rule in &policy.rules {
            unknown(&callers, &policy.origin, rule, findings);
        }
    }
}

fn unknown(callers: &Callers<'_>, origin: &Origin, rule: &AuthorizationRule, findings: &mut Vec<Finding>) {
    let principals: Vec<&str> = callers.principals.iter().map(String::as_str).collect();
    let namespaces: Vec<&str> = callers.namespaces.iter().copied().collect();
    let principal = |wanted: &StringMatch, findings: &mut Vec<Finding>| {
        if !callers.principal(wanted) {
            tell(origin, &rule.place, "principal", &written(wanted), &principals, findings);
        }
    };
    let namespace = |wanted: &StringMatch, findings: &mut Vec<Finding>| {
        if !callers.namespace(wanted) {
            tell(origin, &rule.place, "namespace", &written(wanted), &namespaces, findings);
        }
    };
    for Source { principals, namespaces, service_accounts, .. } in &rule.from {
        principals.iter().for_each(|wanted| principal(wanted, findings));
        namespaces.iter().for_each(|wanted| namespace(wanted, findings));
        for account in service_accounts {
            if !callers.accounts.contains(&(account.namespace.as_str(), account.name.as_str())) {
                let name = format!("{}/{}", account.namespace, account.name);
                tell(origin, &rule.place, "service account", &name, &[], findings);
            }
        }
    }
    for condition in &rule.when {
        match condition {
            Condition::Text { key: TextKey::SourcePrincipal, values, .. } => {
                values.iter().for_each(|wanted| principal(wanted, findings));
            }
            Condition::Text { key: TextKey::SourceNamespace, values, .. } => {
                values.iter().for_each(|wanted| namespace(wanted, findings));
            }
            _ => {}
        }
    }
}

fn tell(origin: &Origin, place: &Place, what: &str, name: &str, known: &[&str], findings: &mut Vec<Finding>) {
    let message = format!(
        "{origin}: {} names the {what} {}, but no registered workload has it, so it matches nobody",
        place.path,
        quote(name)
    );
    let mut found = finding(Severity::Warning, code::NOBODY, origin, place, message);
    found.suggestion = closest(name, known.iter().take(MOST_CANDIDATES).copied());
    findings.push(found);
}

pub(super) fn methods(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for policy in &scene.authorization {
        for rule in &policy.rules {
            for wanted in rule.to.iter().flat_map(|to| to.methods.iter().chain(&to.not_methods)) {
                if !is_known(wanted) {
                    let what = (rule.place.path.as_str(), "matches no usual request");
                    impossible(&policy.origin, &rule.place, what, wanted, findings);
                }
            }
        }
    }
    for asked in scene.asked() {
        let wanted = asked.method().filter(|wanted| !is_known(wanted));
        if let Some(wanted) = wanted.filter(|_| !scene.asks_for_its_route(&asked)) {
            let what = asked.what();
            impossible(asked.origin, asked.place, (&what, asked.in_vain()), wanted, findings);
        }
    }
}

fn is_known(wanted: &StringMatch) -> bool {
    METHODS.iter().any(|method| matches(wanted, method))
}

/// `what` asks for it, and what becomes of that.
fn impossible(
    origin: &Origin,
    place: &Place,
    (what, in_vain): (&str, &str),
    wanted: &StringMatch,
    findings: &mut Vec<Finding>,
) {
    let name = written(wanted);
    let message = format!(
        "{origin}: {what} names the method {}, which is none that is known (methods are compared as they are written, case \
         included), so it {in_vain}",
        quote(&name)
    );
    let mut found = finding(Severity::Warning, code::NOBODY, origin, place, message);
    found.suggestion = closest(&name, METHODS.iter().copied());
    findings.push(found);
}
