//! Compiled resources, shared by all clients that see the same, and kept until something that they depend on changes.
//!
//! What is kept is what somebody holds: a name that nobody holds is compiled for whoever asks, and forgotten.
//!
//! Locks are taken in the order audience, state.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrigger_identity::Revoked;
use outrigger_model::resource::{Resource, ResourceKind, TrustBundleSecret};
use outrigger_xds::ClientKind;
use outrigger_xds::server::{Audience, Name, Seat, Version, Versioned, WILDCARD};
use parking_lot::Mutex;

use super::attached::external;
use super::foreign::{self, Gap};
use super::lens::{Facets, Lens};
use super::scope::Scope;
use super::{any_host, cluster, described, destination, elsewhere, endpoints, host, inbound, ingress};
use super::{names, outbound, route};
use crate::world::{Change, Fact, Wide, World};

mod kept;

use kept::{Shelf, VariantKey};

/// A change that may concern more than this, over all who see something of their own, is not looked into: whoever holds one of the
/// names compares.
const MOST_LOOKED_INTO: usize = 2_000;

/// What a client sees of one name: without a version it was found not to exist; what it does not enforce of the rules behind it; and
/// of a wildcard the names.
#[derive(Clone, Default)]
struct Outcome {
    version: Option<Version>,
    /// Of what was compiled lately, or is held by several. One that holds a name has it after a moment, and then only its version matters.
    resource: Option<Arc<Versioned>>,
    gaps: Arc<[Gap]>,
    names: Arc<[Arc<str>]>,
}

impl Outcome {
    fn is_same(&self, other: &Self) -> bool {
        self.version == other.version && self.names == other.names
    }
}

/// What clients with these facets see.
struct Variant {
    facets: Facets,
    /// One of them.
    scope: Arc<Scope>,
    outcome: Outcome,
}

/// Names, and what they were before a change.
pub struct Stale(Vec<(VariantKey, Vec<Variant>)>);

/// What compilation is a function of.
#[derive(Clone)]
struct Inputs {
    world: Arc<World>,
    roots_pem: Arc<str>,
    revoked: Arc<Revoked>,
}

impl Inputs {
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.world, &other.world)
    }
}

struct CacheState {
    inputs: Inputs,
    kept: Shelf,
}

/// Everything that was compiled of the newest world and is still true.
pub struct Compiled {
    audience: Arc<Audience>,
    state: Mutex<CacheState>,
}

impl Compiled {
    /// Nothing is compiled yet.
    pub fn new(world: Arc<World>, roots_pem: Arc<str>, revoked: Arc<Revoked>) -> Self {
        let audience = Audience::new(world.generation);
        let inputs = Inputs { world, roots_pem, revoked };
        Self { audience, state: Mutex::new(CacheState { inputs, kept: Shelf::default() }) }
    }

    /// The same; so many are kept as they were compiled.
    #[cfg(test)]
    pub(super) fn remembering(self, most: usize) -> Self {
        self.state.lock().kept.most_remembered = most;
        self
    }

    /// Who holds what.
    pub fn audience(&self) -> &Arc<Audience> {
        &self.audience
    }

    /// The newest world.
    pub fn world(&self) -> Arc<World> {
        self.state.lock().inputs.world.clone()
    }

    /// The resource of a name as a client sees it; `None` when it does not exist for that client.
    pub fn resource(&self, scope: &Scope, kind: ResourceKind, name: &str) -> Option<Arc<Versioned>> {
        let found = self.look(scope, kind, name);
        match (found.version, found.resource) {
            (Some(_), None) => self.look_anew(scope, kind, &self.audience.name(kind, name)).1.resource,
            (_, resource) => resource,
        }
    }

    /// The version of it.
    pub fn version(&self, scope: &Scope, kind: ResourceKind, name: &str) -> Option<Version> {
        self.look(scope, kind, name).version
    }

    fn look(&self, scope: &Scope, kind: ResourceKind, name: &str) -> Outcome {
        {
            let state = self.state.lock();
            if let Some(known) = state.kept.find(scope, &state.inputs.world, kind, name) {
                return known.outcome.clone();
            }
        }
        self.look_anew(scope, kind, &self.audience.name(kind, name)).1
    }

    /// Compiles, and keeps what somebody holds.
    fn look_anew(&self, scope: &Scope, kind: ResourceKind, name: &Arc<str>) -> (Facets, Outcome) {
        let mut inputs = self.state.lock().inputs.clone();
        // Outside of the lock: two clients may do the same work once, which is cheaper than one waiting for another.
        for _ in 0..3 {
            let compiled = compile(&inputs, scope, kind, name);
            let outcome = (compiled.facets.clone(), compiled.outcome.clone());
            let mut newer = None;
            let owner = compiled.facets.owner().map(str::to_owned);
            self.audience.while_held(kind, name, owner.as_deref(), |holders| {
                let mut state = self.state.lock();
                match state.inputs.is_same(&inputs) {
                    true => state.kept.keep(scope, (kind, name), compiled, holders),
                    false => newer = Some(state.inputs.clone()),
                }
            });
            match newer {
                None => return outcome,
                Some(newer) => inputs = newer,
            }
        }
        // Changes come faster than this compiles: then they wait for once.
        let mut outcome = None;
        self.audience.while_held(kind, name, scope.instance.as_deref(), |holders| {
            let mut state = self.state.lock();
            let compiled = compile(&state.inputs.clone(), scope, kind, name);
            outcome = Some((compiled.facets.clone(), compiled.outcome.clone()));
            state.kept.keep(scope, (kind, name), compiled, holders);
        });
        outcome.unwrap_or_else(|| {
            let Fresh { outcome, facets, .. } = compile(&inputs, scope, kind, name);
            (facets, outcome)
        })
    }

    /// Puts a newer world in the place of the one that there is. From now on clients see it; who has to compare is found out
    /// afterwards, by [`Compiled::settle`].
    pub fn advance(
        &self,
        world: Arc<World>,
        roots_pem: Arc<str>,
        revoked: Arc<Revoked>,
        change: &Change,
    ) -> Stale {
        let mut state = self.state.lock();
        state.inputs = Inputs { world, roots_pem, revoked };
        let places = state.kept.concerned(change);
        Stale(places.into_iter().filter_map(|place| state.kept.forget(place)).collect())
    }

    /// Compiles anew what somebody holds, and marks those who see something else than before.
    pub fn settle(&self, generation: u64, stale: Stale, change: &Change) {
        let looked_into = stale.0.iter().map(|(_, before)| before.len()).sum::<usize>() <= MOST_LOOKED_INTO;
        // What a client has of a facet, else only its own registration says.
        let regrouped = change.wide.contains(&Wide::Sidecars);
        let is_other = |(kind, name): &Name, before: &Variant| {
            if regrouped && before.facets.by_sidecar() {
                return true;
            }
            let (facets, outcome) = self.look_anew(&before.scope, *kind, name);
            // With other facets others may see something else than this one does.
            facets != before.facets || !outcome.is_same(&before.outcome)
        };
        let differs = |name: &Name, before: &[Variant]| {
            self.audience.holds(name.0, &name.1) && before.iter().any(|variant| is_other(name, variant))
        };
        let changed = stale.0.into_iter().filter(|((name, _), before)| !looked_into || differs(name, before));
        let (own, shared): (Vec<VariantKey>, Vec<VariantKey>) =
            changed.map(|(key, _)| key).partition(|(_, own)| own.is_some());
        self.audience.changed(
            generation,
            shared.iter().map(|(name, _)| name),
            own.iter().filter_map(|(name, own)| Some((name, own.as_deref()?))),
            change.instances.iter().map(String::as_str),
        );
    }

    /// A client beside an instance goes: what nobody else sees is forgotten.
    pub fn leave(&self, seat: &Seat, instance: &str) {
        self.audience.while_alone(seat, || {
            let mut state = self.state.lock();
            for place in state.kept.of_owner(instance) {
                state.kept.forget(place);
            }
        });
    }

    /// Nobody holds a name any more.
    pub fn let_go(&self, kind: ResourceKind, name: &str) {
        self.audience.unless_held(kind, name, || {
            let mut state = self.state.lock();
            for place in state.kept.of_name(kind, name) {
                state.kept.forget(place);
            }
        });
    }

    /// How many names are kept.
    pub fn kept(&self) -> usize {
        self.state.lock().kept.len()
    }

    /// For how many instances something is kept that only their clients see.
    #[cfg(test)]
    pub(super) fn owners(&self) -> usize {
        self.state.lock().kept.owners()
    }

    /// What a foreign client does not enforce of the rules behind what it is sent: an Envoy is sent everything, a gRPC client
    /// what it asked for.
    pub fn gaps(&self, scope: &Scope, asked: &BTreeSet<(ResourceKind, String)>) -> BTreeSet<Gap> {
        let mut gaps = BTreeSet::new();
        let mut collect = |kind, name: &str| gaps.extend(self.look(scope, kind, name).gaps.iter().cloned());
        match scope.kind {
            ClientKind::Outrigger => {}
            ClientKind::Grpc => asked.iter().for_each(|(kind, name)| collect(*kind, name)),
            ClientKind::Envoy => {
                let world = self.world();
                let lens = Lens::new(&world, scope);
                for name in self.wildcard_names(scope, ResourceKind::Cluster).iter() {
                    collect(ResourceKind::Cluster, name);
                }
                for port in outbound::envoy_ports(&lens) {
                    collect(ResourceKind::Routes, &port.to_string());
                }
                gaps.extend(outbound::envoy_gaps(&lens));
            }
        }
        gaps
    }

    /// The names of all resources of a kind that a wildcard subscription of a client gets.
    pub fn wildcard_names(&self, scope: &Scope, kind: ResourceKind) -> Arc<[Arc<str>]> {
        self.look(scope, kind, WILDCARD).names
    }

    /// All resources of a kind that a wildcard subscription of a client gets.
    #[cfg(test)]
    pub(super) fn wildcard(&self, scope: &Scope, kind: ResourceKind) -> Vec<Arc<Versioned>> {
        self.wildcard_names(scope, kind).iter().filter_map(|name| self.resource(scope, kind, name)).collect()
    }
}

/// What was compiled, and what was looked at for it.
struct Fresh {
    outcome: Outcome,
    facts: BTreeSet<Fact>,
    facets: Facets,
}

fn compile(inputs: &Inputs, scope: &Scope, kind: ResourceKind, name: &Arc<str>) -> Fresh {
    let lens = Lens::new(&inputs.world, scope);
    let mut outcome = Outcome::default();
    if **name == *WILDCARD {
        outcome.names = listed(&lens, kind).into_iter().map(Arc::from).collect();
    } else if let Some(mut resource) = resource(inputs, &lens, kind, name) {
        let fitted = foreign::fit(&mut resource, &lens);
        outcome.resource = fitted.sent.then(|| Arc::new(Versioned::named(name, resource, lens.kind())));
        outcome.version = outcome.resource.as_ref().map(|versioned| versioned.version);
        if !fitted.gaps.is_empty() {
            outcome.gaps = fitted.gaps.into();
        }
    }
    let (facts, facets) = lens.looked_at();
    Fresh { outcome, facts, facets }
}

fn resource(inputs: &Inputs, lens: &Lens<'_>, kind: ResourceKind, name: &str) -> Option<Resource> {
    Some(match kind {
        ResourceKind::Listener => Resource::Listener(match any_host::port_of(lens, name) {
            Some(port) => any_host::listener(lens, name, port)?,
            None => inbound::compile(lens, name)
                .or_else(|| elsewhere::through(lens, name))
                .or_else(|| outbound::compile(lens, name))?,
        }),
        ResourceKind::Routes => {
            let routes = match any_host::port_of(lens, name) {
                Some(port) => any_host::routes(lens, name, port),
                None => route::compile(lens, name)?,
            };
            Resource::Routes(external::by_name(lens, routes))
        }
        ResourceKind::Cluster => Resource::Cluster(cluster::compile(lens, name)?),
        ResourceKind::Endpoints => Resource::Endpoints(match described::of(lens, name) {
            Some(of) => described::addressed(lens, name, of)?,
            None => endpoints::compile(lens, name)?,
        }),
        ResourceKind::Destination => Resource::Destination(destination::compile(lens, name)?),
        ResourceKind::Host => Resource::Host(host::compile(lens, name)?),
        ResourceKind::Secret if name == "ROOTCA" => {
            lens.saw(Fact::Trust);
            Resource::Secret(TrustBundleSecret {
                name: name.to_owned(),
                roots_pem: inputs.roots_pem.to_string(),
                revoked: inputs.revoked.entries().collect(),
            })
        }
        // The server makes barriers itself: they say how far it is.
        ResourceKind::Secret | ResourceKind::Barrier => return None,
    })
}

/// The resource of a name as a client sees it in a world, with nothing kept; what is no matter of the world (trust) is not there.
pub fn once(world: &Arc<World>, scope: &Scope, kind: ResourceKind, name: &str) -> Option<Resource> {
    let inputs = Inputs { world: world.clone(), roots_pem: "".into(), revoked: Arc::default() };
    compile(&inputs, scope, kind, &name.into()).outcome.resource?.resource()
}

/// The names of a wildcard.
fn listed(lens: &Lens<'_>, kind: ResourceKind) -> Vec<String> {
    match (lens.kind(), kind) {
        (ClientKind::Envoy, ResourceKind::Listener) => outbound::envoy_names(lens),
        (ClientKind::Envoy, ResourceKind::Cluster) => elsewhere::envoy_clusters(lens),
        (ClientKind::Outrigger, ResourceKind::Listener) => inbound::names_for(lens),
        (ClientKind::Outrigger, ResourceKind::Cluster) => {
            let own = lens.own().into_iter();
            own.flat_map(|own| ingress::ports(lens, own).into_iter().chain([ingress::OTHER_PORTS]))
                .map(names::inbound_cluster)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// The version of a resource, or the names of a wildcard, with nothing kept.
#[cfg(test)]
pub(super) fn fresh(
    world: &Arc<World>,
    roots_pem: &Arc<str>,
    revoked: &Arc<Revoked>,
    scope: &Scope,
    kind: ResourceKind,
    name: &str,
) -> Option<String> {
    let inputs = Inputs { world: world.clone(), roots_pem: roots_pem.clone(), revoked: revoked.clone() };
    let outcome = compile(&inputs, scope, kind, &name.into()).outcome;
    match name {
        WILDCARD => Some(format!("{:?}", outcome.names)),
        _ => outcome.version.map(|version| version.to_string()),
    }
}
