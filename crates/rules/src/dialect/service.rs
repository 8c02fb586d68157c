//! Kubernetes' Service: a name and a port in front of the workloads that its labels select.
//!
//! What only the cluster itself does with it (node ports, load balancers, names of endpoints) means nothing here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::shared::bounded;
use crate::finding::{code, quote};
use crate::intent::{
    Intent, IpFamily, Location, Near, Preference, Resolution, ServiceIntent, ServicePort, ServiceProtocol,
    Visibility, Workload,
};
use crate::reader::{At, Fields, Reader, Table};
use crate::yaml::Value;

mod opaque;

pub(crate) use opaque::Opaque;

/// Fields of a Service that mean something to the mesh. Others come with every version of Kubernetes, and are the cluster's own.
pub const FIELDS: &[&str] = &[
    "ports",
    "selector",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "type",
    "externalName",
    "sessionAffinity",
    "internalTrafficPolicy",
    "trafficDistribution",
    "publishNotReadyAddresses",
];
/// The same of one of its ports.
pub const PORT_FIELDS: &[&str] = &["port", "name", "protocol", "targetPort", "appProtocol"];

/// What is said of a Service in annotations and has no effect here: the annotation, or how it begins, the values that ask for nothing else
/// than what is done, and what to do instead.
const ANNOTATIONS: [(&str, &[&str], &str); 7] = [
    ("service.kubernetes.io/topology-mode", &["Disabled", "disabled", ""], NEAR),
    ("service.kubernetes.io/topology-aware-hints", &["Disabled", "disabled", ""], NEAR),
    (
        "networking.istio.io/exportTo",
        &["*", ""],
        "every namespace knows the Service; a Sidecar says what a namespace's workloads know",
    ),
    ("retry.linkerd.io/", &[], "TrafficRules have retry"),
    ("timeout.linkerd.io/", &[], "TrafficRules have timeout"),
    ("balancer.linkerd.io/", &[], "TrafficRules have circuitBreaker and loadBalancing"),
    ("config.linkerd.io/", &[], "what it asks of a sidecar stands at its Pods or their namespace"),
];
const NEAR: &str = "hints of the cluster's EndpointSlices are not followed; spec.trafficDistribution, or localityLbSetting of a DestinationRule, keeps requests near";

const SPEC: Table = Table::new("a Service", FIELDS).ignored(&[
    "allocateLoadBalancerNodePorts",
    "externalIPs",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "sessionAffinityConfig",
]);
const PORT: Table = Table::new("a port", PORT_FIELDS).ignored(&["nodePort"]);

/// What a port speaks, by `appProtocol` or by the part of its name before the first `-`, as in Istio.
const PROTOCOLS: [(&str, ServiceProtocol); 18] = [
    ("http", ServiceProtocol::Http),
    ("http2", ServiceProtocol::Http2),
    ("kubernetes.io/h2c", ServiceProtocol::Http2),
    ("h2c", ServiceProtocol::Http2),
    ("kubernetes.io/ws", ServiceProtocol::Http),
    ("ws", ServiceProtocol::Http),
    ("kubernetes.io/wss", ServiceProtocol::Tls),
    ("grpc", ServiceProtocol::Grpc),
    ("grpc-web", ServiceProtocol::Http),
    ("https", ServiceProtocol::Tls),
    ("tls", ServiceProtocol::Tls),
    ("tcp", ServiceProtocol::Tcp),
    ("linkerd.io/tcp", ServiceProtocol::Tcp),
    ("linkerd.io/opaque", ServiceProtocol::Tcp),
    ("mongo", ServiceProtocol::Tcp),
    ("mysql", ServiceProtocol::Tcp),
    ("redis", ServiceProtocol::Tcp),
    ("udp", ServiceProtocol::Tcp),
];

/// Ports whose servers speak first, or that are never HTTP: not worth waiting for what the client says.
const SERVER_FIRST: [u16; 3] = [25, 3306, 27017];

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    bounded(reader, &fields, &[("ports", 256), ("clusterIPs", 16)]);
    let external = reader.text(fields.get("type")).is_some_and(|kind| kind == "ExternalName");
    let name = if external { external_name(reader, &fields) } else { None };
    let host = reader.resolver().service(&reader.origin.name, &reader.origin.namespace);
    let intent = ServiceIntent {
        origin: reader.origin.clone(),
        place: spec.place(),
        hosts: vec![host],
        headless: !external && reader.text(fields.get("clusterIP")).is_some_and(|said| said == "None"),
        families: families(reader, &fields),
        addresses: addresses(reader, &fields),
        ports: ports(reader, &fields),
        location: if external { Location::Outside } else { Location::Inside },
        resolution: if external { Resolution::Dns } else { Resolution::Static },
        endpoints: name.into_iter().collect(),
        selector: if external { BTreeMap::new() } else { reader.labels(fields.get("selector")) },
        visibility: Visibility::default(),
        subject_alt_names: Vec::new(),
        unready: reader.boolean(fields.get("publishNotReadyAddresses")).unwrap_or(false),
        preference: preference(reader, &fields),
    };
    // A name without ports has nothing to route; the cluster's DNS answers it.
    if intent.ports.is_empty() { Vec::new() } else { vec![Intent::Service(intent)] }
}

/// Says which annotations have no effect, and takes up what has.
pub(crate) fn annotated(reader: &mut Reader<'_>, at: &At<'_>, all: &BTreeMap<String, String>) {
    for (name, value) in all {
        if name == opaque::NAME {
            if let Some(why) = opaque::wrong(value) {
                reader.warn(code::NO_EFFECT, at, format!("{}: of {} {why}", at.path, quote(name)));
            }
            reader.opaque = Opaque::read(value);
            continue;
        }
        let known = ANNOTATIONS.iter().find(|(known, ..)| match known.ends_with('/') {
            true => name.starts_with(known),
            false => name == known,
        });
        if let Some((_, _, instead)) = known.filter(|(_, same, _)| !same.contains(&value.trim())) {
            let message = format!("{}: {} has no effect here: {instead}", at.path, quote(name));
            reader.warn(code::NO_EFFECT, at, message);
        }
    }
}

/// What of the endpoints a client gets, by the fields of the cluster's own proxy.
fn preference(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Preference {
    let affinity = [("None", false), ("", false), ("ClientIP", true)];
    let internal = [("Cluster", false), ("", false), ("Local", true)];
    let near = [("PreferClose", Near::Zone), ("PreferSameZone", Near::Zone), ("PreferSameNode", Near::Node)];
    Preference {
        same: said(reader, fields, "sessionAffinity", &affinity).unwrap_or(false),
        own_node: said(reader, fields, "internalTrafficPolicy", &internal).unwrap_or(false),
        near: said(reader, fields, "trafficDistribution", &near),
    }
}

/// One of these words; a newer cluster may have others, which must not cost it the Service.
fn said<T: Copy>(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    field: &'static str,
    words: &[(&str, T)],
) -> Option<T> {
    let at = fields.get(field)?;
    let word = reader.text(Some(at.clone()))?;
    let known = words.iter().find(|(known, _)| *known == word).map(|(_, meaning)| *meaning);
    if known.is_none() {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).filter(|word| !word.is_empty()).collect();
        let message = format!(
            "{}: {} is nothing that Outrigger knows and has no effect; it knows {}",
            at.path,
            quote(&word),
            all.join(", ")
        );
        reader.warn(code::NO_EFFECT, &at, message);
    }
    known
}

/// The name for which another one stands.
fn external_name(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<Workload> {
    let Some(at) = fields.get("externalName") else {
        reader.missing(fields, "externalName");
        return None;
    };
    let text = reader.text(Some(at.clone()))?;
    let address = text.trim_end_matches('.').to_ascii_lowercase();
    Some(Workload {
        address,
        ports: BTreeMap::new(),
        labels: BTreeMap::new(),
        network: String::new(),
        locality: Default::default(),
        weight: 1,
        service_account: String::new(),
        place: at.place(),
    })
}

/// `None` is a headless service's; none at all one that has not got any yet.
fn addresses(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<IpNet> {
    let first = reader.text(fields.get("clusterIP"));
    let all = reader.texts(fields.get("clusterIPs"));
    let all = if all.is_empty() { Vec::from_iter(first) } else { all };
    all.iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(IpNet::from).collect()
}

/// As said, else as the addresses are.
fn families(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<IpFamily> {
    let said = reader.texts(fields.get("ipFamilies"));
    let said: Vec<IpFamily> = said
        .iter()
        .filter_map(|family| match family.as_str() {
            "IPv4" => Some(IpFamily::V4),
            "IPv6" => Some(IpFamily::V6),
            _ => None,
        })
        .collect();
    if !said.is_empty() {
        return said;
    }
    let mut families: Vec<IpFamily> =
        addresses(reader, fields).iter().map(|block| IpFamily::of(block.addr())).collect();
    families.dedup();
    families
}

fn ports(reader: &mut Reader<'_>, fields: &Fields<'_>) -> BTreeMap<u16, ServicePort> {
    let mut ports = BTreeMap::new();
    for item in reader.list(fields.get("ports")) {
        let Some((number, port)) = port(reader, &item) else { continue };
        // One number may be there for TCP and for UDP, of which only the first is carried.
        if ports.insert(number, port).is_some() {
            reader.error(&item, format!("{}: the port {number} is defined twice", item.path));
        }
    }
    ports
}

fn port(reader: &mut Reader<'_>, at: &At<'_>) -> Option<(u16, ServicePort)> {
    let fields = reader.fields(at, &PORT)?;
    if !fields.has("port") {
        reader.missing(&fields, "port");
    }
    let number = reader.port(fields.get("port"));
    let name = reader.text(fields.get("name")).unwrap_or_default();
    if reader.text(fields.get("protocol")).is_some_and(|transport| transport != "TCP") {
        // UDP and SCTP go their way past the sidecar.
        return None;
    }
    let (target, target_name) = target(reader, fields.get("targetPort"));
    let said = fields.get("appProtocol").filter(|at| at.node.value != Value::Null);
    let protocol = match said {
        Some(at) => {
            let word = reader.text(Some(at.clone()))?;
            let known = known(&word);
            if known.is_none() {
                let message = format!(
                    "{}: {} is nothing that Outrigger knows: detected per connection",
                    at.path,
                    quote(&word)
                );
                reader.warn(code::NO_EFFECT, &at, message);
            }
            known.unwrap_or_default()
        }
        None if reader.opaque.has(number?, &name) => ServiceProtocol::Tcp,
        None => by_name(&name, number?),
    };
    Some((number?, ServicePort { name, protocol, target, target_name }))
}

fn target(reader: &mut Reader<'_>, at: Option<At<'_>>) -> (Option<u16>, String) {
    match at {
        Some(at) if matches!(at.node.value, Value::Text(_)) => {
            let text = reader.text(Some(at)).unwrap_or_default();
            match text.parse() {
                Ok(number) => (Some(number), String::new()),
                Err(_) => (None, text),
            }
        }
        // 0 is written where nothing is meant.
        Some(at) => (
            reader.number(Some(at), 0..=65_535).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0),
            String::new(),
        ),
        None => (None, String::new()),
    }
}

fn known(word: &str) -> Option<ServiceProtocol> {
    PROTOCOLS.iter().find(|(known, _)| word.eq_ignore_ascii_case(known)).map(|(_, protocol)| *protocol)
}

fn by_name(name: &str, number: u16) -> ServiceProtocol {
    let short = name.split('-').next().unwrap_or_default();
    let web = name.strip_prefix("grpc-web").filter(|rest| rest.is_empty() || rest.starts_with('-'));
    let word = if web.is_some() { "grpc-web" } else { short };
    known(word).unwrap_or(match SERVER_FIRST.contains(&number) {
        true => ServiceProtocol::Tcp,
        false => ServiceProtocol::Detect,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{object, one_told, service, told};

    fn text(spec: &str) -> String {
        object("v1", "Service", spec)
    }

    #[test]
    fn a_service_of_the_cluster_arrives_whole() {
        let found = service(&text(
            "selector: {app: reviews}
clusterIP: 10.96.0.7
clusterIPs: [10.96.0.7, 'fd00::7']
type: ClusterIP
sessionAffinity: None
internalTrafficPolicy: Cluster
publishNotReadyAddresses: true
ipFamilies: [IPv4]
ports:
- {port: 80, name: http, protocol: TCP, targetPort: 8080, nodePort: 30080}
- {port: 81, name: http-alt, targetPort: web}
- {port: 82, name: web-alt, appProtocol: kubernetes.io/h2c, targetPort: '8082'}
- {port: 53, name: dns, protocol: UDP}
- {port: 90, name: grpc-web-x}
- {port: 3306, name: sql}
- {port: 99}",
        ));
        assert_eq!(found.hosts[0].as_str(), "reviews.shop.svc.cluster.local");
        assert_eq!((found.addresses.len(), found.headless), (2, false));
        assert_eq!(found.families, [IpFamily::V4], "what is said, not what there is");
        assert_eq!((found.location, found.resolution), (Location::Inside, Resolution::Static));
        assert_eq!(found.selector["app"], "reviews");
        assert!(found.unready);
        let ports: Vec<_> =
            found.ports.iter().map(|(n, p)| (*n, p.protocol, p.target, p.target_name.as_str())).collect();
        use ServiceProtocol::{Detect, Http, Http2, Tcp};
        assert_eq!(
            ports,
            [
                (80, Http, Some(8080), ""),
                (81, Http, None, "web"),
                (82, Http2, Some(8082), ""),
                (90, Http, None, ""),
                (99, Detect, None, ""),
                (3306, Tcp, None, ""),
            ]
        );
    }

    #[test]
    fn a_headless_service_has_no_address_and_an_external_name_is_asked_for() {
        let headless =
            service(&text("clusterIP: None\nselector: {app: db}\nports: [{port: 5432, name: tcp}]"));
        assert_eq!((headless.addresses.len(), headless.resolution), (0, Resolution::Static));
        assert!(headless.headless);
        let not_yet = service(&text("selector: {app: db}\nports: [{port: 5432, name: tcp}]"));
        assert!(!not_yet.headless && not_yet.families.is_empty());
        let dual = service(&text("clusterIPs: ['fd00::7', 10.0.0.7]\nports: [{port: 80}]"));
        assert_eq!(dual.families, [IpFamily::V6, IpFamily::V4]);
        let external = service(&text(
            "type: ExternalName\nexternalName: API.example.com.\nselector: {a: b}\nports: [{port: 443, name: https}]",
        ));
        assert_eq!((external.location, external.resolution), (Location::Outside, Resolution::Dns));
        assert_eq!((external.endpoints[0].address.as_str(), external.selector.len()), ("api.example.com", 0));
    }

    #[test]
    fn whom_a_client_gets_is_said_by_three_fields() {
        let of = |said: &str| service(&text(&format!("ports: [{{port: 80}}]\n{said}"))).preference;
        let none = Preference::default();
        assert_eq!(of("sessionAffinity: None\ninternalTrafficPolicy: Cluster"), none);
        assert_eq!(of("sessionAffinity: ClientIP"), Preference { same: true, ..none });
        assert_eq!(of("internalTrafficPolicy: Local"), Preference { own_node: true, ..none });
        for (said, near) in
            [("PreferClose", Near::Zone), ("PreferSameZone", Near::Zone), ("PreferSameNode", Near::Node)]
        {
            let found = of(&format!("trafficDistribution: {said}"));
            assert_eq!(found, Preference { near: Some(near), ..none }, "{said}");
        }
    }

    #[test]
    fn annotations_that_others_follow_are_told() {
        let annotated = |said: &str| {
            let annotations = format!("namespace: shop, annotations: {{{said}}}}}");
            told(&text("ports: [{port: 80}]").replacen("namespace: shop}", &annotations, 1))
        };
        for (said, word) in [
            (
                "service.kubernetes.io/topology-mode: Auto",
                "hints of the cluster's EndpointSlices are not followed",
            ),
            ("service.kubernetes.io/topology-aware-hints: auto", "spec.trafficDistribution"),
            ("networking.istio.io/exportTo: '.'", "every namespace knows the Service"),
            ("retry.linkerd.io/http: 5xx", "TrafficRules have retry"),
            ("timeout.linkerd.io/request: 9s", "TrafficRules have timeout"),
            ("config.linkerd.io/opaque-ports: '25,70000'", "has no effect: it is no port"),
            ("config.linkerd.io/skip-inbound-ports: '25'", "stands at its Pods"),
            (
                "balancer.linkerd.io/failure-accrual: consecutive",
                "TrafficRules have circuitBreaker and loadBalancing",
            ),
        ] {
            let found = annotated(said);
            let name = said.split(':').next().unwrap();
            assert_eq!(found.len(), 1, "{said}: {found:?}");
            assert!(found[0].contains("warning OUT0006: metadata.annotations: "), "{found:?}");
            assert!(found[0].contains(name) && found[0].contains(word), "{said}: {found:?}");
        }
        for said in [
            "service.kubernetes.io/topology-mode: Disabled",
            "networking.istio.io/exportTo: '*'",
            "config.linkerd.io/opaque-ports: '25,3306-3310,sql'",
            "service.kubernetes.io/topology-modes: Auto",
            "prometheus.io/scrape: 'true'",
        ] {
            assert_eq!(annotated(said), [""; 0], "{said}");
        }
    }

    #[test]
    fn linkerd_s_opaque_ports_are_bytes_unless_their_protocol_is_said() {
        let ports = "ports: [{port: 80, name: http}, {port: 81, name: web}, {port: 82, name: sql}, {port: 83, appProtocol: http}, \
                     {port: 84, appProtocol: linkerd.io/opaque}, {port: 85, appProtocol: linkerd.io/tcp}]";
        let annotations = "namespace: shop, annotations: {config.linkerd.io/opaque-ports: '80,83,sql'}}";
        let found = service(&text(ports).replacen("namespace: shop}", annotations, 1));
        use ServiceProtocol::{Detect, Http, Tcp};
        let spoken: Vec<_> = found.ports.values().map(|port| port.protocol).collect();
        assert_eq!(spoken, [Tcp, Detect, Tcp, Http, Tcp, Tcp]);
    }

    #[test]
    fn what_cannot_be_and_what_has_no_effect_is_told() {
        for (spec, word) in [
            ("ports: [{name: http}]", "spec.ports[0].port is missing"),
            ("ports: [{port: 80}, {port: 80}]", "the port 80 is defined twice"),
            ("type: ExternalName\nports: [{port: 80}]", "spec.externalName is missing"),
            ("selecter: {}", "unknown field \"selecter\""),
        ] {
            assert!(one_told(&text(spec)).contains(word), "{spec}: {:?}", told(&text(spec)));
        }
        for (spec, word) in [
            ("ports: [{port: 80}]\nsessionAffinity: Cookie", "ClientIP"),
            ("ports: [{port: 80}]\ninternalTrafficPolicy: Global", "Local"),
            ("ports: [{port: 80}]\ntrafficDistribution: PreferFar", "PreferSameNode"),
            ("ports: [{port: 80, appProtocol: example.com/mine}]", "detected per connection"),
        ] {
            assert!(one_told(&text(spec)).contains(word), "{spec}: {:?}", told(&text(spec)));
        }
    }
}
