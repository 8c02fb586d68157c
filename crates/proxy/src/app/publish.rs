//! Between the configuration feed and the workers: builds snapshots and swaps them in.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use outrigger_identity::{Revoked, TrustBundle};
use outrigger_model::listener::Direction;
use outrigger_model::resource::{Invalid, Resource, ResourceKind, TrustBundleSecret};

use crate::bootstrap::OutboundPolicy;
use crate::config_feed::Publish;
use crate::config_feed::state::ResourceKey;
use crate::process::Process;
use crate::runtime::build::{Builder, InForce, Zones};

/// Swaps snapshots into `Process`.
pub struct Publisher {
    process: Arc<Process>,
    builder: Builder,
    trust_domain: String,
    reachable: Reachable,
}

/// Whether peers are meant to reach the application, and whether that was found wanting.
pub struct Reachable {
    /// The bootstrap brings connections to the application.
    wanted: bool,
    /// Who we are, for people.
    who: String,
    warned: bool,
}

impl Reachable {
    /// `who` names instance and identity.
    pub fn new(wanted: bool, who: String) -> Self {
        Self { wanted, who, warned: false }
    }

    /// What to warn of: once, and again after it was well in between.
    fn look(&mut self, in_force: &[Arc<Resource>]) -> Option<String> {
        let inbound = |resource: &Arc<Resource>| matches!(&**resource, Resource::Listener(listener) if listener.direction == Direction::Inbound);
        let missing = self.wanted && !in_force.iter().any(inbound);
        let news = missing && !self.warned;
        self.warned = missing;
        news.then(|| {
            format!(
                "the control plane has no inbound listener for {}: it is not registered with that identity, or without ports; \
                 until it is, nobody reaches the application",
                self.who
            )
        })
    }
}

impl Publisher {
    /// `trust_domain` is whose roots arrive.
    pub fn new(process: Arc<Process>, trust_domain: String, reachable: Reachable, zones: Zones) -> Self {
        let builder = match process.outbound_policy {
            OutboundPolicy::RegistryOnly => Builder::registry_only(),
            OutboundPolicy::AllowAny => Builder::default(),
        };
        let builder = builder.with_zones(zones);
        Self { process, builder, trust_domain, reachable }
    }
}

impl Publish for Publisher {
    fn publish(
        &mut self,
        generation: u64,
        in_force: &[Arc<Resource>],
        absent: &BTreeSet<ResourceKey>,
    ) -> Vec<(ResourceKey, Invalid)> {
        // Before the first whole generation something is always missing.
        if generation > 0
            && let Some(text) = self.reachable.look(in_force)
        {
            tracing::warn!("{text}");
        }
        let by_key: InForce<'_> = in_force.iter().map(|r| ((r.kind(), r.name()), r)).collect();
        let before = self.process.snapshot.load_full();
        let (snapshot, invalid) = self.builder.build(&before, &by_key, absent);
        self.process.swap(snapshot);
        invalid.into_iter().map(|invalid| ((invalid.kind, invalid.name.clone()), invalid)).collect()
    }

    fn usage(&self) -> Vec<(ResourceKey, Option<Duration>)> {
        let snapshot = self.process.snapshot.load();
        let destinations = snapshot
            .destinations()
            .map(|(name, known)| ((ResourceKind::Destination, name.to_owned()), known.usage.idle()));
        let hosts =
            snapshot.hosts().map(|(name, known)| ((ResourceKind::Host, name.to_owned()), known.usage.idle()));
        destinations.chain(hosts).collect()
    }

    fn retire(&self, (kind, name): &ResourceKey) -> bool {
        let snapshot = self.process.snapshot.load();
        let usage = match kind {
            ResourceKind::Host => snapshot.host(name).map(|known| &known.usage),
            _ => snapshot.destination(name).map(|known| &known.usage),
        };
        usage.is_none_or(|usage| usage.close())
    }

    fn trust(&mut self, secret: &TrustBundleSecret) {
        match TrustBundle::from_pem(&self.trust_domain, &secret.roots_pem) {
            Ok(bundle) => {
                let bundle = bundle.with_revoked(Arc::new(revoked(secret)));
                let kept = self.process.credentials.load();
                if kept.bundle.fingerprints() != bundle.fingerprints()
                    || kept.bundle.revoked() != bundle.revoked()
                {
                    self.process.credentials.replace_bundle(Arc::new(bundle));
                    tracing::info!("the trust bundle has changed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the pushed trust bundle cannot be used; the one in use stays")
            }
        }
    }

    fn revoke(&mut self, secret: &TrustBundleSecret) {
        // The roots of then may be older than those that came with our certificate; who was revoked then is still.
        let bundle = TrustBundle::clone(&self.process.credentials.load().bundle);
        let then = TrustBundle::empty().with_revoked(Arc::new(revoked(secret)));
        self.process.credentials.replace_bundle(Arc::new(bundle.union(&then)));
    }
}

/// What cannot be read is left out: one entry of a newer control plane must not let all others in.
fn revoked(secret: &TrustBundleSecret) -> Revoked {
    let read = |entry: &String| {
        let parsed = outrigger_identity::Revocation::parse(entry);
        parsed
            .inspect_err(|reason| tracing::warn!(reason, "a revocation cannot be read and is not in force"))
            .ok()
    };
    secret.revoked.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use outrigger_model::listener::Listener;

    use super::*;

    fn listener(direction: Direction) -> Arc<Resource> {
        let (addresses, chains) = (Vec::new(), Vec::new());
        Arc::new(Resource::Listener(Listener { addresses, chains, ..Listener::new("l", direction) }))
    }

    #[test]
    fn an_application_that_nobody_reaches_is_warned_of_once_each_time() {
        let mut wanted = Reachable::new(true, "instance \"web-1\"".into());
        let said = wanted.look(&[listener(Direction::Outbound)]).unwrap();
        assert!(said.contains("instance \"web-1\": it is not registered"), "{said}");
        assert_eq!(wanted.look(&[]), None);
        assert_eq!(wanted.look(&[listener(Direction::Inbound)]), None);
        assert!(wanted.look(&[]).is_some(), "deregistered meanwhile");
        assert_eq!(Reachable::new(false, String::new()).look(&[]), None, "it only calls");
    }
}
