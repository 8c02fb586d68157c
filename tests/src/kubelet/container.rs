//! A container as a process: its environment, its volumes, its user, and how it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, ServiceAccount, Volume, VolumeMount};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::TICK;
use super::mounts::{self, Mount};
use super::probe::{Checked, Probe};
use crate::netns::Host;

/// Where Pods find the API server, by its Service.
const API: [(&str, &str); 2] = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];

/// What all containers of a Pod have in common.
pub(super) struct Surroundings {
    pub(super) host: Host,
    directory: PathBuf,
    /// That any user may run.
    programs: PathBuf,
    pod: Pod,
    /// Where each volume is.
    volumes: BTreeMap<String, PathBuf>,
}

/// A container that was started.
pub(super) struct Running {
    pub(super) container: Container,
    pub(super) sidecar: bool,
    child: Child,
    startup: Option<Checked>,
    readiness: Option<Checked>,
    has_started: bool,
    is_ready: bool,
}

impl Surroundings {
    /// `node` is the directory of the node, in which claims outlive their Pods.
    pub(super) async fn of(client: &Client, pod: &Pod, host: &Host, node: &Path) -> Self {
        let namespace = pod.namespace().unwrap_or_default();
        let directory = node.join(format!("{namespace}_{}", pod.name_any()));
        let group = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()?.fs_group);
        let mut volumes = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            let place = match &volume.persistent_volume_claim {
                Some(claim) => claim_in(node, &namespace, &claim.claim_name),
                None => directory.join("volumes").join(&volume.name),
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
        Self { host: host.clone(), directory, programs, pod: pod.clone(), volumes }
    }

    fn mounts(&self, container: &Container) -> Vec<Mount> {
        let mounts = container.volume_mounts.iter().flatten();
        let mount = |mount: &VolumeMount| {
            let (to, read_only) = (mount.mount_path.clone(), mount.read_only.unwrap_or(false));
            Some(Mount { from: self.volumes.get(&mount.name)?.clone(), to, read_only })
        };
        mounts.filter_map(mount).collect()
    }

    /// The program where any user may run it: the directory of a build need not let everybody in.
    fn opened(&self, program: &Path) -> PathBuf {
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
    fn user(&self, container: &Container) -> Option<u32> {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        let of_pod = || self.pod.spec.as_ref()?.security_context.as_ref()?.run_as_user;
        own.or_else(of_pod).and_then(|user| u32::try_from(user).ok())
    }

    fn environment(&self, container: &Container) -> BTreeMap<String, String> {
        let mut all: BTreeMap<String, String> =
            API.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
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
            "status.podIP" | "status.hostIP" => Some(self.host.v4().to_string()),
            path => field_of(&self.pod, path),
        }
    }
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

/// The directory of a claim, on the node's own disk.
pub(super) fn claim_in(node: &Path, namespace: &str, claim: &str) -> PathBuf {
    node.join("claims").join(format!("{namespace}_{claim}"))
}

/// As a kubelet does for `fsGroup`.
fn give_to(place: &Path, group: u32) {
    chown(place, None, Some(group)).expect("root may give files away");
    let mode = std::fs::Permissions::from_mode(0o2775);
    std::fs::set_permissions(place, mode).expect("a directory of our own");
}

/// `$(NAME)` of what was defined before; `$$` is `$`.
fn expanded(text: &str, known: &BTreeMap<String, String>) -> String {
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

impl Running {
    pub(super) fn start(
        container: Container,
        sidecar: bool,
        program: &Path,
        words: &[String],
        around: &Surroundings,
    ) -> Self {
        let scratch = around.directory.join(format!("{}.root", container.name));
        std::fs::create_dir_all(&scratch).expect("a directory of our own");
        let sealed =
            container.security_context.as_ref().and_then(|context| context.read_only_root_filesystem);
        let before = mounts::words(
            &around.pod.name_any(),
            &scratch,
            sealed.unwrap_or(false),
            &around.mounts(&container),
        );
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let user = around.user(&container).filter(|user| *user != 0).map(|user| user.to_string());
        let user = user.as_deref();
        let as_whom = user.map(|user| ["--reuid", user, "--regid", user, "--clear-groups"]);
        let mut command = around.host.command_with(
            &before,
            as_whom.as_ref().map_or(&[], |words| &words[..]),
            around.opened(program),
        );
        let environment = around.environment(&container);
        command.args(words.iter().map(|word| expanded(word, &environment)));
        let kept = ["PATH", "OUTRIGGER_CI_RUN"]
            .into_iter()
            .filter_map(|name| Some((name, std::env::var(name).ok()?)));
        command.env_clear().envs(kept).envs(environment);
        let log = around.directory.join(format!("{}.log", container.name));
        let out = File::options().create(true).append(true).open(log).expect("a file of our own");
        let err = out.try_clone().expect("a file of our own");
        let spawned = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = spawned.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let checked = |probe: &Option<_>| {
            probe.as_ref().map(|probe| Checked::new(Probe::of(probe, &container, &around.host)))
        };
        let (startup, readiness) = (checked(&container.startup_probe), checked(&container.readiness_probe));
        Self { container, sidecar, child, startup, readiness, has_started: false, is_ready: false }
    }

    /// Whether it has ended, and well.
    pub(super) fn exited(&mut self) -> Option<bool> {
        self.child.try_wait().expect("our own child").map(|status| status.success())
    }

    /// Waits for its end; whether that is good.
    pub(super) async fn ended(&mut self) -> bool {
        loop {
            if let Some(success) = self.exited() {
                return success;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Waits until its startup probe has succeeded.
    pub(super) async fn started(&mut self) {
        while !self.check_start().await && self.exited().is_none() {
            tokio::time::sleep(TICK).await;
        }
    }

    async fn check_start(&mut self) -> bool {
        if !self.has_started {
            self.has_started = match &mut self.startup {
                Some(startup) => startup.passes().await,
                None => true,
            };
        }
        self.has_started
    }

    pub(super) async fn ready(&mut self) -> bool {
        self.is_ready = self.exited().is_none()
            && self.check_start().await
            && match &mut self.readiness {
                Some(readiness) => readiness.passes().await,
                None => true,
            };
        self.is_ready
    }

    pub(super) fn status(&self) -> Value {
        json!({
            "name": self.container.name, "image": self.container.image, "imageID": "", "restartCount": 0,
            "ready": self.is_ready, "started": self.has_started, "state": {"running": {}},
        })
    }

    pub(super) fn terminate(&self) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    pub(super) async fn end_by(&mut self, deadline: Instant) {
        while self.exited().is_none() {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
