use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;
use crate::matcher::StringMatch;
use crate::policy::decide::PolicySet;
use crate::policy::{ClaimMatch, ClaimValue, Permission, Principal, Rbac, RbacAction, RbacPolicy};
use crate::request::{ConnectionView, RequestView};
use crate::route::RouteMatch;

const NOW: u64 = 1_800_000_000;

struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, Vec<u8>)>,
}

fn get(headers: &[(&str, &str)]) -> Request {
    let headers =
        headers.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
    Request { method: "GET", path: "/a?x=1".to_owned(), headers }
}

fn bearing(token: &str) -> Request {
    get(&[("authorization", &format!("Bearer {token}"))])
}

impl RequestView for Request {
    fn method(&self) -> &str {
        self.method
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn authority(&self) -> &str {
        "shop"
    }
    fn scheme(&self) -> &str {
        "http"
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.headers.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_slice())
    }
}

/// A memory that counts.
#[derive(Default)]
struct Memory {
    all: HashMap<([u8; 32], String), Arc<Verified>>,
    kept: usize,
}

impl Known for Memory {
    fn recall(&mut self, id: &[u8; 32], token: &str) -> Option<Arc<Verified>> {
        self.all.get(&(*id, token.to_owned())).cloned()
    }
    fn keep(&mut self, id: &[u8; 32], token: &str, verified: &Arc<Verified>) {
        self.kept += 1;
        self.all.insert((*id, token.to_owned()), verified.clone());
    }
}

fn secret(of: &str) -> String {
    json!({"keys": [{"kty": "oct", "alg": "HS256", "kid": of, "k": URL_SAFE_NO_PAD.encode(format!("{of}-0123456789abcdef"))}]})
        .to_string()
}

fn signed(of: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(format!("{of}-0123456789abcdef").as_bytes());
    encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

fn provider(of: &str) -> JwtProvider {
    JwtProvider { payload_name: "payload".into(), ..JwtProvider::new(format!("https://{of}"), secret(of)) }
}

fn named(name: &str) -> Requirement {
    Requirement::Provider { name: name.to_owned(), audiences: Vec::new() }
}

fn filter(providers: Vec<(&str, JwtProvider)>, requires: Requirement) -> CompiledTokens {
    let config = JwtAuthn {
        providers: providers.into_iter().map(|(name, provider)| (name.to_owned(), provider)).collect(),
        rules: vec![TokenRule { matches: RouteMatch::any(), requires }],
        bypass_preflight: true,
    };
    let fingerprint = |text: &str| {
        let mut id = [0; 32];
        text.bytes().enumerate().for_each(|(i, b)| id[i % 32] ^= b.rotate_left(i as u32 / 32));
        id
    };
    CompiledTokens::compile(&config, fingerprint).unwrap()
}

fn one(provider: JwtProvider) -> CompiledTokens {
    filter(vec![("a", provider)], Requirement::Any(vec![named("a"), Requirement::AllowMissing]))
}

fn outcome(filter: &CompiledTokens, request: &Request) -> Result<Effects, Refusal> {
    match filter.decide(request, NOW, &mut Memory::default()) {
        Outcome::Passes(effects) => Ok(effects),
        Outcome::Refused { why, .. } => Err(why),
    }
}

fn refusal(filter: &CompiledTokens, request: &Request) -> Option<Refusal> {
    outcome(filter, request).err()
}

#[test]
fn a_good_token_passes_and_what_is_wrong_with_others_is_told() {
    let filter = one(JwtProvider { audiences: vec!["https://shop/".into()], ..provider("a") });
    let good =
        json!({"iss": "https://a", "sub": "me", "aud": ["x", "shop"], "exp": NOW + 10, "nbf": NOW - 10});
    let with = |change: Value| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        signed("a", &claims)
    };
    let told = |token: &str| refusal(&filter, &bearing(token));
    assert_eq!(told(&with(json!({}))), None);
    assert_eq!(told(&with(json!({"exp": NOW - 60, "nbf": NOW + 60}))), None, "clocks differ");
    for (change, why) in [
        (json!({"exp": NOW - 61}), Refusal::Expired),
        (json!({"nbf": NOW + 61}), Refusal::NotYet),
        (json!({"exp": "soon"}), Refusal::Malformed),
        (json!({"iss": "https://b"}), Refusal::UnknownIssuer),
        (json!({"iss": ["https://a"]}), Refusal::Malformed),
        (json!({"iss": null}), Refusal::Malformed),
        (json!({"sub": 7}), Refusal::Malformed),
        (json!({"aud": "other"}), Refusal::Audience),
        (json!({"aud": []}), Refusal::Audience),
        (json!({"aud": 7}), Refusal::Malformed),
    ] {
        assert_eq!(told(&with(change.clone())), Some(why), "{change}");
    }
    let token = with(json!({}));
    let (signed_part, _) = token.rsplit_once('.').unwrap();
    assert_eq!(told(&format!("{signed_part}.AAAA")), Some(Refusal::Signature));
    assert_eq!(told(&signed("b", &good)), Some(Refusal::Signature));
    for bad in ["", "a.b", "a.b.c.d", "e30.e30.", "....", &"x".repeat(20_000)] {
        assert!(matches!(told(bad), Some(Refusal::Malformed | Refusal::Algorithm)), "{bad}");
    }
    assert_eq!(Refusal::Audience.status(), 403);
    assert_eq!(Refusal::Expired.status(), 401);
}

#[test]
fn nobody_chooses_how_his_token_is_checked() {
    let claims = json!({"iss": "https://a", "sub": "me"});
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = part(&claims);
    let filter = one(provider("a"));
    for (header, why) in [
        (json!({"alg": "none"}), Refusal::Algorithm),
        (json!({"alg": "ES512"}), Refusal::Algorithm),
        // Of another family, or another algorithm than the key's own.
        (json!({"alg": "RS256"}), Refusal::Signature),
        (json!({"alg": "HS512"}), Refusal::Signature),
        (json!({"alg": "HS256", "crit": ["exp"]}), Refusal::Malformed),
        (json!({"alg": "HS256", "kid": "b"}), Refusal::Signature),
    ] {
        let token = format!("{}.{body}.AAAA", part(&header));
        assert_eq!(refusal(&filter, &bearing(&token)), Some(why), "{header}");
    }
    // An RSA key's public half is no secret that tokens could be signed with.
    let rsa = json!({"keys": [{"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([200_u8; 256]), "e": "AQAB"}]});
    let filter = one(JwtProvider { keys: rsa.to_string(), ..provider("a") });
    let key = EncodingKey::from_secret(&[200; 256]);
    let forged = encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
    assert_eq!(refusal(&filter, &bearing(&forged)), Some(Refusal::Signature));
}

/// As most issuers sign; made by OpenSSL.
#[test]
fn a_signature_by_rsa_is_verified() {
    const MODULUS: &str = "0Nvr8cWdqJ0InVfO_VPVEyaShF-evk88Mf0o8_SZSVZDEA9DcCmI5TvHbg7_G2-cE3zAIgbqcZV_HUzqP9W8xKs_Cq8kIsNcR-dGT4WL6IyoPe3scRi3Jw9ujgdw-Ew1b9D_cew9cQ4TwVXRpIUB65JgVG2jw6j0R7-DLJuJYVS-a6oddxmTrc7voSZBE_vyW-MYQaUjNWzDAH1j6_MKS-bQdurE2dJgtbuOhegsKUQNK54i2g6IGB8fWhLm1_azjK0ykig0SDwYgd22Xp8IEmHjmTN_GmlKWXd6_GeeXBg6xAIOMoKilQVZwi8g-eH1wp9d2FGES0iCZPzAXfErqw";
    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJodHRwczovL2EifQ.K696kmYtkFbtr-zhIXrpEpK9K7fd9-X6EM8vawMXW0ayYXyAEr5bbz_zFQMfASO9JczH0Yu_Yrhn-cqyOIrbnkUYi61dEerM4q-w1f4Rs0LKogWa9MlEAJcill3hRKbQ3MfEc6n_Cn1OUwzj9ihJaMaB7XxUNBS9CWBEffZVWg4qeiFgcnqGZsl7yZp2waK45OEIbki8-vEOn_qP6iFprR2Cke9b-1robGKeg45_bhAiXiZOvvr9CfL5zK_FnHLh5t57_O73RXbHeSohx1PROhIhxRuwsTLda52cOtEambqi59Rx3MOISISz9wsMpl1slTUGU7IZaxUbWtG2Mf8wfg";
    let keys = json!({"keys": [{"kty": "RSA", "kid": "k", "use": "sig", "alg": "RS256", "n": MODULUS, "e": "AQAB"}]});
    let filter = one(JwtProvider { keys: keys.to_string(), ..provider("a") });
    assert_eq!(refusal(&filter, &bearing(TOKEN)), None);
    // Other claims, or one bit of the signature.
    let (signed_part, signature) = TOKEN.rsplit_once('.').unwrap();
    let (head, _) = signed_part.split_once('.').unwrap();
    let root = URL_SAFE_NO_PAD.encode(r#"{"iss":"https://a","sub":"root"}"#);
    let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    bytes[10] ^= 1;
    let flipped = format!("{signed_part}.{}", URL_SAFE_NO_PAD.encode(bytes));
    for forged in [format!("{head}.{root}.{signature}"), flipped] {
        assert_eq!(refusal(&filter, &bearing(&forged)), Some(Refusal::Signature));
    }
    let weaker = keys.to_string().replace("RS256", "PS256");
    let filter = one(JwtProvider { keys: weaker, ..provider("a") });
    assert_eq!(refusal(&filter, &bearing(TOKEN)), Some(Refusal::Signature));
}

/// RFC 7515, appendix A.3.
#[test]
fn a_signature_by_elliptic_curves_is_verified() {
    const KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    const TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    let filter = one(JwtProvider::new("joe", KEY));
    let decide = |now| match filter.decide(&bearing(TOKEN), now, &mut Memory::default()) {
        Outcome::Passes(_) => None,
        Outcome::Refused { why, .. } => Some(why),
    };
    assert_eq!(decide(1_300_819_380), None);
    assert_eq!(decide(1_300_819_441), Some(Refusal::Expired));
    // The same claims, and one bit of the signature.
    let forged = |token: &str| {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        bytes[10] ^= 1;
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(bytes))
    };
    let refused = filter.decide(&bearing(&forged(TOKEN)), 0, &mut Memory::default());
    assert!(matches!(refused, Outcome::Refused { why: Refusal::Signature, .. }), "{refused:?}");
}

#[test]
fn tokens_are_found_where_the_provider_says() {
    let claims = json!({"iss": "https://a", "sub": "me"});
    let token = signed("a", &claims);
    let usual = one(provider("a"));
    let passes = |filter: &CompiledTokens, request: &Request| {
        outcome(filter, request).map(|effects| !effects.proven.is_empty())
    };
    assert_eq!(passes(&usual, &get(&[])), Ok(false));
    assert_eq!(passes(&usual, &get(&[("authorization", "Basic eHg6eXk=")])), Ok(false));
    assert_eq!(passes(&usual, &get(&[("authorization", &format!("bearer   {token}"))])), Ok(true));
    let mut query = get(&[]);
    query.path = format!("/a?b=1&access_token={token}&c");
    let effects = outcome(&usual, &query).unwrap();
    assert_eq!(effects.path.as_deref(), Some("/a?b=1&c"), "it goes no further");
    query.path = format!("/a?%61ccess_token={token}");
    assert_eq!(outcome(&usual, &query).unwrap().path.as_deref(), Some("/a"));

    let header = TokenHeader { name: "x-token".into(), prefix: String::new() };
    let other = one(JwtProvider {
        headers: vec![header],
        cookies: vec!["session".into()],
        forward: true,
        ..provider("a")
    });
    assert_eq!(passes(&other, &bearing(&token)), Ok(false), "only where it says");
    let effects = outcome(&other, &get(&[("x-token", &token)])).unwrap();
    assert_eq!((effects.remove, effects.path), (Vec::new(), None));
    let cookie = format!("a=b; session={token}; c=d");
    assert_eq!(passes(&other, &get(&[("cookie", &cookie)])), Ok(true));
    // What is no text beside it hides nothing.
    let mut strange = get(&[]);
    strange.headers.push(("cookie".into(), [cookie.as_bytes(), b"; x=\xff"].concat()));
    assert_eq!(passes(&other, &strange), Ok(true));
    strange.headers[0].1 = b"x=\xff; session=\xff".to_vec();
    assert_eq!(passes(&other, &strange), Err(Refusal::Malformed));
    // Both are there, and one is bad: an application might take that one.
    let both = get(&[("x-token", &token), ("cookie", "session=x.y.z")]);
    assert_eq!(passes(&other, &both), Err(Refusal::Malformed));
    let many: Vec<(&str, &str)> = (0..9).map(|_| ("x-token", token.as_str())).collect();
    assert_eq!(passes(&other, &get(&many)), Err(Refusal::TooMany));
}

#[test]
fn requirements_combine() {
    let (a, b) = (signed("a", &json!({"iss": "https://a"})), signed("b", &json!({"iss": "https://b"})));
    let bad = signed("x", &json!({"iss": "https://a"}));
    let at = |name: &str, of: &str| {
        let header = TokenHeader { name: name.into(), prefix: String::new() };
        JwtProvider { headers: vec![header], ..provider(of) }
    };
    let or_none = |name: &str| Requirement::Any(vec![named(name), Requirement::AllowMissing]);
    let either = || {
        let none_bad = Requirement::All(vec![or_none("a"), or_none("b")]);
        Requirement::Any(vec![named("a"), named("b"), none_bad])
    };
    let apart = || vec![("a", at("x-a", "a")), ("b", at("x-b", "b"))];
    let filter_of = |requires| filter(apart(), requires);
    let both = get(&[("x-a", &a), ("x-b", &b)]);
    let only = |name: &str, token: &str| get(&[(name, token)]);

    let all = filter_of(Requirement::All(vec![named("a"), named("b")]));
    assert_eq!(refusal(&all, &both), None);
    assert_eq!(refusal(&all, &only("x-a", &a)), Some(Refusal::Missing));
    let any = filter_of(Requirement::Any(vec![named("a"), named("b")]));
    assert_eq!(refusal(&any, &only("x-b", &b)), None);
    assert_eq!(refusal(&any, &get(&[])), Some(Refusal::Missing));
    let lenient = filter_of(either());
    assert_eq!(refusal(&lenient, &get(&[])), None);
    assert_eq!(refusal(&lenient, &only("x-a", &a)), None);
    assert_eq!(refusal(&lenient, &only("x-a", &bad)), Some(Refusal::Signature));
    let failed = filter_of(Requirement::Any(vec![named("a"), Requirement::AllowMissingOrFailed]));
    assert_eq!(refusal(&failed, &only("x-a", &bad)), None);

    // At one place each but its own takes a token for another's.
    let together = filter(vec![("a", provider("a")), ("b", provider("b"))], either());
    assert_eq!(refusal(&together, &bearing(&a)), None);
    assert_eq!(refusal(&together, &bearing(&b)), None);
    assert_eq!(refusal(&together, &bearing(&bad)), Some(Refusal::Signature));
    let of = |claims: Value| refusal(&together, &bearing(&signed("b", &claims)));
    assert_eq!(of(json!({"iss": "https://b", "exp": 1})), Some(Refusal::Expired), "what is wrong with it");
    assert_eq!(of(json!({"iss": "https://c"})), Some(Refusal::UnknownIssuer));
}

#[test]
fn what_is_forgiven_is_that_there_is_no_token() {
    let token = |claims: Value| bearing(&signed("a", &claims));
    let wrong = token(json!({"iss": "https://a", "aud": "other"}));
    let admin = || Requirement::Provider { name: "a".into(), audiences: vec!["admin".into()] };
    let a = || vec![("a", provider("a"))];
    let strict = filter(a(), Requirement::Any(vec![admin(), Requirement::AllowMissing]));
    assert_eq!(refusal(&strict, &wrong), Some(Refusal::Audience));
    assert_eq!(refusal(&strict, &get(&[])), None);
    let lenient = filter(a(), Requirement::Any(vec![admin(), Requirement::AllowMissingOrFailed]));
    assert!(outcome(&lenient, &wrong).unwrap().proven.is_empty(), "it says nothing that was asked for");
    let both = || vec![("a", provider("a")), ("b", provider("b"))];
    let nested = Requirement::All(vec![named("a"), named("b")]);
    let nested = filter(both(), Requirement::Any(vec![nested, Requirement::AllowMissing]));
    assert!(refusal(&nested, &bearing("rubbish")).is_some());
    assert_eq!(refusal(&nested, &get(&[])), None);
}

#[test]
fn each_token_that_is_there_must_be_good_for_somebody_whose_place_it_is() {
    let at = |name: &str, of: &str| {
        let header = TokenHeader { name: name.into(), prefix: String::new() };
        JwtProvider { headers: vec![header], payload_name: of.into(), ..provider(of) }
    };
    let (a, b) = (signed("a", &json!({"iss": "https://a"})), signed("b", &json!({"iss": "https://b"})));
    let bad = signed("x", &json!({"iss": "https://b"}));
    let apart = || vec![("a", at("x-a", "a")), ("b", at("x-b", "b"))];
    let good = filter(apart(), Requirement::AllowMissing);
    let effects = outcome(&good, &get(&[("x-a", &a), ("x-b", &b)])).unwrap();
    assert_eq!(effects.remove, ["x-a", "x-b"]);
    for name in ["a", "b"] {
        assert!(effects.proven.value(&[name.to_owned(), "iss".to_owned()]).is_some());
    }
    assert_eq!(refusal(&good, &get(&[("x-a", &a), ("x-b", &bad)])), Some(Refusal::Signature));
    assert_eq!(refusal(&good, &get(&[("x-b", &a)])), Some(Refusal::UnknownIssuer), "it is not its place");
    assert_eq!(refusal(&good, &get(&[])), None);
    let any = filter(apart(), Requirement::AllowMissingOrFailed);
    let effects = outcome(&any, &get(&[("x-a", &a), ("x-b", &bad)])).unwrap();
    assert_eq!(effects.remove, ["x-a"]);
    // Two that share a place.
    let shared = vec![("a", provider("a")), ("b", provider("b"))];
    let shared = filter(shared, Requirement::AllowMissing);
    assert_eq!((refusal(&shared, &bearing(&a)), refusal(&shared, &bearing(&b))), (None, None));
    assert_eq!(refusal(&shared, &bearing(&bad)), Some(Refusal::Signature));
}

#[test]
fn the_application_is_told_and_nobody_else_tells_it() {
    let claims = json!({"iss": "https://a", "sub": "me", "n": 7, "in": {"er": true}, "list": ["x"], "a.b": "dot", "name": " Ann "});
    let token = signed("a", &claims);
    let told =
        |claim: &str| ClaimHeader { header: format!("x-{}", claim.replace('.', "-")), claim: claim.into() };
    let filter = one(JwtProvider {
        payload_header: Some("x-payload".into()),
        pad_payload_header: true,
        claim_headers: ["sub", "n", "in.er", "list", "none", "a.b", "name"].map(told).into(),
        ..provider("a")
    });
    let mut request = bearing(&token);
    request.headers.push(("x-sub".into(), "root".into()));
    let effects = outcome(&filter, &request).unwrap();
    assert_eq!(effects.remove, ["x-sub", "authorization"]);
    let added: HashMap<_, _> = effects.add.into_iter().collect();
    let payload = added.get("x-payload").unwrap();
    assert!(payload.len().is_multiple_of(4) && token.contains(payload.trim_end_matches('=')));
    let header = |name: &str| added.get(name).map(String::as_str);
    assert_eq!([header("x-sub"), header("x-n"), header("x-in-er")], [Some("me"), Some("7"), Some("true")]);
    assert_eq!([header("x-list"), header("x-none"), header("x-a-b")], [None, None, Some("dot")]);
    assert_eq!(header("x-name"), Some("Ann"), "without the blanks, which no header has");
    let forged = get(&[("x-payload", "forged")]);
    assert_eq!(outcome(&filter, &forged).unwrap().remove, ["x-payload"], "without a token, too");
}

#[test]
fn a_good_token_is_verified_once() {
    let token = signed("a", &json!({"iss": "https://a", "exp": NOW + 10}));
    let filter = one(provider("a"));
    let mut memory = Memory::default();
    for _ in 0..3 {
        assert!(matches!(filter.decide(&bearing(&token), NOW, &mut memory), Outcome::Passes(_)));
    }
    assert_eq!(memory.kept, 1);
    let later = filter.decide(&bearing(&token), NOW + 100, &mut memory);
    assert!(matches!(later, Outcome::Refused { why: Refusal::Expired, .. }), "it ends all the same");
    // Another key: what the first had verified is not good for it.
    let turned = one(JwtProvider { keys: secret("b"), ..provider("a") });
    let refused = turned.decide(&bearing(&token), NOW, &mut memory);
    assert!(matches!(refused, Outcome::Refused { why: Refusal::Signature, .. }));
}

#[test]
fn a_preflight_has_no_token_and_connect_is_no_way_around() {
    let filter = filter(vec![("a", provider("a"))], named("a"));
    let mut request = get(&[("origin", "https://x"), ("access-control-request-method", "PUT")]);
    request.method = "OPTIONS";
    assert_eq!(refusal(&filter, &request), None);
    request.headers.pop();
    assert_eq!(refusal(&filter, &request), Some(Refusal::Missing));
    let mut tunnel = get(&[]);
    (tunnel.method, tunnel.path) = ("CONNECT", String::new());
    assert_eq!(refusal(&filter, &tunnel), Some(Refusal::Missing));
}

#[test]
fn keys_are_read_and_what_is_none_is_told() {
    assert_eq!(check_keys(&secret("a")), Ok(()));
    let unknown = r#"{"keys":[{"kty":"AKP","alg":"ML-DSA-44","pub":"x"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA","use":"enc"}]}"#;
    for (bad, part) in [
        ("", "is no JSON"),
        ("[]", "has no keys"),
        (r#"{"keys": 3}"#, "is no JWKS"),
        (r#"{"keys": []}"#, "has no key for signatures"),
        (unknown, "has no key for signatures"),
        (&json!({"keys": vec![json!({"kty": "oct", "k": "AA"}); 33]}).to_string(), "33 keys"),
    ] {
        let why = check_keys(bad).unwrap_err();
        assert!(why.contains(part), "{bad}: {why}");
    }
}

#[test]
fn policies_decide_by_what_tokens_say() {
    let claims = json!({"iss": "https://a", "groups": ["x", "admin"], "scope": "read write", "ok": true});
    let token = signed("a", &claims);
    let filter = one(JwtProvider { spaced_claims: vec!["scope".into()], ..provider("a") });
    let effects = outcome(&filter, &bearing(&token)).unwrap();
    let request = get(&[]);
    let allowed = |path: &[&str], value: ClaimValue| {
        let path = path.iter().map(|part| (*part).to_owned()).collect();
        let policy = RbacPolicy {
            permissions: vec![Permission::Any],
            principals: vec![Principal::Claim(ClaimMatch { path, value })],
            origin: None,
        };
        let rbac = Rbac { action: RbacAction::Allow, policies: [("p".to_owned(), policy)].into() };
        let set = PolicySet::compile([&rbac]).unwrap();
        let connection = ConnectionView {
            peer: None,
            source: "10.0.0.1:1".parse().unwrap(),
            destination: "10.0.0.2:2".parse().unwrap(),
            server_name: None,
        };
        let judged = WithTokens { request: &request, tokens: Some(&effects.proven), supposed: None };
        assert!(!set.decide(&connection, Some(&request)).is_allow(), "without a token");
        set.decide(&connection, Some(&judged)).is_allow()
    };
    let text = |text: &str| ClaimValue::Text(StringMatch::exact(text));
    let member = |value: &str| ClaimValue::Member(Box::new(text(value)));
    assert!(allowed(&["payload", "iss"], text("https://a")));
    assert!(allowed(&["payload", "groups"], member("admin")));
    assert!(!allowed(&["payload", "groups"], text("admin")));
    assert!(allowed(&["payload", "scope"], member("write")));
    assert!(allowed(&["payload", "ok"], ClaimValue::Bool(true)));
    assert!(allowed(&["payload", "ok"], ClaimValue::AnyOf(vec![text("x"), ClaimValue::Present])));
    assert!(!allowed(&["other", "iss"], ClaimValue::Present));
    assert!(!allowed(&["payload", "iss", "x"], ClaimValue::Present));
}
