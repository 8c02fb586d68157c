use outrigger_model::matcher::StringMatch;
use outrigger_model::route::{Cors, Forward, Route, VirtualHost};

use super::*;
use crate::instance::{Protocol, State, sample};
use crate::world::sample;

mod generated;
mod samples;

pub(super) fn shop() -> Vec<Instance> {
    let mut v2 = sample("catalog-v2", "catalog", "v2", "127.0.0.12", 8080, Protocol::Http);
    v2.service_account = "other".into();
    let mut bare = sample("bare-1", "bare", "v1", "127.0.0.14", 8080, Protocol::Http);
    bare.sidecar = false;
    let mut away = sample("away-1", "away", "v1", "127.0.0.15", 8080, Protocol::Http);
    away.state = State::Maintenance;
    vec![
        sample("web-1", "web", "v1", "127.0.0.10", 8080, Protocol::Http),
        sample("catalog-v1", "catalog", "v1", "127.0.0.11", 8080, Protocol::Http),
        v2,
        sample("stock-1", "stock", "v1", "127.0.0.13", 7000, Protocol::Tcp),
        bare,
        away,
    ]
}

fn world(rules: &str) -> Arc<World> {
    Arc::new(sample::world(shop(), rules))
}

fn ask(rules: &str, from: &str, request: &str) -> Explanation {
    asked(&world(rules), from, request)
}

pub(super) fn asked(world: &Arc<World>, from: &str, request: &str) -> Explanation {
    let mut words = request.split(" -H ");
    let (method, url) = words.next().unwrap().split_once(' ').unwrap();
    let headers = words.map(str::to_owned).collect();
    let asked = ExplainRequest { from: from.into(), method: method.into(), url: url.into(), headers };
    explain(world, &Connected::new(), &asked).unwrap()
}

/// The only outcome, as kind, status and instances.
pub(super) fn only(answer: &Explanation) -> (&str, Option<u16>, Vec<&str>) {
    let [outcome] = answer.outcomes.as_slice() else { panic!("{:?}", answer.outcomes) };
    (&outcome.kind, outcome.status, outcome.instances.iter().map(String::as_str).collect())
}

const ROUTES: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec:
  host: catalog
  trafficPolicy: {connectionPool: {http: {http2MaxRequests: 9}}}
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec:
  hosts: [catalog]
  http:
  - name: testers
    match: [{uri: {prefix: /a}, headers: {x-test: {exact: 'on'}}}]
    route: [{destination: {host: catalog, subset: v2}}]
    timeout: 2s
    retries: {attempts: 3, retryOn: 5xx}
    rewrite: {uri: /b}
  - name: others
    match: [{uri: {prefix: /a}, sourceLabels: {app: nobody}}]
    directResponse: {status: 418}
  - name: moved
    match: [{uri: {exact: /old}}]
    redirect: {uri: /new}
  - name: rest
    route: [{destination: {host: catalog, subset: v1}}]
";

#[test]
fn the_route_the_subset_and_the_rules_that_lost_are_named() {
    let answer = ask(ROUTES, "web", "GET http://catalog:8080//a/x?q -H X-Test: on");
    assert_eq!(only(&answer), ("forwarded", None, vec!["catalog-v2"]));
    assert_eq!(
        (answer.request.path.as_str(), answer.request.written.as_deref()),
        ("/a/x?q", Some("//a/x?q"))
    );
    let route = answer.route.unwrap();
    assert_eq!(
        (route.name.as_str(), route.origin.as_deref()),
        ("testers", Some("VirtualService shop/catalog"))
    );
    assert_eq!(route.matches, "the path begins with /a and the header x-test is \"on\"");
    assert_eq!(route.timeout.as_deref(), Some("2s"));
    assert!(route.retry.unwrap().starts_with("up to 3 times on 5xx"));
    let [target] = answer.targets.as_slice() else { panic!("{:?}", answer.targets) };
    assert_eq!(target.cluster, "outbound|8080|v2|catalog.shop.svc.cluster.local");
    assert_eq!(
        (target.origin.as_deref(), target.path.as_deref()),
        (Some("DestinationRule shop/catalog"), Some("/b/x?q"))
    );
    assert!(target.policy.contains(&"at most 9 requests".to_owned()), "{:?}", target.policy);
    let lost: Vec<_> = answer.lost.iter().map(|lost| format!("{}: {}", lost.rule, lost.why)).collect();
    let expected = [
        "others: it is for clients with app=nobody",
        "moved: it does not hold that the path is /old, and it is behind the one that matches",
        "rest: it matches, but an earlier one does, too",
    ];
    assert_eq!(lost, expected);

    let answer = ask(ROUTES, "web-1", "GET http://catalog.shop:8080/a");
    assert_eq!(only(&answer), ("forwarded", None, vec!["catalog-v1"]));
    assert_eq!(answer.lost[1].why, "it does not hold that the header x-test is \"on\"");
    let answer = ask(ROUTES, "shop/web", "GET http://catalog:8080/old");
    assert_eq!(only(&answer), ("answered", Some(301), vec![]));
    assert!(answer.summary.contains("http://catalog:8080/new"), "{}", answer.summary);
}

#[test]
fn all_that_ejects_an_endpoint_is_said_and_nothing_else() {
    let policy = |spec: &str| {
        let page = format!(
            "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: catalog, namespace: shop}}\n\
             spec: {{service: catalog, {spec}}}\n"
        );
        ask(&page, "web", "GET http://catalog:8080/").targets[0].policy.clone()
    };
    for (breaker, said) in [
        ("consecutiveErrors: 3", "ejects for 30s after 3 errors in a row"),
        (
            "consecutiveErrors: 0, consecutiveGatewayErrors: 2",
            "ejects for 30s after 2 gateway errors in a row",
        ),
        (
            "consecutiveErrors: 0, successRate: {}",
            "ejects for 30s after a rate of success 1.9 deviations below the others'",
        ),
        (
            "consecutiveErrors: 4, failurePercentage: {threshold: 60}",
            "ejects for 30s after 4 errors in a row, or 60% of failures",
        ),
    ] {
        let policy = policy(&format!("circuitBreaker: {{{breaker}}}"));
        assert!(policy.iter().any(|line| line == said), "{breaker}: {policy:?}");
    }
    let limited = policy("circuitBreaker: {maxRequests: 7}");
    assert!(!limited.iter().any(|line| line.starts_with("ejects")), "{limited:?}");
    let warm = policy("loadBalancing: {warmup: {duration: 100s}}");
    assert!(warm.iter().any(|line| line == "new endpoints warm up over 100s"), "{warm:?}");
}

#[test]
fn a_preflight_that_is_answered_in_part_goes_on_in_part() {
    let world = world("");
    let source = source::instance(&world, "web").unwrap();
    let (see, connected) = (See::own(&world, source), Connected::new());
    let caller = Caller { see: &see, connected: &connected, source };
    let headers = ["origin: https://a.example", "access-control-request-method: PUT"];
    let asked = ExplainRequest {
        method: "OPTIONS".into(),
        url: "http://catalog:8080/".into(),
        headers: headers.map(str::to_owned).to_vec(),
        ..ExplainRequest::default()
    };
    let (request, _) = request::read(&asked).unwrap();
    let outcomes = |percentage: f64| {
        let cors = Cors { allow_origins: vec![StringMatch::present()], percentage, ..Cors::default() };
        let clusters = vec![WeightedCluster::only("outbound|8080||catalog.shop.svc.cluster.local")];
        let action = RouteAction::Forward(Forward { clusters, ..Forward::default() });
        let route = Route { cors: Some(cors), action, ..Route::default() };
        let host = VirtualHost { domains: vec!["*".into()], routes: vec![route], ..VirtualHost::default() };
        let table =
            RouteTable::compile(&RouteConfig { name: "r".into(), virtual_hosts: vec![host] }).unwrap();
        let mut answer = Explanation::default();
        let http = HttpConnection::new(RouteSource::Named("r".into()));
        let route = table.explain(&request).route.unwrap();
        Work { caller: &caller, answer: &mut answer }.act(&http, &request, route);
        let mut kinds: Vec<String> = answer.outcomes.into_iter().map(|outcome| outcome.kind).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(outcomes(100.0), ["answered"]);
    assert_eq!(outcomes(40.0), ["answered", "forwarded"]);
    assert_eq!(outcomes(0.0), ["forwarded"]);
}

#[test]
fn an_upgrade_is_refused_only_where_it_is_asked_for() {
    let page = "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {name: catalog, namespace: shop}\n\
                spec: {service: catalog, upgrades: [chat]}\n";
    let ask = |headers: &str| {
        let answer = ask(page, "web", &format!("GET http://catalog:8080/{headers}"));
        let outcome = &answer.outcomes[0];
        (outcome.kind.clone(), outcome.status, outcome.why.clone().unwrap_or_default())
    };
    for asks in ["", " -H upgrade: spice", " -H connection: upgrade -H upgrade: h2c"] {
        assert_eq!(ask(asks).0, "forwarded", "{asks}");
    }
    assert_eq!(ask(" -H connection: Upgrade -H upgrade: websocket, chat/2").0, "forwarded");
    let (kind, status, why) = ask(" -H connection: upgrade -H upgrade: chat, spice/1");
    assert_eq!((kind.as_str(), status), ("answered", Some(403)));
    assert!(why.contains("an upgrade to spice/1 is not allowed"), "{why}");
}

#[test]
fn whole_objects_lose_for_a_reason() {
    let hidden = ROUTES.replace("hosts: [catalog]", "hosts: [catalog]\n  exportTo: [elsewhere]");
    let hidden = ask(&hidden, "web", "GET http://catalog:8080/a");
    assert_eq!(hidden.lost[0].why, "its exportTo leaves out the namespace shop");
    let attached = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: own, namespace: shop}\nspec:\n  \
                    parentRefs: [{group: '', kind: Service, name: catalog}]\n  rules: [{backendRefs: [{name: bare, port: 8080}]}]\n";
    let answer = ask(&format!("{ROUTES}---\n{attached}"), "web", "GET http://catalog:8080/a");
    assert_eq!(only(&answer), ("forwarded", None, vec!["bare-1"]));
    assert_eq!(answer.lost[0].origin.as_deref(), Some("VirtualService shop/catalog"));
    assert_eq!(answer.lost[0].why, "HTTPRoute shop/own at this port replaces it");
}

#[test]
fn what_is_not_there_is_said() {
    let outside = ask("", "web", "GET http://example.com/");
    assert_eq!(only(&outside), ("outside", None, vec![]));
    assert!(outside.summary.contains("REGISTRY_ONLY"), "{}", outside.summary);
    let port = ask("", "web", "GET http://catalog/");
    assert!(
        port.notes.iter().any(|note| note.contains("with port 8080, and not with 80")),
        "{:?}",
        port.notes
    );
    let nobody = ask("", "web", "GET http://away:8080/");
    assert_eq!(only(&nobody), ("failed", Some(503), vec![]));
    let subset = ask(
        &ROUTES.replace("{name: v2, labels: {version: v2}}", "{name: v2, labels: {version: v3}}"),
        "web",
        "GET http://catalog:8080/a -H x-test: on",
    );
    assert_eq!(only(&subset), ("failed", Some(503), vec![]));
    let path = ask("", "web", "GET http://catalog:8080/a/..%2fb");
    assert_eq!(only(&path), ("answered", Some(400), vec![]));
    for (from, what) in [("nobody", "there are shop/away, shop/bare"), ("web.other", "no service")] {
        let asked = ExplainRequest {
            from: from.into(),
            url: "http://catalog/".into(),
            method: "GET".into(),
            headers: vec![],
        };
        let Err(Unexplained::Unknown(text)) = explain(&world(""), &Connected::new(), &asked) else {
            panic!("{from}")
        };
        assert!(text.contains(what), "{text}");
    }
}

/// mTLS is required, and one version keeps its secrets.
pub(super) const GUARDED: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: shop}
spec:
  selector: {matchLabels: {version: v2}}
  action: DENY
  rules: [{to: [{operation: {paths: [/secret*]}}]}]
";

const WEB_ONLY: &str = "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web-only, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], to: [{operation: {methods: [GET]}}]}]
";

fn policies() -> String {
    format!("{GUARDED}{WEB_ONLY}")
}

#[test]
fn the_policies_of_each_endpoint_decide_and_those_that_do_not_match_say_why() {
    let answer = ask(&policies(), "web", "GET http://catalog:8080/secret/1");
    let [denied, allowed] = answer.outcomes.as_slice() else { panic!("{:?}", answer.outcomes) };
    assert_eq!(
        (denied.kind.as_str(), denied.status, denied.instances[0].as_str()),
        ("denied", Some(403), "catalog-v2")
    );
    assert_eq!(denied.origin.as_deref(), Some("AuthorizationPolicy shop/secrets"));
    assert_eq!((allowed.kind.as_str(), allowed.instances[0].as_str()), ("forwarded", "catalog-v1"));
    let inbound = &answer.targets[0].inbound;
    let v1 = inbound.iter().find(|one| one.instances == ["catalog-v1"]).unwrap();
    assert_eq!(v1.transport, "mTLS as spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(v1.mtls.as_deref(), Some("STRICT by PeerAuthentication shop/all"));
    assert_eq!(v1.origin.as_deref(), Some("AuthorizationPolicy shop/web-only"));

    let post = ask(&policies(), "web", "POST http://catalog:8080/");
    assert!(post.outcomes.iter().all(|outcome| outcome.status == Some(403)), "{:?}", post.outcomes);
    let why = &post.targets[0].inbound[0].lost;
    assert!(why.iter().any(|lost| lost.why == "it does not hold that the method is \"GET\""), "{why:?}");
    let other = ask(&policies(), "stock", "GET http://catalog:8080/");
    let why = &other.targets[0].inbound[0].lost;
    assert!(
        why.iter().any(|lost| lost
            .why
            .contains("the peer's identity is \"spiffe://cluster.local/ns/shop/sa/web\"")),
        "{why:?}"
    );

    let plain = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: plain, namespace: shop}\nspec:\n  host: catalog\n  \
                 trafficPolicy: {tls: {mode: DISABLE}}\n";
    let plain = ask(&format!("{GUARDED}{WEB_ONLY}{plain}"), "web", "GET http://catalog:8080/");
    assert_eq!(only(&plain), ("failed", Some(503), vec!["catalog-v1", "catalog-v2"]));
    assert!(plain.summary.contains("takes no plain text"), "{}", plain.summary);
    let bare = ask(&policies(), "web", "GET http://bare:8080/");
    assert_eq!(only(&bare), ("forwarded", None, vec!["bare-1"]));
    let bytes = ask("", "web", "GET http://stock:7000/");
    assert_eq!(
        (only(&bytes), bytes.listener.as_ref().unwrap().protocol.as_str()),
        (("forwarded", None, vec!["stock-1"]), "tcp")
    );
}

#[test]
fn a_port_that_nobody_has_declared_is_judged_by_the_sidecar_that_takes_it() {
    let mut all = shop();
    all[1].metadata.insert(crate::canonical::INBOUND.to_owned(), "*".to_owned());
    let world = Arc::new(sample::world(all, GUARDED));
    let answer = asked(&world, "web", "GET http://127.0.0.11:7946/");
    assert_eq!(only(&answer), ("forwarded", None, vec!["catalog-v1"]));
    let inbound = &answer.targets[0].inbound[0];
    assert_eq!(inbound.transport, "mTLS as spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(inbound.mtls.as_deref(), Some("STRICT by PeerAuthentication shop/all"));
    let plain = asked(&world, "bare", "GET http://127.0.0.11:7946/");
    assert_eq!(only(&plain).0, "failed");
    assert!(plain.summary.contains("takes no plain text here"), "{}", plain.summary);
}

#[test]
fn faults_and_weights_leave_several_outcomes() {
    let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog, namespace: shop}\nspec:\n  hosts: [catalog]\n  \
                 http:\n  - fault: {abort: {httpStatus: 500, percentage: {value: 10}}}\n    route:\n    - {destination: {host: catalog}, weight: 90}\n    \
                 - {destination: {host: bare}, weight: 10}\n";
    let answer = ask(rules, "web", "GET http://catalog:8080/");
    let kinds: Vec<_> =
        answer.outcomes.iter().map(|outcome| (outcome.kind.as_str(), outcome.status)).collect();
    assert_eq!(kinds, [("answered", Some(500)), ("forwarded", None), ("forwarded", None)]);
    assert_eq!(answer.targets.iter().map(|target| target.percent).collect::<Vec<_>>(), [90.0, 10.0]);
}

#[test]
fn what_a_sidecar_answers_itself_is_told_to_a_call_of_grpcs_in_its_own_words() {
    let told = |more: &str| {
        let said = ask("", "web", &format!("POST http://catalog:8080/a/..%2fb{more}"));
        let [outcome] = said.outcomes.as_slice() else { panic!("{said:?}") };
        (outcome.status, outcome.why.clone().unwrap().ends_with(", gRPC status 13"))
    };
    assert_eq!(told(""), (Some(400), false));
    assert_eq!(told(" -H content-type: application/grpc"), (Some(200), true));
}

#[test]
fn a_fault_of_grpc_is_told_in_the_words_of_who_asks() {
    let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog, namespace: shop}\nspec:\n  hosts: [catalog]\n  \
                 http:\n  - fault: {abort: {grpcStatus: NOT_FOUND, percentage: {value: 100}}}\n    route: [{destination: {host: catalog}}]\n";
    let status = |request: &str| ask(rules, "web", request).outcomes[0].status;
    assert_eq!(status("GET http://catalog:8080/"), Some(404));
    assert_eq!(status("POST http://catalog:8080/ -H content-type: application/grpc+proto"), Some(200));
}

#[test]
fn a_service_of_a_cluster_is_asked_by_its_own_port_and_its_pods_ask_by_its_name() {
    let service = "{apiVersion: v1, kind: Service, metadata: {name: shelf, namespace: shop}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80, name: http, targetPort: 8080}]}}";
    let mut pod = sample("shelf-7d9-x", "shelf-app", "v1", "127.0.0.30", 8080, Protocol::Http);
    pod.services = Some(vec!["shelf".into()]);
    let mut alone = sample("alone-1", "alone", "v1", "127.0.0.20", 8080, Protocol::Http);
    alone.sidecar = false;
    let world = Arc::new(sample::world([shop(), vec![pod, alone]].concat(), service));
    // Where no sidecar picks the port it is the Service's all the same.
    let direct = asked(&world, "alone", "GET http://shelf/");
    assert_eq!(only(&direct), ("forwarded", None, vec!["shelf-7d9-x"]));
    assert_eq!(direct.targets[0].inbound[0].instances, ["shelf-7d9-x"]);
    let other = asked(&world, "alone", "GET http://shelf:8080/");
    assert_eq!(only(&other).0, "outside", "the Service has no such port");
    for from in
        ["shelf", "shop/shelf", "shelf.shop", "shelf.shop.svc.cluster.local", "shelf-app", "shop/shelf-app"]
    {
        assert_eq!(asked(&world, from, "GET http://catalog:8080/").source.instance, "shelf-7d9-x", "{from}");
    }
    let nobody = source::instance(&world, "nobody").unwrap_err();
    assert!(nobody.contains("shop/shelf,") && nobody.contains("shop/shelf-app"), "{nobody}");
}

fn with_alone(rules: &str) -> Arc<World> {
    let mut alone = sample("alone-1", "alone", "v1", "127.0.0.20", 8080, Protocol::Http);
    alone.sidecar = false;
    Arc::new(sample::world([shop(), vec![alone]].concat(), rules))
}

#[test]
fn a_client_without_a_sidecar_goes_past_routes_and_proves_nothing() {
    let ask = |rules: &str, request: &str| asked(&with_alone(rules), "alone", request);
    // A route would answer 418 of its own, and another subset's instances would get the rest.
    let rules = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: catalog, namespace: shop}\nspec:\n  hosts: [catalog]\n  \
                 http: [{directResponse: {status: 418}}]\n";
    let answer = ask(rules, "GET http://catalog:8080//a");
    assert_eq!(only(&answer), ("forwarded", None, vec!["catalog-v1", "catalog-v2"]));
    assert!(answer.summary.contains("alone-1 has no sidecar that routes it"), "{}", answer.summary);
    assert_eq!((answer.source.identity.as_str(), answer.listener, answer.route), ("", None, None));
    assert_eq!(answer.targets[0].inbound[0].transport, "plain text");
    assert_eq!(answer.lost[0].origin.as_deref(), Some("VirtualService shop/catalog"));
    assert_eq!(answer.lost[0].why, "alone-1 has no sidecar that would apply it");
    // Not even mTLS that a rule of the client's side requires.
    let tls = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: catalog, namespace: shop}\nspec:\n  host: catalog\n  \
               trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}\n";
    assert_eq!(only(&ask(tls, "GET http://catalog:8080/")).0, "forwarded");

    let strict = ask(GUARDED, "GET http://catalog:8080/");
    assert_eq!(only(&strict), ("failed", None, vec!["catalog-v1", "catalog-v2"]));
    assert!(strict.summary.contains("its sidecar takes no plain text here"), "{}", strict.summary);
    let other = ask(GUARDED, "GET https://catalog:8080/");
    assert!(other.summary.contains("no certificate is shown"), "{}", other.summary);

    let permissive = policies().replace("STRICT", "PERMISSIVE");
    let denied = ask(&permissive, "GET http://catalog:8080/a/../secret/1");
    assert!(denied.outcomes.iter().all(|outcome| outcome.status == Some(403)), "{:?}", denied.outcomes);
    let by = |id: &str| {
        let found = denied.outcomes.iter().find(|outcome| outcome.instances == [id]).unwrap();
        found.origin.as_deref()
    };
    assert_eq!(by("catalog-v2"), Some("AuthorizationPolicy shop/secrets"), "the path in its one form");
    assert_eq!(only(&ask(&permissive, "GET http://127.0.0.14:8080/")), ("forwarded", None, vec!["bare-1"]));
}

#[test]
fn a_client_without_a_sidecar_reaches_who_runs_and_nobody_of_whom_only_sidecars_know() {
    let world = with_alone("");
    let outside = asked(&world, "alone", "GET http://example.com/");
    assert_eq!(only(&outside), ("outside", None, vec![]));
    assert!(outside.summary.contains("its own resolver"), "{}", outside.summary);
    let away = asked(&world, "alone", "GET http://away:8080/");
    assert_eq!(only(&away).0, "outside", "its only instance is in maintenance");
    let host = world.services().find(|service| service.name == "catalog").unwrap();
    let address = host.addresses("shop")[0];
    let given = asked(&world, "alone", &format!("GET http://{address}:8080/"));
    assert_eq!(only(&given), ("failed", None, vec![]));
    assert!(given.summary.contains("which only sidecars know"), "{}", given.summary);
    // A gRPC client beside it is no sidecar, and routes all the same.
    let scope = See::own(&world, world.instance("alone-1").unwrap()).scope;
    let beside = Beside { scope: Scope { kind: ClientKind::Grpc, ..scope }, in_force: true };
    let question = ExplainRequest {
        from: "alone".into(),
        method: "GET".into(),
        url: "http://catalog:8080/".into(),
        headers: vec![],
    };
    let routed = explain(&world, &[("alone-1".to_owned(), beside)].into(), &question).unwrap();
    assert_eq!(routed.source.client.as_deref(), Some("grpc"));
    assert!(routed.listener.is_some(), "{routed:?}");
}

#[test]
fn a_route_of_connections_is_named_and_what_it_replaces_is_lost() {
    let tcp = "{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {name: own, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: catalog}], rules: [{backendRefs: [{name: bare, port: 8080}, {name: nobody, port: 1, weight: 0}]}]}}";
    let answer = ask(&format!("{ROUTES}---\n{tcp}"), "web", "GET http://catalog:8080/a");
    assert_eq!(only(&answer), ("forwarded", None, vec!["bare-1"]));
    let route = answer.route.unwrap();
    assert_eq!(route.origin.as_deref(), Some("TCPRoute shop/own"));
    assert_eq!(route.matches, "connections of bytes");
    assert_eq!(answer.lost[0].why, "TCPRoute shop/own at this port replaces it");
    let http = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: web, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: catalog}], rules: [{backendRefs: [{name: bare, port: 8080}]}]}}";
    let answer = ask(&format!("{http}\n---\n{tcp}"), "web", "GET http://catalog:8080/a");
    assert_eq!(answer.route.unwrap().origin.as_deref(), Some("HTTPRoute shop/web"));
    let lost: Vec<_> = answer.lost.iter().map(|lost| (lost.origin.as_deref(), lost.why.as_str())).collect();
    assert_eq!(lost, [(Some("TCPRoute shop/own"), "HTTPRoute shop/web is of a more specific kind")]);
}
