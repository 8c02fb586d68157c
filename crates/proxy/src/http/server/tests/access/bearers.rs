//! Tunnels whose tokens are looked at again.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use outrigger_model::policy::{ClaimMatch, ClaimValue};
use outrigger_model::token::{NOT_KNOWN, TokenHeader};

use super::*;

/// A token of the issuer, signed by the key.
fn signed(key: &str) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let text = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part(r#"{"iss":"i","sub":"s"}"#));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A token of the issuer is needed; its claims are what policies see.
fn bearers(issuer: &str, keys: &str) -> HttpFilter {
    bearers_in("", issuer, keys)
}

/// The same, in another header.
fn bearers_in(header: &str, issuer: &str, keys: &str) -> HttpFilter {
    let header = TokenHeader { name: header.to_owned(), prefix: String::new() };
    let headers = if header.name.is_empty() { Vec::new() } else { vec![header] };
    let provider = JwtProvider { payload_name: "jwt".into(), headers, ..JwtProvider::new(issuer, keys) };
    let requires = Requirement::Provider { name: "p".into(), audiences: Vec::new() };
    HttpFilter::Tokens(Box::new(JwtAuthn {
        providers: [("p".to_owned(), provider)].into(),
        rules: vec![TokenRule { matches: RouteMatch::default(), requires }],
        bypass_preflight: false,
    }))
}

fn key(text: &str) -> String {
    format!(r#"{{"keys":[{{"kty":"oct","k":"{}"}}]}}"#, URL_SAFE_NO_PAD.encode(text))
}

fn subject(of: &str) -> Principal {
    let value = ClaimValue::Text(StringMatch::exact(of));
    Principal::Claim(ClaimMatch { path: vec!["jwt".into(), "sub".into()], value })
}

/// Only who has a token whose subject is this.
fn for_subject(of: &str) -> HttpFilter {
    let policy =
        RbacPolicy { permissions: vec![Permission::Any], principals: vec![subject(of)], origin: None };
    HttpFilter::Rbac(Rbac { action: RbacAction::Allow, policies: [("p".to_owned(), policy)].into() })
}

#[tokio::test]
async fn keys_that_are_replaced_or_still_to_come_end_no_tunnel_and_a_token_that_is_good_no_more_does() {
    run(async {
        let app = tunnels().await;
        let open = async |filters: Vec<HttpFilter>| {
            let mut setup = Setup::to(&[app]);
            setup.direction = Direction::Inbound;
            setup.http.filters = filters;
            let rig = proxy(setup, Http1).await;
            let mut client = Wire::connect(rig.address).await;
            // And one that nobody has signed, where nobody looks yet.
            let (token, forged) = (signed("old"), signed("forged"));
            let token = format!("Authorization: Bearer {token}\r\nX-Other: {forged}\r\n\r\n");
            client.send(&upgrade("websocket").replace("\r\n\r\n", &format!("\r\n{token}"))).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 101"), "{head}");
            (rig, client)
        };
        let old = || bearers("i", &key("old"));
        // Its keys are replaced, and while others are fetched there are none; what its token said holds.
        let (rig, mut client) = open(vec![old(), for_subject("s")]).await;
        for keys in [key("new"), NOT_KNOWN.to_owned()] {
            apply(&rig, app, vec![bearers("i", &keys), for_subject("s")]);
            is_open(&mut client).await;
        }
        apply(&rig, app, vec![old(), for_subject("somebody else")]);
        assert_eq!(client.rest().await, "");
        // Another issuer is not the one that signed it.
        let (rig, mut client) = open(vec![old()]).await;
        apply(&rig, app, vec![bearers("another", &key("old"))]);
        assert_eq!(client.rest().await, "");
        // Nobody wanted a token: keys that are still to come refuse nobody, and a policy sees what the token says once they are there.
        let (rig, mut client) = open(Vec::new()).await;
        for keys in [NOT_KNOWN.to_owned(), key("old")] {
            apply(&rig, app, vec![bearers("i", &keys), for_subject("s")]);
            is_open(&mut client).await;
        }
        // Nor is it closed by what denies all that have none; what is denied to everybody is not waited with, nor what nobody allows.
        let (rig, mut client) = open(Vec::new()).await;
        let none = Principal::Not(Box::new(subject("s")));
        let none = RbacPolicy { permissions: vec![Permission::Any], principals: vec![none], origin: None };
        let none =
            HttpFilter::Rbac(Rbac { action: RbacAction::Deny, policies: [("p".to_owned(), none)].into() });
        apply(&rig, app, vec![bearers("i", NOT_KNOWN), none]);
        is_open(&mut client).await;
        apply(&rig, app, vec![bearers("i", NOT_KNOWN), on_path(RbacAction::Allow, "/elsewhere")]);
        assert_eq!(client.rest().await, "");
        let (rig, mut client) = open(Vec::new()).await;
        apply(&rig, app, vec![bearers("i", NOT_KNOWN), rbac(RbacAction::Deny, Permission::Any)]);
        assert_eq!(client.rest().await, "");
        // What one token has shown says nothing for another.
        let (rig, mut client) = open(vec![old()]).await;
        apply(&rig, app, vec![old(), bearers_in("x-other", "i", &key("new"))]);
        assert_eq!(client.rest().await, "");
        // A token that was never good is none.
        let (rig, mut client) = open(Vec::new()).await;
        apply(&rig, app, vec![bearers("i", &key("new"))]);
        assert_eq!(client.rest().await, "");
    })
    .await;
}
