//! How an endpoint is asked: over the mesh's TLS where requests go over it, once.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use outrigger_model::cluster::{CheckHow, GrpcCheck, HealthCheck, HttpCheck, TcpCheck};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, timeout};

use super::Said;
use crate::failure::{Failure, FailureKind, Side};
use crate::http::call;
use crate::http::call::message::{Answer, Call};
use crate::http::grpc;
use crate::http::h1::{EditError, Framing, H1Request};
use crate::http::head::RequestHead;
use crate::protocol::Protocol;
use crate::runtime::cluster::ClusterHandle;
use crate::runtime::endpoint::{EndpointState, Reach};
use crate::runtime::verdict::Failed;
use crate::stream::{Stream, rtt};
use crate::upstream::connect;
use crate::upstream::pool::Pools;

/// By what the application knows a check from a request.
const USER_AGENT: &str = "Outrigger/HC";
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// Of what an endpoint answers.
const MOST: usize = 64 * 1024;
/// So long, or three round trips, a connection to a sidecar must stand: it closes it when its application takes none.
const STANDS: Duration = Duration::from_millis(50);

/// By so much more than its time nothing takes longer but what was held up here, as by a large push.
const HELD_UP: Duration = Duration::from_millis(100);

/// Asks an endpoint.
pub(super) async fn ask(
    pools: &Pools,
    cluster: &Arc<ClusterHandle>,
    endpoint: &Arc<EndpointState>,
    check: &HealthCheck,
) -> Said {
    let began = Instant::now();
    let said = once(pools, cluster, endpoint, check).await;
    let ours = |failed: &Failed| failed.network && began.elapsed() > check.timeout + HELD_UP;
    said.filter(|said| !said.as_ref().is_err_and(ours))
}

async fn once(
    pools: &Pools,
    cluster: &Arc<ClusterHandle>,
    endpoint: &Arc<EndpointState>,
    check: &HealthCheck,
) -> Said {
    match &check.how {
        CheckHow::Http(http) => {
            let call = request(http, cluster).map(|head| {
                let framing = match http.method.as_str() {
                    "POST" | "PUT" | "PATCH" => Framing::Length(0),
                    _ => Framing::None,
                };
                call_of(cluster, head, (framing, Bytes::new()), check.timeout)
            });
            answered(pools, call, endpoint, |answer| by_status(http, &answer)).await
        }
        CheckHow::Grpc(grpc) => {
            let call = question(grpc, cluster).map(|(head, body)| {
                call_of(cluster, head, (Framing::Length(body.len() as u64), body), check.timeout)
            });
            answered(pools, call, endpoint, |answer| by_word(&answer)).await
        }
        CheckHow::Tcp(tcp) => {
            match timeout(check.timeout, connected(pools, cluster, endpoint, tcp, check)).await {
                Ok(said) => said,
                Err(_) => silent(format!("no answer within {:?}", check.timeout)),
            }
        }
    }
}

fn silent(why: String) -> Said {
    Some(Err(Failed { why, at_once: false, network: true }))
}

/// What is against the endpoint; what is ours says nothing of it, nor does its sidecar when it has no room for the check.
fn broken(failure: &Failure) -> Said {
    let ours = match failure.kind {
        FailureKind::Overload | FailureKind::Overflow { .. } | FailureKind::Internal => true,
        FailureKind::TlsFailed => failure.side == Side::Local,
        _ => false,
    };
    if ours {
        tracing::debug!(%failure, "an endpoint could not be checked");
        return None;
    }
    // The word of its sidecar, such as of a policy, is an answer.
    let network = failure.side != Side::Local;
    Some(Err(Failed { why: failure.detail.clone().into_owned(), at_once: false, network }))
}

async fn answered(
    pools: &Pools,
    call: Result<Call, EditError>,
    endpoint: &Arc<EndpointState>,
    judge: impl FnOnce(Answer) -> Result<(), Failed>,
) -> Said {
    let call = match call {
        Ok(call) => call,
        Err(error) => return silent(format!("the check cannot be sent: {error}")),
    };
    match call::to_endpoint(pools, call, endpoint).await {
        Ok(answer) => Some(judge(answer)),
        Err(failure) => broken(&failure),
    }
}

fn call_of(
    cluster: &Arc<ClusterHandle>,
    head: RequestHead,
    (framing, body): (Framing, Bytes),
    timeout: Duration,
) -> Call {
    // Nobody looks at it: where it goes is said.
    let original = (std::net::SocketAddr::from(([0, 0, 0, 0], 0)), Reach::Network);
    let (cluster, trailers, hash, again) = (cluster.clone(), None, None, true);
    Call { cluster, head, framing, body, trailers, original, hash, timeout, again, most: MOST }
}

/// What is asked for by name: what the check says, or the cluster, whose name may have what no authority has.
fn authority(said: &str, cluster: &ClusterHandle) -> String {
    if !said.is_empty() {
        return said.to_owned();
    }
    let fits = |c: char| if c.is_ascii_alphanumeric() || ".-:".contains(c) { c } else { '_' };
    cluster.name.chars().map(fits).collect()
}

fn request(http: &HttpCheck, cluster: &ClusterHandle) -> Result<RequestHead, EditError> {
    let authority = authority(&http.host, cluster);
    let mut head = RequestHead::H1(H1Request::new(&http.method, &http.path, &authority)?);
    head.set("user-agent", USER_AGENT)?;
    Ok(head)
}

fn by_status(http: &HttpCheck, answer: &Answer) -> Result<(), Failed> {
    let status = answer.head.status();
    if http.expects(status) {
        return Ok(());
    }
    let why = format!("{} {} was answered {status}", http.method, http.path);
    Err(Failed { why, at_once: !http.retries(status), network: false })
}

fn question(grpc: &GrpcCheck, cluster: &ClusterHandle) -> Result<(RequestHead, Bytes), EditError> {
    let authority = authority(&grpc.authority, cluster);
    let mut head = grpc::unary(CHECK, &authority, None)?;
    head.set("user-agent", USER_AGENT)?;
    Ok((head, grpc::check_message(&grpc.service)))
}

/// SERVING is well; everything else it says is not, at once.
fn by_word(answer: &Answer) -> Result<(), Failed> {
    let why = match (answer.head.status(), answer.grpc_status(), grpc::serving(&answer.body)) {
        (200, Some(0), Some(true)) => return Ok(()),
        (200, Some(0), _) => "it says that it is not SERVING".to_owned(),
        (200, Some(status), _) => format!("it was answered with grpc-status {status}"),
        (200, None, _) => "the answer has no grpc-status".to_owned(),
        (status, ..) => format!("it was answered {status}"),
    };
    Err(Failed { why, at_once: true, network: false })
}

async fn connected(
    pools: &Pools,
    cluster: &Arc<ClusterHandle>,
    endpoint: &Arc<EndpointState>,
    tcp: &TcpCheck,
    check: &HealthCheck,
) -> Said {
    let mut connected = match connect::connect(pools.way(), cluster, endpoint, (Protocol::Tcp, None)).await {
        Ok(connected) => connected,
        Err(failure) => return broken(&failure),
    };
    let stream = &mut connected.stream;
    let talked = match tcp.send.is_empty() && tcp.receive.is_empty() {
        true if !cluster.uses_mesh(endpoint) => Ok(()),
        true => stands(stream, check.timeout / 2).await,
        false => talk(stream, tcp).await,
    };
    match talked {
        Ok(()) => Some(Ok(())),
        Err(why) => silent(why),
    }
}

/// Whether the peer's sidecar leaves the connection open, as it does where its application took one.
async fn stands(stream: &mut Stream, most: Duration) -> Result<(), String> {
    let wait = stream.tcp().and_then(rtt::of).map_or(STANDS, |rtt| (rtt * 3).max(STANDS));
    match timeout(wait.min(most), stream.read(&mut [0; 1])).await {
        Ok(Ok(0)) => Err("the connection was closed at once: the application takes none".into()),
        Ok(Err(error)) => Err(format!("the connection broke at once: {error}")),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

async fn talk(stream: &mut Stream, tcp: &TcpCheck) -> Result<(), String> {
    let broke = |error: std::io::Error| format!("the connection broke: {error}");
    stream.write_all(&tcp.send).await.map_err(broke)?;
    stream.flush().await.map_err(broke)?;
    let mut came = BytesMut::new();
    while !has_all(&came, &tcp.receive) {
        if came.len() >= MOST {
            return Err(format!("what must come is not among the first {MOST} bytes"));
        }
        if stream.read_buf(&mut came).await.map_err(broke)? == 0 {
            return Err(format!(
                "the connection was closed after {} bytes, without what must come",
                came.len()
            ));
        }
    }
    Ok(())
}

/// Whether all parts are there in their order, whatever is between them.
fn has_all(mut bytes: &[u8], parts: &[Vec<u8>]) -> bool {
    parts.iter().all(|part| match memmem::find(bytes, part) {
        Some(at) => {
            bytes = &bytes[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::h1::H1Response;
    use crate::http::head::ResponseHead;
    use crate::http::respond::ERROR_HEADER;

    #[test]
    fn a_sidecar_that_has_no_room_says_nothing_of_its_application() {
        let said = |status, word: &str| {
            let mut head = ResponseHead::H1(H1Response::new(status, Framing::None));
            head.set(ERROR_HEADER, format!("side=local; hop=catalog; stage=route; {word}")).unwrap();
            let address = ([10, 0, 0, 1], 80).into();
            broken(&call::word_of_sidecar(&head, address))
        };
        for word in [
            "reason=rate_limited; detail=\"100 per 1s\"",
            "reason=overload; reached=no",
            "reason=overflow",
            "reason=concurrency_limit; reached=no; limit=adaptive_concurrency:3",
        ] {
            assert_eq!(said(429, word), None, "{word}");
        }
        let network = |said: Said| said.unwrap().unwrap_err().network;
        assert!(!network(said(403, "reason=denied")), "an answer");
        assert!(!network(said(504, "reason=upstream_timeout; detail=\"reason=overload\"")));
        assert!(
            network(said(503, "reason=connect_failed; reached=no")),
            "the application takes no connection"
        );
    }

    #[test]
    fn parts_are_found_in_their_order() {
        let parts = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().to_vec()).collect::<Vec<_>>();
        assert!(has_all(b"", &[]));
        assert!(has_all(b"220 ready, go on", &parts(&["220", "go"])));
        assert!(!has_all(b"go 220", &parts(&["220", "go"])));
        assert!(!has_all(b"220", &parts(&["220", "220"])), "each for itself");
    }
}
