use std::time::Duration;

use outrigger_model::token::{ClaimHeader, TokenHeader};

use crate::intent::KeySource;
use crate::testing::{object, one_told, tokens, told};

const KEYS: &str = r#"jwks: '{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}'"#;

fn rules(rules: &str) -> String {
    object("security.istio.io/v1", "RequestAuthentication", &format!("jwtRules:\n{rules}"))
}

#[test]
fn all_fields_arrive() {
    let text = object(
        "security.istio.io/v1beta1",
        "RequestAuthentication",
        "selector: {matchLabels: {app: web}}
jwtRules:
- issuer: https://accounts.example.com
  audiences: [shop, https://shop.example.com]
  jwksUri: https://accounts.example.com/keys
  fromHeaders:
  - name: X-Token
    prefix: 'JWT '
  fromParams: [token]
  fromCookies: [session]
  outputPayloadToHeader: X-Payload
  outputClaimToHeaders:
  - {header: X-Group, claim: realm.groups}
  forwardOriginalToken: true
  spaceDelimitedClaims: [roles, scope]
  timeout: 2s
  presence: REQUIRED",
    );
    assert_eq!(told(&text), [""; 0]);
    let intent = tokens(&text);
    assert_eq!(intent.selector.get("app").map(String::as_str), Some("web"));
    let [issuer] = intent.rules.as_slice() else { panic!("{intent:?}") };
    assert_eq!(issuer.keys, Some(KeySource::Url("https://accounts.example.com/keys".into())));
    assert_eq!((issuer.timeout, issuer.required), (Duration::from_secs(2), true));
    let provider = &issuer.provider;
    assert_eq!(provider.issuer, "https://accounts.example.com");
    assert_eq!(provider.audiences, ["shop", "https://shop.example.com"]);
    assert_eq!(provider.headers, [TokenHeader { name: "x-token".into(), prefix: "JWT ".into() }]);
    assert_eq!(
        (&*provider.params, &*provider.cookies),
        (&["token".to_owned()][..], &["session".to_owned()][..])
    );
    assert_eq!(provider.payload_header.as_deref(), Some("x-payload"));
    assert_eq!(
        provider.claim_headers,
        [ClaimHeader { header: "x-group".into(), claim: "realm.groups".into() }]
    );
    assert_eq!(provider.spaced_claims, ["permission", "roles", "scope"]);
    assert!(provider.forward && provider.payload_name == "payload");
}

#[test]
fn keys_are_in_the_rule_at_a_url_or_named_by_the_issuer() {
    let keys = |rule: &str| tokens(&rules(rule)).rules[0].keys.clone();
    assert_eq!(keys(&format!("- {{issuer: a, {KEYS}}}")), None);
    assert_eq!(keys("- {issuer: a, jwks_uri: 'http://a/k'}"), Some(KeySource::Url("http://a/k".into())));
    let named = keys("- {issuer: 'https://a/realm/'}").unwrap();
    assert_eq!(named.url(), "https://a/realm/.well-known/openid-configuration");
    for (rule, said) in [
        ("- {issuer: a}", "is no URL that could name its keys"),
        ("- {}", "needs jwksUri or jwks"),
        ("- {issuer: a, jwksUri: 'ftp://a'}", "must be a URL"),
        ("- {issuer: a, jwksUri: \"http://a/\\r\\nx\"}", "must be a URL"),
        ("- {issuer: a, jwksUri: 'http://u@a/'}", "must be a URL"),
        ("- {issuer: a, jwks: '{}'}", "is no JWKS"),
        ("- {issuer: a, jwks: 'x'}", "is no JSON"),
        ("- {issuer: a, jwks: ''}", "must not be empty"),
        ("- {issuer: '', jwks: ''}", "must not be empty"),
        ("- {issuer: a, jwksUri: 'http://a/', jwks: '{}'}", "one too many"),
        ("- {issuer: 'https://a', fromHeaders: [{prefix: x}]}", "name is missing"),
        ("- {issuer: 'https://a', fromHeaders: [{name: 'a b'}]}", "header"),
        ("- {issuer: 'https://a', outputClaimToHeaders: [{claim: x}]}", "header is missing"),
        ("- {issuer: 'https://a', outputPayloadToHeader: Host}", "must not be \"host\""),
        ("- {issuer: 'https://a', outputClaimToHeaders: [{header: TE, claim: x}]}", "must not be \"te\""),
        ("- {issuer: 'https://a', presence: MAYBE}", "presence"),
        ("- {issuer: 'https://a', audience: [x]}", "Did you mean \"audiences\"?"),
    ] {
        let told = told(&rules(rule));
        assert!(told.iter().any(|line| line.contains("error") && line.contains(said)), "{rule}: {told:?}");
    }
}

#[test]
fn what_would_do_nothing_or_too_much_is_told() {
    let none = object("security.istio.io/v1", "RequestAuthentication", "selector: {matchLabels: {a: b}}");
    assert!(one_told(&none).contains("has no rule"));
    assert!(one_told(&rules(&format!("- {{{KEYS}}}"))).contains("tokens of anybody"));
    let target = object(
        "security.istio.io/v1",
        "RequestAuthentication",
        "targetRefs: [{kind: Gateway, name: a}]\njwtRules: [{issuer: 'https://a'}]",
    );
    assert!(one_told(&target).contains("use selector.matchLabels"));
}
