//! Whom policies of action CUSTOM ask, and rate limits: `extensionProviders` of the settings, in the words of Istio's mesh configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use outrigger_model::ext_authz::{
    AuthzBody, AuthzService, ExtAuthz, FRAMING, HttpAuthz, MOST_ADDED, MOST_BODY, is_path_prefix,
};
use outrigger_model::global_limit::{GlobalLimit, GlobalLimits};
use outrigger_model::matcher::{Pattern, StringMatch};
use serde::{Deserialize, Serialize};

mod limits;

pub use limits::RateLimitService;

/// One provider; exactly one of the kinds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExtensionProvider {
    /// By which policies name it.
    pub name: String,
    /// Asked by HTTP requests: a 200 permits.
    #[serde(default)]
    pub envoy_ext_authz_http: Option<Authz>,
    /// Asked over `envoy.service.auth.v3.Authorization`.
    #[serde(default)]
    pub envoy_ext_authz_grpc: Option<Authz>,
    /// Asked by rate limits, over `envoy.service.ratelimit.v3.RateLimitService`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub envoy_rate_limit_grpc: Option<RateLimitService>,
}

/// Whom to ask, with what, and what follows. The fields about headers, and `pathPrefix`, are of the HTTP kind only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Authz {
    /// `HOST` or `NAMESPACE/HOST`, of a service of the mesh or of a ServiceEntry.
    pub service: String,
    /// Of the service.
    pub port: u16,
    /// For an answer. Default 10 minutes, as Istio's.
    pub timeout: Option<String>,
    /// Before the path of the request.
    pub path_prefix: String,
    /// Requests pass when nobody answers, or with a 5xx. Default false.
    pub fail_open: bool,
    /// Routes are looked for again after an answer that permits. Default false.
    pub clear_route_cache: bool,
    /// What requests get when nobody answers. Default 403.
    pub status_on_error: Option<Status>,
    /// Headers of the request that go along, as `x`, `x*` or `*x`.
    pub include_request_headers_in_check: Vec<String>,
    /// Istio's older name for it.
    pub include_headers_in_check: Vec<String>,
    /// Headers of every question.
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    /// How much of the body goes along. Default nothing.
    pub include_request_body_in_check: Option<BodyInCheck>,
    /// Headers of an answer that permits, set in the request.
    pub headers_to_upstream_on_allow: Vec<String>,
    /// Headers of an answer that denies, for the client. Default all.
    pub headers_to_downstream_on_deny: Vec<String>,
    /// Headers of an answer that permits, for the client.
    pub headers_to_downstream_on_allow: Vec<String>,
}

/// Istio writes it as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Status {
    /// `503`
    Number(u16),
    /// `"503"`
    Text(String),
}

/// How much of the body goes along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BodyInCheck {
    /// At most 65,536.
    pub max_request_bytes: u32,
    /// The first bytes of a longer one; without it such a request is refused with 413.
    #[serde(default)]
    pub allow_partial_message: bool,
    /// As bytes instead of as text (gRPC).
    #[serde(default)]
    pub pack_as_bytes: bool,
}

/// Istio's, when nothing is said.
const TIMEOUT: Duration = Duration::from_secs(600);

/// What cannot work in a list of providers.
///
/// # Errors
/// Names the provider and the field.
pub fn validate(all: &[ExtensionProvider]) -> anyhow::Result<()> {
    let mut names = BTreeSet::new();
    for (i, provider) in all.iter().enumerate() {
        let named = || format!("extensionProviders[{i}] ({})", provider.name);
        ensure!(!provider.name.is_empty(), "extensionProviders[{i}].name: must not be empty");
        ensure!(names.insert(&provider.name), "{}: the name occurs twice", named());
        match provider.is_limiter() {
            true => provider.global_limits("check", Vec::new()).map(drop).with_context(named)?,
            false => provider.ext_authz("check").map(drop).with_context(named)?,
        }
    }
    Ok(())
}

impl ExtensionProvider {
    /// Its one kind, and whether that is gRPC.
    fn kind(&self) -> anyhow::Result<(&Authz, bool)> {
        match (&self.envoy_ext_authz_http, &self.envoy_ext_authz_grpc, &self.envoy_rate_limit_grpc) {
            (Some(http), None, None) => Ok((http, false)),
            (None, Some(grpc), None) => Ok((grpc, true)),
            _ => {
                bail!("exactly one of envoyExtAuthzHttp, envoyExtAuthzGrpc and envoyRateLimitGrpc is needed")
            }
        }
    }

    /// Whether it speaks gRPC: only then it can be asked about connections.
    pub fn is_grpc(&self) -> bool {
        self.envoy_ext_authz_grpc.is_some()
    }

    /// Namespace, if one is named, host and port of its service.
    pub fn service(&self) -> (Option<&str>, &str, u16) {
        let (service, port) = match (&self.envoy_rate_limit_grpc, self.kind()) {
            (Some(limiter), _) => (&limiter.service, limiter.port),
            (None, Ok((authz, _))) => (&authz.service, authz.port),
            (None, Err(_)) => return (None, "", 0),
        };
        match service.split_once('/') {
            Some((namespace, host)) => (Some(namespace), host, port),
            None => (None, service, port),
        }
    }

    /// Whether it is asked by rate limits, and not by policies.
    pub fn is_limiter(&self) -> bool {
        self.envoy_rate_limit_grpc.is_some()
    }

    /// The filter that asks it about these limits, at that cluster.
    ///
    /// # Errors
    /// As [`ExtensionProvider::ext_authz`].
    pub fn global_limits(&self, cluster: &str, limits: Vec<GlobalLimit>) -> anyhow::Result<GlobalLimits> {
        let others = self.envoy_ext_authz_http.is_some() || self.envoy_ext_authz_grpc.is_some();
        let limiter = self.envoy_rate_limit_grpc.as_ref().filter(|_| !others);
        let limiter = limiter.context("it is no envoyRateLimitGrpc, or something else as well")?;
        limiter.filter(&self.name, cluster, limits).context("envoyRateLimitGrpc")
    }

    /// The filter that asks it, at that cluster.
    ///
    /// # Errors
    /// The field that says nothing that can be done. There is none after [`validate`].
    pub fn ext_authz(&self, cluster: &str) -> anyhow::Result<ExtAuthz> {
        let (authz, grpc) = self.kind()?;
        let field = if grpc { "envoyExtAuthzGrpc" } else { "envoyExtAuthzHttp" };
        authz.filter(grpc, cluster).with_context(|| field.to_owned())
    }
}

impl Authz {
    fn filter(&self, grpc: bool, cluster: &str) -> anyhow::Result<ExtAuthz> {
        is_service(&self.service, self.port)?;
        let service = match grpc {
            true => {
                self.refuse_http_only()?;
                // A gRPC library refuses an authority with a bar; this is Istio's.
                AuthzService::Grpc { authority: cluster.replace('|', "_."), metadata: Vec::new() }
            }
            false => AuthzService::Http(self.http()?),
        };
        let allowed = match self.include_request_headers_in_check.as_slice() {
            [] => headers("includeHeadersInCheck", &self.include_headers_in_check)?,
            some => headers("includeRequestHeadersInCheck", some)?,
        };
        let default = ExtAuthz::new(service, cluster);
        Ok(ExtAuthz {
            timeout: self.timeout()?,
            failure_mode_allow: self.fail_open,
            status_on_error: match &self.status_on_error {
                Some(status) => status.code()?,
                None => default.status_on_error,
            },
            body: self.include_request_body_in_check.as_ref().map(BodyInCheck::body).transpose()?,
            allowed_headers: Some(allowed).filter(|allowed| !allowed.is_empty()),
            clear_route_cache: self.clear_route_cache,
            ..default
        })
    }

    fn http(&self) -> anyhow::Result<HttpAuthz> {
        let prefix = &self.path_prefix;
        ensure!(is_path_prefix(prefix), "pathPrefix: \"{prefix}\" is no beginning of a path");
        for (name, value) in &self.include_additional_headers_in_check {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            let is_header =
                !name.is_empty() && name.bytes().all(token) && !value.chars().any(char::is_control);
            let is_framing = FRAMING.contains(&name.to_ascii_lowercase().as_str());
            ensure!(
                is_header && !is_framing,
                "includeAdditionalHeadersInCheck: \"{name}\" is no header that can be sent"
            );
        }
        let pairs = self.include_additional_headers_in_check.iter();
        let bytes: usize = pairs.map(|(name, value)| name.len() + value.len()).sum();
        ensure!(
            bytes <= MOST_ADDED,
            "includeAdditionalHeadersInCheck: {bytes} bytes are more than the {MOST_ADDED} that sidecars take"
        );
        let denied = headers("headersToDownstreamOnDeny", &self.headers_to_downstream_on_deny)?;
        let additional = self.include_additional_headers_in_check.iter();
        Ok(HttpAuthz {
            path_prefix: prefix.clone(),
            headers_to_add: additional
                .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
                .collect(),
            upstream_headers: headers("headersToUpstreamOnAllow", &self.headers_to_upstream_on_allow)?,
            upstream_headers_to_append: Vec::new(),
            client_headers: Some(denied).filter(|denied| !denied.is_empty()),
            client_headers_on_success: headers(
                "headersToDownstreamOnAllow",
                &self.headers_to_downstream_on_allow,
            )?,
        })
    }

    /// A gRPC service has all headers of the request, and says itself which it edits.
    fn refuse_http_only(&self) -> anyhow::Result<()> {
        for (field, given) in [
            ("pathPrefix", !self.path_prefix.is_empty()),
            ("includeRequestHeadersInCheck", !self.include_request_headers_in_check.is_empty()),
            ("includeHeadersInCheck", !self.include_headers_in_check.is_empty()),
            ("includeAdditionalHeadersInCheck", !self.include_additional_headers_in_check.is_empty()),
            ("headersToUpstreamOnAllow", !self.headers_to_upstream_on_allow.is_empty()),
            ("headersToDownstreamOnDeny", !self.headers_to_downstream_on_deny.is_empty()),
            ("headersToDownstreamOnAllow", !self.headers_to_downstream_on_allow.is_empty()),
        ] {
            ensure!(!given, "{field}: is a field of envoyExtAuthzHttp only");
        }
        Ok(())
    }

    fn timeout(&self) -> anyhow::Result<Duration> {
        self.timeout.as_deref().map_or(Ok(TIMEOUT), duration)
    }
}

fn is_service(service: &str, port: u16) -> anyhow::Result<()> {
    ensure!(port > 0, "port: must be from 1 to 65535");
    let (namespace, host) = service.split_once('/').unwrap_or(("-", service));
    let is_named = host.contains('.') || namespace != "-";
    let is_whole = is_named && !host.is_empty() && !namespace.is_empty() && !host.contains(['/', '*']);
    ensure!(is_whole, "service: \"{service}\" is neither HOST nor NAMESPACE/HOST");
    Ok(())
}

fn duration(text: &str) -> anyhow::Result<Duration> {
    let found = outrigger_rules::duration(text).filter(|found| !found.is_zero());
    let found = found.filter(|found| found.subsec_nanos() % 1_000_000 == 0);
    found.with_context(|| {
        format!("timeout: \"{text}\" is no duration longer than 0 in whole milliseconds, such as 5s or 250ms")
    })
}

impl Status {
    fn code(&self) -> anyhow::Result<u16> {
        let code = match self {
            Self::Number(code) => Some(*code),
            Self::Text(text) => text.parse().ok(),
        };
        code.filter(|code| (200..=599).contains(code)).context("statusOnError: is not from 200 to 599")
    }
}

impl BodyInCheck {
    fn body(&self) -> anyhow::Result<AuthzBody> {
        ensure!(
            (1..=MOST_BODY).contains(&self.max_request_bytes),
            "includeRequestBodyInCheck.maxRequestBytes: {} is not from 1 to {MOST_BODY}",
            self.max_request_bytes
        );
        Ok(AuthzBody {
            max_bytes: self.max_request_bytes,
            allow_partial: self.allow_partial_message,
            as_bytes: self.pack_as_bytes,
        })
    }
}

/// Names of headers, `x`, `x*` or `*x`, without regard to case.
fn headers(field: &str, all: &[String]) -> anyhow::Result<Vec<StringMatch>> {
    let one = |text: &String| {
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(suffix), _) => Pattern::Suffix(suffix.to_owned()),
            (_, Some(prefix)) => Pattern::Prefix(prefix.to_owned()),
            _ => Pattern::Exact(text.clone()),
        };
        let (Pattern::Suffix(name) | Pattern::Prefix(name) | Pattern::Exact(name)) = &pattern else {
            bail!("{field}: \"{text}\" is no name of a header");
        };
        // A star alone would be all; Istio refuses it, too.
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && b != b'*');
        ensure!(is_name, "{field}: \"{text}\" is no name of a header, and no beginning or end of one");
        Ok(StringMatch { pattern, ignore_case: true })
    };
    all.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
