//! Which endpoints a client goes to, by where both are.

use outrigger_control::instance::State;
use outrigger_tests::app::{body, echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::thin_thread::{catalog, web};

const NEAREST: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: shop}
spec: {host: catalog, trafficPolicy: {loadBalancer: {localityLbSetting: {}}}}
";

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_serve_until_they_cannot_and_shares_are_as_they_are_said() {
    let mut mesh = Mesh::start(BINARY).await;
    mesh.locality = ("eu".into(), "a".into());
    let near = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    mesh.locality = ("us".into(), "a".into());
    let far = mesh.workload(&catalog("v2", 12)).await;
    echo(near.app, "near").await;
    echo(far.app, "far").await;
    let far_of = |count: usize| {
        let entry = web.outbound[0];
        async move {
            let mut far = 0;
            for _ in 0..count {
                let (status, text) = get(entry, "/", "").await.unwrap();
                assert_eq!(status, 200, "{text}");
                far += usize::from(body(&text).contains("far"));
            }
            far
        }
    };
    assert!(far_of(40).await > 0, "without a rule all are alike");
    mesh.apply(NEAREST).await;
    assert_eq!(far_of(40).await, 0);
    mesh.client.set_state("catalog-v1", State::Maintenance).await.unwrap();
    eventually("the far one serves", || async {
        let (status, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if status == 200 && body(&text).contains("far") { Ok(()) } else { Err(text) }
    })
    .await;
    mesh.client.set_state("catalog-v1", State::Running).await.unwrap();
    eventually("the near one serves again", || async {
        let (_, text) = get(web.outbound[0], "/", "").await.map_err(|error| error.to_string())?;
        if body(&text).contains("near") { Ok(()) } else { Err(text) }
    })
    .await;
    let shares = "{distribute: [{from: eu/*, to: {eu/a: 75, us: 25}}]}";
    mesh.apply(
        &NEAREST
            .replace("localityLbSetting: {}", &format!("localityLbSetting: {shares}, simple: ROUND_ROBIN")),
    )
    .await;
    assert_eq!(far_of(80).await, 20, "a weighted round robin is exact");
}
