use std::os::unix::fs::PermissionsExt;

use http::Method;
use outrigger_identity::{Credentials, TrustBundle, WorkloadCertificate};

use super::types::{
    Action, ApplyQuery, FileText, IdentityBody, IdentityRequest, RuleState, RulesQuery, TokenRequest,
};
use crate::client::Client;
use crate::explain::body::ExplainRequest;
use crate::instance::{Instance, Protocol, State, sample};
use crate::{ControlPlane, Running, Settings};

const SUBSETS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, subsets: [{name: v1, labels: {version: v1}}]}
";

async fn start() -> (Running, Client, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let running = ControlPlane::start(Settings::ephemeral(dir.path())).await.unwrap();
    let client = running.client();
    (running, client, dir)
}

/// Who calls over the socket: this process's user.
fn me() -> String {
    let uid = rustix::process::getuid().as_raw();
    if uid == 0 { "root (uid 0)".to_owned() } else { crate::app::user(uid) }
}

fn catalog(id: &str) -> Instance {
    sample(id, "catalog", "v1", "127.0.0.5", 8080, Protocol::Http)
}

#[tokio::test]
async fn rules_live_and_die_over_the_socket() {
    let (running, client, dir) = start().await;
    let mode = std::fs::metadata(&running.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    client.register(&catalog("c1")).await.unwrap();
    let query = ApplyQuery { author: Some("ann".into()), wait: true, ..ApplyQuery::default() };
    let applied = client.apply(SUBSETS, &query).await.unwrap();
    assert_eq!(applied.objects[0].action, Action::Created);
    assert!(applied.in_force.unwrap().complete, "nobody is connected, so nobody lacks it");

    let rule = client.rule("DestinationRule", "shop", "catalog").await.unwrap();
    let ann = format!("ann via {}", me());
    assert_eq!((rule.version, rule.author.as_str(), rule.source.trim_end()), (1, &*ann, SUBSETS.trim_end()));
    assert_eq!(
        client.rules(&RulesQuery { kind: Some("VirtualService".into()), namespace: None }).await.unwrap(),
        []
    );
    let status = client.rules_status().await.unwrap();
    assert_eq!((status[0].state, status[0].name.as_str()), (RuleState::InForce, "catalog"));

    client.delete("DestinationRule", "shop", "catalog", &ApplyQuery::default()).await.unwrap();
    let history = client.history("DestinationRule", "shop", "catalog").await.unwrap();
    assert_eq!(
        history.iter().map(|entry| (entry.version, entry.author.as_str())).collect::<Vec<_>>(),
        [(2, me().as_str()), (1, &*ann)]
    );
    let missing = client.rule("DestinationRule", "shop", "catalog").await.unwrap_err();
    assert_eq!(missing.status().unwrap(), 404);

    client.apply(SUBSETS, &query).await.unwrap();
    running.stop().await;
    assert!(!dir.path().join("outrigger.sock").exists());
    let again = ControlPlane::start(Settings::ephemeral(dir.path())).await.unwrap();
    let client = again.client();
    assert_eq!(client.rule("DestinationRule", "shop", "catalog").await.unwrap().version, 3);
    assert_eq!(client.instances().await.unwrap()[0].instance.id, "c1");
    again.stop().await;
}

#[tokio::test]
async fn refused_rules_come_back_as_findings_with_file_line_and_advice() {
    let (running, client, _dir) = start().await;
    client.register(&catalog("c1")).await.unwrap();
    let typo = SUBSETS.replace("host:", "hosst:");
    let query = ApplyQuery { file: Some("rules.yaml".into()), ..ApplyQuery::default() };
    let error = client.apply(&typo, &query).await.unwrap_err();
    assert_eq!(error.status().unwrap(), 422);
    let finding = error
        .findings()
        .iter()
        .find(|finding| finding.is_error() && finding.message.contains("hosst"))
        .unwrap();
    assert_eq!((finding.file.as_str(), finding.line), ("rules.yaml", 4));
    assert_eq!(finding.suggestion.as_deref(), Some("host"));
    assert_eq!(client.apply("", &query).await.unwrap_err().status().unwrap(), 400);
    running.stop().await;
}

#[tokio::test]
async fn registrations_are_checked_listed_and_changed() {
    let (running, client, _dir) = start().await;
    client.register(&catalog("c1")).await.unwrap();
    client.register(&Instance { version: Some("v2".into()), ..catalog("c2") }).await.unwrap();
    client.set_state("c2", State::Maintenance).await.unwrap();
    let services = client.services().await.unwrap();
    assert_eq!(services[0].host, "catalog.shop.svc.cluster.local");
    assert_eq!(services[0].instances["c2"], State::Maintenance);
    assert_eq!(services[0].virtual_addresses[0].to_string(), "240.254.182.65", "the name's own");
    assert!(services[0].virtual_addresses[1].is_ipv6());
    let bad = client.register(&Instance { weight: 0, ..catalog("c3") }).await.unwrap_err();
    assert!(bad.status().unwrap() == 400 && bad.to_string().contains("weight"), "{bad}");
    client.deregister("c1").await.unwrap();
    assert_eq!(client.heartbeat("c1").await.unwrap_err().status().unwrap(), 404);
    running.stop().await;
}

fn over_tls(running: &Running, identity: Option<&IdentityBody>) -> Client {
    let roots = running.authority().bundle().to_pem("cluster.local");
    let bundle = TrustBundle::from_pem("cluster.local", &roots).unwrap();
    let certificate = identity.map(|own| {
        let parsed =
            WorkloadCertificate::from_key_and_chain(&own.key, &own.certificate, std::time::SystemTime::now());
        std::sync::Arc::new(parsed.unwrap())
    });
    let credentials = Credentials::new(certificate, std::sync::Arc::new(bundle));
    let address = running.addresses.management.unwrap().to_string();
    Client::tls(&address, "cluster.local", &credentials).unwrap()
}

fn request(service_account: &str) -> IdentityRequest {
    IdentityRequest { namespace: "shop".into(), service_account: service_account.into(), ttl_seconds: None }
}

#[tokio::test]
async fn over_tls_nobody_is_told_anything_and_the_admin_token_opens_everything() {
    let (running, socket, dir) = start().await;
    let nobody = over_tls(&running, None);
    assert_eq!(nobody.status().await.unwrap_err().status().unwrap(), 401);
    assert_eq!(
        nobody.clone().with_token("outrigger-admin-guess").status().await.unwrap_err().status().unwrap(),
        401
    );
    let token = std::fs::read_to_string(dir.path().join(crate::tokens::ADMIN_TOKEN_FILE)).unwrap();
    let admin = nobody.with_token(token.trim());
    admin.register(&catalog("c1")).await.unwrap();
    let operator = IdentityRequest { namespace: "outrigger-system".into(), ..request("outrigger-admin") };
    let by_certificate = over_tls(&running, Some(&socket.issue_identity(&operator).await.unwrap()));
    assert_eq!(by_certificate.status().await.unwrap().instances, 1);
    running.stop().await;
}

#[tokio::test]
async fn a_workload_may_only_act_for_itself() {
    let (running, socket, _dir) = start().await;
    let own = over_tls(&running, Some(&socket.issue_identity(&request("catalog")).await.unwrap()));
    own.register(&catalog("c1")).await.unwrap();
    own.heartbeat("c1").await.unwrap();
    let forbidden = |result: Result<super::types::ChangedBody, crate::ClientError>| {
        assert_eq!(result.unwrap_err().status().unwrap(), 403);
    };
    for address in ["10.0.0.7", "2001:db8::7"] {
        let foreign = Instance { addresses: vec![address.parse().unwrap()], ..catalog("c2") };
        let refused = own.register(&foreign).await.unwrap_err();
        assert_eq!(refused.status().unwrap(), 403);
        assert!(refused.to_string().contains("it calls from 127.0.0.1"), "{refused}");
    }
    forbidden(own.register(&Instance { sidecar: false, ..catalog("c2") }).await);
    let held = sample("w9", "web", "v1", "127.0.0.5", 8080, Protocol::Http);
    assert_eq!(socket.register(&held).await.unwrap_err().status().unwrap(), 409);
    let mut long = catalog("c2");
    long.metadata.insert("a".into(), "b".repeat(100_000));
    assert_eq!(own.register(&long).await.unwrap_err().status().unwrap(), 413);
    forbidden(own.register(&sample("w1", "web", "v1", "127.0.0.6", 80, Protocol::Http)).await);
    forbidden(own.register(&Instance { service: "bank".into(), ..catalog("c2") }).await);
    socket.register(&sample("w1", "web", "v1", "127.0.0.6", 80, Protocol::Http)).await.unwrap();
    // What is another's is for a workload as if it were not there.
    let told = |result: Result<super::types::ChangedBody, crate::ClientError>| {
        let error = result.unwrap_err();
        (error.status().unwrap().as_u16(), error.to_string().replace("w1", "w2"))
    };
    assert_eq!(told(own.heartbeat("w1").await), told(own.heartbeat("w2").await));
    let state = State::Stopped;
    assert_eq!(told(own.set_state("w1", state).await), told(own.set_state("w2", state).await));
    let gone = told(own.deregister("w1").await);
    assert!(gone.0 == 404 && gone == told(own.deregister("w2").await), "{gone:?}");
    let [held, none] = [own.instance("w1").await, own.instance("w2").await].map(Result::unwrap_err);
    assert_eq!(held.to_string().replace("w1", "w2"), none.to_string());
    let taken = own.register(&catalog("w1")).await.unwrap_err();
    assert!(taken.status().unwrap() == 409 && !taken.to_string().contains("shop/web"), "{taken}");
    let noted = socket.status().await.unwrap().rejections;
    assert!(noted.iter().any(|r| r.what == "registration" && r.reason.contains("shop/web")), "{noted:?}");
    for path in ["/v1/rules", "/v1/status", "/v1/tokens", "/v1/services"] {
        let result =
            own.call(Method::GET, path, "application/json", Default::default(), Default::default()).await;
        assert_eq!(result.unwrap_err().status().unwrap(), 403, "{path}");
    }
    assert_eq!(own.apply(SUBSETS, &ApplyQuery::default()).await.unwrap_err().status().unwrap(), 403);
    assert_eq!(own.issue_identity(&request("web")).await.err().unwrap().status().unwrap(), 403);
    let asked = |from: &str, url: &str| ExplainRequest {
        from: from.into(),
        method: "GET".into(),
        url: url.into(),
        headers: vec![],
    };
    assert_eq!(own.explain(&asked("c1", "http://catalog:8080/")).await.unwrap_err().status().unwrap(), 403);
    for (from, url, status) in [("nobody", "http://catalog:8080/", 404), ("w1", "catalog:8080", 400)] {
        assert_eq!(
            socket.explain(&asked(from, url)).await.unwrap_err().status().unwrap(),
            status,
            "{from} {url}"
        );
    }
    let said = socket.explain(&asked("w1", "http://catalog:8080/")).await.unwrap();
    assert_eq!((said.in_force, said.outcomes[0].instances.as_slice()), (None, &["c1".to_owned()][..]));
    let visible: Vec<String> =
        own.instances().await.unwrap().into_iter().map(|body| body.instance.id).collect();
    assert_eq!(visible, ["c1"]);
    running.stop().await;
}

#[tokio::test]
async fn a_join_token_registers_what_it_names() {
    let (running, socket, _dir) = start().await;
    let wanted = TokenRequest {
        namespace: "shop".into(),
        service_account: "catalog".into(),
        services: vec!["catalog".into(), "search".into()],
        ranges: vec!["10.7.0.0/16".into()],
        ..TokenRequest::default()
    };
    let join = socket.create_token(&wanted).await.unwrap();
    assert_eq!(join.address, running.addresses.xds.to_string());
    let workload = over_tls(&running, None).with_token(&join.token);
    workload.register(&Instance { service: "search".into(), ..catalog("s1") }).await.unwrap();
    let ranged = |address: &str| Instance { addresses: vec![address.parse().unwrap()], ..catalog("s2") };
    workload.register(&ranged("10.7.0.9")).await.unwrap();
    let certified = over_tls(&running, Some(&socket.issue_identity(&request("catalog")).await.unwrap()));
    certified.register(&ranged("10.7.0.8")).await.unwrap();
    assert_eq!(certified.register(&ranged("10.8.0.8")).await.unwrap_err().status().unwrap(), 403);
    let bad = TokenRequest { ranges: vec!["10.7".into()], ..wanted };
    assert!(socket.create_token(&bad).await.unwrap_err().to_string().contains("ranges: \"10.7\""));
    let listed = serde_json::to_string(&socket.tokens().await.unwrap()).unwrap();
    assert!(listed.contains("search") && !listed.contains(&join.token));
    assert_eq!(socket.revoke_tokens("shop", "catalog").await.unwrap().revoked, 1);
    assert_eq!(workload.heartbeat("s1").await.unwrap_err().status().unwrap(), 401);
    running.stop().await;
}

/// The status of a GET without TLS, asked by that name.
async fn by_name(address: std::net::SocketAddr, path: &str, more: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\n{more}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn traces_are_for_operators_and_pages_not_for_a_strangers_browser() {
    let (running, socket, _dir) = start().await;
    let traces = async |client: &Client| {
        let asked = client.call(
            Method::GET,
            "/api/services",
            "application/json",
            Default::default(),
            Default::default(),
        );
        asked.await.map(|_| ()).map_err(|error| error.status().unwrap())
    };
    assert_eq!(traces(&socket).await, Ok(()));
    let workload = over_tls(&running, Some(&socket.issue_identity(&request("catalog")).await.unwrap()));
    assert_eq!(traces(&workload).await, Err(http::StatusCode::FORBIDDEN));

    let (query, metrics) = (running.addresses.query.unwrap(), running.addresses.metrics);
    for (address, path, more, status) in [
        (query, "/api/services", "Host: localhost", "200 OK"),
        (query, "/api/services", "Host: rebound.evil:15019", "403 Forbidden"),
        (query, "/api/services", "Host: localhost\r\nOrigin: http://evil.example", "403 Forbidden"),
        (metrics, "/debug/configz", "Host: 127.0.0.1", "200 OK"),
        (metrics, "/debug/configz", "Host: rebound.evil", "403 Forbidden"),
        (metrics, "/metrics", "Host: control.example", "200 OK"),
    ] {
        let answer = by_name(address, path, more).await;
        assert!(answer.ends_with(status), "{path} {more}: {answer}");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_does_not_exist_is_an_error_in_json() {
    let (running, client, _dir) = start().await;
    for (method, path, status) in [
        (Method::GET, "/v2/rules", 404),
        (Method::PATCH, "/v1/rules", 405),
        (Method::GET, "/v1/status/wait?generation=x", 400),
    ] {
        let error = client
            .call(method, path, "application/json", Default::default(), Default::default())
            .await
            .unwrap_err();
        assert_eq!(error.status().unwrap(), status, "{path}");
        assert!(!error.to_string().is_empty());
    }
    let broken =
        client.call(Method::POST, "/v1/instances", "application/json", "{".into(), Default::default()).await;
    assert_eq!(broken.unwrap_err().status().unwrap(), 400);
    running.stop().await;
}

#[tokio::test]
async fn the_document_describes_every_path_that_is_served() {
    let document = serde_json::to_value(super::openapi::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/v1/rules",
        "/v1/analysis",
        "/v1/rules/{kind}/{namespace}/{name}",
        "/v1/rules/{kind}/{namespace}/{name}/history",
        "/v1/instances",
        "/v1/instances/{id}",
        "/v1/instances/{id}/heartbeat",
        "/v1/instances/{id}/state",
        "/v1/services",
        "/v1/status",
        "/v1/status/rules",
        "/v1/status/wait",
        "/v1/tokens",
        "/v1/tokens/{namespace}/{service_account}",
        "/v1/identities",
        "/v1/trust-bundle",
        "/v1/revocations",
        "/v1/authority",
        "/v1/authority/rotate-root",
        "/v1/authority/forget-old-roots",
        "/v1/explain",
        "/v1/describe",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    assert_eq!(paths.len(), 22);
    let (running, client, _dir) = start().await;
    let served: serde_json::Value = client.get("/openapi.json").await.unwrap();
    assert_eq!(served, document);
    running.stop().await;
}

#[tokio::test]
async fn a_second_control_plane_on_the_same_data_is_refused() {
    let (running, _, dir) = start().await;
    let error = ControlPlane::start(Settings::ephemeral(dir.path())).await.err().unwrap().to_string();
    assert!(error.contains("another process"), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn a_query_parameter_that_an_endpoint_does_not_have_is_an_error_and_does_nothing() {
    let (running, client, _dir) = start().await;
    client.register(&catalog("c1")).await.unwrap();
    for (method, path, part) in [
        (
            Method::POST,
            "/v1/rules?dryRun=true",
            "has no query parameter \"dryRun\"; it takes author, dry_run",
        ),
        (Method::POST, "/v1/rules?wait=true&timout=1", "\"timout\""),
        (Method::GET, "/v1/status?verbose", "\"verbose\"; it takes none"),
        (Method::DELETE, "/v1/instances/c1?dry_run=true", "\"dry_run\""),
    ] {
        let call = client.call(method, path, "application/yaml", SUBSETS.into(), Default::default());
        let error = call.await.unwrap_err();
        assert_eq!(error.status().unwrap(), 400, "{path}");
        assert!(error.to_string().contains(part), "{path}: {error}");
    }
    assert_eq!(client.rules(&RulesQuery::default()).await.unwrap(), []);
    assert_eq!(client.instances().await.unwrap().len(), 1);
    let dry = ApplyQuery { dry_run: true, ..ApplyQuery::default() };
    assert!(client.apply(SUBSETS, &dry).await.unwrap().dry_run);
    running.stop().await;
}

#[tokio::test]
async fn a_kind_is_taken_in_the_same_spellings_everywhere() {
    let (running, client, _dir) = start().await;
    client.register(&catalog("c1")).await.unwrap();
    for kind in
        ["DestinationRule", "destinationrule", "destinationrules", "DestinationRules", "DESTINATIONRULE"]
    {
        client.apply(SUBSETS, &ApplyQuery::default()).await.unwrap();
        let query = RulesQuery { kind: Some(kind.into()), namespace: None };
        assert_eq!(client.rules(&query).await.unwrap().len(), 1, "{kind}");
        assert_eq!(client.rule(kind, "shop", "catalog").await.unwrap().kind, "DestinationRule");
        let dry = ApplyQuery { dry_run: true, ..ApplyQuery::default() };
        assert!(client.delete(kind, "shop", "catalog", &dry).await.unwrap().dry_run);
        assert_eq!(client.rules(&query).await.unwrap().len(), 1, "a dry run deletes nothing");
        client.delete(kind, "shop", "catalog", &ApplyQuery::default()).await.unwrap();
        assert!(client.history(kind, "shop", "catalog").await.unwrap().len() >= 2);
    }
    running.stop().await;
}

#[tokio::test]
async fn several_files_are_one_set_and_findings_name_theirs() {
    let (running, client, _dir) = start().await;
    client.register(&catalog("c1")).await.unwrap();
    let file = |name: &str, text: &str| FileText { file: name.into(), text: text.into() };
    let route = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec: {hosts: [catalog], http: [{route: [{destination: {host: catalog, subset: v1}}]}]}
";
    let broken = [file("a.yaml", SUBSETS), file("b.yaml", &route.replace("http:", "htp:"))];
    let error = client.apply_files(&broken, &ApplyQuery::default()).await.unwrap_err();
    assert_eq!(error.findings()[0].file, "b.yaml");
    assert_eq!(client.rules(&RulesQuery::default()).await.unwrap(), [], "all or nothing");
    // The route stands before what it needs.
    let set = [file("a.yaml", route), file("b.yaml", SUBSETS)];
    assert_eq!(client.apply_files(&set, &ApplyQuery::default()).await.unwrap().objects.len(), 2);
    let needed =
        client.delete("destinationrule", "shop", "catalog", &ApplyQuery::default()).await.unwrap_err();
    assert_eq!(needed.status().unwrap(), 422);
    assert!(needed.findings()[0].message.contains("subset \"v1\""), "{:?}", needed.findings());
    let force = ApplyQuery { force: true, ..ApplyQuery::default() };
    assert_eq!(client.delete("destinationrule", "shop", "catalog", &force).await.unwrap().findings.len(), 1);
    // What is wrong now is found against the live mesh.
    let found = client.analysis().await.unwrap();
    assert!(found.len() == 1 && found[0].is_error(), "{found:?}");
    running.stop().await;
}

#[tokio::test]
async fn a_policy_is_not_in_force_where_nobody_enforces_it() {
    let (running, client, _dir) = start().await;
    client.register(&Instance { sidecar: false, ..catalog("legacy-1") }).await.unwrap();
    client.register(&catalog("c1")).await.unwrap();
    let deny = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}
";
    let query = ApplyQuery { wait: true, ..ApplyQuery::default() };
    let in_force = client.apply(deny, &query).await.unwrap().in_force.unwrap();
    assert_eq!(
        in_force.unenforced,
        ["not enforced by legacy-1: it has no sidecar", "not enforced by c1: its sidecar is not connected"]
    );
    let status = client.rules_status().await.unwrap();
    assert_eq!((status[0].state, &status[0].reasons), (RuleState::NotEnforced, &in_force.unenforced));
    // A Sidecar, too, where it says more than what is known.
    let sidecar = "apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: default, namespace: shop}
spec: {egress: [{hosts: ['./*']}]}
";
    let quiet = client.apply(sidecar, &query).await.unwrap().in_force.unwrap();
    assert_eq!(quiet.unenforced, [""; 0]);
    for more in
        ["outboundTrafficPolicy: {mode: REGISTRY_ONLY}", "inboundConnectionPool: {tcp: {maxConnections: 1}}"]
    {
        let text = sidecar.replace("egress:", &format!("{more}, egress:"));
        let barring = client.apply(&text, &query).await.unwrap().in_force.unwrap();
        assert_eq!(barring.unenforced, in_force.unenforced, "{more}");
    }
    running.stop().await;
}
