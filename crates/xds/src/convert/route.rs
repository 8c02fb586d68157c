//! Route configurations: virtual hosts, routes, matches, redirects, direct responses.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt::Display;

use outrigger_model::route::{PathMatch, Redirect, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost};

use super::flaw::{Decoded, Under, each, flaw};
use super::forward::{request_edits, response_edits};
use super::headers::Edits;
use super::per_filter::{self, PerFilter};
use super::value::{port, status};
use super::{cors, extension, forward, headers, hedge, matcher, metadata, mirror, note, retry, session};
use crate::kind::ClientKind;
use crate::wire::protobuf::Value;
use crate::wire::route::{
    self, DirectResponseAction, RedirectAction,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode as Code, SchemeRewriteSpecifier},
    route::Action,
    route_match::{ConnectMatcher, PathSpecifier},
};
use crate::wire::{any, boolean, core::DataSource, core::data_source::Specifier, uint};

/// Envoy's `max_direct_response_body_size_bytes` unless told otherwise.
const DIRECT_BODY_LIMIT: usize = 4096;

pub(super) fn encode(config: &RouteConfig, kind: ClientKind) -> route::RouteConfiguration {
    let longest_body = config
        .virtual_hosts
        .iter()
        .flat_map(|host| &host.routes)
        .map(|route| match &route.action {
            RouteAction::Direct { body, .. } => body.len(),
            _ => 0,
        })
        .max()
        .unwrap_or(0);
    route::RouteConfiguration {
        name: config.name.clone(),
        virtual_hosts: config.virtual_hosts.iter().map(|host| encode_host(host, kind)).collect(),
        max_direct_response_body_size_bytes: (longest_body > DIRECT_BODY_LIMIT)
            .then(|| uint(u32::try_from(longest_body).unwrap_or(u32::MAX)))
            .flatten(),
        ..Default::default()
    }
}

fn encode_host(host: &VirtualHost, kind: ClientKind) -> route::VirtualHost {
    let routes = host.routes.iter();
    route::VirtualHost {
        name: host.name.clone(),
        domains: host.domains.clone(),
        routes: routes
            .filter(|r| kind != ClientKind::Grpc || r.matches.path != PathMatch::Connect)
            .map(|r| encode_route(r, kind))
            .collect(),
        retry_policy: host.retry.as_ref().and_then(|r| retry::encode(r, kind)),
        ..Default::default()
    }
}

fn encode_route(route: &Route, kind: ClientKind) -> route::Route {
    let (request_headers_to_add, request_headers_to_remove) = headers::encode(&route.request_headers, kind);
    let (response_headers_to_add, response_headers_to_remove) =
        headers::encode(&route.response_headers, kind);
    let known = kind != ClientKind::Grpc;
    let fault = route.fault.as_ref().filter(|_| known);
    let fault = fault.map(|fault| (extension::FAULT.to_owned(), any(&retry::encode_fault(fault, kind))));
    let cors = route.cors.as_ref().filter(|_| known);
    let cors = cors.map(|cors| (extension::CORS.to_owned(), any(&cors::encode(cors))));
    let session = route.session.as_ref().filter(|_| known);
    let session = session.map(|session| (extension::SESSION.to_owned(), session::encode(session)));
    let authz = route.authz.iter().filter(|_| known);
    let authz = authz.map(|(name, authz)| (name.clone(), per_filter::encode_authz(authz)));
    let limits = route.local_limits.iter().filter(|_| known);
    let limits = limits.map(|(name, limit)| (name.clone(), per_filter::encode_limit(limit, kind)));
    let config = fault.into_iter().chain(cors).chain(session).chain(authz).chain(limits).collect();
    route::Route {
        name: route.name.clone(),
        r#match: Some(encode_match(&route.matches, kind)),
        metadata: metadata::ours(encode_ours(route, kind)),
        typed_per_filter_config: config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        action: Some(match &route.action {
            RouteAction::Forward(f) => {
                Action::Route(forward::encode(f, route.matches.path == PathMatch::Connect, kind))
            }
            RouteAction::Redirect(r) => Action::Redirect(encode_redirect(r)),
            RouteAction::Direct { status, body } => Action::DirectResponse(DirectResponseAction {
                status: u32::from(*status),
                body: (!body.is_empty()).then(|| DataSource {
                    specifier: Some(Specifier::InlineString(body.clone())),
                    ..Default::default()
                }),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// What Envoy's message cannot say.
fn encode_ours(route: &Route, kind: ClientKind) -> impl Iterator<Item = (String, Value)> {
    let origin = route.origin.as_ref().map(|origin| ("origin".to_owned(), metadata::origin_value(origin)));
    let hedge = match &route.action {
        RouteAction::Forward(forward) if kind == ClientKind::Outrigger => forward.hedge.as_ref(),
        _ => None,
    };
    let session = route.session.as_ref().and_then(|session| session::encode_ours(session, kind));
    let session = session.map(|session| ("session".to_owned(), session));
    origin
        .into_iter()
        .chain(hedge.map(|hedge| ("hedge".to_owned(), hedge::encode_ours(hedge))))
        .chain(session)
}

pub(super) fn encode_match(matches: &RouteMatch, kind: ClientKind) -> route::RouteMatch {
    route::RouteMatch {
        case_sensitive: if matches.ignore_case { boolean(false) } else { None },
        headers: matches.headers.iter().map(|h| matcher::encode_header(h, kind)).collect(),
        query_parameters: matches.query.iter().map(matcher::encode_query).collect(),
        cookies: matches.cookies.iter().map(matcher::encode_cookie).collect(),
        path_specifier: Some(match &matches.path {
            PathMatch::Exact(s) => PathSpecifier::Path(s.clone()),
            PathMatch::Prefix(s) => PathSpecifier::Prefix(s.clone()),
            PathMatch::Segments(s) if kind == ClientKind::Grpc => {
                PathSpecifier::SafeRegex(matcher::encode_regex(&format!("{}(/.*)?", matcher::escape(s))))
            }
            PathMatch::Segments(s) => PathSpecifier::PathSeparatedPrefix(s.clone()),
            PathMatch::Regex(s) => PathSpecifier::SafeRegex(matcher::encode_regex(s)),
            PathMatch::Connect => PathSpecifier::ConnectMatcher(ConnectMatcher {}),
        }),
        ..Default::default()
    }
}

fn encode_redirect(redirect: &Redirect) -> RedirectAction {
    let path = redirect.path.clone().map(PathRewriteSpecifier::PathRedirect);
    let regex = redirect.regex.as_ref().map(forward::encode_substitution);
    RedirectAction {
        host_redirect: redirect.authority.clone().unwrap_or_default(),
        port_redirect: redirect.port.map_or(0, u32::from),
        response_code: match redirect.status {
            302 => Code::Found,
            303 => Code::SeeOther,
            307 => Code::TemporaryRedirect,
            308 => Code::PermanentRedirect,
            _ => Code::MovedPermanently,
        } as i32,
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path
            .or(redirect.prefix.clone().map(PathRewriteSpecifier::PrefixRewrite))
            .or_else(|| regex.map(PathRewriteSpecifier::RegexRewrite)),
        strip_query: redirect.strip_query,
    }
}

/// The name may be empty here: a configuration in place needs none.
pub(super) fn decode(wire: &route::RouteConfiguration) -> Decoded<RouteConfig> {
    note!(wire, ignore_port_in_host_matching, ignore_path_parameters_in_path_matching,);
    if wire.vhds.is_some() {
        return flaw("vhds", "is not supported");
    }
    let above = per_filter::decode(&wire.typed_per_filter_config, &wire.name)?;
    let edits = Edits::decode(
        [&wire.request_headers_to_add, &wire.response_headers_to_add],
        [&wire.request_headers_to_remove, &wire.response_headers_to_remove],
    )?;
    let widest_first = wire.most_specific_header_mutations_wins;
    let of_host =
        |host: &route::VirtualHost| decode_host(host, [&wire.name, &host.name], &above, &edits, widest_first);
    let mut virtual_hosts = each(&wire.virtual_hosts, "virtual_hosts", of_host)?;
    let mirrors = mirror::decode(&wire.request_mirror_policies)?;
    mirror::inherit(virtual_hosts.iter_mut().flat_map(|host| &mut host.routes), &mirrors);
    let mut seen = HashSet::new();
    for (i, host) in virtual_hosts.iter().enumerate() {
        for (j, domain) in host.domains.iter().enumerate() {
            if !seen.insert(domain.to_ascii_lowercase()) {
                return flaw(
                    format_args!("virtual_hosts[{i}].domains[{j}]"),
                    format!(
                        "\"{domain}\" occurs more than once; a domain may occur once per route configuration"
                    ),
                );
            }
        }
    }
    Ok(RouteConfig { name: wire.name.clone(), virtual_hosts })
}

fn decode_host(
    wire: &route::VirtualHost,
    [of, name]: [&str; 2],
    config: &PerFilter,
    edits: &Edits,
    widest_first: bool,
) -> Decoded<VirtualHost> {
    note!(
        wire,
        rate_limits,
        retry_policy_typed_config,
        hedge_policy,
        virtual_clusters,
        include_request_attempt_count,
        include_attempt_count_in_response,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
    );
    if wire.matcher.is_some() {
        return flaw("matcher", "is not supported; use routes");
    }
    if wire.require_tls != 0 {
        return flaw("require_tls", "is not supported");
    }
    if wire.name.is_empty() {
        return flaw("name", "must not be empty");
    }
    if wire.domains.is_empty() {
        return flaw("domains", "must not be empty");
    }
    let above = per_filter::decode(&wire.typed_per_filter_config, &format_args!("{of}|{name}"))?;
    let at = Cell::new(0);
    let mut routes = each(&wire.routes, "routes", |route| {
        let at = at.replace(at.get() + 1);
        decode_route(route, [config, &above], &format_args!("{of}|{name}|{at}"))
    })?;
    mirror::inherit(&mut routes, &mirror::decode(&wire.request_mirror_policies)?);
    let own = Edits::decode(
        [&wire.request_headers_to_add, &wire.response_headers_to_add],
        [&wire.request_headers_to_remove, &wire.response_headers_to_remove],
    )?;
    routes.iter_mut().for_each(|route| headers::inherit(route, [&own, edits], widest_first));
    Ok(VirtualHost {
        name: wire.name.clone(),
        domains: each(&wire.domains, "domains", |domain| decode_domain(domain))?,
        routes,
        retry: wire.retry_policy.as_ref().map(retry::decode).transpose().under("retry_policy")?,
    })
}

fn decode_domain(domain: &str) -> Decoded<String> {
    let stars = domain.bytes().filter(|b| *b == b'*').count();
    let at_an_end = domain.starts_with('*') || domain.ends_with('*');
    let plain = domain.bytes().all(|b| b.is_ascii_graphic());
    if domain.is_empty() || !plain || stars > 1 || (stars == 1 && !at_an_end) {
        return flaw(
            "",
            format!("\"{}\" is no host, host:port, *.suffix, prefix.* or *", domain.escape_debug()),
        );
    }
    Ok(domain.to_owned())
}

/// `above` are the route configuration and the virtual host.
fn decode_route(wire: &route::Route, above: [&PerFilter; 2], place: &dyn Display) -> Decoded<Route> {
    note!(wire, tracing, per_request_buffer_limit_bytes, request_body_buffer_limit);
    let Some(matches) = &wire.r#match else { return flaw("match", "is required") };
    let action = match &wire.action {
        Some(Action::Route(r)) => {
            let mut forward = forward::decode(r).under("route")?;
            if let Some(hedge) = hedge::decode_ours(wire.metadata.as_ref())? {
                forward.hedge = Some(Box::new(hedge));
            }
            RouteAction::Forward(forward)
        }
        Some(Action::Redirect(r)) => RouteAction::Redirect(decode_redirect(r).under("redirect")?),
        Some(Action::DirectResponse(r)) => decode_direct(r).under("direct_response")?,
        Some(Action::FilterAction(_)) => return flaw("filter_action", "is not supported"),
        Some(Action::NonForwardingAction(_)) => return flaw("non_forwarding_action", "is not supported"),
        None => return flaw("route", "one of route, redirect and direct_response is required"),
    };
    let filters = per_filter::decode(&wire.typed_per_filter_config, place)?;
    let cors = cors::decode(&[&filters.cors, &above[1].cors, &above[0].cors]);
    let session =
        [&filters.session, &above[1].session, &above[0].session].into_iter().find_map(|said| said.clone());
    let mut session = session.flatten();
    if let Some(session) = &mut session {
        session::decode_ours(session, wire.metadata.as_ref())?;
    }
    Ok(Route {
        authz: filters.authz_within(&above),
        local_limits: filters.limits_within(&above),
        name: wire.name.clone(),
        matches: decode_match(matches).under("match")?,
        action,
        fault: filters.fault.or_else(|| above[1].fault.clone().or_else(|| above[0].fault.clone())),
        cors: cors.under(format_args!("typed_per_filter_config[{}]", extension::CORS))?,
        session,
        request_headers: request_edits(&wire.request_headers_to_add, &wire.request_headers_to_remove)?,
        response_headers: response_edits(&wire.response_headers_to_add, &wire.response_headers_to_remove)?,
        origin: metadata::decode_origin(wire.metadata.as_ref())?,
    })
}

pub(super) fn decode_match(wire: &route::RouteMatch) -> Decoded<RouteMatch> {
    // Leaving out a condition would take requests that are not meant.
    for (field, given) in [
        ("runtime_fraction", wire.runtime_fraction.is_some()),
        ("grpc", wire.grpc.is_some()),
        ("tls_context", wire.tls_context.is_some()),
        ("dynamic_metadata", !wire.dynamic_metadata.is_empty()),
        ("filter_state", !wire.filter_state.is_empty()),
    ] {
        if given {
            return flaw(field, "is not supported");
        }
    }
    let path = match &wire.path_specifier {
        Some(PathSpecifier::Prefix(s)) => PathMatch::Prefix(s.clone()),
        Some(PathSpecifier::Path(s)) => PathMatch::Exact(s.clone()),
        Some(PathSpecifier::SafeRegex(r)) => PathMatch::Regex(matcher::decode_regex(r).under("safe_regex")?),
        Some(PathSpecifier::ConnectMatcher(_)) => PathMatch::Connect,
        Some(PathSpecifier::PathSeparatedPrefix(s)) => {
            if s.len() < 2 || s.ends_with('/') || s.contains(['?', '#']) {
                return flaw(
                    "path_separated_prefix",
                    format!("\"{s}\" must be longer than one character, without ?, # and a / at its end"),
                );
            }
            PathMatch::Segments(s.clone())
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => return flaw("path_match_policy", "is not supported"),
        None => {
            return flaw(
                "prefix",
                "one of prefix, path, safe_regex, path_separated_prefix and connect_matcher is required",
            );
        }
    };
    Ok(RouteMatch {
        path,
        ignore_case: wire.case_sensitive.is_some_and(|v| !v.value),
        headers: each(&wire.headers, "headers", matcher::decode_header)?.into_iter().flatten().collect(),
        query: each(&wire.query_parameters, "query_parameters", matcher::decode_query)?,
        cookies: each(&wire.cookies, "cookies", matcher::decode_cookie)?,
    })
}

fn decode_redirect(wire: &RedirectAction) -> Decoded<Redirect> {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let (mut path, mut prefix, mut regex) = (None, None, None);
    match &wire.path_rewrite_specifier {
        Some(PathRewriteSpecifier::PathRedirect(p)) => path = given(p),
        Some(PathRewriteSpecifier::PrefixRewrite(p)) => prefix = given(p),
        Some(PathRewriteSpecifier::RegexRewrite(wire)) => {
            regex = Some(forward::decode_substitution(wire).under("regex_rewrite")?);
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => return flaw("path_rewrite", "is not supported"),
        None => {}
    }
    Ok(Redirect {
        scheme: match &wire.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".to_owned()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => given(scheme),
            _ => None,
        },
        authority: given(&wire.host_redirect),
        port: Some(port(wire.port_redirect, "port_redirect")?).filter(|p| *p != 0),
        path,
        prefix,
        regex,
        strip_query: wire.strip_query,
        status: match Code::try_from(wire.response_code) {
            Ok(Code::MovedPermanently) => 301,
            Ok(Code::Found) => 302,
            Ok(Code::SeeOther) => 303,
            Ok(Code::TemporaryRedirect) => 307,
            Ok(Code::PermanentRedirect) => 308,
            Err(_) => return flaw("response_code", format!("{} is unknown", wire.response_code)),
        },
    })
}

fn decode_direct(wire: &DirectResponseAction) -> Decoded<RouteAction> {
    note!(wire, body_format);
    let status = status(wire.status, 200..=599, "status")?;
    let body = match wire.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        None => String::new(),
        Some(Specifier::InlineString(text)) => text.clone(),
        Some(Specifier::InlineBytes(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return flaw("body.inline_bytes", "must be UTF-8"),
        },
        Some(_) => return flaw("body", "only inline_string and inline_bytes are supported"),
    };
    Ok(RouteAction::Direct { status, body })
}
