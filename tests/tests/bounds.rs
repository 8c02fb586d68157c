//! What a sidecar does at the limits of its process.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use hickory_proto::rr::RecordType;
use outrigger_tests::app::{echo, get};
use outrigger_tests::attack::{Attack, Victim};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::eventually;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::attacks::shed;
use crate::dns::{addresses, ask, is_virtual, question, tcp};
use crate::thin_thread::{STRICT, catalog, web};

const DENY: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec: {hosts: [catalog], http: [{directResponse: {status: 418}}]}
";

const NAME: &str = "catalog.shop.svc.cluster.local";

/// A program that starts the one under test, a sidecar with 128 descriptors.
fn limited(folder: &std::path::Path) -> String {
    let script = folder.join("limited");
    let mut file = std::fs::File::create(&script).unwrap();
    let text =
        format!("#!/bin/sh\ncase \"$*\" in *--bootstrap*) ulimit -n 128;; esac\nexec {BINARY} \"$@\"\n");
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    script.to_str().unwrap().to_owned()
}

/// The page of both says that they hear the control plane.
async fn connected(sidecars: [&Sidecar; 2]) {
    for sidecar in sidecars {
        eventually("it hears the control plane", || async {
            let page = sidecar.page("/stats/prometheus").await;
            let is = page.contains("outrigger_control_plane_connected 1");
            let open = page.lines().find(|line| line.starts_with("process_open_fds")).unwrap_or_default();
            if is { Ok(()) } else { Err(open.to_owned()) }
        })
        .await;
    }
}

/// With 128 descriptors, 300 connections that rest or say nothing keep nobody out: neither another client, nor the admin
/// pages, nor who asks for health or for names, nor the control plane, which may have to be called anew.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_of_descriptors_admin_xds_and_an_honest_client_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::start(&limited(folder.path())).await;
    let (health, names) = ([mesh.address(11, 15021), mesh.address(10, 15021)], mesh.address(10, 15053));
    mesh.bootstrap = json!({ "health": health[0] });
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let dns = json!({ "bind": [names], "upstream": [mesh.address(2, 53)], "search": [] });
    mesh.bootstrap = json!({ "health": health[1], "dns": dns });
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);
    eventually("the name is known", || async {
        let answer = ask(names, NAME, RecordType::A).await;
        let is_known = addresses(&answer).iter().any(|address| is_virtual(*address));
        if is_known { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;

    // Fewer than 128 connections of some 64 KiB, and the code that serves them.
    let victims = [("web", &web), ("catalog", &catalog)].map(|(name, sidecar)| Victim {
        name,
        pid: sidecar.id().unwrap(),
        grows: 32,
        keeps: 24,
        page: (sidecar.admin, "/stats/prometheus"),
    });
    let what = "300 connections that rest or are silent, and 128 descriptors";
    let mut attack = Attack::begin(what, &victims, web.outbound[0], "/").await;
    // Its own rests, too, from one answer to the next request.
    attack.reconnects = 20;
    let (mut resting, mut silent) = (Vec::new(), Vec::new());
    for _ in 0..150 {
        let mut stream = TcpStream::connect(web.outbound[0]).await.unwrap();
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
        // Refused or answered; then it rests.
        let _ = stream.read(&mut [0; 64]).await;
        resting.push(stream);
        silent.push(TcpStream::connect(catalog.inbound).await.unwrap());
    }
    for _ in 0..5 {
        let began = std::time::Instant::now();
        let waited = eventually("an honest client is served", || async {
            match get(web.outbound[0], "/", "").await {
                Ok((200, _)) => Ok(began.elapsed()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        println!("figure: at the limit of descriptors a newcomer waits {waited:?}");
    }
    assert!(shed(&web).await > 0.0, "the limit was not reached");
    for place in health {
        let (status, text) = get(place, "/healthz/ready", "").await.unwrap();
        assert_eq!(status, 200, "{place}: {text}");
    }
    let (datagram, stream) = (ask(names, NAME, RecordType::A), question(NAME, RecordType::A));
    for answer in [datagram.await, tcp(names, &stream).await] {
        assert!(matches!(&addresses(&answer)[..], [one] if is_virtual(*one)), "{answer}");
    }
    connected([&web, &catalog]).await;
    mesh.kill_control();
    mesh.start_control().await;
    connected([&web, &catalog]).await;
    attack.lasts(50).await;
    let after = attack.end().await;
    mesh.apply(DENY).await;
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert_eq!(status, 418, "what was pushed is in force: {text}");
    drop((resting, silent));
    after.calm().await;
}
