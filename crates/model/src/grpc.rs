//! gRPC where HTTP carries it: what tells its calls, and how the statuses of the two stand for each other.

/// Whether a content type is gRPC's: `application/grpc`, or with a codec such as `+proto`; gRPC-Web is another protocol.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The HTTP status that stands for a gRPC status (as Envoy maps it): of an injected one, for requests that are not gRPC.
pub fn http_of_grpc(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// As gRPC's documentation maps a status without `grpc-status`.
pub fn grpc_of_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        499 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_is_grpc() {
        for yes in ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"] {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in ["application/grpc-web", "application/grpc-web-text+proto", "application/json", ""] {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }
}
