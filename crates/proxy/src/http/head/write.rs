//! Heads of HTTP/2, written as HTTP/1.1.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use http::Method;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;

use crate::http::h1::write::{self, How, Unwritable};
use crate::http::h1::{Framing, Known};

const WEBSOCKET_KEY: &str = "sec-websocket-key";

/// Writes an HTTP/2 request head as HTTP/1.1; an extended CONNECT as the `GET` with `Upgrade` that it stands for.
///
/// # Errors
/// When it must not leave; `out` is then as it was.
pub fn request(parts: &http::request::Parts, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    write::whole(out, |out| try_request(parts, how, out))
}

fn try_request(parts: &http::request::Parts, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    let protocol = parts.extensions.get::<h2::ext::Protocol>();
    let path = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let authority = match parts.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => parts.headers.get(header::HOST).map_or(b"".as_slice(), HeaderValue::as_bytes),
    };
    out.reserve(512);
    match protocol {
        Some(_) => write::request_line(b"GET", path.as_bytes(), out)?,
        None if parts.method == Method::CONNECT => write::request_line(b"CONNECT", authority, out)?,
        None => write::request_line(parts.method.as_str().as_bytes(), path.as_bytes(), out)?,
    }
    write::line(b"host", authority, out)?;
    write_map(&parts.headers, false, out)?;
    cookie(&parts.headers, out)?;
    let te =
        parts.headers.get_all(header::TE).iter().any(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    if te {
        out.extend_from_slice(b"te: trailers\r\n");
    }
    match protocol {
        Some(protocol) => {
            write::line(b"upgrade", protocol.as_str().as_bytes(), out)?;
            if protocol.as_str().eq_ignore_ascii_case("websocket")
                && !parts.headers.contains_key(WEBSOCKET_KEY)
            {
                // RFC 8441, section 5: h2 has no key, HTTP/1.1 needs one (RFC 6455, section 4.1). It is a nonce, no secret.
                let key = STANDARD.encode(fastrand::u128(..).to_be_bytes());
                write::line(b"sec-websocket-key", key.as_bytes(), out)?;
            }
        }
        None => write::framing(how.framing, out),
    }
    write::connection(how.persist, protocol.is_some(), te, out);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Writes an HTTP/2 response head as HTTP/1.1.
///
/// # Errors
/// When it must not leave; `out` is then as it was.
pub fn response(parts: &http::response::Parts, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    write::whole(out, |out| try_response(parts, how, out))
}

fn try_response(parts: &http::response::Parts, how: How, out: &mut BytesMut) -> Result<(), Unwritable> {
    let status = parts.status;
    out.reserve(512);
    write::status_line(status.as_u16(), status.canonical_reason().unwrap_or("").as_bytes(), out)?;
    // A response to HEAD and a 304 describe a body that does not come: their length passes.
    let describes = how.framing == Framing::None && !write::is_bodyless(status.as_u16());
    write_map(&parts.headers, describes, out)?;
    for cookie in parts.headers.get_all(header::COOKIE) {
        write::line(b"cookie", cookie.as_bytes(), out)?;
    }
    write::framing(how.framing, out);
    if status.as_u16() >= 200 {
        write::connection(how.persist, false, false, out);
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// The plain fields: without those that the callers write themselves, and those that mean something to h2 only.
fn write_map(headers: &HeaderMap, with_length: bool, out: &mut BytesMut) -> Result<(), Unwritable> {
    for (name, value) in headers {
        let known = Known::of(name.as_str().as_bytes());
        let own = match known {
            Known::ContentLength => !with_length,
            Known::TransferEncoding | Known::Host | Known::Cookie => true,
            known => known.is_hop_by_hop(),
        };
        // http lets values with spaces at their ends through; in HTTP/1 they would be padding.
        if !own {
            write::line(name.as_str().as_bytes(), value.as_bytes().trim_ascii(), out)?;
        }
    }
    Ok(())
}

/// RFC 9113, section 8.2.3: joined with "; " before they pass into HTTP/1.
fn cookie(headers: &HeaderMap, out: &mut BytesMut) -> Result<(), Unwritable> {
    let mut before: &[u8] = b"cookie: ";
    for crumb in headers.get_all(header::COOKIE) {
        write::clean(crumb.as_bytes())?;
        out.extend_from_slice(before);
        out.extend_from_slice(crumb.as_bytes().trim_ascii());
        before = b"; ";
    }
    if before == b"; " {
        out.extend_from_slice(b"\r\n");
    }
    Ok(())
}
