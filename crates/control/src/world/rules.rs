//! Rules, by the hosts or the namespace that they are about.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use outrigger_identity::upstream::usable_roots;
use outrigger_rules::intent::delegate::Delegates;
use outrigger_rules::intent::{
    AttachedIntent, AuthorizationIntent, DestinationIntent, Host, Intent, LimitsIntent, MtlsIntent, Origin,
    RouteIntent, ServiceIntent, SidecarIntent, TokensIntent, WorkloadIntent,
};

use crate::described::Described;

/// All rules of a world.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) routes: ByHost<RouteIntent>,
    pub(super) attached: ByHost<AttachedIntent>,
    pub(super) destinations: ByHost<DestinationIntent>,
    pub(super) mtls: ByNamespace<MtlsIntent>,
    pub(super) authorization: ByNamespace<AuthorizationIntent>,
    pub(super) limits: ByNamespace<LimitsIntent>,
    pub(super) tokens: ByNamespace<TokensIntent>,
    pub(super) sidecars: ByNamespace<SidecarIntent>,
    pub(super) described: Described,
}

impl Rules {
    /// In the order of the objects' names, so that the result does not depend on the order of application.
    /// `may` says whether a namespace has a say in what a host is.
    pub(super) fn new(intents: impl IntoIterator<Item = Intent>, may: impl Fn(&Host, &str) -> bool) -> Self {
        let (mut routes, mut destinations) = (Vec::new(), Vec::new());
        let mut attached = Vec::new();
        let (mut mtls, mut authorization) = (Vec::new(), Vec::new());
        let (mut limits, mut tokens, mut sidecars) = (Vec::new(), Vec::new(), Vec::new());
        let (mut services, mut workloads) = (Vec::new(), Vec::new());
        let mut roots = BTreeMap::new();
        for intent in intents {
            match intent {
                Intent::Roots(i) => drop(roots.insert((i.origin.namespace, i.origin.name), i.pem)),
                Intent::Route(i) => routes.push(i),
                Intent::Attached(i) => attached.push(Arc::new(i)),
                Intent::Destination(i) => destinations.push(i),
                Intent::Mtls(i) => mtls.push(Arc::new(i)),
                Intent::Authorization(i) => authorization.push(Arc::new(i)),
                Intent::Service(i) => services.push(Arc::new(i)),
                Intent::Workload(i) => workloads.push(Arc::new(i)),
                Intent::Limits(i) => limits.push(Arc::new(i)),
                Intent::Tokens(i) => tokens.push(Arc::new(i)),
                Intent::Sidecar(i) => sidecars.push(Arc::new(i)),
            }
        }
        let find = |namespace: &str, name: &str| {
            let pem = roots.get(&(namespace.to_owned(), name.to_owned())).map(String::as_str);
            // A proxy would refuse the cluster, and who knows what it had before.
            pem.filter(|pem| usable_roots(pem).is_ok())
        };
        destinations.iter_mut().flat_map(|rule| &mut rule.backend_tls).for_each(|tls| tls.resolve(find));
        let destinations = destinations.into_iter().map(Arc::new).collect();
        let delegates = Delegates::among(&routes);
        let whole: Vec<_> = routes.iter().map(|route| delegates.resolve(route)).collect();
        let routes = routes.into_iter().zip(whole).map(|(route, whole)| Arc::new(whole.unwrap_or(route)));
        Self {
            routes: ByHost::new(routes.collect()),
            attached: ByHost::new(attached),
            destinations: ByHost::new(destinations),
            mtls: ByNamespace::new(mtls),
            authorization: ByNamespace::new(authorization),
            limits: ByNamespace::new(limits),
            tokens: ByNamespace::new(tokens),
            sidecars: ByNamespace::new(sidecars),
            described: Described::new(services, workloads, may),
        }
    }
}

/// A rule that came from an object.
pub(super) trait Rule: PartialEq {
    fn origin(&self) -> &Origin;
    /// The hosts that it is about; none where it is about a namespace.
    fn hosts(&self) -> &[Host] {
        &[]
    }
}

impl Rule for RouteIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
    fn hosts(&self) -> &[Host] {
        &self.hosts
    }
}

impl Rule for AttachedIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
    fn hosts(&self) -> &[Host] {
        &self.hosts
    }
}

impl Rule for DestinationIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
    fn hosts(&self) -> &[Host] {
        std::slice::from_ref(&self.host)
    }
}

impl Rule for MtlsIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Rule for ServiceIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Rule for WorkloadIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Rule for LimitsIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Rule for TokensIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Rule for SidecarIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Rule for AuthorizationIntent {
    fn origin(&self) -> &Origin {
        &self.origin
    }
}

/// Those that differ between two lists sorted by origin, of either.
pub(super) fn differing<'r, R: Rule>(
    before: &'r [Arc<R>],
    after: &'r [Arc<R>],
) -> impl Iterator<Item = &'r Arc<R>> {
    // Several rules may come from one object: what has no equal in the other list differs.
    let without = |of: &'r [Arc<R>], other: &'r [Arc<R>]| {
        of.iter().filter(move |rule| {
            let from = other.partition_point(|o| o.origin() < rule.origin());
            !other[from..].iter().take_while(|o| o.origin() == rule.origin()).any(|o| o == *rule)
        })
    };
    without(before, after).chain(without(after, before))
}

/// Rules by the hosts that they are about.
#[derive(Debug)]
pub(super) struct ByHost<R> {
    /// By origin.
    pub(super) all: Vec<Arc<R>>,
    exact: HashMap<Host, Vec<Arc<R>>>,
    wild: Vec<Arc<R>>,
}

impl<R> Default for ByHost<R> {
    fn default() -> Self {
        Self { all: Vec::new(), exact: HashMap::new(), wild: Vec::new() }
    }
}

impl<R: Rule> ByHost<R> {
    fn new(mut all: Vec<Arc<R>>) -> Self {
        all.sort_by(|a, b| a.origin().cmp(b.origin()));
        let mut index = Self::default();
        for rule in &all {
            for host in rule.hosts().iter().filter(|host| !host.is_wildcard()) {
                let at = index.exact.entry(host.clone()).or_default();
                if at.last().is_none_or(|last| !Arc::ptr_eq(last, rule)) {
                    at.push(rule.clone());
                }
            }
            if rule.hosts().iter().any(Host::is_wildcard) {
                index.wild.push(rule.clone());
            }
        }
        Self { all, ..index }
    }

    /// Those for a host, by origin.
    pub(super) fn of(&self, host: &Host) -> Vec<Arc<R>> {
        let mut found: Vec<Arc<R>> = self.exact.get(host).cloned().unwrap_or_default();
        let covers = |rule: &&Arc<R>| rule.hosts().iter().any(|h| h == host || h.covers(host.as_str()));
        for rule in self.wild.iter().filter(covers) {
            if !found.iter().any(|known| Arc::ptr_eq(known, rule)) {
                found.push(rule.clone());
            }
        }
        found.sort_by(|a, b| a.origin().cmp(b.origin()));
        found
    }
}

/// Rules by the namespace of their object.
#[derive(Debug)]
pub(super) struct ByNamespace<R> {
    /// By origin.
    pub(super) all: Vec<Arc<R>>,
    by_namespace: BTreeMap<String, Vec<Arc<R>>>,
}

impl<R> Default for ByNamespace<R> {
    fn default() -> Self {
        Self { all: Vec::new(), by_namespace: BTreeMap::new() }
    }
}

impl<R: Rule> ByNamespace<R> {
    fn new(mut all: Vec<Arc<R>>) -> Self {
        all.sort_by(|a, b| a.origin().cmp(b.origin()));
        let mut by_namespace: BTreeMap<String, Vec<Arc<R>>> = BTreeMap::new();
        for rule in &all {
            by_namespace.entry(rule.origin().namespace.clone()).or_default().push(rule.clone());
        }
        Self { all, by_namespace }
    }

    /// Those of a namespace, by origin.
    pub(super) fn of(&self, namespace: &str) -> &[Arc<R>] {
        self.by_namespace.get(namespace).map_or(&[], Vec::as_slice)
    }
}
