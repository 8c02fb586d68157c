//! The application's probes, asked for at the sidecar: a kubelet has no certificate, so under STRICT it could not ask itself.
//!
//! The kubelet then asks `/app-health/CONTAINER/KIND` at the health port, and the sidecar, which is told by its bootstrap how, asks
//! the application at the Pod's address, as the kubelet would have, and for as long as the kubelet waits.
//!
//! The health port answers everybody. A probe asks what anybody may know; a hook has the application do something, so the path of a
//! hook ends with a secret, which only those know who may read the Pod.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::wishes::Wishes;
use super::{Fields, SIDECAR, containers};
use crate::tokens;

/// Where probes are, and how they are called at the health port.
const PLACES: [(&str, &str); 5] = [
    ("/livenessProbe", "livez"),
    ("/readinessProbe", "readyz"),
    ("/startupProbe", "startupz"),
    ("/lifecycle/preStop", "prestopz"),
    (POST_START, "poststartz"),
];

/// What the health port has of the application.
const PREFIX: &str = "/app-health/";

/// Letters of a hook's secret.
const SECRET: usize = 43;

/// Asked once, as soon as the container runs.
const POST_START: &str = "/lifecycle/postStart";

/// What was rewritten.
#[derive(Debug, Default)]
pub(super) struct Rewritten {
    /// The bootstrap's `probes`.
    pub(super) bootstrap: Fields,
    /// What was there, by container and place.
    pub(super) originals: Originals,
}

/// As the Pod's author wrote them.
pub(super) type Originals = BTreeMap<String, BTreeMap<String, Value>>;

/// Has all probes of the Pod's own go through the sidecar, but for those that run a program. `earlier` is the Pod as it was injected before,
/// whose hooks keep their paths.
pub(super) fn rewrite(
    spec: &mut Fields,
    own: &Value,
    earlier: Option<&Value>,
    wishes: &Wishes,
    warnings: &mut Vec<String>,
) -> Rewritten {
    let mut done = Rewritten::default();
    for list in ["containers", "initContainers"] {
        let Some(all) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in all {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            // Those that end are not probed, and run before a sidecar that is no init container itself.
            let probed = list == "containers" || (wishes.native && container["restartPolicy"] == "Always");
            if !probed || name == SIDECAR {
                continue;
            }
            let mut owned = own["spec"][list].as_array().into_iter().flatten();
            let Some(owned) = owned.find(|one| one["name"] == container["name"]) else { continue };
            let ports = container["ports"].clone();
            for (place, kind) in PLACES {
                let is_own = owned.pointer(place).is_some();
                let Some(probe) = container.pointer_mut(place).filter(|_| is_own) else { continue };
                let asked = match asked(probe, &ports) {
                    // A plain sidecar is started before the container, and nobody waits until it answers.
                    Some(Ok(_)) if place == POST_START && !(wishes.native || wishes.hold) => Some(Err(
                        "a sidecar that is no init container may not be there yet; holdApplicationUntilProxyStarts has it wait",
                    )),
                    asked => asked,
                };
                match asked {
                    Some(Ok(mut how)) => {
                        let mut path = format!("{name}/{kind}");
                        match probe["timeoutSeconds"].as_u64() {
                            // A hook has no time of its own: it ends with the Pod's grace period, and the kubelet leaves.
                            _ if place.starts_with("/lifecycle/") => {
                                how["timeout"] = "0s".into();
                                path = secret(&path, earlier, &name, place);
                            }
                            Some(seconds) => how["timeout"] = format!("{seconds}s").into(),
                            // The kubelet's is a second, and so less than the sidecar's.
                            None => {}
                        }
                        let original = probe.clone();
                        redirect(probe, &path);
                        done.bootstrap.insert(path, how);
                        done.originals.entry(name.clone()).or_default().insert(place.to_owned(), original);
                    }
                    Some(Err(why)) => warnings.push(format!(
                        "container {name}: {} is left as it is, {why}; under STRICT it will fail",
                        place.trim_start_matches('/').replace('/', ".")
                    )),
                    None => {}
                }
            }
        }
    }
    done
}

/// The path with a word behind it that nobody guesses: the one that it had, if it had one.
fn secret(path: &str, earlier: Option<&Value>, container: &str, place: &str) -> String {
    let lists =
        ["containers", "initContainers"].into_iter().filter_map(|list| earlier?["spec"][list].as_array());
    let was = lists.flatten().find(|was| was["name"] == container).and_then(|was| was.pointer(place));
    let was = was.and_then(|hook| hook["httpGet"]["path"].as_str()?.strip_prefix(PREFIX));
    match was.and_then(|was| was.strip_prefix(path)?.strip_prefix('/')) {
        Some(word) if word.len() == SECRET => format!("{path}/{word}"),
        _ => format!("{path}/{}", tokens::secret("")),
    }
}

/// How the sidecar asks in the kubelet's place. `None`: that is not for it, such as a program that is run.
fn asked(probe: &Value, ports: &Value) -> Option<Result<Value, &'static str>> {
    let address = "$(POD_IP)";
    let port = |of: &Value| number(&of["port"], ports).ok_or("its port is none of the container's");
    // Another host than the Pod is reached as ever.
    let elsewhere = |of: &Value| of["host"].as_str().is_some_and(|host| !host.is_empty());
    if let Some(http) = probe.get("httpGet").filter(|http| !http.is_null()) {
        if elsewhere(http) {
            return None;
        }
        let path = http["path"].as_str().unwrap_or_default();
        let mut how =
            json!({"address": address, "path": verbatim(&format!("/{}", path.trim_start_matches('/')))});
        let headers = http["httpHeaders"].as_array().into_iter().flatten();
        if let Some(host) =
            headers.filter(|header| is_host(header)).find_map(|header| header["value"].as_str())
        {
            how["host"] = verbatim(host).into();
        }
        if http["scheme"].as_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            how["tls"] = true.into();
        }
        return Some(port(http).map(|port| {
            how["port"] = port.into();
            json!({"http": how})
        }));
    }
    if let Some(tcp) = probe.get("tcpSocket").filter(|tcp| !tcp.is_null()) {
        let how = |port| json!({"tcp": {"address": address, "port": port}});
        return (!elsewhere(tcp)).then(|| port(tcp).map(how));
    }
    let grpc = probe.get("grpc").filter(|grpc| !grpc.is_null())?;
    let service = verbatim(grpc["service"].as_str().unwrap_or_default());
    Some(port(grpc).map(|port| json!({"grpc": {"address": address, "port": port, "service": service}})))
}

/// Where the kubelet asks from now on; its times and counts stay, and its headers, but for the application's name.
fn redirect(probe: &mut Value, path: &str) {
    let headers: Vec<Value> = probe["httpGet"]["httpHeaders"].as_array().cloned().unwrap_or_default();
    let headers: Vec<Value> = headers.into_iter().filter(|header| !is_host(header)).collect();
    let mut get = json!({"path": format!("{PREFIX}{path}"), "port": containers::HEALTH_PORT});
    if !headers.is_empty() {
        get["httpHeaders"] = headers.into();
    }
    if let Some(probe) = probe.as_object_mut() {
        probe.retain(|field, _| !matches!(field.as_str(), "tcpSocket" | "grpc"));
        probe.insert("httpGet".to_owned(), get);
    }
}

/// Has a probe ask as it was written. What was edited since, its times or the whole, is somebody's will.
pub(super) fn restore(probe: &mut Value, original: &Value) {
    let ours = probe["httpGet"]["path"].as_str().is_some_and(|path| path.starts_with(PREFIX));
    let (true, Some(probe), Some(original)) = (ours, probe.as_object_mut(), original.as_object()) else {
        return;
    };
    probe.remove("httpGet");
    for how in ["httpGet", "tcpSocket", "grpc"] {
        if let Some(original) = original.get(how) {
            probe.insert(how.to_owned(), original.clone());
        }
    }
}

fn is_host(header: &Value) -> bool {
    header["name"].as_str().is_some_and(|name| name.eq_ignore_ascii_case("host"))
}

/// A port by number, or by the name that the container gives it.
fn number(port: &Value, ports: &Value) -> Option<u16> {
    let number = match port {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => {
            let named = ports.as_array().into_iter().flatten().find(|port| port["name"] == text.as_str());
            named.map_or_else(|| text.parse().ok(), |port| port["containerPort"].as_u64())
        }
        _ => None,
    };
    number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0)
}

/// A kubelet expands `$(NAME)` in what the bootstrap has; two dollars are one.
pub(super) fn verbatim(text: &str) -> String {
    text.replace('$', "$$")
}
