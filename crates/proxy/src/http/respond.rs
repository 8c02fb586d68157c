//! The downstream's end of a response: [`Responder`] sends heads; [`local`] is the only place where a [`Failure`] becomes
//! a status, a gRPC status and a header.
//!
//! Peers inside the mesh and our own application get `x-outrigger-error`; outsiders get the status and the request id.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use outrigger_model::grpc::grpc_of_http;

use super::convert::{self, ConvertError};
use super::h1::write::{How, Persist, Unwritable, downstream_framing};
use super::h1::{Framing, H1Response};
use super::head::{RequestHead, ResponseHead};
use super::send::{H1Sender, SendError, Sender};
use crate::failure::{Failure, FailureKind, Retry};

/// The header that names side, stage, reason and configuration object of a failure.
pub const ERROR_HEADER: &str = "x-outrigger-error";

/// Envoy's header for a rewritten path.
pub const ORIGINAL_PATH: &str = "x-envoy-original-path";

/// In [`ERROR_HEADER`]: the application provably never saw the request.
const NOT_REACHED: &str = "reached=no";

/// In [`ERROR_HEADER`], of our own application.
const NOT_LISTENING: &str = "listens=no";

/// [`FailureKind::name`] of what is no failure of anybody.
const NO_ROOM: [&str; 4] = ["rate_limited", "overflow", "overload", SHED];
/// Of them the one by which a busy instance keeps itself fast.
const SHED: &str = "concurrency_limit";

/// Says that a limit of the cluster refused it, as Envoy does.
const OVERLOADED: &str = "x-envoy-overloaded";

/// Says that a rate limit refused it, as Envoy does.
pub const RATE_LIMITED: &str = "x-envoy-ratelimited";

/// Sends heads to the downstream.
pub enum Responder {
    H1(H1Responder),
    H2(SendResponse<Bytes>),
}

/// To a client of HTTP/1.
pub struct H1Responder {
    writer: Box<H1Sender>,
    minor: u8,
    keep: bool,
}

/// A response that has begun.
pub struct Begun {
    pub sender: Sender,
    /// The connection lives on, as far as this response goes.
    pub keeps: bool,
}

/// Why a response could not begin.
#[derive(Debug)]
pub enum BeginError {
    /// The head does not fit the client's protocol.
    Convert(ConvertError),
    /// The client is gone.
    Send(SendError),
}

impl Responder {
    /// To a client of HTTP/1.`minor` whose connection may live on.
    pub fn h1(writer: Box<H1Sender>, minor: u8, keep: bool) -> Self {
        Self::H1(H1Responder { writer, minor, keep })
    }

    /// Forwards an interim response (1xx). Clients of HTTP/1.0 do not know them (RFC 9110, section 15.2).
    pub fn interim(&mut self, head: &mut ResponseHead) {
        match self {
            Self::H1(to) if to.minor == 0 => {}
            Self::H1(to) => {
                // An interim response that must not leave is left out.
                let _ = head.write_h1(How::framed(Framing::None), to.writer.outgoing.buffer());
            }
            Self::H2(to) => {
                if let Ok(response) = convert::response_into_h2(head) {
                    // A stream that is gone shows itself elsewhere.
                    let _ = to.send_informational(response);
                }
            }
        }
    }

    /// Sends what is buffered.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError>> {
        match self {
            Self::H1(to) => Poll::Ready(Ok(ready!(to.writer.outgoing.poll_flush(cx))?)),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Ready when an HTTP/2 client has reset the stream before there was a response.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(_) => Poll::Pending,
            Self::H2(to) => to.poll_reset(cx).map(|_| ()),
        }
    }

    /// Begins the response. `framing` is the body's as it comes; `ended`: there is none. `drain`: the connection is not to
    /// live on. `request` is what it answers. A head that can go on as it is is taken.
    ///
    /// # Errors
    /// When the client is gone, or the head does not fit its protocol.
    pub fn begin(
        self,
        head: &mut ResponseHead,
        framing: Framing,
        ended: bool,
        drain: bool,
        request: Option<&RequestHead>,
    ) -> Result<Begun, BeginError> {
        match self {
            Self::H1(to) => {
                to.begin(head, framing, drain, request).map_err(|error| BeginError::Convert(error.into()))
            }
            Self::H2(mut to) => {
                let response = convert::response_into_h2(head).map_err(BeginError::Convert)?;
                let end = ended && framing != Framing::Tunnel;
                let stream = to.send_response(response, end).map_err(|e| BeginError::Send(e.into()))?;
                Ok(Begun { sender: Sender::h2((!end).then_some(stream)), keeps: true })
            }
        }
    }

    /// Breaks the exchange off: the client must not take what it got for a whole response.
    pub fn abort(self, reason: Reason) {
        if let Self::H2(mut to) = self {
            to.send_reset(reason);
        }
    }
}

impl H1Responder {
    fn begin(
        mut self,
        head: &ResponseHead,
        framing: Framing,
        drain: bool,
        request: Option<&RequestHead>,
    ) -> Result<Begun, Unwritable> {
        let framing = downstream_framing(framing, self.minor);
        let tunnel = framing == Framing::Tunnel;
        let keeps = self.keep && !drain && !matches!(framing, Framing::Close | Framing::Tunnel);
        // A tunnel ends with its connection; saying so would contradict `Connection: Upgrade`.
        let persist = if tunnel { Persist::Implied } else { Persist::downstream(self.minor, keeps) };
        let how = How { framing, persist, upgrade: tunnel };
        match (head, request) {
            // The 200 of an extended CONNECT is the 101 that an HTTP/1 client waits for (RFC 8441, section 5).
            (ResponseHead::H2(_), Some(RequestHead::H1(request)))
                if tunnel && request.upgrade().is_some() =>
            {
                let head = convert::switching_protocols(head, request);
                super::h1::write::response(&head, how, self.writer.outgoing.buffer())?;
            }
            _ => head.write_h1(how, self.writer.outgoing.buffer())?,
        }
        Ok(Begun { sender: Sender::h1(self.writer, framing), keeps })
    }
}

/// For whom a response of our own is made.
#[derive(Debug, Clone, Copy)]
pub struct Audience<'a> {
    /// Our own application, or a peer of the mesh.
    pub trusted: bool,
    pub is_grpc: bool,
    pub is_head: bool,
    pub request_id: Option<&'a [u8]>,
    /// Names this hop.
    pub hop: &'a str,
    /// What failed is between us and our own application.
    pub inbound: bool,
}

/// A response of our own.
pub struct Local {
    pub head: ResponseHead,
    pub body: Cow<'static, str>,
    pub grpc_status: Option<u32>,
}

/// The response for a failure.
pub fn local(failure: &Failure, to: &Audience<'_>) -> Local {
    let status = failure.kind.status();
    let text = text_of(failure, to.trusted);
    let (mut head, body, grpc_status) = if to.is_grpc {
        let code = failure.kind.grpc_status();
        (grpc_head(code, &text), Cow::Borrowed(""), Some(code))
    } else {
        let mut head = H1Response::new(status, Framing::Length(text.len() as u64));
        set(&mut head, "content-type", b"text/plain");
        (head, text, None)
    };
    if let FailureKind::RateLimited { limit, seconds, .. } = failure.kind {
        limited(&mut head, limit, seconds, to.trusted);
    }
    if to.trusted && matches!(failure.kind, FailureKind::Overflow { .. } | FailureKind::CircuitOpen) {
        set(&mut head, OVERLOADED, b"true");
    }
    if to.trusted {
        set(&mut head, ERROR_HEADER, describe(failure, to).as_bytes());
    } else if let Some(id) = to.request_id {
        set(&mut head, "x-request-id", id);
    }
    let body = if to.is_head { Cow::Borrowed("") } else { body };
    Local { head: ResponseHead::H1(head), body, grpc_status }
}

/// What a client should know of a limit: when to come again (RFC 9110, section 10.2.3), and who is trusted the rest (Envoy's headers).
fn limited(head: &mut H1Response, limit: u32, seconds: u32, trusted: bool) {
    // A service may not say.
    let seconds = (seconds > 0).then(|| seconds.to_string());
    if let Some(seconds) = &seconds {
        set(head, "retry-after", seconds.as_bytes());
    }
    if !trusted {
        return;
    }
    if limit > 0 {
        set(head, "x-ratelimit-limit", limit.to_string().as_bytes());
    }
    set(head, "x-ratelimit-remaining", b"0");
    if let Some(seconds) = &seconds {
        set(head, "x-ratelimit-reset", seconds.as_bytes());
    }
    set(head, RATE_LIMITED, b"true");
}

/// A direct response or redirect of a route; to a call of gRPC's in its words, as Envoy's.
pub fn direct(status: u16, body: &str, (is_grpc, is_head): (bool, bool), location: Option<&str>) -> Local {
    let (mut head, grpc_status) = if is_grpc {
        let code = grpc_of_http(status);
        (grpc_head(code, if is_head { "" } else { body }), Some(code))
    } else {
        let mut head = H1Response::new(status, Framing::Length(body.len() as u64));
        if !body.is_empty() {
            set(&mut head, "content-type", b"text/plain");
        }
        (head, None)
    };
    if let Some(location) = location {
        set(&mut head, "location", location.as_bytes());
    }
    let body = if is_head || is_grpc { String::new() } else { body.to_owned() };
    Local { head: ResponseHead::H1(head), body: body.into(), grpc_status }
}

/// The head of an answer to a call of gRPC's, which is all of it.
fn grpc_head(code: u32, message: &str) -> H1Response {
    let mut head = H1Response::new(200, Framing::Length(0));
    set(&mut head, "content-type", b"application/grpc");
    set(&mut head, "grpc-status", code.to_string().as_bytes());
    if !message.is_empty() {
        set(&mut head, "grpc-message", percent_encoded(message).as_bytes());
    }
    head
}

fn set(head: &mut H1Response, name: &str, value: &[u8]) {
    // Our own text is clean; a request id was a header before. A head of our own has room.
    let _ = head.fields.append(name, value);
}

/// As Envoy tells its two filters apart.
pub fn limited_by(global: bool) -> &'static str {
    if global { "request_rate_limited" } else { "local_rate_limited" }
}

/// Envoy's words where it has some: people grep for them.
fn text_of(failure: &Failure, trusted: bool) -> Cow<'static, str> {
    match &failure.kind {
        FailureKind::Denied => "RBAC: access denied".into(),
        FailureKind::RateLimited { global, .. } => limited_by(*global).into(),
        FailureKind::LocalLimited { .. } => limited_by(false).into(),
        FailureKind::ConcurrencyLimit { .. } => "reached concurrency limit".into(),
        FailureKind::NoEndpoints
        | FailureKind::NoHealthyUpstream
        | FailureKind::AllEjected
        | FailureKind::SessionLost(_) => "no healthy upstream".into(),
        FailureKind::UpstreamTimeout | FailureKind::PerTryTimeout => "upstream request timeout".into(),
        FailureKind::StreamDuration(_) => "downstream duration timeout".into(),
        FailureKind::UpstreamDuration(_) => "upstream max stream duration reached".into(),
        FailureKind::IdleTimeout(_) => "stream timeout".into(),
        FailureKind::FaultAbort(_) => "fault filter abort".into(),
        FailureKind::BadRequest(_) | FailureKind::BadToken(_) | FailureKind::UpgradeRefused => {
            failure.detail.clone()
        }
        FailureKind::NoRoute => "no route".into(),
        kind => match reset_reason(kind, trusted) {
            Some(reason) => {
                let which =
                    if failure.retried { "retried and the latest reset reason" } else { "reset reason" };
                let text =
                    format!("upstream connect error or disconnect/reset before headers. {which}: {reason}");
                text.into()
            }
            None => kind.name().into(),
        },
    }
}

/// Envoy's names for why there is no response.
fn reset_reason(kind: &FailureKind, trusted: bool) -> Option<Cow<'static, str>> {
    Some(match kind {
        FailureKind::ConnectFailed | FailureKind::ConnectRefused | FailureKind::TlsFailed => {
            "remote connection failure".into()
        }
        FailureKind::ConnectTimeout => "connection timeout".into(),
        FailureKind::UpstreamClosed => "connection termination".into(),
        FailureKind::UpstreamReset | FailureKind::RefusedStream => "remote reset".into(),
        FailureKind::Overflow { limit, value } if trusted => format!("overflow ({limit}={value})").into(),
        FailureKind::Overflow { .. } | FailureKind::CircuitOpen => "overflow".into(),
        _ => return None,
    })
}

/// The value of [`ERROR_HEADER`].
fn describe(failure: &Failure, to: &Audience<'_>) -> String {
    let hop = to.hop;
    let mut text = String::with_capacity(160);
    let reached = if failure.retry == Retry::Safe { "; reached=no" } else { "" };
    let replay = if failure.unreplayable { "; replay=lost" } else { "" };
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "side={}; hop={hop}; stage={}; reason={}{reached}{replay}",
        failure.side.name(),
        failure.stage.name(),
        failure.kind.name()
    );
    if failure.kind == FailureKind::ConnectRefused && to.inbound {
        let _ = write!(text, "; {NOT_LISTENING}");
    }
    if let Some((limit, value)) = failure.kind.limit() {
        let _ = write!(text, "; limit={limit}:{value}");
    }
    if let Some(origin) = &failure.origin {
        let _ = write!(text, "; config=\"{origin}\"");
    }
    if !failure.detail.is_empty() {
        let _ = write!(text, "; detail=\"{}\"", failure.detail.replace('"', "'"));
    }
    text.retain(|c| c == ' ' || c.is_ascii_graphic());
    text
}

/// Whether a peer sidecar says that the application never saw the request.
pub fn says_not_reached(head: &ResponseHead) -> bool {
    parts(head).any(|part| part == NOT_REACHED.as_bytes())
}

/// Whether a peer sidecar says that its application does not listen.
pub fn says_not_listening(head: &ResponseHead) -> bool {
    parts(head).any(|part| part == NOT_LISTENING.as_bytes())
}

/// Whether a peer sidecar says that it takes no more for now: a rate limit, another limit, or its memory. That says nothing of how the
/// application is.
pub fn says_no_room(head: &ResponseHead) -> bool {
    reason(head).is_some_and(|reason| NO_ROOM.iter().any(|kind| kind.as_bytes() == reason))
}

/// Whether a peer sidecar says that as many requests are under way as latency allows.
pub fn says_shed(head: &ResponseHead) -> bool {
    reason(head) == Some(SHED.as_bytes())
}

fn reason(head: &ResponseHead) -> Option<&[u8]> {
    parts(head).find_map(|part| part.strip_prefix(b"reason="))
}

/// What a peer sidecar says of a failure.
fn parts(head: &ResponseHead) -> impl Iterator<Item = &[u8]> {
    let said = head.first(ERROR_HEADER).into_iter();
    said.flat_map(|value| value.split(|&b| b == b';')).map(<[u8]>::trim_ascii)
}

/// gRPC's percent-encoding of `grpc-message`.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
