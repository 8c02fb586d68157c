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
use crate::registry::grpc;
use crate::registry::web::{Http, Url, escaped};

/// For an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the server to know the connection.
const SETUP: Duration = Duration::from_secs(5);
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
    token: Option<String>,
    /// When the token is to be renewed.
    pub(super) expires: Option<Instant>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stream.abort();
    }
}

/// Whose token, and how long it is good.
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
        let expires = login.as_ref().map(|login| Instant::now() + login.lasts);
        let token = login.map(|login| login.token);
        let connection = Self { requests, answers, pushes, stream, at, token, expires };
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
        let headers = self.token.iter().map(|token| ("accessToken".to_owned(), token.clone())).collect();
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
        return Ok(Login { token: token.to_owned(), lasts: Duration::from_secs(seconds) * 4 / 5 });
    }
    Err(last)
}

impl Connection {
    /// A new token, where there is a user; the connection stays.
    pub(super) async fn renew(&mut self, settings: &Arc<NacosSettings>, index: usize) -> Result<(), String> {
        let (_, mut http, user) = opened(settings, index).await?;
        if let Some(user) = user {
            let login = login(&mut http, &user).await?;
            (self.token, self.expires) = (Some(login.token), Some(Instant::now() + login.lasts));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::extract::State;
    use axum::http::Uri;
    use axum::response::IntoResponse;
    use tokio::net::TcpListener;

    use super::*;

    /// A server that has one of the ways.
    async fn server(way: &'static str) -> Arc<NacosSettings> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let serve = |State(way): State<&'static str>, uri: Uri, body: String| async move {
            match (uri.path() == way, body.as_str()) {
                (false, _) => StatusCode::NOT_FOUND.into_response(),
                (true, "username=me&password=p%26w") => {
                    json!({ "accessToken": "t1", "tokenTtl": 100 }).to_string().into_response()
                }
                (true, _) => (StatusCode::FORBIDDEN, "unknown user!").into_response(),
            }
        };
        let router = Router::new().fallback(serve).with_state(way);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let urls = vec![format!("http://me:p%26w@{at}/nacos/")];
        Arc::new(NacosSettings { urls, ..NacosSettings::default() })
    }

    #[tokio::test]
    async fn a_token_is_had_in_the_way_of_either_version_and_a_refusal_is_told() {
        for way in ["/nacos/v1/auth/login", "/nacos/v3/auth/user/login"] {
            let settings = server(way).await;
            let (_, mut http, user) = opened(&settings, 0).await.unwrap();
            let good = login(&mut http, &user.unwrap()).await.unwrap();
            assert_eq!((&*good.token, good.lasts), ("t1", Duration::from_secs(80)));
            let why = login(&mut http, &("me".into(), "secret".into())).await.err().unwrap();
            assert!(
                why.contains("unknown user") && why.contains("passwordFile") && !why.contains("secret"),
                "{why}"
            );
        }
        let (_, mut http, user) = opened(&server("/other").await, 0).await.unwrap();
        assert!(login(&mut http, &user.unwrap()).await.err().unwrap().contains("404"));
    }
}
