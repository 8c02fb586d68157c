//! Questions to Consul's HTTP API over connections that are kept.

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use outrigger_identity::upstream::{UpstreamTls, upstream_client_config};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::time::timeout;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::ConsulSettings;
use crate::outside::{Http1, Place};
use crate::registry::write::Unput;

/// For reaching it, handshake included.
const CONNECT: Duration = Duration::from_secs(5);
/// For an answer beyond what Consul was asked to wait, of which it may take a sixteenth more.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer: about 25,000 instances of one service.
const MAX_ANSWER: usize = 64 << 20;
/// What an error says is cut to this.
const MAX_ERROR: usize = 512;

/// An answer.
pub(super) struct Answer {
    pub(super) path: String,
    /// `X-Consul-Index`; 0 when there is none.
    pub(super) index: u64,
    /// The token may not see all of it.
    pub(super) filtered: bool,
    pub(super) body: Bytes,
}

/// One Consul.
pub(super) struct Http {
    place: Place,
    authority: String,
    tls: Option<Arc<ClientConfig>>,
    server_name: Option<String>,
    token: Option<String>,
    datacenter: Option<String>,
    idle: Mutex<Vec<Http1>>,
}

/// Where it is.
pub(super) fn place(address: &str) -> Result<Place, String> {
    Place::parse(address, (8500, 8501)).map_err(|why| format!("address: {why}"))
}

pub(super) use crate::outside::escaped;

impl Http {
    /// Reads token and certificates. Blocks.
    pub(super) fn open(settings: &ConsulSettings) -> Result<Self, String> {
        let read = |path: &std::path::PathBuf| {
            std::fs::read_to_string(path)
                .map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        let place = place(&settings.address)?;
        let tls = if place.tls {
            let client = match (&settings.cert_file, &settings.key_file) {
                (Some(chain), Some(key)) => Some((read(chain)?, read(key)?)),
                _ => None,
            };
            let roots_pem = settings.ca_file.as_ref().map(read).transpose()?;
            let tls = UpstreamTls { roots_pem, client, ..UpstreamTls::default() };
            Some(upstream_client_config(&tls).map_err(|error| error.to_string())?)
        } else {
            None
        };
        if let Some(name) = &settings.server_name {
            ServerName::try_from(name.as_str()).map_err(|error| format!("serverName: {error}"))?;
        }
        let token = settings.token_file.as_ref().map(read).transpose()?.map(|token| token.trim().to_owned());
        let datacenter = settings.datacenter.clone();
        let (authority, server_name) = (place.authority(), settings.server_name.clone());
        Ok(Self { place, authority, tls, server_name, token, datacenter, idle: Mutex::default() })
    }

    /// Asks once, and waits for what is newer than `index`, if there is one, for at most `wait`.
    pub(super) async fn query(
        &self,
        path: &str,
        more: &[(&str, &str)],
        index: Option<u64>,
        wait: Duration,
    ) -> Result<Answer, String> {
        let mut query: Vec<String> =
            more.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
        query.extend(self.datacenter.iter().map(|dc| format!("dc={}", escaped(dc))));
        if let Some(index) = index {
            query.push(format!("index={index}&wait={}ms", wait.as_millis()));
        }
        let uri = format!("{path}?{}", query.join("&"));
        let patience = if index.is_some() { wait + wait / 16 + PATIENCE } else { PATIENCE };
        let asked = timeout(patience, self.ask(Method::GET, &uri, Bytes::new(), index.is_some())).await;
        let (head, body) = asked.map_err(|_| format!("Consul at {} is silent", self.authority))??;
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        if head.status != StatusCode::OK {
            return Err(self.refused(path, head.status, &body));
        }
        Ok(Answer {
            path: path.to_owned(),
            index: header("x-consul-index").and_then(|text| text.parse().ok()).unwrap_or(0),
            filtered: header("x-consul-results-filtered-by-acls") == Some("true"),
            body,
        })
    }

    /// Changes something, which may be done twice; whether it was there (404), or why it is not taken.
    pub(super) async fn put(&self, path: &str, body: Bytes) -> Result<bool, Unput> {
        let asked = timeout(PATIENCE, self.ask(Method::PUT, path, body, false)).await;
        let (head, body) = asked.map_err(|_| format!("Consul at {} is silent", self.authority))??;
        match head.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            // What it says of this one; a token may write others.
            status @ (StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN) => {
                Err(Unput::Refused(self.refused(path, status, &body)))
            }
            status => Err(Unput::Failed(self.refused(path, status, &body))),
        }
    }

    fn refused(&self, path: &str, status: StatusCode, body: &[u8]) -> String {
        let said = String::from_utf8_lossy(&body[..body.len().min(MAX_ERROR)]);
        let what = match status {
            StatusCode::FORBIDDEN => {
                "; is the token in tokenFile good, and may it read services and nodes (and write services, to register)?"
            }
            StatusCode::TOO_MANY_REQUESTS => {
                "; lower connections, or raise Consul's http_max_conns_per_client"
            }
            _ => "",
        };
        format!("Consul at {} answers {path} with {status}: {}{what}", self.authority, said.trim())
    }

    /// On a connection that was kept, or where there is none or it has ended meanwhile on a new one: asking changes nothing. One that
    /// `waits` for news of an index is not asked anew: there may be a Consul of another history now, which does not know the index.
    async fn ask(
        &self,
        method: Method,
        uri: &str,
        body: Bytes,
        waits: bool,
    ) -> Result<(http::response::Parts, Bytes), String> {
        let kept = self.idle.lock().pop();
        if let Some(kept) = kept {
            let answer = self.ask_on(kept, method.clone(), uri, body.clone()).await;
            if answer.is_ok() || waits {
                return answer;
            }
        }
        self.idle.lock().clear();
        let connection = timeout(CONNECT, self.connect()).await;
        let connection = connection
            .map_err(|_| format!("no connection to {} within {} s", self.authority, CONNECT.as_secs()))??;
        self.ask_on(connection, method, uri, body).await
    }

    async fn ask_on(
        &self,
        mut connection: Http1,
        method: Method,
        uri: &str,
        body: Bytes,
    ) -> Result<(http::response::Parts, Bytes), String> {
        let failed = |error: &dyn std::fmt::Display| format!("Consul at {}: {error}", self.authority);
        let mut request = Request::builder().method(method).uri(uri).header(HOST, &self.authority);
        if let Some(token) = &self.token {
            request = request.header("x-consul-token", token);
        }
        let request = request.body(Full::new(body)).map_err(|error| failed(&error))?;
        let response = connection.sender.send_request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| failed(&error))?.to_bytes();
        if connection.sender.ready().await.is_ok() {
            self.idle.lock().push(connection);
        }
        Ok((head, body))
    }

    async fn connect(&self) -> Result<Http1, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("Consul at {} cannot be reached: {error}", self.authority)
        };
        let stream = self.place.connect(self.tls.as_ref(), self.server_name.as_deref()).await;
        Http1::over(stream.map_err(|error| failed(&error))?).await.map_err(|error| failed(&error))
    }
}
