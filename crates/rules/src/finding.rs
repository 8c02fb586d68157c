//! What is wrong with what a user wrote: one shape for parse errors and analyzer findings, for people and for machines.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// How bad it is, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object is refused.
    Error,
    /// The object is taken, but probably does not do what was meant.
    Warning,
    /// The object is taken, and this is worth knowing.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// The stable codes with one line each. Where istioctl has a finding of the same meaning, its number is kept, so that
/// suppressions carry over.
pub mod code {
    /// Not YAML.
    pub const SYNTAX: &str = "OUT0001";
    /// The same key twice in a mapping.
    pub const DUPLICATE_KEY: &str = "OUT0002";
    /// Too large, too deep, or expanding too far.
    pub const LIMIT: &str = "OUT0003";
    /// Unknown apiVersion or kind.
    pub const UNKNOWN_KIND: &str = "OUT0004";
    /// A known field that is not implemented.
    pub const NOT_IMPLEMENTED: &str = "OUT0005";
    /// Valid, but without effect.
    pub const NO_EFFECT: &str = "OUT0006";
    /// The same object twice.
    pub const DUPLICATE_OBJECT: &str = "OUT0007";
    /// A field that does not exist, is missing, or has a bad value.
    pub const SCHEMA: &str = "IST0106";
    /// A host or subset that does not exist.
    pub const REFERENCE: &str = "IST0101";
    /// Two objects route the same host.
    pub const CONFLICT: &str = "IST0109";
    /// Two Sidecars select one workload.
    pub const SIDECAR_SELECTORS: &str = "IST0110";
    /// Two Sidecars are for a whole namespace.
    pub const SIDECARS: &str = "IST0111";
    /// A selector without workloads.
    pub const NO_WORKLOADS: &str = "IST0127";
    /// A route that no request reaches.
    pub const UNREACHABLE: &str = "IST0130";
    /// A subset without instances.
    pub const EMPTY_SUBSET: &str = "IST0173";
    /// Two DestinationRules for one host.
    pub const DUPLICATE_DESTINATION: &str = "OUT0102";
    /// All weights are 0.
    pub const NO_WEIGHT: &str = "OUT0103";
    /// An attempt may take longer than the request.
    pub const LONG_ATTEMPT: &str = "OUT0104";
    /// HTTP attributes in a DENY rule for a TCP port, or somebody to ask there.
    pub const HTTP_ON_TCP: &str = "OUT0105";
    /// TLS that cannot work.
    pub const DOUBLE_TLS: &str = "OUT0108";
    /// A rule that affects nobody.
    pub const NOBODY: &str = "OUT0106";
    /// A route that is not in force at a parent, or that loses requests.
    pub const ROUTE_CONDITION: &str = "OUT0109";
    /// A path that no request has.
    pub const NO_SUCH_PATH: &str = "OUT0107";
    /// A CUSTOM policy's provider that cannot be asked, or is asked about itself.
    pub const PROVIDER: &str = "OUT0111";
    /// Pages of every origin may send credentials.
    pub const OPEN_CORS: &str = "OUT0110";
    /// Clients call in a way that servers refuse.
    pub const MTLS: &str = "IST0113";
    /// A target without a port that has several, and not the one that is called.
    pub const NO_PORT: &str = "IST0112";
    /// A policy for tokens where there are no requests.
    pub const TOKENS_ON_TCP: &str = "IST0119";
    /// Not a regular expression that can be used.
    pub const REGEX: &str = "IST0122";
    /// A match that another before it has.
    pub const SAME_MATCH: &str = "IST0131";
    /// Two policies for the same workloads.
    pub const SAME_SCOPE: &str = "OUT0112";
    /// A redirect to where it came from.
    pub const CIRCLE: &str = "OUT0113";
    /// A mirror for who has the requests themselves.
    pub const TWICE: &str = "OUT0114";
    /// A health check that cannot find out what it is to find out.
    pub const CHECK: &str = "OUT0115";
    /// A hedge that is never sent.
    pub const HEDGE: &str = "OUT0116";
    /// TLS to a server that is verified by public roots alone.
    pub const PUBLIC_ROOTS: &str = "IST0128";
    /// The same of a port.
    pub const PUBLIC_ROOTS_OF_PORT: &str = "IST0129";
    /// Bytes to a described host without an address.
    pub const NO_ADDRESS: &str = "IST0134";
    /// A route by what tokens say.
    pub const CLAIM_ROUTE: &str = "IST0149";
    /// A gateway that an implementation of the Gateway API made.
    pub const INTERNAL_GATEWAY: &str = "IST0165";
    /// A DestinationRule for a host that does not exist.
    pub const UNKNOWN_HOST: &str = "IST0174";
    /// A `*` that is only a character.
    pub const STAR: &str = "OUT0117";

    /// Every code and what it means.
    pub const ALL: &[(&str, &str)] = &[
        (SYNTAX, "the text is not YAML or JSON"),
        (DUPLICATE_KEY, "a key appears twice in one mapping"),
        (LIMIT, "the text is too large, too deep, or its aliases expand too far"),
        (UNKNOWN_KIND, "unknown apiVersion or kind"),
        (NOT_IMPLEMENTED, "a known field that Outrigger does not implement"),
        (NO_EFFECT, "valid, but without effect as written"),
        (DUPLICATE_OBJECT, "an object is defined twice"),
        (SCHEMA, "a field is unknown, missing, or has a bad value"),
        (REFERENCE, "a route names a host or subset that does not exist"),
        (CONFLICT, "two objects route or describe the same host"),
        (SIDECAR_SELECTORS, "two Sidecars select the same workload"),
        (SIDECARS, "two Sidecars without a workloadSelector are in one namespace"),
        (NO_WORKLOADS, "a selector matches no workload"),
        (UNREACHABLE, "a route stands behind one that matches every request"),
        (EMPTY_SUBSET, "a subset matches no instance of its host"),
        (DUPLICATE_DESTINATION, "two objects define subsets or policy for the same host"),
        (NO_WEIGHT, "a route's weights sum to 0"),
        (LONG_ATTEMPT, "perTryTimeout is longer than the timeout of the whole request"),
        (NOBODY, "a rule is for hosts, callers or methods that do not exist"),
        (
            ROUTE_CONDITION,
            "a route of the Gateway API has no effect at a parent, or a backend that cannot be used",
        ),
        (NO_SUCH_PATH, "a rule names a path that no request has once paths are normalised"),
        (DOUBLE_TLS, "TLS is begun around an application's own, or without a name to ask for"),
        (
            HTTP_ON_TCP,
            "on a TCP port a DENY rule uses HTTP attributes, which count as matching, or a CUSTOM policy would ask somebody",
        ),
        (PROVIDER, "a CUSTOM policy's provider cannot be asked, or would be asked about itself"),
        (MTLS, "a DestinationRule has clients call without mTLS where workloads take nothing else"),
        (NO_PORT, "a destination without a port has several, and not the one that is called"),
        (TOKENS_ON_TCP, "a RequestAuthentication is for workloads that speak no HTTP"),
        (REGEX, "a text is not a regular expression that can be used"),
        (SAME_MATCH, "a match stands in an earlier route, too, which has what it matches"),
        (SAME_SCOPE, "two policies are for the same workloads, and only one of them holds"),
        (CIRCLE, "a redirect leads to where it came from"),
        (TWICE, "a mirror is for who has the requests themselves"),
        (CHECK, "a health check asks nobody, or less often than it says"),
        (HEDGE, "a hedge is never sent"),
        (PUBLIC_ROOTS, "a server that is not the mesh's is verified by the system's public roots"),
        (PUBLIC_ROOTS_OF_PORT, "the same of single ports"),
        (NO_ADDRESS, "a described host has no address for a port that carries bytes"),
        (CLAIM_ROUTE, "a route asks for what a token says, which only gateways could tell"),
        (
            INTERNAL_GATEWAY,
            "a rule names a gateway that an implementation of the Gateway API made for itself",
        ),
        (UNKNOWN_HOST, "a DestinationRule is for a host that does not exist"),
        (STAR, "a * stands where it is a character like any other"),
        (OPEN_CORS, "pages of every origin may call with the credentials of who opens them"),
    ];
}

/// One thing that is wrong. Displays as `rules.yaml:14:9 error IST0101: what. Did you mean "this"?`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// One of [`code`].
    pub code: Cow<'static, str>,
    /// The source it was found in; empty when there is none.
    pub file: String,
    /// Line, from 1; 0 when it belongs to no line.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// The object, as `VirtualService shop/catalog`, when known.
    pub object: Option<String>,
    /// Path of the field, such as `spec.http[0].timeout`; empty for the whole text.
    pub path: String,
    /// What is wrong, why, and what to do; without a final period.
    pub message: String,
    /// What was probably meant, ready to be put in its place.
    pub suggestion: Option<String>,
}

impl Finding {
    /// Whether the object must be refused.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The same of an object that is in no file: the field instead of the line.
    pub fn of_field(&self) -> String {
        let mut text = String::new();
        let mut f = OneLine(&mut text);
        let named = self.path.is_empty() || self.message.starts_with(self.path.as_str());
        let path = if named { String::new() } else { format!("{}: ", self.path) };
        let meant = self.suggestion.iter().map(|meant| format!(". Did you mean \"{meant}\"?"));
        let _ = write!(f, "{path}{}{} [{}]", self.message, meant.collect::<String>(), self.code);
        text
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = if self.file.is_empty() { "-" } else { &self.file };
        let mut f = OneLine(f);
        match self.line {
            0 => write!(f, "{file} ")?,
            line => write!(f, "{file}:{line}:{} ", self.column)?,
        }
        write!(f, "{} {}: {}", self.severity, self.code, self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, ". Did you mean \"{suggestion}\"?"),
            None => Ok(()),
        }
    }
}

/// Texts of users stand in findings: what would break a line, or move a terminal's cursor, is escaped.
struct OneLine<'w, W>(&'w mut W);

impl<W: fmt::Write> fmt::Write for OneLine<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for piece in text.split_inclusive(char::is_control) {
            match piece.char_indices().next_back() {
                Some((at, last)) if last.is_control() => {
                    self.0.write_str(&piece[..at])?;
                    write!(self.0, "{}", last.escape_default())?;
                }
                _ => self.0.write_str(piece)?,
            }
        }
        Ok(())
    }
}

/// The candidate most like `text`, when it is like enough to be a slip of the fingers.
pub(crate) fn closest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // The distance is quadratic in the lengths, and texts are the user's.
    if text.len() > 64 {
        return None;
    }
    let lower = text.to_lowercase();
    let allowed = (text.chars().count() / 3).clamp(1, 3);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= 64 && *candidate != text)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, candidate)| (*distance, strangeness(text, candidate)))
        .map(|(_, candidate)| candidate.to_owned())
}

/// Breaks ties: `v4` is nearer to `v3` than to `v1`.
fn strangeness(text: &str, candidate: &str) -> u32 {
    let lengths = text.chars().count().abs_diff(candidate.chars().count()) as u32;
    let letters =
        text.chars().zip(candidate.chars()).map(|(a, b)| u32::from(a).abs_diff(u32::from(b)).min(1000));
    lengths * 1000 + letters.sum::<u32>()
}

/// A user's text for use in a message: quoted, on one line, bounded.
pub(crate) fn quote(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    format!("\"{short}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: a label with line feeds made several lines of one finding.
    #[test]
    fn a_finding_is_one_line_whatever_it_quotes() {
        let finding = Finding {
            severity: Severity::Warning,
            code: code::NO_EFFECT.into(),
            file: "a.yaml".into(),
            line: 1,
            column: 2,
            object: None,
            path: String::new(),
            message: "selects app=\na\u{1b}[2Jb\r, ü".into(),
            suggestion: None,
        };
        assert!(finding.to_string().ends_with(r"selects app=\na\u{1b}[2Jb\r, ü"), "{finding}");
    }

    #[test]
    fn a_finding_reads_as_place_severity_code_and_advice() {
        let finding = Finding {
            severity: Severity::Error,
            code: code::REFERENCE.into(),
            file: "rules.yaml".into(),
            line: 14,
            column: 9,
            object: None,
            path: String::new(),
            message: "VirtualService default/reviews routes to subset \"v4\", but DestinationRule reviews defines v1, v2, v3"
                .into(),
            suggestion: Some("v3".into()),
        };
        assert_eq!(
            finding.to_string(),
            "rules.yaml:14:9 error IST0101: VirtualService default/reviews routes to subset \"v4\", but DestinationRule \
             reviews defines v1, v2, v3. Did you mean \"v3\"?"
        );
        let json = serde_json::to_string(&finding).unwrap();
        assert_eq!(serde_json::from_str::<Finding>(&json).unwrap(), finding);
    }

    #[test]
    fn a_slip_of_the_fingers_is_recognised_and_a_different_word_is_not() {
        assert_eq!(closest("timout", ["timeout", "retries"]), Some("timeout".into()));
        assert_eq!(closest("perTryTimeOut", ["timeout", "perTryTimeout"]), Some("perTryTimeout".into()));
        assert_eq!(closest("banana", ["timeout", "retries"]), None);
        assert_eq!(closest(&"t".repeat(100_000), ["timeout"]), None);
    }

    #[test]
    fn no_code_is_used_twice() {
        let codes: std::collections::BTreeSet<_> = code::ALL.iter().map(|(code, _)| code).collect();
        assert_eq!(codes.len(), code::ALL.len());
    }
}
