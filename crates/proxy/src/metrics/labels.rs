//! Istio's labels of a series, made once per series.

use outrigger_model::endpoint::Workload;
use outrigger_model::identity::SpiffeId;
use outrigger_model::listener::Direction;
use outrigger_telemetry::metrics::Labels;

use super::{Local, SeriesOf};
use crate::protocol::Protocol;

const UNKNOWN: &str = "unknown";

fn known(text: &str) -> &str {
    if text.is_empty() { UNKNOWN } else { text }
}

/// A service as Istio's labels name it.
struct Service {
    host: String,
    name: String,
    namespace: String,
}

/// The labels of one series. Who the other side is, is known as far as its identity (inbound) or its endpoint (outbound)
/// says.
pub(super) fn of(series: &SeriesOf<'_>, local: &Local) -> Labels {
    let own = Party {
        workload: Some(&local.workload),
        principal: local.principal.as_ref(),
        cluster: &local.cluster,
    };
    let mut labels = Labels::new();
    match series.direction {
        Direction::Outbound => {
            labels.push("reporter", "source");
            let peer = Party {
                workload: series.workload.map(|w| &**w),
                principal: series.endpoint_identity,
                cluster: &local.cluster,
            };
            party(&mut labels, &SOURCE, &own);
            party(&mut labels, &DESTINATION, &peer);
            let namespace = peer.workload.map_or("", |w| w.namespace.as_str());
            service(&mut labels, &service_of(series.cluster, namespace));
        }
        Direction::Inbound => {
            labels.push("reporter", "destination");
            let peer = Party {
                workload: series.said.map(|said| &said.workload),
                principal: series.peer,
                cluster: series.said.map_or(UNKNOWN, |said| &said.cluster),
            };
            party(&mut labels, &SOURCE, &peer);
            party(&mut labels, &DESTINATION, &own);
            service(&mut labels, &called(series.called, &local.workload));
        }
    }
    let protocol = match series.protocol {
        Protocol::Tcp => "tcp",
        _ if series.is_grpc => "grpc",
        _ => "http",
    };
    labels.push("request_protocol", protocol);
    if series.protocol != Protocol::Tcp {
        labels.push("response_code", &series.code.to_string());
        let grpc = series.grpc_status.map(|status| known_status(status).to_string()).unwrap_or_default();
        labels.push("grpc_response_status", &grpc);
    }
    labels.push("response_flags", &series.flags.to_string());
    let security = match (series.direction, series.mtls) {
        // Istio's source reporter does not say, because an Envoy's does not know.
        (Direction::Outbound, _) => UNKNOWN,
        (Direction::Inbound, true) => "mutual_tls",
        (Direction::Inbound, false) => "none",
    };
    labels.push("connection_security_policy", security);
    labels
}

/// Statuses that gRPC does not know are its UNKNOWN: a peer could name four billion of them.
pub(super) fn known_status(status: u32) -> u32 {
    if status <= 16 { status } else { 2 }
}

/// What is shared by all series beyond the bound.
pub(super) fn other(direction: Direction) -> Labels {
    let reporter = if direction == Direction::Outbound { "source" } else { "destination" };
    Labels::new().with("reporter", reporter).with("destination_service", "other")
}

/// Names of one party's labels: workload, namespace, canonical service, canonical revision, principal, app, version,
/// cluster.
type Names = [&'static str; 8];

const SOURCE: Names = [
    "source_workload",
    "source_workload_namespace",
    "source_canonical_service",
    "source_canonical_revision",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

const DESTINATION: Names = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

struct Party<'a> {
    workload: Option<&'a Workload>,
    principal: Option<&'a SpiffeId>,
    cluster: &'a str,
}

fn party(labels: &mut Labels, names: &Names, party: &Party<'_>) {
    let of = |field: fn(&Workload) -> &String| party.workload.map_or(UNKNOWN, |w| known(field(w)));
    // Without a workload record its identity still tells the namespace, and the account is the best name there is.
    let namespace = party.principal.and_then(SpiffeId::namespace);
    let account = party.principal.and_then(SpiffeId::service_account);
    let service = match (party.workload, account) {
        (None, Some(account)) => account,
        _ => of(|w| &w.service),
    };
    let namespace = match (party.workload, namespace) {
        (None, Some(namespace)) => namespace,
        _ => of(|w| &w.namespace),
    };
    let name = match (party.workload, account) {
        (None, Some(account)) => account,
        _ => of(|w| &w.name),
    };
    let revision = of(|w| &w.revision);
    let principal = party.principal.map_or(UNKNOWN, SpiffeId::as_str);
    let values = [name, namespace, service, revision, principal, service, revision, known(party.cluster)];
    for (name, value) in names.iter().zip(values) {
        labels.push(name, value);
    }
}

fn service(labels: &mut Labels, service: &Service) {
    labels.push("destination_service", known(&service.host));
    labels.push("destination_service_name", known(&service.name));
    labels.push("destination_service_namespace", known(&service.namespace));
}

/// The service that was called: the one that a sidecar named, as long as it is of our namespace; else our workload's own.
/// A workload may stand behind several services, and their hosts may be of any domain.
fn called(host: Option<&str>, own: &Workload) -> Service {
    if let Some(host) = host {
        let called = service_of_host(host, &own.namespace);
        if called.namespace == own.namespace {
            return called;
        }
    }
    let Workload { service: name, namespace, .. } = own;
    let host = format!("{name}.{namespace}.svc.cluster.local");
    Service { host, name: name.clone(), namespace: namespace.clone() }
}

/// The service behind `outbound|PORT|SUBSET|HOST`; a host of the form `name.namespace.svc…` names its namespace itself.
fn service_of(cluster: Option<&str>, endpoint_namespace: &str) -> Service {
    let Some(cluster) = cluster else {
        return Service { host: String::new(), name: String::new(), namespace: String::new() };
    };
    let host = match cluster.split('|').collect::<Vec<_>>().as_slice() {
        ["outbound", _, _, host] => *host,
        _ => cluster,
    };
    service_of_host(host, endpoint_namespace)
}

fn service_of_host(host: &str, otherwise: &str) -> Service {
    let mut parts = host.split('.');
    let (name, namespace, kind) = (parts.next(), parts.next(), parts.next());
    match (name, namespace, kind) {
        (Some(name), Some(namespace), Some("svc")) => {
            Service { host: host.to_owned(), name: name.to_owned(), namespace: namespace.to_owned() }
        }
        _ => Service { host: host.to_owned(), name: host.to_owned(), namespace: otherwise.to_owned() },
    }
}
