//! Clients that stay at the endpoint that has answered them.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_model::cluster::{Balance, Cluster, Discovery};
use outrigger_model::endpoint::{Endpoint, EndpointSet, LocalityEndpoints};
use outrigger_model::route::{HedgeDelay, HedgePolicy, Session, SessionBy, WeightedCluster};

use super::rig::*;
use crate::protocol::HttpVersion::Http1;

async fn named(name: &'static str) -> SocketAddr {
    upstream(move |_, mut wire| async move {
        loop {
            wire.head().await;
            wire.send(&ok(name)).await;
        }
    })
    .await
}

fn cookie() -> Session {
    let by = SessionBy::Cookie {
        name: "s".into(),
        path: Some("/".into()),
        permanent: false,
        attributes: vec![("SameSite".into(), "Lax".into())],
    };
    Session { by, strict: None, absolute: None, idle: None }
}

fn to(endpoints: &[SocketAddr], session: Session) -> Setup {
    let mut setup = Setup::to(endpoints);
    setup.cluster.balance = Balance::RoundRobin;
    setup.route.session = Some(Box::new(session));
    setup
}

/// Who answered, and what the client was given to carry: the cookie without its attributes.
async fn ask(rig: &Rig, path: &str, fields: &str) -> (String, Option<String>) {
    let mut client = Wire::connect(rig.address).await;
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
    let head = client.head().await;
    let fields = headers(&head);
    let length = fields.get("content-length").map_or(0, |length| length.parse().unwrap());
    let body = client.bytes(length).await;
    let given = fields.get("set-cookie").or(fields.get("x-s")).cloned();
    (if head.contains(" 200 ") { body } else { head[9..12].to_owned() }, given)
}

fn carried(given: Option<String>) -> String {
    let given = given.expect("a client without a session is given one");
    let value = given.split(';').next().unwrap().to_owned();
    assert!(given.ends_with("; Path=/; SameSite=Lax; HttpOnly") && !given.contains("Max-Age"), "{given}");
    format!("cookie: other=x; {value}\r\n")
}

#[tokio::test]
async fn a_client_stays_by_its_cookie_at_the_endpoint_that_has_answered_it() {
    run(async {
        let rig = proxy(to(&[named("a").await, named("b").await], cookie()), Http1).await;
        let mut met = Vec::new();
        for _ in 0..2 {
            let (first, given) = ask(&rig, "/", "").await;
            let fields = carried(given);
            for _ in 0..4 {
                assert_eq!(ask(&rig, "/x", &fields).await, (first.clone(), None), "it has its cookie");
            }
            met.push(first);
        }
        // Whoever has none is balanced.
        assert_ne!(met[0], met[1]);
    })
    .await;
}

#[tokio::test]
async fn what_a_client_makes_up_leads_nowhere_but_to_endpoints_of_the_route() {
    run(async {
        let stranger = upstream(|_, _| async { panic!("nobody may come here") }).await;
        let app = named("a").await;
        let rig = proxy(to(&[app], cookie()), Http1).await;
        let proto = |address: &str| [&[0x0a, address.len() as u8], address.as_bytes()].concat();
        for token in [
            STANDARD.encode(proto(&stranger.to_string())),
            STANDARD.encode(stranger.to_string()),
            STANDARD.encode(proto("localhost:80")),
            "%%%".to_owned(),
            String::new(),
            "A".repeat(5000),
        ] {
            let (who, given) = ask(&rig, "/", &format!("cookie: s=\"{token}\"\r\n")).await;
            assert_eq!(who, "a", "{token}");
            assert!(
                given.unwrap().contains(&STANDARD.encode(proto(&app.to_string()))),
                "it is given another"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_that_has_lost_its_endpoint_goes_on_elsewhere_unless_it_is_strict() {
    run(async {
        for (strict, wanted) in [(None, "a"), (Some(503), "503"), (Some(418), "418")] {
            let gone = nobody().await;
            let session = Session { strict, ..cookie() };
            let rig = proxy(to(&[named("a").await], session.clone()), Http1).await;
            let token = session.answered(None, gone, 0).unwrap();
            let fields = format!("cookie: s=\"{}\"\r\n", session.write(&token));
            let (who, given) = ask(&rig, "/", &fields).await;
            assert_eq!(who, wanted);
            assert_eq!(given.is_some(), strict.is_none(), "{given:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_session_whose_endpoint_is_slow_is_not_moved_by_a_hedge() {
    run(async {
        let (may, seen) = (Count::default(), Count::default());
        let slow = upstream({
            let (may, seen) = (may.clone(), seen.clone());
            move |_, mut wire| {
                let (may, seen) = (may.clone(), seen.clone());
                async move {
                    wire.head().await;
                    seen.set(seen.get() + 1);
                    until("leave to answer", || may.get() > 0).await;
                    wire.send(&ok("slow")).await;
                    wire.rest().await;
                }
            }
        })
        .await;
        let session = cookie();
        let mut setup = to(&[slow, named("quick").await], session.clone());
        let delay = Some(HedgeDelay::Fixed(Duration::from_millis(1)));
        setup.forward().hedge = Some(Box::new(HedgePolicy { delay, ..HedgePolicy::default() }));
        let rig = proxy(setup, Http1).await;
        let token = session.answered(None, slow, 0).unwrap();
        let fields = format!("cookie: s=\"{}\"\r\n", session.write(&token));
        let answered = async {
            until("the slow one has it", || seen.get() == 1).await;
            // Others that come to the slow one are hedged meanwhile, and so would this one have been.
            while seen.get() < 3 {
                assert_eq!(ask(&rig, "/", "").await.0, "quick", "who has none is hedged");
            }
            may.set(1);
        };
        let (held, ()) = tokio::join!(ask(&rig, "/", &fields), answered);
        assert_eq!(held, ("slow".to_owned(), None));
    })
    .await;
}

#[tokio::test]
async fn weights_are_for_clients_without_a_session() {
    run(async {
        let (heavy, light) = (named("heavy").await, named("light").await);
        let session = cookie();
        let mut setup = to(&[heavy], session.clone());
        let endpoints = vec![Endpoint::new(light)];
        let locality = LocalityEndpoints { weight: 1, endpoints, ..LocalityEndpoints::default() };
        let set = EndpointSet::new("light", vec![locality]);
        setup.others.push(Cluster { discovery: Discovery::Static(set), ..Cluster::new("light") });
        setup.forward().clusters =
            vec![WeightedCluster::share("c", 1_000_000), WeightedCluster::share("light", 1)];
        let rig = proxy(setup, Http1).await;
        let token = session.answered(None, light, 0).unwrap();
        let fields = format!("cookie: s=\"{}\"\r\n", session.write(&token));
        for _ in 0..20 {
            assert_eq!(ask(&rig, "/", &fields).await, ("light".to_owned(), None));
        }
        assert_eq!(ask(&rig, "/", "").await.0, "heavy", "one in a million would not");
    })
    .await;
}

#[tokio::test]
async fn a_header_carries_a_session_too_and_a_permanent_cookie_says_when_it_ends() {
    run(async {
        let by = SessionBy::Header { name: "x-s".into() };
        let endpoints = [named("a").await, named("b").await];
        let rig = proxy(to(&endpoints, Session { by, ..cookie() }), Http1).await;
        let (first, given) = ask(&rig, "/", "").await;
        let fields = format!("X-S: {}\r\n", given.unwrap());
        for _ in 0..4 {
            assert_eq!(ask(&rig, "/", &fields).await, (first.clone(), None));
        }
        let by = SessionBy::Cookie {
            name: "s".into(),
            path: Some("/shop".into()),
            permanent: true,
            attributes: Vec::new(),
        };
        let absolute = Some(Duration::from_secs(90));
        let rig = proxy(to(&endpoints, Session { by, absolute, ..cookie() }), Http1).await;
        let (_, given) = ask(&rig, "/shop/x", "").await;
        assert!(given.unwrap().ends_with("; Max-Age=90; Path=/shop; HttpOnly"));
        assert_eq!(ask(&rig, "/shopping", "").await.1, None, "not beneath its path");
    })
    .await;
}
