//! The control plane killed at once: traffic goes on, a sidecar restarts from disk, nothing acknowledged is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_control_plane_traffic_goes_on_and_a_restarted_sidecar_serves_from_disk() {
    let mut mesh = Mesh::start(BINARY).await;
    let (v1, mut v2) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(v1.app, "catalog-v1").await;
    echo(v2.app, "catalog-v2").await;
    mesh.apply(STRICT).await;
    let applied = mesh.client.rules(&Default::default()).await.unwrap().len();
    // Written half a second after the last change, by every sidecar.
    for id in ["catalog-v1", "catalog-v2", "web-v1"] {
        let file = mesh.path(&format!("{id}.state/snapshot.json"));
        eventually("the stored configuration", || {
            let there = std::fs::read_to_string(&file).is_ok_and(|text| {
                text.contains("mtls-http") && !text.contains("plain-http") || text.contains("Destination")
            });
            async move { if there { Ok(()) } else { Err("not written yet") } }
        })
        .await;
    }
    mesh.kill_control();

    let (stop, served, failed) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let load = {
        let (stop, served, failed, entry) = (stop.clone(), served.clone(), failed.clone(), web.outbound[0]);
        tokio::spawn(async move {
            while !stop.load(SeqCst) {
                match get(entry, "/", "").await {
                    Ok((200, _)) => served.fetch_add(1, SeqCst),
                    _ => failed.fetch_add(1, SeqCst),
                };
            }
        })
    };
    eventually("requests are served", || {
        let enough = served.load(SeqCst) > 50;
        async move { if enough { Ok(()) } else { Err("too few") } }
    })
    .await;
    // One of the two endpoints goes away and comes back: connect failures are retried on the other.
    v2.kill();
    v2.start(&mesh).await;
    let dump = v2.page("/config_dump").await;
    assert!(dump.contains("\"fromDiskSince\"") && !dump.contains("\"fromDiskSince\": null"), "{dump}");
    let before = served.load(SeqCst);
    eventually("requests go on", || {
        let enough = served.load(SeqCst) > before + 50;
        async move { if enough { Ok(()) } else { Err("too few") } }
    })
    .await;
    stop.store(true, SeqCst);
    load.await.unwrap();
    println!("served {} requests during the outage, {} failed", served.load(SeqCst), failed.load(SeqCst));
    assert_eq!(failed.load(SeqCst), 0);

    mesh.start_control().await;
    assert_eq!(mesh.client.rules(&Default::default()).await.unwrap().len(), applied);
    eventually("all sidecars are back", || async {
        let status = mesh.client.status().await.map_err(|e| e.to_string())?;
        let synced = status.proxies.iter().filter(|p| p.synced).count();
        if synced == 3 { Ok(()) } else { Err(format!("{synced} of 3")) }
    })
    .await;
}
