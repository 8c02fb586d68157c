//! One stream: tells what is wanted, validates responses, answers them.

use std::collections::HashSet;
use std::time::Duration;

use outrigger_model::resource::{Barrier, Invalid, Resource, ResourceKind};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::subscription::{Has, Told};
use super::{Event, Feed, Veto};
use crate::convert::{decode, wants_tls};
use crate::kind::{kind_of, type_url};
use crate::nack;
use crate::wire::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::wire::{core, rpc};

/// Why a stream ended, or that the whole client must.
pub(super) enum End {
    /// The consumer is gone.
    Consumer,
    /// The connection is.
    Stream(String),
}

/// A resource of a response that cannot be taken.
struct Refused {
    invalid: Invalid,
    version: String,
    wants_tls: bool,
}

/// The state of one stream.
pub(super) struct Conversation<'a> {
    pub(super) shared: &'a Feed,
    pub(super) has: &'a mut Has,
    pub(super) events: &'a mpsc::Sender<Event>,
    pub(super) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(super) told: Told,
    /// Goes into the first request.
    pub(super) node: Option<core::Node>,
    /// The barrier that waits to be in force.
    pub(super) barrier: Option<Waiting>,
}

/// A barrier that waits to be in force.
pub(super) struct Waiting {
    nonce: String,
    generation: u64,
    /// The response that it came with is not acknowledged yet: of what kind it is, and until when that may wait. What is in force by
    /// then is said with one answer to both.
    owed: Option<(ResourceKind, Instant)>,
}

/// What a response may wait for its acknowledgement when that may go along with its barrier's.
const PATIENCE: Duration = Duration::from_millis(10);

impl Conversation<'_> {
    async fn request(&mut self, mut request: DeltaDiscoveryRequest) -> Result<(), End> {
        request.node = self.node.take();
        let closed = |_| End::Stream("the control plane closed the stream".to_owned());
        self.requests.send(request).await.map_err(closed)
    }

    /// Tells what changed on our side: wishes, a barrier in force, refusals.
    pub(super) async fn tell(&mut self) -> Result<(), End> {
        let (requests, in_force, vetoes) = {
            let mut wanted = self.shared.wanted.lock();
            let dropped = std::mem::take(&mut wanted.dropped);
            let requests = self.told.tell(&wanted.asks, &dropped, self.has);
            (requests, wanted.in_force, std::mem::take(&mut wanted.vetoes))
        };
        for veto in &vetoes {
            // So that a new stream brings it, and the refusal, again.
            if let Some(version) = self.has.get_mut(&veto.kind).and_then(|has| has.get_mut(&veto.name)) {
                version.clear();
            }
        }
        for request in requests {
            self.request(request).await?;
        }
        for veto in vetoes {
            self.veto(veto).await?;
        }
        if let Some(barrier) = self.barrier.take_if(|barrier| in_force >= Some(barrier.generation)) {
            self.answer(type_url(ResourceKind::Barrier), barrier.nonce, None).await?;
        }
        Ok(())
    }

    /// Until when a response may wait for its acknowledgement.
    pub(super) fn owes(&self) -> Option<Instant> {
        Some(self.barrier.as_ref()?.owed?.1)
    }

    /// Acknowledges what waits for it.
    pub(super) async fn acknowledge(&mut self) -> Result<(), End> {
        let owed =
            self.barrier.as_mut().and_then(|barrier| Some((barrier.owed.take()?.0, barrier.nonce.clone())));
        match owed {
            Some((kind, nonce)) => self.answer(type_url(kind), nonce, None).await,
            None => Ok(()),
        }
    }

    async fn veto(&mut self, veto: Veto) -> Result<(), End> {
        let Veto { kind, name, version, invalid } = veto;
        if !self.told.knows(kind) {
            return Ok(());
        }
        let entry = entry(kind, name, version, &invalid);
        self.answer(type_url(kind), String::new(), Some(nack::status(vec![entry]))).await
    }

    async fn answer(&mut self, type_url: &str, nonce: String, error: Option<rpc::Status>) -> Result<(), End> {
        self.request(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce,
            error_detail: error,
            ..Default::default()
        })
        .await
    }

    async fn event(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Consumer)
    }

    /// Delivers what is good in a response, then acknowledges it, naming what is not.
    pub(super) async fn take(&mut self, mut response: DeltaDiscoveryResponse) -> Result<(), End> {
        // What comes next may depend on it.
        self.acknowledge().await?;
        let Some(kind) = kind_of(&response.type_url).filter(|kind| self.told.knows(*kind)) else {
            let message = format!("nobody asked for type \"{}\"", response.type_url.escape_debug());
            tracing::debug!(message, "a response was refused");
            let status = rpc::Status { code: 3, message, ..Default::default() };
            return self.answer(&response.type_url, response.nonce, Some(status)).await;
        };
        let within = self.barrier_within(kind, &mut response.resources);
        let (upserts, refused) = self.sort(kind, response.resources);
        let has = self.has.entry(kind).or_default();
        for name in &response.removed_resources {
            has.remove(name);
        }
        // So that a new stream brings what is right again, also where it is the version before.
        for Refused { invalid, .. } in &refused {
            if let Some(version) = has.get_mut(&invalid.name) {
                version.clear();
            }
        }
        if kind != ResourceKind::Barrier {
            has.extend(upserts.iter().map(|(r, version)| (r.name().to_owned(), version.clone())));
        }
        let barrier = upserts.iter().find_map(|(resource, _)| match resource {
            Resource::Barrier(barrier) => Some(barrier.generation),
            _ => None,
        });
        let removed = response.removed_resources;
        let entries: Vec<_> = refused
            .iter()
            .map(|refused| {
                entry(kind, refused.invalid.name.clone(), refused.version.clone(), &refused.invalid)
            })
            .collect();
        self.event(Event::Update { kind, upserts, removed }).await?;
        for Refused { invalid, version, wants_tls } in refused {
            self.event(Event::Rejected { invalid, version, wants_tls }).await?;
        }
        if let Some((barrier, version)) = within {
            let owed = entries.is_empty().then(|| (kind, Instant::now() + PATIENCE));
            let (nonce, generation) = (response.nonce.clone(), barrier.generation);
            let (kind, upserts) = (ResourceKind::Barrier, vec![(Resource::Barrier(barrier), version)]);
            self.event(Event::Update { kind, upserts, removed: Vec::new() }).await?;
            self.barrier = Some(Waiting { nonce, generation, owed });
            if owed.is_some() {
                return self.tell().await;
            }
        }
        match barrier {
            Some(generation) if entries.is_empty() => {
                self.barrier = Some(Waiting { nonce: response.nonce, generation, owed: None });
                self.tell().await
            }
            _ => {
                let error = (!entries.is_empty()).then(|| nack::status(entries));
                self.answer(&response.type_url, response.nonce, error).await
            }
        }
    }

    /// The barrier within a response of another kind: the last of its resources.
    fn barrier_within(
        &self,
        kind: ResourceKind,
        resources: &mut Vec<discovery::Resource>,
    ) -> Option<(Barrier, String)> {
        if kind == ResourceKind::Barrier || !self.told.knows(ResourceKind::Barrier) {
            return None;
        }
        let last = resources.last()?;
        let any = last.resource.as_ref().filter(|any| any.type_url == type_url(ResourceKind::Barrier))?;
        // One that cannot be read stays, and is refused as what does not belong there.
        let Ok(Resource::Barrier(barrier)) =
            checked(ResourceKind::Barrier, &last.name, &any.type_url, &any.value)
        else {
            return None;
        };
        resources.pop().map(|last| (barrier, last.version))
    }

    /// Validated resources, and what is wrong with the others; names that nobody wants any more are neither.
    fn sort(
        &self,
        kind: ResourceKind,
        resources: Vec<discovery::Resource>,
    ) -> (Vec<(Resource, String)>, Vec<Refused>) {
        let mut upserts = Vec::with_capacity(resources.len());
        let mut refused = Vec::new();
        // Of a name that occurs twice none is taken: which one was meant is anybody's guess, and the last good one stays.
        let mut seen = HashSet::new();
        let bodies = resources.iter().filter(|wire| wire.resource.is_some());
        let repeated: HashSet<String> =
            bodies.filter(|wire| !seen.insert(&wire.name)).map(|wire| wire.name.clone()).collect();
        for wire in resources {
            // Without a body it only prolongs the life of what was sent before.
            let Some(any) = wire.resource else { continue };
            if kind != ResourceKind::Barrier && !self.told.wants(kind, &wire.name) {
                continue;
            }
            let decoded = if repeated.contains(&wire.name) {
                Err(invalid(kind, &wire.name, "occurs more than once in one response"))
            } else {
                checked(kind, &wire.name, &any.type_url, &any.value)
            };
            match decoded {
                Ok(resource) => upserts.push((resource, wire.version)),
                Err(mut invalid) => {
                    // Under the name by which the control plane knows it.
                    invalid.name = wire.name;
                    invalid.kind = kind;
                    let wants_tls = kind == ResourceKind::Cluster && wants_tls(&any.value);
                    refused.push(Refused { invalid, version: wire.version, wants_tls });
                }
            }
        }
        (upserts, refused)
    }
}

fn checked(kind: ResourceKind, name: &str, type_url: &str, value: &[u8]) -> Result<Resource, Invalid> {
    if kind_of(type_url) != Some(kind) {
        let type_url = type_url.escape_debug();
        return Err(invalid(kind, name, format!("is a \"{type_url}\", but came as a {kind:?}")));
    }
    let resource = decode(type_url, value)?;
    if resource.name() != name {
        let other = resource.name().escape_debug();
        return Err(invalid(kind, name, format!("is named \"{other}\" inside; both names must be the same")));
    }
    Ok(resource)
}

fn invalid(kind: ResourceKind, name: &str, reason: impl Into<String>) -> Invalid {
    Invalid { kind, name: name.to_owned(), field: String::new(), reason: reason.into() }
}

fn entry(kind: ResourceKind, name: String, version: String, invalid: &Invalid) -> nack::Entry {
    nack::Entry {
        type_url: type_url(kind).to_owned(),
        name,
        version,
        field: invalid.field.clone(),
        reason: invalid.reason.clone(),
    }
}
