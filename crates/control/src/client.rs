//! A typed client of the management API, for the CLI and for tests: over the unix socket, or over TLS with a token or a
//! certificate. One connection per request: a management call is rare, and a control plane that was restarted in between
//! needs no special case.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use outrigger_identity::{Credentials, PeerExpectation, client_config};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::api::services::ServiceBody;
use crate::api::types::{
    ApplyBody, ApplyQuery, ChangedBody, DeleteBody, ErrorBody, FILES, FileText, HistoryEntry, InForce,
    InstanceBody, RuleBody, RuleStatusBody, RulesQuery, StateBody, StatusBody, WaitQuery,
};
use crate::instance::{Instance, State};
use crate::outside::escaped;

mod explain;
mod identities;

/// For reaching the control plane, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For an answer, beside what the caller asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers list whole meshes, but not more than this.
const MAX_ANSWER: usize = 256 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("the control plane at {place} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        place: String,
        /// Why.
        reason: String,
    },
    /// It answered with an error.
    #[error("{}", .body.error)]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// What it said; rules' findings are in there.
        body: Box<ErrorBody>,
    },
    /// It answered something else than expected.
    #[error("the control plane at {place} gave an unexpected answer: {reason}")]
    Unexpected {
        /// Where.
        place: String,
        /// What was wrong.
        reason: String,
    },
}

impl ClientError {
    /// The findings of refused rules.
    pub fn findings(&self) -> &[outrigger_rules::Finding] {
        match self {
            Self::Refused { body, .. } => &body.findings,
            _ => &[],
        }
    }

    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Where the management API is, and how we prove who we are.
#[derive(Clone)]
pub struct Client {
    place: Place,
    bearer: Option<String>,
}

#[derive(Clone)]
enum Place {
    Socket(PathBuf),
    Tls { address: String, config: Arc<ClientConfig> },
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Client {
    /// Over the unix socket of a control plane on this machine.
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Socket(path.into()), bearer: None }
    }

    /// Over TLS to `host:port`. The credentials' bundle says whom to trust, their certificate (if any) who we are; the peer
    /// must be the control plane of `trust_domain`.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub fn tls(address: &str, trust_domain: &str, credentials: &Credentials) -> anyhow::Result<Self> {
        let id = outrigger_identity::control_plane_id(trust_domain)?;
        let config = client_config(credentials, PeerExpectation::Exactly(id), &[b"http/1.1"])?;
        Ok(Self { place: Place::Tls { address: address.to_owned(), config }, bearer: None })
    }

    /// Shows a token with every call: the admin token, or a join token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.bearer = Some(token.to_owned());
        self
    }

    fn place(&self) -> String {
        match &self.place {
            Place::Socket(path) => path.display().to_string(),
            Place::Tls { address, .. } => address.clone(),
        }
    }

    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        match &self.place {
            Place::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Place::Tls { address, config } => {
                let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
                let host = host.trim_matches(['[', ']']).to_owned();
                let name = ServerName::try_from(host).map_err(io::Error::other)?;
                let tcp = TcpStream::connect(address.as_str()).await?;
                tcp.set_nodelay(true)?;
                Ok(Box::new(TlsConnector::from(config.clone()).connect(name, tcp).await?))
            }
        }
    }

    /// What the control plane is called in requests: over the socket anything will do.
    fn host(&self) -> &str {
        match &self.place {
            Place::Socket(_) => "localhost",
            Place::Tls { address, .. } => address,
        }
    }

    /// A socket that may not be used, one that nobody serves and one that is not there are three troubles.
    fn advised(&self, error: &io::Error) -> String {
        let advice = match (&self.place, error.kind()) {
            (Place::Socket(_), io::ErrorKind::PermissionDenied) => {
                "the socket may be there, but only the user who runs the control plane and root may use it"
            }
            (Place::Socket(_), io::ErrorKind::ConnectionRefused) => {
                "the socket is there, but nobody serves it: the control plane that made it has ended"
            }
            (Place::Socket(_), io::ErrorKind::NotFound) => {
                "there is no such socket: is the control plane running, and is the path right?"
            }
            _ => return error.to_string(),
        };
        format!("{error}; {advice}")
    }

    fn unreachable(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Unreachable { place: self.place(), reason: reason.to_string() }
    }

    fn unexpected(&self, reason: impl std::fmt::Display) -> ClientError {
        ClientError::Unexpected { place: self.place(), reason: reason.to_string() }
    }

    /// One call of any endpoint; the typed methods below are this.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Bytes,
        patience: Duration,
    ) -> Result<Bytes, ClientError> {
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unreachable(self.advised(&error))),
            Err(_) => return Err(self.unreachable("no connection within 5 s")),
        };
        let answer = async {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|e| self.unreachable(e))?;
            let driver = tokio::spawn(connection);
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(HOST, self.host())
                .header(CONTENT_TYPE, content_type);
            if let Some(bearer) = &self.bearer {
                request = request.header(AUTHORIZATION, format!("Bearer {bearer}"));
            }
            let request = request.body(Full::new(body)).map_err(|error| self.unexpected(error))?;
            let response = sender.send_request(request).await.map_err(|error| self.unreachable(error))?;
            let status = response.status();
            let collected = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            driver.abort();
            let body = collected.map_err(|error| self.unexpected(error))?.to_bytes();
            Ok((status, body))
        };
        let (status, body) = tokio::time::timeout(ANSWER_TIMEOUT + patience, answer)
            .await
            .map_err(|_| self.unreachable("no answer in time"))??;
        if status.is_success() {
            return Ok(body);
        }
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
            error: format!(
                "{status}: {}",
                String::from_utf8_lossy(&body).chars().take(500).collect::<String>()
            ),
            ..ErrorBody::default()
        });
        Err(ClientError::Refused { status, body: Box::new(body) })
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.unexpected(error))?,
            None => Vec::new(),
        };
        let answer = self.call(method, path, "application/json", body.into(), patience).await?;
        serde_json::from_slice(&answer).map_err(|error| self.unexpected(error))
    }

    /// Any page as JSON, such as `/api/traces?service=web`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(Method::GET, path, None::<&()>, Duration::ZERO).await
    }

    /// Applies a YAML or JSON text.
    ///
    /// # Errors
    /// `Refused` with findings when the rules have errors.
    pub async fn apply(&self, text: &str, query: &ApplyQuery) -> Result<ApplyBody, ClientError> {
        let path = format!("/v1/rules{}", query_string(query));
        let body = Bytes::copy_from_slice(text.as_bytes());
        let answer = self
            .call(Method::POST, &path, "application/yaml", body, patience(query.wait, query.timeout))
            .await?;
        serde_json::from_slice(&answer).map_err(|error| self.unexpected(error))
    }

    /// Applies the texts of several files as one set.
    ///
    /// # Errors
    /// As [`Client::apply`].
    pub async fn apply_files(
        &self,
        files: &[FileText],
        query: &ApplyQuery,
    ) -> Result<ApplyBody, ClientError> {
        let path = format!("/v1/rules{}", query_string(query));
        let body = serde_json::to_vec(files).map_err(|error| self.unexpected(error))?;
        let patience = patience(query.wait, query.timeout);
        let answer = self.call(Method::POST, &path, FILES, body.into(), patience).await?;
        serde_json::from_slice(&answer).map_err(|error| self.unexpected(error))
    }

    /// What is wrong with the rules that are there.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn analysis(&self) -> Result<Vec<outrigger_rules::Finding>, ClientError> {
        self.get("/v1/analysis").await
    }

    /// All rules.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rules(&self, query: &RulesQuery) -> Result<Vec<RuleBody>, ClientError> {
        self.get(&format!("/v1/rules{}", query_string(query))).await
    }

    /// One rule.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rule(&self, kind: &str, namespace: &str, name: &str) -> Result<RuleBody, ClientError> {
        self.get(&rule_path(kind, namespace, name)).await
    }

    /// All versions of a rule, the newest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn history(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Vec<HistoryEntry>, ClientError> {
        self.get(&format!("{}/history", rule_path(kind, namespace, name))).await
    }

    /// Deletes a rule; `wait`, `timeout`, `author`, `force` and `dry_run` of the query count.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        query: &ApplyQuery,
    ) -> Result<DeleteBody, ClientError> {
        let path = format!("{}{}", rule_path(kind, namespace, name), query_string(query));
        self.json(Method::DELETE, &path, None::<&()>, patience(query.wait, query.timeout)).await
    }

    /// All instances.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn instances(&self) -> Result<Vec<InstanceBody>, ClientError> {
        self.get("/v1/instances").await
    }

    /// One instance.
    ///
    /// # Errors
    /// `Refused` with 404 when there is none.
    pub async fn instance(&self, id: &str) -> Result<InstanceBody, ClientError> {
        self.get(&format!("/v1/instances/{}", escaped(id))).await
    }

    /// Registers an instance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn register(&self, instance: &Instance) -> Result<ChangedBody, ClientError> {
        self.json(Method::POST, "/v1/instances", Some(instance), Duration::ZERO).await
    }

    /// Renews the lease of an instance.
    ///
    /// # Errors
    /// `Refused` with 404 when it must be registered again.
    pub async fn heartbeat(&self, id: &str) -> Result<ChangedBody, ClientError> {
        self.json(
            Method::PUT,
            &format!("/v1/instances/{}/heartbeat", escaped(id)),
            None::<&()>,
            Duration::ZERO,
        )
        .await
    }

    /// Changes the state of an instance.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn set_state(&self, id: &str, state: State) -> Result<ChangedBody, ClientError> {
        let path = format!("/v1/instances/{}/state", escaped(id));
        self.json(Method::PUT, &path, Some(&StateBody { state }), Duration::ZERO).await
    }

    /// Ends a registration.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn deregister(&self, id: &str) -> Result<ChangedBody, ClientError> {
        self.json(Method::DELETE, &format!("/v1/instances/{}", escaped(id)), None::<&()>, Duration::ZERO)
            .await
    }

    /// All services.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn services(&self) -> Result<Vec<ServiceBody>, ClientError> {
        self.get("/v1/services").await
    }

    /// Connected proxies and what is wrong.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&self) -> Result<StatusBody, ClientError> {
        self.get("/v1/status").await
    }

    /// Every rule and how far it has come.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn rules_status(&self) -> Result<Vec<RuleStatusBody>, ClientError> {
        self.get("/v1/status/rules").await
    }

    /// Waits until a generation is in force everywhere.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn wait(&self, query: &WaitQuery) -> Result<InForce, ClientError> {
        let path = format!("/v1/status/wait{}", query_string(query));
        self.json(Method::GET, &path, None::<&()>, patience(true, query.timeout)).await
    }
}

fn patience(wait: bool, seconds: Option<f64>) -> Duration {
    if wait {
        Duration::try_from_secs_f64(seconds.unwrap_or(30.0)).unwrap_or_default()
    } else {
        Duration::ZERO
    }
}

fn rule_path(kind: &str, namespace: &str, name: &str) -> String {
    format!("/v1/rules/{}/{}/{}", escaped(kind), escaped(namespace), escaped(name))
}

/// `?key=value&…` of a flat struct; empty when nothing is set.
fn query_string(query: &impl Serialize) -> String {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(query) else { return String::new() };
    let pairs: Vec<String> = fields
        .into_iter()
        .filter(|(_, value)| !value.is_null() && *value != serde_json::Value::Bool(false))
        .map(|(key, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            format!("{key}={}", escaped(&text))
        })
        .collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_only_what_is_set_and_escapes_it() {
        assert_eq!(query_string(&ApplyQuery::default()), "");
        let query = ApplyQuery {
            wait: true,
            author: Some("Ann & Bob".into()),
            timeout: Some(1.5),
            ..ApplyQuery::default()
        };
        assert_eq!(query_string(&query), "?author=Ann%20%26%20Bob&timeout=1.5&wait=true");
    }

    #[tokio::test]
    async fn a_missing_control_plane_is_named() {
        let error = Client::socket("/nonexistent/outrigger.sock").status().await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/outrigger.sock") && error.contains("no such socket"), "{error}");
    }

    #[test]
    fn no_permission_and_nobody_there_are_told_apart() {
        let client = Client::socket("/run/outrigger.sock");
        let said = |kind: io::ErrorKind| client.advised(&kind.into());
        assert!(said(io::ErrorKind::PermissionDenied).contains("only the user who runs"));
        assert!(said(io::ErrorKind::ConnectionRefused).contains("nobody serves it"));
        assert_eq!(said(io::ErrorKind::BrokenPipe), "broken pipe");
    }
}
