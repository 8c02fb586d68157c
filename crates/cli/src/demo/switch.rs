//! The switch of an application: how often it fails, and how long it takes.

use std::net::SocketAddr;

use anyhow::Context;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;

/// Throws an application's switch, a POST without a body; how many requests it was sent so far.
pub(super) async fn throw(address: SocketAddr, setting: &str) -> anyhow::Result<u64> {
    let tcp = tokio::net::TcpStream::connect(address).await.with_context(|| address.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::post(format!("/__switch?{setting}"))
        .header(hyper::header::HOST, address.to_string())
        .body(http_body_util::Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    anyhow::ensure!(status.is_success(), "{address}: {status}");
    Ok(serde_json::from_slice(&body)?)
}
