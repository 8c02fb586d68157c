//! AdmissionReview of admission.k8s.io/v1.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::Deserialize;
use serde_json::{Value, json};

const VERSION: &str = "admission.k8s.io/v1";

/// A question about a Pod.
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

/// A question.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request {
    pub(super) uid: String,
    pub(super) kind: Kind,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) operation: String,
    #[serde(default)]
    pub(super) object: Value,
    #[serde(default)]
    pub(super) old_object: Value,
}

#[derive(Deserialize)]
pub(super) struct Kind {
    #[serde(default)]
    pub(super) group: String,
    pub(super) kind: String,
}

impl Kind {
    /// For a message: it is a stranger's.
    pub(super) fn shown(&self) -> String {
        self.kind.chars().take(64).collect()
    }
}

/// Reads a question.
pub(super) fn read(body: &[u8]) -> Result<Request, String> {
    let document: Document =
        serde_json::from_slice(body).map_err(|error| format!("this is no AdmissionReview: {error}"))?;
    if document.api_version != VERSION {
        return Err(format!(
            "this is no AdmissionReview of {VERSION}, but of \"{}\"; set admissionReviewVersions: [v1]",
            document.api_version.chars().take(64).collect::<String>()
        ));
    }
    document.request.ok_or_else(|| "the AdmissionReview has no request".to_owned())
}

impl Request {
    /// The question of the injector.
    pub(super) fn of_pod(self) -> Result<Review, String> {
        if !(self.kind.group.is_empty() && self.kind.kind == "Pod") {
            return Err(format!(
                "the injector takes Pods, not {}; mend the webhook's rules",
                self.kind.shown()
            ));
        }
        if !self.object.is_object() {
            return Err("the request has no object; the webhook's rules should have CREATE alone".to_owned());
        }
        let namespace = self.place()?;
        Ok(Review { uid: self.uid, namespace, pod: self.object })
    }

    /// The namespace of the object.
    pub(super) fn place(&self) -> Result<String, String> {
        let of_object = self.object["metadata"]["namespace"].as_str().unwrap_or("default");
        let namespace = if self.namespace.is_empty() { of_object } else { &self.namespace };
        // It becomes a part of a path at the API server.
        let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if !(1..=63).contains(&namespace.len()) || !namespace.bytes().all(plain) {
            return Err("the request's namespace is no name of one".to_owned());
        }
        Ok(namespace.to_owned())
    }
}

/// What becomes of an object.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// It may be, changed so.
    Admitted { patch: Patch, warnings: Vec<String> },
    /// It may not, because.
    Refused(String),
    /// Not now: nobody has looked at it.
    Unjudged(String),
    /// It is not valid: these fields, and why.
    Invalid { message: String, causes: Vec<(String, String)>, warnings: Vec<String> },
}

impl Answer {
    /// As an AdmissionReview.
    pub(super) fn written(self, uid: &str) -> Value {
        let response = match self {
            Self::Refused(why) => {
                json!({"uid": uid, "allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": why}})
            }
            Self::Unjudged(why) => {
                json!({"uid": uid, "allowed": false, "status": {"code": 503, "reason": "ServiceUnavailable", "message": why}})
            }
            Self::Invalid { message, causes, warnings } => {
                let cause = |(field, message)| json!({"reason": "FieldValueInvalid", "field": field, "message": message});
                let causes: Vec<Value> = causes.into_iter().map(cause).collect();
                json!({"uid": uid, "allowed": false, "warnings": warnings, "status": {
                    "code": 422, "reason": "Invalid", "message": message, "details": {"causes": causes},
                }})
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
