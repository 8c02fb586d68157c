//! A network that turns a Service's address into a Pod's before the sidecar sees it: an operator is told, until somebody calls a Service.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn that_services_never_see_a_call_is_a_notice() {
    let Some(stage) = Stage::start().await else { return };
    stage.cluster.apply(&deployment("web", "v1", 2));
    stage.cluster.apply(&deployment("catalog", "v1", 3));
    let clients = stage.until_ready("web", 2).await;
    let catalog = stage.until_ready("catalog", 3).await;
    let says = async |what: &str, wanted: bool| {
        eventually(what, || async {
            let notices = stage.mesh.client.status().await.map_err(|error| error.to_string())?.notices;
            let is_told = notices.iter().any(|notice| {
                notice.starts_with("2 sidecars call addresses of Pods (3, such as of catalog.shop)")
            });
            if is_told == wanted { Ok(()) } else { Err(format!("{notices:?}")) }
        })
        .await;
    };
    for client in &clients {
        for pod in &catalog {
            let address = SocketAddr::new(stage.host(pod).v4(), 8080);
            let answer = stage.ask(client, address).await;
            assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{answer:?}");
        }
    }
    says("what it looks like is said", true).await;
    let answer = stage.ask(&clients[0], stage.service("catalog", 80)).await;
    assert!(answer.as_ref().is_ok_and(|(status, _)| *status == 200), "{answer:?}");
    says("a Service is called after all", false).await;
}
