use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, SRV};
use hickory_proto::rr::{Name, RData, Record};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::*;
use crate::registry::Word;
use crate::registry::health::RegistryState;

type Zone = Arc<Mutex<BTreeMap<String, Vec<(u32, RData)>>>>;

fn a(last: u8) -> RData {
    RData::A(A(Ipv4Addr::new(10, 0, 0, last)))
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, Name::from_ascii(target).unwrap()))
}

/// A nameserver that knows a zone; a name that it does not know is no name.
struct Server {
    address: SocketAddr,
    zone: Zone,
}

fn answer(zone: &Zone, query: &[u8]) -> Message {
    let query = Message::from_vec(query).unwrap();
    let asked = query.queries[0].clone();
    let mut answer = query.into_response();
    match zone.lock().get(asked.name.to_string().trim_end_matches('.')) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(records) if records.is_empty() => answer.metadata.response_code = ResponseCode::ServFail,
        Some(records) => {
            for (ttl, data) in records.iter().filter(|(_, data)| data.record_type() == asked.query_type) {
                answer.add_answer(Record::from_rdata(asked.name.clone(), *ttl, data.clone()));
            }
        }
    }
    answer
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(address).await.unwrap();
        let zone = Zone::default();
        let (udp, tcp) = (zone.clone(), zone.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let answer = answer(&udp, &buffer[..length]);
                let bytes = answer.to_vec().unwrap();
                let bytes = if bytes.len() > 1232 { answer.truncate().to_vec().unwrap() } else { bytes };
                // What is not the answer comes first, and is passed over.
                socket.send_to(&[0; 12], peer).await.unwrap();
                socket.send_to(&bytes, peer).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut query).await.unwrap();
                let answer = answer(&tcp, &query).to_vec().unwrap();
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        Self { address, zone }
    }

    fn has(&self, name: &str, records: Vec<(u32, RData)>) {
        self.zone.lock().insert(name.to_owned(), records);
    }

    fn resolver(&self) -> Resolver {
        Resolver::open(vec![self.address]).unwrap()
    }
}

fn service(service: &str, name: &str, port: Option<u16>) -> DnsService {
    DnsService {
        service: service.into(),
        namespace: "shop".into(),
        name: name.into(),
        port,
        protocol: Protocol::Http,
        sidecar: false,
        service_account: None,
    }
}

#[tokio::test]
async fn addresses_and_srv_are_found_also_over_tcp_with_the_shortest_ttl() {
    let server = Server::start().await;
    server.has("stock.example", (1..=120).map(|last| (40 + u32::from(last), a(last))).collect());
    let Answer { found, ttl, .. } = server.resolver().look_up("stock.example", Some(8080)).await.unwrap();
    assert_eq!((found.len(), found[0].at, ttl.as_secs()), (120, "10.0.0.1:8080".parse().unwrap(), 41));
    let targets = vec![
        (60, srv(10, 3, 8001, "one.example.")),
        (60, srv(10, 0, 8002, "two.example.")),
        (60, srv(20, 9, 8003, "reserve.example.")),
    ];
    server.has("_cart._tcp.example", targets);
    server.has("one.example", vec![(30, a(1))]);
    server.has("two.example", vec![(90, a(2))]);
    let answer = server.resolver().look_up("_cart._tcp.example", None).await.unwrap();
    let Answer { found, ttl, lacking: None } = answer else { panic!("{answer:?}") };
    let found: Vec<_> = found.iter().map(|found| (found.at.to_string(), found.weight)).collect();
    assert_eq!(found, [("10.0.0.1:8001".to_owned(), 3), ("10.0.0.2:8002".to_owned(), 1)]);
    assert_eq!(ttl.as_secs(), 30);
    // A target that is not there is passed over, and told; one that nobody answers for is no answer: the others would have its share.
    server.zone.lock().remove("two.example");
    let answer = server.resolver().look_up("_cart._tcp.example", None).await.unwrap();
    assert!(answer.found.len() == 1 && answer.lacking.is_some_and(|why| why.contains("two.example")));
    server.has("two.example", Vec::new());
    let silent = server.resolver().look_up("_cart._tcp.example", None).await.unwrap_err();
    assert!(matches!(&silent, Fault::Silent(why) if why.contains("two.example")), "{silent:?}");
    server.has("_none._tcp.example", vec![(60, srv(0, 0, 0, "."))]);
    let none = server.resolver().look_up("_none._tcp.example", None).await.unwrap_err();
    assert!(matches!(&none, Fault::None(why) if why.contains("no SRV")), "{none:?}");
}

#[tokio::test]
async fn addresses_of_both_families_are_found() {
    let server = Server::start().await;
    let v6 = RData::AAAA("fd00::7".parse::<std::net::Ipv6Addr>().unwrap().into());
    server.has("stock.example", vec![(60, a(1)), (60, v6)]);
    let found = server.resolver().look_up("stock.example", Some(80)).await.unwrap().found;
    let found: Vec<_> = found.iter().map(|found| found.at.to_string()).collect();
    assert_eq!(found, ["10.0.0.1:80", "[fd00::7]:80"]);
}

#[tokio::test]
async fn a_start_does_not_wait_for_a_name_that_nobody_answers_for() {
    let server = Server::start().await;
    server.has("stock.example", vec![(60, a(1))]);
    server.has("cart.example", Vec::new());
    let services =
        vec![service("stock", "stock.example", Some(80)), service("cart", "cart.example", Some(80))];
    let (voice, mut words) = Voice::of_a_test();
    let health = voice.health.clone();
    let dns = Dns::new(DnsSettings { servers: vec![server.address], services });
    let _task = tokio::spawn(crate::registry::opened::keep(dns, voice));
    let Some(Word::Event(source, _)) = words.recv().await else { panic!("nothing is said") };
    assert_eq!(source.part, "shop/stock");
    assert!(matches!(words.recv().await, Some(Word::Whole)));
    let problems = health.state().problems;
    assert!(problems.iter().any(|problem| problem.to_string().contains("cart.example")), "{problems:?}");
}

#[tokio::test]
async fn a_name_that_fails_or_is_gone_keeps_what_it_had_and_is_told() {
    let server = Server::start().await;
    server.has("stock.example", vec![(1, a(1))]);
    server.has("cart.example", vec![(1, a(2))]);
    let settings = DnsSettings {
        servers: vec![server.address],
        services: vec![
            service("stock", "stock.example", Some(80)),
            service("cart", "cart.example", Some(80)),
        ],
    };
    settings.validate().unwrap();
    let (voice, mut words) = Voice::of_a_test();
    let health = voice.health.clone();
    let _task = tokio::spawn(crate::registry::opened::keep(Dns::new(settings), voice));
    let mut next = async |wanted: &str| loop {
        match words.recv().await.unwrap() {
            Word::Event(source, Event::Reset(items)) => {
                let Item::Instance(instance) = &items[0] else { panic!("{items:?}") };
                let said = format!("{} {} {}", source.part, items.len(), instance.id);
                if said == wanted {
                    return;
                }
            }
            Word::Whole if wanted == "whole" => return,
            _ => {}
        }
    };
    next("whole").await;
    let until = async |is: &dyn Fn(&RegistryState) -> bool| {
        health.subscribe().wait_for(is).await.unwrap();
    };
    let told = async |text: &str| {
        until(&|state| state.problems.iter().any(|problem| problem.to_string().contains(text))).await;
    };
    server.zone.lock().remove("stock.example");
    told("shop/stock: stock.example.: there is no such name").await;
    // The other goes on, and nothing is said of the first until it is back.
    server.has("cart.example", vec![(1, a(3))]);
    next("shop/cart 1 10.0.0.3:80@cart.shop").await;
    server.has("stock.example", Vec::new());
    told("shop/stock: stock.example. A: no nameserver answers").await;
    server.has("stock.example", vec![(1, a(4))]);
    next("shop/stock 1 10.0.0.4:80@stock.shop").await;
    until(&|state| state.problems.is_empty()).await;
    // That none is there any more is an answer; that nobody answers for any is none.
    server.zone.lock().clear();
    until(&|state| state.problems.len() == 2).await;
    assert!(health.state().connected);
    server.has("stock.example", Vec::new());
    server.has("cart.example", Vec::new());
    until(&|state| !state.connected).await;
    assert!(health.state().error.unwrap().message.contains("no nameserver answers"));
}

#[test]
fn what_cannot_work_is_refused_by_name() {
    let broken = |service: DnsService| {
        DnsSettings { servers: Vec::new(), services: vec![service] }.validate().unwrap_err()
    };
    assert!(broken(service("Stock", "stock.example", None)).contains("service"));
    assert!(broken(service("stock", "", None)).contains("services[0].name"));
    assert!(broken(service("stock", "stock.example", Some(0))).contains("services[0].port"));
    let twice = vec![service("stock", "a.example", None), service("stock", "b.example", None)];
    let twice = DnsSettings { servers: Vec::new(), services: twice }.validate().unwrap_err();
    assert!(twice.contains("shop/stock occurs twice"));
}
