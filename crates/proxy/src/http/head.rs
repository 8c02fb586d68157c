//! One view of a request or response head, whatever protocol carried it: routing, policy and filters are written once.
//!
//! An HTTP/1 head owns the bytes that arrived, an HTTP/2 head is what the h2 crate made of its frames. What has to change
//! between the two is in `convert`.

use bytes::BytesMut;
use http::header::{HeaderMap, HeaderValue, ValueIter};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode};

use super::h1::fields::Values;
use super::h1::grammar;
use super::h1::strict::{self, Refusal};
use super::h1::write::{How, Unwritable};
use super::h1::{EditError, Framing, H1Fields, H1Request, H1Response};
use super::map;
pub use target::scheme_of;

mod alike;
mod arrive;
mod target;
mod write;

/// The head of a request.
#[derive(Debug, Clone)]
pub enum RequestHead {
    H1(H1Request),
    H2(http::request::Parts),
}

/// The head of a response.
#[derive(Debug, Clone)]
pub enum ResponseHead {
    H1(H1Response),
    H2(http::response::Parts),
}

/// The trailer section of a message.
#[derive(Debug, Clone)]
pub enum Trailers {
    H1(H1Fields),
    H2(HeaderMap),
}

/// All values of one header.
pub enum HeaderValues<'a> {
    H1(Values<'a>),
    H2(ValueIter<'a, HeaderValue>),
}

impl<'a> Iterator for HeaderValues<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match self {
            Self::H1(values) => values.next(),
            Self::H2(values) => values.next().map(HeaderValue::as_bytes),
        }
    }
}

macro_rules! header_methods {
    () => {
        /// All values of a header; the name in lower-case.
        #[inline]
        pub fn headers<'a>(&'a self, name: &'a str) -> HeaderValues<'a> {
            match self {
                Self::H1(head) => HeaderValues::H1(head.fields().headers(name)),
                Self::H2(head) => HeaderValues::H2(map::all(map_of(head), name)),
            }
        }

        /// The first value of a header.
        #[inline(always)]
        pub fn first<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
            match self {
                Self::H1(head) => head.fields().first(name),
                Self::H2(head) => map::first(map_of(head), name),
            }
        }

        /// Whether there is such a header.
        #[inline(always)]
        pub fn has(&self, name: &str) -> bool {
            self.first(name).is_some()
        }

        /// Visits every header, edits included, in order; names as they were sent.
        pub fn each_header(&self, mut visit: impl FnMut(&[u8], &[u8])) {
            match self {
                Self::H1(head) => head.fields().iter().for_each(|(name, value)| visit(name, value)),
                Self::H2(head) => {
                    map_of(head)
                        .iter()
                        .for_each(|(name, value)| visit(name.as_str().as_bytes(), value.as_bytes()));
                }
            }
        }

        /// Adds a value, keeping those that are there.
        ///
        /// # Errors
        /// When name or value could not be a header.
        pub fn append(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), EditError> {
            match self {
                Self::H1(head) => head.fields_mut().append(name, value),
                Self::H2(head) => map::append(map_of_mut(head), name, value.as_ref()),
            }
        }

        /// Removes all values of a header; says whether there was one.
        #[inline(always)]
        pub fn remove(&mut self, name: &str) -> bool {
            match self {
                Self::H1(head) => head.fields_mut().remove(name),
                Self::H2(head) => map::remove(map_of_mut(head), name),
            }
        }

        /// Removes all headers whose (lower-case) name starts so; says whether there was one.
        pub fn remove_prefix(&mut self, prefix: &str) -> bool {
            match self {
                Self::H1(head) => head.fields_mut().remove_prefix(prefix),
                Self::H2(head) => map::remove_prefix(map_of_mut(head), prefix),
            }
        }
    };
}

/// Access to the header map, so that one macro serves the two kinds of head and the trailers.
trait HasMap {
    fn map(&self) -> &HeaderMap;
    fn map_mut(&mut self) -> &mut HeaderMap;
}

impl HasMap for http::request::Parts {
    fn map(&self) -> &HeaderMap {
        &self.headers
    }
    fn map_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }
}

impl HasMap for http::response::Parts {
    fn map(&self) -> &HeaderMap {
        &self.headers
    }
    fn map_mut(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }
}

impl HasMap for HeaderMap {
    fn map(&self) -> &HeaderMap {
        self
    }
    fn map_mut(&mut self) -> &mut HeaderMap {
        self
    }
}

fn map_of(head: &impl HasMap) -> &HeaderMap {
    head.map()
}

fn map_of_mut(head: &mut impl HasMap) -> &mut HeaderMap {
    head.map_mut()
}

impl RequestHead {
    header_methods!();

    /// Replaces all values of a header by one. `host` changes the authority.
    ///
    /// # Errors
    /// When name or value could not be a header.
    #[inline(always)]
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), EditError> {
        if name.eq_ignore_ascii_case("host") {
            let authority = std::str::from_utf8(value.as_ref()).map_err(|_| EditError::Value)?;
            return self.set_authority(authority);
        }
        match self {
            Self::H1(head) => head.fields.set(name, value),
            Self::H2(head) => map::set(&mut head.headers, name, value.as_ref()),
        }
    }

    /// The method, such as `GET`.
    pub fn method(&self) -> &str {
        match self {
            Self::H1(head) => head.method(),
            Self::H2(head) => head.method.as_str(),
        }
    }

    /// Path and query as sent; empty for CONNECT.
    pub fn path(&self) -> &str {
        match self {
            Self::H1(head) => head.path(),
            Self::H2(head) => head.uri.path_and_query().map_or("", PathAndQuery::as_str),
        }
    }

    /// `Host` or `:authority`, with the port if one was sent.
    pub fn authority(&self) -> &str {
        match self {
            Self::H1(head) => head.authority(),
            Self::H2(head) => match head.uri.authority() {
                Some(authority) => authority.as_str(),
                None => {
                    head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("")
                }
            },
        }
    }

    /// `http` or `https`: the request's own, whatever the connection.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::H1(head) => head.scheme(),
            Self::H2(head) if head.uri.scheme() == Some(&Scheme::HTTPS) => "https",
            Self::H2(_) => "http",
        }
    }

    /// Whether this is an HTTP/2 head.
    pub fn is_h2(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`, as access logs write it.
    pub fn version(&self) -> &'static str {
        match self {
            Self::H1(head) if head.minor() == 0 => "HTTP/1.0",
            Self::H1(_) => "HTTP/1.1",
            Self::H2(_) => "HTTP/2",
        }
    }

    /// The protocol that the client wants to switch to: `Upgrade` of HTTP/1.1, `:protocol` of HTTP/2 (RFC 8441).
    pub fn upgrade(&self) -> Option<&[u8]> {
        match self {
            Self::H1(head) => head.upgrade(),
            Self::H2(head) => head.extensions.get::<h2::ext::Protocol>().map(|p| p.as_str().as_bytes()),
        }
    }

    /// A CONNECT that opens a tunnel to what it names. An extended CONNECT is the GET with Upgrade that it stands for.
    pub fn is_connect(&self) -> bool {
        self.method() == "CONNECT"
    }

    /// The framing of the body that follows. `ended`: the HTTP/2 stream ended with its headers (ignored for HTTP/1).
    ///
    /// # Errors
    /// When an HTTP/2 head's Content-Length is none.
    pub fn framing(&self, ended: bool) -> Result<Framing, Refusal> {
        match self {
            Self::H1(head) => Ok(head.framing()),
            Self::H2(_) if self.is_connect() || self.upgrade().is_some() => Ok(Framing::Tunnel),
            Self::H2(head) => Ok(match strict::h2_content_length(&head.headers)? {
                Some(length) => Framing::Length(length),
                None if ended => Framing::None,
                None => Framing::Chunked,
            }),
        }
    }

    /// Replaces the method.
    ///
    /// # Errors
    /// When it is not a token.
    pub fn set_method(&mut self, method: &str) -> Result<(), EditError> {
        match self {
            Self::H1(head) => head.set_method(method),
            Self::H2(head) => {
                head.method = Method::from_bytes(method.as_bytes()).map_err(|_| EditError::Line)?;
                Ok(())
            }
        }
    }

    /// Replaces path and query.
    ///
    /// # Errors
    /// When it is not a valid path.
    pub fn set_path(&mut self, path: &str) -> Result<(), EditError> {
        match self {
            Self::H1(head) => head.set_path(path),
            Self::H2(head) => {
                if !(path.starts_with('/') && grammar::is_target(path.as_bytes())) {
                    return Err(EditError::Line);
                }
                let path = PathAndQuery::try_from(path).map_err(|_| EditError::Line)?;
                target::edit(&mut head.uri, |uri| uri.path_and_query = Some(path))
            }
        }
    }

    /// Replaces the authority (`Host`, `:authority`).
    ///
    /// # Errors
    /// When it is not `host` or `host:port`.
    pub fn set_authority(&mut self, authority: &str) -> Result<(), EditError> {
        match self {
            Self::H1(head) => head.set_authority(authority),
            Self::H2(head) => {
                if !grammar::is_authority(authority.as_bytes()) {
                    return Err(EditError::Line);
                }
                let authority = Authority::try_from(authority).map_err(|_| EditError::Line)?;
                head.headers.remove(http::header::HOST);
                target::edit(&mut head.uri, |uri| uri.authority = Some(authority))
            }
        }
    }

    /// Bytes that it takes in HTTP/1, edits included; at most a little less.
    pub fn size(&self) -> usize {
        match self {
            Self::H1(head) => head.fields.size(),
            Self::H2(head) => strict::h2_size(head),
        }
    }

    /// Whether a header's (lower-case) name starts so.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        match self {
            Self::H1(head) => head.fields.has_prefix(prefix),
            Self::H2(head) => head.headers.keys().any(|name| name.as_str().starts_with(prefix)),
        }
    }

    /// Writes it as an HTTP/1.1 head.
    ///
    /// # Errors
    /// When it must not leave; `out` is then as it was.
    pub fn write_h1(&self, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
        match self {
            Self::H1(head) => super::h1::write::request(head, how, out),
            Self::H2(head) => write::request(head, how, out),
        }
    }
}

impl ResponseHead {
    header_methods!();

    /// Stands where none has come yet.
    pub fn absent() -> Self {
        Self::H1(H1Response::default())
    }

    /// Replaces all values of a header by one.
    ///
    /// # Errors
    /// When name or value could not be a header.
    #[inline(always)]
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), EditError> {
        match self {
            Self::H1(head) => head.fields.set(name, value),
            Self::H2(head) => map::set(&mut head.headers, name, value.as_ref()),
        }
    }

    /// The status code.
    pub fn status(&self) -> u16 {
        match self {
            Self::H1(head) => head.status(),
            Self::H2(head) => head.status.as_u16(),
        }
    }

    /// Replaces the status code; one that is none becomes 500.
    pub fn set_status(&mut self, status: u16) {
        let code = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match self {
            Self::H1(head) => head.set_status(code.as_u16()),
            Self::H2(head) => head.status = code,
        }
    }

    /// Whether this is an HTTP/2 head.
    pub fn is_h2(&self) -> bool {
        matches!(self, Self::H2(_))
    }

    /// A 1xx other than 101: the final response is still to come.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status()) && self.status() != 101
    }

    /// The framing of the body that follows. `ended`: the HTTP/2 stream ended with its headers; `head`: it answers a HEAD
    /// (both ignored for HTTP/1, whose parser was told).
    ///
    /// # Errors
    /// When an HTTP/2 head's Content-Length is none.
    pub fn framing(&self, ended: bool, head: bool) -> Result<Framing, Refusal> {
        match self {
            Self::H1(response) => Ok(response.framing()),
            Self::H2(_) if head || matches!(self.status(), 100..=199 | 204 | 304) => Ok(Framing::None),
            Self::H2(response) => Ok(match strict::h2_content_length(&response.headers)? {
                Some(length) => Framing::Length(length),
                None if ended => Framing::Length(0),
                None => Framing::Chunked,
            }),
        }
    }

    /// Writes it as an HTTP/1.1 head.
    ///
    /// # Errors
    /// When it must not leave; `out` is then as it was.
    pub fn write_h1(&self, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
        match self {
            Self::H1(head) => super::h1::write::response(head, how, out),
            Self::H2(head) => write::response(head, how, out),
        }
    }
}

impl Trailers {
    header_methods!();

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::H1(fields) => fields.is_empty(),
            Self::H2(map) => map.is_empty(),
        }
    }
}

/// What the macro asks of an HTTP/1 head.
trait HasFields {
    fn fields(&self) -> &H1Fields;
    fn fields_mut(&mut self) -> &mut H1Fields;
}

impl HasFields for H1Request {
    fn fields(&self) -> &H1Fields {
        &self.fields
    }
    fn fields_mut(&mut self) -> &mut H1Fields {
        &mut self.fields
    }
}

impl HasFields for H1Response {
    fn fields(&self) -> &H1Fields {
        &self.fields
    }
    fn fields_mut(&mut self) -> &mut H1Fields {
        &mut self.fields
    }
}

impl HasFields for H1Fields {
    fn fields(&self) -> &H1Fields {
        self
    }
    fn fields_mut(&mut self) -> &mut H1Fields {
        self
    }
}
