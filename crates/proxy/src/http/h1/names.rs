//! Names that mean more than they say: methods in the wrong case, headers that only sidecars may set and what looks like
//! them, and fields that have no place in trailers.

/// Methods that servers know (IANA's registry, and PURGE).
const METHODS: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// `get`, `Post`: another method by the RFC, and the same one to applications that do not look closely.
#[inline]
pub(crate) fn is_method_variant(method: &[u8]) -> bool {
    method.iter().any(u8::is_ascii_lowercase) && is_known_method(method)
}

#[cold]
fn is_known_method(method: &[u8]) -> bool {
    METHODS.iter().any(|known| method.eq_ignore_ascii_case(known.as_bytes()))
}

/// What the names that only sidecars may set begin with.
const OURS: [&[u8]; 3] = [b"x-outrigger-", b"x-envoy-", b"x-forwarded-"];

/// Whatever makes variables of names (CGI, WSGI, Rack, PHP) knows letters and digits, and makes the same of all the rest.
fn folded(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

fn begins_like(name: &[u8], with: &[u8]) -> bool {
    name.len() >= with.len() && name.iter().zip(with).all(|(byte, wanted)| folded(*byte) == folded(*wanted))
}

/// Whether two names are the same to an application that makes variables of them.
pub(crate) fn are_alike(name: &[u8], other: &[u8]) -> bool {
    name.len() == other.len() && begins_like(name, other)
}

/// Whether it is alike, but another name.
pub(crate) fn is_lookalike_of(name: &[u8], other: &[u8]) -> bool {
    are_alike(name, other) && !name.eq_ignore_ascii_case(other)
}

/// Whether only sidecars may set it, or what looks like it.
pub(crate) fn is_ours(name: &[u8]) -> bool {
    OURS.iter().any(|with| begins_like(name, with)) || are_alike(name, b"x-request-id")
}

/// `X_Forwarded.Client_Cert` is X-Forwarded-Client-Cert to an application that makes variables of names.
pub(crate) fn is_lookalike_of_ours(name: &[u8]) -> bool {
    let odd = |byte: &u8| !(byte.is_ascii_alphanumeric() || *byte == b'-');
    name.iter().any(odd) && is_ours(name)
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
    NAMES.iter().any(|known| are_alike(name, known.as_bytes())) || is_ours(name)
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
    fn nothing_that_a_name_may_have_hides_ours() {
        let underscores =
            ["X_Forwarded_Client_Cert", "x-forwarded_for", "X_OUTRIGGER-PEER", "x_envoy_a", "X_Request_Id"];
        let others = ["X.Forwarded.Client.Cert", "x-forwarded!for", "x~envoy-a", "X-Request.Id"];
        for name in underscores.into_iter().chain(others) {
            assert!(is_lookalike_of_ours(name.as_bytes()), "{name}");
        }
        for punctuation in "!#$%&'*+.^_`|~".chars() {
            let name = format!("x{punctuation}outrigger-peer");
            assert!(is_lookalike_of_ours(name.as_bytes()), "{name}");
        }
        for name in
            ["x-forwarded-client-cert", "x_custom_header", "my_x_envoy_a", "x_forwarded", "_x-envoy-a"]
        {
            assert!(!is_lookalike_of_ours(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_lookalike_is_another_name_that_becomes_the_same_variable() {
        for (name, own) in
            [("X_User-Id", "x-user-id"), ("x.user.id", "x-user-id"), ("X-User-Id", "x_user_id")]
        {
            assert!(is_lookalike_of(name.as_bytes(), own.as_bytes()), "{name}");
        }
        for (name, own) in
            [("X-User-Id", "x-user-id"), ("x_user_idx", "x-user-id"), ("xuser_id", "x-user-id")]
        {
            assert!(!is_lookalike_of(name.as_bytes(), own.as_bytes()), "{name}");
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
