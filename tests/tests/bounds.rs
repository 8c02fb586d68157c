//! What a sidecar does at the limits of its process.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use outrigger_tests::app::{echo, get};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

const DENY: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: catalog, namespace: shop}
spec: {hosts: [catalog], http: [{directResponse: {status: 418}}]}
";

/// With 128 descriptors, 300 connections that rest or say nothing keep nobody out: neither another client, nor the admin
/// pages, nor the control plane.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_limit_of_descriptors_admin_xds_and_an_honest_client_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("limited");
    let mut file = std::fs::File::create(&script).unwrap();
    let text =
        format!("#!/bin/sh\ncase \"$*\" in *--bootstrap*) ulimit -n 128;; esac\nexec {BINARY} \"$@\"\n");
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(file);
    let mesh = Mesh::start(script.to_str().unwrap()).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    mesh.apply(STRICT).await;
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);

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
        let status = eventually("an honest client is served", || async {
            match get(web.outbound[0], "/", "").await {
                Ok((200, _)) => Ok(began.elapsed()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        println!("figure: at the limit of descriptors an honest client waits {status:?}");
    }
    for sidecar in [&web, &catalog] {
        let page = sidecar.page("/stats/prometheus").await;
        let open = page.lines().find(|line| line.starts_with("process_open_fds")).unwrap().to_owned();
        println!("figure: {open} of 128");
        assert!(page.contains("outrigger_control_plane_connected 1"), "{page}");
    }
    mesh.apply(DENY).await;
    let (status, text) = get(web.outbound[0], "/", "").await.unwrap();
    assert_eq!(status, 418, "what was pushed is in force: {text}");
}
