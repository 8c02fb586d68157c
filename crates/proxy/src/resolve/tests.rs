//! The resolver against a scripted server.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use outrigger_model::cluster::DnsFamilies;
use outrigger_model::endpoint::{Endpoint, LocalityEndpoints, NamedAddress};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::timeout;

use super::*;

const LONG: Duration = Duration::from_secs(20);

/// What the server says of a name.
#[derive(Clone)]
enum Said {
    Addresses(Vec<IpAddr>, u32),
    Code(ResponseCode),
    /// Only IPv6 is asked for in vain.
    NoV6(Vec<IpAddr>),
    /// Only IPv4 is asked for in vain.
    NoV4(Vec<IpAddr>),
    Nothing,
}

type Zone = Arc<Mutex<BTreeMap<String, Said>>>;

struct Server {
    address: SocketAddr,
    zone: Zone,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(address).await.unwrap();
        let zone = Zone::default();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (over_udp, over_tcp, seen) = (zone.clone(), zone.clone(), asked.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name.to_string();
                seen.lock().push(format!("{} {}", name.trim_end_matches('.'), query.queries[0].query_type));
                let Some(answer) = answer(&over_udp, &query) else { continue };
                let bytes = answer.to_vec().unwrap();
                let bytes = if bytes.len() > 1232 { answer.truncate().to_vec().unwrap() } else { bytes };
                socket.send_to(&bytes, peer).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut query).await.unwrap();
                let answer =
                    answer(&over_tcp, &Message::from_vec(&query).unwrap()).unwrap().to_vec().unwrap();
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        Self { address, zone, asked }
    }

    fn says(&self, name: &str, said: Said) {
        self.zone.lock().insert(name.to_owned(), said);
    }

    fn has(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.says(name, Said::Addresses(addresses, ttl));
    }

    fn resolver(&self) -> (Resolver, Board) {
        let board = Board::default();
        let lookup = Lookup::new(vec![self.address], vec!["corp.example".to_owned()], PathBuf::new());
        (Resolver::new(lookup, board.clone()), board)
    }
}

/// The addresses are behind an alias, as they often are.
fn answer(zone: &Zone, query: &Message) -> Option<Message> {
    let (name, kind) = (query.queries[0].name.clone(), query.queries[0].query_type);
    let said = zone.lock().get(name.to_string().trim_end_matches('.')).cloned();
    let mut answer = query.clone().into_response();
    let (addresses, ttl) = match said {
        None => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            return Some(answer);
        }
        Some(Said::Code(code)) => {
            answer.metadata.response_code = code;
            return Some(answer);
        }
        Some(Said::NoV6(_)) if kind == RecordType::AAAA => {
            answer.metadata.response_code = ResponseCode::ServFail;
            return Some(answer);
        }
        Some(Said::NoV4(_)) if kind == RecordType::A => {
            answer.metadata.response_code = ResponseCode::ServFail;
            return Some(answer);
        }
        Some(Said::Nothing) => return None,
        Some(Said::NoV6(addresses) | Said::NoV4(addresses)) => (addresses, 30),
        Some(Said::Addresses(addresses, ttl)) => (addresses, ttl),
    };
    let alias = DnsName::from_ascii("alias.example.").unwrap();
    answer.add_answer(Record::from_rdata(name, ttl + 7, RData::CNAME(CNAME(alias.clone()))));
    for address in addresses {
        let data = match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        if data.record_type() == kind {
            answer.add_answer(Record::from_rdata(alias.clone(), ttl, data));
        }
    }
    Some(answer)
}

fn discovery(hosts: &[&str]) -> DnsDiscovery {
    let endpoint = |host: &&str| Endpoint::new(NamedAddress { host: (*host).to_owned(), port: 80 });
    let place = LocalityEndpoints {
        weight: 1,
        endpoints: hosts.iter().map(endpoint).collect(),
        ..LocalityEndpoints::default()
    };
    DnsDiscovery {
        endpoints: EndpointSet::new("c", vec![place]),
        respect_ttl: true,
        refresh: Duration::from_secs(1),
        families: DnsFamilies::All,
        ..DnsDiscovery::default()
    }
}

fn wanted(sets: &[(&str, DnsDiscovery)]) -> Wanted {
    sets.iter().map(|(name, dns)| ((*name).to_owned(), dns.clone())).collect()
}

fn said(set: &EndpointSet) -> Vec<String> {
    set.iter().map(|endpoint| endpoint.address.ip().to_string()).collect()
}

/// The next set that changed.
async fn next(resolver: &mut Resolver) -> EndpointSet {
    timeout(LONG, async {
        loop {
            if let Some(set) = resolver.next().await.pop() {
                return set;
            }
        }
    })
    .await
    .expect("something changes")
}

#[tokio::test]
async fn all_addresses_of_a_name_are_endpoints_and_change_with_it() {
    let server = Server::start().await;
    server.has("api.example", 1, &["192.0.2.2", "192.0.2.1", "::1"]);
    let (mut resolver, board) = server.resolver();
    assert!(resolver.want(wanted(&[("s", discovery(&["api.example"]))])).is_empty());
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.1", "192.0.2.2", "::1"]);
    let status = board.name("api.example").unwrap();
    assert_eq!((status.addresses.len(), status.ttl, status.failures), (3, Duration::from_secs(1), 0));
    server.has("api.example", 1, &["192.0.2.3"]);
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.3"]);
}

#[tokio::test]
async fn a_failing_server_leaves_the_last_addresses_in_force() {
    let server = Server::start().await;
    server.has("api.example", 1, &["192.0.2.1"]);
    let (mut resolver, board) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["api.example"]))]));
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.1"]);
    server.says("api.example", Said::Code(ResponseCode::ServFail));
    timeout(LONG, async {
        while board.name("api.example").unwrap().failures < 2 {
            assert!(resolver.next().await.is_empty(), "a failure changes nothing");
        }
    })
    .await
    .unwrap();
    let status = board.name("api.example").unwrap();
    assert_eq!(status.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert!(status.trouble.is_some_and(|why| why.contains("Server Failure")));
    server.has("api.example", 1, &["192.0.2.9"]);
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.9"]);
    assert_eq!(board.name("api.example").unwrap().trouble, None);
}

#[tokio::test]
async fn what_was_true_before_a_restart_stays_until_there_is_an_answer() {
    let server = Server::start().await;
    server.says("api.example", Said::Code(ResponseCode::ServFail));
    let (mut resolver, board) = server.resolver();
    let stored = Endpoint::new("192.0.2.1:80".parse().unwrap());
    let place = LocalityEndpoints { endpoints: vec![stored], ..LocalityEndpoints::default() };
    resolver.restore(&EndpointSet::new("s", vec![place]));
    resolver.want(wanted(&[("s", discovery(&["api.example"]))]));
    timeout(LONG, async {
        while board.name("api.example").is_none_or(|name| name.failures < 2) {
            assert_eq!(resolver.next().await, [], "a failure says nothing against it");
        }
    })
    .await
    .unwrap();
    server.zone.lock().clear();
    assert!(next(&mut resolver).await.is_empty(), "that there is no such name does");
}

#[tokio::test]
async fn that_a_name_does_not_exist_is_an_answer() {
    let server = Server::start().await;
    server.has("api.example", 1, &["192.0.2.1"]);
    let (mut resolver, board) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["api.example"])), ("t", discovery(&["gone.example"]))]));
    let mut sets: Vec<EndpointSet> = Vec::new();
    while sets.len() < 2 {
        sets.extend(timeout(LONG, resolver.next()).await.unwrap());
    }
    sets.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    assert_eq!((said(&sets[0]).len(), said(&sets[1]).len()), (1, 0));
    assert!(sets[1].trouble.as_ref().is_some_and(|why| why.contains("gone.example: there is no such name")));
    server.zone.lock().clear();
    assert_eq!(said(&next(&mut resolver).await), [""; 0], "and takes the addresses away");
    assert_eq!(board.name("api.example").unwrap().failures, 0);
}

#[tokio::test]
async fn a_name_that_many_sets_have_is_asked_for_once() {
    let server = Server::start().await;
    server.has("api.example", 60, &["192.0.2.1"]);
    let (mut resolver, _) = server.resolver();
    let sets = [("s", discovery(&["api.example"])), ("t", discovery(&["api.example", "192.0.2.7"]))];
    assert!(resolver.want(wanted(&sets)).is_empty());
    assert_eq!(timeout(LONG, resolver.next()).await.unwrap().len(), 2);
    // Who comes later need not wait.
    let third = ("u", DnsDiscovery { families: DnsFamilies::V4Only, ..discovery(&["api.example"]) });
    let news = resolver.want(wanted(&[sets[0].clone(), sets[1].clone(), third]));
    assert_eq!(news.iter().map(|set| set.cluster.as_str()).collect::<Vec<_>>(), ["u"]);
    let mut asked = server.asked.lock().clone();
    asked.sort();
    assert_eq!(asked, ["api.example A", "api.example AAAA"]);
    assert!(resolver.want(Wanted::new()).is_empty());
    assert!(resolver.names.is_empty(), "and is asked for no more");
}

#[tokio::test]
async fn an_answer_too_long_for_a_datagram_is_asked_for_over_tcp() {
    let server = Server::start().await;
    let many: Vec<String> = (0..200).map(|i| format!("192.0.2.{i}")).collect();
    server.has("many.example", 60, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let (mut resolver, _) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["many.example"]))]));
    assert_eq!(next(&mut resolver).await.len(), 200);
}

#[tokio::test]
async fn one_kind_of_address_is_enough() {
    let server = Server::start().await;
    server.says("four.example", Said::NoV6(vec!["192.0.2.4".parse().unwrap()]));
    let (mut resolver, board) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["four.example"]))]));
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.4"]);
    assert_eq!(board.name("four.example").unwrap().failures, 0);
}

#[tokio::test]
async fn a_kind_of_address_that_is_asked_for_in_vain_stays_what_it_was() {
    let server = Server::start().await;
    server.has("api.example", 1, &["192.0.2.1", "192.0.2.2", "2001:db8::1"]);
    let dns = DnsDiscovery { families: DnsFamilies::V4Preferred, ..discovery(&["api.example"]) };
    let (mut resolver, board) = server.resolver();
    resolver.want(wanted(&[("s", dns)]));
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.1", "192.0.2.2"]);
    server.says("api.example", Said::NoV4(vec!["2001:db8::1".parse().unwrap()]));
    timeout(LONG, async {
        while board.name("api.example").unwrap().trouble.is_none() {
            assert_eq!(resolver.next().await, [], "what answers in part takes nothing away");
        }
    })
    .await
    .unwrap();
    server.has("api.example", 1, &["2001:db8::1"]);
    assert_eq!(said(&next(&mut resolver).await), ["2001:db8::1"], "but that there is no IPv4 address does");
}

#[tokio::test]
async fn another_refresh_does_not_forget_what_is_known() {
    let server = Server::start().await;
    server.has("api.example", 60, &["192.0.2.1"]);
    let (mut resolver, _) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["api.example"]))]));
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.1"]);
    server.says("api.example", Said::Code(ResponseCode::ServFail));
    let other = DnsDiscovery { refresh: Duration::from_secs(7), ..discovery(&["api.example"]) };
    assert_eq!(resolver.want(wanted(&[("s", other)])), []);
    assert_eq!(timeout(LONG, resolver.next()).await.unwrap(), [], "nobody says that it moved");
}

#[tokio::test]
async fn a_search_domain_that_says_nothing_ends_the_search() {
    let server = Server::start().await;
    server.says("db.corp.example", Said::Code(ResponseCode::ServFail));
    server.has("db", 60, &["192.0.2.66"]);
    let lookup = Lookup::new(vec![server.address], vec!["corp.example".to_owned()], PathBuf::new());
    assert!(matches!(lookup.look_up("db").await, Outcome::Failed(_)), "another host may bear the next name");
}

#[tokio::test]
async fn addresses_that_are_nobodys_are_left_out() {
    let server = Server::start().await;
    server.has("blocked.example", 60, &["0.0.0.0", "224.0.0.1", "::", "240.240.0.1"]);
    let (mut resolver, _) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["blocked.example"]))]));
    let set = next(&mut resolver).await;
    assert!(set.is_empty() && set.trouble.is_some(), "{set:?}");
}

#[tokio::test]
async fn a_name_without_a_dot_is_looked_for_below_the_search_domains_first() {
    let server = Server::start().await;
    server.has("db.corp.example", 60, &["192.0.2.5"]);
    server.has("bare", 60, &["192.0.2.6"]);
    let (mut resolver, _) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["db", "bare"]))]));
    assert_eq!(said(&next(&mut resolver).await), ["192.0.2.5", "192.0.2.6"]);
    let asked: BTreeSet<String> = server.asked.lock().iter().cloned().collect();
    assert!(!asked.contains("db A"), "{asked:?}");
}

#[tokio::test]
async fn the_hosts_file_goes_before_dns() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "# by hand\n192.0.2.8 other.example API.example # here\n2001:db8::8 api.example").unwrap();
    let lookup = Lookup::new(Vec::new(), Vec::new(), file.path().to_owned());
    let Outcome::Found(found) = lookup.look_up("api.example").await else { panic!("it is there") };
    assert_eq!((found.v4.len(), found.v6.len()), (1, 1));
    let Outcome::Failed(why) = lookup.look_up("www.example").await else { panic!("nobody can be asked") };
    assert!(why.contains("dns.upstream"), "{why}");
    assert!(matches!(lookup.look_up("localhost").await, Outcome::Found(_)));
}

#[tokio::test]
async fn a_server_that_is_silent_is_named() {
    let server = Server::start().await;
    server.says("slow.example", Said::Nothing);
    let (mut resolver, _) = server.resolver();
    resolver.want(wanted(&[("s", discovery(&["slow.example"]))]));
    let set = next(&mut resolver).await;
    let why = set.trouble.unwrap();
    assert!(why.contains(&server.address.to_string()), "{why}");
}
