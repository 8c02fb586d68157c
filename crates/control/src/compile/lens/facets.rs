//! What of a client may decide what it sees, besides what kind of client it is; and who is equal in it.

use std::net::IpAddr;

use outrigger_model::endpoint::Locality;
use outrigger_rules::intent::Origin;
use outrigger_xds::ClientKind;

use crate::compile::scope::Scope;
use crate::instance::Labels;
use crate::world::World;

/// One thing that may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::compile) enum Facet {
    Namespace = 1,
    Network = 2,
    Labels = 4,
    Own = 8,
    Bind = 16,
    Secure = 32,
    RegexLimit = 64,
    Locality = 128,
    Sidecar = 256,
    Proxy = 512,
    Node = 1024,
}

impl Facet {
    const ALL: [Self; 11] = [
        Self::Namespace,
        Self::Network,
        Self::Labels,
        Self::Own,
        Self::Bind,
        Self::Secure,
        Self::RegexLimit,
        Self::Locality,
        Self::Sidecar,
        Self::Proxy,
        Self::Node,
    ];
}

/// Clients that are equal in these see the same. Of nearly all resources there are none, or one or two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::compile) struct Facets {
    kind: ClientKind,
    used: Box<[Is]>,
}

/// What one is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Is {
    Namespace(Box<str>),
    Network(Box<str>),
    Labels(Option<Labels>),
    Own(Option<Box<str>>),
    Bind(Option<IpAddr>),
    Secure(bool),
    RegexLimit(u32),
    Locality(Option<Box<Locality>>),
    Sidecar(Option<Box<Origin>>),
    Proxy(bool),
    Node(Option<Box<str>>),
}

impl Is {
    fn of(scope: &Scope, world: &World, facet: Facet) -> Self {
        match facet {
            Facet::Namespace => Self::Namespace(scope.namespace.as_str().into()),
            Facet::Network => Self::Network(scope.network(world).into()),
            Facet::Labels => Self::Labels(scope.own(world).map(|own| own.labels.clone())),
            Facet::Own => Self::Own(scope.own(world).map(|own| own.id.as_str().into())),
            Facet::Bind => Self::Bind(scope.bind),
            Facet::Secure => Self::Secure(scope.secure),
            Facet::RegexLimit => Self::RegexLimit(scope.regex_limit),
            Facet::Locality => Self::Locality(scope.locality(world).map(Box::new)),
            Facet::Sidecar => Self::Sidecar(scope.sidecar(world).map(|one| one.origin.clone().into())),
            Facet::Proxy => Self::Proxy(scope.is_egress_proxy(world)),
            Facet::Node => Self::Node(scope.node(world).map(Into::into)),
        }
    }

    fn fits(&self, scope: &Scope, world: &World) -> bool {
        match self {
            Self::Namespace(namespace) => **namespace == *scope.namespace,
            Self::Network(network) => **network == *scope.network(world),
            Self::Labels(labels) => labels.as_deref() == scope.labels(world),
            Self::Own(own) => own.as_deref() == scope.own(world).map(|own| own.id.as_str()),
            Self::Bind(bind) => *bind == scope.bind,
            Self::Secure(secure) => *secure == scope.secure,
            Self::RegexLimit(limit) => *limit == scope.regex_limit,
            Self::Locality(locality) => locality.as_deref() == scope.locality(world).as_ref(),
            Self::Sidecar(sidecar) => sidecar.as_deref() == scope.sidecar(world).map(|one| &one.origin),
            Self::Proxy(proxy) => *proxy == scope.is_egress_proxy(world),
            Self::Node(node) => node.as_deref() == scope.node(world),
        }
    }
}

impl Facets {
    /// A client's, of those that were used.
    pub(super) fn of(scope: &Scope, world: &World, used: u16) -> Self {
        let used = Facet::ALL.into_iter().filter(|facet| used & *facet as u16 != 0);
        Self { kind: scope.kind, used: used.map(|facet| Is::of(scope, world, facet)).collect() }
    }

    /// The instance that it is about, where nobody but its client sees this.
    pub(in crate::compile) fn owner(&self) -> Option<&str> {
        self.used.iter().find_map(|is| match is {
            Is::Own(own) => own.as_deref(),
            _ => None,
        })
    }

    /// Whether it matters which Sidecar holds.
    pub(in crate::compile) fn by_sidecar(&self) -> bool {
        self.used.iter().any(|is| matches!(is, Is::Sidecar(_)))
    }

    /// Whether a client is equal in all of them.
    pub(in crate::compile) fn fit(&self, scope: &Scope, world: &World) -> bool {
        self.kind == scope.kind && self.used.iter().all(|is| is.fits(scope, world))
    }
}
