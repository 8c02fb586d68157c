//! Policies for other origins that let every page act in the name of who is logged in.

use super::{Scene, finding};
use crate::finding::{Finding, Severity, code};

/// Origins of two strangers, over TLS and in plain text. A pattern that takes both of a scheme takes whoever asks.
const STRANGERS: [[&str; 2]; 2] = [
    ["https://xn--9q8a.stranger-7.test", "https://203.0.113.9:8443"],
    ["http://xn--9q8a.stranger-7.test", "http://203.0.113.9:8080"],
];

pub(super) fn open(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    for (origin, _, http) in scene.http_routes() {
        let Some(cors) = http.route.cors.as_ref().filter(|cors| cors.allow_credentials) else { continue };
        // A pattern that is none was told when it was read.
        let Ok(origins) = cors.origins() else { continue };
        let takes_all = |both: &[&str; 2]| {
            origins.iter().any(|origin| both.iter().all(|stranger| origin.matches(stranger.as_bytes())))
        };
        if STRANGERS.iter().any(takes_all) {
            let message = format!(
                "{origin}: {} allows credentials and every origin, so any page that a user opens can act in the user's name; name \
                 the origins, or leave allowCredentials out",
                http.place.path
            );
            findings.push(finding(Severity::Warning, code::OPEN_CORS, origin, &http.place, message));
        }
    }
}
