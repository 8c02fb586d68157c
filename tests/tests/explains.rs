//! `explain` says what the proxies do: a thousand requests of generated kinds through real sidecars, under generated rules, and each is
//! explained before it is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use fastrand::Rng;
use outrigger_control::api::types::ApplyQuery;
use outrigger_control::explain::body::{ExplainRequest, Explanation};
use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, exchange};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::recorder::{Received, recorder_on};
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::BINARY;
use crate::thin_thread::{catalog, web};

mod generated;

use generated::{Case, ISSUER, case, gateway_routes, page, policy, routes};

const SEED: u64 = 0x0075_7472_6967_6765;
/// Sets of rules, and requests under each.
const SETS: usize = 5;
const REQUESTS: usize = 200;

const SUBSETS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v9, labels: {version: v9}}]
";

/// A connection that is kept.
struct Kept(BufReader<TcpStream>);

/// What came back.
#[derive(Debug)]
struct Seen {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Kept {
    async fn open(to: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(to).await.unwrap()))
    }

    async fn send(&mut self, case: &Case, host: &str) -> Seen {
        let headers: String = case.headers.iter().map(|line| format!("{line}\r\n")).collect();
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n{headers}\r\n",
            case.method, case.path
        );
        self.0.get_mut().write_all(head.as_bytes()).await.unwrap();
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("{line:?}"));
        let mut headers = BTreeMap::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).await.unwrap();
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        let seen = Seen { status, headers, body: String::from_utf8(body).unwrap() };
        // A path that has no one form ends the connection as well.
        if seen.headers.get("connection").is_some_and(|value| value == "close") {
            let to = self.0.get_ref().peer_addr().unwrap();
            *self = Self::open(to).await;
        }
        seen
    }
}

/// Whether what was seen is one of what was said.
fn agrees(said: &Explanation, seen: &Seen) -> bool {
    let app = seen.headers.get("x-app-name");
    said.outcomes.iter().any(|outcome| match (outcome.kind.as_str(), app) {
        ("forwarded", Some(app)) => {
            let target = said.targets.iter().find(|target| Some(&target.cluster) == outcome.cluster.as_ref());
            let path = target.and_then(|target| target.path.as_ref()).unwrap_or(&said.request.path);
            let arrived = seen.body.lines().nth(1).and_then(|line| line.split(' ').nth(1));
            let may = said.notes.iter().any(|note| note.contains(" may read the answer"));
            let shown = seen.headers.contains_key("access-control-allow-origin") == may;
            seen.status == 200 && outcome.instances.contains(app) && arrived == Some(path) && shown
        }
        ("answered" | "denied" | "failed", None) => {
            let moved = seen
                .headers
                .get("location")
                .is_none_or(|to| outcome.why.as_ref().is_some_and(|why| why.contains(to)));
            // Who denies says who it is, and which policy it was.
            let error = seen.headers.get("x-outrigger-error").map_or("", String::as_str);
            let by = outcome.origin.as_deref().unwrap_or_default();
            let named = outcome.kind != "denied"
                || error.contains(by)
                    && outcome.instances.iter().any(|id| error.contains(&format!("hop={id};")));
            outcome.status == Some(seen.status) && moved && named
        }
        _ => false,
    })
}

/// Which requests have copies.
#[derive(Default)]
struct Copied {
    /// They came to an application.
    must: BTreeSet<String>,
    /// Their route copies, and they may have been answered before.
    may: BTreeSet<String>,
}

impl Copied {
    fn note(&mut self, said: &Explanation, seen: &Seen, id: &str) {
        let copies = |more: &String| more.starts_with("copies 100% to outbound|8080||copies.");
        if said.route.as_ref().is_some_and(|route| route.more.iter().any(copies)) {
            self.may.insert(id.to_owned());
            if seen.headers.contains_key("x-app-name") {
                self.must.insert(id.to_owned());
            }
        }
    }

    /// Waits for those that must come; no others have.
    async fn arrive(&self, received: &Received) {
        let arrived = || received.lock().unwrap().iter().cloned().collect::<BTreeSet<String>>();
        eventually("each copy that was told of", || {
            let missing: Vec<String> = self.must.difference(&arrived()).cloned().collect();
            std::future::ready(if missing.is_empty() { Ok(()) } else { Err(format!("none of {missing:?}")) })
        })
        .await;
        let untold: Vec<String> = arrived().difference(&self.may).cloned().collect();
        assert!(untold.is_empty(), "seed {SEED:#x}: nobody said that these are copied: {untold:?}");
    }
}

/// What an explanation is about, so that the generator is seen to reach it.
fn kinds_of(said: &Explanation) -> Vec<&str> {
    let mut kinds: Vec<&str> = said.outcomes.iter().map(|outcome| outcome.kind.as_str()).collect();
    let why =
        |words: &str| said.outcomes.iter().any(|o| o.why.as_ref().is_some_and(|why| why.contains(words)));
    let origin = |by: &str| said.outcomes.iter().any(|outcome| outcome.origin.as_deref() == Some(by));
    let page =
        said.route.as_ref().and_then(|route| route.origin.as_deref()) == Some("TrafficRules shop/prices");
    let reached = [
        ("preflight", why("a preflight, by the route's corsPolicy")),
        ("pages", said.notes.iter().any(|note| note.starts_with("pages of "))),
        ("token", origin("RequestAuthentication shop/tokens")),
        ("page", page),
    ];
    kinds.extend(reached.iter().filter(|(_, there)| *there).map(|(kind, _)| *kind));
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// An application that keeps of each request the number that it has.
async fn copies(listen: SocketAddr) -> Received {
    let listener = TcpListener::bind(listen).await.unwrap();
    let id =
        |head: &str| head.lines().find_map(|line| line.strip_prefix("x-at: ")).unwrap_or_default().to_owned();
    recorder_on(listener, id, |_| Some("200 OK\r\ncontent-length: 0\r\n\r\n"))
}

/// Objects of all dialects.
fn rules(rng: &mut Rng, set: usize) -> String {
    let policies: String = (0..3).map(|at| policy(rng, at)).collect();
    // In its place there is nothing of the others any more.
    let attached = if set >= 3 { gateway_routes(rng, "stock") } else { String::new() };
    let tokens = if set >= 1 { ISSUER } else { "" };
    let (one, other, page) = (routes(rng, "catalog"), routes(rng, "stock"), page(rng, "prices"));
    format!("{SUBSETS}{one}{other}{page}{attached}{policies}{tokens}")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_agrees_with_what_the_proxies_do_for_a_thousand_generated_requests() {
    let mesh = Mesh::start(BINARY).await;
    let mut servers = Vec::new();
    for (service, version, host, name) in [
        ("catalog", "v1", 11, "catalog-v1"),
        ("catalog", "v2", 12, "catalog-v2"),
        ("stock", "v1", 13, "stock-v1"),
        ("prices", "p1", 14, "prices-p1"),
        ("prices", "p2", 15, "prices-p2"),
    ] {
        let spec = Spec { service, version, host, protocol: Protocol::Http, calls: &[] };
        servers.push(mesh.workload(&spec).await);
        echo(mesh.address(host, 9080), name).await;
    }
    // No policy selects it.
    let spec = Spec { service: "copies", version: "c1", host: 16, protocol: Protocol::Http, calls: &[] };
    let mirror = mesh.workload(&spec).await;
    let received = copies(mirror.app).await;
    let hosts = ["catalog:8080", "stock:8080", "prices:8080"];
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080", "prices:8080"])).await;
    let mut rng = Rng::with_seed(SEED);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let mut copied = Copied::default();
    for set in 0..SETS {
        let yaml = rules(&mut rng, set);
        mesh.apply(&yaml).await;
        let mut connections = Vec::new();
        for entry in &web.outbound {
            connections.push(Kept::open(*entry).await);
        }
        for at in 0..REQUESTS {
            let mut case = case(&mut rng);
            let id = format!("{set}.{at}");
            case.headers.push(format!("x-at: {id}"));
            let host = hosts[case.host];
            let asked = ExplainRequest {
                from: "web".into(),
                method: case.method.into(),
                url: format!("http://{host}{}", case.path),
                headers: case.headers.clone(),
            };
            let said = mesh.client.explain(&asked).await.unwrap();
            assert_eq!(said.in_force, Some(true), "{said:?}");
            let seen = connections[case.host].send(&case, host).await;
            assert!(
                agrees(&said, &seen),
                "seed {SEED:#x}, set {set}, request {at}: {asked:?}\nsaid {said:#?}\nseen {seen:#?}\n{yaml}"
            );
            copied.note(&said, &seen, &id);
            kinds_of(&said).iter().for_each(|kind| *kinds.entry((*kind).to_owned()).or_default() += 1);
        }
        copied.arrive(&received).await;
    }
    // The generator reaches what it is for.
    kinds.insert("copied".to_owned(), copied.must.len());
    for kind in ["forwarded", "answered", "denied", "failed", "preflight", "pages", "token", "page", "copied"]
    {
        assert!(kinds.get(kind).is_some_and(|count| *count >= 10), "{kind}: {kinds:?}");
    }
}

/// What a command prints.
async fn printed(mesh: &Mesh, words: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(BINARY);
    command.args(words).arg("--server").arg(mesh.path("control/outrigger.sock"));
    let output = command.output().await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_explains_a_request_and_describes_a_service() {
    let mesh = Mesh::start(BINARY).await;
    mesh.register(&catalog("v1", 11)).await;
    mesh.register(&web(&[])).await;
    mesh.client.apply(SUBSETS, &ApplyQuery::default()).await.unwrap();
    let explain = ["explain", "http://catalog:8080/x", "-H", "K: v", "--from", "web"];
    let tree = printed(&mesh, &explain).await.unwrap();
    for line in [
        "GET catalog:8080/x from web-v1 (shop/web)\n├─ goes to outbound|8080||catalog.shop.svc.cluster.local, catalog-v1\n",
        "│  └─ retries: up to 2 times on connect-failure, ",
        "├─ 100% to outbound|8080||catalog.shop.svc.cluster.local (DestinationRule shop/catalog)\n",
        "accepted is PERMISSIVE by default\n",
        "the sidecar of web-v1 is not connected\n",
    ] {
        assert!(tree.contains(line), "no {line:?} in\n{tree}");
    }
    let json: Explanation =
        serde_json::from_str(&printed(&mesh, &[&explain[..], &["-o", "json"]].concat()).await.unwrap())
            .unwrap();
    assert_eq!(json.outcomes[0].instances, ["catalog-v1"]);
    let yaml = printed(&mesh, &[&explain[..], &["-o", "yaml"]].concat()).await.unwrap();
    assert!(yaml.contains("\nsource:\n  identity: \"spiffe://cluster.local/ns/shop/sa/web\"\n"), "{yaml}");
    let nobody = printed(&mesh, &["explain", "http://catalog/", "--from", "nobody"]).await.unwrap_err();
    assert!(
        nobody.contains("there is no instance and no service \"nobody\"; there are shop/catalog, shop/web"),
        "{nobody}"
    );
    let tree = printed(&mesh, &["describe", "service", "catalog"]).await.unwrap();
    for line in [
        "catalog.shop.svc.cluster.local, as seen by clients of the namespace shop\n",
        "├─ port 8080 (http)\n",
        "subset v1 [version=v1] (DestinationRule shop/catalog): 1 of 1 endpoints take requests\n",
        "PERMISSIVE (default) at 1 instance\n",
        // A subset without instances is a finding.
        "v9",
    ] {
        assert!(tree.contains(line), "no {line:?} in\n{tree}");
    }
}

const BROKEN: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - name: broken
    match: [{uri: {prefix: /broken}}]
    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}
    route: [{destination: {host: catalog}}]
  - name: old
    match: [{uri: {exact: /old}}]
    rewrite: {uri: /new}
    route: [{destination: {host: catalog}}]
  - name: rest
    route: [{destination: {host: catalog}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/secret]}}]}]}
";

/// Requests that a sidecar has counted: what it remembers of one it has by then.
async fn ended(hop: &Sidecar) -> u64 {
    let page = hop.page("/stats/prometheus").await;
    let lines = page.lines().filter(|line| line.starts_with("istio_requests_total{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_made_is_explained_by_its_id_at_each_of_its_hops() {
    let mesh = Mesh::start(BINARY).await;
    let server = mesh.workload(&catalog("v1", 11)).await;
    echo(server.app, "catalog-v1").await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(BROKEN).await;
    let mut client = Kept::open(web.outbound[0]).await;
    let mut send = async |path: &str, id: &'static str| {
        let case = Case { host: 0, method: "GET", path: path.into(), headers: vec![id.to_owned()] };
        client.send(&case, "catalog:8080").await.status
    };
    let hops: Vec<String> = [&web, &server].iter().map(|hop| format!("http://{}", hop.admin)).collect();
    let explain = async |id: &str, more: &[&str]| {
        let words = ["explain", "--request", id, "--sidecar", &hops[0], "--sidecar", &hops[1]];
        printed(&mesh, &[&words[..], more].concat()).await
    };
    assert_eq!(send("/broken?a=1", "x-request-id: broken 1").await, 503);
    assert_eq!(send("/secret", "x-request-id: denied").await, 403);
    assert_eq!(send("/old", "x-request-id: unseen").await, 200);
    // Ended by itself, at the first hop, and told with the rule that did it.
    let tree = explain("broken 1", &[]).await.unwrap();
    for line in [
        "GET catalog:8080/broken?a=1 sent by web-v1\n├─ was answered 503, flags FI (fault_filter_abort)\n",
        "├─ route broken (VirtualService shop/catalog)\n",
        "├─ not sent on\n",
        "now: GET catalog:8080/broken?a=1 from web-v1 (shop/web)\n",
    ] {
        assert!(tree.contains(line), "no {line:?} in\n{tree}");
    }
    assert!(!tree.contains("received by"), "{tree}");
    // Refused by the second.
    let json: serde_json::Value =
        serde_json::from_str(&explain("denied", &["-o", "json"]).await.unwrap()).unwrap();
    let hop = json["hops"].as_array().unwrap().iter().find(|hop| hop["sidecar"] == "catalog-v1").unwrap();
    assert_eq!((&hop["status"], &hop["details"]), (&403.into(), &"rbac_access_denied".into()), "{hop}");
    assert_eq!(hop["errorOrigin"], "AuthorizationPolicy shop/no-secrets", "{hop}");
    assert_eq!(hop["peer"], "spiffe://cluster.local/ns/shop/sa/web", "{hop}");
    // What succeeds is kept where somebody wants it.
    let unknown = explain("unseen", &[]).await.unwrap_err();
    assert!(unknown.contains("POST /requests?keep=all keeps others, too"), "{unknown}");
    for hop in [&web, &server] {
        let post = "POST /requests?keep=all HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let answer = exchange(hop.admin, post).await.unwrap();
        assert!(answer.0 == 200 && answer.1.ends_with("\r\n\r\nall\n"), "{answer:?}");
    }
    // The client has its answer before its sidecar has written the request down.
    let before = [ended(&web).await, ended(&server).await];
    assert_eq!(send("/old", "x-request-id: seen").await, 200);
    for (hop, before) in [&web, &server].into_iter().zip(before) {
        eventually("the hop has written the request down", || async {
            let now = ended(hop).await;
            if now > before { Ok(()) } else { Err(now) }
        })
        .await;
    }
    let json: serde_json::Value =
        serde_json::from_str(&explain("seen", &["-o", "json"]).await.unwrap()).unwrap();
    let [sent, received] = json["hops"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&sent["path"], &sent["route"]), (&"/old".into(), &"old".into()), "{sent}");
    assert_eq!((&sent["attempts"], &sent["status"]), (&1.into(), &200.into()), "{sent}");
    assert_eq!(sent["now"]["route"]["name"], "old", "{sent}");
    assert_eq!(sent["note"], serde_json::Value::Null, "{sent}");
    assert_eq!(
        (&received["outbound"], &received["now"]),
        (&false.into(), &serde_json::Value::Null),
        "{received}"
    );
    // Another rule since.
    mesh.apply(&BROKEN.replace("exact: /old", "exact: /older")).await;
    let tree = explain("seen", &[]).await.unwrap();
    assert!(
        tree.contains("route old took it, and now route rest would: the configuration has changed since"),
        "{tree}"
    );
}
