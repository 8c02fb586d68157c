//! HTTP filters: a row for each, and what Envoy's messages say beside them.

use std::collections::BTreeMap;

use outrigger_model::listener::HttpFilter;
use outrigger_model::route::Fault;

use super::extension::{self, CORS, FAULT, ROUTER, SESSION, is};
use super::flaw::{Decoded, Under, flaw};
use super::metadata::map;
use super::row::{Reading, Row, Writing};
use super::{
    concurrency, ext_authz, global_limit, jwt, left_out, local_limit, rate_limit, rbac, retry, session,
};
use crate::kind::ClientKind;
use crate::wire::any;
use crate::wire::core::Metadata;
use crate::wire::hcm::{self, http_filter::ConfigType};
use crate::wire::http_cors::Cors;
use crate::wire::http_session::StatefulSession;
use crate::wire::protobuf::Value;
use crate::wire::router::Router;

macro_rules! rows {
    ($($name:ident: $row:expr,)*) => {
        const ROWS: &[Row] = &[$($row,)*];

        fn row(filter: &HttpFilter) -> Row {
            match filter {
                $(HttpFilter::$name(_) => $row,)*
            }
        }
    };
}

rows! {
    Rbac: rbac::ROW,
    Fault: retry::FAULT_ROW,
    ExtAuthz: ext_authz::ROW,
    RateLimit: rate_limit::ROW,
    Concurrency: concurrency::ROW,
    LocalLimit: local_limit::ROW,
    GlobalLimit: global_limit::ROW,
    Tokens: jwt::ROW,
}

pub(super) fn encode(filters: &[HttpFilter], kind: ClientKind) -> Vec<hcm::HttpFilter> {
    let mut out = Writing { all: Vec::with_capacity(filters.len() + 2), kind, position: 0 };
    if kind != ClientKind::Grpc {
        for (position, filter) in filters.iter().enumerate() {
            out.position = position;
            (row(filter).write)(filter, &mut out);
        }
    }
    if kind == ClientKind::Envoy {
        // A route's faults need the filter to be there.
        if !filters.iter().any(|f| matches!(f, HttpFilter::Fault(_))) {
            out.push(FAULT, any(&retry::encode_fault(&Fault::default(), kind)));
        }
        // So do its sessions.
        out.push(SESSION, any(&StatefulSession::default()));
        // And its policy for other origins, which acts last.
        out.push(CORS, any(&Cors {}));
    }
    out.push(ROUTER, any(&Router::default()));
    out.all
}

/// The user objects behind filters, as they ride on their chain: by the position of a filter among those whose origins have that name.
pub(super) fn origins(filters: &[HttpFilter]) -> impl Iterator<Item = (String, Value)> {
    let (mut counts, mut by_name) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new());
    for filter in filters {
        if let Some((name, value)) = (row(filter).origins)(filter) {
            let index = counts.entry(name).or_insert(0_usize);
            if let Some(value) = value {
                by_name.entry(name).or_default().push((index.to_string(), value));
            }
            *index += 1;
        }
    }
    by_name.into_iter().map(|(name, all)| (name.to_owned(), map(all)))
}

/// `metadata` is the filter chain's.
pub(super) fn decode(
    wire: &[hcm::HttpFilter],
    stat_prefix: &str,
    metadata: Option<&Metadata>,
) -> Decoded<Vec<HttpFilter>> {
    let mut filters = Vec::with_capacity(wire.len());
    let mut seen = [0; ROWS.len()];
    let mut shadows = Vec::new();
    let mut routed = false;
    for (i, filter) in wire.iter().enumerate() {
        let field = format!("http_filters[{i}]");
        if routed {
            return flaw(field, "no filter may follow the router");
        }
        let config = match &filter.config_type {
            Some(ConfigType::TypedConfig(config)) => Some(config),
            _ => None,
        };
        let known = config.and_then(|config| {
            let found = ROWS.iter().zip(&mut seen).find(|(row, _)| (row.is)(config));
            found.filter(|(row, _)| row.reads_disabled || !filter.disabled).map(|found| (config, found))
        });
        if let Some((config, (row, index))) = known {
            let shadows = &mut shadows;
            let mut reading = Reading { config, filter, stat_prefix, metadata, index: *index, shadows };
            filters.extend((row.read)(&mut reading).under(format_args!("{field}.typed_config"))?);
            *index += 1;
            continue;
        }
        match config {
            // A route may enable it; an optional one may be left out only where nobody relies on it.
            Some(config) if filter.disabled && extension::decides_access(&config.type_url) => {
                return flaw(
                    format_args!("{field}.disabled"),
                    "a filter that decides access must not be disabled",
                );
            }
            _ if filter.disabled => left_out("a disabled HTTP filter"),
            Some(config) if is::<Router>(config) => routed = true,
            // The policy is the route's, and acts where there is one; so is a session.
            Some(config) if is::<Cors>(config) => {}
            Some(config) if is::<StatefulSession>(config) => session::of_listener(config).under(field)?,
            Some(config) if extension::decides_access(&config.type_url) => {
                return extension::unknown("HTTP filter", &filter.name, Some(config)).under(field);
            }
            _ if filter.is_optional => left_out("an unknown optional HTTP filter"),
            _ if extension::is_meaningless(&filter.name) => {
                left_out("an HTTP filter that means nothing here")
            }
            other => return extension::unknown("HTTP filter", &filter.name, other).under(field),
        }
    }
    let asks = |filter: &HttpFilter| matches!(filter, HttpFilter::ExtAuthz(authz) if authz.only.is_some());
    if filters.iter().filter(|filter| asks(filter)).count() < shadows.len() {
        left_out("shadow_rules");
    }
    if !routed {
        return flaw("http_filters", "must end with the router, envoy.filters.http.router");
    }
    Ok(filters)
}
