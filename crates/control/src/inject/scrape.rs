//! By which a Prometheus finds metrics: annotations of the Pod, Prometheus' own and as its charts read them. Those of an application lead
//! to the sidecar, which is told by its bootstrap where the application's are: Istio's merge.

use serde_json::{Value, json};

use super::wishes::{MERGING, Wishes};
use super::{Fields, InjectSettings, SIDECAR, containers, probes};

const PREFIX: &str = "prometheus.io/";
const SCRAPE: &str = "prometheus.io/scrape";
const PORT: &str = "prometheus.io/port";
const PATH: &str = "prometheus.io/path";
const SCHEME: &str = "prometheus.io/scheme";

/// Where a sidecar has its pages and its listeners.
const OURS: [u16; 5] = [15000, 15001, 15006, containers::METRICS_PORT, containers::HEALTH_PORT];

/// What becomes of the annotations and of the bootstrap.
#[derive(Debug, Default)]
pub(super) struct Scrape {
    /// Annotations where there are none.
    pub(super) added: Vec<(&'static str, String)>,
    /// Annotations in place of the application's.
    pub(super) replaced: Vec<(&'static str, String)>,
    /// The bootstrap's `app_metrics`.
    pub(super) application: Option<Value>,
}

/// What an annotation says of our page.
pub(super) fn ours(name: &str) -> Option<String> {
    match name {
        SCRAPE => Some("true".to_owned()),
        PORT => Some(containers::METRICS_PORT.to_string()),
        PATH => Some("/stats/prometheus".to_owned()),
        SCHEME => Some("http".to_owned()),
        _ => None,
    }
}

/// What the annotations are to say.
pub(super) fn read(
    pod: &Value,
    wishes: &Wishes,
    settings: &InjectSettings,
    warnings: &mut Vec<String>,
) -> Scrape {
    let mut scrape = Scrape::default();
    let nothing = Fields::new();
    let given = pod["metadata"]["annotations"].as_object().unwrap_or(&nothing);
    let all = |names: &[&'static str]| -> Vec<(&'static str, String)> {
        names.iter().filter_map(|name| Some((*name, ours(name)?))).collect()
    };
    if !settings.prometheus {
        if given.get(MERGING).is_some_and(is_yes) {
            warnings.push(format!(
                "annotation {MERGING}: true has no effect where the injector's settings say prometheus: false"
            ));
        }
        return scrape;
    }
    if !given.keys().any(|key| key.starts_with(PREFIX)) {
        scrape.added = all(&[SCRAPE, PORT, PATH]);
    } else if wishes.merge_metrics && given.get(SCRAPE).is_some_and(is_yes) {
        match application(given, &pod["spec"]) {
            Ok(None) => {}
            Ok(application) => {
                scrape.application = application;
                scrape.replaced = all(&[PORT, PATH]);
                if given.contains_key(SCHEME) {
                    scrape.replaced.extend(all(&[SCHEME]));
                }
            }
            Err(why) => warnings.push(format!(
                "{why}; the application's metrics are not merged with the sidecar's (prometheus.istio.io/merge-metrics: \"false\" says so)"
            )),
        }
    }
    scrape
}

fn is_yes(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"))
}

/// Where the application's are; `None`: the annotations are about the sidecar's already.
fn application(given: &Fields, spec: &Value) -> Result<Option<Value>, String> {
    let text = |name: &str| match given.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
        Some(other) => Err(format!("annotation {name}: {other} is no text")),
    };
    let port = match text(PORT)? {
        Some(text) => {
            let port = text.parse::<u16>().ok().filter(|port| *port > 0);
            port.ok_or_else(|| format!("annotation {PORT}: \"{text}\" is no port"))?
        }
        None => only_port(spec).ok_or_else(|| {
            format!("annotation {PORT} is missing, and the containers have not one port but none or several")
        })?,
    };
    if port == containers::METRICS_PORT {
        return Ok(None);
    }
    if OURS.contains(&port) {
        return Err(format!("annotation {PORT}: {port} is the sidecar's own"));
    }
    let tls = match text(SCHEME)?.map(str::to_ascii_lowercase).as_deref() {
        None | Some("http") => false,
        Some("https") => true,
        Some(other) => return Err(format!("annotation {SCHEME}: \"{other}\" is neither http nor https")),
    };
    let path = format!("/{}", text(PATH)?.unwrap_or("metrics").trim_start_matches('/'));
    if path.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(format!("annotation {PATH}: \"{path}\" is no path"));
    }
    let mut application = json!({"address": "$(POD_IP)", "port": port, "path": probes::verbatim(&path)});
    if tls {
        application["tls"] = true.into();
    }
    Ok(Some(application))
}

/// Of all containers but the sidecar.
fn only_port(spec: &Value) -> Option<u16> {
    let all = spec["containers"].as_array().into_iter().flatten().filter(|one| one["name"] != SIDECAR);
    let ports = all.filter_map(|one| one["ports"].as_array()).flatten();
    let mut ports = ports.filter(|port| port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP"));
    let only = ports.next()?["containerPort"].as_u64();
    only.filter(|_| ports.next().is_none()).and_then(|port| u16::try_from(port).ok())
}
