//! What goes to upstreams, what of theirs comes back, and connections.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::*;

/// What an upstream says to a query: datagrams, in order.
type Script = fn(&[u8]) -> Vec<Vec<u8>>;

/// An upstream; the queries that it got.
async fn upstream(script: Script) -> (SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    let (seen, queries) = mpsc::channel(64);
    let also_seen = seen.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            seen.send(buffer[..length].to_vec()).await.unwrap();
            for answer in script(&buffer[..length]) {
                socket.send_to(&answer, peer).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut query).await.unwrap();
            for answer in script(&query) {
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
            also_seen.send(query).await.unwrap();
        }
    });
    (address, queries)
}

fn answer_with(query: &[u8], code: ResponseCode, address: &str) -> Vec<u8> {
    let mut message = Message::from_vec(query).unwrap().into_response();
    message.metadata.response_code = code;
    let name = message.queries[0].name.clone();
    let data = RData::A(address.parse::<std::net::Ipv4Addr>().unwrap().into());
    message.add_answer(hickory_proto::rr::Record::from_rdata(name, 5, data));
    message.to_vec().unwrap()
}

fn plain(query: &[u8]) -> Vec<Vec<u8>> {
    vec![answer_with(query, ResponseCode::NoError, "192.0.2.7")]
}

/// First what somebody else could send, then the truth with the question in other letters.
fn among_forgeries(query: &[u8]) -> Vec<Vec<u8>> {
    let forged = answer_with(query, ResponseCode::NoError, "6.6.6.6");
    let edited = |edit: fn(&mut Vec<u8>)| {
        let mut bytes = forged.clone();
        edit(&mut bytes);
        bytes
    };
    let lower = [&query[..12], &query[12..].to_ascii_lowercase()].concat();
    let true_one = answer_with(&lower, ResponseCode::NoError, "192.0.2.7");
    vec![
        edited(|b| b[0] ^= 1),
        edited(|b| b[2] &= 0x7f),
        edited(|b| b[13] ^= 1),
        edited(|b| b[5] = 0),
        b"short".to_vec(),
        true_one,
    ]
}

fn unwilling(query: &[u8]) -> Vec<Vec<u8>> {
    vec![answer_with(query, ResponseCode::Refused, "192.0.2.1")]
}

fn long(query: &[u8]) -> Vec<Vec<u8>> {
    let mut message = Message::from_vec(query).unwrap().into_response();
    let name = message.queries[0].name.clone();
    for i in 0..60 {
        let data = RData::A(std::net::Ipv4Addr::new(192, 0, 2, i).into());
        message.add_answer(hickory_proto::rr::Record::from_rdata(name.clone(), 5, data));
    }
    vec![message.to_vec().unwrap()]
}

fn silent(_: &[u8]) -> Vec<Vec<u8>> {
    Vec::new()
}

#[tokio::test]
async fn what_is_not_in_the_mesh_goes_on_as_it_came_under_another_id() {
    let (address, mut queries) = upstream(plain).await;
    let rig = Rig::with_catalog(&[address]);
    let mut ids = std::collections::HashSet::new();
    for transport in [Transport::Udp, Transport::Tcp, Transport::Udp] {
        let sent = query("www.Example.com", RecordType::A);
        let answer = rig.dns.answer(&sent, transport).await.unwrap();
        assert_eq!(said(&Message::from_vec(&answer).unwrap()), ["www.Example.com. A 192.0.2.7"]);
        assert_eq!(answer[..2], sent[..2]);
        let received = queries.recv().await.unwrap();
        assert_eq!(received[2..], sent[2..]);
        ids.insert(received[..2].to_vec());
    }
    assert!(ids.len() > 1, "ids are not guessed");
    assert!(rig.counts().contains("outrigger_dns_requests_total{source=\"forward\",type=\"A\"} 3"));
    // A service that does not exist, and a class that the mesh does not have.
    rig.ask("nobody", RecordType::A).await;
    let mut chaos = question("catalog", RecordType::A);
    chaos.queries[0].query_class = hickory_proto::rr::DNSClass::CH;
    assert!(rig.dns.answer(&chaos.to_vec().unwrap(), Transport::Udp).await.is_some());
    assert_eq!(queries.recv().await.is_some() as u8 + queries.recv().await.is_some() as u8, 2);
}

#[tokio::test]
async fn only_the_answer_to_the_very_question_is_believed() {
    let (address, _queries) = upstream(among_forgeries).await;
    let rig = Rig::with_catalog(&[address]);
    let sent = query("WwW.eXample.Com", RecordType::A);
    for transport in [Transport::Udp, Transport::Tcp] {
        let answer = rig.dns.answer(&sent, transport).await.unwrap();
        let read = Message::from_vec(&answer).unwrap();
        assert_eq!(read.answers[0].data.to_string(), "192.0.2.7");
        assert_eq!(answer[12..sent.len()], sent[12..], "the question as the client wrote it");
    }
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_is_dead_or_unwilling() {
    let dead = {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let (refusing, mut refused) = upstream(unwilling).await;
    let (good, mut answered) = upstream(plain).await;
    let rig = Rig::with_catalog(&[dead, refusing, good]);
    for _ in 0..2 {
        assert_eq!(rig.ask("www.example.com", RecordType::A).await.response_code, ResponseCode::NoError);
        answered.recv().await.unwrap();
    }
    assert!(refused.recv().await.is_some());
    let rig = Rig::with_catalog(&[refusing]);
    let only = rig.ask("www.example.com", RecordType::A).await;
    assert_eq!(only.response_code, ResponseCode::Refused, "who is alone has the last word");
    let rig = Rig::with_catalog(&[dead]);
    assert_eq!(rig.ask("www.example.com", RecordType::A).await.response_code, ResponseCode::ServFail);
}

#[tokio::test(start_paused = true)]
async fn upstreams_that_say_nothing_are_given_up_after_five_seconds_in_all() {
    let (first, _one) = upstream(silent).await;
    let (second, _two) = upstream(silent).await;
    let rig = Rig::with_catalog(&[first, second]);
    let begin = Instant::now();
    assert_eq!(rig.ask("www.example.com", RecordType::A).await.response_code, ResponseCode::ServFail);
    assert_eq!(begin.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn an_upstream_that_refuses_is_a_failure_at_once() {
    let gone: Vec<SocketAddr> = ["127.0.0.1:0", "127.0.0.1:0"]
        .map(|any| std::net::UdpSocket::bind(any).unwrap().local_addr().unwrap())
        .to_vec();
    let rig = Rig::with_catalog(&gone);
    let begin = std::time::Instant::now();
    assert_eq!(rig.ask("www.example.com", RecordType::A).await.response_code, ResponseCode::ServFail);
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_cut_over_udp_and_whole_over_tcp() {
    let (address, _queries) = upstream(long).await;
    let rig = Rig::with_catalog(&[address]);
    let short = rig.ask("www.example.com", RecordType::A).await;
    assert!(short.truncation && short.answers.is_empty());
    assert_eq!(short.queries.len(), 1);
    let whole = rig.dns.answer(&query("www.example.com", RecordType::A), Transport::Tcp).await.unwrap();
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 60);
    let mut roomy = question("www.example.com", RecordType::A);
    roomy.set_edns(Edns::new().set_max_payload(4096).clone());
    let whole = rig.dns.answer(&roomy.to_vec().unwrap(), Transport::Udp).await.unwrap();
    assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 60);
}

/// A connection to a running server.
async fn connected(rig: &Rig) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(tcp::serve(rig.dns.clone(), listener));
    TcpStream::connect(address).await.unwrap()
}

async fn receive(stream: &mut TcpStream) -> Message {
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

fn framed(mut message: Message, id: u16) -> Vec<u8> {
    message.metadata.id = id;
    let bytes = message.to_vec().unwrap();
    [&(bytes.len() as u16).to_be_bytes()[..], &bytes].concat()
}

#[tokio::test]
async fn queries_on_one_connection_do_not_wait_for_each_other() {
    let mut rig = Rig::with_catalog(&[]);
    let mut stream = connected(&rig).await;
    // More than are answered at once, the first of which has to wait; in pieces.
    let mut bytes = framed(question("late", RecordType::A), 1);
    (2..60).for_each(|id| bytes.extend(framed(question("catalog", RecordType::A), id)));
    let (start, rest) = bytes.split_at(37);
    stream.write_all(start).await.unwrap();
    assert_eq!(rig.demanded().await, "late.shop.svc.cluster.local");
    stream.write_all(rest).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 2..60 {
        seen.insert(receive(&mut stream).await.id);
    }
    assert_eq!(seen.into_iter().collect::<Vec<u16>>(), (2..60).collect::<Vec<u16>>());
    stream.shutdown().await.unwrap();
    rig.has("late.shop.svc.cluster.local", &["240.240.0.9"]);
    assert_eq!(receive(&mut stream).await.id, 1, "answered although the client has no more to ask");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_connection_that_sends_no_queries_ends() {
    let rig = Rig::with_catalog(&[]);
    let mut stream = connected(&rig).await;
    stream.write_all(&[0xff, 0xff, 1, 2, 3]).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "too long");
    let mut stream = connected(&rig).await;
    let mut answer = framed(question("catalog", RecordType::A), 7);
    answer[4] |= 0x80;
    stream.write_all(&answer).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "an answer");
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_ends_after_ten_seconds() {
    let rig = Rig::with_catalog(&[]);
    let mut stream = connected(&rig).await;
    stream.write_all(&framed(question("catalog", RecordType::A), 7)).await.unwrap();
    assert_eq!(receive(&mut stream).await.id, 7);
    let begin = Instant::now();
    // A query that never becomes whole keeps nothing open.
    stream.write_all(&[0]).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert!((9..=11).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn datagrams_are_answered_and_answers_are_not() {
    let rig = Rig::with_catalog(&[]);
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(udp::serve(rig.dns.clone(), server));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut answer = query("catalog", RecordType::A);
    answer[2] |= 0x80;
    answer[0] = 0x99;
    client.send_to(&answer, address).await.unwrap();
    client.send_to(&[0; 4096], address).await.unwrap();
    client.send_to(&query("catalog", RecordType::A), address).await.unwrap();
    let mut ids = Vec::new();
    let mut buffer = [0; 512];
    for _ in 0..2 {
        let (length, _) = client.recv_from(&mut buffer).await.unwrap();
        ids.push(Message::from_vec(&buffer[..length]).unwrap().id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 0x1234], "the zeros are refused, the answer is passed over");
}
