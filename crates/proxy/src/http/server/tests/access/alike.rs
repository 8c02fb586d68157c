//! What good tokens and services that authorize write into a request nobody else writes, not even in what an application that makes
//! variables of names takes for it.

use outrigger_model::cluster::{Cluster, Discovery};
use outrigger_model::token::{ClaimHeader, JwtAuthn};

use super::*;

const END: &str = "X-End: 1\r\n\r\n";

/// Answers with the names that came: those of the head, and behind a bar those of the trailers.
async fn names() -> SocketAddr {
    upstream(|_, mut wire| async move {
        loop {
            let (head, rest) = (wire.head().await, wire.until(END).await);
            let names = |text: &str| -> Vec<String> {
                let names = text.lines().filter_map(|line| line.split_once(": "));
                let mut names: Vec<_> = names.map(|(name, _)| name.to_ascii_lowercase()).collect();
                names.retain(|name| name.contains("user") || name.contains("odd"));
                names
            };
            wire.send(&ok(&format!("{} | {}", names(&head).join(" "), names(&rest).join(" ")))).await;
        }
    })
    .await
}

async fn seen(rig: &Rig) -> String {
    let forged = "X-User-Id: admin\r\nX_User_Id: admin\r\nx.user-id: admin\r\nx_odd: 1\r\n";
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{forged}\r\n");
    let (status, seen) = say(rig.address, &format!("{head}1\r\nx\r\n0\r\n{forged}{END}")).await;
    assert_eq!(status, 200, "{seen}");
    seen
}

#[tokio::test]
async fn what_tokens_write_is_written_by_nobody_else_however_spelt() {
    run(async {
        let setup = |tokens: bool| {
            let mut provider = JwtProvider::new("i", r#"{"keys":[]}"#);
            provider.claim_headers = vec![ClaimHeader { header: "x-user-id".into(), claim: "sub".into() }];
            let rule = TokenRule { matches: RouteMatch::default(), requires: Requirement::AllowMissing };
            let providers = [("p".to_owned(), provider)].into();
            let authn = JwtAuthn { providers, rules: vec![rule], bypass_preflight: false };
            move |app| {
                let mut setup = Setup::to(&[app]);
                setup.http.filters =
                    tokens.then(|| HttpFilter::Tokens(Box::new(authn))).into_iter().collect();
                setup
            }
        };
        let rig = proxy(setup(false)(names().await), Http1).await;
        let all = "x-user-id x_user_id x.user-id x_odd | x-user-id x_user_id x.user-id x_odd";
        assert_eq!(seen(&rig).await, all, "nobody else's names are touched");
        let rig = proxy(setup(true)(names().await), Http1).await;
        assert_eq!(seen(&rig).await, "x_odd | x_odd");
        // One request says nothing for the next of its connection.
        assert_eq!(seen(&rig).await, "x_odd | x_odd");
    })
    .await;
}

#[tokio::test]
async fn what_a_service_that_authorizes_says_is_said_by_nobody_else_however_spelt() {
    run(async {
        let rig = async |says: &'static str, taken: &[&str]| {
            let service = upstream(move |_, mut wire| async move {
                loop {
                    wire.head().await;
                    wire.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{says}\r\n")).await;
                }
            })
            .await;
            let mut setup = Setup::to(&[names().await]);
            let Discovery::Static(set) = Setup::to(&[service]).cluster.discovery else { panic!() };
            setup.others.push(Cluster { discovery: Discovery::Static(set), ..Cluster::new("authz") });
            let upstream_headers = taken.iter().map(|name| StringMatch::exact(*name)).collect();
            let http = HttpAuthz { upstream_headers, ..HttpAuthz::default() };
            let authz = ExtAuthz::new(AuthzService::Http(http), "authz");
            setup.http.filters = vec![HttpFilter::ExtAuthz(Box::new(authz))];
            proxy(setup, Http1).await
        };
        let one = rig("X-User-Id: somebody\r\n", &["x-user-id"]).await;
        assert_eq!(seen(&one).await, "x-user-id x_odd | x_odd");
        // For applications old and new: what it says itself is no look-alike of what it says itself.
        let both = "X-User-Id: somebody\r\nX_User_Id: somebody\r\n";
        let two = rig(both, &["x-user-id", "x_user_id"]).await;
        assert_eq!(seen(&two).await, "x_odd x-user-id x_user_id | x_odd");
    })
    .await;
}
