//! What a container finds: its environment, its volumes, its user.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, PersistentVolumeClaim, Pod, Secret, ServiceAccount, Volume, VolumeMount,
};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::mounts::Mount;
use super::network::Node;
use crate::netns::Host;

/// Where Pods find the API server, by its Service.
const API: [(&str, &str); 2] = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
/// Where those find it that are in the network of the node: that is its own host, which has no way to a Service.
const IN_NODE: [(&str, &str); 2] =
    [("KUBERNETES_SERVICE_HOST", "127.0.0.1"), ("KUBERNETES_SERVICE_PORT", "6443")];

/// In the directory of a Pod.
pub(super) const HISTORY: &str = "history";

/// What all containers of a Pod have in common.
pub(super) struct Surroundings {
    pub(super) host: Host,
    pub(super) directory: PathBuf,
    /// That any user may run.
    programs: PathBuf,
    pub(super) pod: Pod,
    /// It is in the network of its node.
    pub(super) in_node: bool,
    /// Where each volume is.
    volumes: BTreeMap<String, PathBuf>,
}

impl Surroundings {
    /// `node` is the directory of the node, in which claims outlive their Pods; `files`, where it shows them to Pods.
    pub(super) async fn of(
        client: &Client,
        pod: &Pod,
        host: &Host,
        node: &Path,
        files: Option<&Node>,
    ) -> Self {
        let namespace = pod.namespace().unwrap_or_default();
        let directory = node.join(format!("{namespace}_{}", pod.name_any()));
        let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let mut volumes = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if let Some(path) = &volume.host_path {
                let files = files.expect("a node that shows its files");
                let place = files.place(&path.path);
                std::fs::create_dir_all(&place).expect("root may make directories");
                volumes.insert(volume.name.clone(), place);
                continue;
            }
            let place = match &volume.persistent_volume_claim {
                Some(claim) => claim_in(node, &namespace, &claim.claim_name),
                None => {
                    let place = directory.join("volumes").join(&volume.name);
                    // The Pod of this name that was there before has taken its own with it.
                    let _ = std::fs::remove_dir_all(&place);
                    place
                }
            };
            std::fs::create_dir_all(&place).expect("a directory of our own");
            fill(client, pod, volume, &place).await;
            match group.and_then(|group| u32::try_from(group).ok()) {
                Some(group) => give_to(&place, group),
                None => crate::open_to_all(&place),
            }
            volumes.insert(volume.name.clone(), place);
        }
        std::fs::create_dir_all(directory.join("volumes")).expect("a directory of our own");
        crate::open_to_all(&directory);
        crate::open_to_all(&directory.join("volumes"));
        let programs = node.join("programs");
        std::fs::create_dir_all(&programs).expect("a directory of our own");
        crate::open_to_all(&programs);
        let in_node = files.is_some() && is_in_node(pod);
        Self { host: host.clone(), directory, programs, pod: pod.clone(), in_node, volumes }
    }

    pub(super) fn mounts(&self, container: &Container) -> Vec<Mount> {
        let mounts = container.volume_mounts.iter().flatten();
        let mount = |mount: &VolumeMount| {
            let (to, read_only) = (mount.mount_path.clone(), mount.read_only.unwrap_or(false));
            let from = self.volumes.get(&mount.name)?.clone();
            // What is there already has others mounted in it, which are not to be hidden.
            (from != Path::new(&to)).then_some(Mount { from, to, read_only })
        };
        mounts.filter_map(mount).collect()
    }

    /// What has become of its containers, a line for each step.
    pub(super) fn note(&self, words: &str) {
        let file = File::options().create(true).append(true).open(self.directory.join(HISTORY));
        let mut file = file.expect("a file of our own");
        writeln!(file, "{words}").expect("a file of our own");
    }

    /// The program where any user may run it: the directory of a build need not let everybody in.
    pub(super) fn opened(&self, program: &Path) -> PathBuf {
        let name = program.file_name().expect("a program has a name");
        let opened = self.programs.join(name);
        if !opened.exists() {
            let unfinished = self.programs.join(format!(".{}", fastrand::u64(..)));
            let linked = std::fs::hard_link(program, &unfinished);
            linked.or_else(|_| std::fs::copy(program, &unfinished).map(drop)).expect("the program is copied");
            std::fs::rename(&unfinished, &opened).expect("a file of our own");
        }
        opened
    }

    /// As whom a container runs: its own word goes before its Pod's.
    pub(super) fn user(&self, container: &Container) -> Option<u32> {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        let of_pod = || self.pod.spec.as_ref()?.security_context.as_ref()?.run_as_user;
        own.or_else(of_pod).and_then(|user| u32::try_from(user).ok())
    }

    pub(super) fn environment(&self, container: &Container) -> BTreeMap<String, String> {
        let api = if self.in_node { IN_NODE } else { API };
        let mut all: BTreeMap<String, String> =
            api.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for variable in container.env.iter().flatten() {
            let value = match &variable.value {
                Some(text) => expanded(text, &all),
                None => self.field(variable).unwrap_or_default(),
            };
            all.insert(variable.name.clone(), value);
        }
        all
    }

    /// The downward API.
    fn field(&self, variable: &EnvVar) -> Option<String> {
        let path = variable.value_from.as_ref()?.field_ref.as_ref()?.field_path.as_str();
        match path {
            "status.podIP" => self.host.pod_addresses().first().map(ToString::to_string),
            "status.hostIP" => Some(self.host.v4().to_string()),
            path => field_of(&self.pod, path),
        }
    }
}

/// Whether a Pod asks to be in the network of its node.
pub(super) fn is_in_node(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// What a Pod says of itself.
fn field_of(pod: &Pod, path: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    Some(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace()?,
        "metadata.uid" => pod.uid()?,
        "spec.nodeName" => spec.node_name.clone()?,
        "spec.serviceAccountName" => {
            spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned())
        }
        label => {
            let label = label.strip_prefix("metadata.labels['")?.strip_suffix("']")?;
            pod.labels().get(label).cloned().unwrap_or_default()
        }
    })
}

/// Waits until each volume that the Pod claims is there: somebody has to make it.
pub(super) async fn bound(client: &Client, pod: &Pod) {
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for claim in volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
        loop {
            let found = claims.get(&claim.claim_name).await.ok();
            let phase = found.and_then(|found| found.status?.phase);
            if phase.as_deref() == Some("Bound") {
                break;
            }
            tokio::time::sleep(super::TICK).await;
        }
    }
}

/// The directory of a claim, on the node's own disk.
fn claim_in(node: &Path, namespace: &str, claim: &str) -> PathBuf {
    node.join("claims").join(format!("{namespace}_{claim}"))
}

/// As a kubelet does for `fsGroup`.
fn give_to(place: &Path, group: u32) {
    chown(place, None, Some(group)).expect("root may give files away");
    let mode = std::fs::Permissions::from_mode(0o2775);
    std::fs::set_permissions(place, mode).expect("a directory of our own");
}

/// `$(NAME)` of what was defined before; `$$` is `$`.
pub(super) fn expanded(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        done.push_str(&rest[..at]);
        rest = &rest[at..];
        let name = rest.strip_prefix("$(").and_then(|rest| rest.split_once(')')).map(|(name, _)| name);
        if rest.starts_with("$$") {
            done.push('$');
            rest = &rest[2..];
        } else if let Some(value) = name.and_then(|name| known.get(name)) {
            done.push_str(value);
            rest = &rest[name.map_or(0, str::len) + 3..];
        } else {
            done.push('$');
            rest = &rest[1..];
        }
    }
    done + rest
}

async fn fill(client: &Client, pod: &Pod, volume: &Volume, place: &Path) {
    let namespace = pod.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let write = |name: &str, text: &str| std::fs::write(place.join(name), text).expect("a file of our own");
    let map = async |name: &str| {
        let found = maps.get_opt(name).await.ok().flatten();
        found.and_then(|map| map.data).unwrap_or_default()
    };
    if let Some(source) = &volume.config_map {
        map(&source.name).await.iter().for_each(|(name, text)| write(name, text));
    }
    if let Some(source) = &volume.secret {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
        let found = secrets.get(source.secret_name.as_deref().unwrap_or_default()).await;
        for (name, bytes) in found.expect("the Secret is there").data.unwrap_or_default() {
            std::fs::write(place.join(name), bytes.0).expect("a file of our own");
        }
    }
    for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
        if let Some(source) = &source.config_map {
            map(&source.name).await.iter().for_each(|(name, text)| write(name, text));
        }
        for item in source.downward_api.iter().flat_map(|said| said.items.iter().flatten()) {
            let field = item.field_ref.as_ref().and_then(|field| field_of(pod, &field.field_path));
            write(&item.path, &field.unwrap_or_default());
        }
        if let Some(token) = &source.service_account_token {
            let audiences = token.audience.iter().cloned().collect();
            write(&token.path, &token_of(client, pod, audiences).await);
        }
    }
}

/// As the kubelet asks for it: bound to the Pod.
async fn token_of(client: &Client, pod: &Pod, audiences: Vec<String>) -> String {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let reference = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    };
    let spec =
        TokenRequestSpec { audiences, bound_object_ref: Some(reference), expiration_seconds: Some(3600) };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let name = account.as_deref().unwrap_or("default");
    let made = accounts.create_token_request(name, &PostParams::default(), &request).await;
    made.expect("a token for the Pod").status.expect("it was made").token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_expanded_as_a_kubelet_does() {
        let known = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "2".to_owned())]);
        for (text, value) in [("$(A).$(B)x", "1.2x"), ("$(C) $A", "$(C) $A"), ("$$(A)", "$(A)"), ("$", "$")] {
            assert_eq!(expanded(text, &known), value);
        }
    }
}
