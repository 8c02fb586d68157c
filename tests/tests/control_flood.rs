//! Crowds before the control plane: silent connections at every stage cost sidecars and operators nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use outrigger_identity::connect::{PeerExpectation, client_config};
use outrigger_identity::{Credentials, TrustBundle};
use outrigger_tests::app::{echo, get};
use outrigger_tests::attack::{Attack, NOTICED, Victim};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::eventually;
use serde_json::json;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

/// Silent connections at a time; the control plane may have 512 files open.
const CROWD: usize = 600;
/// Each comes so many times when it is turned away.
const TURNS: usize = 3;

async fn connect(to: SocketAddr, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    // Where the kernel's queue was full, it has forgotten who believes to be connected: only a probe finds that out.
    let probes = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(5));
    SockRef::from(&socket).set_tcp_keepalive(&probes)?;
    socket.connect(to).await
}

/// Goes so far and says nothing more; ends when it is turned away.
async fn silent(to: SocketAddr, from: Ipv4Addr, stage: usize, tls: TlsConnector) -> std::io::Result<()> {
    let mut tcp = connect(to, from).await?;
    if stage == 0 {
        tcp.read_to_end(&mut Vec::new()).await?;
        return Ok(());
    }
    let mut io = tls.connect("control".try_into().expect("a name"), tcp).await?;
    if stage == 2 {
        io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    }
    io.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn six_hundred_silent_connections_lock_out_neither_operators_nor_sidecars() {
    let mesh = Mesh::start_behind(BINARY, &["prlimit", "--nofile=512:512"], json!({})).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let bundle = TrustBundle::from_pem("cluster.local", &mesh.issue("web").await.roots).unwrap();
    let credentials = Credentials::new(None, Arc::new(bundle));
    let anybody = PeerExpectation::TrustDomain("cluster.local".into());
    let tls = TlsConnector::from(client_config(&credentials, anybody, &[b"h2"]).unwrap());
    // Strangers have 512 connections at most, of 64 KiB and what TLS holds of each.
    let pid = mesh.control_id().unwrap();
    let control = Victim {
        name: "control plane",
        pid,
        grows: 64,
        keeps: 48,
        page: (mesh.address(1, 15014), "/metrics"),
    };
    let what = "600 silent connections at the control plane's port";
    let attack = Attack::begin(what, &[control], mesh.address(1, 15014), "/ready").await;

    let (xds, opened) = (mesh.address(1, 15012), Arc::new(AtomicU32::new(0)));
    let mut crowd = JoinSet::new();
    for n in 0..CROWD {
        let (tls, opened) = (tls.clone(), opened.clone());
        // From three addresses that no sidecar has.
        let from = Ipv4Addr::new(127, 9, 9, 1 + (n % 3) as u8);
        crowd.spawn(async move {
            for _ in 0..TURNS {
                opened.fetch_add(1, Ordering::Relaxed);
                let _ = silent(xds, from, n % 3, tls.clone()).await;
            }
        });
    }
    eventually("the whole crowd is there", || async {
        let opened = opened.load(Ordering::Relaxed);
        if opened >= CROWD as u32 { Ok(()) } else { Err(opened) }
    })
    .await;

    let begun = Instant::now();
    assert_eq!(mesh.client.status().await.unwrap().proxies.len(), 1, "the sidecar that was there before");
    let operator = begun.elapsed();
    assert_eq!(get(mesh.address(1, 15014), "/ready", "").await.unwrap().0, 200);
    let begun = Instant::now();
    let applied = mesh.apply(STRICT).await;
    assert_eq!(applied.in_force.unwrap().proxies, 1, "the sidecar that was there before has it");
    let push = begun.elapsed();
    let begun = Instant::now();
    let web = mesh.workload(&web(&["catalog:8080"])).await;
    let joined = begun.elapsed();
    echo(catalog.app, "catalog-v1").await;
    assert_eq!(get(web.outbound[0], "/", "").await.unwrap().0, 200);
    attack.lasts(50).await;
    let after = attack.end().await;
    eprintln!(
        "FIGURES {what}: status {operator:.1?}, a rule in force {push:.1?}, a sidecar joined {joined:.1?}"
    );
    assert!(operator < NOTICED, "an operator waited {operator:?}");
    assert!(push < 2 * NOTICED, "a rule was in force after {push:?}");
    // That is a process that starts and gets its certificate.
    assert!(joined < 4 * NOTICED, "a sidecar had joined after {joined:?}");

    // Nobody is kept: every one of them, and all their returns, has been turned away.
    let all = async { while crowd.join_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(300), all).await.expect("silence ends every connection");
    assert_eq!(opened.load(Ordering::Relaxed) as usize, CROWD * TURNS);
    assert_eq!(mesh.client.status().await.unwrap().proxies.len(), 2, "the sidecars are there as before");
    after.calm().await;
}
