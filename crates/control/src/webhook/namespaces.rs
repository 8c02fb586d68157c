//! What namespaces say, asked of the API server when a Pod of theirs comes, and kept for seconds: a review does not have it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace as Object;
use kube::{Api, Client};
use outrigger_telemetry::logging::Throttle;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::inject::Namespace;
use crate::registry::kubernetes::KubernetesSettings;

/// A label that has been set holds for the next Pod but those of so long: a Deployment's come in crowds.
const KEPT: Duration = Duration::from_secs(3);
/// For an answer: a review must be answered soon itself.
const PATIENCE: Duration = Duration::from_secs(4);
/// Strangers may ask for names without end.
const MOST: usize = 4096;

/// Questions under way for names that exist, and for those of which nobody knows yet whether they do: who reaches the webhook asks for any,
/// and API servers count all of them as ours, which must follow the cluster too. Of the others a few wait, and who finds no place among
/// these is told so at once: who waits here keeps one of the desk's places meanwhile.
const FAMILIAR: usize = 16;
const STRANGE: usize = 4;
const WAITING: usize = 4;

static UNASKED: Throttle = Throttle::new();

/// In which namespaces the mesh has something: they are no strangers though nobody has asked for them since the start.
pub(super) type Inhabited = dyn Fn() -> HashSet<String> + Send + Sync;

/// Namespaces of a cluster.
pub(super) struct Namespaces {
    cluster: Option<KubernetesSettings>,
    client: Mutex<Option<Client>>,
    known: Mutex<HashMap<String, (Instant, Namespace)>>,
    inhabited: Box<Inhabited>,
    /// As it was said last: to say it takes a look at everything in the mesh, and strangers cause it.
    said: Mutex<Option<(Instant, HashSet<String>)>>,
    familiar: Semaphore,
    strange: Semaphore,
    /// Of strangers, those that are asked for and those that wait.
    queue: Semaphore,
}

impl Namespaces {
    /// Nothing is asked yet.
    pub(super) fn new(cluster: Option<KubernetesSettings>, inhabited: Box<Inhabited>) -> Self {
        Self {
            cluster,
            client: Mutex::default(),
            known: Mutex::default(),
            inhabited,
            said: Mutex::default(),
            familiar: Semaphore::new(FAMILIAR),
            strange: Semaphore::new(STRANGE),
            queue: Semaphore::new(STRANGE + WAITING),
        }
    }

    /// What a namespace says, or has said seconds ago; whether that is so.
    pub(super) async fn named(&self, name: &str) -> Result<(Namespace, bool), String> {
        if let Some((at, namespace)) = self.known.lock().get(name)
            && at.elapsed() < KEPT
        {
            return Ok((namespace.clone(), true));
        }
        Ok((self.now(name).await?, false))
    }

    /// What a namespace says at this moment.
    pub(super) async fn now(&self, name: &str) -> Result<Namespace, String> {
        let client = self.client().await?;
        let all: Api<Object> = Api::all(client);
        let is_known = self.known.lock().contains_key(name);
        let (turns, _queued) = match is_known || self.is_inhabited(name) {
            true => (&self.familiar, None),
            false => {
                let queued = self.queue.try_acquire();
                let why = "too many namespaces that nobody knows are asked for at this moment; ask again";
                (&self.strange, Some(queued.map_err(|_| why.to_owned())?))
            }
        };
        let asked = tokio::time::timeout(PATIENCE, async {
            // Never closed.
            let _turn = turns.acquire().await;
            all.get_metadata(name).await
        })
        .await;
        let object = match asked {
            Ok(Ok(object)) => object,
            Ok(Err(kube::Error::Api(status))) => {
                return Err(format!("the API server answers {}", status.code));
            }
            Ok(Err(error)) => {
                // Whoever reaches the webhook causes it.
                if let Some(suppressed) = UNASKED.admit() {
                    tracing::warn!(namespace = name, %error, suppressed, "the API server cannot be asked for a namespace");
                }
                return Err("the API server cannot be asked".to_owned());
            }
            Err(_) => return Err(format!("the API server did not answer within {PATIENCE:?}")),
        };
        let namespace = Namespace {
            name: name.to_owned(),
            labels: object.metadata.labels.unwrap_or_default(),
            annotations: object.metadata.annotations.unwrap_or_default(),
        };
        self.keep(namespace.clone());
        Ok(namespace)
    }

    fn is_inhabited(&self, name: &str) -> bool {
        let mut said = self.said.lock();
        let kept = said.take().filter(|(at, _)| at.elapsed() < KEPT);
        let (_, all) = said.insert(kept.unwrap_or_else(|| (Instant::now(), (self.inhabited)())));
        all.contains(name)
    }

    fn keep(&self, namespace: Namespace) {
        let mut known = self.known.lock();
        if known.len() >= MOST {
            known.retain(|_, (at, _)| at.elapsed() < KEPT);
        }
        if known.len() < MOST || known.contains_key(&namespace.name) {
            known.insert(namespace.name.clone(), (Instant::now(), namespace));
        }
    }

    async fn client(&self) -> Result<Client, String> {
        if let Some(client) = &*self.client.lock() {
            return Ok(client.clone());
        }
        let cluster = self.cluster.as_ref();
        let cluster = cluster.ok_or("the settings name no cluster (a row `kubernetes` of `registries`)")?;
        let client = cluster.client().await?;
        *self.client.lock() = Some(client.clone());
        Ok(client)
    }
}
