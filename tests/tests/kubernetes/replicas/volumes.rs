//! A volume from before there were replicas: what it has is carried over once, and no authority takes the place of another.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// A control plane without sidecars, with a volume of its own.
async fn alone(cluster: &Cluster, which: usize) -> Mesh {
    let base = PORTS[which];
    let at = |port: u16| SocketAddr::new(cluster.host.v4(), base + port);
    let kubeconfig = cluster.path("mesh.kubeconfig");
    let settings = json!({
        "xdsAddress": at(12), "metricsAddress": at(14), "otlpAddress": at(18), "queryAddress": at(19),
        "registries": [{"name": "cluster", "kubernetes": {"kubeconfig": kubeconfig}}],
    });
    Mesh::start_on_with(BINARY, &cluster.host, settings).await
}

fn replica(which: usize) -> Value {
    json!({"name": NAMES[which], "namespace": "outrigger-system"})
}

async fn roots(mesh: &Mesh) -> Vec<String> {
    mesh.client.authority().await.unwrap().roots
}

/// Why it does not start with this setting.
async fn refused(mesh: &mut Mesh, replicas: Value) -> String {
    mesh.set("replicas", replicas);
    mesh.begin_control();
    mesh.ended_control().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_carried_over_once_and_no_authority_takes_anothers_place() {
    let Some(programs) = able() else { return };
    let net = Arc::new(Net::new());
    let master = net.host("master");
    let cluster = Cluster::start(programs, &master).await;
    for text in [&std::fs::read_to_string(MANIFEST).unwrap(), WE_ARE, SHARE] {
        cluster.apply(text);
    }
    let mut first = alone(&cluster, 0).await;
    let before = roots(&first).await;
    first.client.revoke(&whom("outcast")).await.unwrap();
    let grant =
        TokenRequest { namespace: "shop".into(), service_account: "guest".into(), ..Default::default() };
    first.client.create_token(&grant).await.unwrap();
    first.client.apply(STRICT, &Default::default()).await.unwrap();

    // What replicas cannot share is not left behind without a word.
    first.stop_control().await;
    let why = refused(&mut first, replica(0)).await;
    assert!(why.contains("1 rules and 0 instances"), "{why}");
    first.set("replicas", Value::Null);
    first.start_control().await;
    first.client.delete("PeerAuthentication", "shop", "default", &Default::default()).await.unwrap();
    first.stop_control().await;
    first.set("replicas", replica(0));
    first.start_control().await;
    assert_eq!(roots(&first).await, before, "sidecars go on trusting it");

    // A second finds all of it in the cluster.
    let mut second = alone(&cluster, 1).await;
    let others = roots(&second).await;
    second.stop_control().await;
    // But not one that has had another: its own sidecars would be lost.
    let why = refused(&mut second, replica(1)).await;
    assert!(why.contains("is not the one of this replica's volume"), "{why}");
    assert_ne!(others, before);
    std::fs::remove_dir_all(second.path("control")).unwrap();
    second.set("replicas", replica(1));
    second.start_control().await;
    assert_eq!(roots(&second).await, before);
    let revoked = second.client.revoked().await.unwrap();
    assert!(revoked.len() == 1 && revoked[0].entry.ends_with("/sa/outcast"), "{revoked:?}");
    assert_eq!(second.client.tokens().await.unwrap().len(), 1);

    // What was carried over is not gone back to by mistake: it may be old.
    first.stop_control().await;
    let why = refused(&mut first, Value::Null).await;
    assert!(why.contains("is not up to date"), "{why}");

    // Revocations that are lost while nobody runs are not lost without a word: they are there from the first authority on, with nobody in them.
    second.stop_control().await;
    let revocations = ["-n", "outrigger-system", "delete", "secret", "outrigger-revocations"];
    cluster.kubectl(&revocations).unwrap();
    second.start_control().await;
    for _ in 0..2 {
        let notices = second.client.status().await.unwrap().notices;
        assert!(
            notices.iter().any(|notice| notice.contains("whoever was revoked is so no longer")),
            "{notices:?}"
        );
        // A start mends nothing.
        second.stop_control().await;
        second.start_control().await;
    }
    second.client.revoke(&whom("outcast")).await.unwrap();
    second.stop_control().await;
    second.start_control().await;
    assert_eq!(second.client.status().await.unwrap().notices, Vec::<String>::new());
    second.client.reinstate(&whom("outcast")).await.unwrap();
    second.stop_control().await;
    second.start_control().await;
    assert_eq!(second.client.status().await.unwrap().notices, Vec::<String>::new());

    // Without the Secret nobody makes a new one: neither who knows of one, nor who finds that API servers do.
    second.stop_control().await;
    cluster.kubectl(&["-n", "outrigger-system", "delete", "secret", "outrigger-authority"]).unwrap();
    let why = refused(&mut first, replica(0)).await;
    assert!(why.contains("but this mesh has had an authority: the volume"), "{why}");
    let bundle = STANDARD.encode(std::fs::read(cluster.path("pki/apiserver.crt")).unwrap());
    let bundle =
        json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]).to_string();
    cluster.kubectl(&[&["patch"], &WEBHOOKS[1][..], &["--type=json", "-p", &bundle]].concat()).unwrap();
    std::fs::remove_dir_all(second.path("control")).unwrap();
    second.set("injector", json!({"address": "127.0.0.1:15017", "image": "outrigger/proxy:test"}));
    let why = refused(&mut second, replica(1)).await;
    assert!(why.contains("ValidatingWebhookConfiguration outrigger-validator has its roots"), "{why}");
}
