//! Header maps of HTTP/2 heads, by name. The names that the proxy itself looks at are made once: parsing one again at each
//! look costs more than finding it.

use http::header::{HeaderMap, HeaderName, HeaderValue, ValueIter};
use outrigger_model::names;

use super::h1::{EditError, Known};

macro_rules! known_names {
    ($($known:ident $text:literal),* $(,)?) => {
        fn name_of(known: Known) -> Option<&'static HeaderName> {
            match known {
                $(Known::$known => {
                    static NAME: HeaderName = HeaderName::from_static($text);
                    Some(&NAME)
                })*
                _ => None,
            }
        }
    };
}

known_names! {
    B3 "b3",
    Baggage "baggage",
    Connection "connection",
    ContentType "content-type",
    GrpcStatus "grpc-status",
    GrpcTimeout "grpc-timeout",
    Te "te",
    Trailer "trailer",
    Traceparent "traceparent",
    Tracestate "tracestate",
    UserAgent "user-agent",
    XEnvoyAttemptCount "x-envoy-attempt-count",
    XEnvoyUpstreamServiceTime "x-envoy-upstream-service-time",
    XForwardedClientCert "x-forwarded-client-cert",
    XForwardedFor "x-forwarded-for",
    XForwardedProto "x-forwarded-proto",
    XOutriggerError "x-outrigger-error",
    XOutriggerPeer "x-outrigger-peer",
    XRequestId "x-request-id",
}

fn known(name: &str) -> Option<&'static HeaderName> {
    name_of(Known::of(name.as_bytes()))
}

fn name_from(name: &str) -> Result<HeaderName, EditError> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| EditError::Name)
}

/// The short values that the proxy writes itself need no allocation.
fn value_from(value: &[u8]) -> Result<HeaderValue, EditError> {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match value {
        [digit @ b'0'..=b'9'] => Ok(HeaderValue::from_static(DIGITS[usize::from(digit - b'0')])),
        b"http" => Ok(HeaderValue::from_static("http")),
        b"https" => Ok(HeaderValue::from_static("https")),
        value => HeaderValue::from_bytes(value).map_err(|_| EditError::Value),
    }
}

/// All values of a header; the name in lower-case.
pub fn all<'a>(map: &'a HeaderMap, name: &str) -> ValueIter<'a, HeaderValue> {
    match known(name) {
        Some(name) => map.get_all(name).iter(),
        None => map.get_all(name).iter(),
    }
}

/// The first value of a header.
pub fn first<'a>(map: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let value = match known(name) {
        Some(name) => map.get(name),
        None => map.get(name),
    };
    value.map(HeaderValue::as_bytes)
}

/// Replaces all values of a header by one.
///
/// # Errors
/// When name or value could not be a header, or the map is full.
pub fn set(map: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), EditError> {
    let value = value_from(value)?;
    let set = match known(name) {
        Some(name) => map.try_insert(name, value),
        None => map.try_insert(name_from(name)?, value),
    };
    set.map(|_| ()).map_err(|_| EditError::TooLarge)
}

/// Adds a value, keeping those that are there.
///
/// # Errors
/// When name or value could not be a header, or the map is full.
pub fn append(map: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), EditError> {
    let value = value_from(value)?;
    map.try_append(name_from(name)?, value).map(|_| ()).map_err(|_| EditError::TooLarge)
}

/// Removes all values of a header; says whether there was one.
pub fn remove(map: &mut HeaderMap, name: &str) -> bool {
    match known(name) {
        Some(name) => map.remove(name).is_some(),
        None => map.remove(name).is_some(),
    }
}

/// Removes all headers whose (lower-case) name starts so; says whether there was one.
pub fn remove_prefix(map: &mut HeaderMap, prefix: &str) -> bool {
    remove_where(map, |name| name.starts_with(prefix))
}

/// Removes what only looks like a name that sidecars set.
pub fn remove_lookalikes(map: &mut HeaderMap) {
    remove_where(map, |name| {
        // Nearly all names are done with here.
        name.as_bytes().first() == Some(&b'x') && names::is_lookalike_of_ours(name.as_bytes())
    });
}

/// Removes what only looks like one of these names.
pub fn remove_lookalikes_of(map: &mut HeaderMap, own: &[String]) {
    remove_where(map, |name| own.iter().any(|own| names::is_lookalike_of(name.as_bytes(), own.as_bytes())));
}

/// Removes these names, and what looks like them.
pub fn remove_alike(map: &mut HeaderMap, own: &[String]) {
    remove_where(map, |name| own.iter().any(|own| names::are_alike(name.as_bytes(), own.as_bytes())));
}

/// Says whether there was one.
fn remove_where(map: &mut HeaderMap, gone: impl Fn(&str) -> bool) -> bool {
    let gone: Vec<HeaderName> = map.keys().filter(|name| gone(name.as_str())).cloned().collect();
    gone.iter().for_each(|name| while map.remove(name).is_some() {});
    !gone.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_name_is_the_name_that_it_stands_for() {
        for bit in 1..64 {
            let names = ["te", "trailer", "baggage", "connection", "tracestate", "traceparent", "user-agent"];
            let more = [
                "grpc-status",
                "grpc-timeout",
                "content-type",
                "x-request-id",
                "x-forwarded-for",
                "x-forwarded-proto",
            ];
            let ours = ["x-outrigger-peer", "x-outrigger-error", "x-envoy-attempt-count"];
            let long = ["x-forwarded-client-cert", "x-envoy-upstream-service-time"];
            let all = names.iter().chain(&more).chain(&ours).chain(&long);
            if let Some(name) = all.clone().find(|name| Known::of(name.as_bytes()).bit() == 1 << bit) {
                assert_eq!(known(name).unwrap().as_str(), *name);
            }
        }
        assert_eq!(known("x-custom"), None);
    }

    #[test]
    fn names_known_and_unknown_are_edited_alike() {
        for name in ["x-request-id", "x-custom", "content-type"] {
            let mut map = HeaderMap::new();
            set(&mut map, name, b"1").unwrap();
            append(&mut map, name, b"two").unwrap();
            assert_eq!(
                all(&map, name).map(HeaderValue::as_bytes).collect::<Vec<_>>(),
                [b"1".as_slice(), b"two"]
            );
            set(&mut map, &name.to_uppercase(), b"https").unwrap();
            assert_eq!((map.len(), first(&map, name)), (1, Some(b"https".as_slice())));
            assert!(remove(&mut map, name) && !remove(&mut map, name));
        }
        let mut map = HeaderMap::new();
        assert_eq!(set(&mut map, "a b", b""), Err(EditError::Name));
        assert_eq!(set(&mut map, "x-request-id", b"a\n"), Err(EditError::Value));
    }
}
