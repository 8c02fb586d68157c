//! Rules by chance, of all dialects: what is accepted compiles, travels unchanged, compiles alike however its objects stand in their files,
//! and the route that `explain` names is the one that the proxy's table picks of what came over the wire.

use fastrand::Rng;
use outrigger_rules::parse;

use super::*;

const SEED: u64 = 0x6f75_7472_6967_6765;
const SETS: usize = 600;
/// Under each set.
const REQUESTS: usize = 12;

const PATHS: [&str; 9] = ["/", "/a", "/A", "/a/b", "/a/b/c", "/ab", "/b", "/b/1", "/b?v=1&w"];
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
const HEADERS: [&str; 6] = [
    "x-user: ann",
    "x-user: bob",
    "x-kind: testing",
    "x-number: 7",
    "cookie: a=b; user=ann",
    "content-type: application/grpc",
];
const TEXTS: [&str; 8] = [
    "{exact: ann}",
    "{prefix: te}",
    "{regex: 'a(n+)'}",
    "{regex: '[ab'}",
    "{exact: ''}",
    "{}",
    "{exact: b, prefix: c}",
    "{exact: '7'}",
];
const TIMES: [&str; 6] = ["1s", "250ms", "0s", "1h1m", "soon", "-1s"];

fn of<'t>(rng: &mut Rng, texts: &[&'t str]) -> &'t str {
    texts[rng.usize(..texts.len())]
}

/// Some of these, each with a chance of one in `odds`.
fn some(rng: &mut Rng, odds: u8, fields: Vec<String>) -> String {
    let taken: Vec<String> = fields.into_iter().filter(|_| rng.u8(..odds) == 0).collect();
    taken.join(", ")
}

fn istio_match(rng: &mut Rng) -> String {
    let path = of(rng, &["/a", "/a/b", "/b", "/b/", "a", ""]);
    let fields = vec![
        format!("uri: {{{}: '{path}'}}", of(rng, &["exact", "prefix", "regex"])),
        format!("ignoreUriCase: {}", rng.bool()),
        format!("method: {{exact: {}}}", of(rng, &METHODS)),
        format!("headers: {{x-user: {}}}", of(rng, &TEXTS)),
        format!("withoutHeaders: {{x-kind: {}}}", of(rng, &TEXTS)),
        format!("queryParams: {{v: {}}}", of(rng, &["{exact: '1'}", "{}", "{prefix: a}"])),
        format!("authority: {{prefix: {}}}", of(rng, &["catalog", "other"])),
        format!("scheme: {{exact: {}}}", of(rng, &["http", "https"])),
        format!("port: {}", of(rng, &["8080", "81"])),
        format!("sourceLabels: {{app: {}}}", of(rng, &["web", "nobody"])),
    ];
    format!("{{{}}}", some(rng, 5, fields))
}

fn edits(rng: &mut Rng) -> String {
    let value = of(
        rng,
        &["plain", "50%%", "%REQ(x-kind?x-user):3%", "%START_TIME(%s)%", "50%", "%NO%", "%RESPONSE_CODE%"],
    );
    let way = of(rng, &["request", "response"]);
    format!(
        "headers: {{{way}: {{{}: {{x-{}: '{value}'}}, remove: [x-gone]}}}}",
        of(rng, &["set", "add"]),
        rng.u8(..3)
    )
}

fn virtual_service(rng: &mut Rng, name: &str) -> String {
    let mut routes = String::new();
    for at in 0..=rng.usize(..4) {
        let matches: Vec<_> = (0..=rng.usize(..2)).map(|_| istio_match(rng)).collect();
        let target = |rng: &mut Rng| {
            let subset = of(rng, &["", ", subset: v1", ", subset: v2", ", subset: none"]);
            format!("{{destination: {{host: catalog{subset}}}, weight: {}}}", rng.u8(1..9))
        };
        let action = match rng.u8(..8) {
            0 => format!("redirect: {{uri: /moved, redirectCode: {}}}", of(rng, &["301", "308", "200"])),
            1 => format!("directResponse: {{status: {}}}", of(rng, &["418", "200", "7"])),
            2 => format!("rewrite: {{uri: {}}}, route: [{}]", of(rng, &["/x", "''"]), target(rng)),
            3 => format!("rewrite: {{authority: b.test}}, route: [{}, {}]", target(rng), target(rng)),
            _ => format!("route: [{}]", target(rng)),
        };
        let more = vec![
            format!("timeout: {}", of(rng, &TIMES)),
            format!(
                "retries: {{attempts: {}, retryOn: '{}', perTryTimeout: {}}}",
                1 + rng.u8(..3),
                of(rng, &["5xx", "503,reset", "never"]),
                of(rng, &TIMES)
            ),
            edits(rng),
            format!("corsPolicy: {{allowOrigins: [{}], maxAge: {}}}", of(rng, &TEXTS), of(rng, &TIMES)),
            format!(
                "mirror: {{host: stock}}, mirrorPercentage: {{value: {}}}",
                of(rng, &["1", "0.5", "101"])
            ),
            format!("fault: {{delay: {{fixedDelay: {}, percentage: {{value: 5}}}}}}", of(rng, &TIMES)),
        ];
        let more = some(rng, 6, more);
        let more = if more.is_empty() { more } else { format!(", {more}") };
        routes += &format!("  - {{name: {name}-{at}, match: [{}], {action}{more}}}\n", matches.join(", "));
    }
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  hosts: [catalog]\n  http:\n{routes}"
    )
}

fn page(rng: &mut Rng, name: &str) -> String {
    let mut routes = String::new();
    for at in 0..=rng.usize(..4) {
        let fields = vec![
            format!(
                "path: {}",
                of(rng, &["/a", "{prefix: /a}", "{regex: '/b/[0-9]+'}", "{prefix: /b/}", "{exact: ''}"])
            ),
            format!("ignoreCase: {}", rng.bool()),
            format!("method: {}", of(rng, &["GET", "[GET, POST]", "get"])),
            format!("headers: {{x-user: {}}}", of(rng, &TEXTS)),
            format!("withoutHeaders: {{x-number: {}}}", of(rng, &TEXTS)),
            format!("query: {{v: {}}}", of(rng, &["'1'", "{present: true}"])),
        ];
        let matches = some(rng, 3, fields);
        let fields = vec![
            format!("timeout: {}", of(rng, &TIMES)),
            format!(
                "retry: {{attempts: {}, retryOn: [{}], perTryTimeout: {}}}",
                rng.u8(..4),
                of(rng, &["5xx", "503, reset", "never"]),
                of(rng, &TIMES)
            ),
            edits(rng),
            format!("streams: {{maxDuration: {}}}", of(rng, &TIMES)),
            format!("session: {{cookie: {{name: s{at}}}, absoluteTimeout: {}}}", of(rng, &TIMES)),
            format!("hedge: {{delay: {}}}", of(rng, &TIMES)),
            format!(
                "rewrite: {}",
                of(
                    rng,
                    &["{prefix: /z}", "{path: /z}", "{regex: {pattern: '/(a)', substitution: '/\\1'}}", "{}"]
                )
            ),
            format!(
                "to: [{{{}, weight: 3}}, {{version: v2}}]",
                of(rng, &["version: v1", "subset: one", "service: stock", "subset: none"])
            ),
        ];
        let more = some(rng, 4, fields);
        let parts = [format!("name: {name}-{at}"), format!("match: {{{matches}}}"), more];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        routes += &format!("  - {{{}}}\n", parts.join(", "));
    }
    let fields = vec![
        format!(
            "circuitBreaker: {{maxRequests: {}, trip: {{failurePercent: {}}}}}",
            rng.u8(..4),
            of(rng, &["20", "0", "101"])
        ),
        format!(
            "connections: {{streamsPerConnection: {}, idleTimeout: {}}}",
            of(rng, &["1", "100", "0"]),
            of(rng, &TIMES)
        ),
        format!(
            "loadBalancing: {}",
            of(
                rng,
                &[
                    "{policy: random}",
                    "{policy: ringHash, hash: {header: x-user}}",
                    "{policy: maglev, size: 4, hash: {source: true}}",
                    "{policy: leastRequest, choices: 3}"
                ]
            )
        ),
    ];
    let fields: Vec<String> =
        fields.into_iter().filter(|_| rng.u8(..3) == 0).map(|field| format!("  {field}\n")).collect();
    format!(
        "apiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  service: catalog\n  \
         subsets: [{{name: one, labels: {{version: v1}}}}]\n{}  routes:\n{routes}",
        fields.concat()
    )
}

fn http_route(rng: &mut Rng, name: &str) -> String {
    let mut rules = String::new();
    for _ in 0..=rng.usize(..3) {
        let kind = of(rng, &["Exact", "PathPrefix", "RegularExpression"]);
        let fields = vec![
            format!("path: {{type: {kind}, value: '{}'}}", of(rng, &["/a", "/a/b", "/b", "b"])),
            format!("method: {}", of(rng, &METHODS)),
            format!("headers: [{{name: x-user, value: {}}}]", of(rng, &["ann", "bob"])),
            format!("queryParams: [{{name: v, value: '{}'}}]", of(rng, &["1", "2"])),
        ];
        let fields = some(rng, 2, fields);
        let filter = of(
            rng,
            &[
                "",
                "filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: '5%'}]}}], ",
                "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /z}}}], ",
                "filters: [{type: RequestRedirect, requestRedirect: {statusCode: 302}}], ",
            ],
        );
        let backends = match filter.contains("Redirect") {
            true => String::new(),
            false => format!("backendRefs: [{{name: catalog, port: 8080, weight: {}}}]", rng.u8(..3)),
        };
        rules += &format!("  - {{matches: [{{{fields}}}], {filter}{backends}}}\n");
    }
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         parentRefs: [{{kind: Service, group: '', name: catalog, port: 8080}}]\n  rules:\n{rules}"
    )
}

const SUBSETS: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
";

fn documents(rng: &mut Rng) -> Vec<String> {
    let mut all = vec![SUBSETS.to_owned()];
    for at in 0..=rng.usize(..2) {
        let name = format!("g{at}");
        all.push(match rng.u8(..3) {
            0 => virtual_service(rng, &name),
            1 => page(rng, &name),
            _ => http_route(rng, &name),
        });
    }
    all
}

struct Sent {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
}

impl RequestView for Sent {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        self.path
    }
    fn authority(&self) -> &str {
        "catalog:8080"
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    }
}

fn request(rng: &mut Rng) -> Sent {
    let headers = HEADERS.iter().filter(|_| rng.u8(..3) == 0).filter_map(|line| line.split_once(": "));
    let headers = headers.collect();
    Sent { method: of(rng, &METHODS), path: of(rng, &PATHS), headers }
}

/// All that a caller of the service is sent, by kind and name.
fn resources(world: &Arc<World>) -> BTreeMap<(ResourceKind, String), Resource> {
    let web = source::instance(world, "web").unwrap();
    let see = See::own(world, web);
    let mut all = BTreeMap::new();
    for subset in ["", "v1", "v2", "one", "none"] {
        for kind in
            [ResourceKind::Listener, ResourceKind::Routes, ResourceKind::Cluster, ResourceKind::Endpoints]
        {
            let name = format!("outbound|8080|{subset}|catalog.shop.svc.cluster.local");
            if let Some(resource) = see.resource(kind, &name) {
                all.insert((kind, name), resource);
            }
        }
    }
    all
}

#[test]
fn accepted_rules_compile_alike_and_are_explained_as_the_proxy_picks() {
    let mut rng = Rng::with_seed(SEED);
    let (mut accepted, mut routed, mut nowhere) = (0, 0, 0);
    for set in 0..SETS {
        let mut documents = documents(&mut rng);
        let yaml = documents.join("---\n");
        if parse("generated", &yaml).has_errors() {
            continue;
        }
        accepted += 1;
        let built = world(&yaml);
        let all = resources(&built);
        documents.reverse();
        assert_eq!(all, resources(&world(&documents.join("---\n"))), "set {set}, in another order:\n{yaml}");

        let mut table = None;
        for ((kind, name), resource) in &all {
            let sent = outrigger_xds::encode(resource, ClientKind::Outrigger);
            let got = outrigger_xds::decode(sent.type_url, &sent.value);
            let got = got.unwrap_or_else(|why| panic!("set {set}: {name}: {why:?}\n{yaml}"));
            assert_eq!(got, *resource, "set {set}: {kind:?} {name}\n{yaml}");
            if let Resource::Routes(config) = &got
                && name.contains("||")
            {
                let compiled = RouteTable::compile(config);
                table = Some(compiled.unwrap_or_else(|why| panic!("set {set}: {why:?}\n{yaml}")));
            }
        }
        let table = table.unwrap_or_else(|| panic!("set {set}: no routes\n{yaml}"));
        for _ in 0..REQUESTS {
            let sent = request(&mut rng);
            let headers: Vec<_> =
                sent.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
            let question = ExplainRequest {
                from: "web".into(),
                method: sent.method.into(),
                url: format!("http://catalog:8080{}", sent.path),
                headers,
            };
            let answer = explain(&built, &Connected::new(), &question).unwrap();
            let said = answer.route.map(|route| (route.virtual_host, route.name));
            let picked = table.find(&sent);
            let picked = picked.map(|found| (found.host.name.clone(), found.route.config.name.clone()));
            assert_eq!(said, picked, "set {set}: {question:?}\n{yaml}");
            *(if picked.is_some() { &mut routed } else { &mut nowhere }) += 1;
        }
    }
    assert!(accepted >= SETS / 5, "only {accepted} of {SETS} sets were accepted");
    assert!(routed >= 500 && nowhere >= 50, "{routed} requests had a route, {nowhere} had none");
}
