//! Edits of headers. Envoy reads `%` in a value as a command; the model's values are literal, so it is doubled on the
//! wire.

use outrigger_model::ext_authz::FRAMING;
use outrigger_model::route::HeaderEdits;

use super::flaw::{Decoded, Flaw, each, flaw};
use super::left_out;
use crate::kind::ClientKind;
use crate::wire::core::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction as Append};

/// What to add, what to remove.
pub(super) type WireEdits = (Vec<HeaderValueOption>, Vec<String>);

pub(super) fn encode(edits: &HeaderEdits, kind: ClientKind) -> WireEdits {
    // Envoy refuses the whole resource for edits of pseudo-headers or of Host.
    let allowed = |name: &str| {
        kind != ClientKind::Envoy || !(name.starts_with(':') || name.eq_ignore_ascii_case("host"))
    };
    let option = |append: Append| {
        move |(name, value): &(String, String)| HeaderValueOption {
            header: Some(HeaderValue {
                key: name.clone(),
                value: value.replace('%', "%%"),
                ..Default::default()
            }),
            append_action: append as i32,
            keep_empty_value: value.is_empty(),
            ..Default::default()
        }
    };
    let set = edits.set.iter().filter(|(n, _)| allowed(n)).map(option(Append::OverwriteIfExistsOrAdd));
    let add = edits.add.iter().filter(|(n, _)| allowed(n)).map(option(Append::AppendIfExistsOrAdd));
    let remove = edits.remove.iter().filter(|n| allowed(n)).cloned().collect();
    (set.chain(add).collect(), remove)
}

pub(super) fn decode(
    add: &[HeaderValueOption],
    remove: &[String],
    add_field: &str,
    remove_field: &str,
) -> Decoded<HeaderEdits> {
    let mut edits = HeaderEdits {
        remove: each(remove, remove_field, |name| header_name(name))?,
        ..HeaderEdits::default()
    };
    for (name, value, replaces) in each(add, add_field, option)? {
        if replaces { &mut edits.set } else { &mut edits.add }.push((name, value));
    }
    Ok(edits)
}

#[allow(deprecated)] // `append` is what older control planes send
fn option(wire: &HeaderValueOption) -> Decoded<(String, String, bool)> {
    let Some(header) = &wire.header else { return flaw("header", "is required") };
    // The authority may be set, as it may be by a rewrite; other pseudo-headers may not.
    let name = match header.key.as_str() {
        ":authority" => Ok(header.key.clone()),
        key => header_name(key).map_err(|flaw| flaw.under("header.key")),
    }?;
    let raw = if header.raw_value.is_empty() {
        header.value.as_str()
    } else {
        match std::str::from_utf8(&header.raw_value) {
            Ok(text) => text,
            Err(_) => return flaw("header.raw_value", "must be UTF-8"),
        }
    };
    if raw.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
        return flaw("header.value", "must not have line breaks or NUL");
    }
    let replaces = match (&wire.append, Append::try_from(wire.append_action)) {
        (Some(append), _) => !append.value,
        (None, Ok(Append::AppendIfExistsOrAdd)) => false,
        (None, Ok(Append::OverwriteIfExistsOrAdd)) => true,
        (None, _) => {
            return flaw(
                "append_action",
                "only APPEND_IF_EXISTS_OR_ADD and OVERWRITE_IF_EXISTS_OR_ADD are supported",
            );
        }
    };
    Ok((name, literal(raw), replaces))
}

/// A header that is sent as it is written, in requests of our own.
pub(super) fn literal_pair(wire: &HeaderValue) -> Decoded<(String, String)> {
    let name = header_name(&wire.key).map_err(|flaw| flaw.under("key"))?;
    if FRAMING.contains(&name.as_str()) {
        return flaw("key", format!("{name} is not for others to set"));
    }
    if !wire.raw_value.is_empty() {
        return flaw("raw_value", "is not supported; use value");
    }
    let value = wire.value.trim_matches([' ', '\t']);
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return flaw("value", "must not have control characters");
    }
    Ok((name, value.to_owned()))
}

/// Undoes the doubling; commands (`%REQ(x)%`) stay as they are.
fn literal(value: &str) -> String {
    if value.replace("%%", "").contains('%') {
        left_out("header value commands");
    }
    value.replace("%%", "%")
}

fn header_name(name: &str) -> Decoded<String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.is_empty() && name.bytes().all(token) {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(Flaw::new(format!("\"{}\" is no header name that may be edited", name.escape_debug())))
    }
}
