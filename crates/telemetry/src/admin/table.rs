//! The endpoint table, and what a handler receives and returns.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode, Uri};

use super::index;
use crate::site::Site;

type HandlerFuture = Pin<Box<dyn Future<Output = AdminResponse> + Send>>;
type Handler = Arc<dyn Fn(AdminRequest) -> HandlerFuture + Send + Sync>;

/// A request to an admin endpoint, body included.
#[derive(Clone, Debug)]
pub struct AdminRequest {
    /// The method; a HEAD arrives as it is.
    pub method: Method,
    /// The path without the query.
    pub path: String,
    /// For a row whose path ends in `/*`: what stands for the star.
    pub tail: String,
    /// Query parameters in order, percent-decoded.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, at most the server's limit.
    pub body: Bytes,
    /// Who asks.
    pub peer: SocketAddr,
}

impl AdminRequest {
    /// The first value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What an admin endpoint answers.
#[derive(Clone, Debug)]
pub struct AdminResponse {
    /// Status code.
    pub status: StatusCode,
    /// Headers, `content-type` included.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl AdminResponse {
    /// A response of any kind.
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { status, headers, body: body.into() }
    }

    /// 200 with plain text.
    pub fn text(body: impl Into<Bytes>) -> Self {
        Self::status(StatusCode::OK, body)
    }

    /// Plain text with a status.
    pub fn status(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    /// 400 with plain text that says what was wrong.
    pub fn bad_request(body: impl Into<Bytes>) -> Self {
        Self::status(StatusCode::BAD_REQUEST, body)
    }

    /// 200 with HTML.
    pub fn html(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, "text/html; charset=utf-8", body)
    }

    /// 200 with indented JSON.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec_pretty(value) {
            Ok(mut body) => {
                body.push(b'\n');
                Self::new(StatusCode::OK, "application/json", body)
            }
            Err(error) => {
                let text = format!("this page cannot be written as JSON: {error}; that is a bug\n");
                Self::status(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        }
    }

    /// Adds or replaces a header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

/// One endpoint.
#[derive(Clone)]
pub struct Row {
    /// `/clusters`, or `/debug/*` for everything below.
    pub path: Cow<'static, str>,
    /// Methods that it takes; GET includes HEAD.
    pub methods: &'static [&'static str],
    /// One line for the index, parameters included.
    pub help: Cow<'static, str>,
    /// Answers whatever name it is asked by, and for whatever page.
    open: bool,
    /// Answers who asks from this host alone.
    local: bool,
    /// Its handler knows itself how long it may take.
    patient: bool,
    handler: Handler,
}

impl Row {
    /// An endpoint with its handler.
    pub fn new<F, Fut>(
        path: impl Into<Cow<'static, str>>,
        methods: &'static [&'static str],
        help: impl Into<Cow<'static, str>>,
        handler: F,
    ) -> Self
    where
        F: Fn(AdminRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = AdminResponse> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        Self {
            path: path.into(),
            methods,
            help: help.into(),
            open: false,
            local: false,
            patient: false,
            handler,
        }
    }

    /// The same for everybody: whoever sees the answer learns nothing and changes nothing. Probes and scrapers ask by names
    /// that we cannot know.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// Answers who asks from this host alone: it tells what not everybody should know, or changes something, and the port may be
    /// open to others for its other rows.
    #[must_use]
    pub fn local(mut self) -> Self {
        self.local = true;
        self
    }

    /// Answers when it answers: whoever asks ends it by leaving. Neither the handler's time nor the connection's age does.
    #[must_use]
    pub fn patient(mut self) -> Self {
        self.patient = true;
        self
    }

    /// A GET endpoint whose handler need not wait.
    pub fn get(
        path: impl Into<Cow<'static, str>>,
        help: impl Into<Cow<'static, str>>,
        handler: impl Fn(AdminRequest) -> AdminResponse + Send + Sync + 'static,
    ) -> Self {
        Self::new(path, &["GET"], help, move |request| std::future::ready(handler(request)))
    }

    /// The part of `path` that the star stands for, or `Some("")` for an exact match.
    fn matches<'p>(&self, path: &'p str) -> Option<&'p str> {
        match self.path.strip_suffix('*') {
            Some(prefix) => path.strip_prefix(prefix),
            None => (self.path == path).then_some(""),
        }
    }

    fn takes(&self, method: &Method) -> bool {
        let wanted = if *method == Method::HEAD { "GET" } else { method.as_str() };
        self.methods.contains(&wanted)
    }
}

/// The endpoints of one admin port.
#[derive(Clone)]
pub struct Table {
    title: Cow<'static, str>,
    rows: Vec<Row>,
    site: Site,
    /// The setting that tells names.
    setting: &'static str,
}

impl Table {
    /// No endpoints but the index and `/help`; `title` heads the index.
    pub fn new(title: impl Into<Cow<'static, str>>) -> Self {
        Self { title: title.into(), rows: Vec::new(), site: Site::default(), setting: "the settings" }
    }

    /// Answers by these names, too; `setting` is where they are from.
    #[must_use]
    pub fn known_as(mut self, names: &[String], setting: &'static str) -> Self {
        self.site = Site::new(names);
        self.setting = setting;
        self
    }

    /// Why a request for `target` is not answered, whatever it asks for.
    pub(super) fn refuse(&self, target: &Uri, request: &AdminRequest) -> Option<AdminResponse> {
        let row = self.row(request);
        if row.is_some_and(|row| row.local) && !request.peer.ip().to_canonical().is_loopback() {
            let text = format!("{} answers who asks from this host alone.\n", request.path);
            return Some(AdminResponse::status(StatusCode::FORBIDDEN, text));
        }
        if row.is_some_and(|row| row.open) {
            return None;
        }
        let text = self.site.refuse(target, &request.headers, self.setting)?;
        Some(AdminResponse::status(StatusCode::FORBIDDEN, text))
    }

    /// Whether its answer has no time of ours.
    pub(super) fn is_patient(&self, request: &AdminRequest) -> bool {
        self.row(request).is_some_and(|row| row.patient)
    }

    /// The one that will answer.
    fn row(&self, request: &AdminRequest) -> Option<&Row> {
        self.rows.iter().find(|row| row.matches(&request.path).is_some() && row.takes(&request.method))
    }

    /// Adds a row. A row with the same path takes the methods that the earlier one does not.
    #[must_use]
    pub fn with(mut self, row: Row) -> Self {
        self.push(row);
        self
    }

    /// Adds a row in place.
    pub fn push(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// The rows in the order they were added.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The title of the index.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Answers one request.
    pub async fn answer(&self, mut request: AdminRequest) -> AdminResponse {
        let mut allowed = Vec::new();
        for row in &self.rows {
            let Some(tail) = row.matches(&request.path) else { continue };
            if row.takes(&request.method) {
                request.tail = tail.to_owned();
                return (row.handler)(request).await;
            }
            allowed.extend_from_slice(row.methods);
        }
        if allowed.is_empty() && matches!(request.path.as_str(), "/" | "/help") {
            allowed.push("GET");
            if request.method == Method::GET || request.method == Method::HEAD {
                return match request.path.as_str() {
                    "/" => AdminResponse::html(index::html(self)),
                    _ => AdminResponse::text(index::text(self)),
                };
            }
        }
        if allowed.is_empty() {
            let text = format!("There is no {} here.\n\n{}", request.path, index::text(self));
            return AdminResponse::status(StatusCode::NOT_FOUND, text);
        }
        not_allowed(&request, &allowed.join(", "))
    }
}

fn not_allowed(request: &AdminRequest, allowed: &str) -> AdminResponse {
    let (path, method) = (&request.path, &request.method);
    let text = format!("{path} takes {allowed}, not {method}; try `curl -X {allowed} …{path}`.\n");
    let text = if allowed.contains(',') { format!("{path} takes {allowed}, not {method}.\n") } else { text };
    let response = AdminResponse::status(StatusCode::METHOD_NOT_ALLOWED, text);
    match HeaderValue::from_str(allowed) {
        Ok(value) => response.with_header(ALLOW, value),
        Err(_) => response,
    }
}

/// Splits and decodes a query string; what is not valid percent-encoding stays as it is.
pub(super) fn parse_query(query: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    };
    query.split('&').filter(|part| !part.is_empty()).map(pair).collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit = |offset: usize| bytes.get(at + offset).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', _, _) => out.push(b' '),
            (byte, _, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
