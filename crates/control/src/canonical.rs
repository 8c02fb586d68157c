//! What the mesh knows a workload of a cluster by: Istio's canonical service and revision, by label, else what made the Pod; its sidecar.

/// Where the name is written, the first that is there.
const NAMES: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
/// Where the version is.
const VERSIONS: [&str; 3] = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
/// The sidecar's container, and how the mesh knows that there is one.
pub const SIDECAR: &str = "outrigger-proxy";
/// What the name of a Deployment's ReplicaSet ends with.
pub(crate) const HASH: &str = "pod-template-hash";

/// By label.
pub(crate) fn name<'l>(label: impl Fn(&str) -> Option<&'l str>) -> Option<&'l str> {
    NAMES.into_iter().find_map(label).filter(|text| !text.is_empty())
}

/// By label.
pub(crate) fn version<'l>(label: impl Fn(&str) -> Option<&'l str>) -> Option<&'l str> {
    VERSIONS.into_iter().find_map(label).filter(|text| !text.is_empty())
}

/// Of an owner's name that of the Deployment, where that made it for a template of this hash.
pub(crate) fn maker<'n>(owner: &'n str, hash: Option<&str>) -> &'n str {
    let deployment = hash.and_then(|hash| owner.strip_suffix(hash)?.strip_suffix('-'));
    deployment.filter(|name| !name.is_empty()).unwrap_or(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_template_s_hash_is_cut_from_a_name() {
        for (owner, hash, name) in [
            ("web-front-5d8", Some("5d8"), "web-front"),
            ("web-front", None, "web-front"),
            ("web-front", Some("5d8"), "web-front"),
            ("-5d8", Some("5d8"), "-5d8"),
        ] {
            assert_eq!(maker(owner, hash), name);
        }
    }
}
