//! Authorization: Istio's policies as filters, in the order CUSTOM, DENY, ALLOW; audit beside them.
//!
//! On TCP an attribute of HTTP never holds in an ALLOW rule and counts as matching in all others.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use outrigger_model::listener::HttpFilter;
use outrigger_model::matcher::{Pattern, StringMatch};
use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::route::HeaderMatch;
use outrigger_rules::intent::{
    AuthorizationAction, AuthorizationIntent, AuthorizationRule, Condition, IpKey, Operation,
    ServiceAccountMatch, Source, TextKey,
};

use super::lens::Lens;
use super::origin;
use crate::instance::Instance;

mod claims;
mod custom;

/// For HTTP.
pub(super) fn of_requests(lens: &Lens<'_>, own: &Instance) -> Vec<HttpFilter> {
    let all = lens.authorization_for(own);
    let mut filters = custom::of_requests(lens, &all);
    filters.extend(decided_here(&all, true).into_iter().map(HttpFilter::Rbac));
    filters
}

/// For bytes. `opaque`: the port is registered as one that nobody speaks HTTP on.
pub(super) fn of_connections(lens: &Lens<'_>, own: &Instance, opaque: bool) -> Vec<Rbac> {
    let all = lens.authorization_for(own);
    let mut filters = custom::of_connections(lens, &all, opaque);
    filters.extend(decided_here(&all, false));
    filters
}

/// The policies that ask nobody.
fn decided_here(all: &[&Arc<AuthorizationIntent>], http: bool) -> Vec<Rbac> {
    let actions = [
        (AuthorizationAction::Audit, RbacAction::Log),
        (AuthorizationAction::Deny, RbacAction::Deny),
        (AuthorizationAction::Allow, RbacAction::Allow),
    ];
    let mut filters = Vec::new();
    for (action, rbac) in actions {
        let with_action: Vec<_> = all.iter().filter(|intent| intent.action == action).collect();
        if !with_action.is_empty() {
            let policies =
                with_action.iter().flat_map(|intent| policies(intent, http)).collect::<BTreeMap<_, _>>();
            filters.push(Rbac { action: rbac, policies });
        }
    }
    filters
}

fn policies(intent: &AuthorizationIntent, http: bool) -> Vec<(String, RbacPolicy)> {
    let name = format!("ns[{}]-policy[{}]", intent.origin.namespace, intent.origin.name);
    let usable =
        |rule: &AuthorizationRule| http || intent.action != AuthorizationAction::Allow || !rule.needs_http();
    let rules = intent.rules.iter().enumerate().filter(|(_, rule)| usable(rule));
    rules
        .map(|(i, rule)| {
            let policy = RbacPolicy {
                permissions: vec![permission(rule, http)],
                principals: vec![principal(rule, http)],
                origin: Some(origin(&intent.origin)),
            };
            (format!("{name}-rule[{i}]"), policy)
        })
        .collect()
}

fn permission(rule: &AuthorizationRule, http: bool) -> Permission {
    let mut all = Vec::new();
    if !rule.to.is_empty() {
        all.push(Permission::Or(rule.to.iter().map(|operation| self::operation(operation, http)).collect()));
    }
    for condition in &rule.when {
        match condition {
            Condition::DestinationPort { values, not_values } => {
                one_of(&mut all, values.iter().map(|p| Permission::DestinationPort(*p)));
                none_of(&mut all, not_values.iter().map(|p| Permission::DestinationPort(*p)));
            }
            Condition::Ip { key: IpKey::Destination, values, not_values } => {
                one_of(&mut all, values.iter().map(|net| Permission::DestinationIp(*net)));
                none_of(&mut all, not_values.iter().map(|net| Permission::DestinationIp(*net)));
            }
            Condition::Text { key: TextKey::ConnectionSni, values, not_values } => {
                one_of(&mut all, values.iter().map(|v| Permission::ServerName(v.clone())));
                none_of(&mut all, not_values.iter().map(|v| Permission::ServerName(v.clone())));
            }
            Condition::Text { .. } | Condition::Ip { .. } => {}
        }
    }
    if all.is_empty() { Permission::Any } else { Permission::And(all) }
}

fn operation(operation: &Operation, http: bool) -> Permission {
    let mut all = Vec::new();
    one_of(&mut all, operation.ports.iter().map(|p| Permission::DestinationPort(*p)));
    none_of(&mut all, operation.not_ports.iter().map(|p| Permission::DestinationPort(*p)));
    if http {
        let header = |name: &'static str| {
            move |v: &StringMatch| {
                Permission::Header(HeaderMatch { name: name.into(), value: v.clone(), invert: false })
            }
        };
        one_of(&mut all, operation.hosts.iter().map(header(":authority")));
        none_of(&mut all, operation.not_hosts.iter().map(header(":authority")));
        one_of(&mut all, operation.methods.iter().map(header(":method")));
        none_of(&mut all, operation.not_methods.iter().map(header(":method")));
        one_of(&mut all, operation.paths.iter().map(|v| Permission::Path(v.clone())));
        none_of(&mut all, operation.not_paths.iter().map(|v| Permission::Path(v.clone())));
    }
    if all.is_empty() { Permission::Any } else { Permission::And(all) }
}

fn principal(rule: &AuthorizationRule, http: bool) -> Principal {
    let mut all = Vec::new();
    if !rule.from.is_empty() {
        all.push(Principal::Or(rule.from.iter().map(|from| source(from, http)).collect()));
    }
    for condition in &rule.when {
        match condition {
            Condition::Text { key: TextKey::SourcePrincipal, values, not_values } => {
                one_of_principals(&mut all, values.iter().map(by_principal));
                none_of_principals(&mut all, not_values.iter().map(by_principal));
            }
            Condition::Text { key: TextKey::SourceNamespace, values, not_values } => {
                one_of_principals(&mut all, values.iter().map(by_namespace));
                none_of_principals(&mut all, not_values.iter().map(by_namespace));
            }
            Condition::Text { key: TextKey::RequestPrincipal, values, not_values } if http => {
                one_of_principals(&mut all, values.iter().map(claims::principal));
                none_of_principals(&mut all, not_values.iter().map(claims::principal));
            }
            Condition::Text { key: TextKey::Claim(path), values, not_values } if http => {
                let claim = |value: &StringMatch| claims::claim(path, value);
                one_of_principals(&mut all, values.iter().map(claim));
                none_of_principals(&mut all, not_values.iter().map(claim));
            }
            Condition::Text { key: TextKey::RequestHeader(name), values, not_values } if http => {
                let header = |v: &StringMatch| {
                    Principal::Header(HeaderMatch { name: name.clone(), value: v.clone(), invert: false })
                };
                one_of_principals(&mut all, values.iter().map(header));
                none_of_principals(&mut all, not_values.iter().map(header));
            }
            Condition::Ip { key: IpKey::Source | IpKey::Remote, values, not_values } => {
                one_of_principals(&mut all, values.iter().map(by_address));
                none_of_principals(&mut all, not_values.iter().map(by_address));
            }
            Condition::Text { .. } | Condition::Ip { .. } | Condition::DestinationPort { .. } => {}
        }
    }
    if all.is_empty() { Principal::Any } else { Principal::And(all) }
}

fn source(source: &Source, http: bool) -> Principal {
    let mut all = Vec::new();
    one_of_principals(&mut all, source.principals.iter().map(by_principal));
    none_of_principals(&mut all, source.not_principals.iter().map(by_principal));
    one_of_principals(&mut all, source.namespaces.iter().map(by_namespace));
    none_of_principals(&mut all, source.not_namespaces.iter().map(by_namespace));
    one_of_principals(&mut all, source.service_accounts.iter().map(by_account));
    none_of_principals(&mut all, source.not_service_accounts.iter().map(by_account));
    one_of_principals(&mut all, source.ip_blocks.iter().chain(&source.remote_ip_blocks).map(by_address));
    none_of_principals(
        &mut all,
        source.not_ip_blocks.iter().chain(&source.not_remote_ip_blocks).map(by_address),
    );
    if http {
        one_of_principals(&mut all, source.request_principals.iter().map(claims::principal));
        none_of_principals(&mut all, source.not_request_principals.iter().map(claims::principal));
    }
    if all.is_empty() { Principal::Any } else { Principal::And(all) }
}

/// Istio writes principals without their scheme.
fn by_principal(value: &StringMatch) -> Principal {
    let pattern = match &value.pattern {
        Pattern::Exact(t) => Pattern::Exact(format!("spiffe://{t}")),
        Pattern::Prefix(t) => Pattern::Prefix(format!("spiffe://{t}")),
        Pattern::Suffix(t) => Pattern::Suffix(t.clone()),
        Pattern::Contains(t) => Pattern::Contains(t.clone()),
        Pattern::Regex(t) => Pattern::Regex(format!("spiffe://(?:{t})")),
        // No dialect has a range but of headers.
        Pattern::Present | Pattern::Range(..) => return Principal::Authenticated(None),
    };
    Principal::Authenticated(Some(StringMatch { pattern, ignore_case: false }))
}

fn by_namespace(value: &StringMatch) -> Principal {
    let namespace = match &value.pattern {
        Pattern::Exact(t) => escape(t),
        Pattern::Prefix(t) => format!("{}[^/]*", escape(t)),
        Pattern::Suffix(t) => format!("[^/]*{}", escape(t)),
        Pattern::Contains(t) => format!("[^/]*{}[^/]*", escape(t)),
        Pattern::Regex(t) => format!("(?:{t})"),
        Pattern::Present | Pattern::Range(..) => "[^/]+".into(),
    };
    identity(format!("spiffe://[^/]+/ns/{namespace}/sa/.+"))
}

fn by_account(account: &ServiceAccountMatch) -> Principal {
    identity(format!("spiffe://[^/]+/ns/{}/sa/{}", escape(&account.namespace), escape(&account.name)))
}

fn identity(pattern: String) -> Principal {
    Principal::Authenticated(Some(StringMatch { pattern: Pattern::Regex(pattern), ignore_case: false }))
}

fn by_address(net: &IpNet) -> Principal {
    Principal::SourceIp(*net)
}

fn one_of(all: &mut Vec<Permission>, list: impl Iterator<Item = Permission>) {
    let list: Vec<_> = list.collect();
    if !list.is_empty() {
        all.push(Permission::Or(list));
    }
}

fn none_of(all: &mut Vec<Permission>, list: impl Iterator<Item = Permission>) {
    all.extend(list.map(|permission| Permission::Not(Box::new(permission))));
}

fn one_of_principals(all: &mut Vec<Principal>, list: impl Iterator<Item = Principal>) {
    let list: Vec<_> = list.collect();
    if !list.is_empty() {
        all.push(Principal::Or(list));
    }
}

fn none_of_principals(all: &mut Vec<Principal>, list: impl Iterator<Item = Principal>) {
    all.extend(list.map(|principal| Principal::Not(Box::new(principal))));
}

/// Text as a regular expression.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
