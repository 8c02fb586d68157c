//! Authorization by a service that is asked: `envoy.extensions.filters.http.ext_authz.v3.ExtAuthz`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::filter::FilterConfig;
use crate::matcher::StringMatch;
use crate::origin::Origin;
use crate::policy::Rbac;

/// The name of the filter where nobody says another.
pub const NAME: &str = "envoy.filters.http.ext_authz";

/// Whom to ask, with what, and what follows from the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExtAuthz {
    /// By which routes say what they want of it.
    #[serde(default = "name")]
    pub name: String,
    /// Who is asked.
    pub service: AuthzService,
    /// The name of a cluster.
    pub cluster: String,
    /// For the answer. Default 200 ms.
    pub timeout: Duration,
    /// Requests pass when nobody answers.
    pub failure_mode_allow: bool,
    /// They then carry `x-envoy-auth-failure-mode-allowed: true`.
    pub failure_mode_allow_header: bool,
    /// What a request gets when nobody answers. Default 403.
    pub status_on_error: u16,
    /// How much of the body goes along. Absent: nothing.
    pub body: Option<AuthzBody>,
    /// Request headers that go along; absent: all to a gRPC service, and to an HTTP service only those that always do.
    pub allowed_headers: Option<Vec<StringMatch>>,
    /// Request headers that do not.
    pub disallowed_headers: Vec<StringMatch>,
    /// Routes are looked for again after headers were edited.
    pub clear_route_cache: bool,
    /// Only what these policies match is asked about, whatever their action; absent: everything.
    #[serde(default)]
    pub only: Option<Rbac>,
}

impl FilterConfig for ExtAuthz {
    fn cluster(&self) -> Option<&str> {
        Some(&self.cluster)
    }

    fn origins(&self) -> Vec<&Origin> {
        self.only.iter().flat_map(Rbac::origins).collect()
    }
}

fn name() -> String {
    NAME.to_owned()
}

/// What speaks there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization`.
    Grpc {
        /// `:authority` of the calls; empty: the cluster's name.
        authority: String,
        /// Metadata of the calls.
        metadata: Vec<(String, String)>,
    },
    /// HTTP: 200 permits.
    Http(HttpAuthz),
}

/// An HTTP service that permits and denies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HttpAuthz {
    /// Before the path of the request.
    pub path_prefix: String,
    /// Headers of each call.
    pub headers_to_add: Vec<(String, String)>,
    /// Of an answer that permits: set in the request.
    pub upstream_headers: Vec<StringMatch>,
    /// Of an answer that permits: added to the request.
    pub upstream_headers_to_append: Vec<StringMatch>,
    /// Of an answer that denies: for the client. Absent: all.
    pub client_headers: Option<Vec<StringMatch>>,
    /// Of an answer that permits: for the client.
    pub client_headers_on_success: Vec<StringMatch>,
}

/// The body, as it goes along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthzBody {
    /// So many bytes.
    pub max_bytes: u32,
    /// The first bytes of a longer one; without it such a request is refused with 413.
    pub allow_partial: bool,
    /// As bytes instead of as text (gRPC).
    pub as_bytes: bool,
}

impl ExtAuthz {
    /// With the defaults.
    pub fn new(service: AuthzService, cluster: impl Into<String>) -> Self {
        Self {
            name: name(),
            service,
            cluster: cluster.into(),
            timeout: Duration::from_millis(200),
            failure_mode_allow: false,
            failure_mode_allow_header: false,
            status_on_error: 403,
            body: None,
            allowed_headers: None,
            disallowed_headers: Vec::new(),
            clear_route_cache: false,
            only: None,
        }
    }
}

/// Of a body, what may go along.
pub const MOST_BODY: u32 = 64 * 1024;
/// Of headers that are added to a question, all together.
pub const MOST_ADDED: usize = 16 * 1024;

/// Headers that say how a question is sent, which is nobody else's to say.
pub const FRAMING: [&str; 7] =
    ["connection", "content-length", "host", "keep-alive", "te", "transfer-encoding", "upgrade"];

/// Whether something can go before paths.
pub fn is_path_prefix(prefix: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'\\');
    prefix.is_empty() || (prefix.starts_with('/') && prefix.bytes().all(plain))
}

/// What a service that is asked wants done with a header; the name is in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub value: Vec<u8>,
    /// What there is already.
    pub how: How,
}

/// What becomes of what there is already under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is replaced.
    Set,
    /// It stays beside.
    Append,
    /// It goes before.
    IfAbsent,
    /// It is replaced; without it nothing is added.
    IfPresent,
}

/// What a route wants of a filter that asks: `ExtAuthzPerRoute`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteAuthz {
    /// Its requests are not asked about.
    Off,
    /// They are, in this way.
    Asked(CheckSettings),
}

/// How requests of a route are asked about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckSettings {
    /// What a gRPC service is told besides, `context_extensions`.
    pub context: BTreeMap<String, String>,
    /// How much of the body goes along.
    pub body: RouteBody,
}

/// How much of the body goes along, for a route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteBody {
    /// As the filter has it.
    #[default]
    AsElsewhere,
    /// Nothing.
    Nothing,
    /// So much.
    Other(AuthzBody),
}

impl CheckSettings {
    /// How much of the body goes along, where `filter` is what the filter itself has.
    pub fn body(&self, filter: Option<AuthzBody>) -> Option<AuthzBody> {
        match self.body {
            RouteBody::AsElsewhere => filter,
            RouteBody::Nothing => None,
            RouteBody::Other(body) => Some(body),
        }
    }
}
