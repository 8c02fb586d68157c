//! Certificates that live for seconds, renewed under load: no request fails and no stream is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, get, greeter};
use outrigger_tests::mesh::{Mesh, Sidecar, Spec};
use outrigger_tests::wait::eventually;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

async fn renewals(sidecar: &Sidecar) -> u64 {
    let page = sidecar.page("/certs").await;
    let body = page.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let from = body.find('{').unwrap_or_default();
    let json = serde_json::Deserializer::from_str(&body[from..]).into_iter::<Value>().next();
    json.and_then(Result::ok).and_then(|json| json["renewals"].as_u64()).unwrap_or_else(|| panic!("{page}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_rotate_under_load_without_a_failed_request_or_a_cut_stream() {
    let mesh = Mesh::start_with(BINARY, json!({ "certificateTtlSeconds": 6 })).await;
    let catalog = mesh.workload(&catalog("v1", 11)).await;
    let spec = Spec { service: "stock", version: "v1", host: 13, protocol: Protocol::Tcp, calls: &[] };
    let stock = mesh.workload(&spec).await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    echo(catalog.app, "catalog-v1").await;
    greeter(stock.app).await;
    mesh.apply(STRICT).await;
    let mut stream = TcpStream::connect(web.outbound[1]).await.unwrap();
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting).await.unwrap();

    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = {
        let (stop, served) = (stop.clone(), served.clone());
        let (http, tcp) = (web.outbound[0], web.outbound[1]);
        tokio::spawn(async move {
            let mut failed = Vec::new();
            while !stop.load(SeqCst) {
                match get(http, "/", "").await {
                    Ok((200, _)) => drop(served.fetch_add(1, SeqCst)),
                    Ok((_, text)) => failed.push(text),
                    Err(error) => failed.push(error.to_string()),
                }
                // A TCP connection is never pooled: a handshake with the certificates of this moment.
                let mut hello = [0; 6];
                let greeted = async { TcpStream::connect(tcp).await?.read_exact(&mut hello).await };
                if let Err(error) = greeted.await {
                    failed.push(format!("tcp: {error}"));
                }
            }
            failed
        })
    };
    let mut counted = Vec::new();
    for sidecar in [&web, &catalog, &stock] {
        counted.push((sidecar, renewals(sidecar).await));
    }
    for (sidecar, before) in counted {
        eventually("three more certificates", || async {
            let now = renewals(sidecar).await;
            if now >= before + 3 { Ok(()) } else { Err(format!("{now} renewals, {before} before")) }
        })
        .await;
    }
    stop.store(true, SeqCst);
    let failed = load.await.unwrap();
    println!("{} requests served while certificates rotated, {} failed", served.load(SeqCst), failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(served.load(SeqCst) > 100);
    stream.write_all(b"still here\n").await.unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here\n");
}
