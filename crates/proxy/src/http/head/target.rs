//! What an HTTP/2 request is for, where the h2 crate leaves it open.

use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{Method, Uri};

use crate::http::h1::EditError;
use crate::http::h1::strict::Refusal;
use crate::http::map;

/// The scheme that `x-forwarded-proto` names, if it names one.
pub fn scheme_of(forwarded_proto: &[u8]) -> Option<&'static str> {
    ["http", "https"].into_iter().find(|scheme| forwarded_proto.eq_ignore_ascii_case(scheme.as_bytes()))
}

/// What is forwarded names its authority (RFC 9113, section 8.3.1): without `:authority` Host is it. The h2 crate drops the
/// scheme then, and lets those through that are not HTTP's; `x-forwarded-proto` may know it, else it is the connection's.
#[cold]
pub(super) fn complete(parts: &mut Parts, connection: &'static str) -> Result<(), Refusal> {
    if parts.method == Method::CONNECT && parts.extensions.get::<h2::ext::Protocol>().is_none() {
        return Ok(()); // it has neither scheme nor path (section 8.5)
    }
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    if uri.authority.is_none()
        && let Some(host) = parts.headers.remove(http::header::HOST)
    {
        uri.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| Refusal::HostInvalid)?);
    }
    let said = map::first(&parts.headers, "x-forwarded-proto").and_then(scheme_of);
    let scheme = if said.unwrap_or(connection) == "https" { Scheme::HTTPS } else { Scheme::HTTP };
    uri.scheme = Some(scheme);
    parts.uri = Uri::from_parts(uri).map_err(|_| Refusal::Target)?;
    Ok(())
}

/// Changes a part of a URI.
pub(super) fn edit(uri: &mut Uri, edit: impl FnOnce(&mut http::uri::Parts)) -> Result<(), EditError> {
    let mut parts = uri.clone().into_parts();
    edit(&mut parts);
    // http knows no authority with a path but without a scheme.
    if parts.scheme.is_none() && parts.path_and_query.is_some() && parts.authority.is_some() {
        parts.scheme = Some(Scheme::HTTP);
    }
    *uri = Uri::from_parts(parts).map_err(|_| EditError::Line)?;
    Ok(())
}
