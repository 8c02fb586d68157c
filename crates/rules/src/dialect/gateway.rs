//! The Gateway API, with services as parents (GAMMA): routes that are attached to ports of services.
//!
//! What is valid there and cannot be done here makes a condition false, is a warning, and is answered with an error: a filter
//! that is not there must not be skipped. What the API server would refuse is refused.

mod backend;
mod filter;
mod grant;
mod grpc;
mod headers;
mod http;
mod limits;
mod parent;
mod path;

pub(super) use grant::read as grant;
pub(super) use grpc::read as grpc_route;
pub(super) use http::read as http_route;

use crate::finding::code;
use crate::intent::{AttachedIntent, HttpRoute, Intent, RouteCondition, RouteFlaw};
use crate::reader::{At, Fields, Reader, Table};

/// Of all kinds of routes.
const SPEC: Table =
    Table::new("a route", &["parentRefs", "hostnames", "rules"]).later(&["useDefaultGateways"]);

/// What a route says and nobody can do, as it is found.
type Flaws = Vec<RouteFlaw>;

/// Notes something that cannot be done, for people and for machines.
fn flaw(
    reader: &mut Reader<'_>,
    flaws: &mut Flaws,
    at: &At<'_>,
    (condition, reason): (RouteCondition, &str),
    message: String,
) {
    reader.warn(code::NOT_IMPLEMENTED, at, message.clone());
    flaws.push(RouteFlaw { condition, reason: reason.to_owned(), message });
}

/// A kind of object that is referred to and not known.
const INVALID_KIND: (RouteCondition, &str) = (RouteCondition::ResolvedRefs, "InvalidKind");
/// A value that cannot be done.
const UNSUPPORTED: (RouteCondition, &str) = (RouteCondition::Accepted, "UnsupportedValue");

/// A route of any kind; `rules` reads its rules.
fn route(
    reader: &mut Reader<'_>,
    spec: &At<'_>,
    rules: fn(&mut Reader<'_>, &Fields<'_>, &mut Flaws) -> Vec<HttpRoute>,
) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let parents = parent::parents(reader, &fields);
    parent::hostnames(reader, fields.get("hostnames"), &parents);
    let mut flaws = Flaws::new();
    let http = rules(reader, &fields, &mut flaws);
    let mut hosts: Vec<_> = parents.iter().filter_map(|parent| parent.host.clone()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let (origin, created) = (reader.origin.clone(), reader.created.clone());
    vec![Intent::Attached(AttachedIntent { origin, created, parents, hosts, http, flaws })]
}

#[cfg(test)]
mod tests;
