//! What the mesh knows a workload of a cluster by: Istio's canonical service and revision, by label, else what made the Pod; its sidecar.

/// Where the name is written, the first that is there.
const NAMES: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// Where the version is.
const VERSIONS: [&str; 3] = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
/// The sidecar's container, and how the mesh knows that there is one.
pub const SIDECAR: &str = "outrigger-proxy";
/// The container that installs the rules of interception.
pub const INIT: &str = "outrigger-init";
/// The container that takes its place where a CNI plugin installs them: it has their options, and ends well only if they are there.
pub const VALIDATION: &str = "outrigger-validation";
/// The variable of the sidecar that its bootstrap is in.
pub const BOOTSTRAP: &str = "OUTRIGGER_BOOTSTRAP";
/// What the name of a ReplicaSet ends with: a Deployment's, and a Rollout's of Argo.
const HASHES: [&str; 2] = ["pod-template-hash", "rollouts-pod-template-hash"];
/// What OpenShift's ReplicationController is made by.
const DEPLOYMENT_CONFIG: &str = "deploymentconfig";
/// Where an instance says what its workload is called, if not after its service and version.
pub(crate) const WORKLOAD: &str = "workload";

/// Where an instance says on which node of a cluster it is.
pub(crate) const NODE: &str = "node";
/// Where it says in which part of its zone it is.
pub(crate) const SUB_ZONE: &str = "subZone";
/// Where it says for clients of which nodes and zones it is meant: with the name of a service behind it, of which that is so, and a comma between.
pub(crate) const FOR_NODES: &str = "for-nodes/";
pub(crate) const FOR_ZONES: &str = "for-zones/";
/// Where it says which roots it was given for its start: the beginnings of their fingerprints.
pub(crate) const ROOTS: &str = "roots";
/// Where it says which ports all come to its sidecar.
pub(crate) const INBOUND: &str = "inbound";
/// Where it says which of all Pods of its name it is.
pub(crate) const UID: &str = "uid";

/// By label.
pub(crate) fn name<'l>(label: impl Fn(&str) -> Option<&'l str>) -> Option<&'l str> {
    NAMES.into_iter().find_map(label).filter(|text| !text.is_empty())
}

/// By label.
pub(crate) fn version<'l>(label: impl Fn(&str) -> Option<&'l str>) -> Option<&'l str> {
    VERSIONS.into_iter().find_map(label).filter(|text| !text.is_empty())
}

/// What made the owner of a Pod, where that has a new name for each template or each run, as Istio finds it; else the owner.
pub(crate) fn maker<'n>(kind: &str, owner: &'n str, label: impl Fn(&str) -> Option<&'n str>) -> &'n str {
    let made = match kind {
        "ReplicaSet" => HASHES
            .into_iter()
            .filter_map(label)
            .find_map(|hash| owner.strip_suffix(hash)?.strip_suffix('-').filter(|_| !hash.is_empty())),
        "ReplicationController" => label(DEPLOYMENT_CONFIG),
        // A CronJob's: the minute that it is for.
        "Job" => owner.rsplit_once('-').and_then(|(name, minute)| {
            ((8..=10).contains(&minute.len()) && minute.bytes().all(|b| b.is_ascii_digit())).then_some(name)
        }),
        _ => None,
    };
    made.filter(|name| !name.is_empty()).unwrap_or(owner)
}

/// As a service of the mesh is named, whatever a label or an owner says: letters, digits and `-`.
pub(crate) fn plain(text: &str) -> String {
    let plain = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9') => c,
        _ => '-',
    };
    let text: String = text.chars().map(plain).take(63).collect();
    match text.trim_matches('-') {
        "" => "unknown".to_owned(),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_for_each_template_or_run_is_cut_from_a_name_and_nothing_else() {
        let hash = "pod-template-hash";
        for (kind, owner, label, name) in [
            ("ReplicaSet", "web-front-5d8", (hash, "5d8"), "web-front"),
            ("ReplicaSet", "web-front", ("", ""), "web-front"),
            ("ReplicaSet", "web-front", (hash, "5d8"), "web-front"),
            ("ReplicaSet", "web-front-", (hash, ""), "web-front-"),
            ("ReplicaSet", "-5d8", (hash, "5d8"), "-5d8"),
            ("ReplicaSet", "web-5d8", ("rollouts-pod-template-hash", "5d8"), "web"),
            ("ReplicationController", "web-3", ("deploymentconfig", "web"), "web"),
            ("Job", "backup-29001234", ("", ""), "backup"),
            ("Job", "backup-1700000000", ("", ""), "backup"),
            ("Job", "backup-2900123", ("", ""), "backup-2900123"),
            ("Job", "backup-29001234567", ("", ""), "backup-29001234567"),
            ("Job", "backup-2900123a", ("", ""), "backup-2900123a"),
            ("Job", "-29001234", ("", ""), "-29001234"),
            ("StatefulSet", "db-29001234", (hash, "29001234"), "db-29001234"),
        ] {
            assert_eq!(maker(kind, owner, |key| (key == label.0).then_some(label.1)), name);
        }
    }

    #[test]
    fn a_name_is_one_that_a_service_may_have() {
        for (text, name) in [("My_App.x", "my-app-x"), ("-a-", "a"), ("", "unknown"), ("é", "unknown")] {
            assert_eq!(plain(text), name);
        }
        assert_eq!(plain(&"a".repeat(70)).len(), 63);
    }
}
