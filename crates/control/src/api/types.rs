//! The bodies of the management API, for server and client alike.

use jiff::Timestamp;
use outrigger_rules::Finding;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

mod mesh;

pub use super::registries::{ContestedAddress, RegistryBody, Shadowed};
use crate::instance::{Instance, State};
pub use crate::keeper::{Action, AppliedObject};
pub use crate::registry::Problem as FileProblem;
pub use crate::registry::health::Condition;
pub use crate::registry::lease::Held;
pub use crate::rejections::Rejection;
pub use crate::status::{InForce, ProxyStatus, Refusal, TypeStatus};
pub use crate::store::records::{HistoryAction, HistoryEntry};
pub use mesh::{Missing, ReplicaBody, StatusBody};

/// Every error of the API.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What, where, why, what to do.
    pub error: String,
    /// What is wrong in rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<FindingBody>)]
    pub findings: Vec<Finding>,
    /// The process that has the registration now, where the caller's is not the newest.
    #[serde(default, rename = "replacedBy", skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<String>,
}

/// Something wrong in a rule; how [`Finding`] is written.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FindingBody {
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// A stable code, such as `IST0101`.
    pub code: String,
    /// The file it was found in; may be empty.
    pub file: String,
    /// Line, from 1; 0 when it belongs to none.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// The object, as `VirtualService shop/catalog`.
    pub object: Option<String>,
    /// Path of the field.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

/// How to apply.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct ApplyQuery {
    /// Only say what would happen. Default false.
    pub dry_run: bool,
    /// Answer when all connected proxies have it in force. Default false.
    pub wait: bool,
    /// Seconds to wait at most. Default 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// Who applies, for the history. Default: how the caller proved itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// Namespace of objects that name none. Default `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the file, for findings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Delete a rule although others need it. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// Several texts as one application, `application/vnd.outrigger.files+json`: a list of these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FileText {
    /// Name of the file, for findings.
    pub file: String,
    /// YAML or JSON.
    pub text: String,
}

/// The content type of several texts.
pub const FILES: &str = "application/vnd.outrigger.files+json";

/// An application that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyBody {
    /// The generation of the world that has it.
    pub generation: u64,
    /// Nothing was really changed.
    pub dry_run: bool,
    /// The objects, in the order of the text.
    pub objects: Vec<AppliedObject>,
    /// Warnings.
    #[schema(value_type = Vec<FindingBody>)]
    pub findings: Vec<Finding>,
    /// With `wait`: how far it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,
    /// With `wait`: milliseconds from the change until it was in force everywhere, or until waiting ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force_millis: Option<f64>,
}

/// A deletion that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeleteBody {
    /// The version that the history gives the deletion.
    pub version: u64,
    /// The generation without the rule.
    pub generation: u64,
    /// Nothing was really deleted.
    #[serde(default)]
    pub dry_run: bool,
    /// What others miss now.
    #[schema(value_type = Vec<FindingBody>)]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// With `wait`: how far it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,
    /// With `wait`: milliseconds from the change until it was in force everywhere, or until waiting ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force_millis: Option<f64>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleBody {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its version, counted from 1 over the whole history.
    pub version: u64,
    /// The generation that it appeared in.
    pub generation: u64,
    /// Who applied it.
    pub author: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// As the user wrote it.
    pub source: String,
    /// The same as JSON.
    #[schema(value_type = Object)]
    pub object: serde_json::Value,
    /// Why it is not in force anywhere, if this release does not understand it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the Gateway API calls the status of its routes: for each parent the conditions Accepted and ResolvedRefs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub status: Option<serde_json::Value>,
}

/// What a list of rules is narrowed to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct RulesQuery {
    /// Only this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Only this namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A rule and how far it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatusBody {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// The generation that it appeared in.
    pub generation: u64,
    /// `in force`, `stale` (some proxies lack it), `refused`, `not enforced`, or `not understood`.
    pub state: RuleState,
    /// Proxies that have it.
    pub proxies: usize,
    /// Connected proxies.
    pub of: usize,
    /// Who lacks it.
    pub waiting: Vec<String>,
    /// Who refused something made from it, or does not enforce it, and why; or why it is not understood.
    pub reasons: Vec<String>,
}

/// How far a rule has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum RuleState {
    /// Every connected proxy has it.
    #[serde(rename = "in force")]
    InForce,
    /// Some proxies lack it.
    #[serde(rename = "stale")]
    Stale,
    /// A proxy refused something made from it.
    #[serde(rename = "refused")]
    Refused,
    /// A proxy has it and cannot enforce some of it, or nobody stands where it would hold.
    #[serde(rename = "not enforced")]
    NotEnforced,
    /// This release does not understand the stored text.
    #[serde(rename = "not understood")]
    NotUnderstood,
}

/// What to wait for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// The generation. Default: the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Seconds to wait at most. Default 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
}

/// An instance and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceBody {
    /// What was registered.
    pub instance: Instance,
    /// The registry that it is of, by its name in the settings; `api` is the management API.
    pub registry: String,
    /// The identity that registered it; none for an operator or a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StateBody {
    /// The new one.
    pub state: State,
}

/// A change that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedBody {
    /// The generation of the world that has it.
    pub generation: u64,
}

/// What a new join token is for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenRequest {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity.
    pub service_account: String,
    /// Services that its holder may register. Default: the one named as the service account; `*` is any.
    #[serde(default)]
    pub services: Vec<String>,
    /// Addresses that its holder may give its instances, beside that from which it calls: `10.1.0.0/16`, `10.1.2.3`,
    /// `NETWORK/10.1.0.0/16`.
    #[serde(default)]
    pub ranges: Vec<String>,
    /// Seconds that it is good for. Default: 24 h; 0 is for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// How often it may be used. Default: as often as wanted, so that a sidecar that lost its state can come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// The control plane's address as the workload sees it, `host:port`. Default: what the control plane advertises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A join token as it is listed: without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenBody {
    /// The identity that it proves.
    pub identity: String,
    /// Services that its holder may register.
    pub services: Vec<String>,
    /// Addresses that its holder may give its instances.
    #[serde(default)]
    pub ranges: Vec<String>,
    /// When it was made.
    #[schema(value_type = String)]
    pub created: Timestamp,
    /// When it ends.
    #[schema(value_type = Option<String>)]
    pub expires: Option<Timestamp>,
    /// How often it may still be used.
    pub uses_left: Option<u32>,
}

/// Tokens that were revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedBody {
    /// How many.
    pub revoked: usize,
}

/// A key and certificate that the control plane makes, for a workload without an agent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityRequest {
    /// Namespace of the identity.
    pub namespace: String,
    /// Service account of the identity; `outrigger-admin` in the root namespace makes an operator.
    pub service_account: String,
    /// Seconds that the certificate is good for. Default 24 h, at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// An identity.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityBody {
    /// The SPIFFE id.
    pub identity: String,
    /// Private key, PEM. It is not kept.
    pub key: String,
    /// Certificate and intermediates, PEM.
    pub certificate: String,
    /// Roots, PEM.
    pub roots: String,
    /// When the certificate ends.
    #[schema(value_type = String)]
    pub not_after: Timestamp,
}

/// Whom the mesh trusts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustBundleBody {
    /// The trust domain.
    pub trust_domain: String,
    /// Its roots, PEM.
    pub roots: String,
}

/// Whom to cut off: an identity by namespace and service account, or one certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct RevocationRequest {
    /// Namespace of the identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Service account of the identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Serial number of the certificate, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// A revocation that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevocationBody {
    /// What is revoked: `spiffe://…` or `serial:…`.
    pub entry: String,
    /// The generation with which sidecars refuse it.
    pub generation: u64,
    /// Join tokens that were revoked with it.
    pub tokens: usize,
}

/// A revocation that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReinstatedBody {
    /// What was revoked.
    pub entry: String,
    /// The generation with which sidecars take it again.
    pub generation: u64,
}

/// One that is revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedEntryBody {
    /// `spiffe://…` or `serial:…`.
    pub entry: String,
    /// Who revoked it.
    pub by: String,
    /// When.
    #[schema(value_type = String)]
    pub at: Timestamp,
}

/// The certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorityBody {
    /// The trust domain that it speaks for.
    pub trust_domain: String,
    /// `trust-domain sha256:…` for each root that workloads trust, the one that signs first.
    pub roots: Vec<String>,
}

/// Whether to forget old roots that may be needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ForgetQuery {
    /// Even if certificates under them are in use. Default false.
    pub force: bool,
}
