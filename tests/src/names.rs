//! A name server that says what a test says, over UDP and TCP.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

/// The server; it ends with this value.
pub struct NameServer {
    /// Where it listens.
    pub address: SocketAddr,
    zone: Arc<Mutex<BTreeMap<String, Said>>>,
    tasks: [JoinHandle<()>; 2],
}

#[derive(Clone)]
enum Said {
    Addresses(Vec<IpAddr>),
    Code(ResponseCode),
}

impl NameServer {
    /// A server that knows no name yet.
    pub async fn start(address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("it is bound");
        let socket = UdpSocket::bind(address).await.expect("the address is free");
        let zone = Arc::<Mutex<BTreeMap<String, Said>>>::default();
        let (over_udp, over_tcp) = (zone.clone(), zone.clone());
        let datagrams = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&over_udp, &buffer[..length]) {
                    let _ = socket.send_to(&answer, peer).await;
                }
            }
        });
        let streams = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Ok(length) = stream.read_u16().await else { continue };
                let mut query = vec![0; usize::from(length)];
                if stream.read_exact(&mut query).await.is_ok()
                    && let Some(answer) = answer(&over_tcp, &query)
                {
                    let _ = stream.write_u16(answer.len() as u16).await;
                    let _ = stream.write_all(&answer).await;
                }
            }
        });
        Self { address, zone, tasks: [datagrams, streams] }
    }

    /// The addresses of a name from now on, for a second.
    pub fn has(&self, name: &str, addresses: &[IpAddr]) {
        self.say(name, Said::Addresses(addresses.to_vec()));
    }

    /// Queries for a name fail from now on.
    pub fn fails(&self, name: &str) {
        self.say(name, Said::Code(ResponseCode::ServFail));
    }

    /// A name exists no longer.
    pub fn lacks(&self, name: &str) {
        self.say(name, Said::Code(ResponseCode::NXDomain));
    }

    fn say(&self, name: &str, said: Said) {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), said);
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn answer(zone: &Mutex<BTreeMap<String, Said>>, query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let name = question.name.to_string().trim_end_matches('.').to_ascii_lowercase();
    let said = zone.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
    let mut answer = query.into_response();
    answer.metadata.recursion_available = true;
    match said.unwrap_or(Said::Code(ResponseCode::NXDomain)) {
        Said::Code(code) => answer.metadata.response_code = code,
        Said::Addresses(addresses) => {
            for address in addresses {
                let data = match address {
                    IpAddr::V4(v4) => RData::A(A(v4)),
                    IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
                };
                if data.record_type() == question.query_type {
                    answer.add_answer(Record::from_rdata(question.name.clone(), 1, data));
                }
            }
        }
    }
    answer.to_vec().ok()
}
