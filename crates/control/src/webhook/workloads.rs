//! What the injector warns of, said to whoever applies what makes Pods: those are made by a controller, which tells nobody.
//!
//! `POST /inject/warnings` judges the template as its Pods will be judged, and changes nothing. Who is not answered goes on without a warning.

use json_patch::Patch;
use serde_json::Value;

use super::Injector;
use super::review::{self, Answer, Request};
use crate::inject::workload::{Kind, kind};
use crate::inject::{Injection, Subject};

/// Warnings of one Pod, and bytes of each: an author may write as many annotations as there is room for.
const MOST: (usize, usize) = (16, 1024);

impl Injector {
    /// The answer to a review of what makes Pods; else what is wrong with the question.
    pub(super) async fn warn(&self, body: &[u8]) -> Result<Value, String> {
        let request = review::read(body)?;
        let place = match kind(&request.object) {
            Kind::Template(place) => place,
            Kind::Pod | Kind::List | Kind::Other => {
                let shown = request.kind.shown();
                return Err(format!("{shown} makes no Pods that get sidecars; mend the webhook's rules"));
            }
        };
        let namespace = request.place()?;
        let warnings = match is_same(&request, place) {
            true => Vec::new(),
            false => self.warnings(&request.object, place, &namespace).await,
        };
        Ok(Answer::Admitted { patch: Patch::default(), warnings }.written(&request.uid))
    }

    async fn warnings(&self, object: &Value, place: &str, namespace: &str) -> Vec<String> {
        // Where nobody can be asked the Pods will say it.
        let Ok((namespace, _)) = self.namespaces.named(namespace).await else { return Vec::new() };
        let Some(pod) = object.pointer(place) else { return Vec::new() };
        let workload = object["metadata"]["name"].as_str();
        let subject = Subject {
            pod,
            namespace: &namespace,
            workload,
            kubernetes: self.release(),
            by_hand: false,
            earlier: None,
        };
        match self.judge(subject) {
            Ok(Injection::Injected { warnings, .. }) => bounded(warnings),
            Ok(Injection::LeftAlone(_)) => Vec::new(),
            Err(error) => bounded(vec![format!(
                "its Pods will be refused: outrigger cannot inject its sidecar: {error}"
            )]),
        }
    }
}

/// Somebody changes something else, such as how many there are to be.
fn is_same(request: &Request, place: &str) -> bool {
    request.old_object.pointer(place).is_some_and(|old| Some(old) == request.object.pointer(place))
}

pub(super) fn bounded(mut warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(MOST.0);
    warnings.truncate(MOST.0);
    for warning in &mut warnings {
        warning.truncate(warning.floor_char_boundary(MOST.1));
    }
    warnings.extend((more > 0).then(|| format!("and {more} more")));
    warnings
}
