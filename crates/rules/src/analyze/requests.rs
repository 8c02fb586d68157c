//! What objects ask of requests, wherever it is written: in routes for hosts, in attached routes, in rate limits.

use outrigger_model::matcher::StringMatch;
use outrigger_model::route::RouteMatch;

use super::Scene;
use crate::finding::quote;
use crate::intent::{Host, HttpRoute, Origin, Place};

/// Conditions on requests.
pub(super) struct Asked<'o> {
    pub(super) origin: &'o Origin,
    pub(super) place: &'o Place,
    pub(super) request: &'o RouteMatch,
    /// The name of the rate limit that asks; `None`: a route does.
    limit: Option<&'o str>,
}

impl Asked<'_> {
    /// Where it is asked, in words.
    pub(super) fn what(&self) -> String {
        match self.limit {
            Some(name) => format!("rate limit {}", quote(name)),
            None => self.place.path.clone(),
        }
    }

    /// What it does where nothing is as it asks.
    pub(super) fn in_vain(&self) -> &'static str {
        if self.limit.is_some() { "limits nobody" } else { "never matches" }
    }

    /// What the method must be.
    pub(super) fn method(&self) -> Option<&StringMatch> {
        self.request.headers.iter().find(|header| header.name == ":method").map(|header| &header.value)
    }
}

impl<'o> Scene<'o> {
    /// Routes of requests, those for hosts and those that are attached, with the hosts that they are for.
    pub(super) fn http_routes(&self) -> impl Iterator<Item = (&'o Origin, &'o [Host], &'o HttpRoute)> {
        let of_hosts = self.routes.iter().copied().flat_map(|route| {
            route.http.iter().map(move |http| (&route.origin, route.hosts.as_slice(), http))
        });
        let attached = self.attached.iter().copied().flat_map(|route| {
            route.http.iter().map(move |http| (&route.origin, route.hosts.as_slice(), http))
        });
        of_hosts.chain(attached)
    }

    /// All that is asked of requests.
    pub(super) fn asked(&self) -> impl Iterator<Item = Asked<'o>> {
        let routes = self.http_routes().flat_map(|(origin, _, http)| {
            let asked = move |(place, request)| Asked { origin, place, request, limit: None };
            http.matches.iter().map(|block| (&block.place, &block.request)).map(asked)
        });
        let limits = self.limits.iter().copied().flat_map(|rule| {
            let own = rule.limits.iter().map(|limit| (limit.name.as_str(), &limit.matches));
            let kept = rule.global.iter().map(|kept| (kept.limit.name.as_str(), &kept.limit.matches));
            own.chain(kept).map(move |(name, request)| Asked {
                origin: &rule.origin,
                place: &rule.place,
                request,
                limit: Some(name),
            })
        });
        routes.chain(limits)
    }

    /// Whether it is a limit of a route, which asks what its route asks: of that it is told once.
    pub(super) fn asks_for_its_route(&self, asked: &Asked<'_>) -> bool {
        let mut own = self.routes.iter().filter(|route| route.origin == *asked.origin);
        let asks = |http: &HttpRoute| http.matches.iter().any(|block| block.request == *asked.request);
        asked.limit.is_some() && own.any(|route| route.http.iter().any(asks))
    }
}
