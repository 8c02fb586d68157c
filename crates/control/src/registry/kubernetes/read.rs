//! Rules as a cluster has them: the kinds, and an object of one as if it had been applied. The same for the watch, for admission and for the
//! status that is written back.

use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use outrigger_rules::{ParseOptions, Parsed, parse_with, service};
use serde_json::Value;

use super::cluster::SERVICE;

/// Twice the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A kind of rules: its name, its group, the versions that we read with the one that we want first, and as URLs call it.
type Known = (&'static str, &'static str, &'static [&'static str], &'static str);

/// All of them.
pub(super) const RULES: [Known; 16] = [
    (SERVICE, "", &["v1"], "services"),
    ("VirtualService", "networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "virtualservices"),
    ("DestinationRule", "networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "destinationrules"),
    ("ServiceEntry", "networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "serviceentries"),
    ("WorkloadEntry", "networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "workloadentries"),
    ("Sidecar", "networking.istio.io", &["v1", "v1beta1", "v1alpha3"], "sidecars"),
    ("PeerAuthentication", "security.istio.io", &["v1", "v1beta1"], "peerauthentications"),
    ("AuthorizationPolicy", "security.istio.io", &["v1", "v1beta1"], "authorizationpolicies"),
    ("RequestAuthentication", "security.istio.io", &["v1", "v1beta1"], "requestauthentications"),
    ("HTTPRoute", "gateway.networking.k8s.io", &["v1", "v1beta1"], "httproutes"),
    ("GRPCRoute", "gateway.networking.k8s.io", &["v1", "v1alpha2"], "grpcroutes"),
    ("TLSRoute", "gateway.networking.k8s.io", &["v1", "v1alpha3", "v1alpha2"], "tlsroutes"),
    ("TCPRoute", "gateway.networking.k8s.io", &["v1", "v1alpha2"], "tcproutes"),
    ("ReferenceGrant", "gateway.networking.k8s.io", &["v1", "v1beta1"], "referencegrants"),
    ("BackendTLSPolicy", "gateway.networking.k8s.io", &["v1", "v1alpha3"], "backendtlspolicies"),
    ("TrafficRules", "outrigger.io", &["v1"], "trafficrules"),
];

/// A kind of rules as an API server may have it, the version first that we want. Services are read, but they are no rules to whoever
/// writes them.
pub(crate) fn resources(kind: &str) -> impl Iterator<Item = ApiResource> {
    let known = RULES.iter().find(|(known, group, ..)| *known == kind && !group.is_empty());
    known.into_iter().flat_map(|known| known.2.iter().map(|version| resource(known, version)))
}

/// A kind in one version.
pub(super) fn resource((kind, group, _, plural): &Known, version: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

/// An object as if it had been applied.
pub(crate) fn read(mut object: DynamicObject, options: &ParseOptions) -> Parsed {
    // These change when somebody writes a status, which is no news; that they did would be what the status says next.
    (object.metadata.managed_fields, object.metadata.resource_version) = (None, None);
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if let Value::Object(data) = &mut object.data {
        data.remove("status");
    }
    if object.types.as_ref().is_some_and(|types| types.kind == SERVICE) {
        known_fields(&mut object.data["spec"]);
    }
    parse_with("", &serde_json::to_string(&object).unwrap_or_default(), options)
}

fn known_fields(spec: &mut Value) {
    let Value::Object(spec) = spec else { return };
    spec.retain(|name, _| service::FIELDS.contains(&name.as_str()));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(port) = port {
            port.retain(|name, _| service::PORT_FIELDS.contains(&name.as_str()));
        }
    }
}
