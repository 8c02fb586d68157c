use outrigger_model::listener::{HttpFilter, Terminal};
use outrigger_model::resource::{Resource, ResourceKind};
use outrigger_model::token::{JwtAuthn, NOT_KNOWN, Requirement};
use outrigger_rules::intent::KeySource;
use outrigger_xds::ClientKind;

use super::super::tests::{compiled, get, scope, shop};
use crate::compile::cache::Compiled;
use crate::world::Change;

const KEYS: &str = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;

fn rule(name: &str, issuer: &str, more: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{selector: {{matchLabels: {{app: web}}}}, jwtRules: [{{issuer: '{issuer}'{more}}}]}}\n---\n"
    )
}

fn filters(compiled: &Compiled) -> Vec<HttpFilter> {
    let own = scope(ClientKind::Outrigger, "web", "web-1");
    let listener = get(compiled, &own, ResourceKind::Listener, "inbound|127.0.0.10:8080");
    let Some(Resource::Listener(listener)) = listener else { panic!("none") };
    let of = |chain: outrigger_model::listener::FilterChain| match chain.terminal {
        Terminal::Http(http) => Some(http.filters),
        Terminal::Tcp(_) => None,
    };
    listener.chains.into_iter().find_map(of).unwrap()
}

fn tokens(compiled: &Compiled) -> JwtAuthn {
    match filters(compiled).into_iter().next() {
        Some(HttpFilter::Tokens(tokens)) => *tokens,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_there_must_be_good_and_what_is_required_there() {
    let provider = |i: usize| Requirement::Provider { name: format!("origins-{i}"), audiences: Vec::new() };
    let requires = |yaml: &str| tokens(&compiled(shop(), yaml)).rules.remove(0).requires;
    let a = rule("a", "https://a", "");
    assert_eq!(requires(&a), Requirement::AllowMissing);
    let both = format!("{}{a}", rule("b", "https://b", ""));
    assert_eq!(requires(&both), Requirement::AllowMissing);
    let required = rule("c", "https://c", ", presence: REQUIRED");
    assert_eq!(requires(&required), provider(0));
    let mixed = Requirement::All(vec![provider(1), Requirement::AllowMissing]);
    assert_eq!(requires(&format!("{a}{required}")), mixed);
    let providers = tokens(&compiled(shop(), &both)).providers;
    let issuers: Vec<_> = providers.values().map(|provider| provider.issuer.as_str()).collect();
    assert_eq!(issuers, ["https://a", "https://b"]);
    let origin = providers["origins-0"].origin.as_ref().unwrap();
    assert_eq!((origin.kind.as_str(), origin.name.as_str()), ("RequestAuthentication", "a"));
}

#[test]
fn policies_come_after_tokens_and_other_workloads_have_none() {
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
                  spec: {rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}\n";
    let c = compiled(shop(), &format!("{}{policy}", rule("a", "https://a", "")));
    assert!(matches!(filters(&c).as_slice(), [HttpFilter::Tokens(_), HttpFilter::Rbac(_)]));
    let own = scope(ClientKind::Outrigger, "catalog", "catalog-v1");
    let listener = get(&c, &own, ResourceKind::Listener, "inbound|127.0.0.11:8080");
    let Some(Resource::Listener(listener)) = listener else { panic!("none") };
    assert!(!format!("{listener:?}").contains("Tokens("), "it is not selected");
}

#[test]
fn keys_that_are_not_known_yet_are_nobody_s_and_known_ones_come_at_once() {
    let yaml = rule("a", "https://a", ", jwksUri: 'https://a/keys'");
    let mut world = crate::world::sample::world(shop(), &yaml);
    let source = KeySource::Url("https://a/keys".into());
    assert_eq!(world.key_sources().into_keys().collect::<Vec<_>>(), std::slice::from_ref(&source));
    let c = Compiled::new(std::sync::Arc::new(world.clone()), "roots".into(), std::sync::Arc::default());
    assert_eq!(tokens(&c).providers["origins-0"].keys, NOT_KNOWN);
    let mut change = Change::default();
    world.learn(source, KEYS.into(), &mut change);
    let (roots, none) = ("roots".into(), std::sync::Arc::default());
    c.advance(std::sync::Arc::new(world), roots, none, &change);
    assert_eq!(tokens(&c).providers["origins-0"].keys, KEYS);
}
