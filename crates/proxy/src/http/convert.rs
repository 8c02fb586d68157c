//! HTTP/1 into HTTP/2 and back: heads, trailers and upgrades. Pure functions; who sends the result is not their business.
//!
//! Towards h2: names in lower-case, Host becomes `:authority`, hop-by-hop fields go (RFC 9113, section 8.2.2). Towards h1:
//! pseudo-headers become the start line and Host, cookie crumbs are joined (section 8.2.3). An upgrade of HTTP/1.1 is an
//! extended CONNECT in HTTP/2 (RFC 8441); its 101 is a 200 there.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};

use super::h1::fields::list_members;
use super::h1::grammar;
use super::h1::known::HOP_BY_HOP;
use super::h1::names;
use super::h1::write::{self, Unwritable};
use super::h1::{Framing, H1Fields, H1Request, H1Response, Known};
use super::head::{RequestHead, ResponseHead, Trailers};

/// Above this size a cookie is split into crumbs, so that one that changes does not evict the rest from HPACK's table.
const COOKIE_CRUMBS: usize = 8 * 1024;

/// Why a head cannot cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    #[error("the request names no host, which HTTP/2 needs as :authority (RFC 9113, section 8.3.1)")]
    NoAuthority,
    #[error("the authority or target of the request is not valid in HTTP/2 (RFC 9113, section 8.3.1)")]
    Target,
    #[error("a header of the message is not valid in HTTP/2 (RFC 9113, section 8.2.1)")]
    Field,
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    #[error("the status is not valid in HTTP/2 (RFC 9113, section 8.3.2)")]
    Status,
}

/// The request as the h2 crate sends it. `upgrade`: the upgrade that the request asks for is forwarded.
///
/// # Errors
/// When the head cannot be said in HTTP/2.
pub fn request_to_h2(head: &RequestHead, upgrade: bool) -> Result<Request<()>, ConvertError> {
    let h1 = match head {
        RequestHead::H1(h1) => h1,
        RequestHead::H2(parts) => {
            let mut parts = parts.clone();
            // An extended CONNECT was taken for the GET that it stands for.
            if upgrade && parts.extensions.get::<h2::ext::Protocol>().is_some() {
                parts.method = Method::CONNECT;
            }
            let found = look_over(&mut parts.headers);
            drop_hop_by_hop(&mut parts.headers, found);
            return Ok(Request::from_parts(parts, ()));
        }
    };
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    if let Some(protocol) = h1.upgrade().filter(|_| upgrade).and_then(first_protocol) {
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol));
    } else {
        *request.method_mut() =
            Method::from_bytes(h1.method().as_bytes()).map_err(|_| ConvertError::Target)?;
    }
    *request.uri_mut() = uri(h1)?;
    let headers = request.headers_mut();
    fields_to_h2(&h1.fields, headers)?;
    headers.remove(header::HOST);
    if h1.minor() == 0 {
        headers.remove(header::EXPECT);
    }
    if write::wants_trailers(&h1.fields) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    split_cookie(headers);
    look_over(headers);
    Ok(request)
}

/// The one that the client wants most (RFC 9110, section 7.8): `:protocol` has room for one.
fn first_protocol(upgrade: &[u8]) -> Option<&str> {
    let first = list_members(upgrade).next().filter(|first| grammar::is_protocol(first))?;
    std::str::from_utf8(first).ok()
}

fn uri(head: &H1Request) -> Result<Uri, ConvertError> {
    if head.authority().is_empty() {
        return Err(ConvertError::NoAuthority);
    }
    let mut parts = http::uri::Parts::default();
    parts.authority = Some(Authority::try_from(head.authority()).map_err(|_| ConvertError::Target)?);
    if head.method() != "CONNECT" {
        parts.scheme = Some(if head.scheme() == "https" { Scheme::HTTPS } else { Scheme::HTTP });
        parts.path_and_query = Some(PathAndQuery::try_from(head.path()).map_err(|_| ConvertError::Target)?);
    }
    Uri::from_parts(parts).map_err(|_| ConvertError::Target)
}

/// Copies what may be sent over HTTP/2.
fn fields_to_h2(fields: &H1Fields, headers: &mut HeaderMap) -> Result<(), ConvertError> {
    headers.reserve(fields.len());
    for (name, value) in write::end_to_end(fields) {
        let name = HeaderName::from_bytes(name).map_err(|_| ConvertError::Field)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| ConvertError::Field)?;
        headers.try_append(name, value).map_err(|_| ConvertError::Field)?;
    }
    Ok(())
}

/// RFC 9113, section 8.2.3.
fn split_cookie(headers: &mut HeaderMap) {
    let Some(cookie) = headers.get(header::COOKIE).filter(|cookie| cookie.len() > COOKIE_CRUMBS) else {
        return;
    };
    let cookie = cookie.clone();
    let crumbs = cookie.as_bytes().split(|&b| b == b';').map(<[u8]>::trim_ascii_start);
    let rest: Vec<HeaderValue> = headers.get_all(header::COOKIE).iter().skip(1).cloned().collect();
    headers.remove(header::COOKIE);
    for crumb in crumbs.filter_map(|crumb| HeaderValue::from_bytes(crumb).ok()).chain(rest) {
        headers.append(header::COOKIE, crumb);
    }
}

/// Marks what differs from request to request, so that HPACK writes it as it is: in the h2 crate's table such values would
/// evict the others, and every look-up would compare with all that are left of them. Says which known names there are.
fn look_over(headers: &mut HeaderMap) -> u64 {
    headers.iter_mut().fold(0, |found, (name, value)| {
        let known = Known::of(name.as_str().as_bytes());
        let unique = match known {
            Known::XRequestId | Known::Traceparent | Known::B3 | Known::GrpcTimeout => true,
            Known::Other => matches!(name.as_str(), "x-b3-traceid" | "x-b3-spanid"),
            _ => false,
        };
        if unique {
            value.set_sensitive(true);
        }
        found | known.bit()
    })
}

/// `found`: the known names that there are.
fn drop_hop_by_hop(headers: &mut HeaderMap, found: u64) {
    const TE: u64 = Known::Te.bit();
    let gone = found & (HOP_BY_HOP | Known::TransferEncoding.bit());
    // The h2 crate lets none of them in but `te: trailers`; others come by edits.
    if gone == 0 || (gone == TE && headers.get_all(header::TE).iter().all(|te| te == "trailers")) {
        return;
    }
    const GONE: [HeaderName; 4] =
        [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE, header::TE];
    let trailers =
        headers.get_all(header::TE).iter().any(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in GONE {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings"] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// As [`response_to_h2`], but a head that is HTTP/2 already is taken, not copied.
///
/// # Errors
/// When the head cannot be said in HTTP/2.
pub fn response_into_h2(head: &mut ResponseHead) -> Result<Response<()>, ConvertError> {
    if !head.is_h2() {
        return response_to_h2(head);
    }
    match std::mem::replace(head, ResponseHead::absent()) {
        ResponseHead::H2(parts) => Ok(response_of(parts)),
        h1 => response_to_h2(&h1),
    }
}

fn response_of(mut parts: http::response::Parts) -> Response<()> {
    let found = look_over(&mut parts.headers);
    drop_hop_by_hop(&mut parts.headers, found);
    Response::from_parts(parts, ())
}

/// The response as the h2 crate sends it. A 101 becomes the 200 of an extended CONNECT (RFC 8441, section 5).
///
/// # Errors
/// When the head cannot be said in HTTP/2.
pub fn response_to_h2(head: &ResponseHead) -> Result<Response<()>, ConvertError> {
    let h1 = match head {
        ResponseHead::H1(h1) => h1,
        ResponseHead::H2(parts) => return Ok(response_of(parts.clone())),
    };
    let status = if h1.status() == 101 { 200 } else { h1.status() };
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| ConvertError::Status)?;
    fields_to_h2(&h1.fields, response.headers_mut())?;
    if write::is_bodyless(status) || h1.framing() == Framing::Tunnel {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(response)
}

const WEBSOCKET_KEY: &str = "sec-websocket-key";

/// The 101 for an HTTP/1.1 client whose upgrade went to an HTTP/2 server as extended CONNECT and was answered with 2xx.
/// Write it with `upgrade: true` and [`Framing::Tunnel`].
pub fn switching_protocols(response: &ResponseHead, request: &H1Request) -> H1Response {
    let mut head = H1Response::new(101, Framing::Tunnel);
    // Edits of a new head fail only above 64 KiB or on invalid text, which a parsed head has not: what does not fit is lost.
    response.each_header(|name, value| {
        let known = Known::of(name);
        if !known.is_hop_by_hop() && !matches!(known, Known::ContentLength | Known::TransferEncoding) {
            let _ = head.fields.append_bytes(name, value.trim_ascii());
        }
    });
    if let Some(protocol) = request.upgrade().and_then(first_protocol) {
        let _ = head.fields.append("Upgrade", protocol);
        let key = request.fields.first(WEBSOCKET_KEY);
        if let Some(key) = key.filter(|_| protocol.eq_ignore_ascii_case("websocket"))
            && !head.fields.has(Known::SecWebsocketAccept)
        {
            let _ = head.fields.append_bytes(b"Sec-WebSocket-Accept", websocket_accept(key).as_bytes());
        }
    }
    head
}

/// RFC 6455, section 4.2.2, step 5.4.
pub fn websocket_accept(key: &[u8]) -> String {
    use aws_lc_rs::digest;
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(sha1.finish())
}

/// Trailers for an HTTP/2 stream; a line that is not valid there is dropped, as RFC 9110, section 6.5.1 permits.
pub fn trailers_to_h2(trailers: Trailers) -> HeaderMap {
    let map = match trailers {
        Trailers::H2(map) => map,
        Trailers::H1(fields) => {
            let mut map = HeaderMap::with_capacity(fields.len());
            for (name, value) in fields.iter() {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
                {
                    let _ = map.try_append(name, value);
                }
            }
            map
        }
    };
    if map.keys().any(|name| names::is_forbidden_trailer(name.as_str().as_bytes())) {
        return map.into_iter().fold((HeaderMap::new(), None), kept_trailer).0;
    }
    map
}

/// One step over a map's owned pairs, in which repeated values come without their name.
fn kept_trailer(
    (mut map, last): (HeaderMap, Option<HeaderName>),
    (name, value): (Option<HeaderName>, HeaderValue),
) -> (HeaderMap, Option<HeaderName>) {
    let name = name.or(last);
    if let Some(name) = name.as_ref().filter(|name| !names::is_forbidden_trailer(name.as_str().as_bytes())) {
        map.append(name, value);
    }
    (map, name)
}

/// The pairs of a trailer section that may be written behind a chunked body.
pub fn trailer_lines(trailers: &Trailers) -> impl Iterator<Item = (&[u8], &[u8])> {
    let (h1, h2) = match trailers {
        Trailers::H1(fields) => (Some(fields.iter()), None),
        Trailers::H2(map) => (None, Some(map.iter())),
    };
    let h2 = h2
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes().trim_ascii()));
    h1.into_iter().flatten().chain(h2).filter(|(name, _)| !names::is_forbidden_trailer(name))
}
