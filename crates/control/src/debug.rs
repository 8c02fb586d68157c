//! The port for machines and the curious: metrics, readiness, and pages that show what the control plane believes.
//! Nothing here changes anything but the log filter, and nothing shows a secret.

use std::sync::Arc;

use outrigger_telemetry::admin::{AdminResponse, Row, Table, rows};
use outrigger_telemetry::{LogControl, Readiness, Registry};
use serde_json::{Value, json};

use crate::api::{ApiParts, PAGE_NAMES, registries};

/// The table of the port.
pub(crate) fn table(
    shared: &Arc<ApiParts>,
    registry: Registry,
    readiness: Readiness,
    logs: Option<LogControl>,
) -> Table {
    let page = |path: &'static str, help: &'static str, show: fn(&ApiParts) -> Value| {
        let shared = shared.clone();
        Row::get(path, help, move |_| AdminResponse::json(&show(&shared))).local()
    };
    let mut table = Table::new("Outrigger control plane")
        .known_as(&shared.settings.names_of_pages(), PAGE_NAMES)
        .with(rows::ready("/ready", readiness))
        .with(rows::metrics("/metrics", registry).open())
        .with(page("/debug/syncz", "per proxy: what it has in force, what it refused", syncz))
        .with(page("/debug/connections", "connected xDS clients", connections))
        .with(page("/debug/registryz", "services and instances", registryz))
        .with(page("/debug/configz", "rules as they were written", configz));
    if let Some(logs) = logs {
        table.push(rows::logging(logs));
    }
    table
}

fn syncz(shared: &ApiParts) -> Value {
    json!(shared.board.proxies(shared.keeper.published().generation()))
}

fn connections(shared: &ApiParts) -> Value {
    let latest = shared.keeper.published().generation();
    let proxies = shared.board.proxies(latest);
    let short = |proxy: &crate::status::ProxyStatus| {
        json!({
            "node": proxy.node, "instance": proxy.instance, "identity": proxy.identity, "client": proxy.client,
            "version": proxy.version, "connectedSeconds": proxy.connected_seconds,
        })
    };
    json!({ "generation": latest, "clients": proxies.iter().map(short).collect::<Vec<_>>() })
}

fn registryz(shared: &ApiParts) -> Value {
    let published = shared.keeper.published();
    let world = &published.world;
    let service = |service: &crate::world::Service| {
        let instances: Vec<_> = service.instances.iter().map(AsRef::as_ref).collect();
        json!({ "host": service.host, "ports": service.ports, "instances": instances })
    };
    json!({
        "generation": world.generation,
        "services": world.services().map(service).collect::<Vec<_>>(),
        "registries": registries::bodies(&shared.registries, &published),
        "problems": shared.registries.problems(),
        "held": *published.held,
    })
}

fn configz(shared: &ApiParts) -> Value {
    let published = shared.keeper.published();
    let rule = |rule: &Arc<crate::keeper::Rule>| {
        let stored = rule.stored();
        json!({ "key": stored.key, "version": stored.version, "generation": stored.generation, "object": stored.json, "problem": rule.problem })
    };
    json!({ "generation": published.generation(), "rules": published.rules.values().map(rule).collect::<Vec<_>>() })
}
