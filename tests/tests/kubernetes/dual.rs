//! Pods and Services with addresses of both families, of which that of IPv6 comes first: injection, interception, probes and mTLS by either.

use std::net::IpAddr;

use super::*;

/// A Deployment and its Service, with addresses of both.
fn both(name: &str) -> String {
    let all =
        deployment(name, "v1", 1).replace(r#""env":["#, r#""env":[{"name":"LISTEN","value":"::"},"#).replace(
            "spec: {selector",
            "spec: {ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4], selector",
        );
    assert!(all.contains("LISTEN") && all.contains("RequireDualStack"), "{all}");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_both_families_reach_each_other_by_either_and_nobody_else_reaches_them() {
    let Some(stage) = Stage::start_among(Net::dual, json!({}), None, false).await else { return };
    stage.mesh.apply(STRICT).await;
    stage.cluster.apply(&both("web"));
    stage.cluster.apply(&both("catalog"));
    // A kubelet asks at the first address: the sidecar answers there, and asks the application.
    let [web] = stage.until_ready("web", 1).await.try_into().unwrap();
    let [catalog] = stage.until_ready("catalog", 1).await.try_into().unwrap();
    let host = stage.host(&catalog);
    let pod = cni::pod(&stage, &catalog);
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": host.v6()}, {"ip": host.v4()}]));

    let addresses = ["-n", "shop", "get", "service", "catalog", "-o", "jsonpath={.spec.clusterIPs[*]}"];
    let addresses = stage.cluster.kubectl(&addresses).unwrap();
    let of_service: Vec<IpAddr> = addresses.split(' ').map(|ip| ip.parse().unwrap()).collect();
    assert!(of_service.len() == 2 && of_service[0].is_ipv6() && of_service[1].is_ipv4(), "{addresses}");
    let places = of_service.iter().map(|ip| SocketAddr::new(*ip, 80));
    for place in places.chain(host.addresses().map(|ip| SocketAddr::new(ip, 8080))) {
        eventually(&format!("web reaches {place} as who it is"), || async {
            match stage.ask(&web, place).await {
                Ok((200, text)) if text.contains("spiffe://cluster.local/ns/shop/sa/web") => Ok(()),
                other => Err(format!("{other:?}\n{}\n{}", stage.logs(&web), stage.logs(&catalog))),
            }
        })
        .await;
    }
    for ip in host.addresses() {
        let refused = stage.master.run(app::get(SocketAddr::new(ip, 8080), "/", "")).await;
        assert!(refused.is_err(), "{ip}: {refused:?}");
    }
}
