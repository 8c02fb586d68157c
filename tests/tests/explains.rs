//! `explain` says what the proxies do: a thousand requests of generated kinds through real sidecars, under generated rules, and each is
//! explained before it is sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fastrand::Rng;
use outrigger_control::api::types::ApplyQuery;
use outrigger_control::explain::body::{ExplainRequest, Explanation};
use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, exchange};
use outrigger_tests::mesh::{Mesh, Spec};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::thin_thread::{catalog, web};

const SEED: u64 = 0x0075_7472_6967_6765;
/// Sets of rules, and requests under each.
const SETS: usize = 5;
const REQUESTS: usize = 200;

const PATHS: [&str; 12] =
    ["/", "/a", "/a/b", "/a/b/c", "/ab", "/b", "/b/1", "/b/x", "//a//b", "/a/../b/2", "/%61/c", "/a/..%2fb"];
const QUERIES: [&str; 4] = ["", "?v=1", "?v=2&w", "?w=3"];
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
const HEADERS: [&str; 6] = [
    "x-user: ann",
    "x-user: bob",
    "x-kind: test",
    "x-kind: testing",
    "x-outrigger-own: 1",
    "X_Forwarded_For: 1",
];

/// A request, and where it is sent to.
struct Case {
    host: usize,
    method: &'static str,
    path: String,
    headers: Vec<&'static str>,
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn case(rng: &mut Rng) -> Case {
    let path = format!("{}{}", pick(rng, &PATHS), pick(rng, &QUERIES));
    let headers = HEADERS.into_iter().filter(|_| rng.u8(..4) == 0).collect();
    Case { host: rng.usize(..2), method: pick(rng, &METHODS), path, headers }
}

/// A condition of a route, as Istio writes it.
fn condition(rng: &mut Rng) -> String {
    let mut all = Vec::new();
    let path = pick(rng, &["/a", "/a/b", "/b", "/ab", "/b/1"]);
    match rng.u8(..5) {
        0 => all.push(format!("uri: {{exact: {path}}}")),
        1 | 2 => all.push(format!("uri: {{prefix: {path}}}")),
        3 => all.push(format!("uri: {{regex: '{path}(/[a-z]+)?'}}")),
        _ => {}
    }
    if rng.u8(..3) == 0 {
        all.push(format!("method: {{exact: {}}}", pick(rng, &METHODS)));
    }
    match rng.u8(..5) {
        0 => all.push("headers: {x-user: {exact: ann}}".into()),
        1 => all.push("headers: {x-kind: {prefix: test}, x-user: {exact: bob}}".into()),
        2 => all.push("withoutHeaders: {x-user: {}}".into()),
        _ => {}
    }
    match rng.u8(..6) {
        0 => all.push("queryParams: {v: {exact: '1'}}".into()),
        1 => all.push("queryParams: {w: {}}".into()),
        _ => {}
    }
    match rng.u8(..12) {
        0 => all.push("sourceLabels: {app: stock}".into()),
        1 => all.push("sourceLabels: {app: web}".into()),
        2 => all.push("port: 9999".into()),
        _ => {}
    }
    format!("{{{}}}", all.join(", "))
}

fn action(rng: &mut Rng) -> String {
    let to =
        pick(rng, &["catalog, subset: v1", "catalog, subset: v2", "catalog", "stock", "catalog, subset: v9"]);
    let edits = pick(
        rng,
        &["", ", headers: {request: {set: {x-user: bob}}}", ", headers: {request: {remove: [x-kind]}}"],
    );
    let route = format!("route: [{{destination: {{host: {to}}}{edits}}}]");
    match rng.u8(..12) {
        0 => format!("directResponse: {{status: {}}}", 440 + rng.u16(..9)),
        1 => format!("redirect: {{uri: /moved{}, redirectCode: 307}}", rng.u8(..)),
        2 => format!(
            "fault: {{abort: {{httpStatus: {}, percentage: {{value: {}}}}}}}\n    {route}",
            450 + rng.u16(..9),
            pick(rng, &[100, 100, 30])
        ),
        3 => format!("rewrite: {{uri: /secret}}\n    {route}"),
        4 => format!("rewrite: {{uri: /b, authority: b.example}}\n    {route}"),
        5 => "route:\n    - {destination: {host: catalog, subset: v1}, weight: 40}\n    - {destination: {host: stock}, weight: 60}".into(),
        _ => route,
    }
}

/// Routes, of which some are handed to another object.
fn list(rng: &mut Rng, name: &str, count: usize, delegate: Option<&str>) -> String {
    let mut yaml = String::new();
    for at in 0..count {
        let conditions: Vec<_> = (0..=rng.usize(..2)).map(|_| condition(rng)).collect();
        let action = match delegate.filter(|_| rng.u8(..8) == 0) {
            Some(delegate) => format!("delegate: {{name: {delegate}}}"),
            None => action(rng),
        };
        yaml += &format!("  - name: {name}-{at}\n    match: [{}]\n    {action}\n", conditions.join(", "));
    }
    yaml
}

fn object(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

fn routes(rng: &mut Rng, host: &str) -> String {
    let delegate = format!("{host}-part");
    let mut own = list(rng, host, 8, Some(&delegate));
    if rng.bool() {
        own += &format!("  - name: {host}-rest\n    route: [{{destination: {{host: {host}}}}}]\n");
    }
    let part = list(rng, &delegate, 3, None);
    let mut yaml = object(host, "shop", &format!("  hosts: [{host}]\n  http:\n{own}"));
    yaml += &object(&delegate, "shop", &format!("  http:\n{part}"));
    // What another namespace says, to itself or to the callers: theirs is the narrower word.
    let to = pick(rng, &[".", ".", "shop"]);
    let far = list(rng, "far", 4, None);
    let far = far.replace("host: catalog", "host: catalog.shop").replace("host: stock", "host: stock.shop");
    yaml += &object(host, "front", &format!("  hosts: [{host}.shop]\n  exportTo: ['{to}']\n  http:\n{far}"));
    yaml
}

/// A rule of the Gateway API.
fn gateway_rule(rng: &mut Rng, at: usize) -> String {
    let mut matches = Vec::new();
    let path = pick(rng, &["/", "/a", "/a/b", "/b", "/b/1"]);
    matches.push(format!("path: {{type: {}, value: {path}}}", pick(rng, &["PathPrefix", "Exact"])));
    match rng.u8(..4) {
        0 => matches.push("headers: [{name: x-user, value: ann}]".into()),
        1 => matches.push(format!("method: {}", pick(rng, &METHODS))),
        2 => matches.push("queryParams: [{name: v, value: '1'}]".into()),
        _ => {}
    }
    let backends = pick(
        rng,
        &[
            "[{name: catalog, port: 8080}]",
            "[{name: stock, port: 8080}]",
            "[{name: catalog, port: 8080, weight: 1}, {name: stock, port: 8080, weight: 3}]",
            "[{name: nobody, port: 8080}]",
        ],
    );
    let redirect = "[{type: RequestRedirect, requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /m}}}]";
    let rewrite =
        "[{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /secret}}}]";
    let edit = "[{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-user, value: bob}]}}]";
    // Of a prefix alone.
    let prefix = matches[0].contains("PathPrefix");
    let does = match rng.u8(..6) {
        0 if prefix => format!("filters: {redirect}"),
        1 if prefix => format!("filters: {rewrite}, backendRefs: {backends}"),
        2 => format!("filters: {edit}, backendRefs: {backends}"),
        _ => format!("backendRefs: {backends}"),
    };
    format!("  - {{name: rule-{at}, matches: [{{{}}}], {does}}}\n", matches.join(", "))
}

fn gateway_routes(rng: &mut Rng, host: &str) -> String {
    let rules: String = (0..6).map(|at| gateway_rule(rng, at)).collect();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {host}, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: {host}}}]\n  rules:\n{rules}"
    )
}

fn policy(rng: &mut Rng, at: usize) -> String {
    let select = pick(rng, &["{version: v1}", "{version: v2}", "{app: stock}", "{app: catalog}"]);
    let to = match rng.u8(..4) {
        0 => "{paths: [/secret*, '*/c']}".to_owned(),
        1 => format!("{{methods: [{}], notPaths: [/b*]}}", pick(rng, &METHODS)),
        2 => "{hosts: [b.example]}".to_owned(),
        _ => format!("{{paths: [{}]}}", pick(rng, &["/a/b", "/b*", "/*"])),
    };
    let from = pick(
        rng,
        &[
            "",
            "from: [{source: {principals: ['*/sa/web']}}], ",
            "from: [{source: {notNamespaces: [shop]}}], ",
        ],
    );
    let when = pick(rng, &["", ", when: [{key: 'request.headers[x-user]', values: [bob]}]"]);
    // One of three permits: what none of them matches is denied.
    let action = if rng.u8(..3) == 0 { "ALLOW" } else { "DENY" };
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{at}, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {select}}}\n  action: {action}\n  rules: [{{{from}to: [{{operation: {to}}}]{when}}}]\n"
    )
}

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
            seen.status == 200 && outcome.instances.contains(app) && arrived == Some(path)
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

#[tokio::test(flavor = "multi_thread")]
async fn an_explanation_agrees_with_what_the_proxies_do_for_a_thousand_generated_requests() {
    let mesh = Mesh::start(BINARY).await;
    let stock = Spec { service: "stock", version: "v1", host: 13, protocol: Protocol::Http, calls: &[] };
    let (v1, v2, stock) = (
        mesh.workload(&catalog("v1", 11)).await,
        mesh.workload(&catalog("v2", 12)).await,
        mesh.workload(&stock).await,
    );
    for (app, name) in [(v1.app, "catalog-v1"), (v2.app, "catalog-v2"), (stock.app, "stock-v1")] {
        echo(app, name).await;
    }
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    let hosts = ["catalog:8080", "stock:8080"];
    let mut rng = Rng::with_seed(SEED);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for set in 0..SETS {
        let policies: String = (0..3).map(|at| policy(&mut rng, at)).collect();
        // In its place there is nothing of the others any more.
        let attached = if set >= 3 { gateway_routes(&mut rng, "stock") } else { String::new() };
        let (one, other) = (routes(&mut rng, "catalog"), routes(&mut rng, "stock"));
        let yaml = format!("{SUBSETS}{one}{other}{attached}{policies}");
        mesh.apply(&yaml).await;
        let mut connections = [Kept::open(web.outbound[0]).await, Kept::open(web.outbound[1]).await];
        for at in 0..REQUESTS {
            let case = case(&mut rng);
            let host = hosts[case.host];
            let asked = ExplainRequest {
                from: "web".into(),
                method: case.method.into(),
                url: format!("http://{host}{}", case.path),
                headers: case.headers.iter().map(|line| (*line).to_owned()).collect(),
            };
            let said = mesh.client.explain(&asked).await.unwrap();
            assert_eq!(said.in_force, Some(true), "{said:?}");
            let seen = connections[case.host].send(&case, host).await;
            assert!(
                agrees(&said, &seen),
                "seed {SEED:#x}, set {set}, request {at}: {asked:?}\nsaid {said:#?}\nseen {seen:#?}\n{yaml}"
            );
            let kind =
                said.outcomes.iter().map(|outcome| outcome.kind.as_str()).collect::<Vec<_>>().join("+");
            *kinds.entry(kind).or_default() += 1;
        }
    }
    // The generator reaches what it is for.
    for kind in ["forwarded", "answered", "denied", "failed"] {
        let count: usize =
            kinds.iter().filter(|(kinds, _)| kinds.contains(kind)).map(|(_, count)| count).sum();
        assert!(count >= 20, "{kind}: {kinds:?}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_made_is_explained_by_its_id_at_each_of_its_hops() {
    let mesh = Mesh::start(BINARY).await;
    let server = mesh.workload(&catalog("v1", 11)).await;
    echo(server.app, "catalog-v1").await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.apply(BROKEN).await;
    let mut client = Kept::open(web.outbound[0]).await;
    let mut send = async |path: &str, id: &'static str| {
        let case = Case { host: 0, method: "GET", path: path.into(), headers: vec![id] };
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
    assert_eq!(send("/old", "x-request-id: seen").await, 200);
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
