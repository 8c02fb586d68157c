//! Delegation: an object without hosts says what becomes of the requests that another object hands it.
//!
//! As Istio: each route of the delegate takes the place of the one that delegates, narrowed to what both match; a match of the delegate
//! that lies outside of every match of the other takes its whole route away. What the delegate does not say of timeout, retries,
//! rewrite, fault, mirrors, CORS and headers, the other says. Conditions other than the path add up; Istio refuses some that do.

use std::collections::BTreeMap;

use outrigger_model::route::{HeaderEdits, PathMatch, Route, RouteAction, RouteMatch};

use super::{Delegate, HttpMatch, HttpRoute, ObjectKind, RouteIntent};

/// Matches of one object after delegation; there may be as many as the product of two objects' matches.
pub const MOST_MATCHES: usize = 2_000;

/// All objects that others may delegate to.
pub struct Delegates<'r>(BTreeMap<(&'r str, &'r str), &'r RouteIntent>);

impl<'r> Delegates<'r> {
    /// Those among all objects.
    pub fn among(routes: impl IntoIterator<Item = &'r RouteIntent>) -> Self {
        let routes = routes.into_iter().filter(|route| route.is_for_others());
        Self(routes.map(|route| ((&*route.origin.namespace, &*route.origin.name), route)).collect())
    }

    /// The object that is meant, if there is one that the other may see.
    pub fn find(&self, delegate: &Delegate, from: &RouteIntent) -> Option<&'r RouteIntent> {
        let found = self.0.get(&(delegate.namespace.as_str(), delegate.name.as_str())).copied();
        found.filter(|route| route.visibility.includes(&from.origin.namespace))
    }

    /// The routes of an object with those of its delegates in their places. Where a delegate is missing there is no route; what is too
    /// much for [`MOST_MATCHES`] is answered with an error, and never left to the next route.
    pub fn resolve(&self, root: &RouteIntent) -> Option<RouteIntent> {
        if root.http.iter().all(|http| http.delegate.is_none()) {
            return None;
        }
        let mut room = MOST_MATCHES;
        let mut http = Vec::new();
        for route in &root.http {
            let Some(delegate) = &route.delegate else {
                http.push(route.clone());
                continue;
            };
            for leaf in
                self.find(delegate, root).into_iter().flat_map(|found| merged(route, found, &mut room))
            {
                http.push(leaf);
            }
        }
        Some(RouteIntent { http, ..root.clone() })
    }
}

impl RouteIntent {
    /// Whether its routes are for others to delegate to.
    pub fn is_for_others(&self) -> bool {
        self.hosts.is_empty() && self.origin.kind == ObjectKind::VirtualService
    }
}

fn merged(root: &HttpRoute, delegate: &RouteIntent, room: &mut usize) -> Vec<HttpRoute> {
    let mut all = Vec::new();
    for leaf in &delegate.http {
        let count = root.matches.len().max(1) * leaf.matches.len().max(1);
        let Some(left) = room.checked_sub(count) else {
            let body = "too many matches by delegation".to_owned();
            let action = RouteAction::Direct { status: 500, body };
            let route = Route { name: root.route.name.clone(), action, ..Route::default() };
            let (matches, place) = (root.matches.clone(), root.place.clone());
            all.push(HttpRoute { matches, route, place, ..HttpRoute::default() });
            break;
        };
        if let Some(matches) = matches(&root.matches, &leaf.matches) {
            *room = left;
            all.push(HttpRoute { matches, of: Some(delegate.origin.clone()), ..effects(root, leaf.clone()) });
        }
    }
    all
}

/// How many matches an object has after delegation, at most.
pub fn count(root: &HttpRoute, delegate: &RouteIntent) -> usize {
    delegate.http.iter().map(|leaf| root.matches.len().max(1) * leaf.matches.len().max(1)).sum()
}

fn effects(root: &HttpRoute, mut leaf: HttpRoute) -> HttpRoute {
    let name = match (root.route.name.as_str(), leaf.route.name.as_str()) {
        (root, "") => root.to_owned(),
        ("", leaf) => leaf.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    };
    let said = leaf.said;
    let route = &mut leaf.route;
    route.name = name;
    if let (RouteAction::Forward(forward), Some(of_root)) = (&mut route.action, root.forward()) {
        if !said.timeout {
            forward.timeout = of_root.timeout;
        }
        if !said.retries {
            forward.retry.clone_from(&of_root.retry);
            leaf.said.previous_hosts = root.said.previous_hosts;
        }
        if forward.rewrite == Default::default() {
            forward.rewrite = of_root.rewrite.clone();
        }
        if leaf.mirrors.is_empty() {
            leaf.mirrors.clone_from(&root.mirrors);
        }
    }
    route.fault = route.fault.take().or_else(|| root.route.fault.clone());
    route.cors = route.cors.take().or_else(|| root.route.cors.clone());
    let without = HeaderEdits::default();
    if route.request_headers == without && route.response_headers == without {
        route.request_headers = root.route.request_headers.clone();
        route.response_headers = root.route.response_headers.clone();
    }
    leaf
}

/// What both ask; `None` where a match of the delegate lies outside.
fn matches(root: &[HttpMatch], leaf: &[HttpMatch]) -> Option<Vec<HttpMatch>> {
    if root.is_empty() || leaf.is_empty() {
        return Some(if root.is_empty() { leaf } else { root }.to_vec());
    }
    let mut all = Vec::new();
    for inner in leaf {
        let before = all.len();
        all.extend(root.iter().filter_map(|outer| both(outer, inner)));
        if all.len() == before {
            return None;
        }
    }
    Some(all)
}

fn both(outer: &HttpMatch, inner: &HttpMatch) -> Option<HttpMatch> {
    let differ = |one: &Option<u16>, other: &Option<u16>| one.is_some() && other.is_some() && one != other;
    let elsewhere = outer.source_namespace.is_some()
        && inner.source_namespace.is_some()
        && outer.source_namespace != inner.source_namespace;
    let other_labels = inner
        .source_labels
        .iter()
        .any(|(key, value)| outer.source_labels.get(key).is_some_and(|known| known != value));
    if differ(&outer.port, &inner.port) || elsewhere || other_labels {
        return None;
    }
    let name = match (&outer.name, &inner.name) {
        (Some(outer), Some(inner)) => Some(format!("{outer}-{inner}")),
        (outer, inner) => inner.clone().or_else(|| outer.clone()),
    };
    let (path, ignore_case) = path(&outer.request, &inner.request)?;
    let request = RouteMatch {
        path,
        ignore_case,
        headers: [outer.request.headers.as_slice(), &inner.request.headers].concat(),
        query: [outer.request.query.as_slice(), &inner.request.query].concat(),
        cookies: [outer.request.cookies.as_slice(), &inner.request.cookies].concat(),
    };
    let mut source_labels = outer.source_labels.clone();
    source_labels.extend(inner.source_labels.clone());
    Some(HttpMatch {
        name,
        request,
        port: inner.port.or(outer.port),
        source_labels,
        source_namespace: inner.source_namespace.clone().or_else(|| outer.source_namespace.clone()),
        grpc: None,
        place: inner.place.clone(),
    })
}

/// The inner path, which must lie within the outer. Of a pattern nobody can say that.
fn path(outer: &RouteMatch, inner: &RouteMatch) -> Option<(PathMatch, bool)> {
    if is_any(&outer.path) {
        return Some((inner.path.clone(), inner.ignore_case));
    }
    if is_any(&inner.path) {
        return Some((outer.path.clone(), outer.ignore_case));
    }
    if outer.ignore_case != inner.ignore_case {
        return None;
    }
    let begins = |path: &str, start: &str| match outer.ignore_case {
        true => path.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start)),
        false => path.starts_with(start),
    };
    let within = match (&outer.path, &inner.path) {
        (PathMatch::Prefix(outer), PathMatch::Prefix(inner) | PathMatch::Exact(inner)) => {
            begins(inner, outer)
        }
        (PathMatch::Exact(outer), PathMatch::Exact(inner)) => {
            begins(inner, outer) && outer.len() == inner.len()
        }
        _ => false,
    };
    within.then(|| (inner.path.clone(), inner.ignore_case))
}

fn is_any(path: &PathMatch) -> bool {
    matches!(path, PathMatch::Prefix(prefix) if prefix.is_empty() || prefix == "/")
}

#[cfg(test)]
mod tests;
