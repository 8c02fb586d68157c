//! The validating webhook: what is wrong with a rule, said before the API server has it.
//!
//! A rule is judged as `apply` judges it: read, and analysed together with everything that is published. Nobody waits for the keeper, and so
//! nobody for the watch that will bring the same rule. A kind of somebody else's, which `apply` would refuse, is admitted with a warning: it
//! may be there for somebody else. So is a rule that is for another controller alone, such as one of gateways. What another object may still mend (a host or a subset that is not there) is a
//! warning: kubectl sends one object at a time, in any order. So is everything about a deletion, which an API server must not be kept from.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use json_patch::Patch;
use kube::api::DynamicObject;
use outrigger_rules::finding::code;
use outrigger_rules::{Finding, Object, Parsed};
use outrigger_telemetry::Registry;
use outrigger_telemetry::logging::Throttle;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::desk::Desk;
use super::review::{self, Answer, Request};
use crate::inject::FailurePolicy;
use crate::keeper::{Keeper, Published, consequences};
use crate::registry::kubernetes::read;
use crate::world::MeshSettings;

/// For a question, its body and its turn included; the webhook's configuration says 5 s.
const PATIENCE: Duration = Duration::from_millis(4500);
/// For the judgement, its turn included. A rule that nobody could judge is admitted, with a warning.
const JUDGEMENT: Duration = Duration::from_secs(4);
/// All rules are looked at for one: this many at a time, whoever asks.
const ANALYSES: usize = 1;
/// Errors told, and bytes of each.
const MOST_TOLD: (usize, usize) = (10, 600);
/// Warnings told, and bytes of each: API servers cut longer ones.
const MOST_WARNED: (usize, usize) = (12, 250);

/// Whoever reaches the port can cause the line.
static REFUSED: Throttle = Throttle::new();

/// What came of questions.
#[derive(Default)]
struct Counts {
    admitted: AtomicU64,
    warned: AtomicU64,
    refused: AtomicU64,
    unjudged: AtomicU64,
}

/// The validator.
pub(crate) struct Validator {
    settings: MeshSettings,
    /// What becomes of a rule for which there was no time.
    unjudged: FailurePolicy,
    keeper: Keeper,
    desk: Desk,
    analyses: Arc<Semaphore>,
    counts: Counts,
}

impl Validator {
    pub(crate) fn new(
        settings: MeshSettings,
        unjudged: FailurePolicy,
        keeper: Keeper,
        registry: &Registry,
    ) -> Arc<Self> {
        let (desk, analyses) = (Desk::new(PATIENCE), Arc::new(Semaphore::new(ANALYSES)));
        let validator =
            Arc::new(Self { settings, unjudged, keeper, desk, analyses, counts: Counts::default() });
        let seen = validator.clone();
        registry.register_fn(move |page| {
            let mut all =
                page.counter("outrigger_validations_total", "Rules that the webhook was shown, by outcome.");
            let Counts { admitted, warned, refused, unjudged } = &seen.counts;
            let outcomes = [
                ("admitted", admitted),
                ("warned", warned),
                ("refused", refused),
                ("unjudged", unjudged),
                ("unreadable", &seen.desk.unreadable),
            ];
            for (outcome, count) in outcomes {
                all.sample([("outcome", outcome)], count.load(Ordering::Relaxed));
            }
        });
        validator
    }

    /// What is served.
    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new().route("/validate", post(answer)).with_state(self)
    }

    async fn review(&self, body: &[u8]) -> Result<Value, String> {
        let request = review::read(body)?;
        let uid = request.uid.clone();
        if let Some(why) = outrigger_rules::foreign(&request.kind.group, &request.kind.kind) {
            self.counts.warned.fetch_add(1, Ordering::Relaxed);
            let warning = format!("{} {why}: it is stored, and has no effect", request.kind.kind);
            return Ok(Answer::Admitted { patch: Patch::default(), warnings: vec![warning] }.written(&uid));
        }
        let question = Question::of(request)?;
        let id = question.id();
        // What goes, or stays as it is, is refused to nobody for want of time.
        let is_news = question.object.is_some() && !question.same;
        let answer = match tokio::time::timeout(JUDGEMENT, self.judged(question)).await {
            Ok(Some(verdict)) => verdict.answer(),
            Ok(None) | Err(_) if is_news && self.unjudged == FailurePolicy::Fail => {
                self.counts.unjudged.fetch_add(1, Ordering::Relaxed);
                let why = "outrigger had no time to judge this rule; try again";
                return Ok(Answer::Unjudged(why.to_owned()).written(&uid));
            }
            // Nothing is in force that cannot be read: the API server may have it, and its status says what is wrong.
            Ok(None) | Err(_) => {
                self.counts.unjudged.fetch_add(1, Ordering::Relaxed);
                let warning =
                    "outrigger had no time to judge this rule; `outrigger status` says what becomes of it";
                return Ok(Answer::Admitted { patch: Patch::default(), warnings: vec![warning.to_owned()] }
                    .written(&uid));
            }
        };
        let count = match &answer {
            Answer::Admitted { warnings, .. } if warnings.is_empty() => &self.counts.admitted,
            Answer::Admitted { .. } => &self.counts.warned,
            Answer::Refused(why) | Answer::Unjudged(why) | Answer::Invalid { message: why, .. } => {
                if let Some(suppressed) = REFUSED.admit() {
                    tracing::info!(rule = %id, reason = %why, suppressed, "a rule was refused at admission");
                }
                &self.counts.refused
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(answer.written(&uid))
    }

    /// Off the runtime's threads, as long as it takes: whoever asked may have gone, but its place is taken until it is done.
    async fn judged(&self, question: Question) -> Option<Verdict> {
        let place = self.analyses.clone().acquire_owned().await.ok()?;
        let (published, settings) = (self.keeper.published(), self.settings.clone());
        let judged = tokio::task::spawn_blocking(move || {
            let _place = place;
            question.judge(&published, &settings)
        });
        judged.await.ok()
    }
}

async fn answer(State(validator): State<Arc<Validator>>, body: Body) -> Response {
    validator.desk.ask(body, async |body: Bytes| validator.review(&body).await).await
}

/// What is asked.
struct Question {
    namespace: String,
    kind: String,
    name: String,
    /// Nothing: it is deleted.
    object: Option<DynamicObject>,
    /// It says what it said before, or is on its way out.
    same: bool,
}

impl Question {
    fn of(request: Request) -> Result<Self, String> {
        let Request { kind, namespace, operation, object, old_object, .. } = request;
        let known = read::resources(&kind.kind).next().is_some_and(|known| known.group == kind.group);
        if !known {
            return Err(format!("{} is no kind of rules; mend the webhook's rules", kind.shown()));
        }
        let deleted = operation == "DELETE";
        let subject = if deleted { &old_object } else { &object };
        let Some(name) = subject["metadata"]["name"].as_str().filter(|name| name.len() <= 253) else {
            return Err("the request has no object with a name".to_owned());
        };
        let same = !object["metadata"]["deletionTimestamp"].is_null()
            || (old_object.is_object() && old_object["spec"] == object["spec"]);
        let object = if deleted {
            None
        } else {
            Some(serde_json::from_value(object.clone()).map_err(|error| error.to_string())?)
        };
        Ok(Self { namespace, kind: kind.kind, name: name.to_owned(), object, same })
    }

    fn id(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    fn judge(self, published: &Published, settings: &MeshSettings) -> Verdict {
        let (key, id) = (format!("{}/{}/{}", self.kind, self.namespace, self.name), self.id());
        let mut findings = Vec::new();
        let (deleted, mut new) = (self.object.is_none(), Vec::<Object>::new());
        let object = self.object.as_ref();
        let theirs = object.and_then(|object| outrigger_rules::elsewhere(&self.kind, &object.data["spec"]));
        if let Some(object) = self.object {
            Parsed { objects: new, findings } = read::read(object, &settings.reading(&self.namespace));
        }
        if !findings.iter().any(Finding::is_error) && (!deleted || published.rules.contains_key(&key)) {
            let gone = BTreeSet::from([key.clone()]);
            findings.extend(consequences(&published.rules, &published.world, &gone, &new));
        }
        let mut verdict = Verdict::default();
        if let Some(whose) = theirs {
            // Its owner may know fields that we do not, and judges it: here it is not in force. What others lose by that is told.
            findings.retain(|finding| {
                !finding.is_error() || finding.object.as_deref().is_some_and(|of| of != id)
            });
            verdict.warnings.push(format!("{} {whose}: it is stored, and not in force here", self.kind));
        }
        for finding in findings {
            let of = finding.object.as_deref().filter(|of| *of != id);
            let text = of.map(|of| format!("{of}: ")).unwrap_or_default() + &finding.of_field();
            let mendable = finding.code == code::REFERENCE;
            match finding.is_error() && !deleted && !self.same && !mendable && theirs.is_none() {
                true => verdict.errors.push((finding.path, text)),
                false => verdict.warnings.push(text),
            }
        }
        if published.ruled.owner(&key).is_some_and(|(source, _)| source.is_api()) && !deleted {
            let why = "the management API has a rule of this name, which goes before; `outrigger delete` takes it away";
            verdict.warnings.push(why.to_owned());
        }
        verdict
    }
}

/// What is wrong: fields and words, and words alone.
#[derive(Default)]
struct Verdict {
    errors: Vec<(String, String)>,
    warnings: Vec<String>,
}

impl Verdict {
    fn answer(self) -> Answer {
        let warnings = told(self.warnings.iter(), MOST_WARNED);
        if self.errors.is_empty() {
            return Answer::Admitted { patch: Patch::default(), warnings };
        }
        let message = told(self.errors.iter().map(|(_, text)| text), MOST_TOLD).join("; ");
        let causes = self.errors.into_iter().take(MOST_TOLD.0);
        let causes = causes.map(|(field, text)| (field, cut(&text, MOST_TOLD.1))).collect();
        Answer::Invalid { message, causes, warnings }
    }
}

fn told<'t>(all: impl ExactSizeIterator<Item = &'t String>, (most, bytes): (usize, usize)) -> Vec<String> {
    let more = all.len().saturating_sub(most);
    let told = all.take(most).map(|text| cut(text, bytes));
    told.chain((more > 0).then(|| format!("and {more} more"))).collect()
}

fn cut(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

#[cfg(test)]
mod tests;
