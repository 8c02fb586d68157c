//! Names of headers that only sidecars may set, and what looks like them.

/// What the names that only sidecars may set begin with.
const OURS: [&[u8]; 2] = [b"x-outrigger-", b"x-envoy-"];

/// Whatever makes variables of names (CGI, WSGI, Rack, PHP) knows letters and digits, and makes the same of all the rest.
fn folded(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

fn begins_like(name: &[u8], with: &[u8]) -> bool {
    name.len() >= with.len() && name.iter().zip(with).all(|(byte, wanted)| folded(*byte) == folded(*wanted))
}

/// Whether two names are the same to an application that makes variables of them.
#[inline]
pub fn are_alike(name: &[u8], other: &[u8]) -> bool {
    name.len() == other.len() && begins_like(name, other)
}

/// Whether it is alike, but another name.
#[inline]
pub fn is_lookalike_of(name: &[u8], other: &[u8]) -> bool {
    are_alike(name, other) && !name.eq_ignore_ascii_case(other)
}

/// Whether it says what nobody outside of the mesh may say, or looks like it. Who asks for a client, by what
/// scheme and as which request others say too: load balancers, and probes of applications that send whoever comes by HTTP elsewhere.
#[inline]
pub fn is_of_the_mesh(name: &[u8]) -> bool {
    OURS.iter().any(|with| begins_like(name, with))
        || are_alike(name, b"x-forwarded-client-cert")
        || is_lookalike_of_ours(name)
}

/// What routing and framing are made of.
const MADE_OF: [&str; 10] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "grpc-status",
    "grpc-message",
];

/// Whether it is not for a service to set that is asked about a request, neither in the request nor in its answer: routing, framing and
/// trust are made of it. An Envoy is less strict; there `x-forwarded-client-cert` is whatever the service says.
pub fn is_of_the_proxy(name: &str) -> bool {
    let bytes = name.as_bytes();
    name.starts_with(':')
        || MADE_OF.iter().any(|made_of| name.eq_ignore_ascii_case(made_of))
        || begins_like(bytes, b"x-outrigger-")
        || are_alike(bytes, b"x-forwarded-client-cert")
}

/// Whether only sidecars may set it, or what looks like it.
#[inline]
pub fn is_of_sidecars(name: &[u8]) -> bool {
    OURS.iter().any(|with| begins_like(name, with))
        || begins_like(name, b"x-forwarded-")
        || are_alike(name, b"x-request-id")
}

/// `X_Forwarded.Client_Cert` is X-Forwarded-Client-Cert to an application that makes variables of names.
#[inline]
pub fn is_lookalike_of_ours(name: &[u8]) -> bool {
    // All of it, without a branch for each byte: nearly all names are short and have none.
    let odd = name.iter().fold(false, |odd, byte| odd | !(byte.is_ascii_alphanumeric() | (*byte == b'-')));
    odd && is_of_sidecars(name)
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_service_sets_nothing_that_routing_framing_and_trust_are_made_of() {
        for name in [":path", "Host", "content-length", "Transfer-Encoding", "connection", "te", "upgrade"] {
            assert!(is_of_the_proxy(name), "{name}");
        }
        for name in
            ["x-forwarded-client-cert", "X_Forwarded-Client_Cert", "x-outrigger-peer", "X-Outrigger.Error"]
        {
            assert!(is_of_the_proxy(name), "{name}");
        }
        for name in
            ["x-user", "authorization", "cookie", "x-envoy-retry-on", "x-forwarded-for", "x-request-id", ""]
        {
            assert!(!is_of_the_proxy(name), "{name}");
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
}
