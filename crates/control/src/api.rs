//! The management API: HTTP/JSON, described by an OpenAPI document at `/openapi.json`.
//!
//! Handlers translate: they check the caller, hand the change to the keeper, and shape the answer. One file per subject;
//! the bodies, shared with the client, are in [`types`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use outrigger_identity::{Authority, PeerInfo};
use outrigger_model::identity::SpiffeId;

use crate::app::gate::Ticket;
use crate::keeper::{Keeper, Refused};
use crate::metrics::Metrics;
use crate::registry::api::Caller;
use crate::registry::claim::Reach;
use crate::registry::health::Table;
use crate::rejections::{MANAGEMENT, Rejections};
use crate::replicas::Replicas;
use crate::settings::Settings;
use crate::status::Board;
use crate::store::Store;
use crate::tokens::{ADMIN_SERVICE_ACCOUNT, AdminToken, Tokens};
use crate::traces::{TraceStore, query};
use outrigger_telemetry::site::Site;

pub mod openapi;
pub mod types;

mod authority;
mod explain;
mod identities;
mod instances;
mod parameters;
pub(crate) mod registries;
mod replicas;
pub(crate) mod route_status;
mod rules;
pub mod services;
mod status;
mod translated;

pub(crate) use replicas::router as replicas;
use types::ErrorBody;

/// Where names of pages are told.
pub(crate) const PAGE_NAMES: &str = "the setting pageNames";
/// A rule file of 8 MiB has some 200,000 lines.
const MAX_BODY: usize = 8 << 20;
/// An answer that waits for proxies waits at most so long.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// How a connection reached the API; put into the request's extensions by the server that accepted it.
#[derive(Debug, Clone)]
pub enum Channel {
    /// The unix socket: its mode 0600 is the proof, and the kernel says whose process called.
    Socket {
        /// The user, as the log and the history name it.
        user: String,
    },
    /// TLS, with the identity of a verified client certificate and its end.
    Tls {
        /// The identity.
        identity: Option<SpiffeId>,
        /// When the certificate ends; connections outlive certificates.
        not_after: Option<SystemTime>,
        /// Where it comes from.
        remote: SocketAddr,
    },
}

/// What the handlers work with.
#[derive(Clone)]
pub struct Api {
    pub(crate) shared: Arc<ApiParts>,
}

pub(crate) struct ApiParts {
    pub(crate) settings: Settings,
    pub(crate) keeper: Keeper,
    pub(crate) registries: Table,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) board: Arc<Board>,
    pub(crate) tokens: Tokens,
    pub(crate) admin: AdminToken,
    pub(crate) authority: Arc<Authority>,
    pub(crate) replicas: Option<Arc<Replicas>>,
    pub(crate) metrics: Arc<Metrics>,
    /// What join files name as the control plane's address.
    pub(crate) advertised: String,
    pub(crate) rejections: Rejections,
    /// What an operator must know for as long as this process runs.
    pub(crate) notices: Vec<String>,
    pub(crate) started: SystemTime,
    pub(crate) explaining: explain::Turns,
}

/// All routes, behind the check of the caller.
pub(crate) fn router(api: Api, traces: Option<TraceStore>) -> Router {
    let mut router: Router = Router::new()
        .merge(rules::routes())
        .merge(instances::routes())
        .merge(services::routes())
        .merge(status::routes())
        .merge(identities::routes())
        .merge(authority::routes())
        .merge(explain::routes())
        .merge(openapi::routes())
        .with_state(api.clone());
    if let Some(traces) = traces {
        router = router.merge(query::router(traces).layer(from_fn(operators)));
    }
    let settings = api.shared.settings.clone();
    let router = router
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn(parameters::check))
        .layer(from_fn_with_state(api, authenticate))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    same_site(router, &settings)
}

/// What a workload does with its certificate at the xDS port: registers itself. Tokens prove nothing there, and an operator's
/// certificate is one like others.
pub(crate) fn members(api: Api) -> Router {
    instances::routes()
        .with_state(api.clone())
        .layer(from_fn(parameters::check))
        .layer(from_fn_with_state(api, certified))
}

/// Which process of a workload calls: a sidecar says so with all that it does to its registration.
const INCARNATION: &str = "outrigger-incarnation";
/// It is kept.
const LONGEST_INCARNATION: usize = 64;

fn incarnation(request: &Request) -> Result<Option<String>, Problem> {
    let Some(value) = request.headers().get(INCARNATION) else { return Ok(None) };
    match value.to_str() {
        Ok(text) if (1..=LONGEST_INCARNATION).contains(&text.len()) => Ok(Some(text.to_owned())),
        _ => {
            let text =
                format!("header {INCARNATION}: must have 1 to {LONGEST_INCARNATION} visible characters");
            Err(Problem::new(StatusCode::BAD_REQUEST, text))
        }
    }
}

async fn certified(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let Some(peer) = request.extensions().get::<PeerInfo>() else {
        return Problem::new(StatusCode::UNAUTHORIZED, "nobody says who calls".to_owned()).into_response();
    };
    match incarnation(&request).and_then(|incarnation| api.member(peer, incarnation)) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            api.shared.rejections.note("xds", &peer.remote.ip().to_string(), &problem.body.error);
            problem.into_response()
        }
    }
}

/// Behind the check that no stranger's web page asks. Browsers do not reach a unix socket.
pub(crate) fn same_site(router: Router, settings: &Settings) -> Router {
    let site = Site::new(settings.names_of_pages());
    router.layer(from_fn_with_state(site, site_of))
}

async fn site_of(State(site): State<Site>, request: Request, next: Next) -> Response {
    let local = matches!(request.extensions().get::<Channel>(), Some(Channel::Socket { .. }));
    let refused = site.refuse(request.uri(), request.headers(), PAGE_NAMES).filter(|_| !local);
    match refused {
        Some(text) => Problem::new(StatusCode::FORBIDDEN, text.trim_end().to_owned()).into_response(),
        None => next.run(request).await,
    }
}

/// What is only for operators as a whole.
async fn operators(request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>().map(operator) {
        Some(Ok(_)) => next.run(request).await,
        Some(Err(problem)) => problem.into_response(),
        None => Problem::new(StatusCode::UNAUTHORIZED, "nobody says who calls".to_owned()).into_response(),
    }
}

async fn unknown(request: Request) -> Problem {
    let text = format!("there is no {} here; /openapi.json lists what there is", request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, text)
}

async fn wrong_method(request: Request) -> Problem {
    let text = format!("{} does not take {}; see /openapi.json", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, text)
}

/// Who calls becomes an extension; whoever is nobody gets no further.
async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let channel = request.extensions().get::<Channel>().cloned();
    let bearer = request
        .headers()
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim().to_owned());
    match api.caller(channel.as_ref(), bearer.as_deref()) {
        Ok(caller) => {
            // A request that is let in may take long; its connection does not make room for silent ones.
            if let Some(ticket) = request.extensions().get::<Arc<Ticket>>() {
                ticket.promote();
            }
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            let from = match &channel {
                Some(Channel::Tls { remote, .. }) => remote.ip().to_string(),
                _ => "the management API".to_owned(),
            };
            api.shared.rejections.note(MANAGEMENT, &from, &problem.body.error);
            problem.into_response()
        }
    }
}

impl Api {
    fn caller(&self, channel: Option<&Channel>, bearer: Option<&str>) -> Result<Caller, Problem> {
        let nobody = |text: &str| Problem::new(StatusCode::UNAUTHORIZED, text.to_owned());
        let (identity, not_after, remote) = match channel {
            Some(Channel::Socket { user }) => return Ok(Caller::Operator(user.clone())),
            Some(Channel::Tls { identity, not_after, remote }) => (identity, not_after, *remote),
            None => return Err(nobody("this listener does not say who calls")),
        };
        if let Some(bearer) = bearer {
            let source = remote.ip();
            self.shared
                .tokens
                .admit(source)
                .map_err(|wait| Problem::new(StatusCode::TOO_MANY_REQUESTS, wait.to_string()))?;
            if self.shared.admin.is(bearer) {
                return Ok(Caller::Operator("admin token".to_owned()));
            }
            let identity = self
                .shared
                .tokens
                .check(bearer, jiff::Timestamp::now(), source)
                .map_err(|denied| nobody(&denied.reason))?;
            self.not_revoked(&identity)?;
            return Ok(self.workload(identity, remote));
        }
        let Some(identity) =
            identity.clone().filter(|_| not_after.is_some_and(|end| SystemTime::now() <= end))
        else {
            return Err(nobody(
                "show the admin token (Authorization: Bearer …) or a valid certificate of this mesh",
            ));
        };
        let mesh = &self.shared.settings;
        self.of_this_mesh(&identity)?;
        let admin = identity.namespace() == Some(mesh.root_namespace.as_str())
            && identity.service_account() == Some(ADMIN_SERVICE_ACCOUNT);
        Ok(if admin { Caller::Operator(identity.to_string()) } else { self.workload(identity, remote) })
    }

    /// A caller of the xDS port.
    fn member(&self, peer: &PeerInfo, own: Option<String>) -> Result<Caller, Problem> {
        let valid = peer.identity.clone().filter(|_| peer.is_certificate_valid(SystemTime::now()));
        let Some(identity) = valid else {
            let text = "show a valid certificate of this mesh".to_owned();
            return Err(Problem::new(StatusCode::UNAUTHORIZED, text));
        };
        self.of_this_mesh(&identity)?;
        let mut caller = self.workload(identity, peer.remote);
        if let Caller::Workload { incarnation, .. } = &mut caller {
            *incarnation = own;
        }
        Ok(caller)
    }

    fn of_this_mesh(&self, identity: &SpiffeId) -> Result<(), Problem> {
        if identity.trust_domain() != self.shared.settings.trust_domain {
            return Err(Problem::new(StatusCode::FORBIDDEN, format!("{identity} is not of this mesh")));
        }
        self.not_revoked(identity)
    }

    /// A connection may have been open before.
    fn not_revoked(&self, identity: &SpiffeId) -> Result<(), Problem> {
        if self.shared.keeper.published().revoked.has_identity(identity) {
            return Err(Problem::new(StatusCode::FORBIDDEN, format!("{identity} is revoked")));
        }
        Ok(())
    }

    fn workload(&self, identity: SpiffeId, remote: SocketAddr) -> Caller {
        let tokens = &self.shared.tokens;
        // Who joined by the cluster's word is registered by the cluster, Pod by Pod; ids and services are its to say.
        let by_cluster = self.shared.settings.cluster().is_some() && !tokens.knows(&identity);
        let services = if by_cluster { Vec::new() } else { tokens.services_of(&identity) };
        let reach = Reach { source: Some(remote.ip()), ranges: tokens.ranges_of(&identity) };
        Caller::Workload { identity, services, reach, incarnation: None }
    }
}

/// Operators only.
pub(crate) fn operator(caller: &Caller) -> Result<&str, Problem> {
    match caller {
        Caller::Operator(name) => Ok(name),
        Caller::Workload { identity, .. } => {
            let text = format!("{identity} is a workload; only operators may do that");
            Err(Problem::new(StatusCode::FORBIDDEN, text))
        }
    }
}

/// An error on its way out: `{"error": …, "findings": […]}`.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    body: ErrorBody,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, error: String) -> Self {
        Self { status, body: ErrorBody { error, ..ErrorBody::default() } }
    }

    pub(crate) fn findings(error: String, findings: Vec<outrigger_rules::Finding>) -> Self {
        Self {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            body: ErrorBody { error, findings, ..ErrorBody::default() },
        }
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let text = refused.to_string();
        let status = match refused {
            Refused::Findings(findings) => {
                let errors = findings.iter().filter(|finding| finding.is_error()).count();
                return Self::findings(format!("nothing was changed: {errors} error(s)"), findings);
            }
            Refused::Invalid(_) => StatusCode::BAD_REQUEST,
            Refused::Forbidden(_) => StatusCode::FORBIDDEN,
            Refused::Unknown(_) => StatusCode::NOT_FOUND,
            Refused::Conflict(_) | Refused::Alone(..) => StatusCode::CONFLICT,
            Refused::Replaced { by, .. } => {
                let body = ErrorBody { error: text, replaced_by: Some(by), ..ErrorBody::default() };
                return Self { status: StatusCode::CONFLICT, body };
            }
            Refused::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Refused::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, text)
    }
}

impl From<crate::store::StoreError> for Problem {
    fn from(error: crate::store::StoreError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<axum::extract::rejection::JsonRejection> for Problem {
    fn from(rejection: axum::extract::rejection::JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<axum::extract::rejection::QueryRejection> for Problem {
    fn from(rejection: axum::extract::rejection::QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, axum::Json(self.body)).into_response()
    }
}

/// A wish to wait, in seconds.
pub(crate) fn timeout(seconds: Option<f64>) -> Result<Duration, Problem> {
    let seconds = seconds.unwrap_or(30.0);
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) => Ok(timeout.min(MAX_WAIT)),
        Err(_) => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!("timeout: {seconds} is not a number of seconds"),
        )),
    }
}

#[cfg(test)]
mod tests;
