//! Authorization by a service that is asked: `envoy.filters.http.ext_authz`. Of the body as much is read as goes along, and read again
//! when the request is forwarded.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use outrigger_model::ext_authz::{self as model, AuthzBody, AuthzService, Edit, How, HttpAuthz, RouteAuthz};
use outrigger_model::grpc::grpc_of_http;
use outrigger_model::matcher::{Matcher, StringMatch};
use outrigger_model::names::is_of_the_proxy;
use outrigger_model::policy::decide::{Decision, PolicySet};
use outrigger_model::policy::{Rbac, RbacAction};
use outrigger_model::request::ConnectionView;
use outrigger_model::resource::{Flaw, Origin, Under};
use outrigger_model::route::table::CompiledRoute;
use outrigger_xds::authz::{self, Check};

use super::visit::Held;
use super::{Act, After, Build, Input, Place, ResponseEdit, Stop, Tunnel, Verdict, Visit};
use crate::failure::{Failure, FailureKind, Stage};
use crate::http::call::message::Answer;
use crate::http::grpc;
use crate::http::h1::{EditError, Framing, H1Request, H1Response};
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::respond::{Local, percent_encoded};

/// Of a denial's text, as gRPC clients are told it.
const LONGEST_MESSAGE: usize = 1024;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// A compiled filter.
#[derive(Debug)]
pub struct ExtAuthz {
    config: model::ExtAuthz,
    allowed: Option<Vec<Matcher>>,
    disallowed: Vec<Matcher>,
    upstream: Vec<Matcher>,
    upstream_append: Vec<Matcher>,
    client: Option<Vec<Matcher>>,
    client_on_success: Vec<Matcher>,
    /// Denies what is asked about.
    only: Option<PolicySet>,
}

/// What is known of a request.
struct Asked<'a> {
    connection: ConnectionView<'a>,
    /// Our own identity.
    own: &'a str,
    head: &'a RequestHead,
    /// What of the body goes along, and as the route wants it.
    settings: Option<AuthzBody>,
    body: &'a [u8],
    /// What the route has the service told besides.
    context: Option<&'a BTreeMap<String, String>>,
    /// More of the body follows.
    partial: bool,
    /// Of the body; -1 if it is not known.
    size: i64,
}

/// What follows.
enum Judgement {
    Allowed(Edits),
    /// With this.
    Denied(Box<Local>),
    Failed(Failure),
}

/// Edits of the request and of its response.
#[derive(Default)]
struct Edits {
    remove: Vec<String>,
    request: Vec<Edit>,
    response: Vec<Edit>,
}

impl Build for ExtAuthz {
    type Config = model::ExtAuthz;

    fn build(config: &model::ExtAuthz, _place: &Place<'_>) -> Result<Self, Flaw> {
        let http = match &config.service {
            AuthzService::Http(http) => http.clone(),
            AuthzService::Grpc { .. } => HttpAuthz::default(),
        };
        let only = config.only.clone().map(|only| Rbac { action: RbacAction::Deny, ..only });
        Ok(Self {
            only: only.map(|only| PolicySet::compile([&only])).transpose().under("only")?,
            allowed: config.allowed_headers.as_deref().map(compile).transpose().under("allowed_headers")?,
            disallowed: compile(&config.disallowed_headers).under("disallowed_headers")?,
            upstream: compile(&http.upstream_headers).under("allowed_upstream_headers")?,
            upstream_append: compile(&http.upstream_headers_to_append).under("allowed_upstream_headers")?,
            client: http
                .client_headers
                .as_deref()
                .map(compile)
                .transpose()
                .under("allowed_client_headers")?,
            client_on_success: compile(&http.client_headers_on_success).under("allowed_client_headers")?,
            config: config.clone(),
        })
    }
}

impl Act for ExtAuthz {
    fn on_request(&self, input: &Input<'_>) -> Verdict {
        if self.concerns(input) { Verdict::Wait } else { Verdict::Continue }
    }

    /// Asks, and does what the answer says.
    async fn settle<'v>(&self, visit: &mut impl Visit<'v>) -> Result<After, Stop> {
        visit.note_asked(&self.config.name);
        let of_route = match visit.route().and_then(|route| route.config.authz.get(&self.config.name)) {
            Some(RouteAuthz::Off) => return Ok(After::Same),
            Some(RouteAuthz::Asked(settings)) => Some(settings),
            None => None,
        };
        let settings = of_route.map_or(self.config.body, |settings| settings.body(self.config.body));
        let settings = settings.filter(|_| !visit.is_upgrade());
        let partial = match settings {
            Some(settings) => read(visit, settings).await?,
            None => false,
        };
        let (head, body) = {
            let own = visit.own().map(ToString::to_string).unwrap_or_default();
            let input = visit.input();
            self.ask(&Asked {
                connection: input.connection,
                own: &own,
                head: input.request,
                settings,
                body: settings.map_or(&[], |settings| visit.held(settings.max_bytes as usize)),
                context: of_route.map(|settings| &settings.context),
                partial,
                size: match settings {
                    // As in Envoy, which counts what it has seen by then.
                    None => 0,
                    Some(_) => visit.length().map_or(-1, |size| i64::try_from(size).unwrap_or(i64::MAX)),
                },
            })?
        };
        let came = visit.call(&self.config.cluster, head, body, self.config.timeout).await?;
        match self.judge(came, visit.is_grpc()) {
            Judgement::Allowed(edits) => apply(visit, edits)?,
            Judgement::Denied(local) => {
                visit.flag("UAEX");
                return Err(Stop::Answered(local, "ext_authz_denied"));
            }
            Judgement::Failed(failure) if self.config.failure_mode_allow => {
                tracing::debug!(%failure, "a request passes without authorization");
                if self.config.failure_mode_allow_header {
                    let _ = visit.head_mut().set("x-envoy-auth-failure-mode-allowed", "true");
                }
            }
            Judgement::Failed(failure) => {
                return Err(failure.because_of(self.origin(&visit.input())).into());
            }
        }
        Ok(if self.config.clear_route_cache { After::Reroute } else { After::Same })
    }

    fn judge_again(&self, tunnel: &mut Tunnel<'_>) -> Result<(), Failure> {
        let (input, name) = (tunnel.input(), &self.config.name);
        let off = |route: &CompiledRoute| matches!(route.config.authz.get(name), Some(RouteAuthz::Off));
        if !self.concerns(&input) || input.route.is_some_and(off) || tunnel.asked.contains(name) {
            return Ok(());
        }
        let detail = format!("{name} must be asked about it now, and was not when it was opened");
        let failure = Failure::local(Stage::Authorize, FailureKind::Denied, detail);
        Err(failure.because_of(self.origin(&input)))
    }
}

impl ExtAuthz {
    /// Whether a request is asked about.
    fn concerns(&self, input: &Input<'_>) -> bool {
        let asked = |only: &PolicySet| !only.decide(&input.connection, Some(&input.judged())).is_allow();
        self.only.as_ref().is_none_or(asked)
    }

    /// The user object that wants a request asked about.
    fn origin(&self, input: &Input<'_>) -> Option<Arc<Origin>> {
        match self.only.as_ref()?.decide(&input.connection, Some(&input.judged())) {
            Decision::Deny(denial) => denial.origin().cloned().map(Arc::new),
            Decision::Allow => None,
        }
    }

    /// The request that asks.
    fn ask(&self, asked: &Asked<'_>) -> Result<(RequestHead, Bytes), Failure> {
        match &self.config.service {
            // The question is the request without its body, and of CONNECT nothing is left but a tunnel.
            AuthzService::Http(_) if asked.head.is_connect() => {
                let detail = "a service that authorizes over HTTP cannot be asked about CONNECT";
                return Err(Failure::local(Stage::Authorize, FailureKind::AuthzUnavailable(403), detail));
            }
            AuthzService::Grpc { authority, metadata } => self.grpc(asked, authority, metadata),
            AuthzService::Http(http) => self.http(asked, http),
        }
        .map_err(|error| {
            Failure::downstream(Stage::Authorize, FailureKind::BadRequest(400), error.to_string())
        })
    }

    fn goes_along(&self, name: &[u8], otherwise: bool) -> bool {
        let any = |all: &[Matcher]| all.iter().any(|matcher| matcher.matches(name));
        self.allowed.as_deref().map_or(otherwise, any) && !any(&self.disallowed)
    }

    fn http(&self, asked: &Asked<'_>, http: &HttpAuthz) -> Result<(RequestHead, Bytes), EditError> {
        let path = format!("{}{}", http.path_prefix, asked.head.path());
        let mut head = H1Request::new(asked.head.method(), &path, asked.head.authority())?;
        head.set_scheme(asked.head.scheme());
        let mut head = RequestHead::H1(head);
        let mut lines = Vec::new();
        asked.head.each_header(|name, value| {
            let name = name.to_ascii_lowercase();
            let always = name == b"authorization";
            let never =
                matches!(&*name, b"host" | b"content-length" | b"transfer-encoding" | b"connection" | b"te");
            if !never && (always && !self.is_disallowed(&name) || self.goes_along(&name, false)) {
                lines.push((name, value.to_vec()));
            }
        });
        for (name, value) in lines {
            head.append(&String::from_utf8_lossy(&name), value)?;
        }
        for (name, value) in &http.headers_to_add {
            head.set(name, value)?;
        }
        if asked.settings.is_some() && !asked.body.is_empty() {
            head.set(PARTIAL, if asked.partial { "true" } else { "false" })?;
        }
        Ok((head, Bytes::copy_from_slice(asked.body)))
    }

    fn is_disallowed(&self, name: &[u8]) -> bool {
        self.disallowed.iter().any(|matcher| matcher.matches(name))
    }

    fn grpc(
        &self,
        asked: &Asked<'_>,
        authority: &str,
        metadata: &[(String, String)],
    ) -> Result<(RequestHead, Bytes), EditError> {
        let mut headers: HashMap<String, String> = HashMap::new();
        let mut add = |name: &str, value: &str| {
            if self.goes_along(name.as_bytes(), true) {
                let known = headers.entry(name.to_owned()).or_default();
                *known = if known.is_empty() { value.to_owned() } else { format!("{known},{value}") };
            }
        };
        let head = asked.head;
        for (name, value) in [
            (":method", head.method()),
            (":path", head.path()),
            (":authority", head.authority()),
            (":scheme", head.scheme()),
        ] {
            add(name, value);
        }
        head.each_header(|name, value| {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            if name != "host" {
                add(&name, &String::from_utf8_lossy(value));
            }
        });
        if asked.settings.is_some() && !asked.body.is_empty() && self.goes_along(PARTIAL.as_bytes(), true) {
            // Whatever the client says of it.
            let partial = if asked.partial { "true" } else { "false" };
            headers.insert(PARTIAL.to_owned(), partial.to_owned());
        }
        let id = head.first("x-request-id").map(String::from_utf8_lossy).unwrap_or_default();
        let principal = asked.connection.peer.map(ToString::to_string).unwrap_or_default();
        let message = Check {
            source: (asked.connection.source, &principal),
            destination: (asked.connection.destination, asked.own),
            id: &id,
            method: head.method(),
            path: head.path(),
            host: head.authority(),
            scheme: head.scheme(),
            protocol: head.version(),
            headers,
            size: asked.size,
            body: asked.body,
            as_bytes: asked.settings.is_some_and(|body| body.as_bytes),
            context: asked.context,
        }
        .encode();
        let authority = if authority.is_empty() { &self.config.cluster } else { authority };
        let authority: String = authority
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || ".-:".contains(c) { c } else { '_' })
            .collect();
        let mut head = grpc::unary(CHECK, &authority, Some(self.config.timeout))?;
        for (name, value) in metadata {
            head.append(name, value)?;
        }
        Ok((head, grpc::framed(&message)))
    }

    /// What an answer means.
    fn judge(&self, came: Result<Answer, Failure>, asked_by_grpc: bool) -> Judgement {
        let judged =
            came.map_err(|failure| failure.to_string()).and_then(|answer| match &self.config.service {
                AuthzService::Grpc { .. } => self.judge_grpc(&answer, asked_by_grpc),
                AuthzService::Http(_) => self.judge_http(&answer, asked_by_grpc),
            });
        judged.unwrap_or_else(|why| {
            let detail = format!("{} could not be asked: {why}", self.config.cluster);
            let kind = FailureKind::AuthzUnavailable(self.config.status_on_error);
            Judgement::Failed(Failure::local(Stage::Authorize, kind, detail))
        })
    }

    fn judge_grpc(&self, answer: &Answer, asked_by_grpc: bool) -> Result<Judgement, String> {
        Ok(match authz::decode(answer.message()?)? {
            authz::Verdict::Allowed { request, remove, response } => {
                Judgement::Allowed(Edits { remove, request, response })
            }
            authz::Verdict::Denied { status, headers, body } => {
                let headers = headers.into_iter().map(|edit| (edit.name, edit.value));
                Judgement::Denied(Box::new(denied(status, headers, body, asked_by_grpc)))
            }
        })
    }

    fn judge_http(&self, answer: &Answer, asked_by_grpc: bool) -> Result<Judgement, String> {
        let status = answer.head.status();
        if status >= 500 {
            return Err(format!("it answered with {status}"));
        }
        let mut lines: Vec<(String, Vec<u8>)> = Vec::new();
        answer.head.each_header(|name, value| {
            lines.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()));
        });
        let any = |all: &[Matcher], name: &str| all.iter().any(|matcher| matcher.matches(name.as_bytes()));
        if status == 200 {
            let taken = |all: &[Matcher], how| -> Vec<Edit> {
                let found = lines.iter().filter(|(name, _)| any(all, name));
                found.map(|(name, value)| Edit { name: name.clone(), value: value.clone(), how }).collect()
            };
            let mut request = taken(&self.upstream, How::Set);
            request.extend(taken(&self.upstream_append, How::Append));
            let response = taken(&self.client_on_success, How::Append);
            return Ok(Judgement::Allowed(Edits { remove: Vec::new(), request, response }));
        }
        let always = ["www-authenticate", "location", "proxy-authenticate"];
        lines.retain(|(name, _)| {
            self.client.as_deref().is_none_or(|all| any(all, name) || always.contains(&&**name))
        });
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        Ok(Judgement::Denied(Box::new(denied(status, lines, body, asked_by_grpc))))
    }
}

/// Reads as much of the body as goes along; whether there is more.
async fn read<'v>(visit: &mut impl Visit<'v>, settings: AuthzBody) -> Result<bool, Failure> {
    let most = settings.max_bytes as usize;
    match visit.hold(most).await? {
        Held::NoRoom => {
            let detail = "no memory for the body that goes along to be authorized";
            Err(Failure::local(Stage::Authorize, FailureKind::Overload, detail))
        }
        Held::Part if !settings.allow_partial => {
            let detail = format!("the body is longer than the {most} bytes that go along to be authorized");
            Err(Failure::downstream(Stage::Authorize, FailureKind::BadRequest(413), detail))
        }
        held => Ok(held == Held::Part),
    }
}

fn apply<'v>(visit: &mut impl Visit<'v>, edits: Edits) -> Result<(), Failure> {
    // What the service says is not for the client to say in what applications take for it. The service itself may say both.
    let names = edits.request.iter().map(|edit| &edit.name).chain(&edits.remove);
    let own: Vec<String> = names.filter(|name| !is_of_the_proxy(name)).cloned().collect();
    if !own.is_empty() {
        visit.keep_out(&Arc::new(own));
    }
    // In Envoy's order: what is set, then what is added to what is there, then what is taken out.
    let its = edits.request.iter().filter(|edit| !is_of_the_proxy(&edit.name));
    let (added, put): (Vec<&Edit>, Vec<&Edit>) = its.partition(|edit| edit.how == How::Append);
    for edit in put.into_iter().chain(added) {
        set(visit.head_mut(), edit).map_err(|why| {
            let detail = format!("the service that authorizes set {}: {why}", edit.name);
            Failure::local(Stage::Authorize, FailureKind::BadRequest(400), detail)
        })?;
    }
    for name in edits.remove.iter().filter(|name| !is_of_the_proxy(name)) {
        visit.head_mut().remove(name);
    }
    let response = edits.response.into_iter().filter(|edit| !is_of_the_proxy(&edit.name));
    visit.respond(response.map(|Edit { name, value, how }| ResponseEdit { name: name.into(), value, how }));
    Ok(())
}

fn set(head: &mut RequestHead, edit: &Edit) -> Result<(), String> {
    let (name, value) = (edit.name.as_str(), edit.value.as_slice());
    let done = match edit.how {
        How::Append if head.has(name) => head.append(name, value),
        How::Append => Ok(()),
        How::Set | How::IfAbsent | How::IfPresent => head.set(name, value),
    };
    done.map_err(|error| error.to_string())
}

fn compile(all: &[StringMatch]) -> Result<Vec<Matcher>, Flaw> {
    all.iter().map(|text| text.compile().map_err(Flaw::new)).collect()
}

/// The response of a denial, as the service wants it; gRPC clients are told in their way.
fn denied(
    status: u16,
    headers: impl IntoIterator<Item = (String, Vec<u8>)>,
    body: String,
    is_grpc: bool,
) -> Local {
    let grpc = is_grpc.then(|| grpc_of_http(status));
    let length = if is_grpc { 0 } else { body.len() as u64 };
    let mut head =
        ResponseHead::H1(H1Response::new(if is_grpc { 200 } else { status }, Framing::Length(length)));
    for (name, value) in headers.into_iter().filter(|(name, _)| !is_of_the_proxy(name)) {
        // What does not fit is lost.
        let _ = head.append(&name, value);
    }
    if let Some(code) = grpc {
        let _ = head.set("content-type", "application/grpc");
        let _ = head.set("grpc-status", code.to_string());
        let _ = head.set("grpc-message", percent_encoded(&body[..body.floor_char_boundary(LONGEST_MESSAGE)]));
        return Local { head, body: "".into(), grpc_status: Some(code) };
    }
    if !body.is_empty() && !head.has("content-type") {
        let _ = head.set("content-type", "text/plain");
    }
    Local { head, body: body.into(), grpc_status: None }
}
