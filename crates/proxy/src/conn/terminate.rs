//! Termination of mesh mTLS. The configuration is chosen from the ClientHello that `detect` parsed: which ALPN name we answer
//! depends on what the client offered, and a client without a common name is served without one.

use std::rc::Rc;

use outrigger_identity::{CertificateProblem, IdentityError, peer_identity};
use outrigger_model::listener::ServerTls;
use tokio::time::timeout;

use super::HANDSHAKE_TIMEOUT;
use crate::detect::Hello;
use crate::downstream::ConnInfo;
use crate::failure::{Failure, FailureKind, Stage};
use crate::protocol::HttpVersion;
use crate::stream::{Stream, Tls, Unanswered};
use crate::worker::Worker;

/// A connection whose TLS is terminated.
pub(super) struct Terminated {
    pub stream: Unanswered,
    /// What ALPN says about the inside.
    pub version: Option<HttpVersion>,
}

/// Names that we understand, beyond those of the configuration none is ever answered: `istio-peer-exchange` begins a
/// binary preface.
const UNDERSTOOD: [&str; 5] = ["istio-h2", "istio-http/1.1", "h2", "http/1.1", "istio"];

/// The first name of ours that the client offers.
fn answer<'t>(ours: &'t [String], hello: &Hello) -> Option<&'t str> {
    let understood = |name: &&String| UNDERSTOOD.contains(&name.as_str());
    ours.iter().filter(understood).find(|name| hello.offers(name.as_bytes())).map(String::as_str)
}

/// Terminates the mesh's mTLS; the peer's identity goes into `info`.
pub(super) async fn mesh(
    worker: &Rc<Worker>,
    tls: &ServerTls,
    hello: &Hello,
    stream: Unanswered,
    info: &mut ConnInfo,
) -> Result<Terminated, Failure> {
    let ServerTls::Mesh { alpn } = tls;
    let chosen = answer(alpn, hello);
    let names: Vec<&[u8]> = chosen.iter().map(|name| name.as_bytes()).collect();
    // Before the handshake: what changes during it is judged when the connection is registered.
    info.verified_by = worker.process.credentials.trust();
    let config = worker.way.tls.borrow_mut().accept(&names).map_err(|error| not_ours(&error))?;
    let (prefix, stream) = stream.split_prefix();
    // How a handshake fails, TLS itself says.
    let Stream::Tcp(tcp) = stream.answer() else {
        let detail = "TLS would have to be terminated inside of TLS";
        return Err(Failure::local(Stage::Terminate, FailureKind::Internal, detail));
    };
    let (tls, peer) = match timeout(HANDSHAKE_TIMEOUT, Tls::accept(config, tcp, &prefix)).await {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            let reason =
                CertificateProblem::find(&error).map_or_else(|| error.to_string(), ToString::to_string);
            return Err(Failure::downstream(Stage::Terminate, FailureKind::DownstreamTls, reason));
        }
        Err(_) => {
            let detail = format!("the TLS handshake was not finished within {HANDSHAKE_TIMEOUT:?}");
            return Err(Failure::downstream(Stage::Terminate, FailureKind::DownstreamTls, detail));
        }
    };
    let stream = Unanswered::from(Stream::Tls(Box::new(tls)));
    let identity = peer_identity(&peer.certificates).map_err(|problem| {
        Failure::downstream(Stage::Terminate, FailureKind::DownstreamTls, problem.to_string())
    })?;
    info.certificates = worker.connections.chains.intern(peer.certificates);
    info.peer = Some(identity);
    info.mtls = true;
    worker.connections.note_sidecar(info.source.ip());
    let version = match chosen {
        Some("istio-h2" | "h2") => Some(HttpVersion::Http2),
        Some("istio-http/1.1" | "http/1.1") => Some(HttpVersion::Http1),
        _ => None,
    };
    Ok(Terminated { stream, version })
}

fn not_ours(error: &IdentityError) -> Failure {
    Failure::local(Stage::Terminate, FailureKind::DownstreamTls, error.to_string())
}

/// A client without TLS where mTLS is required.
pub(super) fn plain_text(info: &ConnInfo) -> Failure {
    let detail = format!(
        "{} requires mTLS (STRICT), and {} sent plain text; give the client a sidecar, or set the mode to PERMISSIVE",
        info.listener.name(),
        info.source
    );
    Failure::downstream(Stage::Terminate, FailureKind::PlainText, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(names: &[&str]) -> Hello {
        Hello { server_name: None, alpn: names.iter().map(|n| n.as_bytes().into()).collect() }
    }

    #[test]
    fn the_answer_is_our_first_choice_among_what_is_offered() {
        let ours: Vec<String> = UNDERSTOOD.iter().map(|n| (*n).to_owned()).collect();
        assert_eq!(answer(&ours, &offered(&["istio-http/1.1", "istio", "http/1.1"])), Some("istio-http/1.1"));
        assert_eq!(answer(&ours, &offered(&["istio-h2", "istio", "h2"])), Some("istio-h2"));
        assert_eq!(answer(&ours, &offered(&["h2", "http/1.1"])), Some("h2"));
        assert_eq!(answer(&ours, &offered(&["spdy/3"])), None);
    }

    #[test]
    fn peer_exchange_is_never_answered() {
        let ours = ["istio-peer-exchange".to_owned(), "istio".to_owned()];
        assert_eq!(answer(&ours, &offered(&["istio-peer-exchange", "istio"])), Some("istio"));
    }
}
