//! A hundred rule pushes under load: no request fails, and a stream from before the first is alive after the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use outrigger_control::instance::Protocol;
use outrigger_tests::app::{echo, get, greeter};
use outrigger_tests::mesh::{Mesh, Spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::BINARY;
use crate::thin_thread::{STRICT, catalog, web};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pushes_fail_no_request_and_cut_no_stream() {
    let mesh = Mesh::start(BINARY).await;
    let (v1, v2) = (mesh.workload(&catalog("v1", 11)).await, mesh.workload(&catalog("v2", 12)).await);
    let spec = Spec { service: "stock", version: "v1", host: 13, protocol: Protocol::Tcp, calls: &[] };
    let stock = mesh.workload(&spec).await;
    let web = mesh.workload(&web(&["catalog:8080", "stock:8080"])).await;
    echo(v1.app, "catalog-v1").await;
    echo(v2.app, "catalog-v2").await;
    greeter(stock.app).await;
    mesh.apply(STRICT).await;
    let mut stream = TcpStream::connect(web.outbound[1]).await.unwrap();
    let mut greeting = [0; 6];
    stream.read_exact(&mut greeting).await.unwrap();

    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = {
        let (stop, served, entry) = (stop.clone(), served.clone(), web.outbound[0]);
        tokio::spawn(async move {
            let mut failed = Vec::new();
            while !stop.load(SeqCst) {
                match get(entry, "/", "").await {
                    Ok((200, _)) => drop(served.fetch_add(1, SeqCst)),
                    Ok((_, text)) => failed.push(text),
                    Err(error) => failed.push(error.to_string()),
                }
            }
            failed
        })
    };
    for push in 0..100 {
        let weight = push % 100;
        mesh.apply(&format!(
            "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: catalog, namespace: shop}}
spec:
  host: catalog
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: catalog, namespace: shop}}
spec:
  hosts: [catalog]
  http:
  - route:
    - {{destination: {{host: catalog, subset: v1}}, weight: {weight}}}
    - {{destination: {{host: catalog, subset: v2}}, weight: {}}}
",
            100 - weight
        ))
        .await;
    }
    stop.store(true, SeqCst);
    let failed = load.await.unwrap();
    println!("{} requests served during 100 pushes, {} failed", served.load(SeqCst), failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(served.load(SeqCst) > 100);
    stream.write_all(b"still here\n").await.unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here\n");
}
