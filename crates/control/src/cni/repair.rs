//! Pods that started without their rules: before the plugin was in its place, or beside it. Their check does not end well, so none of them
//! runs; what is done about them is a setting. Where rules may be made, they are as soon as the check of a Pod runs that this agent has
//! not been called for: in time for it not to fail, which those that are never restarted could not stand.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{EvictParams, Patch, PatchParams};
use kube::runtime::watcher;
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::timeout;

use super::Agent;
use super::netns::{Netns, Trouble};
use super::pod::{Verdict, verdict};
use crate::inject::VALIDATION;
use crate::pace::{Pace, paced};

/// Before what did not work is tried again.
const PAUSE: Duration = Duration::from_secs(10);
/// Before what did work is: the check of a Pod is tried again by its kubelet, after minutes at last.
const AGAIN: Duration = Duration::from_secs(60);
/// Before Pods are asked for again, at first and at most: every node does.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
/// For a word of the API server, and for all that is done about a Pod at a time: others wait for it.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(25));
/// Of Pods that were seen to.
const MOST: usize = 4096;
/// Put on a Pod that has no rules.
const LABEL: &str = "outrigger.io/interception";
/// By which injected Pods are found.
const INJECTED: &str = "outrigger.io/rev";

/// What is done about such Pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ways {
    /// Their rules are made.
    pub(super) rules: bool,
    /// Those that somebody makes anew are evicted.
    pub(super) evict: bool,
    /// They are labelled.
    pub(super) label: bool,
}

/// A Pod without its rules, and what was done about it.
struct Broken {
    pod: Pod,
    done: Option<(Instant, Result<&'static str, String>)>,
}

/// Follows the Pods of the node; ends with the process.
pub(super) async fn keep(agent: Arc<Agent>) {
    // From the API server's memory: what it is late for, the watch says.
    let which = watcher::Config::default()
        .any_semantic()
        .fields(&format!("spec.nodeName={}", agent.node))
        .labels(INJECTED);
    let api: Api<Pod> = Api::all(agent.client.clone());
    let mut events = paced(watcher(api, which), Pace::new(AWAY));
    let mut again = tokio::time::interval(PAUSE);
    let mut all: HashMap<String, Broken> = HashMap::new();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod))) => {
                    let uid = pod.uid().unwrap_or_default();
                    if has_passed(&pod) {
                        // What it was made for is over. In another sandbox it begins anew.
                        agent.made.lock().remove(&uid);
                    }
                    if is_checked(&pod) && agent.ways.rules && !agent.made.lock().contains(&uid)
                        && timeout(PATIENCE.1, agent.look_before(&pod)).await.is_err()
                    {
                        tracing::warn!(pod = pod.name_any(), "whether it has its rules was not known within {:?}", PATIENCE.1);
                    }
                    // One that runs again after it has failed finds the rules that were just made.
                    let finds = is_checked(&pod) && agent.made.lock().contains(&uid);
                    match is_broken(&pod) && !finds {
                        true => {
                            let broken = all.entry(uid).or_insert_with(|| Broken { pod: pod.clone(), done: None });
                            broken.pod = pod;
                            agent.look_at(broken).await;
                        }
                        false => drop(all.remove(&uid)),
                    }
                }
                Some(Ok(watcher::Event::Delete(pod))) => drop(all.remove(&pod.uid().unwrap_or_default())),
                // A listing: who is not in it has gone.
                Some(Ok(watcher::Event::Init)) => all.clear(),
                Some(Ok(watcher::Event::InitDone)) => {}
                Some(Err(error)) => tracing::warn!(%error, "the Pods of this node cannot be followed"),
                None => return,
            },
            _ = again.tick() => {
                for broken in all.values_mut() {
                    agent.look_at(broken).await;
                }
            }
        }
    }
}

impl Agent {
    /// Makes the rules of a Pod whose check runs, if they are not there.
    async fn look_before(&self, pod: &Pod) {
        let Ok(Verdict::Intercept(options)) = verdict(pod) else { return };
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let done = match self.namespace_of(pod).await {
            Ok(netns) => match self.show(netns.clone()).await {
                Ok(true) => return self.has_made(pod),
                Ok(false) => self.mend(pod, netns, options).await,
                Err(Trouble::Gone(why) | Trouble::Other(why)) => Err(why),
            },
            Err(why) => Err(why),
        };
        match done {
            Ok(()) => {
                self.counts.repaired(true);
                tracing::warn!(
                    namespace,
                    pod = name,
                    "started without the rules of interception: its rules were made"
                );
            }
            // Its check fails, and then there are other ways, too.
            Err(why) => {
                tracing::debug!(namespace, pod = name, "whether it has its rules is not known: {why}")
            }
        }
    }

    /// So that it is not looked at again.
    fn has_made(&self, pod: &Pod) {
        remember(&self.made, pod.uid());
    }

    /// Does what there is to do about it, but not again and again.
    async fn look_at(&self, broken: &mut Broken) {
        let wait = |done: &Result<_, _>| if done.is_ok() { AGAIN } else { PAUSE };
        if broken.done.as_ref().is_some_and(|(at, done)| at.elapsed() < wait(done)) {
            return;
        }
        let pod = &broken.pod;
        let Ok(Verdict::Intercept(options)) = verdict(pod) else { return };
        let done = timeout(PATIENCE.1, self.repair(pod, options)).await;
        let done = done.unwrap_or_else(|_| Err(format!("it was not mended within {:?}", PATIENCE.1)));
        if broken.done.as_ref().is_none_or(|(_, told)| *told != done) {
            self.counts.repaired(done.is_ok());
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let what = match &done {
                Ok(what) => *what,
                Err(why) => why.as_str(),
            };
            tracing::warn!(namespace, pod = name, "started without the rules of interception: {what}");
        }
        broken.done = Some((Instant::now(), done));
    }

    async fn repair(&self, pod: &Pod, options: Vec<String>) -> Result<&'static str, String> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let mut done = Err("no way of repair is set".to_owned());
        if self.ways.label {
            let patch = Patch::Merge(json!({"metadata": {"labels": {LABEL: "missing"}}}));
            let patched = match pod.labels().get(LABEL).is_some_and(|value| value == "missing") {
                true => Ok(()),
                false => said(api.patch_metadata(&name, &PatchParams::default(), &patch)).await.map(drop),
            };
            done = patched
                .map(|()| "it was labelled")
                .map_err(|error| format!("it cannot be labelled: {error}"));
        }
        if self.ways.rules {
            done = match self.namespace_of(pod).await {
                Ok(netns) => self.mend(pod, netns, options).await.map(|()| "its rules were made"),
                Err(why) => Err(why),
            };
        }
        if self.ways.evict && !(self.ways.rules && done.is_ok()) {
            done = match is_made_anew(pod) {
                true => {
                    let evicted = said(api.evict(&name, &EvictParams::default())).await;
                    evicted
                        .map(|_| "it was evicted")
                        .map_err(|error| format!("it cannot be evicted: {error}"))
                }
                false => Err("nobody would make it anew: delete it yourself".to_owned()),
            };
        }
        done
    }

    async fn namespace_of(&self, pod: &Pod) -> Result<Netns, String> {
        let (uid, processes) = (pod.uid().unwrap_or_default(), self.processes.clone());
        let found = tokio::task::spawn_blocking(move || namespace_of(&processes, &uid)).await;
        found.ok().flatten().map(|held| Netns::Open(Arc::new(held))).ok_or_else(|| {
            format!(
                "no process of it was found in {}, which must be the node's (hostPID)",
                self.processes.display()
            )
        })
    }

    async fn mend(&self, pod: &Pod, netns: Netns, options: Vec<String>) -> Result<(), String> {
        // Beside the cluster's those that a Pod adds are not all that it asks: then the node's file says whom.
        let spec = pod.spec.as_ref();
        let alone = spec.filter(|spec| spec.dns_policy.as_deref() == Some("None"));
        let servers = alone.and_then(|spec| spec.dns_config.as_ref()).and_then(|dns| dns.nameservers.clone());
        match self.apply(netns, options, &servers.unwrap_or_default()).await {
            Ok(_) => {
                self.has_made(pod);
                Ok(())
            }
            Err(Trouble::Gone(why) | Trouble::Other(why)) => Err(why),
        }
    }
}

/// What the API server says, if it says anything.
async fn said<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(PATIENCE.0, asked).await {
        Ok(said) => said.map_err(|error| error.to_string()),
        Err(_) => Err(format!("the API server did not answer within {:?}", PATIENCE.0)),
    }
}

/// Of Pods that were seen to: as many as no node has, then they are looked at once more.
pub(super) fn remember(made: &Mutex<HashSet<String>>, uid: Option<String>) {
    let mut made = made.lock();
    if made.len() >= MOST {
        made.clear();
    }
    made.extend(uid);
}

/// Its check runs.
fn is_checked(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && check_of(pod)
            .is_some_and(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
}

/// Its check has ended well.
fn has_passed(pod: &Pod) -> bool {
    let ended = check_of(pod).and_then(|status| status.state.as_ref()?.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code == 0)
}

fn check_of(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.init_container_statuses.iter().flatten().find(|status| status.name == VALIDATION)
}

/// Its check has failed, and has not succeeded since.
fn is_broken(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Pending"))
        && check_of(pod).is_some_and(has_failed)
}

fn has_failed(status: &ContainerStatus) -> bool {
    let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state.as_ref().and_then(|state| state.terminated.as_ref()).map(|ended| ended.exit_code)
    };
    match ended(&status.state) {
        Some(code) => code != 0,
        None => ended(&status.last_state).is_some_and(|code| code != 0),
    }
}

fn is_made_anew(pod: &Pod) -> bool {
    pod.owner_references().iter().any(|owner| owner.controller == Some(true))
}

/// The network namespace of a Pod, of which one process is always there, by the group that its kubelet has put it into.
fn namespace_of(processes: &Path, uid: &str) -> Option<File> {
    let is_there = |path: &Path| {
        std::fs::read_to_string(path.join("cgroup"))
            .is_ok_and(|groups| groups.lines().any(|line| is_of(line, uid)))
    };
    let all = std::fs::read_dir(processes).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut numbered = all.filter(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
    });
    numbered.find_map(|path| {
        let held = is_there(&path).then(|| File::open(path.join("ns/net")).ok())??;
        // A process may end, and another Pod's have its number: then what was opened may be that one's.
        is_there(&path).then_some(held)
    })
}

/// `…/kubepods-burstable-podUID.slice/…` with the uid's dashes as `_`, or `…/kubepods/burstable/podUID/…`. The outermost counts: below it
/// a container may make groups of any name.
fn is_of(line: &str, uid: &str) -> bool {
    let path = line.splitn(3, ':').nth(2).unwrap_or_default();
    let mut pods = path.split('/').filter_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let uid = part.strip_prefix("pod").or_else(|| Some(part.rsplit_once("-pod")?.1))?;
        Some(uid.replace('_', "-"))
    });
    !uid.is_empty() && pods.next().is_some_and(|found| found == uid)
}

#[cfg(test)]
mod tests;
