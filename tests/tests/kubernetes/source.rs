//! A cluster as a registry, without any sidecar: what it has is the mesh's as it changes, and an API server that is away takes nothing.

use outrigger_control::api::types::Condition;

use super::*;
use crate::registries::{row, until};

/// A Service that selects nothing, and where it is.
const BY_HAND: &str = "apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: outside, namespace: shop, labels: {kubernetes.io/service-name: outside}}
addressType: IPv4
ports: [{port: 9090}]
endpoints: [{addresses: [10.77.0.200]}]
";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cluster_has_is_the_meshs_and_an_api_server_that_is_away_takes_nothing() {
    let Some(mut stage) = Stage::without_injection().await else { return };
    stage.cluster.apply(&deployment("catalog", "v1", 2));
    let pods = stage.until_ready("catalog", 2).await;
    let instances = async |what: &str, is: &dyn Fn(&[Instance]) -> bool| {
        eventually(what, || async {
            let all = stage.mesh.client.instances().await.map_err(|error| error.to_string())?;
            let all: Vec<Instance> = all.into_iter().map(|body| body.instance).collect();
            if is(&all) { Ok(all) } else { Err(format!("{all:?}")) }
        })
        .await
    };
    let both = |state| move |all: &[Instance]| all.len() == 2 && all.iter().all(|one| one.state == state);
    let all = instances("both Pods are instances", &both(State::Running)).await;
    for instance in &all {
        assert!(pods.iter().any(|pod| format!("{pod}.shop") == instance.id), "{instance:?}");
        assert_eq!(
            (instance.serves(), instance.service_account.as_str()),
            (&["catalog".to_owned()][..], "catalog")
        );
        assert_eq!(
            (instance.region.as_str(), instance.zone.as_str(), instance.sidecar),
            ("eu", "eu-1", false)
        );
        let ports: Vec<_> = instance.ports.iter().map(|port| (port.number, port.protocol)).collect();
        assert_eq!(ports, [(8080, Protocol::Http)]);
    }
    // The Service is a rule, and holds for clients: its address, its port, what is behind.
    let described = stage
        .mesh
        .client
        .describe(&DescribeQuery { service: "shop/catalog".into(), from: None })
        .await
        .unwrap();
    let [port] = described.ports.as_slice() else { panic!("{described:?}") };
    assert_eq!((port.port, port.clusters[0].healthy), (80, Some(2)), "{described:?}");

    // Endpoints that somebody wrote by hand have their own port.
    stage.cluster.apply(BY_HAND);
    eventually("the Service has what was written", || async {
        let query = DescribeQuery { service: "shop/outside".into(), from: None };
        let described = stage.mesh.client.describe(&query).await.map_err(|error| error.to_string())?;
        let healthy = described.ports.first().and_then(|port| port.clusters.first()?.healthy);
        if healthy == Some(1) { Ok(()) } else { Err(format!("{described:?}")) }
    })
    .await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "endpointslice,service", "outside"]).unwrap();
    until(&stage.mesh, "cluster", "they have gone", |row| row.instances == 2).await;

    // An API server that is killed takes nothing and is told; what changes afterwards is heard.
    stage.cluster.kill_api();
    until(&stage.mesh, "cluster", "it is away", |row| row.state == Condition::Away).await;
    assert_eq!(row(&stage.mesh, "cluster").await.instances, 2);
    stage.cluster.start_api().await;
    until(&stage.mesh, "cluster", "it is back", |row| {
        row.state == Condition::Connected && row.instances == 2
    })
    .await;
    stage.cluster.kubectl(&["-n", "shop", "scale", "deployment", "catalog", "--replicas=1"]).unwrap();
    until(&stage.mesh, "cluster", "one has gone", |row| row.instances == 1).await;
    stage.cluster.kubectl(&["-n", "shop", "delete", "service", "catalog"]).unwrap();
    eventually("nobody serves the Service any more", || async {
        let query = DescribeQuery { service: "shop/catalog".into(), from: None };
        match stage.mesh.client.describe(&query).await {
            Err(_) => Ok(()),
            Ok(still) => Err(format!("{still:?}")),
        }
    })
    .await;
}
