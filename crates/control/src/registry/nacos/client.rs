//! One connection to a Nacos: questions one by one, and a stream by which it pushes. What we registered lives as long as it does.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::NacosSettings;
use super::proto::bi_request_stream_client::BiRequestStreamClient;
use super::proto::request_client::RequestClient;
use super::proto::{Body, Metadata, Payload};
use crate::outside::escaped;
use crate::registry::grpc;
use crate::registry::web::{Http, Url};
use crate::registry::write::Unput;

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the server to know the connection.
const SETUP: Duration = Duration::from_secs(5);
/// For a new token, while beats wait. A server asks after 20 s of silence.
const RENEWAL: Duration = Duration::from_secs(5);
/// Before a renewal that failed is tried again: a few times while the token is good.
const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(30);
/// The longest message: about 50,000 instances of one service.
const MAX_MESSAGE: usize = 64 << 20;
/// Pushes that wait for us; the server waits beyond that.
const PUSHES: usize = 64;
/// The connection is not known (yet, or any more).
const UNREGISTERED: i64 = 301;
/// gRPC stands beside HTTP.
const OFFSET: u16 = 1000;
/// Who we say we are. A server sends each version what it understands.
const VERSION: &str = "Nacos-Rust-Client:v2.2.4";

/// A connection.
pub(super) struct Connection {
    requests: RequestClient<Channel>,
    /// To the server, by the stream.
    answers: mpsc::Sender<Payload>,
    /// What it pushes.
    pushes: mpsc::Receiver<Result<Payload, String>>,
    stream: AbortHandle,
    at: Arc<str>,
    /// Which of the servers it is to.
    pub(super) server: usize,
    token: Option<Token>,
}

/// Who we are.
struct Token {
    text: String,
    lasts: Duration,
    /// When it is to be renewed.
    due: Instant,
    /// How often that failed in a row, and why last.
    failed: usize,
    trouble: Option<String>,
}

impl Token {
    fn of(login: Login) -> Self {
        let Login { token, lasts } = login;
        Self { text: token, lasts, due: Instant::now() + lasts * 4 / 5, failed: 0, trouble: None }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.abort();
    }
}

/// A token, and how long it is good.
struct Login {
    token: String,
    lasts: Duration,
}

impl Connection {
    /// Connects to one of the servers, the one at `first` before the others.
    pub(super) async fn open(settings: &Arc<NacosSettings>, first: usize) -> Result<Self, String> {
        let mut failures = Vec::new();
        for step in 0..settings.urls.len() {
            let index = (first + step) % settings.urls.len();
            match Self::open_at(settings, index).await {
                Ok(connection) => return Ok(connection),
                Err(why) => failures.push(why),
            }
        }
        Err(failures.join("; "))
    }

    async fn open_at(settings: &Arc<NacosSettings>, index: usize) -> Result<Self, String> {
        let (url, mut http, user) = opened(settings, index).await?;
        let login = match user {
            Some(user) => Some(login(&mut http, &user).await?),
            None => None,
        };
        let mut place = url.place.clone();
        let beside = place
            .port
            .checked_add(OFFSET)
            .ok_or("urls: there is no port for gRPC, which is the URL's plus 1000")?;
        place.port = settings.grpc_port.unwrap_or(beside);
        let at: Arc<str> = place.authority().into();
        let failed =
            |error: &dyn std::fmt::Display| format!("Nacos at {at} (gRPC) cannot be reached: {error}");
        let channel = grpc::channel(&place, http.tls(), settings.server_name.as_deref()).await;
        let channel = channel.map_err(|error| failed(&error))?;
        let (answers, to_server) = mpsc::channel(PUSHES);
        let (heard, pushes) = mpsc::channel(PUSHES);
        let stream = BiRequestStreamClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let stream = tokio::spawn(follow(stream, to_server, heard)).abort_handle();
        let requests = RequestClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let token = login.map(Token::of);
        let connection = Self { requests, answers, pushes, stream, at, server: index, token };
        connection.ask("ServerCheckRequest", json!({})).await?;
        let setup = json!({
            "clientVersion": VERSION, "tenant": settings.namespace_id, "labels": { "source": "sdk", "module": "naming" },
        });
        connection.answer("ConnectionSetupRequest", setup).await?;
        connection.known().await?;
        Ok(connection)
    }

    /// Waits until the server knows the connection: in Nacos 2 it does not say so.
    async fn known(&self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let answer = self.asked("HealthCheckRequest", json!({})).await?;
            if answer["errorCode"].as_i64() != Some(UNREGISTERED) || begun.elapsed() > SETUP {
                return self.good("HealthCheckRequest", answer).map(drop);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn payload(&self, kind: &str, mut body: Value) -> Payload {
        if let Some(fields) = body.as_object_mut() {
            fields.entry("headers").or_insert_with(|| json!({}));
            fields.entry("module").or_insert_with(|| "naming".into());
        }
        let token = self.token.iter().map(|token| ("accessToken".to_owned(), token.text.clone()));
        let headers = token.collect();
        Payload {
            metadata: Some(Metadata { r#type: kind.to_owned(), client_ip: String::new(), headers }),
            body: Some(Body { type_url: String::new(), value: body.to_string().into_bytes() }),
        }
    }

    async fn asked(&self, kind: &str, body: Value) -> Result<Value, String> {
        let mut requests = self.requests.clone();
        let asked = timeout(PATIENCE, requests.request(self.payload(kind, body))).await;
        let answer = match asked {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(self.said(kind, &grpc::reason(&status))),
            Err(_) => return Err(self.said(kind, &format!("it is silent for {} s", PATIENCE.as_secs()))),
        };
        read(&answer).map_err(|why| self.said(kind, &why))
    }

    /// Asks something; what it says.
    pub(super) async fn ask(&self, kind: &str, body: Value) -> Result<Value, String> {
        let answer = self.asked(kind, body).await?;
        self.good(kind, answer)
    }

    /// Says something that it may refuse.
    pub(super) async fn put(&self, kind: &str, body: Value) -> Result<(), Unput> {
        let answer = self.asked(kind, body).await?;
        // 400: what was said is none (`NacosException.INVALID_PARAM`).
        let refused = matches!(answer["errorCode"].as_i64(), Some(400));
        match self.good(kind, answer) {
            Ok(_) => Ok(()),
            Err(why) if refused => Err(Unput::Refused(why)),
            Err(why) => Err(Unput::Failed(why)),
        }
    }

    fn good(&self, kind: &str, answer: Value) -> Result<Value, String> {
        if answer["resultCode"].as_i64() == Some(200) {
            return Ok(answer);
        }
        let code = answer["errorCode"].as_i64().unwrap_or(-1);
        let message = answer["message"].as_str().unwrap_or("it says no reason");
        let message: String = message.chars().take(500).collect();
        let advice = match code {
            401 | 403 => {
                "; are user and passwordFile good, and may the user read the namespace (and write, to register)?"
            }
            _ => "",
        };
        Err(self.said(kind, &format!("{message} ({code}){advice}")))
    }

    /// Says something by the stream.
    async fn answer(&self, kind: &str, body: Value) -> Result<(), String> {
        let sent = timeout(PATIENCE, self.answers.send(self.payload(kind, body))).await;
        let ended = || self.said(kind, "the stream has ended");
        sent.map_err(|_| ended())?.map_err(|_| ended())
    }

    /// The next that is pushed of a service. Losing this future loses nothing that is pushed.
    pub(super) async fn pushed(&mut self) -> Result<Payload, String> {
        match self.pushes.recv().await {
            Some(Ok(payload)) => Ok(payload),
            Some(Err(why)) => Err(self.said("the stream", &why)),
            None => Err(self.said("the stream", "it has ended")),
        }
    }

    /// Answers what was pushed; what it says, where it is about a service.
    pub(super) async fn take(&self, pushed: &Payload) -> Result<Option<Value>, String> {
        let kind = pushed.metadata.as_ref().map_or("", |metadata| metadata.r#type.as_str());
        let body = read(pushed).map_err(|why| self.said(kind, &why))?;
        let Some(name) = kind.strip_suffix("Request") else { return Ok(None) };
        if kind == "ConnectResetRequest" {
            return Err(self.said(kind, "it wants us elsewhere"));
        }
        let answer = json!({ "resultCode": 200, "errorCode": 0, "requestId": body["requestId"] });
        self.answer(&format!("{name}Response"), answer).await?;
        Ok((kind == "NotifySubscriberRequest").then_some(body))
    }

    /// Answers all that was pushed meanwhile.
    pub(super) async fn answer_pushes(&mut self) -> Result<(), String> {
        while !self.pushes.is_empty() {
            let pushed = self.pushed().await?;
            self.take(&pushed).await?;
        }
        Ok(())
    }

    pub(super) fn said(&self, what: &str, why: &str) -> String {
        format!("Nacos at {}: {what}: {why}", self.at)
    }
}

/// Follows the stream. Its head comes with the first that is pushed, so nobody waits for it.
async fn follow(
    mut stream: BiRequestStreamClient<Channel>,
    to_server: mpsc::Receiver<Payload>,
    heard: mpsc::Sender<Result<Payload, String>>,
) {
    let mut pushes = match stream.request_bi_stream(ReceiverStream::new(to_server)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return drop(heard.send(Err(grpc::reason(&status))).await),
    };
    loop {
        let next = match pushes.message().await {
            Ok(Some(payload)) => Ok(payload),
            Ok(None) => return,
            Err(status) => Err(grpc::reason(&status)),
        };
        let is_over = next.is_err();
        if heard.send(next).await.is_err() || is_over {
            return;
        }
    }
}

fn read(payload: &Payload) -> Result<Value, String> {
    let body = payload.body.as_ref().map_or(&[][..], |body| &body.value);
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("what it says is no JSON object".to_owned()),
        Err(error) => Err(format!("what it says cannot be read: {error}")),
    }
}

/// A name, and its password.
type User = (String, String);

async fn opened(settings: &Arc<NacosSettings>, index: usize) -> Result<(Url, Http, Option<User>), String> {
    let settings = settings.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let url = settings.url(index)?;
        let access = settings.access();
        let user = access.password()?.or_else(|| url.user.clone());
        Ok::<_, String>((url.clone(), access.open(&url)?, user))
    });
    opened.await.map_err(|error| error.to_string())?
}

/// Where a token is had: Nacos 2's way, then Nacos 3's.
const LOGINS: [&str; 2] = ["/v1/auth/login", "/v3/auth/user/login"];

async fn login(http: &mut Http, (name, password): &User) -> Result<Login, String> {
    let form = format!("username={}&password={}", escaped(name), escaped(password));
    let mut last = String::new();
    for path in LOGINS {
        let body = Some(("application/x-www-form-urlencoded", form.clone().into()));
        let reply = http.ask(&Method::POST, path, body).await?;
        if reply.status != StatusCode::OK {
            last = http.refused(path, &reply, "; are user and passwordFile good?");
            // It has no such way; whoever has it has said no.
            match reply.status {
                StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::NOT_IMPLEMENTED => continue,
                _ => return Err(last),
            }
        }
        let answer: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        // Nacos 3 may wrap it.
        let answer = if answer["data"].is_object() { &answer["data"] } else { &answer };
        let Some(token) = answer["accessToken"].as_str() else {
            return Err(http.failed(&format!("{path}: it gives no token")));
        };
        let seconds = answer["tokenTtl"].as_u64().unwrap_or(18_000).clamp(10, 7 * 24 * 3600);
        return Ok(Login { token: token.to_owned(), lasts: Duration::from_secs(seconds) });
    }
    Err(last)
}

impl Connection {
    /// A new token, where one is due. The connection stays, also without: what we registered lives as long, and what a token is needed for
    /// says so itself. Asked is the server that the connection is to, then, one a time, the others, which know each other's tokens.
    pub(super) async fn renew(&mut self, settings: &Arc<NacosSettings>) {
        let Some(token) = self.token.as_mut().filter(|token| Instant::now() >= token.due) else { return };
        let server = (self.server + token.failed) % settings.urls.len();
        let asked = timeout(RENEWAL, async {
            let (_, mut http, user) = opened(settings, server).await?;
            let user = user.ok_or_else(|| http.failed(&"there is no user any more"))?;
            login(&mut http, &user).await
        });
        let silent = || format!("Nacos: login: it is silent for {} s", RENEWAL.as_secs());
        match asked.await.unwrap_or_else(|_| Err(silent())) {
            Ok(login) => *token = Token::of(login),
            Err(why) => {
                tracing::warn!("the token is not renewed: {why}; what is there stays, trying again");
                token.failed += 1;
                token.due = Instant::now() + (token.lasts / 20).clamp(SOONEST, LATEST);
                token.trouble = Some(format!("the token cannot be renewed, which is tried again: {why}"));
            }
        }
    }

    /// Why there is no new token, where one is due.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.token.as_ref()?.trouble.as_deref()
    }
}

#[cfg(test)]
pub(super) mod tests;
