//! Delta ADS: requests into the engine, differences out of it.

use outrigger_model::resource::ResourceKind;

use super::engine::{Answer, Engine, Outgoing};
use super::subscription::Known;
use crate::wire::{discovery, protobuf};
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
            subscription.sent.insert(name.clone(), Known { version: version.clone(), resource: None });
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
            subscription.sent.remove(name);
            subscription.absent.remove(name);
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

/// One response.
pub(super) fn response(outgoing: Outgoing) -> discovery::DeltaDiscoveryResponse {
    let resources = outgoing.difference.upserts.iter().map(|versioned| {
        let encoded = versioned.encoded();
        discovery::Resource {
            name: versioned.name.clone(),
            version: versioned.version.clone(),
            resource: Some(protobuf::Any {
                type_url: encoded.type_url.to_owned(),
                value: encoded.value.clone(),
            }),
            ..Default::default()
        }
    });
    let mut removed = outgoing.difference.removed;
    removed.extend(outgoing.difference.absent);
    discovery::DeltaDiscoveryResponse {
        system_version_info: outgoing.generation.to_string(),
        resources: resources.collect(),
        type_url: type_url(outgoing.kind).to_owned(),
        removed_resources: removed,
        nonce: outgoing.nonce,
        ..Default::default()
    }
}
