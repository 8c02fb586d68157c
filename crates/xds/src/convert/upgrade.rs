//! Which protocols a request may switch to: of the HTTP connection manager and of routes.

use outrigger_model::route::RouteUpgrade;

use super::flaw::{Decoded, each, flaw};
use crate::wire::boolean;
use crate::wire::hcm::http_connection_manager::UpgradeConfig;
use crate::wire::route::route_action;

const WEBSOCKET: &str = "websocket";

/// CONNECT is asked for by a route's match; on the wire it stands here, too.
pub(super) const CONNECT: &str = "CONNECT";

/// None at all is said by name: an empty list is what control planes send that know nothing of it.
pub(super) fn encode(upgrades: &[String]) -> Vec<UpgradeConfig> {
    let config = |name: &String| UpgradeConfig { upgrade_type: name.clone(), ..Default::default() };
    if upgrades.is_empty() {
        return vec![UpgradeConfig { enabled: boolean(false), ..config(&WEBSOCKET.to_owned()) }];
    }
    upgrades.iter().map(config).collect()
}

pub(super) fn decode(wire: &[UpgradeConfig]) -> Decoded<Vec<String>> {
    if wire.is_empty() {
        return Ok(vec![WEBSOCKET.to_owned()]);
    }
    let all = each(wire, "upgrade_configs", |config| {
        // Filters of its own are there to decide: leaving them out would let in what they keep out.
        if !config.filters.is_empty() {
            return flaw("filters", "are not supported; the connection manager's own apply");
        }
        let enabled = config.enabled.as_ref().is_none_or(|enabled| enabled.value);
        Ok(Some(name(&config.upgrade_type)?).filter(|name| enabled && !is_connect(name)))
    })?;
    Ok(all.into_iter().flatten().collect())
}

pub(super) fn encode_route(upgrades: &[RouteUpgrade], connect: bool) -> Vec<route_action::UpgradeConfig> {
    let config = |protocol: &str, allowed: bool| route_action::UpgradeConfig {
        upgrade_type: protocol.to_owned(),
        enabled: if allowed { None } else { boolean(false) },
        ..Default::default()
    };
    let all = upgrades.iter().map(|upgrade| config(&upgrade.protocol, upgrade.allowed));
    connect.then(|| config(CONNECT, true)).into_iter().chain(all).collect()
}

pub(super) fn decode_route(wire: &[route_action::UpgradeConfig]) -> Decoded<Vec<RouteUpgrade>> {
    let all = each(wire, "upgrade_configs", |config| {
        if config.connect_config.is_some() {
            return flaw(
                "connect_config",
                "is not supported; a CONNECT goes to the routed cluster as it came",
            );
        }
        let allowed = config.enabled.as_ref().is_none_or(|enabled| enabled.value);
        let protocol = name(&config.upgrade_type)?;
        Ok((!is_connect(&protocol)).then_some(RouteUpgrade { protocol, allowed }))
    })?;
    Ok(all.into_iter().flatten().collect())
}

fn is_connect(name: &str) -> bool {
    name.eq_ignore_ascii_case(CONNECT)
}

fn name(upgrade_type: &str) -> Decoded<String> {
    if upgrade_type.is_empty() {
        return flaw("upgrade_type", "must not be empty");
    }
    Ok(upgrade_type.to_ascii_lowercase())
}
