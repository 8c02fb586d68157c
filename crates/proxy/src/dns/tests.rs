//! The resolver between a scripted control plane and scripted upstreams; the pure parts beside them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question};
use hickory_proto::rr::{Name, RData, RecordType};
use outrigger_identity::{CredentialStore, TrustBundle};
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_telemetry::Drain;
use tokio::sync::{mpsc, watch};

use super::*;
use crate::access_log::Sink;
use crate::bootstrap::{Node, OutboundPolicy};
use crate::metrics::{Local, Totals};
use crate::process::Demand;
use crate::runtime::build::{Builder, InForce};
use crate::runtime::snapshot::Snapshot;

mod forwarding;
mod messages;

/// A resolver in namespace `shop`, whose control plane says what the test says.
struct Rig {
    dns: Arc<Dns>,
    demands: mpsc::Receiver<(ResourceKind, String)>,
    builder: Builder,
    hosts: BTreeMap<String, Arc<Resource>>,
    absent: Vec<(ResourceKind, String)>,
}

const CATALOG: &str = "catalog.shop.svc.cluster.local";

impl Rig {
    fn new(upstreams: &[SocketAddr]) -> Self {
        let (demand, demands) = Demand::channel();
        let node = Node {
            id: "web-1".into(),
            workload: "web".into(),
            namespace: "shop".into(),
            service_account: "web".into(),
            app: "web".into(),
            version: "v1".into(),
            cluster: "default".into(),
            locality: Default::default(),
            address: None,
        };
        let process = Process {
            snapshot: ArcSwap::from_pointee(Snapshot::default()),
            generation: AtomicU64::new(0),
            swapped: watch::Sender::new(0),
            credentials: CredentialStore::new(TrustBundle::empty()),
            spans: None,
            sampling: None,
            access_log: Sink::off(),
            recent: crate::recent::Recent::new(1, false),
            drain: Drain::new(),
            demand,
            node,
            metrics: Totals::new(Local::default()),
            outbound_policy: OutboundPolicy::AllowAny,
            pending_timeout: Duration::from_secs(10),
            loops: Default::default(),
            mark: crate::intercept::MARK,
            token: Default::default(),
            memory: crate::memory::Budget::new(Some(1 << 30), 1),
            descriptors: crate::descriptors::Descriptors::new(usize::MAX),
        };
        let search = ["shop.svc.cluster.local".to_owned(), "corp.example".to_owned()];
        let dns = Arc::new(Dns {
            process: Arc::new(process),
            feed: Arc::new(Mutex::new(FeedStatus { connected: true, ..FeedStatus::default() })),
            names: MeshNames::new("shop", "cluster.local", &search),
            upstreams: Upstreams::new(upstreams.to_vec()),
            counters: Arc::default(),
        });
        Self { dns, demands, builder: Builder::default(), hosts: BTreeMap::new(), absent: Vec::new() }
    }

    /// As [`Rig::new`]; the mesh has `catalog.shop`, and nothing else that the tests ask for.
    fn with_catalog(upstreams: &[SocketAddr]) -> Self {
        let mut rig = Self::new(upstreams);
        rig.has(CATALOG, &["240.240.0.7", "2001:2::7"]);
        for name in ["nobody.shop", "example.com", "world.shop"] {
            rig.lacks(&format!("{name}.svc.cluster.local"));
        }
        rig
    }

    fn has(&mut self, host: &str, addresses: &[&str]) {
        self.absent.retain(|(_, name)| name != host);
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        let resource =
            Resource::Host(Host { name: host.into(), host: host.into(), addresses, names: Vec::new() });
        self.hosts.insert(host.into(), Arc::new(resource));
        self.swap();
    }

    fn lacks(&mut self, host: &str) {
        self.hosts.remove(host);
        self.absent.push((ResourceKind::Host, host.into()));
        self.swap();
    }

    fn swap(&mut self) {
        let in_force: InForce<'_> = self.hosts.values().map(|r| ((r.kind(), r.name()), r)).collect();
        let before = self.dns.process.snapshot.load_full();
        let (snapshot, invalid) = self.builder.build(&before, &in_force, &self.absent);
        assert!(invalid.is_empty());
        self.dns.process.swap(snapshot);
    }

    async fn ask(&self, name: &str, kind: RecordType) -> Message {
        let answer = self.dns.answer(&query(name, kind), Transport::Udp).await.expect("an answer");
        Message::from_vec(&answer).unwrap()
    }

    async fn demanded(&mut self) -> String {
        self.demands.recv().await.unwrap().1
    }

    fn counts(&self) -> String {
        let mut page = outrigger_telemetry::metrics::Page::new();
        self.dns.counters.write(&mut page);
        page.finish()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let labels = name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    let mut name = Name::from_labels(labels).unwrap();
    name.set_fqdn(true);
    message.add_query(Question::query(name, kind));
    message
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    question(name, kind).to_vec().unwrap()
}

/// The answers as `owner type data`.
fn said(message: &Message) -> Vec<String> {
    let line = |r: &hickory_proto::rr::Record| format!("{} {} {}", r.name, r.record_type(), r.data);
    message.answers.iter().map(line).collect()
}

#[tokio::test]
async fn every_spelling_of_a_mesh_name_has_its_virtual_addresses() {
    let rig = Rig::with_catalog(&[]);
    for name in ["catalog", "catalog.shop", "catalog.shop.svc", CATALOG, "CaTaLoG.Shop"] {
        let v4 = rig.ask(name, RecordType::A).await;
        assert_eq!(said(&v4), [format!("{name}. A 240.240.0.7")], "letter case is the question's");
        assert!(v4.authoritative && v4.recursion_available && v4.recursion_desired);
        assert_eq!((v4.id, v4.response_code, v4.answers[0].ttl), (0x1234, ResponseCode::NoError, 30));
        assert_eq!(said(&rig.ask(name, RecordType::AAAA).await), [format!("{name}. AAAA 2001:2::7")]);
        assert_eq!(rig.ask(name, RecordType::ANY).await.answers.len(), 2);
    }
    assert!(rig.counts().contains("outrigger_dns_requests_total{source=\"mesh\",type=\"AAAA\"} 5"));
}

#[tokio::test]
async fn below_a_search_domain_an_alias_saves_the_client_the_other_searches() {
    let rig = Rig::with_catalog(&[]);
    for name in ["catalog.shop.shop.svc.cluster.local.", "catalog.corp.example."] {
        let answer = rig.ask(name, RecordType::A).await;
        assert_eq!(said(&answer), [format!("{name} CNAME {CATALOG}."), format!("{CATALOG}. A 240.240.0.7")]);
        let alias = rig.ask(name, RecordType::CNAME).await;
        assert_eq!((said(&alias), alias.authorities.len()), (vec![format!("{name} CNAME {CATALOG}.")], 0));
        let mail = rig.ask(name, RecordType::MX).await;
        assert_eq!(
            (mail.answers.len(), mail.authorities.len()),
            (1, 1),
            "the alias, and that there is no more"
        );
    }
}

#[tokio::test]
async fn a_name_of_the_world_is_the_control_planes_where_it_has_addresses_for_it() {
    let mut rig = Rig::with_catalog(&[]);
    let names = vec!["*.wiki.example".to_owned(), "api.example.net".to_owned()];
    let outside = Host { name: Host::OUTSIDE.into(), host: Host::OUTSIDE.into(), names, ..Host::default() };
    rig.hosts.insert(Host::OUTSIDE.into(), Arc::new(Resource::Host(outside)));
    rig.has("api.example.net", &["240.240.0.9"]);
    rig.has("en.wiki.example", &["240.240.0.10"]);
    for (name, address) in [("API.example.net", "240.240.0.9"), ("en.wiki.example", "240.240.0.10")] {
        assert_eq!(said(&rig.ask(name, RecordType::A).await), [format!("{name}. A {address}")]);
    }
    while rig.demands.try_recv().is_ok() {}
    let refused = rig.ask("www.example.net", RecordType::A).await;
    assert_eq!(refused.response_code, ResponseCode::Refused, "nobody's business here");
    assert!(rig.demands.try_recv().is_err(), "and the control plane was not asked");
}

#[tokio::test]
async fn what_a_mesh_name_does_not_have_is_said_with_the_time_to_keep_it() {
    let mut rig = Rig::with_catalog(&[]);
    for kind in [RecordType::MX, RecordType::TXT, RecordType::HTTPS, RecordType::SVCB, RecordType::SRV] {
        for (name, owner) in [(CATALOG, "svc.cluster.local."), ("catalog", "catalog.")] {
            let answer = rig.ask(name, kind).await;
            assert_eq!((answer.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
            let RData::SOA(soa) = &answer.authorities[0].data else { panic!("{answer}") };
            assert_eq!((answer.authorities[0].name.to_string().as_str(), soa.minimum), (owner, 30));
        }
    }
    rig.has("four.shop.svc.cluster.local", &["240.240.0.8"]);
    let six = rig.ask("four", RecordType::AAAA).await;
    assert_eq!((six.response_code, six.answers.len(), six.authorities.len()), (ResponseCode::NoError, 0, 1));
    assert!(rig.counts().contains("outrigger_dns_requests_total{source=\"negative\",type=\"MX\"} 2"));
}

#[tokio::test]
async fn without_an_upstream_a_name_of_the_mesh_does_not_exist_and_one_of_the_world_is_refused() {
    let rig = Rig::with_catalog(&[]);
    for name in ["nobody", "nobody.shop.svc", "nobody.shop.svc.cluster.local", "nobody.svc.cluster.local"] {
        let answer = rig.ask(name, RecordType::A).await;
        assert_eq!((answer.response_code, answer.authorities.len()), (ResponseCode::NXDomain, 1), "{name}");
    }
    for name in ["example.com", "www.example.com", ".", "localhost"] {
        assert_eq!(rig.ask(name, RecordType::A).await.response_code, ResponseCode::Refused, "{name}");
    }
}

#[tokio::test]
async fn an_address_has_the_name_of_its_service() {
    let rig = Rig::with_catalog(&[]);
    let v6 = Name::from("2001:2::7".parse::<std::net::Ipv6Addr>().unwrap()).to_string();
    for name in ["7.0.240.240.in-addr.arpa", &v6] {
        let answer = rig.ask(name, RecordType::PTR).await;
        assert_eq!(answer.answers[0].data.to_string(), format!("{CATALOG}."));
    }
    let unknown = rig.ask("8.0.240.240.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(unknown.response_code, ResponseCode::NXDomain);
    let elsewhere = rig.ask("8.8.8.8.in-addr.arpa", RecordType::PTR).await;
    assert_eq!(elsewhere.response_code, ResponseCode::Refused, "for an upstream, if there were one");
}

#[tokio::test]
async fn a_name_is_asked_for_waited_for_and_revised() {
    let mut rig = Rig::new(&[]);
    let dns = rig.dns.clone();
    let waiting =
        tokio::spawn(async move { dns.answer(&query("late", RecordType::A), Transport::Udp).await });
    assert_eq!(rig.demanded().await, "late.shop.svc.cluster.local");
    rig.lacks("late.shop.svc.cluster.local");
    let answer = Message::from_vec(&waiting.await.unwrap().unwrap()).unwrap();
    assert_eq!(answer.response_code, ResponseCode::NXDomain);
    rig.has("late.shop.svc.cluster.local", &["240.240.0.9"]);
    assert_eq!(said(&rig.ask("late", RecordType::A).await), ["late. A 240.240.0.9"]);
}

#[tokio::test]
async fn a_forgotten_name_is_asked_for_anew() {
    let mut rig = Rig::with_catalog(&[]);
    while rig.demands.try_recv().is_ok() {}
    rig.ask("catalog", RecordType::A).await;
    assert!(rig.demands.try_recv().is_err(), "it is known");
    assert!(rig.dns.process.snapshot.load().host(CATALOG).unwrap().usage.close());
    let dns = rig.dns.clone();
    let asked =
        tokio::spawn(async move { dns.answer(&query("catalog", RecordType::A), Transport::Udp).await });
    assert_eq!(rig.demanded().await, CATALOG);
    rig.has(CATALOG, &["240.240.0.7"]);
    assert!(asked.await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_silent_control_plane_is_waited_for_two_seconds_and_makes_no_wrong_no() {
    let rig = Rig::new(&[]);
    let begin = Instant::now();
    assert_eq!(rig.ask("catalog", RecordType::A).await.response_code, ResponseCode::ServFail);
    assert_eq!(begin.elapsed().as_secs(), 2);
    // Two labels may be the world's: others may be asked.
    assert_eq!(rig.ask("example.com", RecordType::A).await.response_code, ResponseCode::Refused);
    assert_eq!(begin.elapsed().as_secs(), 4);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_nobody_waits_longer_than_two_seconds_from_its_beginning() {
    let rig = Rig::with_catalog(&[]);
    {
        let mut feed = rig.dns.feed.lock();
        feed.connected = false;
        feed.disconnected_since = Some(Instant::now().into_std());
    }
    let begin = Instant::now();
    assert_eq!(said(&rig.ask("catalog", RecordType::A).await).len(), 1, "what is known is answered");
    assert!(begin.elapsed().is_zero());
    rig.ask("unknown", RecordType::A).await;
    assert!(begin.elapsed().as_millis().abs_diff(2000) < 100, "{:?}", begin.elapsed());
    rig.ask("another", RecordType::A).await;
    assert!(begin.elapsed().as_millis().abs_diff(2000) < 100, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn edns_is_answered_with_edns() {
    let rig = Rig::with_catalog(&[]);
    let mut message = question("catalog", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_dnssec_ok(true);
    message.set_edns(edns);
    let answer = rig.dns.answer(&message.to_vec().unwrap(), Transport::Udp).await.unwrap();
    let edns = Message::from_vec(&answer).unwrap().edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
    assert!(rig.ask("catalog", RecordType::A).await.edns.is_none(), "not asked for");
}

#[tokio::test]
async fn zones_are_not_transferred() {
    let rig = Rig::with_catalog(&[]);
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(rig.ask("shop", kind).await.response_code, ResponseCode::Refused);
    }
}
