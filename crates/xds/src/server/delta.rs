//! Delta ADS: requests into the engine, differences out of it.

use std::sync::Arc;

use outrigger_model::resource::ResourceKind;
use prost::bytes::BufMut;

use super::Version;
use super::engine::{Answer, Engine, Outgoing};
use super::subscription::Known;
use super::wired::{length, text};
use crate::wire::discovery;
use crate::{kind_of, type_url};

/// Takes one request.
///
/// # Errors
/// The status that ends the stream.
#[allow(clippy::result_large_err)] // tonic's own type
pub(super) fn take(
    engine: &mut Engine,
    request: &discovery::DeltaDiscoveryRequest,
) -> Result<(), tonic::Status> {
    let Some(kind) = kind_of(&request.type_url) else {
        tracing::debug!(
            type_url = request.type_url,
            "a client subscribes to a type that this mesh does not have"
        );
        return Ok(());
    };
    // A delta request is valid whatever its nonce: its subscriptions always count.
    if let Answer::Stale = engine.answer(kind, &request.response_nonce, request.error_detail.as_ref()) {
        tracing::debug!(?kind, nonce = request.response_nonce, "a client answers an older response");
    }
    let (more, less) = (&request.resource_names_subscribe, &request.resource_names_unsubscribe);
    engine.check_change(kind, more, less)?;
    let view = engine.view.clone();
    let first = !engine.subscription(kind).open;
    let subscription = engine.subscription(kind);
    subscription.open = true;
    if first {
        for (name, version) in &request.initial_resource_versions {
            let known = Known { version: Version::read(version), resource: None };
            subscription.sent.insert(name.as_str().into(), known);
        }
        // Legacy: a first request that names nothing means everything.
        let names_nothing = request.resource_names_subscribe.is_empty();
        if names_nothing && matches!(kind, ResourceKind::Listener | ResourceKind::Cluster) {
            subscription.wildcard = true;
        }
        subscription.answer = subscription.wildcard;
    }
    for name in &request.resource_names_subscribe {
        if name == "*" {
            subscription.answer |= !subscription.wildcard;
            subscription.wildcard = true;
            subscription.mark_all();
        } else if !subscription.subscribe(name) {
            // Asked again: the client has lost it, so it is sent again.
            subscription.sent.remove(name.as_str());
            subscription.absent.remove(name.as_str());
        }
    }
    for name in &request.resource_names_unsubscribe {
        if name == "*" {
            subscription.unsubscribe_all(&*view);
        } else {
            subscription.unsubscribe(name, &*view);
        }
    }
    Ok(())
}

/// Of a `DeltaDiscoveryResponse`.
const SYSTEM_VERSION_INFO: u32 = 1;
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED_RESOURCES: u32 = 6;

/// One response. Its resources are in the form that it has on the wire, so it is written around them.
pub(super) struct Response<'o> {
    outgoing: &'o Outgoing,
    generation: String,
}

impl<'o> Response<'o> {
    pub(super) fn new(outgoing: &'o Outgoing) -> Self {
        Self { outgoing, generation: outgoing.generation.to_string() }
    }

    fn removed(&self) -> impl Iterator<Item = &Arc<str>> {
        self.outgoing.difference.removed.iter().chain(&self.outgoing.difference.absent)
    }

    fn resources(&self) -> impl Iterator<Item = &[u8]> {
        let all = self.outgoing.difference.upserts.iter().chain(&self.outgoing.barrier);
        all.map(|versioned| versioned.wired().bytes())
    }

    pub(super) fn encoded_len(&self) -> usize {
        let resources: usize = self.resources().map(<[u8]>::len).sum();
        let removed: usize = self.removed().map(|name| length(REMOVED_RESOURCES, name.len())).sum();
        length(SYSTEM_VERSION_INFO, self.generation.len())
            + resources
            + length(TYPE_URL, type_url(self.outgoing.kind).len())
            + length(NONCE, self.outgoing.nonce.len())
            + removed
    }

    pub(super) fn encode(&self, into: &mut impl BufMut) {
        text(SYSTEM_VERSION_INFO, &self.generation, into);
        self.resources().for_each(|resource| into.put_slice(resource));
        text(TYPE_URL, type_url(self.outgoing.kind), into);
        text(NONCE, &self.outgoing.nonce, into);
        self.removed().for_each(|name| text(REMOVED_RESOURCES, name, into));
    }
}
