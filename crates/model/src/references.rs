//! What a resource refers to, and what it came from: said once, for whoever subscribes, builds, or names a rule.
//!
//! ```text
//!            refers to                    refers to             refers to
//! Destination ───────▶ Listener ──────▶ Routes ──────▶ Cluster ──────▶ Endpoints
//!                          └──────────────────────────────▲ (TCP)
//! ```

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::cluster::{NOWHERE, PASSTHROUGH};
use crate::filter::FilterConfig;
use crate::kind::ResourceKind;
use crate::listener::{FilterChain, HttpConnection, HttpFilter, Listener, RouteSource, Terminal};
use crate::origin::Origin;
use crate::policy::Rbac;
use crate::resource::Resource;
use crate::route::{Forward, RouteAction, RouteConfig, WeightedCluster};

impl Resource {
    /// The resources that must be there before it can serve; one may occur twice. Without the cluster that is always there.
    pub fn references(&self) -> Vec<(ResourceKind, Cow<'_, str>)> {
        let mut all = self.named();
        // The one is always there, the other never.
        let asked = |name: &str| name != PASSTHROUGH && name != NOWHERE;
        all.retain(|(kind, name)| *kind != ResourceKind::Cluster || asked(name));
        all
    }

    fn named(&self) -> Vec<(ResourceKind, Cow<'_, str>)> {
        match self {
            Self::Destination(destination) => {
                let listener =
                    Some(destination.listener.as_str()).filter(|_| destination.refused_by().is_none());
                listener.map(|listener| (ResourceKind::Listener, listener.into())).into_iter().collect()
            }
            Self::Listener(listener) => listener.chains().flat_map(of_chain).collect(),
            Self::Routes(routes) => routes.clusters().map(cluster).collect(),
            Self::Cluster(cluster) => {
                cluster.endpoints_name().map(|name| (ResourceKind::Endpoints, name)).into_iter().collect()
            }
            Self::Endpoints(_) | Self::Host(_) | Self::Secret(_) | Self::Barrier(_) => Vec::new(),
        }
    }

    /// The user objects that it was made from.
    pub fn origins(&self) -> BTreeSet<&Origin> {
        match self {
            Self::Cluster(cluster) => cluster.origin.iter().collect(),
            Self::Routes(routes) => routes.origins().collect(),
            Self::Listener(listener) => listener.chains().flat_map(origins_of_chain).collect(),
            Self::Endpoints(_)
            | Self::Destination(_)
            | Self::Host(_)
            | Self::Secret(_)
            | Self::Barrier(_) => BTreeSet::new(),
        }
    }
}

impl Listener {
    /// All chains, the default one last.
    fn chains(&self) -> impl Iterator<Item = &FilterChain> {
        self.chains.iter().chain(&self.default_chain)
    }
}

impl HttpConnection {
    /// The clusters that it names itself; those of routes in place are the routes'.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        self.filters.iter().filter_map(HttpFilter::cluster)
    }
}

impl RouteConfig {
    /// The clusters of all routes.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        self.forwards().flat_map(Forward::named_clusters)
    }

    /// The shares of all routes.
    pub fn shares(&self) -> impl Iterator<Item = &WeightedCluster> {
        self.forwards().flat_map(|forward| &forward.clusters)
    }

    fn forwards(&self) -> impl Iterator<Item = &Forward> {
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        routes.filter_map(|route| match &route.action {
            RouteAction::Forward(forward) => Some(forward),
            RouteAction::Redirect(_) | RouteAction::Direct { .. } => None,
        })
    }

    fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.virtual_hosts.iter().flat_map(|host| &host.routes).filter_map(|route| route.origin.as_ref())
    }
}

impl Forward {
    /// The clusters that a request of the route may reach.
    fn named_clusters(&self) -> impl Iterator<Item = &str> {
        let mirrors = self.mirrors.iter().map(|mirror| mirror.cluster.as_str());
        self.clusters.iter().map(|share| share.cluster.as_str()).chain(mirrors)
    }
}

fn of_chain(chain: &FilterChain) -> Vec<(ResourceKind, Cow<'_, str>)> {
    match &chain.terminal {
        Terminal::Http(http) => {
            let mut all: Vec<_> = http.clusters().map(cluster).collect();
            match &http.routes {
                RouteSource::Named(name) => all.push((ResourceKind::Routes, name.as_str().into())),
                RouteSource::Inline(routes) => all.extend(routes.clusters().map(cluster)),
            }
            all
        }
        Terminal::Tcp(tcp) => tcp.clusters.iter().map(|share| cluster(&share.cluster)).collect(),
    }
}

fn cluster(name: &str) -> (ResourceKind, Cow<'_, str>) {
    (ResourceKind::Cluster, name.into())
}

fn origins_of_chain(chain: &FilterChain) -> Vec<&Origin> {
    let mut all: Vec<_> = chain.authorization.iter().flat_map(Rbac::origins).chain(&chain.origin).collect();
    if let Terminal::Http(http) = &chain.terminal {
        all.extend(http.filters.iter().flat_map(HttpFilter::origins));
        if let RouteSource::Inline(routes) = &http.routes {
            all.extend(routes.origins());
        }
    }
    all
}

#[cfg(test)]
mod tests;
