//! State-of-the-world ADS: requests into the engine, whole sets out of it.
//!
//! A set names everything that the client shall have. While additions are on their way, what is to be removed stays in the
//! set, so that nothing breaks before its replacement is there; the engine asks for removals in a response of their own.

use std::collections::BTreeSet;

use outrigger_model::resource::ResourceKind;
use xxhash_rust::xxh3::Xxh3;

use super::engine::{Answer, Engine, Outgoing};
use crate::wire::{discovery, protobuf};
use crate::{kind_of, type_url};

/// Takes one request.
///
/// # Errors
/// The status that ends the stream.
#[allow(clippy::result_large_err)] // tonic's own type
pub(super) fn take(engine: &mut Engine, request: &discovery::DiscoveryRequest) -> Result<(), tonic::Status> {
    let Some(kind) = kind_of(&request.type_url) else {
        tracing::debug!(
            type_url = request.type_url,
            "a client subscribes to a type that this mesh does not have"
        );
        return Ok(());
    };
    if let Answer::Stale = engine.answer(kind, &request.response_nonce, request.error_detail.as_ref()) {
        return Ok(());
    }
    let whole = matches!(kind, ResourceKind::Listener | ResourceKind::Cluster);
    let view = engine.view.clone();
    let subscription = engine.subscription(kind);
    let first = !subscription.open;
    subscription.open = true;
    let wanted: BTreeSet<&str> =
        request.resource_names.iter().map(String::as_str).filter(|name| *name != "*").collect();
    let asks_for_all = request.resource_names.iter().any(|name| name == "*")
        || (whole && request.resource_names.is_empty() && (first || subscription.wildcard));
    let known = engine.subscription(kind).names.clone();
    let known: BTreeSet<&str> = known.iter().map(AsRef::as_ref).collect();
    if known != wanted {
        let (more, less) = (wanted.difference(&known).copied(), known.difference(&wanted).copied());
        engine.check_names(kind, more, less)?;
    }
    let subscription = engine.subscription(kind);
    let new_names = !wanted.is_subset(&known);
    subscription.answer |=
        (first && (asks_for_all || !wanted.is_empty())) || asks_for_all != subscription.wildcard || new_names;
    for gone in known.difference(&wanted) {
        subscription.unsubscribe(gone, &*view);
    }
    if new_names {
        // A set of names is one question: what was absent is looked for again.
        subscription.absent.clear();
        subscription.mark_all();
    }
    if subscription.wildcard && !asks_for_all {
        subscription.unsubscribe_all(&*view);
    } else if asks_for_all && !subscription.wildcard {
        subscription.wildcard = true;
        subscription.mark_all();
    }
    for name in wanted.difference(&known) {
        subscription.subscribe(name);
    }
    Ok(())
}

/// One response; `None` where there is nothing that could be said in this form.
pub(super) fn response(engine: &mut Engine, outgoing: Outgoing) -> Option<discovery::DiscoveryResponse> {
    let kind = outgoing.kind;
    let whole = matches!(kind, ResourceKind::Listener | ResourceKind::Cluster);
    let subscription = engine.subscription(kind);
    let mut version = Xxh3::new();
    let mut resources = Vec::new();
    for (name, known) in &subscription.sent {
        let Some(versioned) = &known.resource else { continue };
        version.update(name.as_bytes());
        version.update(versioned.version.to_string().as_bytes());
        let value = versioned.wired().value().to_vec();
        resources.push(protobuf::Any { type_url: type_url(kind).to_owned(), value });
    }
    if resources.is_empty() && !whole {
        // An empty set of endpoints or routes says nothing in this form; the client waits for the names to appear.
        subscription.flight = None;
        return None;
    }
    Some(discovery::DiscoveryResponse {
        version_info: format!("{:016x}", version.digest()),
        resources,
        type_url: type_url(kind).to_owned(),
        nonce: outgoing.nonce,
        ..Default::default()
    })
}
