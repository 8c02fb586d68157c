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
use crate::keeper::tests::keeper;
use crate::service_accounts::{AUDIENCE, good, trusting};
use crate::store::memory::Memory;

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
