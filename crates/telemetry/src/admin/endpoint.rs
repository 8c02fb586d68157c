//! One endpoint, and what its handler receives and returns.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

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
    pub(super) open: bool,
    /// Answers who asks from this host alone.
    pub(super) local: bool,
    /// Its handler knows itself how long it may take.
    pub(super) patient: bool,
    pub(super) handler: Handler,
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
    pub(super) fn matches<'p>(&self, path: &'p str) -> Option<&'p str> {
        match self.path.strip_suffix('*') {
            Some(prefix) => path.strip_prefix(prefix),
            None => (self.path == path).then_some(""),
        }
    }

    pub(super) fn takes(&self, method: &Method) -> bool {
        let wanted = if *method == Method::HEAD { "GET" } else { method.as_str() };
        self.methods.contains(&wanted)
    }
}
