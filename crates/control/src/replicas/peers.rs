//! The other replicas: where they are, and what they answer.
//!
//! The endpoints of the control plane's Service are all of them; those of other revisions are endpoints of Services that have the same label. They
//! are asked over mTLS at the xDS port, by our own identity, which nobody
//! else is given; who does not answer is said.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::api::ListParams;
use kube::{Api, Client};
use outrigger_identity::{ControlPeer, ControlPlane, CredentialStore, IdentityError};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

/// For the API server's answer, and for that of a replica.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));
/// How long it is remembered where they are.
const FRESH: Duration = Duration::from_secs(2);
/// Bytes of an answer: 100,000 proxies with what they refuse.
const MOST: usize = 64 << 20;
/// Replicas that are asked; more are said to be too many.
const MOST_PEERS: usize = 16;
/// How the port for xDS is called in the Service.
const PORT: &str = "tls-xds";
const OF_SERVICE: &str = "kubernetes.io/service-name";
/// Of the Services of all revisions that share an authority; their slices have it, too.
const AMONG: &str = "outrigger.io/control-planes";

/// Where replicas are looked for, and which of them this is.
pub(super) struct Place {
    pub(super) namespace: Arc<str>,
    pub(super) service: String,
    /// Of the label that Services of all revisions have.
    pub(super) among: String,
    pub(super) name: Arc<str>,
}

/// Another replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its Pod's.
    pub(crate) name: String,
    /// Its xDS port.
    pub(crate) address: SocketAddr,
    /// It is about to go: nobody misses it.
    leaving: bool,
    /// Of this revision: whoever comes by its Service may come here as well.
    own: bool,
}

/// All others.
pub(crate) struct Peers {
    api: Api<EndpointSlice>,
    place: Place,
    peer: ControlPeer,
    credentials: CredentialStore,
    found: Mutex<Option<(Instant, Vec<Peer>)>>,
}

/// What all others answer, and who does not, and why.
#[derive(Debug)]
pub(crate) struct Answers<T> {
    /// By the name of the replica.
    pub(crate) said: Vec<(String, T)>,
    pub(crate) silent: Vec<(String, String)>,
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self { said: Vec::new(), silent: Vec::new() }
    }
}

impl Peers {
    pub(super) fn new(
        client: Client,
        place: Place,
        trust_domain: &str,
        credentials: CredentialStore,
    ) -> Result<Self, IdentityError> {
        let api = Api::namespaced(client, &place.namespace);
        let peer = ControlPeer::outrigger(trust_domain)?;
        Ok(Self { api, place, peer, credentials, found: Mutex::default() })
    }

    /// Looks where they are.
    pub(super) async fn find(&self) {
        if let Err(why) = self.others().await {
            tracing::debug!(why, "where the other replicas are is not known");
        }
    }

    /// Whether one that was found is of this revision.
    pub(super) fn is_own(&self, name: &str) -> bool {
        let found = self.found.lock();
        found.iter().flat_map(|(_, peers)| peers).any(|peer| peer.own && peer.name == name)
    }

    /// Asks all others.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str) -> Answers<T> {
        let mut answers = Answers::default();
        let others = match self.others().await {
            Ok(others) => others,
            Err(why) => {
                answers.silent.push(("of unknown address".to_owned(), why));
                return answers;
            }
        };
        let asked = others.iter().take(MOST_PEERS).map(|peer| self.asked(peer, path));
        for (peer, answer) in others.iter().zip(join_all(asked).await) {
            match answer {
                Ok(said) => answers.said.push((peer.name.clone(), said)),
                Err(why) if peer.leaving => {
                    tracing::debug!(replica = peer.name, why, "a replica that is leaving does not answer");
                }
                Err(why) => answers.silent.push((peer.name.clone(), why)),
            }
        }
        let unasked = others.iter().skip(MOST_PEERS);
        let why = || format!("more than {MOST_PEERS} replicas are not asked");
        answers.silent.extend(unasked.map(|peer| (peer.name.clone(), why())));
        answers
    }

    async fn asked<T: DeserializeOwned>(&self, peer: &Peer, path: &str) -> Result<T, String> {
        let answer = timeout(PATIENCE.1, self.fetch(peer, path)).await;
        let body = answer.map_err(|_| format!("no answer within {:?}", PATIENCE.1))??;
        serde_json::from_slice(&body).map_err(|error| format!("its answer cannot be read: {error}"))
    }

    async fn fetch(&self, peer: &Peer, path: &str) -> Result<Bytes, String> {
        let address = [peer.address.to_string()];
        let to = ControlPlane::new(&address, self.peer.clone(), self.credentials.clone());
        let stream = to.map_err(|error| error.to_string())?.connect().await;
        let io = TokioIo::new(stream.map_err(|error| error.to_string())?);
        let shaken = http2::handshake(TokioExecutor::new(), io).await;
        let (mut send, connection) = shaken.map_err(|error| error.to_string())?;
        let talk = async {
            let uri = format!("https://{}{path}", peer.address);
            let request = Request::get(uri).body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
            let response = send.send_request(request).await.map_err(|error| error.to_string())?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            match status {
                StatusCode::OK => Ok(body),
                // One of a release before there were such questions.
                StatusCode::NOT_FOUND => {
                    Err("it does not know the question: it is of another release".to_owned())
                }
                status => Err(format!("it answers {status}")),
            }
        };
        tokio::pin!(connection);
        tokio::select! {
            said = talk => said,
            ended = &mut connection => Err(ended.err().map_or_else(|| "it hung up".to_owned(), |error| error.to_string())),
        }
    }

    /// Where the others are; while the API server is away, where they were.
    async fn others(&self) -> Result<Vec<Peer>, String> {
        let known = self.found.lock().clone();
        if let Some((_, others)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(others.clone());
        }
        let labelled = |label: &str, value: &str| ListParams::default().labels(&format!("{label}={value}"));
        let all = [labelled(OF_SERVICE, &self.place.service), labelled(AMONG, &self.place.among)];
        let asked = try_join_all(all.iter().map(|params| self.api.list(params)));
        let listed = match timeout(PATIENCE.0, asked).await {
            Ok(Ok(lists)) => Ok(lists.into_iter().flat_map(|list| list.items)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the API server did not say within {:?} where they are", PATIENCE.0)),
        };
        match (listed, known) {
            (Ok(slices), _) => {
                let mut others: Vec<Peer> = slices.flat_map(|slice| self.place.peers(&slice)).collect();
                others.sort_by(|a, b| (&a.name, !a.own, a.address).cmp(&(&b.name, !b.own, b.address)));
                others.dedup_by(|a, b| a.name == b.name);
                *self.found.lock() = Some((Instant::now(), others.clone()));
                Ok(others)
            }
            (Err(_), Some((_, others))) => {
                // Whoever asks next need not wait for the same again.
                *self.found.lock() = Some((Instant::now(), others.clone()));
                Ok(others)
            }
            (Err(why), None) => Err(why),
        }
    }
}

impl Place {
    /// Those of a slice.
    fn peers(&self, slice: &EndpointSlice) -> Vec<Peer> {
        let ports = slice.ports.iter().flatten();
        let port = ports.filter(|port| port.name.as_deref() == Some(PORT)).find_map(|port| port.port);
        let Some(port) = port.and_then(|port| u16::try_from(port).ok()) else { return Vec::new() };
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(OF_SERVICE));
        let own = service.is_some_and(|service| *service == self.service);
        let of = |endpoint: &Endpoint| {
            let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            let target = endpoint.target_ref.as_ref().and_then(|target| target.name.clone());
            let name = target.or_else(|| endpoint.hostname.clone()).unwrap_or_else(|| address.to_string());
            let terminating = endpoint.conditions.as_ref().and_then(|all| all.terminating);
            let leaving = terminating == Some(true);
            (name != *self.name).then(|| Peer { name, address: SocketAddr::new(address, port), leaving, own })
        };
        slice.endpoints.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn those_of_another_revision_are_known_and_are_no_place_to_go() {
        let place = Place {
            namespace: "system".into(),
            service: "control-new".into(),
            among: "control".into(),
            name: "control-new-0".into(),
        };
        let slice = |service: &str, pods: &[&str]| {
            let endpoints: Vec<_> = pods
                .iter()
                .map(|pod| json!({"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": pod}}))
                .collect();
            let slice = json!({
                "addressType": "IPv4", "metadata": {"labels": {OF_SERVICE: service, AMONG: "control"}}, "endpoints": endpoints,
                "ports": [{"name": "http-metrics", "port": 15014}, {"name": PORT, "port": 15012}],
            });
            let peers = place.peers(&serde_json::from_value(slice).unwrap());
            peers.into_iter().map(|peer| (peer.name, peer.address.port(), peer.own)).collect::<Vec<_>>()
        };
        let own = slice("control-new", &["control-new-0", "control-new-1"]);
        assert_eq!(own, [("control-new-1".to_owned(), 15012, true)], "but for itself");
        assert_eq!(slice("control", &["control-0"]), [("control-0".to_owned(), 15012, false)]);
    }
}
