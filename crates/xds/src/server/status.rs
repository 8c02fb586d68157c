//! Answers of a client: who is told what about ACKs and NACKs, and which resources a NACK means.

use outrigger_model::resource::ResourceKind;

use super::subscription::{InFlight, Subscription};
use super::{ClientEvent, View};
use crate::nack;
use crate::wire::rpc;

/// The name of the one barrier.
pub(super) const BARRIER: &str = "barrier";

pub(super) fn acked(view: &dyn View, kind: ResourceKind, answered: InFlight) {
    for (name, version) in answered.items {
        if kind == ResourceKind::Barrier {
            if let Ok(generation) = version.parse() {
                view.report(ClientEvent::BarrierAcked { generation });
            }
        } else {
            view.report(ClientEvent::Acked { kind, name, version });
        }
    }
}

/// `singles_out`: a refused response of several is sent again one by one (delta only).
pub(super) fn nacked(
    view: &dyn View,
    kind: ResourceKind,
    subscription: &mut Subscription,
    answered: InFlight,
    status: &rpc::Status,
    singles_out: bool,
) {
    let entries = nack::entries(status);
    if answered.items.iter().any(|(name, _)| entries.iter().any(|e| e.name == *name)) {
        for (name, version) in answered.items {
            match entries.iter().find(|e| e.name == name) {
                Some(e) => {
                    let (field, reason) = (e.field.clone(), e.reason.clone());
                    view.report(ClientEvent::Nacked { kind, name, version, field, reason });
                }
                None => view.report(ClientEvent::Acked { kind, name, version }),
            }
        }
        return;
    }
    match answered.items.len() {
        0 => {
            tracing::debug!(?kind, message = %status.message, "a client refused a response without resources")
        }
        1 => report_all(view, kind, answered, &status.message),
        n if singles_out => {
            tracing::debug!(?kind, n, message = %status.message, "a client refused one of several: sent one by one");
            subscription.suspect(answered.items.into_iter().map(|(name, _)| name));
        }
        n => {
            let reason = format!("one of these {n}: {}", status.message);
            report_all(view, kind, answered, &reason);
        }
    }
}

/// Refusals after the ACK; those of versions that were replaced since are old news.
pub(super) fn vetoed(view: &dyn View, kind: ResourceKind, subscription: &Subscription, status: &rpc::Status) {
    for e in nack::entries(status) {
        if subscription.was_sent(&e.name, &e.version) {
            let nack::Entry { name, version, field, reason, .. } = e;
            view.report(ClientEvent::Nacked { kind, name, version, field, reason });
        }
    }
}

fn report_all(view: &dyn View, kind: ResourceKind, answered: InFlight, reason: &str) {
    for (name, version) in answered.items {
        let (field, reason) = (String::new(), reason.to_owned());
        view.report(ClientEvent::Nacked { kind, name, version, field, reason });
    }
}
