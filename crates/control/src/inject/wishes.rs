//! What a Pod's annotations ask for beside the sidecar itself: Istio's names, Linkerd's, and ours.
//!
//! One that is read acts; one of these dialects that is not known here is warned about by name. As with Linkerd, what a namespace says in
//! Linkerd's words holds for its Pods that do not say otherwise.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::settings::is_log_filter;
use super::{Fields, InjectError, InjectSettings, Namespace, Release, shared, templates};

/// What is to be injected, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Wishes {
    pub(super) image: String,
    pub(super) native: bool,
    /// The Pod says itself which kind of sidecar it has.
    pub(super) asked: bool,
    /// Wait for the sidecar before anything else starts.
    pub(super) hold: bool,
    pub(super) rewrite_probes: bool,
    /// The sidecar answers a scraper for the application, too.
    pub(super) merge_metrics: bool,
    pub(super) log_level: String,
    pub(super) resources: Value,
    /// Of `outrigger-proxy intercept apply`.
    pub(super) flags: Vec<String>,
    /// Laid over the bootstrap.
    pub(super) bootstrap: Fields,
    pub(super) warnings: Vec<String>,
}

const CONFIG: &str = "proxy.istio.io/config";
const IMAGE: &str = "sidecar.istio.io/proxyImage";
const NATIVE: &str = "sidecar.istio.io/nativeSidecar";
const PROBERS: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
const MODE: &str = "sidecar.istio.io/interceptionMode";
/// Linkerd's word for who may call where no policy says it, and those of its values that let in fewer than are let in here.
const POLICY: &str = "config.linkerd.io/default-inbound-policy";
const CLOSED: [&str; 4] = ["deny", "all-authenticated", "cluster-authenticated", "cluster-unauthenticated"];
/// Read of Services.
const OPAQUE: &str = "config.linkerd.io/opaque-ports";
/// Whether the application's metrics are merged with the sidecar's.
pub(super) const MERGING: &str = "prometheus.istio.io/merge-metrics";
/// The first that is there.
const LOG: [&str; 3] =
    ["outrigger.io/log-level", "sidecar.istio.io/logLevel", "config.linkerd.io/proxy-log-level"];
/// Below `resources`, by its names.
const RESOURCES: [(&str, &str, [&str; 2]); 4] = [
    ("requests", "cpu", ["sidecar.istio.io/proxyCPU", "config.linkerd.io/proxy-cpu-request"]),
    ("requests", "memory", ["sidecar.istio.io/proxyMemory", "config.linkerd.io/proxy-memory-request"]),
    ("limits", "cpu", ["sidecar.istio.io/proxyCPULimit", "config.linkerd.io/proxy-cpu-limit"]),
    ("limits", "memory", ["sidecar.istio.io/proxyMemoryLimit", "config.linkerd.io/proxy-memory-limit"]),
];
/// Lists of what is intercepted: the flag, and whether nothing at all is meant when an inclusion is empty.
const LISTS: [(&str, Kind, &[&str]); 6] = [
    ("include-inbound-ports", Kind::Ports, &["traffic.sidecar.istio.io/includeInboundPorts"]),
    (
        "exclude-inbound-ports",
        Kind::Ports,
        &["traffic.sidecar.istio.io/excludeInboundPorts", "config.linkerd.io/skip-inbound-ports"],
    ),
    // As Istio: beside the ranges, not instead of them.
    ("also-outbound-ports", Kind::Ports, &["traffic.sidecar.istio.io/includeOutboundPorts"]),
    (
        "exclude-outbound-ports",
        Kind::Ports,
        &["traffic.sidecar.istio.io/excludeOutboundPorts", "config.linkerd.io/skip-outbound-ports"],
    ),
    ("include-outbound-cidrs", Kind::Blocks, &["traffic.sidecar.istio.io/includeOutboundIPRanges"]),
    ("exclude-outbound-cidrs", Kind::Blocks, &["traffic.sidecar.istio.io/excludeOutboundIPRanges"]),
];
/// Whose annotations are about sidecars.
const DIALECTS: [&str; 14] = [
    "sidecar.istio.io/",
    "status.sidecar.istio.io/",
    "readiness.status.sidecar.istio.io/",
    "prometheus.istio.io/",
    "traffic.sidecar.istio.io/",
    "proxy.istio.io/",
    "inject.istio.io/",
    "retry.linkerd.io/",
    "timeout.linkerd.io/",
    "balancer.linkerd.io/",
    LINKERD[0],
    LINKERD[1],
    LINKERD[2],
    "outrigger.io/",
];
/// Of those, whose words may be said by a namespace.
const LINKERD: [&str; 3] = ["config.linkerd.io/", "config.alpha.linkerd.io/", "config.beta.linkerd.io/"];
/// Read elsewhere: by the decision, or by nobody, since they are results.
const ELSEWHERE: [&str; 3] = ["sidecar.istio.io/inject", "outrigger.io/inject", "sidecar.istio.io/status"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ports,
    Blocks,
}

/// What the annotations ask for, over the settings.
pub(super) fn read(
    pod: &Value,
    namespace: &Namespace,
    settings: &InjectSettings,
    kubernetes: Option<Release>,
) -> Result<Wishes, InjectError> {
    let of_namespace = namespace.annotations.iter();
    let of_namespace = of_namespace.filter(|(key, _)| LINKERD.iter().any(|dialect| key.starts_with(dialect)));
    let mut all: Fields =
        of_namespace.map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    all.extend(pod["metadata"]["annotations"].as_object().cloned().unwrap_or_default());
    let all = &all;
    let of = |key: &str| all.get(key).and_then(Value::as_str);
    let asked = boolean(NATIVE, of(NATIVE))?;
    let own_resources = resources(all)?;
    let is_own = own_resources.is_some();
    let mut wishes = Wishes {
        image: of(IMAGE).filter(|image| !image.is_empty()).unwrap_or(&settings.image).to_owned(),
        native: asked.unwrap_or_else(|| settings.native_sidecar.is_native(kubernetes)),
        asked: asked.is_some(),
        hold: settings.hold_application_until_proxy_starts,
        rewrite_probes: boolean(PROBERS, of(PROBERS))?.unwrap_or(settings.rewrite_probes),
        merge_metrics: boolean(MERGING, of(MERGING))?.unwrap_or(settings.merge_metrics),
        log_level: settings.log_level.clone(),
        resources: own_resources.unwrap_or_else(|| settings.resources.clone()),
        flags: flags(all)?,
        bootstrap: Fields::new(),
        warnings: unknown(all),
    };
    // Its author has said what the sidecar has: then an API server says whether that fits.
    if !is_own {
        let told = shared::leave_out(&pod["spec"], &mut wishes.resources, &mut wishes.bootstrap);
        wishes.warnings.extend(told);
        // The operator's word goes before what is only worked out.
        wishes.bootstrap.retain(|field, _| !settings.bootstrap.contains_key(field));
    }
    if let Some((key, text)) = LOG.iter().find_map(|key| Some((*key, of(key)?))) {
        wishes.log_level = log_filter(key, text)?;
    }
    if let Some(mode) = of(MODE).filter(|mode| *mode != "REDIRECT") {
        wishes
            .warnings
            .push(format!("annotation {MODE}: {mode} is not known here, REDIRECT is what is done"));
    }
    if let Some(text) = of(CONFIG) {
        wishes.config(text)?;
    }
    match of(POLICY) {
        // Taken for nothing it would open what was closed.
        Some(policy) if CLOSED.contains(&policy) => {
            let wanted = "a policy here: say it by an AuthorizationPolicy and a PeerAuthentication (docs/security.md), and take the annotation away, \
                          from the namespace, too";
            Err(wrong(POLICY, policy, wanted))
        }
        Some(policy) if policy != "all-unauthenticated" => {
            wishes.warnings.push(format!("annotation {POLICY}: {policy} has no meaning here"));
            Ok(wishes)
        }
        _ => Ok(wishes),
    }
}

impl Wishes {
    /// Istio's ProxyConfig, as YAML in an annotation.
    fn config(&mut self, text: &str) -> Result<(), InjectError> {
        let wrong =
            |wanted: String| InjectError::Annotation { name: CONFIG.into(), value: text.into(), wanted };
        let config: Fields = serde_saphyr::from_str(text)
            .map_err(|error| wrong(format!("a mapping in YAML: {}", error.without_snippet())))?;
        for (field, value) in &config {
            match (field.as_str(), value) {
                ("holdApplicationUntilProxyStarts", Value::Bool(hold)) => self.hold = *hold,
                // Zero is Istio's word for all of the CPUs.
                ("concurrency", Value::Number(n)) if n.as_u64().is_some() => {
                    if let Some(workers) = n.as_u64().filter(|n| (1..=256).contains(n)) {
                        self.bootstrap.insert("workers".into(), workers.into());
                    }
                }
                ("terminationDrainDuration", Value::String(time)) => {
                    let time = duration(time)
                        .ok_or_else(|| wrong(format!("a duration such as 5s or 1m30s in {field}")))?;
                    self.bootstrap.insert("drain_timeout".into(), time.into());
                }
                ("holdApplicationUntilProxyStarts", _) => {
                    return Err(wrong(format!("true or false in {field}")));
                }
                ("concurrency", _) => return Err(wrong(format!("a number in {field}"))),
                ("terminationDrainDuration", _) => {
                    return Err(wrong(format!("a duration such as 5s or 1m30s in {field}")));
                }
                _ => self.warnings.push(format!("annotation {CONFIG}: {field} has no meaning here")),
            }
        }
        Ok(())
    }
}

fn boolean(name: &str, text: Option<&str>) -> Result<Option<bool>, InjectError> {
    match text {
        None => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some(text) => Err(wrong(name, text, "true or false")),
    }
}

/// As Istio: what an annotation says of resources is all that is said of them.
fn resources(all: &Fields) -> Result<Option<Value>, InjectError> {
    let mut said = json!({});
    for (list, resource, keys) in RESOURCES {
        let found = keys.iter().find_map(|key| Some((*key, all.get(*key)?.as_str()?)));
        let Some((key, text)) = found else { continue };
        if !is_quantity(text) {
            return Err(wrong(key, text, "a quantity such as 100m, 0.5 or 128Mi"));
        }
        if let Some(said) = said.as_object_mut() {
            let list = said.entry(list).or_insert_with(|| json!({}));
            if let Some(list) = list.as_object_mut() {
                list.insert(resource.to_owned(), text.into());
            }
        }
    }
    Ok((said != json!({})).then_some(said))
}

fn flags(all: &Fields) -> Result<Vec<String>, InjectError> {
    let mut flags = Vec::new();
    for (flag, kind, keys) in LISTS {
        let said: Vec<(&str, &str)> =
            keys.iter().filter_map(|key| Some((*key, all.get(*key)?.as_str()?))).collect();
        let mut items = Vec::new();
        for (key, text) in &said {
            for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
                if !kind.takes(item) {
                    return Err(wrong(key, item, kind.wanted()));
                }
                items.push(item);
            }
        }
        let including = flag.starts_with("include");
        if including && items.contains(&"*") {
            continue;
        }
        match (including && !said.is_empty() && items.is_empty(), kind) {
            // Nothing but what is included, which is nothing.
            (true, Kind::Ports) => {
                flags.push(format!("--{}={}", flag.replace("include", "exclude"), kind.all()));
            }
            (true, Kind::Blocks) => flags.push(format!("--{flag}=none")),
            (false, _) if items.contains(&"*") => flags.push(format!("--{flag}={}", kind.all())),
            (false, _) if items.is_empty() => {}
            (false, _) => flags.push(format!("--{flag}={}", items.join(","))),
        }
    }
    Ok(joined(flags))
}

/// A list may have come twice: one from its own annotation, one from an inclusion of nothing.
fn joined(flags: Vec<String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for flag in flags {
        let name = flag.split_inclusive('=').next().unwrap_or_default().to_owned();
        match all.iter_mut().find(|other| other.starts_with(&name)) {
            Some(other) => *other = format!("{other},{}", &flag[name.len()..]),
            None => all.push(flag),
        }
    }
    all
}

impl Kind {
    fn takes(self, item: &str) -> bool {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        match self {
            _ if item == "*" => true,
            Self::Ports => {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                matches!((port(first), port(last)), (Some(first), Some(last)) if first <= last)
            }
            Self::Blocks => item.parse::<IpNet>().is_ok() || item.parse::<std::net::IpAddr>().is_ok(),
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Ports => "a port, or a range of them such as 8000-8099",
            Self::Blocks => "a block of addresses such as 10.0.0.0/8",
        }
    }

    fn all(self) -> &'static str {
        match self {
            Self::Ports => "1-65535",
            Self::Blocks => "0.0.0.0/0,::/0",
        }
    }
}

/// Envoy has names of its own for some levels, and Linkerd a target for its proxy.
fn log_filter(key: &str, text: &str) -> Result<String, InjectError> {
    let level = match text.to_ascii_lowercase().as_str() {
        "warning" => "warn".to_owned(),
        "critical" => "error".to_owned(),
        "trace" | "debug" | "info" | "warn" | "error" | "off" => text.to_ascii_lowercase(),
        _ => text.replace("linkerd=", "outrigger_proxy="),
    };
    match is_log_filter(&level) {
        true => Ok(level),
        false => Err(wrong(key, text, "a log level or a filter such as info,outrigger_proxy=debug")),
    }
}

fn is_quantity(text: &str) -> bool {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    number.parse::<f64>().is_ok()
        && matches!(
            unit,
            "" | "m" | "k" | "M" | "G" | "T" | "P" | "E" | "Ki" | "Mi" | "Gi" | "Ti" | "Pi" | "Ei"
        )
}

/// One of Go's, such as `1m30s`, as the bootstrap takes it: a number and its unit.
fn duration(text: &str) -> Option<String> {
    let (mut rest, mut parts, mut milliseconds) = (text, 0, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let of_unit = match unit {
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 60e3,
            "h" => 3600e3,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-3,
            "ns" => 1e-6,
            _ => return None,
        };
        milliseconds += number.parse::<f64>().ok()? * of_unit;
        (rest, parts) = (after, parts + 1);
    }
    match parts {
        0 => None,
        1 if !text.ends_with("us") && !text.ends_with("ns") && text.is_ascii() => Some(text.to_owned()),
        _ => Some(format!("{milliseconds:.0}ms")),
    }
}

fn unknown(all: &Fields) -> Vec<String> {
    let known = |key: &str| {
        [CONFIG, IMAGE, NATIVE, PROBERS, MODE, POLICY, MERGING].contains(&key)
            || LOG.contains(&key)
            || templates::NAMED.contains(&key)
            || ELSEWHERE.contains(&key)
            || RESOURCES.iter().any(|(_, _, keys)| keys.contains(&key))
            || LISTS.iter().any(|(_, _, keys)| keys.contains(&key))
    };
    let ours = |key: &&String| DIALECTS.iter().any(|dialect| key.starts_with(dialect));
    let unknown = all.keys().filter(ours).filter(|key| !known(key));
    let told = |key: &String| match key.as_str() {
        // Both ends have to know it, and clients go by the Service.
        OPAQUE => format!("annotation {key} has no meaning at Pods and namespaces: it counts at the Service"),
        key => format!("annotation {key} has no meaning here"),
    };
    unknown.map(told).collect()
}

fn wrong(name: &str, value: &str, wanted: &str) -> InjectError {
    InjectError::Annotation { name: name.into(), value: value.into(), wanted: wanted.into() }
}
