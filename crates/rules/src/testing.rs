//! Short ways of the tests to read a text and to look at what came out.

use crate::intent::{
    AttachedIntent, AuthorizationIntent, DestinationIntent, Intent, LimitsIntent, MtlsIntent, RouteIntent,
    ServiceIntent, TokensIntent, WorkloadIntent,
};
use crate::{Finding, Object, parse};

/// Of nobody.
pub(crate) const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBcTCCARegAwIBAgIUZ/gDlxI4kmrKeObvUDGDTIVyLhQwCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwIBcNMjYxMTMwMTE0OTIyWhgPMjEyNjExMDYxMTQ5MjJa
MA0xCzAJBgNVBAMMAmNhMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE/JpFTJCp
W4d2Aqp7ou12sipdYS2Rq7vWAnnKjHm98ucYPUt065qV9qP6fUoe2KZJhk+VCL6S
NvoGK6xoUbQUVKNTMFEwHQYDVR0OBBYEFHG9L0u7NSxwxi7PP5FZvGYSwGC1MB8G
A1UdIwQYMBaAFHG9L0u7NSxwxi7PP5FZvGYSwGC1MA8GA1UdEwEB/wQFMAMBAf8w
CgYIKoZIzj0EAwIDSAAwRQIgHTsLU73Wb6z2/tB8CJ9vE/ljXbXDcLi6dduq/YS8
of0CIQCkU3/bvRg0FcGoAaoRBWNuvKoOj9FxVAZzGhis79f2XA==
-----END CERTIFICATE-----
";

/// The same in double quotes, as YAML has it on one line.
pub(crate) fn quoted_certificate() -> String {
    format!("\"{}\"", CERTIFICATE.replace('\n', "\\n"))
}

/// Objects of a text that must be free of errors.
pub(crate) fn objects(text: &str) -> Vec<Object> {
    let parsed = parse("rules.yaml", text);
    assert!(!parsed.has_errors(), "{:#?}", parsed.findings);
    parsed.objects
}

/// All findings of a text, as people read them.
pub(crate) fn told(text: &str) -> Vec<String> {
    parse("rules.yaml", text).findings.iter().map(Finding::to_string).collect()
}

/// The one finding of a text.
pub(crate) fn one_told(text: &str) -> String {
    let mut told = told(text);
    assert_eq!(told.len(), 1, "{told:#?}");
    told.remove(0)
}

fn intents(text: &str) -> Vec<Intent> {
    objects(text).into_iter().flat_map(|object| object.intents).collect()
}

pub(crate) fn route(text: &str) -> RouteIntent {
    intents(text)
        .into_iter()
        .find_map(|intent| if let Intent::Route(route) = intent { Some(route) } else { None })
        .unwrap()
}

pub(crate) fn attached(text: &str) -> AttachedIntent {
    let found = |intent| if let Intent::Attached(attached) = intent { Some(attached) } else { None };
    intents(text).into_iter().find_map(found).unwrap()
}

pub(crate) fn destination(text: &str) -> DestinationIntent {
    let found = |intent| if let Intent::Destination(destination) = intent { Some(destination) } else { None };
    intents(text).into_iter().find_map(found).unwrap()
}

pub(crate) fn limits(text: &str) -> LimitsIntent {
    let found = |intent| if let Intent::Limits(limits) = intent { Some(limits) } else { None };
    intents(text).into_iter().find_map(found).unwrap()
}

pub(crate) fn mtls(text: &str) -> MtlsIntent {
    intents(text)
        .into_iter()
        .find_map(|intent| if let Intent::Mtls(mtls) = intent { Some(mtls) } else { None })
        .unwrap()
}

pub(crate) fn authorization(text: &str) -> AuthorizationIntent {
    let found = |intent| if let Intent::Authorization(policy) = intent { Some(policy) } else { None };
    intents(text).into_iter().find_map(found).unwrap()
}

pub(crate) fn tokens(text: &str) -> TokensIntent {
    let found = |intent| if let Intent::Tokens(tokens) = intent { Some(tokens) } else { None };
    intents(text).into_iter().find_map(found).unwrap()
}

pub(crate) fn service(text: &str) -> ServiceIntent {
    let found = |intent| if let Intent::Service(service) = intent { Some(service) } else { None };
    intents(text).into_iter().find_map(found).unwrap()
}

pub(crate) fn workload(text: &str) -> WorkloadIntent {
    let found = |intent| if let Intent::Workload(workload) = intent { Some(workload) } else { None };
    intents(text).into_iter().find_map(found).unwrap()
}

/// A VirtualService `shop/reviews` with this spec, which starts at line 6 and is not indented.
pub(crate) fn virtual_service(spec: &str) -> String {
    object("networking.istio.io/v1", "VirtualService", spec)
}

/// Any object `shop/reviews` with this spec, which starts at line 6 and is not indented.
pub(crate) fn object(api_version: &str, kind: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: reviews, namespace: shop}}\n# the rule\nspec:\n{spec}"
    )
}
