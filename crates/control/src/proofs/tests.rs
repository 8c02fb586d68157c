//! Callers with tokens of a cluster, whose API server takes what its keys have signed.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::*;
use crate::instance::{Protocol, sample};
use crate::keeper::tests::keeper;
use crate::registry::api::Caller as By;
use crate::registry::claim::Reach;
use crate::service_accounts::{AUDIENCE, good, looked, trusting};
use crate::store::memory::Memory;
use crate::tokens::Grant;

/// Knows the one token.
fn api_server(token: String) -> Client {
    let server = tower::service_fn(move |request: Request<Body>| {
        let token = token.clone();
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            let status = match review["spec"]["token"] == token.as_str() {
                true => json!({
                    "authenticated": true, "audiences": [AUDIENCE],
                    "user": {
                        "username": "system:serviceaccount:shop:web",
                        "extra": {"authentication.kubernetes.io/pod-name": ["web-1"]},
                    },
                }),
                false => json!({"authenticated": false, "error": "token is not of this cluster"}),
            };
            review["status"] = status;
            Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(review.to_string()))))
        }
    });
    Client::new(server, "mesh")
}

async fn proofs(token: &str) -> Proofs {
    let cluster = trusting(api_server(token.to_owned()), Arc::new(|_| Ok(())));
    let tokens = Tokens::new(Arc::new(Memory::default()), Vec::new());
    Proofs { tokens, cluster: Some(cluster), keeper: keeper().await.0 }
}

fn web() -> SpiffeId {
    SpiffeId::workload("cluster.local", "shop", "web").unwrap()
}

fn caller(from: &str, bearer: &str) -> Caller {
    Caller {
        certificate: None,
        bearer: Some(bearer.to_owned()),
        remote: SocketAddr::new(from.parse().unwrap(), 1),
        request: String::new(),
    }
}

#[tokio::test]
async fn a_token_that_the_cluster_has_signed_waits_for_nobody_who_guesses_beside_it() {
    let token = good("shop");
    let proofs = proofs(&token).await;
    for beside in ["10.1.0.1", "2001:db8::1"] {
        let mut held = 0;
        for _ in 0..100 {
            let refused = proofs.identify(&caller(beside, "eyJh.eyJi.c2ln")).await.unwrap_err();
            held += usize::from(refused.reason.contains("too many wrong tokens"));
        }
        assert!(held >= 79, "{held} of a hundred were not looked at");
        // Behind the same address even, as behind a NAT; and that a certificate was given does not make others' guesses better.
        assert_eq!(proofs.identify(&caller(beside, &token)).await, Ok(web()));
        let refused = proofs.identify(&caller(beside, "eyJh.eyJi.c2ln")).await.unwrap_err();
        assert!(refused.reason.contains("too many wrong tokens"), "{refused}");
    }
    assert_eq!(proofs.identify(&caller("2001:db8::2", &token)).await, Ok(web()), "of the same /64");
}

#[tokio::test]
async fn a_pods_certificate_renews_nothing_and_a_vms_does() {
    let proofs = proofs(&good("shop")).await;
    let cluster = proofs.cluster.clone().unwrap();
    let refused = || proofs.renew(&web()).map_err(|denied| (denied.expected, denied.reason));
    let nobody = || {
        let (is_expected, why) = refused().unwrap_err();
        assert!(!is_expected && why.contains("nobody is known who runs"), "{why}");
    };
    nobody();
    // Whoever has taken a key can say that it runs.
    let mine = sample("mine", "web", "v1", "127.0.0.5", 8080, Protocol::Http);
    let reach = Reach { source: Some("127.0.0.5".parse().unwrap()), ranges: Vec::new() };
    let thief = By::Workload { identity: web(), services: vec!["web".into()], reach, incarnation: None };
    proofs.keeper.register(mine, thief).await.unwrap();
    nobody();

    let mut pod = sample("web-1.shop", "web", "v1", "10.1.0.7", 8080, Protocol::Http);
    pod.metadata.insert(canonical::UID.to_owned(), "p".to_owned());
    proofs.keeper.register(pod, By::Operator("the cluster".into())).await.unwrap();
    let by_token = || {
        let (is_expected, why) = refused().unwrap_err();
        assert!(is_expected && why.contains("are Pods"), "{why}");
    };
    by_token();
    // Nobody writes Pods new tokens while their API server is away.
    looked(&cluster, false);
    assert_eq!(refused(), Ok(()));
    looked(&cluster, true);
    by_token();

    // Who has joined by a token of the mesh, which may be spent, has nothing else.
    let grant = Grant { identity: web(), services: Vec::new(), ranges: Vec::new(), ttl: None, uses: Some(1) };
    proofs.tokens.create(grant).await.unwrap();
    assert_eq!(refused(), Ok(()));
    proofs.tokens.revoke(&web()).await.unwrap();
    by_token();
    // Nor has a VM that an operator or a registry knows.
    let vm = sample("vm", "web", "v1", "10.2.0.7", 8080, Protocol::Http);
    proofs.keeper.register(vm, By::Operator("ann".into())).await.unwrap();
    assert_eq!(refused(), Ok(()));
}
