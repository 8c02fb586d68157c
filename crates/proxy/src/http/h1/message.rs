//! One HTTP/1 request or response head: the start line and the fields over the same buffer.
//!
//! Made by `parse`; changed by filters and routing through the edits here; put on the wire by `write`.

use super::Framing;
use super::fields::{EditError, H1Fields};
use super::grammar;
use super::known::Known;

/// A range over the parts of the start line, or over the head's buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u16,
    pub(super) len: u16,
}

/// What a response answers: it decides on its body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// The request was HEAD.
    pub head: bool,
    /// The request was CONNECT.
    pub connect: bool,
    /// The request that was forwarded asked for an upgrade.
    pub upgrade: bool,
}

impl Asked {
    /// For a forwarded request with this method.
    pub fn method(method: &str, upgrade: bool) -> Self {
        Self { head: method == "HEAD", connect: method == "CONNECT", upgrade }
    }
}

/// The form of a request target (RFC 9112, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    Origin,
    /// `http://host/path`: forwarded in origin form.
    Absolute,
    /// `host:port`, CONNECT only.
    Authority,
    /// `*`, OPTIONS only.
    Asterisk,
}

/// A request head.
#[derive(Debug, Clone)]
pub struct H1Request {
    pub fields: H1Fields,
    pub(super) method: Span,
    /// Path and query; empty for CONNECT.
    pub(super) path: Span,
    /// Of the target if it has one, else of Host; empty without either.
    pub(super) authority: Span,
    pub(super) form: TargetForm,
    pub(super) minor: u8,
    pub(super) scheme: &'static str,
    pub(super) framing: Framing,
    /// The routing changed the authority: Host is then written from it.
    pub(super) new_authority: bool,
    /// Length of the request line (without CRLF) at the start of the buffer, if it is forwarded as it arrived; else 0.
    pub(super) arrived_line: u16,
}

/// A response head.
#[derive(Debug, Clone, Default)]
pub struct H1Response {
    pub fields: H1Fields,
    pub(super) status: u16,
    pub(super) reason: Span,
    pub(super) minor: u8,
    pub(super) framing: Framing,
    /// Length of the status line (without CRLF) at the start of the buffer, if it is forwarded as it arrived; else 0.
    pub(super) arrived_line: u16,
}

impl H1Request {
    /// A request of our own making, without a body.
    ///
    /// # Errors
    /// When method or path are not valid.
    pub fn new(method: &str, path: &str, authority: &str) -> Result<Self, EditError> {
        let mut request = Self {
            fields: H1Fields::new(),
            method: Span::default(),
            path: Span::default(),
            authority: Span::default(),
            form: TargetForm::Origin,
            minor: 1,
            scheme: "http",
            framing: Framing::None,
            new_authority: false,
            arrived_line: 0,
        };
        request.set_method(method)?;
        match method {
            "CONNECT" => request.form = TargetForm::Authority,
            _ => request.set_path(path)?,
        }
        request.set_authority(authority)?;
        Ok(request)
    }

    fn text(&self, span: Span) -> &str {
        self.fields.part(span.start, span.len)
    }

    /// The method, such as `GET`.
    pub fn method(&self) -> &str {
        self.text(self.method)
    }

    /// Path and query; `*` for the asterisk form; empty for CONNECT.
    pub fn path(&self) -> &str {
        self.text(self.path)
    }

    /// Host, with the port if one was sent; empty for an HTTP/1.0 request that names none.
    pub fn authority(&self) -> &str {
        self.text(self.authority)
    }

    /// `http` or `https`: of the absolute-form target, else as set.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// Says what the connection is, or what another hop knew; an absolute-form target says it itself.
    pub fn set_scheme(&mut self, scheme: &'static str) {
        if self.form != TargetForm::Absolute {
            self.scheme = scheme;
        }
    }

    /// How the target was written.
    pub fn form(&self) -> TargetForm {
        self.form
    }

    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub fn minor(&self) -> u8 {
        self.minor
    }

    /// How the body that follows is delimited.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the client lets the connection live on (RFC 9112, section 9.3).
    pub fn keeps_alive(&self) -> bool {
        keeps_alive(self.minor, &self.fields)
    }

    /// The protocol that the client asks to switch to: `Upgrade` is listed in `Connection`, and it is not h2c, which we
    /// never forward.
    pub fn upgrade(&self) -> Option<&[u8]> {
        if self.minor == 0 || !self.fields.options.upgrade {
            return None;
        }
        self.fields.known(Known::Upgrade).next().filter(|protocol| !grammar::is_h2c(protocol))
    }

    /// Replaces the method.
    ///
    /// # Errors
    /// When it is not a token.
    pub fn set_method(&mut self, method: &str) -> Result<(), EditError> {
        if !grammar::is_method(method.as_bytes()) {
            return Err(EditError::Line);
        }
        self.method = self.put(method)?;
        self.arrived_line = 0;
        Ok(())
    }

    /// Replaces path and query.
    ///
    /// # Errors
    /// When it does not start with `/` (or is not `*`) or has a character that no target may have.
    pub fn set_path(&mut self, path: &str) -> Result<(), EditError> {
        let bytes = path.as_bytes();
        if !(path == "*" || (bytes.first() == Some(&b'/') && grammar::is_target(bytes))) {
            return Err(EditError::Line);
        }
        self.path = self.put(path)?;
        self.arrived_line = 0;
        Ok(())
    }

    /// Replaces the authority; Host follows.
    ///
    /// # Errors
    /// When it is not `host` or `host:port`.
    pub fn set_authority(&mut self, authority: &str) -> Result<(), EditError> {
        if !grammar::is_authority(authority.as_bytes()) {
            return Err(EditError::Line);
        }
        self.authority = self.put(authority)?;
        self.new_authority = true;
        Ok(())
    }

    fn put(&mut self, text: &str) -> Result<Span, EditError> {
        let (start, len) = self.fields.put_part(text)?;
        Ok(Span { start, len })
    }
}

impl H1Response {
    /// A response of our own making; `framing` says what body follows.
    pub fn new(status: u16, framing: Framing) -> Self {
        let mut response = Self {
            fields: H1Fields::new(),
            status: 500,
            reason: Span::default(),
            minor: 1,
            framing,
            arrived_line: 0,
        };
        response.set_status(status);
        response
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason phrase, which may be empty.
    pub fn reason(&self) -> &[u8] {
        self.fields.text(self.reason.start, self.reason.len)
    }

    /// Replaces the status and its phrase.
    pub fn set_status(&mut self, status: u16) {
        self.status = status;
        self.arrived_line = 0;
        let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("");
        self.reason = match self.fields.room(reason.len()) {
            Ok(()) => {
                let (start, len) = self.fields.put(reason.as_bytes());
                Span { start, len }
            }
            Err(_) => Span::default(),
        };
    }

    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub fn minor(&self) -> u8 {
        self.minor
    }

    /// How the body that follows is delimited.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// A 1xx other than 101: the final response is still to come.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }

    /// Whether the server lets the connection live on after this message.
    pub fn keeps_alive(&self) -> bool {
        !matches!(self.framing, Framing::Close | Framing::Tunnel) && keeps_alive(self.minor, &self.fields)
    }
}

/// RFC 9112, section 9.3: `close` always wins; HTTP/1.0 persists only on request.
fn keeps_alive(minor: u8, fields: &H1Fields) -> bool {
    let options = fields.options;
    !options.close && (minor >= 1 || options.keep_alive)
}
