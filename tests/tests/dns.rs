//! DNS beside a workload: mesh names in every spelling, names of the world, services that come and go, an outage.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use outrigger_tests::app::get;
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::eventually;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::BINARY;
use crate::thin_thread::{catalog, web};

const WHOLE: &str = "catalog.shop.svc.cluster.local";
const LONG: Duration = Duration::from_secs(20);

/// A resolver of the world: `*.example` has addresses, `long.example` many, everything else does not exist.
pub(crate) struct World {
    asked: Arc<AtomicUsize>,
}

impl World {
    pub(crate) async fn start(address: SocketAddr) -> Self {
        let (listener, socket) =
            (TcpListener::bind(address).await.unwrap(), UdpSocket::bind(address).await.unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let (over_udp, over_tcp) = (asked.clone(), asked.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                over_udp.fetch_add(1, SeqCst);
                let answer = Self::answer(&buffer[..length]);
                let answer = if answer.to_vec().unwrap().len() > 512 { answer.truncate() } else { answer };
                let _ = socket.send_to(&answer.to_vec().unwrap(), peer).await;
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                over_tcp.fetch_add(1, SeqCst);
                let Ok(length) = stream.read_u16().await else { continue };
                let mut query = vec![0; usize::from(length)];
                if stream.read_exact(&mut query).await.is_ok() {
                    let answer = Self::answer(&query).to_vec().unwrap();
                    let _ = stream.write_u16(answer.len() as u16).await;
                    let _ = stream.write_all(&answer).await;
                }
            }
        });
        Self { asked }
    }

    fn answer(query: &[u8]) -> Message {
        let mut answer = Message::from_vec(query).unwrap().into_response();
        let name = answer.queries[0].name.clone();
        let text = name.to_string().to_ascii_lowercase();
        let count = match text.as_str() {
            "long.example." => 100,
            _ if text.ends_with(".example.") && !text.ends_with("corp.example.") => 1,
            _ => 0,
        };
        for i in 0..count {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, i)));
            answer.add_answer(Record::from_rdata(name.clone(), 5, data));
        }
        if count == 0 {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer
    }
}

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message
}

/// Over UDP, as bytes.
async fn raw(server: SocketAddr, query: &[u8]) -> Vec<u8> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.unwrap();
    let mut answer = vec![0; 65_535];
    // Datagrams may be lost: asked again, as every client does.
    for _ in 0..4 {
        socket.send_to(query, server).await.unwrap();
        if let Ok(received) = timeout(LONG / 4, socket.recv_from(&mut answer)).await {
            let (length, from) = received.unwrap();
            assert_eq!(from, server);
            answer.truncate(length);
            return answer;
        }
    }
    panic!("no answer from {server}")
}

async fn udp(server: SocketAddr, query: &Message) -> Message {
    let answer = Message::from_vec(&raw(server, &query.to_vec().unwrap()).await).unwrap();
    assert_eq!((answer.id, &answer.queries), (query.id, &query.queries));
    answer
}

pub(crate) async fn tcp(server: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = query.to_vec().unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()).await.unwrap();
    let length = timeout(LONG, stream.read_u16()).await.unwrap().unwrap();
    let mut answer = vec![0; usize::from(length)];
    timeout(LONG, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!((answer.id, &answer.queries), (query.id, &query.queries));
    answer
}

pub(crate) async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    udp(server, &question(name, kind)).await
}

pub(crate) fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}

pub(crate) fn is_virtual(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[0] == 240 && v4.octets()[1] >= 240,
        IpAddr::V6(v6) => v6.segments()[..3] == [0x2001, 2, 0],
    }
}

/// Waits until a name has an address of the mesh, or of nobody.
async fn until(server: SocketAddr, name: &str, there: bool) -> Vec<IpAddr> {
    eventually(&format!("{name} is there: {there}"), || async {
        let answer = ask(server, name, RecordType::A).await;
        let found = addresses(&answer);
        if found.iter().any(|a| is_virtual(*a)) == there { Ok(found) } else { Err(answer.to_string()) }
    })
    .await
}

/// A mesh with a web whose sidecar resolves, and the world behind it.
async fn scene(calls: &'static [&'static str]) -> (Mesh, Sidecar, SocketAddr, World) {
    let mut mesh = Mesh::start(BINARY).await;
    let (server, upstream) = (mesh.address(10, 15053), mesh.address(2, 53));
    let world = World::start(upstream).await;
    mesh.bootstrap = json!({
        "dns": {
            "bind": [server],
            "upstream": [upstream],
            "search": ["shop.svc.cluster.local", "svc.cluster.local", "corp.example"],
        }
    });
    let web = mesh.workload(&web(calls)).await;
    mesh.bootstrap = json!({});
    (mesh, web, server, world)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_resolves_the_mesh_in_every_spelling_and_the_world_behind_it() {
    let (mesh, web, server, world) = scene(&[]).await;
    mesh.register(&catalog("v1", 11)).await;
    let v4 = until(server, WHOLE, true).await;
    let v6 = addresses(&ask(server, WHOLE, RecordType::AAAA).await);
    assert!(v4.len() == 1 && v6.len() == 1 && v4[0].is_ipv4() && v6[0].is_ipv6() && is_virtual(v6[0]));
    for name in ["catalog", "catalog.shop", "catalog.shop.svc", "CATALOG.Shop.svc.cluster.LOCAL"] {
        let answer = ask(server, name, RecordType::A).await;
        assert_eq!(addresses(&answer), v4, "{answer}");
        assert_eq!(answer.answers[0].name.to_string(), format!("{name}."), "letters as they were asked");
        assert_eq!(addresses(&tcp(server, &question(name, RecordType::AAAA)).await), v6);
    }
    for name in ["catalog.shop.shop.svc.cluster.local", "catalog.corp.example"] {
        let answer = ask(server, name, RecordType::A).await;
        let RData::CNAME(alias) = &answer.answers[0].data else { panic!("{answer}") };
        assert_eq!((alias.0.to_string(), addresses(&answer)), (format!("{WHOLE}."), v4.clone()));
    }
    let mail = ask(server, "catalog", RecordType::MX).await;
    assert_eq!((mail.response_code, mail.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(mail.authorities[0].record_type(), RecordType::SOA);
    let pointer = ask(server, &Name::from(v4[0]).to_string(), RecordType::PTR).await;
    assert_eq!(pointer.answers[0].data.to_string(), format!("{WHOLE}."));

    let before = world.asked.load(SeqCst);
    let outside = ask(server, "www.example", RecordType::A).await;
    assert_eq!(addresses(&outside), [IpAddr::from([192, 0, 2, 0])]);
    assert_eq!(ask(server, "nowhere.test", RecordType::A).await.response_code, ResponseCode::NXDomain);
    assert_eq!(world.asked.load(SeqCst), before + 2);
    let long = question("long.example", RecordType::A);
    assert!(udp(server, &long).await.truncation);
    assert_eq!(addresses(&tcp(server, &long).await).len(), 100);
    let stats = web.page("/stats/prometheus").await;
    for count in ["{source=\"mesh\",type=\"AAAA\"} 5", "{source=\"negative\",type=\"MX\"} 1"] {
        assert!(stats.contains(&format!("outrigger_dns_requests_total{count}")), "{count}: {stats}");
    }
    let dump = web.page("/config_dump").await;
    assert!(dump.contains(&v4[0].to_string()), "{dump}");
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_that_are_no_queries_do_no_harm() {
    let (mesh, _web, server, _world) = scene(&[]).await;
    mesh.register(&catalog("v1", 11)).await;
    until(server, WHOLE, true).await;
    let good = question("catalog", RecordType::A).to_vec().unwrap();
    let code = |answer: &[u8]| (answer[..2].to_vec(), answer[2] & 0x80, answer[3] & 15);
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(code(&raw(server, &two).await), (good[..2].to_vec(), 0x80, 1), "FORMERR");
    let mut pointer = good.clone();
    pointer[12] = 0xc0;
    assert_eq!(code(&raw(server, &pointer).await), (good[..2].to_vec(), 0x80, 1));
    let mut update = good.clone();
    update[2] = 0x28;
    assert_eq!(code(&raw(server, &update).await), (good[..2].to_vec(), 0x80, 4), "NOTIMP");
    // No answer to an answer, nor to a scrap: what is answered is the query that follows.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut answer = good.clone();
    (answer[0], answer[2]) = (!good[0], 0x81);
    for packet in [&answer[..], &good[..7], b"", &good[..]] {
        socket.send_to(packet, server).await.unwrap();
    }
    let mut buffer = [0; 512];
    let (length, _) = timeout(LONG, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().id.to_be_bytes(), good[..2]);
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(timeout(LONG, stream.read(&mut buffer)).await.unwrap().unwrap_or(0), 0, "closed");
    let mut edns = question("catalog", RecordType::A);
    edns.set_edns(Edns::new().set_max_payload(4096).clone());
    assert!(udp(server, &edns).await.edns.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn services_come_and_go_and_an_outage_keeps_what_is_known() {
    let (mut mesh, mut web, server, _world) = scene(&[]).await;
    until(server, WHOLE, false).await;
    assert_eq!(ask(server, "catalog", RecordType::A).await.response_code, ResponseCode::NXDomain);
    let id = mesh.register(&catalog("v1", 11)).await;
    let first = until(server, "catalog", true).await;
    mesh.client.deregister(&id).await.unwrap();
    until(server, "catalog", false).await;
    mesh.register(&catalog("v1", 11)).await;
    assert_eq!(until(server, "catalog", true).await, first, "the address is the name's");

    let file = mesh.path("web-v1.state/snapshot.json");
    eventually("the host is stored", || {
        let there = std::fs::read_to_string(&file).is_ok_and(|text| text.contains(&first[0].to_string()));
        async move { if there { Ok(()) } else { Err("not written yet") } }
    })
    .await;
    mesh.kill_control();
    assert_eq!(addresses(&ask(server, "catalog", RecordType::A).await), first);
    // Never asked before: after a short wait the world has the word.
    assert_eq!(ask(server, "stock", RecordType::A).await.response_code, ResponseCode::NXDomain);
    assert_eq!(addresses(&ask(server, "www.example", RecordType::A).await).len(), 1);
    web.kill();
    web.start(&mesh).await;
    assert_eq!(addresses(&ask(server, "catalog", RecordType::A).await), first, "from disk");

    mesh.start_control().await;
    let stock = outrigger_tests::mesh::Spec { service: "stock", ..catalog("v1", 12) };
    mesh.register(&stock).await;
    until(server, "stock", true).await;
    assert_eq!(until(server, "catalog", true).await, first);
    assert_eq!(get(web.admin, "/ready", "").await.unwrap().0, 200);
}
