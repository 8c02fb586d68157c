//! RBAC, for connections and for requests. Nothing is ever left out here: what is not understood is refused.

use std::collections::BTreeMap;

use outrigger_model::policy::{Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::resource::Origin;

use super::flaw::{Decoded, Flaw, Under, each, flaw};
use super::value::port;
use super::{address, claim, matcher, metadata};
use crate::kind::ClientKind;
use crate::wire::matcher::{MetadataMatcher, PathMatcher, filter_state_matcher, path_matcher};
use crate::wire::protobuf::Value;
use crate::wire::rbac::{self, MetadataSource, permission::Rule, principal::Identifier, rbac::Action};

/// Where newer Istio puts the identity that the peer proved.
const ISTIO_PEER: &str = "io.istio.peer_principal";

/// For connections, as Envoy wants it: conditions on requests, which never hold there, it refuses outright.
pub(super) fn encode_for_connections(filter: &Rbac, kind: ClientKind) -> rbac::Rbac {
    if kind != ClientKind::Envoy {
        return encode(filter, kind);
    }
    let mut filter = filter.clone();
    for policy in filter.policies.values_mut() {
        policy.permissions.iter_mut().for_each(never_on_a_request);
        policy.principals.iter_mut().for_each(never_on_its_header);
    }
    encode(&filter, kind)
}

fn never_on_a_request(permission: &mut Permission) {
    match permission {
        Permission::And(all) | Permission::Or(all) => all.iter_mut().for_each(never_on_a_request),
        Permission::Not(one) => never_on_a_request(one),
        Permission::Header(_) | Permission::Path(_) => {
            *permission = Permission::Not(Box::new(Permission::Any));
        }
        _ => {}
    }
}

fn never_on_its_header(principal: &mut Principal) {
    match principal {
        Principal::And(all) | Principal::Or(all) => all.iter_mut().for_each(never_on_its_header),
        Principal::Not(one) => never_on_its_header(one),
        Principal::Header(_) | Principal::Claim(_) => *principal = Principal::Not(Box::new(Principal::Any)),
        _ => {}
    }
}

pub(super) fn encode(filter: &Rbac, kind: ClientKind) -> rbac::Rbac {
    rbac::Rbac {
        action: match filter.action {
            RbacAction::Allow => Action::Allow,
            RbacAction::Deny => Action::Deny,
            RbacAction::Log => Action::Log,
        } as i32,
        policies: filter.policies.iter().map(|(name, p)| (name.clone(), encode_policy(p, kind))).collect(),
        ..Default::default()
    }
}

/// The user objects of a filter's policies, by policy.
pub(super) fn origins(filter: &Rbac) -> BTreeMap<&String, &Origin> {
    filter.policies.iter().filter_map(|(name, p)| Some((name, p.origin.as_ref()?))).collect()
}

fn encode_policy(policy: &RbacPolicy, kind: ClientKind) -> rbac::Policy {
    // An empty list matches nothing, but the wire must not have one.
    let mut permissions: Vec<_> = policy.permissions.iter().map(|p| encode_permission(p, kind)).collect();
    if permissions.is_empty() {
        permissions.push(encode_permission(&Permission::Not(Box::new(Permission::Any)), kind));
    }
    let mut principals: Vec<_> = policy.principals.iter().map(|p| encode_principal(p, kind)).collect();
    if principals.is_empty() {
        principals.push(encode_principal(&Principal::Not(Box::new(Principal::Any)), kind));
    }
    rbac::Policy { permissions, principals, ..Default::default() }
}

fn encode_permission(permission: &Permission, kind: ClientKind) -> rbac::Permission {
    let one = |p: &Permission| encode_permission(p, kind);
    let set = |all: &[Permission]| rbac::permission::Set { rules: all.iter().map(one).collect() };
    let rule = match permission {
        Permission::Any => Rule::Any(true),
        Permission::And(all) if all.is_empty() => Rule::Any(true),
        Permission::Or(all) if all.is_empty() => Rule::NotRule(Box::new(one(&Permission::Any))),
        Permission::And(all) => Rule::AndRules(set(all)),
        Permission::Or(all) => Rule::OrRules(set(all)),
        Permission::Not(inner) => Rule::NotRule(Box::new(one(inner))),
        Permission::Header(header) => Rule::Header(matcher::encode_header(header, kind)),
        Permission::Path(path) => {
            Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(matcher::encode(path))) })
        }
        Permission::DestinationPort(port) => Rule::DestinationPort(u32::from(*port)),
        Permission::DestinationIp(net) => Rule::DestinationIp(address::encode_range(net)),
        Permission::ServerName(name) => Rule::RequestedServerName(matcher::encode(name)),
    };
    rbac::Permission { rule: Some(rule) }
}

#[allow(deprecated)]
fn encode_principal(principal: &Principal, kind: ClientKind) -> rbac::Principal {
    let one = |p: &Principal| encode_principal(p, kind);
    let set = |all: &[Principal]| rbac::principal::Set { ids: all.iter().map(one).collect() };
    let identifier = match principal {
        Principal::Any => Identifier::Any(true),
        Principal::And(all) if all.is_empty() => Identifier::Any(true),
        Principal::Or(all) if all.is_empty() => Identifier::NotId(Box::new(one(&Principal::Any))),
        Principal::And(all) => Identifier::AndIds(set(all)),
        Principal::Or(all) => Identifier::OrIds(set(all)),
        Principal::Not(inner) => Identifier::NotId(Box::new(one(inner))),
        Principal::Authenticated(name) => Identifier::Authenticated(rbac::principal::Authenticated {
            principal_name: name.as_ref().map(matcher::encode),
        }),
        Principal::SourceIp(net) => Identifier::DirectRemoteIp(address::encode_range(net)),
        Principal::Header(header) => Identifier::Header(matcher::encode_header(header, kind)),
        // Not sourced_metadata, which older Envoys do not know.
        Principal::Claim(said) => Identifier::Metadata(claim::encode(said)),
    };
    rbac::Principal { identifier: Some(identifier) }
}

/// `origins` are those of the filter chain, `index` is the filter's position among the RBAC filters of its layer.
pub(super) fn decode(wire: &rbac::Rbac, origins: Option<&Value>, index: usize) -> Decoded<Rbac> {
    let action = match Action::try_from(wire.action) {
        Ok(Action::Allow) => RbacAction::Allow,
        Ok(Action::Deny) => RbacAction::Deny,
        Ok(Action::Log) => RbacAction::Log,
        Err(_) => return flaw("action", format!("{} is unknown", wire.action)),
    };
    let mut policies = BTreeMap::new();
    for (name, policy) in &wire.policies {
        let mut policy = decode_policy(policy).under(format_args!("policies[{name}]"))?;
        policy.origin = metadata::policy_origin(origins, index, name);
        policies.insert(name.clone(), policy);
    }
    Ok(Rbac { action, policies })
}

fn decode_policy(wire: &rbac::Policy) -> Decoded<RbacPolicy> {
    if wire.condition.is_some() || wire.checked_condition.is_some() {
        return flaw("condition", "is not supported");
    }
    if wire.permissions.is_empty() {
        return flaw("permissions", "must not be empty");
    }
    if wire.principals.is_empty() {
        return flaw("principals", "must not be empty");
    }
    Ok(RbacPolicy {
        permissions: each(&wire.permissions, "permissions", decode_permission)?,
        principals: each(&wire.principals, "principals", decode_principal)?,
        origin: None,
    })
}

fn not_empty<T>(all: Vec<T>) -> Decoded<Vec<T>> {
    if all.is_empty() { Err(Flaw::new("must not be empty")) } else { Ok(all) }
}

fn decode_permission(wire: &rbac::Permission) -> Decoded<Permission> {
    let Some(rule) = &wire.rule else { return Err(Flaw::new("a rule is required")) };
    let set = |set: &rbac::permission::Set, field: &str| {
        each(&set.rules, "rules", decode_permission).and_then(not_empty).under(field)
    };
    Ok(match rule {
        Rule::Any(true) => Permission::Any,
        Rule::Any(false) => return flaw("any", "must be true"),
        Rule::AndRules(all) => Permission::And(set(all, "and_rules")?),
        Rule::OrRules(all) => Permission::Or(set(all, "or_rules")?),
        Rule::NotRule(one) => Permission::Not(Box::new(decode_permission(one).under("not_rule")?)),
        Rule::Header(header) => {
            all_of(matcher::decode_header(header).under("header")?, Permission::Header, Permission::And)
        }
        Rule::UrlPath(path) => match &path.rule {
            Some(path_matcher::Rule::Path(path)) => {
                Permission::Path(matcher::decode(path).under("url_path.path")?)
            }
            None => return flaw("url_path.path", "is required"),
        },
        Rule::DestinationPort(value) => Permission::DestinationPort(port(*value, "destination_port")?),
        Rule::DestinationIp(range) => {
            Permission::DestinationIp(address::decode_range(range).under("destination_ip")?)
        }
        Rule::RequestedServerName(name) => {
            Permission::ServerName(matcher::decode(name).under("requested_server_name")?)
        }
        Rule::DestinationPortRange(_) => return flaw("destination_port_range", "is not supported"),
        _ => return Err(Flaw::new("a rule by metadata, URI template or extension is not supported")),
    })
}

#[allow(deprecated)]
fn decode_principal(wire: &rbac::Principal) -> Decoded<Principal> {
    let Some(identifier) = &wire.identifier else { return Err(Flaw::new("an identifier is required")) };
    let set = |set: &rbac::principal::Set, field: &str| {
        each(&set.ids, "ids", decode_principal).and_then(not_empty).under(field)
    };
    Ok(match identifier {
        Identifier::Any(true) => Principal::Any,
        Identifier::Any(false) => return flaw("any", "must be true"),
        Identifier::AndIds(all) => Principal::And(set(all, "and_ids")?),
        Identifier::OrIds(all) => Principal::Or(set(all, "or_ids")?),
        Identifier::NotId(one) => Principal::Not(Box::new(decode_principal(one).under("not_id")?)),
        Identifier::Authenticated(who) => {
            let name = who.principal_name.as_ref().map(matcher::decode).transpose();
            Principal::Authenticated(name.under("authenticated.principal_name")?)
        }
        Identifier::FilterState(state) if state.key == ISTIO_PEER => match &state.matcher {
            Some(filter_state_matcher::Matcher::StringMatch(name)) => {
                Principal::Authenticated(Some(matcher::decode(name).under("filter_state.string_match")?))
            }
            _ => return flaw("filter_state", "a string_match is required"),
        },
        Identifier::DirectRemoteIp(range) => {
            Principal::SourceIp(address::decode_range(range).under("direct_remote_ip")?)
        }
        Identifier::Header(header) => {
            all_of(matcher::decode_header(header).under("header")?, Principal::Header, Principal::And)
        }
        Identifier::Metadata(claim) => decode_claim(claim).under("metadata")?,
        Identifier::SourcedMetadata(sourced) => match (&sourced.metadata_matcher, sourced.metadata_source) {
            (Some(claim), source) if source == MetadataSource::Dynamic as i32 => {
                decode_claim(claim).under("sourced_metadata.metadata_matcher")?
            }
            _ => return flaw("sourced_metadata", "only the metadata of requests are known here"),
        },
        Identifier::RemoteIp(_) => {
            return flaw(
                "remote_ip",
                "what a header says of the address is not trusted; use direct_remote_ip",
            );
        }
        _ => return Err(Flaw::new("a principal by source_ip, path or extension is not supported")),
    })
}

fn decode_claim(wire: &MetadataMatcher) -> Decoded<Principal> {
    let (claim, invert) = claim::decode(wire)?;
    let principal = Principal::Claim(claim);
    Ok(if invert { Principal::Not(Box::new(principal)) } else { principal })
}

/// One condition as it is, several as all of them.
fn all_of<C, T>(conditions: Vec<C>, one: impl Fn(C) -> T, all: impl Fn(Vec<T>) -> T) -> T {
    let mut each: Vec<T> = conditions.into_iter().map(one).collect();
    match (each.len(), each.pop()) {
        (1, Some(only)) => only,
        (_, Some(last)) => {
            each.push(last);
            all(each)
        }
        (_, None) => all(each),
    }
}
