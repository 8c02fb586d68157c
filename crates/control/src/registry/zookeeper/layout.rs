//! What a node says, in whichever of the layouts that people have.
//!
//! | whose | node | says |
//! |---|---|---|
//! | Curator (Spring Cloud; Dubbo by application) | `PATH/SERVICE/ID` | `{"name", "id", "address", "port", "sslPort", "payload"}` |
//! | ours | `PATH/NAMESPACE/SERVICE/ID` | an instance as in a registry's file |
//! | Dubbo by interface | `DUBBO/INTERFACE/providers/URL` | its name is a URL, escaped: `dubbo://10.0.0.1:20880/INTERFACE?application=…` |

//!
//! The path says whose instance it is, as it does for those who find it with Curator: ACLs are of paths. A value that says another is wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::ZooKeeperSettings;
use crate::instance::{Instance, Port, Protocol, State};
use crate::registry::foreign::{self, Foreign, address, plain, protocol_of, read_as, socket, texts};
use crate::registry::parts::Said;

/// Reads what a node has. `under`: its path below that of the settings. `origin` is who we are: what we wrote is nobody else.
pub(super) fn node(path: &str, under: &str, data: &[u8], settings: &ZooKeeperSettings, origin: &str) -> Said {
    let read = || {
        let fields = foreign::fields(data)?;
        let instance = match fields.contains_key("addresses") {
            true => of_ours(under, fields, settings)?,
            false => of_curator(under, fields, settings)?,
        };
        foreign::placed(instance, settings.namespace.as_deref())
    };
    said(path, read(), origin)
}

/// Reads a provider of Dubbo from its node's name.
pub(super) fn provider(path: &str, settings: &ZooKeeperSettings, origin: &str) -> Option<Said> {
    let mut steps = path.rsplit('/');
    let (name, _, interface) = (steps.next()?, steps.next()?, steps.next()?);
    let read = of_dubbo(interface, &unescaped(name)?, settings).transpose()?;
    Some(said(path, read.and_then(|one| foreign::placed(one, settings.namespace.as_deref())), origin))
}

fn said(path: &str, read: Result<Instance, String>, origin: &str) -> Said {
    match read {
        Ok(instance) if foreign::is_by(&instance, origin) => Said::Nobody,
        Ok(instance) => Said::Instance(instance.id.clone(), Arc::new(instance)),
        Err(why) => Said::Wrong(None, format!("node {path:?}: {why}")),
    }
}

/// As `org.apache.curator.x.discovery.ServiceInstance` is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Curator {
    name: String,
    id: String,
    #[serde(default)]
    address: Option<String>,
    #[serde(default)]
    port: Option<u16>,
    #[serde(default)]
    ssl_port: Option<u16>,
    #[serde(default)]
    payload: Value,
    /// Absent before Curator 5.
    #[serde(default)]
    enabled: Option<bool>,
}

/// One of those that Dubbo says of an application (`dubbo.endpoints`).
#[derive(Deserialize)]
struct Endpoint {
    port: u16,
    protocol: String,
}

/// At exactly this path, and of the namespace of the settings, if they say one: that of another's service is its owner's.
fn of_ours(
    under: &str,
    fields: Map<String, Value>,
    settings: &ZooKeeperSettings,
) -> Result<Instance, String> {
    let steps: Vec<&str> = under.split('/').collect();
    let [namespace, service, id] = steps[..] else {
        return Err("is no PATH/NAMESPACE/SERVICE/ID, where instances of this layout are".to_owned());
    };
    let instance = foreign::ours(under, fields)?;
    same("id", &instance.id, id)?;
    same("service", &instance.service, service)?;
    same("namespace", &instance.namespace, namespace)?;
    if let Some(own) = &settings.namespace {
        same("namespace in the settings", own, namespace)?;
    }
    Ok(instance)
}

/// What is said elsewhere is what the path says.
fn same(field: &str, said: &str, step: &str) -> Result<(), String> {
    match said == step {
        true => Ok(()),
        false => Err(format!("{field}: {said:?} is not {step:?}, which its path says")),
    }
}

/// The service of a node in Curator's layout. A name may have slashes.
fn service_of(under: &str, settings: &ZooKeeperSettings) -> Result<(String, String), String> {
    let (there, _) = under.rsplit_once('/').ok_or("is no PATH/SERVICE/ID")?;
    if there.contains('/') && !settings.names.contains_key(there) {
        return Err(format!(
            "service: {there:?} has a slash and would be called as another; give it a name in \"names\" of the registry"
        ));
    }
    Ok((there.to_owned(), settings.name(there)))
}

fn of_curator(
    under: &str,
    fields: Map<String, Value>,
    settings: &ZooKeeperSettings,
) -> Result<Instance, String> {
    let Curator { name, id, address: at, port, ssl_port, payload, enabled } = read_as(fields)?;
    let (there, service) = service_of(under, settings)?;
    same("name", name.trim_matches('/'), &there)?;
    // Spring Cloud's and Dubbo's payload has them in a field of its own; others' are the payload.
    let mut metadata = texts(payload.get("metadata").unwrap_or(&payload));
    metadata.retain(|key, _| !key.starts_with('@'));
    let address = address(&at.ok_or("address: there is none")?)?;
    let mut ports: Vec<Port> = Vec::new();
    if let Some(said) = metadata.get("dubbo.endpoints") {
        let all: Vec<Endpoint> =
            serde_json::from_str(said).map_err(|error| format!("dubbo.endpoints cannot be read: {error}"))?;
        ports.extend(all.iter().map(|one| Port { protocol: of_scheme(&one.protocol), ..plain(one.port) }));
    }
    let has = |ports: &[Port], number: u16| number == 0 || ports.iter().any(|port| port.number == number);
    if let Some(number) = port.filter(|number| !has(&ports, *number)) {
        let protocol = metadata.get("protocol").and_then(|name| protocol_of(name)).unwrap_or_default();
        ports.push(Port { protocol, ..plain(number) });
    }
    if let Some(number) = ssl_port.filter(|number| !has(&ports, *number)) {
        ports.push(Port { protocol: Protocol::Tls, ..plain(number) });
    }
    // As Spring Cloud has it.
    let out = metadata.get("instance_status").is_some_and(|status| status != "UP");
    let instance =
        Foreign { id, service, version: None, address, ports, metadata }.instance(settings.sidecar);
    let is_out = out || enabled == Some(false);
    Ok(Instance { state: if is_out { State::Maintenance } else { State::Running }, ..instance })
}

/// An interface is a service; one process has many of them at one address. Nobody where the URL is that of no provider.
fn of_dubbo(interface: &str, url: &str, settings: &ZooKeeperSettings) -> Result<Option<Instance>, String> {
    let Some((scheme, rest)) = url.split_once("://") else { return Ok(None) };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = place.split('/').next().unwrap_or_default();
    // An empty protocol is Dubbo's word for: nobody.
    if scheme == "empty" {
        return Ok(None);
    }
    let (address, number) = socket(authority)?;
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let mut metadata: BTreeMap<String, String> =
        pairs.filter_map(|(key, value)| Some((key.to_owned(), unescaped(value)?))).collect();
    // It changes with each start, and may be as long as it likes.
    ["timestamp", "pid", "methods"].into_iter().for_each(|key| drop(metadata.remove(key)));
    let said = |key: &str| metadata.get(key).map(String::as_str).filter(|text| !text.is_empty());
    let version = said("version").filter(|version| *version != "0.0.0").map(str::to_owned);
    let is_out = said("disabled") == Some("true") || said("enabled") == Some("false");
    let weight = match said("weight").map(str::parse) {
        None => 100,
        Some(Ok(weight)) => weight,
        Some(Err(_)) => return Err(format!("weight: {:?} is none", said("weight").unwrap_or_default())),
    };
    // All interfaces of an address are one process: one identity.
    let account = said("serviceAccount").or(said("application")).map(foreign::label);
    let group = said("group").map(str::to_owned);
    // Which may come in several versions and groups.
    let id =
        [Some(authority), version.as_deref(), group.as_deref()].into_iter().flatten().collect::<Vec<_>>();
    let (id, service) = (id.join("+"), settings.name(interface));
    let ports = vec![Port { protocol: of_scheme(scheme), ..plain(number) }];
    let one = Foreign { id, service, version, address, ports, metadata }.instance(settings.sidecar);
    let state = match (is_out, weight) {
        (true, _) | (_, 0) => State::Maintenance,
        _ => State::Running,
    };
    let service_account = account.unwrap_or_else(|| one.service_account.clone());
    Ok(Some(Instance {
        state,
        weight: weight.max(1),
        service_account,
        tags: group.into_iter().collect(),
        ..one
    }))
}

/// What a protocol of Dubbo's is on the wire.
fn of_scheme(scheme: &str) -> Protocol {
    match scheme {
        // Triple is gRPC with more.
        "tri" => Protocol::Grpc,
        "rest" | "hessian" | "webservice" => Protocol::Http,
        "dubbo" | "thrift" | "rmi" => Protocol::Tcp,
        other => protocol_of(other).unwrap_or_default(),
    }
}

/// Without `%XX` and `+`; nothing where it is no UTF-8.
fn unescaped(text: &str) -> Option<String> {
    Some(percent_decode_str(&text.replace('+', " ")).decode_utf8().ok()?.into_owned())
}
