//! `outrigger.v1.GlobalLimits`, an HTTP filter of ours.

use std::time::Duration;

use outrigger_model::global_limit::{Entry, EntryValue, GlobalLimit, GlobalLimits};
use outrigger_model::listener::HttpFilter;
use outrigger_model::rate_limit::MOST_LIMITS;
use outrigger_model::resource::Origin;
use prost::Message;

use super::flaw::{Decoded, Flaw, Under, each, flaw};
use super::rate_limit::{decode_by, decode_match, decode_origin, encode_by, encode_match};
use super::row::{Row, nothing};
use crate::kind::ClientKind;
use crate::wire::own::{self, entry::Value};
use crate::wire::protobuf::Any;

const GLOBAL_LIMIT: &str = "outrigger.global_limit";
const URL: &str = "type.googleapis.com/outrigger.v1.GlobalLimits";
/// Of a wait for an answer; a client waits as long.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) const ROW: Row = Row {
    is: |config| config.type_url == URL,
    read: |reading| decode(reading.config).map(|limits| Some(HttpFilter::GlobalLimit(Box::new(limits)))),
    reads_disabled: false,
    write: |filter, out| match filter {
        // An Envoy refuses types that it does not know.
        HttpFilter::GlobalLimit(limits) if out.kind != ClientKind::Envoy => {
            out.push(GLOBAL_LIMIT, encode(limits));
        }
        _ => {}
    },
    origins: nothing,
};

fn encode(limits: &GlobalLimits) -> Any {
    let wire = own::GlobalLimits {
        cluster: limits.cluster.clone(),
        authority: limits.authority.clone(),
        domain: limits.domain.clone(),
        // A minute at most.
        timeout_millis: limits.timeout.as_millis() as u64,
        status_on_error: limits.status_on_error.map_or(0, u32::from),
        limits: limits.limits.iter().map(encode_one).collect(),
    };
    Any { type_url: URL.to_owned(), value: wire.encode_to_vec() }
}

fn encode_one(limit: &GlobalLimit) -> own::GlobalLimit {
    let origin = |part: fn(&Origin) -> &String| limit.origin.as_ref().map(part).cloned().unwrap_or_default();
    own::GlobalLimit {
        name: limit.name.clone(),
        r#match: encode_match(&limit.matches),
        descriptor: limit.descriptor.iter().map(encode_entry).collect(),
        origin_kind: origin(|o| &o.kind),
        origin_namespace: origin(|o| &o.namespace),
        origin_name: origin(|o| &o.name),
    }
}

fn encode_entry(entry: &Entry) -> own::Entry {
    let value = match &entry.value {
        EntryValue::Of(by) => Value::Of(encode_by(by)),
        EntryValue::Text(text) => Value::Text(text.clone()),
    };
    own::Entry { key: entry.key.clone(), value: Some(value) }
}

fn decode(config: &Any) -> Decoded<GlobalLimits> {
    let wire = own::GlobalLimits::decode(config.value.as_slice())
        .map_err(|error| Flaw::new(format!("malformed protobuf: {error}")))?;
    if wire.cluster.is_empty() {
        return flaw("cluster", "is required");
    }
    let timeout = Duration::from_millis(wire.timeout_millis);
    if timeout.is_zero() || timeout > LONGEST {
        return flaw("timeout_millis", "must be from 1 to 60000");
    }
    let status_on_error = match wire.status_on_error {
        0 => None,
        status => match u16::try_from(status).ok().filter(|status| (200..=599).contains(status)) {
            Some(status) => Some(status),
            None => return flaw("status_on_error", "must be from 200 to 599"),
        },
    };
    if !(1..=MOST_LIMITS).contains(&wire.limits.len()) {
        return flaw("limits", format!("must be 1 to {MOST_LIMITS}"));
    }
    Ok(GlobalLimits {
        cluster: wire.cluster,
        authority: wire.authority,
        domain: wire.domain,
        timeout,
        status_on_error,
        limits: each(&wire.limits, "limits", decode_one)?,
    })
}

fn decode_one(wire: &own::GlobalLimit) -> Decoded<GlobalLimit> {
    let limit = GlobalLimit {
        name: wire.name.clone(),
        matches: decode_match(&wire.r#match)?,
        descriptor: each(&wire.descriptor, "descriptor", decode_entry)?,
        origin: decode_origin([&wire.origin_kind, &wire.origin_namespace, &wire.origin_name]),
    };
    match limit.check() {
        Ok(()) => Ok(limit),
        Err((field, reason)) => flaw(field, reason),
    }
}

fn decode_entry(wire: &own::Entry) -> Decoded<Entry> {
    let value = match &wire.value {
        Some(Value::Of(by)) => EntryValue::Of(decode_by(by).under("of")?),
        Some(Value::Text(text)) => EntryValue::Text(text.clone()),
        None => return flaw("", "one of of and text is required"),
    };
    Ok(Entry { key: wire.key.clone(), value })
}
