//! What is asked and answered, for server and client alike.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which request to explain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExplainRequest {
    /// Who sends it: an instance, or a service as `web`, `web.shop` or `shop/web`.
    pub from: String,
    /// Default GET.
    #[serde(default = "get")]
    pub method: String,
    /// Such as `http://reviews.shop:8080/x?y=z`.
    pub url: String,
    /// Its headers, as `name: value`. A `host` replaces the URL's.
    #[serde(default)]
    pub headers: Vec<String>,
}

fn get() -> String {
    "GET".to_owned()
}

/// What becomes of a request, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The generation of the world that it was looked up in.
    pub generation: u64,
    /// Whether the client's proxy has that in force; absent: it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<bool>,
    /// In one sentence.
    pub summary: String,
    /// All that may come of it: one where nothing is left to chance.
    pub outcomes: Vec<Outcome>,
    /// Who sends it.
    pub source: SourceBody,
    /// As the client's proxy sees it.
    pub request: RequestBody,
    /// What takes the connection; absent: nothing in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<ListenerBody>,
    /// What takes the request; absent: nothing, or there is nothing to see but bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<RouteBody>,
    /// Where it may be sent, by weight.
    pub targets: Vec<TargetBody>,
    /// Rules that do not hold for it, and why, in the order of precedence; at most 200.
    pub lost: Vec<Lost>,
    /// How many these are in all.
    pub lost_count: usize,
    /// What could not be known.
    pub notes: Vec<String>,
}

/// Something that may come of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// `forwarded`, `answered`, `denied`, `asked`, `failed` or `outside`.
    pub kind: String,
    /// The status that a proxy gives; absent: the application's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The cluster; of a client without a sidecar host and port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The instances among which one gets it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<String>,
    /// The user object that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Why, where it is not simply so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Who sends a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceBody {
    /// The instance.
    pub instance: String,
    /// Its service, as `shop/web`.
    pub service: String,
    /// What its certificate proves; empty: it has no sidecar that shows one.
    pub identity: String,
    /// What stands beside it: `outrigger`, `envoy` or `grpc`; absent: nothing that is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The Sidecar that holds for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<String>,
}

/// A request as the client's proxy sees it; without one, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestBody {
    /// The method.
    pub method: String,
    /// The authority.
    pub authority: String,
    /// Path and query in their one form.
    pub path: String,
    /// How they were written, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<String>,
}

/// What takes a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerBody {
    /// Its name.
    pub name: String,
    /// Which of its filter chains.
    pub chain: String,
    /// `http` or `tcp`.
    pub protocol: String,
}

/// What takes a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteBody {
    /// Its name; may be empty.
    pub name: String,
    /// The virtual host.
    pub virtual_host: String,
    /// The user object that it comes from; absent: nobody's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Which requests it takes, in words.
    pub matches: String,
    /// What it does with them, in words.
    pub action: String,
    /// How long a request may take; absent: as long as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// When it is sent again, in words; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<String>,
    /// What it changes in requests, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub edits: Vec<String>,
    /// Faults, mirrors, other origins, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<String>,
}

/// Where a request may be sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetBody {
    /// The cluster; of a client without a sidecar host and port.
    pub cluster: String,
    /// Its share, in percent.
    pub percent: f64,
    /// The user object that shapes it; absent: nobody's rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The path that is sent there, where it is rewritten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Balancing, TLS, limits and ejection, in words.
    pub policy: Vec<String>,
    /// Endpoints that take requests.
    pub healthy: usize,
    /// All endpoints.
    pub endpoints: usize,
    /// How requests are spread over priorities and places, the nearest first; empty where there is only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<LevelBody>,
    /// What those that take requests do with this one, by what they do.
    pub inbound: Vec<InboundBody>,
    /// What those would do that get requests only if nearer ones fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare: Vec<InboundBody>,
}

/// Endpoints of one priority.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LevelBody {
    /// 0 is the nearest.
    pub priority: u32,
    /// Of the requests to the cluster, in percent; 0: none, unless nearer ones fail.
    pub percent: u8,
    /// Where they are.
    pub places: Vec<PlaceBody>,
}

/// Endpoints of one place and priority.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlaceBody {
    /// As `region/zone`; empty where no region is known.
    pub place: String,
    /// Of the requests to the cluster, in percent, by weight.
    pub percent: f64,
    /// Endpoints that take requests.
    pub healthy: usize,
    /// All endpoints.
    pub endpoints: usize,
}

/// What some endpoints do with a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InboundBody {
    /// Which instances, or their addresses where nobody is registered there; at most 20.
    pub instances: Vec<String>,
    /// How many these are.
    pub count: usize,
    /// How it comes: `mTLS as spiffe://…`, `plain text`.
    pub transport: String,
    /// What the workload accepts, with the user object that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<String>,
    /// `allowed`, `denied`, `asks` or `refused`.
    pub decision: String,
    /// The status of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The user object that decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Why.
    pub why: String,
    /// Limits of rate that count it, in words; a request beyond one is answered 429.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// Policies that were looked at and do not match, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
}

/// A rule that does not hold for a request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Lost {
    /// The route or policy; empty: the whole object.
    pub rule: String,
    /// The user object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Why it does not hold.
    pub why: String,
}
