//! Which kind of container a sidecar is, and what that means for its Pod; and what of the Pod or its namespace keeps it from starting.
//!
//! A native one (an init container that goes on) starts before all others and ends after them, and needs Kubernetes 1.29 at the API server and
//! at the Pod's node. An older API server drops the field that makes it one, and the Pod never gets beyond it. A plain one stands beside the others: it
//! starts as they do, or has them wait; it goes on when they have ended.

use serde_json::Value;

use super::wishes::Wishes;
use super::{INIT, InjectSettings, Namespace, NativeSidecar, Release, VALIDATION, containers};

/// By which a namespace says what its Pods may be.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// A Pod that its namespace does not take: the container that makes the rules of interception has a privilege.
pub(super) fn forbidden(namespace: &Namespace, settings: &InjectSettings) -> Option<String> {
    let level = namespace
        .labels
        .get(POD_SECURITY)
        .filter(|level| matches!(level.as_str(), "restricted" | "baseline"))?;
    (containers::first(settings) == Some(INIT)).then(|| {
        format!(
            "the namespace takes no Pod with a privilege ({POD_SECURITY}: {level}), and {INIT} needs NET_ADMIN: the Pod will be refused; the CNI plugin \
             (cni.enabled) makes the rules without one"
        )
    })
}

/// A Pod whose name servers know nothing of the cluster: its sidecar does not find the control plane, and it does not start.
pub(super) fn lost(pod: &Value, settings: &InjectSettings) -> Option<String> {
    let (host, _) = settings.control_plane.rsplit_once(':')?;
    let spec = &pod["spec"];
    let is_address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
    let policy =
        spec["dnsPolicy"].as_str().filter(|policy| matches!(*policy, "Default" | "None") && !is_address)?;
    let mut searched = spec["dnsConfig"]["searches"].as_array().into_iter().flatten();
    // Its own words may well be those of the cluster.
    let is_found = spec["dnsConfig"]["nameservers"].is_array() && searched.next().is_some();
    (!is_found).then(|| {
        format!(
            "dnsPolicy: {policy} has the sidecar look for the control plane ({host}) at name servers that may not know it, and the Pod does not start \
             without it; dnsConfig with nameservers and searches of the cluster mends it"
        )
    })
}

/// What the author of a Pod should know of it, once it has its sidecar.
pub(super) fn warnings(
    pod: &Value,
    wishes: &Wishes,
    settings: &InjectSettings,
    kubernetes: Option<Release>,
) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(release) = kubernetes.filter(|release| *release < Release::NATIVE_SIDECARS) {
        if wishes.native {
            all.push(format!(
                "a native sidecar is asked for, and there is Kubernetes {release} in the cluster (API server or a node), which knows none: the Pod will \
                 not get beyond it; native sidecars need {}, with nativeSidecar: auto there is a plain one until then",
                Release::NATIVE_SIDECARS
            ));
        } else if settings.native_sidecar == NativeSidecar::Auto && !wishes.asked {
            all.push(format!(
                "the sidecar is a plain container, since there is Kubernetes {release} in the cluster (API server or a node) and native ones need {}: \
                 init containers run without the mesh{}",
                Release::NATIVE_SIDECARS,
                if wishes.hold { "" } else { ", and the application may start before it (holdApplicationUntilProxyStarts has it wait)" }
            ));
        }
    }
    if wishes.native {
        return all;
    }
    if let Some(policy) = pod["spec"]["restartPolicy"].as_str().filter(|policy| *policy != "Always") {
        all.push(format!(
            "the Pod is to end (restartPolicy {policy}), and its sidecar, a plain container, goes on: have the program end it, last of all, by POST \
             http://127.0.0.1:15000/quitquitquit, or use a native sidecar (Kubernetes {})",
            Release::NATIVE_SIDECARS
        ));
    }
    // With the CNI plugin the rules are there from the beginning, and a plain sidecar comes after the init containers.
    let containers = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    let mut others = containers.filter_map(|one| one["name"].as_str());
    if let Some(first) = others.find(|name| ![INIT, VALIDATION].contains(name)).filter(|_| settings.cni) {
        all.push(format!(
            "init container {first} starts before the sidecar, and the CNI plugin's rules are there already: what it connects to is refused; \
             use native sidecars, or exclude what it needs (traffic.sidecar.istio.io/excludeOutboundPorts, …IPRanges)"
        ));
    }
    all
}
