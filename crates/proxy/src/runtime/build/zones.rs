//! Zone-aware clusters of other control planes: where the client's peers run, and what share of requests that gives to each place.
//!
//! As an Envoy's `local_cluster`: the endpoints of the workload's own service are those of a cluster that the bootstrap names.

use std::borrow::Cow;

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::endpoint::zones::{Counts, Scope, counts, fail_in_panic, share};
use outrigger_model::endpoint::{EndpointSet, Locality};
use outrigger_model::resource::{Resource, ResourceKind};

use super::InForce;

/// What is known of the client.
#[derive(Debug, Default)]
pub struct Zones {
    local: Option<String>,
    place: Locality,
    peers: Counts,
    /// The peers are others than at the last build.
    moved: bool,
}

impl Zones {
    /// `local`: the cluster of its own service.
    pub fn new(local: Option<String>, place: Locality) -> Self {
        Self { local, place, ..Self::default() }
    }

    /// Looks where the peers are.
    pub(super) fn look(&mut self, in_force: &InForce<'_>) {
        let Some(local) = &self.local else { return };
        let peers = peers(local, in_force);
        self.moved = peers != self.peers;
        self.peers = peers;
    }

    /// Whether the endpoints of a cluster are to be shared anew, which was made from this configuration before.
    pub(super) fn share_anew(&self, config: &Cluster, before: Option<&Cluster>) -> bool {
        let changed = before.is_some_and(|before| before.zone_aware != config.zone_aware);
        changed || (self.moved && config.zone_aware.is_some())
    }

    /// Says of a cluster that is new, or made anew, what has no effect here.
    pub(super) fn warn_of(&self, config: &Cluster) {
        if config.zone_aware.is_some() && self.local.is_none() {
            tracing::warn!(
                cluster = config.name,
                "zone_aware_lb_config shares nothing among zones without local_cluster in the bootstrap"
            );
        }
    }

    /// The endpoints with the shares of their places, where these are the zones'.
    pub(super) fn shared<'s>(&self, config: &Cluster, set: &'s EndpointSet) -> Cow<'s, EndpointSet> {
        let Some(rule) = &config.zone_aware else { return Cow::Borrowed(set) };
        let mut set = set.clone();
        // As an Envoy, which goes by zones in place of the weights of places.
        set.localities.iter_mut().for_each(|place| place.weight = 0);
        if let Some(threshold) = rule.fail_below {
            fail_in_panic(&mut set.localities, threshold);
        }
        if self.local.is_some() {
            share(rule, &self.place, &self.peers, &mut set.localities, Scope::All);
        }
        Cow::Owned(set)
    }
}

fn find<'f>(in_force: &'f InForce<'_>, kind: ResourceKind, name: &str) -> Option<&'f Resource> {
    in_force.get(&(kind, name)).map(|resource| &***resource)
}

/// Where the endpoints of a cluster run.
fn peers(local: &str, in_force: &InForce<'_>) -> Counts {
    let Some(Resource::Cluster(config)) = find(in_force, ResourceKind::Cluster, local) else {
        return Counts::new();
    };
    if let Discovery::Static(set) = &config.discovery {
        return counts(&set.localities);
    }
    let Some(name) = config.endpoints_name() else { return Counts::new() };
    match find(in_force, ResourceKind::Endpoints, &name) {
        Some(Resource::Endpoints(set)) => counts(&set.localities),
        _ => Counts::new(),
    }
}
