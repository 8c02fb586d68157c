//! AdmissionReview of admission.k8s.io/v1, as far as it is about Pods.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::Deserialize;
use serde_json::{Value, json};

const VERSION: &str = "admission.k8s.io/v1";

/// A question.
pub(super) struct Review {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) pod: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    api_version: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
    kind: Kind,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    group: String,
    kind: String,
}

/// Reads a question.
pub(super) fn read(body: &[u8]) -> Result<Review, String> {
    let document: Document =
        serde_json::from_slice(body).map_err(|error| format!("this is no AdmissionReview: {error}"))?;
    if document.api_version != VERSION {
        return Err(format!(
            "this is no AdmissionReview of {VERSION}, but of \"{}\"; set admissionReviewVersions: [v1]",
            document.api_version.chars().take(64).collect::<String>()
        ));
    }
    let request = document.request.ok_or("the AdmissionReview has no request")?;
    let Kind { group, kind } = request.kind;
    if !(group.is_empty() && kind == "Pod") {
        return Err(format!(
            "the injector takes Pods, not {}; mend the webhook's rules",
            kind.chars().take(64).collect::<String>()
        ));
    }
    if !request.object.is_object() {
        return Err("the request has no object; the webhook's rules should have CREATE alone".to_owned());
    }
    let of_object = request.object["metadata"]["namespace"].as_str().unwrap_or("default");
    let namespace = if request.namespace.is_empty() { of_object.to_owned() } else { request.namespace };
    // It becomes a part of a path at the API server.
    let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !(1..=63).contains(&namespace.len()) || !namespace.bytes().all(plain) {
        return Err("the request's namespace is no name of one".to_owned());
    }
    Ok(Review { uid: request.uid, namespace, pod: request.object })
}

/// What becomes of a Pod.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// It may be, changed so.
    Admitted { patch: Patch, warnings: Vec<String> },
    /// It may not, because.
    Refused(String),
}

impl Answer {
    /// As an AdmissionReview.
    pub(super) fn written(self, uid: &str) -> Value {
        let response = match self {
            Self::Refused(why) => {
                json!({"uid": uid, "allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": why}})
            }
            Self::Admitted { patch, warnings } => {
                let mut response = json!({"uid": uid, "allowed": true});
                if !patch.is_empty() {
                    response["patchType"] = "JSONPatch".into();
                    response["patch"] = STANDARD.encode(json!(patch).to_string()).into();
                }
                if !warnings.is_empty() {
                    response["warnings"] = warnings.into();
                }
                response
            }
        };
        json!({"apiVersion": VERSION, "kind": "AdmissionReview", "response": response})
    }
}
