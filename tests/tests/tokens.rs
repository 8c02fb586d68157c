//! Tokens of requests: the same requests to our sidecar and to a real Envoy have the same answers, and rules of users, with keys
//! that are fetched, hold through real sidecars and the real control plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode as signed};
use outrigger_model::listener::{HttpConnection, HttpFilter, RouteSource};
use outrigger_model::matcher::StringMatch;
use outrigger_model::policy::{ClaimMatch, ClaimValue, Permission, Principal, Rbac, RbacAction, RbacPolicy};
use outrigger_model::route::{
    Forward, PathMatch, Route, RouteAction, RouteConfig, RouteMatch, VirtualHost, WeightedCluster,
};
use outrigger_model::token::{ClaimHeader, JwtAuthn, JwtProvider, Requirement, TokenHeader, TokenRule};
use outrigger_tests::app::echo;
use outrigger_tests::fake_control::{FakeControl, resource, response};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::recorder::{self, recorder};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use outrigger_xds::Encoded;
use serde_json::{Value, json};

use crate::BINARY;
use crate::paths::{CLUSTER, inbound, start_envoy};
use crate::thin_thread::{STRICT, catalog, web};

/// Somebody who issues tokens.
pub struct Issuer {
    name: &'static str,
    key: rcgen::KeyPair,
}

impl Issuer {
    pub fn new(name: &'static str) -> Self {
        Self { name, key: rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    pub fn keys(&self) -> String {
        let point = self.key.public_key_raw();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.name,
            "x": part(&point[1..33]), "y": part(&point[33..]) }]})
        .to_string()
    }

    /// A good token, but for what is other.
    pub fn token(&self, other: Value) -> String {
        let mut claims = json!({"iss": self.name, "sub": "me", "aud": "shop", "exp": now() + 600});
        let claims_of = claims.as_object_mut().unwrap();
        claims_of.extend(other.as_object().unwrap().clone());
        claims_of.retain(|_, value| !value.is_null());
        let header = Header { kid: Some(self.name.to_owned()), ..Header::new(Algorithm::ES256) };
        signed(&header, &claims, &EncodingKey::from_ec_der(&self.key.serialize_der())).unwrap()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// `a` where tokens usually are, `b` in a header of its own, which goes on.
fn filter(a: &Issuer, b: &Issuer) -> JwtAuthn {
    let provider = |issuer: &Issuer| JwtProvider {
        payload_name: "payload".into(),
        ..JwtProvider::new(issuer.name, issuer.keys())
    };
    let a = JwtProvider {
        audiences: vec!["shop".into()],
        payload_header: Some("x-payload".into()),
        claim_headers: vec![ClaimHeader { header: "x-sub".into(), claim: "sub".into() }],
        spaced_claims: vec!["scope".into()],
        ..provider(a)
    };
    let b = JwtProvider {
        headers: vec![TokenHeader { name: "x-b".into(), prefix: "JWT ".into() }],
        forward: true,
        ..provider(b)
    };
    let named = |name: &str| Requirement::Provider { name: name.into(), audiences: Vec::new() };
    let or_none = |name: &str| Requirement::Any(vec![named(name), Requirement::AllowMissing]);
    let none_bad = Requirement::All(vec![or_none("a"), or_none("b")]);
    let below = |path: &str| RouteMatch { path: PathMatch::Prefix(path.into()), ..RouteMatch::any() };
    let rule = |matches, requires| TokenRule { matches, requires };
    let admins = Requirement::Provider { name: "a".into(), audiences: vec!["admins".into()] };
    let other = Requirement::Provider { name: "a".into(), audiences: vec!["other".into()] };
    JwtAuthn {
        providers: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
        rules: vec![
            rule(below("/open"), Requirement::Nothing),
            rule(below("/both"), Requirement::All(vec![named("a"), named("b")])),
            rule(below("/other"), other),
            rule(below("/some"), Requirement::AllowMissing),
            rule(below("/admins"), Requirement::Any(vec![admins, Requirement::AllowMissing])),
            rule(RouteMatch::any(), Requirement::Any(vec![named("a"), named("b"), none_bad])),
        ],
        bypass_preflight: true,
    }
}

/// Below `/public` everybody; else by what tokens say.
fn policy() -> Rbac {
    let claim = |path: &str, value: ClaimValue| {
        let path = ["payload", path].map(str::to_owned).into();
        Principal::Claim(ClaimMatch { path, value })
    };
    let text = |text: &str| ClaimValue::Text(StringMatch::exact(text));
    let member = |value: &str| ClaimValue::Member(Box::new(text(value)));
    let allow = |permission, principal| RbacPolicy {
        permissions: vec![permission],
        principals: vec![principal],
        origin: None,
    };
    let path = |path: &str| Permission::Path(StringMatch::prefix(path));
    let me = Principal::And(vec![claim("iss", text("https://a")), claim("sub", text("me"))]);
    let either = Principal::Or(vec![
        claim("groups", ClaimValue::AnyOf(vec![text("admin"), member("admin")])),
        claim("scope", member("write")),
        Principal::And(vec![
            claim("staff", ClaimValue::Bool(true)),
            Principal::Not(Box::new(claim("sub", ClaimValue::Present))),
        ]),
    ]);
    let policies = BTreeMap::from([
        ("open".to_owned(), allow(path("/public"), Principal::Any)),
        ("me".to_owned(), allow(path("/both"), me.clone())),
        ("mine".to_owned(), allow(path("/me"), me)),
        ("admin".to_owned(), allow(path("/admin"), either)),
        ("rest".to_owned(), allow(path("/open"), Principal::Any)),
        ("other".to_owned(), allow(path("/other"), Principal::Any)),
        ("some".to_owned(), allow(path("/some"), Principal::Any)),
        ("admins".to_owned(), allow(path("/admins"), Principal::Any)),
    ]);
    Rbac { action: RbacAction::Allow, policies }
}

fn listener(address: SocketAddr, tokens: &JwtAuthn) -> Encoded {
    let route = Route {
        name: "default".into(),
        matches: RouteMatch::any(),
        action: RouteAction::Forward(Forward {
            clusters: vec![WeightedCluster::only(CLUSTER)],
            ..Forward::default()
        }),
        ..Route::default()
    };
    let host =
        VirtualHost { name: "any".into(), domains: vec!["*".into()], routes: vec![route], retry: None };
    let mut http = HttpConnection::new(RouteSource::Inline(RouteConfig {
        name: CLUSTER.into(),
        virtual_hosts: vec![host],
    }));
    http.filters = vec![HttpFilter::Tokens(Box::new(tokens.clone())), HttpFilter::Rbac(policy())];
    inbound(address, http)
}

fn requests(a: &Issuer, b: &Issuer) -> Vec<String> {
    let good = a.token(json!({}));
    let of_b = b.token(json!({}));
    let stranger = Issuer::new("https://a");
    let bearing = |path: &str, token: &str| format!("GET {path}\nAuthorization: Bearer {token}");
    let with = |path: &str, claims: Value| bearing(path, &a.token(claims));
    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    vec![
        "GET /public".into(),
        "GET /me".into(),
        bearing("/me", &good),
        format!("GET /me\nAuthorization: Basic eHg6eXk="),
        format!("GET /me?x=1&access_token={good}&y=2"),
        with("/me", json!({"sub": "you"})),
        with("/me", json!({"exp": now() - 100})),
        with("/me", json!({"exp": now() - 30})),
        with("/me", json!({"nbf": now() + 100})),
        with("/me", json!({"aud": ["x", "shop"]})),
        with("/me", json!({"aud": "https://shop/"})),
        with("/me", json!({"aud": "x"})),
        with("/public", json!({"aud": "x"})),
        with("/public", json!({"iss": "https://c"})),
        with("/other", json!({"aud": "other"})),
        bearing("/other", &good),
        bearing("/public", &stranger.token(json!({}))),
        bearing("/public", &format!("{head}.{body}.{}", &signature[..signature.len() - 2])),
        bearing("/public", &format!("{none}.{body}.")),
        bearing("/public", "rubbish"),
        bearing("/public", "a.b.c"),
        format!("GET /me\nAuthorization: Bearer {good}\nAuthorization: Bearer x.y.z"),
        format!("GET /public\nx-b: JWT {of_b}"),
        format!("GET /public\nx-b: JWT {good}"),
        format!("GET /some\nAuthorization: Bearer {good}\nx-b: JWT {of_b}"),
        format!("GET /some\nAuthorization: Bearer {good}\nx-b: JWT {good}"),
        format!("GET /some\nAuthorization: Bearer {good}\nx-b: JWT x.y.z"),
        "GET /some".into(),
        bearing("/admins", &good),
        with("/admins", json!({"aud": "admins"})),
        "GET /admins".into(),
        format!("GET /public\nx-b: {of_b}"),
        format!("GET /both\nAuthorization: Bearer {good}\nx-b: JWT {of_b}"),
        bearing("/both", &good),
        format!("GET /both\nx-b: JWT {of_b}"),
        "GET /both".into(),
        bearing("/open", "rubbish"),
        bearing("/admin", &good),
        with("/admin", json!({"groups": ["x", "admin"]})),
        with("/admin", json!({"groups": "admin"})),
        with("/admin", json!({"groups": {"admin": true}})),
        with("/admin", json!({"scope": "read write"})),
        with("/admin", json!({"scope": "read writer"})),
        with("/admin", json!({"staff": true, "sub": null})),
        with("/admin", json!({"staff": "true", "sub": null})),
        with("/public", json!({"sub": 7})),
        "GET /public\nx-sub: root\nx-payload: forged".into(),
        "OPTIONS /both\nOrigin: https://x\nAccess-Control-Request-Method: PUT".into(),
        "OPTIONS /both\nOrigin: https://x".into(),
    ]
}

const FORM: &str = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";

/// What of an answer must be the same: status, challenge, text, and what the application saw.
fn answered(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).unwrap_or("closed");
    let mut lines: Vec<&str> = head.lines().skip(1).collect();
    lines.retain(|line| line.to_ascii_lowercase().starts_with("www-authenticate:"));
    let Some(seen) = body.strip_prefix("catalog-v1\n") else {
        // Envoy has a word for each way in which a token is none.
        let body = match body {
            _ if body.contains("[sub]") || body.contains("[alg]") || body.contains("Base64") => FORM,
            body => body,
        };
        return format!("{status} {lines:?} {body}");
    };
    let names = ["authorization", "x-b", "x-sub", "x-payload"];
    let mut told: Vec<String> = seen
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase()))
        .filter(|line| names.iter().any(|name| line.starts_with(&format!("{name}:"))))
        .collect();
    told.sort();
    format!("{status} {lines:?} app: {} {told:?}", seen.lines().next().unwrap_or_default())
}

async fn ask(to: SocketAddr, request: &str) -> String {
    let answer = tokio::time::timeout(Duration::from_secs(20), recorder::ask(to, request)).await;
    match answer {
        Ok(Ok(Some(answer))) => answered(&answer),
        Ok(Ok(None)) => "closed".into(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".into(),
    }
}

async fn ready(what: &str, to: SocketAddr) {
    eventually(what, || async {
        let answer = ask(to, "GET /both").await;
        if answer.starts_with("401") { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_mean_the_same_to_our_sidecar_and_to_an_envoy() {
    let (a, b) = (Issuer::new("https://a"), Issuer::new("https://b"));
    let (tokens, requests) = (filter(&a, &b), requests(&a, &b));
    let mut mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    echo(catalog.app, "catalog-v1").await;
    let mut fake = FakeControl::usurp(&mut mesh).await;
    let mut line = fake.line().await;
    let ours = listener(catalog.inbound, &tokens);
    let name = format!("inbound|{}", catalog.inbound);
    line.say(response("tokens", ours.type_url, vec![resource(&name, ours.type_url, ours.value)], &[])).await;
    assert_eq!(line.answer("tokens").await, None, "the sidecar takes what Envoy is sent");
    ready("the sidecar looks at tokens", catalog.inbound).await;
    let mut mine = Vec::new();
    for request in &requests {
        mine.push(ask(catalog.inbound, request).await);
    }
    let count = |status: &str| mine.iter().filter(|answer| answer.starts_with(status)).count();
    assert_eq!((count("200"), count("401"), count("403")), COUNTS, "{mine:#?}");

    let Some(envoy) = require::tool("envoy") else { return };
    let address = mesh.address(31, 8080);
    let _envoy = start_envoy(&mesh, &envoy, &listener(address, &tokens), &[(CLUSTER, catalog.app)]);
    ready("the Envoy looks at tokens", address).await;
    let mut differences = Vec::new();
    for (request, mine) in requests.iter().zip(&mine) {
        let theirs = ask(address, request).await;
        // Envoy's `allow_missing` goes on after a bad token and takes the last one's word: beside a good one a bad one goes to the
        // application, which might take it.
        let lenient = request.starts_with("GET /some\nAuthorization")
            && mine.starts_with("401")
            && theirs.starts_with("200");
        if theirs != *mine && !lenient {
            differences.push(format!("{request}\n  Outrigger: {mine}\n  Envoy:     {theirs}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Of the table above.
const COUNTS: (usize, usize, usize) = (19, 17, 13);

/// Whether the issuer answers, and what.
static IS_THERE: AtomicBool = AtomicBool::new(false);
static ANSWER: OnceLock<String> = OnceLock::new();

fn rules(keys: SocketAddr) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: catalog}}}}
  jwtRules: [{{issuer: 'https://a', audiences: [shop], jwksUri: 'http://{keys}/keys', outputClaimToHeaders: [{{header: x-sub, claim: sub}}]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: tokens, namespace: shop}}
spec:
  selector: {{matchLabels: {{app: catalog}}}}
  rules:
  - to: [{{operation: {{paths: [/public]}}}}]
  - from: [{{source: {{requestPrincipals: ['https://a/*']}}}}]
    when: [{{key: 'request.auth.claims[groups]', values: [admin, 'team-*']}}]
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_for_tokens_hold_with_keys_that_are_fetched_and_outlive_who_has_them() {
    let issuer = Issuer::new("https://a");
    let keys = issuer.keys();
    ANSWER.set(format!("200 OK\r\ncontent-length: {}\r\n\r\n{keys}", keys.len())).unwrap();
    let (keys, asked) = recorder(str::to_owned, |_| match IS_THERE.load(Ordering::Relaxed) {
        true => ANSWER.get().map(String::as_str),
        false => Some("503 Away\r\ncontent-length: 0\r\n\r\n"),
    })
    .await;
    let mut mesh = Mesh::start(BINARY).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    mesh.apply(&rules(keys)).await;
    let to = web.outbound[0];
    let good = issuer.token(json!({"groups": ["x", "team-a"]}));
    let bearing = |path: &str, token: &str| format!("GET {path}\nAuthorization: Bearer {token}");
    assert!(ask(to, "GET /public").await.starts_with("200"));
    assert!(ask(to, "GET /").await.starts_with("403"), "without a token nobody is anybody");
    let refused = ask(to, &bearing("/", &good)).await;
    assert!(refused.starts_with("401") && refused.contains("invalid_token"), "{refused}");
    eventually("it is told that there are no keys", || async {
        let problems = mesh.client.status().await.map_err(|error| error.to_string())?.problems;
        let told = problems.iter().find(|problem| problem.file == format!("http://{keys}/keys"));
        match told {
            Some(problem) if problem.message.contains("503") && problem.message.contains("are refused") => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    IS_THERE.store(true, Ordering::Relaxed);
    eventually("the keys are in force", || async {
        let answer = ask(to, &bearing("/", &good)).await;
        match answer.starts_with("200") && answer.contains("x-sub: me") && !answer.contains("authorization") {
            true => Ok(()),
            false => Err(answer),
        }
    })
    .await;
    let other = issuer.token(json!({"groups": ["x"]}));
    assert!(ask(to, &bearing("/", &other)).await.starts_with("403"));
    assert!(ask(to, &bearing("/public", "rubbish")).await.starts_with("401"));

    let before = asked.lock().unwrap().len();
    // Nobody has the keys any more, and everybody starts anew.
    IS_THERE.store(false, Ordering::Relaxed);
    mesh.kill_control();
    mesh.start_control().await;
    mesh.apply("apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec: {mtls: {mode: PERMISSIVE}}\n").await;
    let answer = ask(to, &bearing("/", &good)).await;
    assert!(answer.starts_with("200"), "{answer}");
    eventually("it is asked for them", || async {
        let now = asked.lock().unwrap().len();
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
    let answer = ask(to, &bearing("/", &good)).await;
    assert!(answer.starts_with("200"), "without an answer those that were known hold: {answer}");
}
