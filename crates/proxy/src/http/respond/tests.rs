use std::sync::Arc;

use outrigger_model::resource::Origin;
use outrigger_model::route::FaultStatus;

use super::*;
use crate::failure::Stage;

fn audience(trusted: bool, is_grpc: bool) -> Audience<'static> {
    Audience { trusted, is_grpc, is_head: false, request_id: Some(b"id-1"), hop: "catalog-v1", inbound: true }
}

fn denied() -> Failure {
    let origin = Origin { kind: "AuthorizationPolicy".into(), namespace: "shop".into(), name: "deny".into() };
    Failure::local(Stage::Authorize, FailureKind::Denied, "denied by policy p")
        .because_of(Some(Arc::new(origin)))
}

#[test]
fn denial_names_the_policy_to_peers_only() {
    let peer = local(&denied(), &audience(true, false));
    assert_eq!((peer.head.status(), &*peer.body), (403, "RBAC: access denied"));
    let error = String::from_utf8_lossy(peer.head.first(ERROR_HEADER).unwrap()).into_owned();
    for part in ["side=local", "hop=catalog-v1", "reason=denied", "config=\"AuthorizationPolicy shop/deny\""]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    let outsider = local(&denied(), &audience(false, false));
    assert!(!outsider.head.has(ERROR_HEADER));
    assert_eq!(outsider.head.first("x-request-id"), Some(b"id-1".as_slice()));
}

#[test]
fn an_answer_to_head_has_the_length_of_what_get_would_have() {
    let to = Audience { is_head: true, ..audience(true, false) };
    for answer in [local(&denied(), &to), direct(403, "RBAC: access denied", (false, true), None)] {
        let mut out = bytes::BytesMut::new();
        answer.head.write_h1(How::framed(Framing::None), &mut out).unwrap();
        let text = String::from_utf8(out.to_vec()).unwrap();
        assert!(answer.body.is_empty() && text.matches("content-length: 19\r\n").count() == 1, "{text}");
    }
}

#[test]
fn grpc_requests_get_trailers_only() {
    let response = local(&denied(), &audience(true, true));
    assert_eq!(response.head.status(), 200);
    assert_eq!(response.head.first("grpc-status"), Some(b"7".as_slice()));
    assert_eq!(response.head.first("grpc-message"), Some(b"RBAC: access denied".as_slice()));
    assert!(response.body.is_empty());
}

#[test]
fn routes_answer_grpc_in_its_words() {
    for (status, body, code, message) in
        [(503, "50% off", 14, Some("50%25 off")), (200, "", 2, None), (404, "", 12, None)]
    {
        let answer = direct(status, body, (true, false), None);
        let first = |name| answer.head.first(name).map(|value| String::from_utf8_lossy(value).into_owned());
        assert_eq!((answer.head.status(), answer.grpc_status, &*answer.body), (200, Some(code), ""));
        assert_eq!(first("grpc-message").as_deref(), message);
        assert_eq!(first("content-type").as_deref(), Some("application/grpc"));
    }
    let elsewhere = direct(301, "", (true, false), Some("http://a/"));
    assert_eq!(elsewhere.head.first("location"), Some(b"http://a/".as_slice()));
}

#[test]
fn a_failure_says_whether_it_was_the_first() {
    let first = Failure::upstream(Stage::Connect, FailureKind::ConnectTimeout, Retry::Safe, "");
    let last = Failure {
        retried: true,
        ..Failure::upstream(Stage::Forward, FailureKind::UpstreamClosed, Retry::Never, "")
    };
    let start = "upstream connect error or disconnect/reset before headers.";
    let text = |failure: &Failure| local(failure, &audience(true, false)).body.into_owned();
    assert_eq!(text(&first), format!("{start} reset reason: connection timeout"));
    assert_eq!(text(&last), format!("{start} retried and the latest reset reason: connection termination"));
}

#[test]
fn what_is_over_a_limit_says_so_to_peers() {
    let over = Failure::local(Stage::Pick, FailureKind::Overflow { limit: "max_requests", value: 1 }, "");
    assert_eq!(local(&over, &audience(true, false)).head.first(OVERLOADED), Some(b"true".as_slice()));
    assert!(!local(&over, &audience(false, false)).head.has(OVERLOADED));
    assert!(!local(&denied(), &audience(true, false)).head.has(OVERLOADED));
}

#[test]
fn only_a_provable_failure_carries_the_mark() {
    let safe = Failure::upstream(Stage::Connect, FailureKind::ConnectFailed, Retry::Safe, "refused");
    assert!(says_not_reached(&local(&safe, &audience(true, false)).head));
    let unknown = Failure::upstream(Stage::Forward, FailureKind::UpstreamClosed, Retry::IfUnsent, "");
    assert!(!says_not_reached(&local(&unknown, &audience(true, false)).head));
}

#[test]
fn injected_grpc_status_maps_to_http_for_others() {
    let kind = FailureKind::FaultAbort(FaultStatus::Grpc(14));
    let failure = Failure::local(Stage::Route, kind, "injected by a rule");
    assert_eq!(local(&failure, &audience(true, false)).head.status(), 503);
    assert_eq!(local(&failure, &audience(true, true)).grpc_status, Some(14));
}
