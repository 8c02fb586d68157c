//! The webhooks. The mutating one: an API server shows each new Pod, and gets back what makes a sidecar of it. The validating one
//! ([`validate`]): it shows each rule, and hears what is wrong with it.
//!
//! ```text
//! POST /inject ─▶ desk ─▶ review (what is asked) ─▶ namespaces (its labels, asked and kept for seconds) ─▶ inject ─▶ patch
//! POST /inject/warnings ─▶ the same for what makes Pods, and nothing is changed
//! POST /validate ─▶ desk ─▶ review ─▶ validate (against the world as it is) ─▶ findings
//! ```
//!
//! Whoever reaches the port may ask: the answer is what a Pod of the asker's own making would become. Each question is bounded in bytes
//! and time, and all of them in number. [`bundle`] keeps the API server's idea of whom to trust here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use json_patch::{Patch, diff};
use outrigger_identity::Authority;
use outrigger_telemetry::Registry;
use outrigger_telemetry::logging::Throttle;
use parking_lot::Mutex;

use crate::inject::{
    FailurePolicy, InjectError, InjectSettings, Injection, Mesh, Namespace, NativeSidecar, Release, Subject,
    decides_alone, inject,
};
use crate::registry::health::{Health, Table};
use crate::settings::Settings;
use desk::Desk;
use namespaces::{Inhabited, Namespaces};
use review::{Answer, Review};
use told::Told;

pub(crate) mod bundle;
mod desk;
mod namespaces;
mod review;
mod told;
pub(crate) mod validate;
mod workloads;

/// For a question. An API server waits 10 s unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(9);

/// Whoever reaches the port can cause the line.
static REFUSED: Throttle = Throttle::new();

/// What came of questions.
#[derive(Default)]
struct Counts {
    injected: AtomicU64,
    left_alone: AtomicU64,
    refused: AtomicU64,
}

/// The injector.
pub(crate) struct Injector {
    settings: InjectSettings,
    trust_domain: String,
    domain: String,
    authority: Arc<Authority>,
    namespaces: Namespaces,
    /// Of the cluster, which knows its releases.
    cluster: Option<Arc<Health>>,
    /// The release that was last said to be too old for native sidecars.
    too_old: Mutex<Option<Release>>,
    desk: Desk,
    /// Of those who are only warned: they keep no Pod waiting.
    counter: Desk,
    counts: Counts,
    told: Told,
}

impl Injector {
    /// `None`: the settings have no section of it. `inhabited` says in which namespaces the mesh has something.
    pub(crate) fn new(
        settings: &Settings,
        authority: Arc<Authority>,
        registries: &Table,
        registry: &Registry,
        inhabited: Box<Inhabited>,
    ) -> Option<Arc<Self>> {
        let row = settings.rows().into_iter().find(|row| row.kubernetes.is_some());
        let row = row.and_then(|row| registries.rows().find(|(_, known)| *known.name == *row.name()));
        let injector = Arc::new(Self {
            settings: settings.injector.clone()?,
            trust_domain: settings.trust_domain.clone(),
            domain: settings.domain.clone(),
            authority,
            namespaces: Namespaces::new(settings.cluster(), inhabited),
            cluster: row.map(|(_, row)| row.health.clone()),
            too_old: Mutex::default(),
            desk: Desk::new(PATIENCE),
            counter: Desk::new(PATIENCE),
            counts: Counts::default(),
            told: Told::default(),
        });
        let seen = injector.clone();
        registry.register_fn(move |page| {
            let mut all =
                page.counter("outrigger_injections_total", "Pods that the webhook was shown, by outcome.");
            let Counts { injected, left_alone, refused } = &seen.counts;
            let outcomes = [
                ("injected", injected),
                ("left_alone", left_alone),
                ("refused", refused),
                ("unreadable", &seen.desk.unreadable),
            ];
            for (outcome, count) in outcomes {
                all.sample([("outcome", outcome)], count.load(Ordering::Relaxed));
            }
        });
        Some(injector)
    }

    /// Where it is to listen.
    pub(crate) fn address(&self) -> SocketAddr {
        self.settings.address
    }

    /// What becomes of a rule that nobody has judged.
    pub(crate) fn unjudged(&self) -> FailurePolicy {
        self.settings.validation_failure_policy
    }

    /// The configurations by which API servers find the webhooks, with their kinds.
    pub(crate) fn configurations(&self) -> [(&'static str, String); 2] {
        configurations(&self.settings)
    }

    /// What is served.
    pub(crate) fn router(self: Arc<Self>) -> Router {
        let warnings = post(warn);
        Router::new().route("/inject", post(answer)).route("/inject/warnings", warnings).with_state(self)
    }

    /// The answer to a review, as an object of the API; else what is wrong with the question.
    async fn review(&self, body: &[u8]) -> Result<serde_json::Value, String> {
        let Review { uid, namespace, pod } = review::read(body)?.of_pod()?;
        let answer = self.decide(&namespace, &pod).await;
        let count = match &answer {
            Answer::Refused(why) | Answer::Unjudged(why) | Answer::Invalid { message: why, .. } => {
                if let Some(suppressed) = REFUSED.admit() {
                    tracing::warn!(namespace, reason = %why, suppressed, "a Pod was refused: it cannot have its sidecar");
                }
                &self.counts.refused
            }
            Answer::Admitted { patch, .. } if patch.is_empty() => &self.counts.left_alone,
            Answer::Admitted { .. } => &self.counts.injected,
        };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(answer.written(&uid))
    }

    /// The oldest release of the cluster. Where sidecars are plain for its sake, that is logged once.
    fn release(&self) -> Option<Release> {
        let release = self.cluster.as_ref()?.release();
        if self.settings.native_sidecar == NativeSidecar::Auto {
            let too_old = release.filter(|release| *release < Release::NATIVE_SIDECARS);
            let before = std::mem::replace(&mut *self.too_old.lock(), too_old);
            match too_old {
                Some(release) if before != too_old => tracing::warn!(
                    %release, needed = %Release::NATIVE_SIDECARS,
                    "there is a Kubernetes in the cluster that knows no native sidecars: those that are injected from now on are plain containers"
                ),
                None if before.is_some() => {
                    tracing::info!("sidecars that are injected from now on are native")
                }
                _ => {}
            }
        }
        release
    }

    async fn decide(&self, name: &str, pod: &serde_json::Value) -> Answer {
        let (namespace, kept) = match self.namespaces.named(name).await {
            Ok(found) => found,
            // A Pod that says clearly what it wants needs nobody else's word.
            Err(_) if decides_alone(pod, name) => {
                (Namespace { name: name.to_owned(), ..Namespace::default() }, false)
            }
            Err(why) => {
                return Answer::Refused(format!(
                    "whether namespace {name} asks for sidecars cannot be found out: {why}; a Pod with the label \
                     sidecar.istio.io/inject, true or false, is admitted all the same"
                ));
            }
        };
        let kubernetes = self.release();
        let subject =
            |namespace| Subject { pod, namespace, workload: None, kubernetes, by_hand: false, earlier: None };
        let mut judged = self.judge(subject(&namespace));
        // API servers ask because of what a namespace says now: what it said before leaves no Pod without a sidecar.
        if kept
            && matches!(judged, Ok(Injection::LeftAlone(_)))
            && let Ok(now) = self.namespaces.now(name).await
        {
            judged = self.judge(subject(&now));
        }
        match judged {
            Ok(Injection::Injected { pod: after, warnings }) => {
                let warnings = workloads::bounded(warnings);
                self.told.tell(name, pod, &warnings);
                Answer::Admitted { patch: diff(pod, &after), warnings }
            }
            Ok(Injection::LeftAlone(why)) => {
                tracing::debug!(namespace = name, reason = %why, "a Pod was left alone");
                Answer::Admitted { patch: Patch::default(), warnings: Vec::new() }
            }
            Err(error) => Answer::Refused(format!("outrigger cannot inject its sidecar: {error}")),
        }
    }

    fn judge(&self, subject: Subject<'_>) -> Result<Injection, InjectError> {
        let mesh = Mesh {
            trust_domain: self.trust_domain.clone(),
            domain: self.domain.clone(),
            roots: self.authority.bundle().to_pem(&self.trust_domain),
        };
        inject(subject, &self.settings, &mesh)
    }
}

/// By what API servers find the webhooks of these settings, with their kinds.
pub(crate) fn configurations(settings: &InjectSettings) -> [(&'static str, String); 2] {
    let InjectSettings { webhook, validating_webhook, .. } = settings;
    [
        ("MutatingWebhookConfiguration", webhook.clone()),
        ("ValidatingWebhookConfiguration", validating_webhook.clone()),
    ]
}

async fn answer(State(injector): State<Arc<Injector>>, body: Body) -> Response {
    injector.desk.ask(body, async |body: Bytes| injector.review(&body).await).await
}

async fn warn(State(injector): State<Arc<Injector>>, body: Body) -> Response {
    injector.counter.ask(body, async |body: Bytes| injector.warn(&body).await).await
}

#[cfg(test)]
mod tests;
