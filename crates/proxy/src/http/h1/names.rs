//! Names that mean more than they say: methods in the wrong case, and fields that have no place in trailers.

use outrigger_model::names::{are_alike, is_of_sidecars};

use outrigger_model::request::METHODS;

/// `get`, `Post`: another method by the RFC, and the same one to applications that do not look closely.
#[inline]
pub(crate) fn is_method_variant(method: &[u8]) -> bool {
    method.iter().any(u8::is_ascii_lowercase) && is_known_method(method)
}

#[cold]
fn is_known_method(method: &[u8]) -> bool {
    METHODS.iter().any(|known| method.eq_ignore_ascii_case(known.as_bytes()))
}

/// RFC 9110, section 6.5.1: fields for framing, routing, authentication or content handling mean nothing in trailers, and
/// a recipient that merges them with the head would be fooled. They are dropped, what looks like them too, and all that only we
/// may say.
pub(crate) fn is_forbidden_trailer(name: &[u8]) -> bool {
    const NAMES: &[&str] = &[
        "age",
        "authorization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "http2-settings",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "range",
        "retry-after",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "vary",
        "www-authenticate",
    ];
    NAMES.iter().any(|known| are_alike(name, known.as_bytes())) || is_of_sidecars(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_known_method_has_variants() {
        for variant in ["get", "Get", "pOST", "connect", "Propfind"] {
            assert!(is_method_variant(variant.as_bytes()), "{variant}");
        }
        for method in ["GET", "POST", "M-SEARCH", "foo", "Custom"] {
            assert!(!is_method_variant(method.as_bytes()), "{method}");
        }
    }

    #[test]
    fn trailers_say_nothing_that_only_we_may_say() {
        for name in [
            "x-outrigger-error",
            "X-Envoy-Peer-Metadata",
            "x-forwarded-client-cert",
            "X_Outrigger_Peer",
            "X.Forwarded.For",
            "Content_Length",
        ] {
            assert!(is_forbidden_trailer(name.as_bytes()), "{name}");
        }
        for name in ["grpc-status", "x-checksum", "server-timing", "x_checksum"] {
            assert!(!is_forbidden_trailer(name.as_bytes()), "{name}");
        }
    }
}
