//! What a Sidecar says holds for what the kernel brings: what comes in goes where it says, and what is not known is refused.

use std::net::SocketAddr;

use outrigger_tests::app::{echo, exchange};
use outrigger_tests::netns::workload::Workload;
use outrigger_tests::wait::eventually;

use super::{Pair, at, curl};

fn sidecar(app: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {app}, namespace: shop}}\nspec: {{workloadSelector: \
         {{labels: {{app: {app}}}}}, {spec}}}\n"
    )
}

const INGRESS: &str = "ingress: [{port: {number: 80, protocol: HTTP, name: a}, defaultEndpoint: '127.0.0.1:8081'}, \
                       {port: {number: 7000, protocol: HTTP, name: b}, defaultEndpoint: '0.0.0.0:8082'}]";

async fn what_is_captured_obeys(mode: &str) {
    let like = Workload { mode, ..Workload::default() };
    let Some(pair) = Pair::start(&[80, 7000], like).await else { return };
    let [v4, v6] = pair.server.host.addresses();
    // Nobody listens at the registered ports.
    let own = [SocketAddr::new(v4, 8082), SocketAddr::new(v6, 8082)];
    let apps = async move {
        echo(SocketAddr::from(([127, 0, 0, 1], 8081)), "loopback").await;
        for address in own {
            echo(address, "own").await;
        }
    };
    pair.server.host.run(apps).await;
    pair.mesh.apply(&sidecar("server", INGRESS)).await;
    let client = &pair.client.host;
    for address in [v4, v6] {
        for (port, name) in [(80, "loopback"), (7000, "own")] {
            eventually(&format!("{name} answers at {address}"), || async {
                let body = curl(client, &[&format!("http://{}/", at(address, port))])?;
                if body.starts_with(&format!("{name}\n")) { Ok(()) } else { Err(body) }
            })
            .await;
        }
    }

    let refusing = "outboundTrafficPolicy: {mode: REGISTRY_ONLY}, egress: [{hosts: ['~/*']}]";
    pair.mesh.apply(&sidecar("client", refusing)).await;
    for address in [v4, v6] {
        let request = "GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n";
        let (status, text) = client.run(exchange(SocketAddr::new(address, 80), request)).await.unwrap();
        assert!(status == 502 && text.contains("Sidecar shop/client"), "{text}");
    }
    pair.mesh.apply(&sidecar("client", &refusing.replace("~/*", "./server"))).await;
    let body = curl(client, &[&format!("http://{}/", at(v4, 80))]).unwrap();
    assert!(body.starts_with("loopback\n"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_rule_holds_for_what_is_redirected() {
    what_is_captured_obeys("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_rule_holds_for_what_keeps_its_addresses() {
    what_is_captured_obeys("tproxy").await;
}
