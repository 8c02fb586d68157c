//! Edits of headers. Envoy reads `%` in a value as a command; in texts without any it is doubled on the wire.

use outrigger_model::ext_authz::FRAMING;
use outrigger_model::route::text::Edited;
use outrigger_model::route::{HeaderEdits, HeaderText, Route, RouteAction, Written};

use super::flaw::{Decoded, Flaw, each, flaw};
use super::left_out;
use crate::kind::ClientKind;
use crate::wire::core::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction as Append};

/// The fields that say which headers are added.
pub(super) const REQUEST: &str = "request_headers_to_add";
pub(super) const RESPONSE: &str = "response_headers_to_add";

/// What to add, what to remove.
pub(super) type WireEdits = (Vec<HeaderValueOption>, Vec<String>);

pub(super) fn encode(edits: &HeaderEdits, kind: ClientKind) -> WireEdits {
    // Envoy refuses the whole resource for edits of pseudo-headers or of Host.
    let allowed = |name: &str| {
        kind != ClientKind::Envoy || !(name.starts_with(':') || name.eq_ignore_ascii_case("host"))
    };
    let option = |append: Append, (name, value): &Written| HeaderValueOption {
        header: Some(HeaderValue { key: name.clone(), value: value.written(), ..Default::default() }),
        append_action: append as i32,
        keep_empty_value: value.plain() == Some(""),
        ..Default::default()
    };
    let lists = [
        (&edits.set, Append::OverwriteIfExistsOrAdd),
        (&edits.set_if_present, Append::OverwriteIfExists),
        (&edits.add_if_absent, Append::AddIfAbsent),
        (&edits.add, Append::AppendIfExistsOrAdd),
    ];
    let mut add = Vec::new();
    for (list, append) in lists {
        add.extend(list.iter().filter(|(name, _)| allowed(name)).map(|pair| option(append, pair)));
    }
    (add, edits.remove.iter().filter(|name| allowed(name)).cloned().collect())
}

pub(super) fn decode(
    add: &[HeaderValueOption],
    remove: &[String],
    add_field: &str,
    remove_field: &str,
) -> Decoded<HeaderEdits> {
    let edited = match add_field {
        RESPONSE => Edited::Response,
        _ => Edited::Request,
    };
    let mut edits = HeaderEdits {
        remove: each(remove, remove_field, |name| header_name(name))?,
        ..HeaderEdits::default()
    };
    for (name, value, append) in each(add, add_field, |wire| option(wire, edited))?.into_iter().flatten() {
        let list = match append {
            Append::AppendIfExistsOrAdd => &mut edits.add,
            Append::AddIfAbsent => &mut edits.add_if_absent,
            Append::OverwriteIfExistsOrAdd => &mut edits.set,
            Append::OverwriteIfExists => &mut edits.set_if_present,
        };
        list.push((name, value));
    }
    Ok(edits)
}

/// None where an empty value means that nothing is written, as in Envoy it does unless told otherwise.
#[allow(deprecated)] // `append` is what older control planes send
fn option(wire: &HeaderValueOption, edited: Edited) -> Decoded<Option<(String, HeaderText, Append)>> {
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
    let append = match (&wire.append, Append::try_from(wire.append_action)) {
        (Some(append), _) if append.value => Append::AppendIfExistsOrAdd,
        (Some(_), _) => Append::OverwriteIfExistsOrAdd,
        (None, Ok(append)) => append,
        (None, Err(_)) => return flaw("append_action", format!("{} is unknown", wire.append_action)),
    };
    if raw.is_empty() && !wire.keep_empty_value {
        return Ok(None);
    }
    let text = HeaderText::read(raw, edited).map_err(|why| Flaw::new(why).under("header.value"))?;
    if text.plain().is_none() {
        if matches!(name.as_str(), ":authority" | "host") {
            return flaw("header.value", "commands are not supported for the authority");
        }
        if wire.keep_empty_value {
            left_out("keep_empty_value of a header value with commands");
        }
    }
    Ok(Some((name, text, append)))
}

/// What a route configuration or a virtual host has for all its routes.
pub(super) struct Edits {
    request: HeaderEdits,
    response: HeaderEdits,
}

impl Edits {
    /// Of requests and of responses.
    pub(super) fn decode(add: [&[HeaderValueOption]; 2], remove: [&[String]; 2]) -> Decoded<Self> {
        Ok(Self {
            request: decode(add[0], remove[0], REQUEST, "request_headers_to_remove")?,
            response: decode(add[1], remove[1], RESPONSE, "response_headers_to_remove")?,
        })
    }
}

/// Adds what is said above a route, the nearest first. It comes after the route's own and has the last word, unless the route
/// configuration wants that of the most specific (`most_specific_header_mutations_wins`): then a cluster's share has it.
pub(super) fn inherit(route: &mut Route, above: [&Edits; 2], widest_first: bool) {
    if !widest_first {
        for edits in above {
            route.request_headers = std::mem::take(&mut route.request_headers).then(&edits.request);
            route.response_headers = std::mem::take(&mut route.response_headers).then(&edits.response);
        }
        return;
    }
    let [host, config] = above;
    let all = |own: &HeaderEdits, of: fn(&Edits) -> &HeaderEdits| of(config).clone().then(of(host)).then(own);
    route.request_headers = all(&route.request_headers, |edits| &edits.request);
    route.response_headers = all(&route.response_headers, |edits| &edits.response);
    if let RouteAction::Forward(forward) = &mut route.action {
        // A share's come first otherwise.
        for share in &mut forward.clusters {
            share.request_headers = route.request_headers.clone().then(&share.request_headers);
            share.response_headers = route.response_headers.clone().then(&share.response_headers);
        }
        (route.request_headers, route.response_headers) = Default::default();
    }
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

pub(super) fn header_name(name: &str) -> Decoded<String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !name.is_empty() && name.bytes().all(token) {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(Flaw::new(format!("\"{}\" is no header name that may be edited", name.escape_debug())))
    }
}

#[cfg(test)]
mod tests {
    use outrigger_model::route::{Forward, WeightedCluster};

    use super::*;

    fn add(name: &str, value: &str, append: Append) -> HeaderValueOption {
        let header = HeaderValue { key: name.into(), value: value.into(), ..Default::default() };
        HeaderValueOption { header: Some(header), append_action: append as i32, ..Default::default() }
    }

    fn one(edits: &[HeaderValueOption]) -> HeaderEdits {
        decode(edits, &[], "add", "remove").unwrap()
    }

    #[test]
    fn an_empty_value_writes_nothing_unless_it_is_to_be_kept() {
        let empty = add("x-a", "", Append::OverwriteIfExistsOrAdd);
        assert_eq!(one(std::slice::from_ref(&empty)), HeaderEdits::default());
        let kept = HeaderValueOption { keep_empty_value: true, ..empty };
        assert_eq!(one(&[kept]).set, [("x-a".to_owned(), "".into())]);
    }

    #[test]
    fn values_have_commands_and_what_is_none_here_is_refused_by_name() {
        let read = |value: &str, field: &str| {
            let option = add("x-a", value, Append::OverwriteIfExistsOrAdd);
            decode(&[option], &[], field, "remove")
        };
        let edits = read("%REQ(x-b?:path):9% 50%%", REQUEST).unwrap();
        let (wire, _) = encode(&edits, ClientKind::Envoy);
        assert_eq!(wire[0].header.as_ref().unwrap().value, "%REQ(x-b?:path):9% 50%%");
        assert!(edits.has_commands() && !read("50%%", REQUEST).unwrap().has_commands());
        assert!(read("%RESPONSE_CODE%", RESPONSE).is_ok());
        for (value, field, told) in [
            ("%RESPONSE_CODE%", REQUEST, "%RESPONSE_CODE% is for headers of responses"),
            ("%DYNAMIC_METADATA(a:b)%", RESPONSE, "%DYNAMIC_METADATA% is no command"),
            ("50%", REQUEST, "one by itself is %%"),
        ] {
            let flaw = read(value, field).unwrap_err();
            assert_eq!(flaw.field, format!("{field}[0].header.value"));
            assert!(flaw.reason.contains(told), "{}", flaw.reason);
        }
    }

    #[test]
    fn what_is_said_above_a_route_comes_after_it_unless_the_most_specific_is_to_win() {
        let by = |who: &str| {
            let both = [
                add("x-last", who, Append::OverwriteIfExistsOrAdd),
                add("x-all", who, Append::AppendIfExistsOrAdd),
                add("x-first", who, Append::AddIfAbsent),
            ];
            one(&both)
        };
        let above = |who: &str| Edits { request: by(who), response: by(who) };
        let inherited = |widest_first: bool| {
            let share = WeightedCluster { request_headers: by("share"), ..WeightedCluster::only("c") };
            let forward = Forward { clusters: vec![share], ..Forward::default() };
            let action = RouteAction::Forward(forward);
            let mut route = Route {
                action,
                request_headers: by("route"),
                response_headers: by("route"),
                ..Route::default()
            };
            inherit(&mut route, [&above("host"), &above("config")], widest_first);
            let RouteAction::Forward(forward) = route.action else { panic!("as it was") };
            let share = forward.clusters[0].request_headers.clone();
            let order = if widest_first {
                route.request_headers.then(&share)
            } else {
                share.then(&route.request_headers)
            };
            let values = |list: &[Written]| {
                list.iter().map(|(_, value)| value.written()).collect::<Vec<_>>().join(" ")
            };
            [values(&order.set), values(&order.add), values(&order.add_if_absent)]
        };
        assert_eq!(inherited(false), ["config", "share route host config", "share"]);
        assert_eq!(inherited(true), ["share", "config host route share", "config"]);
    }
}
