//! Spans without end for the control plane's own store, and questions about all of them.

use std::time::{SystemTime, UNIX_EPOCH};

use http_body_util::BodyExt;
use outrigger_tests::app::body;
use outrigger_tests::http::{Client, whole};

use super::*;
use crate::thin_thread::STRICT;

/// A message of 3.5 MiB: 110 spans of 32 KiB, each a trace of its own.
const SPANS: usize = 110;
const MESSAGES: usize = 72;

/// A field of a message that is bytes, a text or a message itself.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![(number << 3) | 2];
    let mut left = value.len();
    while left >= 0x80 {
        field.push((left % 0x80) as u8 | 0x80);
        left /= 0x80;
    }
    field.push(left as u8);
    field.extend(value);
    field
}

/// An attribute that is a text.
fn attribute(key: &str, value: &[u8]) -> Vec<u8> {
    [field(1, key.as_bytes()), field(2, &field(1, value))].concat()
}

/// An `ExportTraceServiceRequest` as gRPC sends it.
fn message(first: u64) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut spans = Vec::new();
    for n in first..first + SPANS as u64 {
        let mut span = [field(1, &u128::from(n).to_be_bytes()), field(2, &n.to_be_bytes())].concat();
        span.extend(field(5, b"flood"));
        for time in [7, 8] {
            span.push((time << 3) | 1);
            span.extend(now.to_le_bytes());
        }
        for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            span.extend(field(9, &attribute(key, &[b'x'; 4000])));
        }
        spans.extend(field(2, &span));
    }
    let maker = field(1, &field(1, &attribute("service.name", b"flood")));
    let request = field(1, &[maker, field(2, &spans)].concat());
    let mut framed = vec![0];
    framed.extend(u32::try_from(request.len()).unwrap().to_be_bytes());
    framed.extend(request);
    framed.into()
}

/// Exports so many messages over a connection of its own.
async fn export(to: SocketAddr, messages: std::ops::Range<usize>) {
    let mut client = Client::h2(to).await;
    for n in messages {
        let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        let request = Request::post(format!("http://{to}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(whole(message(1 + (n * SPANS) as u64)))
            .unwrap();
        let response = client.send(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
        let status = status.or(head.headers.get("grpc-status")).map(|status| status.as_bytes().to_vec());
        assert_eq!(status.as_deref(), Some(&b"0"[..]), "{head:?} {:?}", body.trailers());
    }
}

/// The store has 64 MiB, four messages are decoded at a time (8 MiB each), and eight answers of 8 MiB are on their way, each
/// perhaps twice: 224 MiB. With 64 more there are 288, and 250 MiB of spans came. What was sent stays in the store, and
/// of the rest the allocator may keep as much again.
#[tokio::test(flavor = "multi_thread")]
async fn spans_without_end_and_questions_about_them_have_their_bounds() {
    let stage = Stage::with("512Mi").await;
    let what = "250 MiB of spans, and questions about all of them";
    let attack =
        Attack::begin(what, &[stage.control(288, 160)], stage.mesh.address(1, 15014), "/ready").await;
    let exporting: Vec<_> = (0..4)
        .map(|part| {
            let each = MESSAGES / 4;
            tokio::spawn(export(stage.mesh.address(1, 4317), part * each..(part + 1) * each))
        })
        .collect();
    for one in exporting {
        one.await.unwrap();
    }
    let query = stage.mesh.address(1, 16686);
    let question = || asked(query, "/api/traces?service=flood&limit=1500", Duration::from_secs(120));
    let asking: Vec<_> = (0..8).map(|_| tokio::spawn(question())).collect();
    for one in asking {
        let (status, text) = one.await.unwrap();
        assert_eq!(status, 200);
        let length = body(&text).len();
        assert!((1 << 20..9 << 20).contains(&length), "{length} bytes are answered");
    }
    // And who has work to do for it is served.
    let began = Instant::now();
    let applied = stage.mesh.apply(STRICT).await;
    assert_eq!(applied.in_force.unwrap().proxies, 2);
    assert!(began.elapsed() < Duration::from_secs(15), "a rule was in force after {:?}", began.elapsed());
    attack.lasts(50).await;
    attack.end().await.calm().await;
}
