//! The mutating webhook: an API server shows each new Pod, and gets back what makes a sidecar of it.
//!
//! ```text
//! POST /inject ─▶ review (what is asked) ─▶ namespaces (its labels, asked and kept for seconds) ─▶ inject ─▶ patch
//! ```
//!
//! Whoever reaches the port may ask: the answer is what a Pod of the asker's own making would become. Each question is bounded in bytes
//! and time, and all of them in number. [`bundle`] keeps the API server's idea of whom to trust here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use json_patch::{Patch, diff};
use outrigger_identity::Authority;
use outrigger_telemetry::Registry;
use outrigger_telemetry::logging::Throttle;
use tokio::sync::Semaphore;

use crate::inject::{InjectSettings, Injection, Mesh, Namespace, Subject, decides_alone, inject};
use crate::settings::Settings;
use namespaces::Namespaces;
use review::{Answer, Review};

pub(crate) mod bundle;
mod namespaces;
mod review;

/// An API server sends objects of at most 3 MiB.
const MOST: usize = 3 << 20;
/// Questions at once; others wait for their turn.
const QUESTIONS: usize = 16;
/// Bodies on their way at once, and how long each may take: who is slow there holds up nobody whose question is whole.
const BODIES: (usize, Duration) = (64, Duration::from_secs(2));
/// For a question, its body and its turn included. An API server waits 10 s unless it is told otherwise.
const PATIENCE: Duration = Duration::from_secs(9);

/// Whoever reaches the port can cause the line.
static REFUSED: Throttle = Throttle::new();

/// What came of questions.
#[derive(Default)]
struct Counts {
    injected: AtomicU64,
    left_alone: AtomicU64,
    refused: AtomicU64,
    unreadable: AtomicU64,
}

/// The injector.
pub(crate) struct Injector {
    settings: InjectSettings,
    trust_domain: String,
    domain: String,
    authority: Arc<Authority>,
    namespaces: Namespaces,
    bodies: Semaphore,
    places: Semaphore,
    counts: Counts,
}

impl Injector {
    /// `None`: the settings have no section of it.
    pub(crate) fn new(
        settings: &Settings,
        authority: Arc<Authority>,
        registry: &Registry,
    ) -> Option<Arc<Self>> {
        let injector = Arc::new(Self {
            settings: settings.injector.clone()?,
            trust_domain: settings.trust_domain.clone(),
            domain: settings.domain.clone(),
            authority,
            namespaces: Namespaces::new(settings.cluster()),
            bodies: Semaphore::new(BODIES.0),
            places: Semaphore::new(QUESTIONS),
            counts: Counts::default(),
        });
        let seen = injector.clone();
        registry.register_fn(move |page| {
            let mut all =
                page.counter("outrigger_injections_total", "Pods that the webhook was shown, by outcome.");
            let Counts { injected, left_alone, refused, unreadable } = &seen.counts;
            let outcomes = [
                ("injected", injected),
                ("left_alone", left_alone),
                ("refused", refused),
                ("unreadable", unreadable),
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

    /// The configuration by which API servers find it.
    pub(crate) fn webhook(&self) -> &str {
        &self.settings.webhook
    }

    /// What is served.
    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new().route("/inject", post(answer)).with_state(self)
    }

    /// The answer to a review, as an object of the API; else what is wrong with the question.
    async fn review(&self, body: &[u8]) -> Result<serde_json::Value, String> {
        let Review { uid, namespace, pod } = review::read(body)?;
        let answer = self.decide(&namespace, &pod).await;
        let count = match &answer {
            Answer::Refused(why) => {
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

    async fn decide(&self, name: &str, pod: &serde_json::Value) -> Answer {
        let namespace = match self.namespaces.named(name).await {
            Ok(namespace) => namespace,
            // A Pod that says clearly what it wants needs nobody else's word.
            Err(_) if decides_alone(pod, name) => Namespace { name: name.to_owned(), ..Namespace::default() },
            Err(why) => {
                return Answer::Refused(format!(
                    "whether namespace {name} asks for sidecars cannot be found out: {why}; a Pod with the label \
                     sidecar.istio.io/inject, true or false, is admitted all the same"
                ));
            }
        };
        let mesh = Mesh {
            trust_domain: self.trust_domain.clone(),
            domain: self.domain.clone(),
            roots: self.authority.bundle().to_pem(&self.trust_domain),
        };
        match inject(Subject { pod, namespace: &namespace, workload: None }, &self.settings, &mesh) {
            Ok(Injection::Injected { pod: after, warnings }) => {
                Answer::Admitted { patch: diff(pod, &after), warnings }
            }
            Ok(Injection::LeftAlone(why)) => {
                tracing::debug!(namespace = name, reason = %why, "a Pod was left alone");
                Answer::Admitted { patch: Patch::default(), warnings: Vec::new() }
            }
            Err(error) => Answer::Refused(format!("outrigger cannot inject its sidecar: {error}")),
        }
    }
}

async fn answer(State(injector): State<Arc<Injector>>, body: Body) -> Response {
    let asked = async {
        let Ok(place) = injector.bodies.acquire().await else { return overdue() };
        let read = tokio::time::timeout(BODIES.1, to_bytes(body, MOST)).await;
        drop(place);
        let body: Bytes = match read {
            Err(_) => return overdue(),
            Ok(Ok(body)) => body,
            Ok(Err(error)) => {
                return wrong(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    &format!("the body: {error}; {MOST} bytes are the most"),
                );
            }
        };
        let Ok(_place) = injector.places.acquire().await else { return overdue() };
        match injector.review(&body).await {
            Ok(answer) => axum::Json(answer).into_response(),
            Err(why) => {
                injector.counts.unreadable.fetch_add(1, Ordering::Relaxed);
                wrong(StatusCode::BAD_REQUEST, &why)
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| overdue())
}

fn wrong(status: StatusCode, why: &str) -> Response {
    (status, format!("{why}\n")).into_response()
}

fn overdue() -> Response {
    wrong(StatusCode::SERVICE_UNAVAILABLE, "there are too many questions, or the body did not arrive in time")
}

#[cfg(test)]
mod tests;
