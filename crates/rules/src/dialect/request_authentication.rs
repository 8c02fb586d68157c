//! Istio's RequestAuthentication: whose tokens workloads know. A request without any passes, as long as no rule requires one and no
//! policy asks for what it would say.

use std::time::Duration;

use outrigger_model::ext_authz::FRAMING;
use outrigger_model::token::{ClaimHeader, JwtProvider, TokenHeader, check_keys};

use super::shared::{bounded, selector};
use crate::finding::{code, quote};
use crate::intent::{Intent, Issuer, KeySource, TokensIntent};
use crate::reader::{At, Fields, Reader, Table};

const SPEC: Table =
    Table::new("a RequestAuthentication", &["selector", "jwtRules", "targetRefs", "targetRef"]);
const RULE: Table = Table::new(
    "a JWT rule",
    &[
        "issuer",
        "audiences",
        "jwksUri",
        "jwks_uri",
        "jwks",
        "fromHeaders",
        "fromParams",
        "fromCookies",
        "outputPayloadToHeader",
        "outputClaimToHeaders",
        "forwardOriginalToken",
        "spaceDelimitedClaims",
        "timeout",
        "presence",
    ],
);
const HEADER: Table = Table::new("a header with a token", &["name", "prefix"]);
const CLAIM: Table = Table::new("a header for a claim", &["header", "claim"]);

/// By which policies find what tokens say.
const PAYLOAD: &str = "payload";
/// Texts that are lists of words, whatever a rule says of others (RFC 8693, section 4.2).
const SPACED: [&str; 2] = ["permission", "scope"];
/// For fetching keys.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Rules of one object, and of what one of them lists.
const MOST: usize = 64;

pub(super) fn read(reader: &mut Reader<'_>, spec: &At<'_>) -> Vec<Intent> {
    let Some(fields) = reader.fields(spec, &SPEC) else { return Vec::new() };
    let selector = selector(reader, fields.get("selector"));
    for name in ["targetRefs", "targetRef"] {
        if let Some(at) = fields.get(name) {
            // Ignoring it would put the rules on the whole namespace.
            reader
                .error(&at, format!("{} is not implemented by Outrigger: use selector.matchLabels", at.path));
        }
    }
    bounded(reader, &fields, &[("jwtRules", MOST)]);
    let rules: Vec<Issuer> =
        reader.list(fields.get("jwtRules")).iter().filter_map(|at| issuer(reader, at)).collect();
    if rules.is_empty() {
        reader.warn(
            code::NO_EFFECT,
            spec,
            format!("{}.jwtRules has no rule, so it has no effect", spec.path),
        );
        return Vec::new();
    }
    let origin = reader.origin.clone();
    vec![Intent::Tokens(TokensIntent { origin, selector, rules, place: spec.place() })]
}

fn issuer(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Issuer> {
    let fields = reader.fields(at, &RULE)?;
    let lists = ["audiences", "fromHeaders", "fromParams", "fromCookies", "outputClaimToHeaders"];
    bounded(reader, &fields, &lists.map(|name| (name, MOST)));
    bounded(reader, &fields, &[("spaceDelimitedClaims", MOST)]);
    let issuer = filled(reader, fields.get("issuer")).unwrap_or_default();
    let (inline, keys) = keys(reader, &fields, &issuer);
    if issuer.is_empty() && !fields.has("issuer") {
        let message = format!("{} has no issuer, so tokens of anybody with these keys are good", at.path);
        reader.warn(code::NO_EFFECT, at, message);
    }
    let headers: Vec<_> =
        reader.list(fields.get("fromHeaders")).iter().filter_map(|at| header(reader, at)).collect();
    let claim_headers =
        reader.list(fields.get("outputClaimToHeaders")).iter().filter_map(|at| claim(reader, at)).collect();
    let payload_header = fields.get("outputPayloadToHeader").and_then(|at| told(reader, &at));
    let mut spaced: Vec<String> = SPACED.map(str::to_owned).into();
    spaced.extend(texts(reader, fields.get("spaceDelimitedClaims")));
    spaced.sort_unstable();
    spaced.dedup();
    let presence = [("OPTIONAL", false), ("REQUIRED", true)];
    Some(Issuer {
        keys,
        timeout: reader.positive(fields.get("timeout")).unwrap_or(TIMEOUT),
        required: reader.choice(fields.get("presence"), &presence).unwrap_or(false),
        provider: JwtProvider {
            audiences: texts(reader, fields.get("audiences")),
            forward: reader.boolean(fields.get("forwardOriginalToken")).unwrap_or(false),
            headers,
            params: texts(reader, fields.get("fromParams")),
            cookies: texts(reader, fields.get("fromCookies")),
            payload_header,
            claim_headers,
            payload_name: PAYLOAD.to_owned(),
            spaced_claims: spaced,
            ..JwtProvider::new(issuer, inline)
        },
    })
}

/// The keys in the rule, or where they are.
fn keys(reader: &mut Reader<'_>, fields: &Fields<'_>, issuer: &str) -> (String, Option<KeySource>) {
    let given: Vec<_> =
        ["jwksUri", "jwks_uri", "jwks"].iter().filter_map(|name| Some((*name, fields.get(name)?))).collect();
    match given.as_slice() {
        [] if issuer.is_empty() => {
            let message =
                format!("{} needs jwksUri or jwks, or an issuer that names its keys", fields.at.path);
            reader.error(&fields.at, message);
            (String::new(), None)
        }
        [] if is_url(issuer) => (String::new(), Some(KeySource::Discovery(issuer.to_owned()))),
        [] => {
            let message = format!(
                "{} needs jwksUri or jwks: the issuer {} is no URL that could name its keys",
                fields.at.path,
                quote(issuer)
            );
            reader.error(&fields.at, message);
            (String::new(), None)
        }
        [("jwks", at)] => {
            let text = filled(reader, Some(at.clone())).unwrap_or_default();
            if !text.is_empty()
                && let Err(why) = check_keys(&text)
            {
                reader.error(at, format!("{} {why}", at.path));
            }
            (text, None)
        }
        [(_, at)] => {
            let url = filled(reader, Some(at.clone())).unwrap_or_default();
            if !url.is_empty() && !is_url(&url) {
                let message = format!("{} must be a URL, http:// or https://, not {}", at.path, quote(&url));
                reader.error(at, message);
            }
            (String::new(), Some(KeySource::Url(url)))
        }
        [_, (_, at), ..] => {
            reader.error(at, format!("{} is one too many: keys are in jwksUri or in jwks", at.path));
            (String::new(), None)
        }
    }
}

/// What can be asked for, and nothing that a request line could be broken with.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'#' | b'@');
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && rest.bytes().all(plain))
}

fn header(reader: &mut Reader<'_>, at: &At<'_>) -> Option<TokenHeader> {
    let fields = reader.fields(at, &HEADER)?;
    let Some(name_at) = fields.get("name") else {
        reader.missing(&fields, "name");
        return None;
    };
    let name = filled(reader, Some(name_at.clone()))?;
    let name = reader.header_name(&name_at, &name)?;
    Some(TokenHeader { name, prefix: reader.text(fields.get("prefix")).unwrap_or_default() })
}

fn claim(reader: &mut Reader<'_>, at: &At<'_>) -> Option<ClaimHeader> {
    let fields = reader.fields(at, &CLAIM)?;
    for name in ["header", "claim"] {
        if !fields.has(name) {
            reader.missing(&fields, name);
        }
    }
    let header = told(reader, &fields.get("header")?)?;
    Some(ClaimHeader { header, claim: filled(reader, fields.get("claim"))? })
}

fn texts(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Vec<String> {
    reader.list(at).into_iter().filter_map(|item| filled(reader, Some(item))).collect()
}

/// A header that tells the application something.
fn told(reader: &mut Reader<'_>, at: &At<'_>) -> Option<String> {
    let name = filled(reader, Some(at.clone()))?;
    let name = reader.header_name(at, &name)?;
    if FRAMING.contains(&name.as_str()) {
        let message = format!("{} must not be {}, which says how a request is sent", at.path, quote(&name));
        reader.error(at, message);
        return None;
    }
    Some(name)
}

/// A text that is not empty.
fn filled(reader: &mut Reader<'_>, at: Option<At<'_>>) -> Option<String> {
    let text = reader.text(at.clone())?;
    if let Some(at) = at.filter(|_| text.is_empty()) {
        reader.error(&at, format!("{} must not be empty", at.path));
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests;
