//! An identity that is cut off while it is in use loses its connections, at whichever end it is, and only it does.

use std::io;
use std::time::Duration;

use outrigger_control::api::types::RevocationRequest;
use outrigger_control::instance::Protocol;
use outrigger_tests::app::{body, greeter};
use outrigger_tests::mesh::{Mesh, NAMESPACE, Sidecar, Spec};
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::BINARY;
use crate::thin_thread::{STRICT, web};

async fn greeted(sidecar: &Sidecar) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(sidecar.outbound[0]).await?;
    stream.read_exact(&mut [0; 6]).await?;
    Ok(stream)
}

async fn serial_of(sidecar: &Sidecar) -> String {
    let page: serde_json::Value = serde_json::from_str(&body(&sidecar.page("/certs").await)).unwrap();
    page["serial"].as_str().unwrap_or_else(|| panic!("{page}")).to_owned()
}

async fn is_cut(mut stream: TcpStream) {
    let ended = timeout(Duration::from_secs(60), stream.read(&mut [0; 1])).await.expect("it is not cut");
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
}

async fn lives(stream: &mut TcpStream) {
    stream.write_all(b"still here\n").await.unwrap();
    let mut back = [0; 11];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"still here\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_workload_loses_its_connections_at_either_end_and_comes_back_when_reinstated() {
    let mesh = Mesh::start(BINARY).await;
    let spec = Spec { service: "stock", version: "v1", host: 13, protocol: Protocol::Tcp, calls: &[] };
    let stock = mesh.workload(&spec).await;
    let web = mesh.workload(&web(&["stock:8080"])).await;
    let calls = &["stock:8080"];
    let other = Spec { service: "load", version: "v1", host: 14, protocol: Protocol::Tcp, calls };
    let load = mesh.workload(&other).await;
    greeter(stock.app).await;
    mesh.apply(STRICT).await;
    let whom = |account: &str| RevocationRequest {
        namespace: Some(NAMESPACE.into()),
        service_account: Some(account.into()),
        ..RevocationRequest::default()
    };

    // The one that calls.
    let (cut, mut kept) = (greeted(&web).await.unwrap(), greeted(&load).await.unwrap());
    mesh.client.revoke(&whom("web")).await.unwrap();
    is_cut(cut).await;
    lives(&mut kept).await;
    let refused = eventually("nothing is opened for it any more", || async {
        match greeted(&web).await {
            Ok(_) => Err("greeted"),
            Err(error) => Ok(error),
        }
    });
    refused.await;
    mesh.client.reinstate(&whom("web")).await.unwrap();
    eventually("it is let in again", || greeted(&web)).await;

    // The one that is called, by the one certificate that it has.
    let again = greeted(&load).await.unwrap();
    let serial = serial_of(&stock).await;
    let by_serial = RevocationRequest { serial: Some(serial), ..RevocationRequest::default() };
    mesh.client.revoke(&by_serial).await.unwrap();
    is_cut(kept).await;
    is_cut(again).await;
    mesh.client.reinstate(&by_serial).await.unwrap();
    let kept = eventually("it is called again", || greeted(&load)).await;
    mesh.client.revoke(&whom("stock")).await.unwrap();
    is_cut(kept).await;
}
