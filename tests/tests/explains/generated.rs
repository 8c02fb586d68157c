//! Requests and rules of generated kinds.

use fastrand::Rng;

const PATHS: [&str; 12] =
    ["/", "/a", "/a/b", "/a/b/c", "/ab", "/b", "/b/1", "/b/x", "//a//b", "/a/../b/2", "/%61/c", "/a/..%2fb"];
const QUERIES: [&str; 4] = ["", "?v=1", "?v=2&w", "?w=3"];
const METHODS: [&str; 4] = ["GET", "POST", "DELETE", "OPTIONS"];
const HEADERS: [&str; 9] = [
    "x-user: ann",
    "x-user: bob",
    "x-kind: test",
    "x-kind: testing",
    "x-outrigger-own: 1",
    "X_Forwarded_For: 1",
    "content-type: application/grpc",
    "connection: upgrade",
    "upgrade: h2c",
];

/// Of pages of which origin a request is.
const ORIGINS: [Option<&str>; 4] =
    [None, None, Some("origin: https://shop.example"), Some("origin: https://other.example")];
const PREFLIGHT: &str = "access-control-request-method: PUT";
/// Signed is `{"iss":"https://a","sub":"me"}`.
const TOKENS: [Option<&str>; 5] = [
    None,
    None,
    None,
    Some(
        "authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJodHRwczovL2EiLCJzdWIiOiJtZSJ9.ix1ZoTJdzreIk2TV3MRTZFCc4D7j0w85pQAps1X9gv0",
    ),
    Some("authorization: Bearer rubbish"),
];

/// Whose tokens instances of catalog take.
pub const ISSUER: &str = r#"---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  selector: {matchLabels: {app: catalog}}
  jwtRules:
  - issuer: https://a
    jwks: '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}'
    outputClaimToHeaders: [{header: x-user, claim: sub}]
"#;

/// A request, and where it is sent to.
pub struct Case {
    pub host: usize,
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<String>,
}

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

pub fn case(rng: &mut Rng) -> Case {
    let path = format!("{}{}", pick(rng, &PATHS), pick(rng, &QUERIES));
    let mut headers: Vec<&str> = HEADERS.into_iter().filter(|_| rng.u8(..4) == 0).collect();
    let (origin, mut method) = (pick(rng, &ORIGINS), pick(rng, &METHODS));
    headers.extend(origin);
    if origin.is_some() && rng.u8(..4) > 0 {
        headers.push(PREFLIGHT);
        method = pick(rng, &["OPTIONS", "OPTIONS", method]);
    }
    headers.extend(pick(rng, &TOKENS));
    let headers = headers.into_iter().map(str::to_owned).collect();
    Case { host: rng.usize(..3), method, path, headers }
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
        2 => {
            let status = match rng.bool() {
                true => format!("httpStatus: {}", 450 + rng.u16(..9)),
                false => format!("grpcStatus: {}", pick(rng, &["UNAVAILABLE", "NOT_FOUND", "INTERNAL"])),
            };
            let percent = pick(rng, &[100, 100, 30]);
            format!("fault: {{abort: {{{status}, percentage: {{value: {percent}}}}}}}\n    {route}")
        }
        3 => format!("rewrite: {{uri: /secret}}\n    {route}"),
        4 => format!("rewrite: {{uri: /b, authority: b.example}}\n    {route}"),
        5 => "route:\n    - {destination: {host: catalog, subset: v1}, weight: 40}\n    - {destination: {host: stock}, weight: 60}".into(),
        _ => route,
    }
}

/// What a route that sends requests on does beside it: other origins, copies.
fn beside(rng: &mut Rng, native: bool) -> Vec<String> {
    let mut all = Vec::new();
    if rng.bool() {
        let others = pick(rng, &["", ", unmatchedPreflights: IGNORE"]);
        let (field, origin) = match native {
            true => ("cors", "'https://shop.example'"),
            false => ("corsPolicy", "{exact: 'https://shop.example'}"),
        };
        all.push(format!("{field}: {{allowOrigins: [{origin}], allowMethods: [PUT]{others}}}"));
    }
    if rng.u8(..3) == 0 {
        let to = if native { "service: copies" } else { "host: copies.shop.svc.cluster.local" };
        all.push(format!("mirror: {{{to}}}"));
    }
    all
}

/// Routes, of which some are handed to another object.
fn list(rng: &mut Rng, name: &str, count: usize, delegate: Option<&str>) -> String {
    let mut yaml = String::new();
    for at in 0..count {
        let conditions: Vec<_> = (0..=rng.usize(..2)).map(|_| condition(rng)).collect();
        let mut action = match delegate.filter(|_| rng.u8(..8) == 0) {
            Some(delegate) => format!("delegate: {{name: {delegate}}}"),
            None => action(rng),
        };
        if action.contains("route:") {
            beside(rng, false).iter().for_each(|field| action += &format!("\n    {field}"));
        }
        yaml += &format!("  - name: {name}-{at}\n    match: [{}]\n    {action}\n", conditions.join(", "));
    }
    yaml
}

fn object(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

pub fn routes(rng: &mut Rng, host: &str) -> String {
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
    let copied = "[{type: RequestMirror, requestMirror: {backendRef: {name: copies, port: 8080}}}]";
    let called =
        "[{type: CORS, cors: {allowOrigins: ['https://shop.example'], allowMethods: [PUT], maxAge: 60}}]";
    // Of a prefix alone.
    let prefix = matches[0].contains("PathPrefix");
    let does = match rng.u8(..8) {
        0 if prefix => format!("filters: {redirect}"),
        1 if prefix => format!("filters: {rewrite}, backendRefs: {backends}"),
        2 => format!("filters: {edit}, backendRefs: {backends}"),
        3 => format!("filters: {copied}, backendRefs: {backends}"),
        4 => format!("filters: {called}, backendRefs: {backends}"),
        _ => format!("backendRefs: {backends}"),
    };
    format!("  - {{name: rule-{at}, matches: [{{{}}}], {does}}}\n", matches.join(", "))
}

pub fn gateway_routes(rng: &mut Rng, host: &str) -> String {
    let rules: String = (0..6).map(|at| gateway_rule(rng, at)).collect();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {host}, namespace: shop}}\nspec:\n  \
         parentRefs: [{{group: '', kind: Service, name: {host}}}]\n  rules:\n{rules}"
    )
}

/// A native page.
pub fn page(rng: &mut Rng, host: &str) -> String {
    let mut routes = String::new();
    for at in 0..6 {
        let path = pick(
            rng,
            &["{prefix: /a}", "/a/b", "{prefix: /b}", "/b/1", "{regex: '/a(/[a-z]+)?'}", "{prefix: /}"],
        );
        let more = pick(
            rng,
            &[
                "",
                "",
                ", headers: {x-user: ann}",
                ", withoutHeaders: {x-kind: test}",
                ", query: {v: '1'}",
                ", method: GET",
            ],
        );
        let to = pick(
            rng,
            &[
                "to: [{version: p1}]",
                "to: [{version: p2}]",
                "to: [{version: p1, weight: 40}, {version: p2, weight: 60}]",
                "to: [{service: stock}]",
            ],
        );
        let does = match rng.u8(..8) {
            0 => format!("directResponse: {{status: {}}}", 440 + rng.u16(..9)),
            1 => format!("redirect: {{path: /page{}, status: 307}}", rng.u8(..)),
            2 => {
                let (status, percent) = (450 + rng.u16(..9), pick(rng, &[100, 100, 30]));
                format!("fault: {{abort: {{status: {status}, percent: {percent}}}}}, {to}")
            }
            3 => format!("rewrite: {{path: /secret}}, {to}"),
            _ => to.to_owned(),
        };
        let others = if does.ends_with(to) { beside(rng, true) } else { Vec::new() };
        let others: String = others.iter().map(|field| format!(", {field}")).collect();
        routes += &format!("  - {{name: page-{at}, match: {{path: {path}{more}}}, {does}{others}}}\n");
    }
    format!(
        "---\napiVersion: outrigger.io/v1\nkind: TrafficRules\nmetadata: {{name: {host}, namespace: shop}}\nspec:\n  \
         service: {host}\n  routes:\n{routes}"
    )
}

pub fn policy(rng: &mut Rng, at: usize) -> String {
    let select =
        pick(rng, &["{version: v1}", "{version: v2}", "{app: stock}", "{app: catalog}", "{app: prices}"]);
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
            "from: [{source: {requestPrincipals: ['https://a/*']}}], ",
            "from: [{source: {notRequestPrincipals: ['*']}}], ",
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
