//! Pricing: one unary gRPC method, on the h2 crate, both ends.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use hyper::HeaderMap;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

const PATH: &str = "/outrigger.demo.Pricing/Price";

/// `message PriceReply { string version = 1; uint32 cents = 2; }`
#[derive(Clone, PartialEq, Message)]
struct PriceReply {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(uint32, tag = "2")]
    cents: u32,
}

/// Serves for ever.
pub(super) async fn serve(address: SocketAddr, version: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
    let version: Arc<str> = version.into();
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let version = version.clone();
        tokio::spawn(async move {
            let Ok(mut connection) = h2::server::handshake(tcp).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let version = version.clone();
                tokio::spawn(async move {
                    let _ = answer(request, respond, &version).await;
                });
            }
        });
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    version: &str,
) -> anyhow::Result<()> {
    let known = request.uri().path() == PATH;
    let mut body = request.into_body();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
    }
    let response = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(response, false)?;
    let mut trailers = HeaderMap::new();
    if known {
        stream.send_data(frame(&PriceReply { version: version.to_owned(), cents: 1999 }), false)?;
        trailers.insert("grpc-status", "0".parse()?);
    } else {
        trailers.insert("grpc-status", "12".parse()?);
    }
    stream.send_trailers(trailers)?;
    Ok(())
}

/// The five bytes before a gRPC message: not compressed, length.
fn frame(message: &impl Message) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.encoded_len());
    out.put_u8(0);
    out.put_u32(message.encoded_len() as u32);
    out.put_slice(&message.encode_to_vec());
    out.freeze()
}

/// A client that keeps its connection.
#[derive(Clone)]
pub(super) struct Client {
    address: Arc<str>,
    connection: Arc<Mutex<Option<SendRequest<Bytes>>>>,
}

impl Client {
    pub(super) fn new(address: &str) -> Self {
        Self { address: address.into(), connection: Arc::default() }
    }

    /// Who priced it.
    pub(super) async fn price(&self, headers: &HeaderMap) -> anyhow::Result<String> {
        let mut request = http::Request::post(format!("http://pricing.shop:9090{PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        request.headers_mut().extend(headers.clone());
        let mut sender = self.sender().await?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(frame(&PriceReply::default()), true)?;
        let mut stream = response.await?.into_body();
        let mut message = BytesMut::new();
        while let Some(chunk) = stream.data().await {
            let chunk = chunk?;
            stream.flow_control().release_capacity(chunk.len())?;
            message.extend_from_slice(&chunk);
        }
        let trailers = stream.trailers().await?.unwrap_or_default();
        if trailers.get("grpc-status").is_none_or(|status| status != "0") || message.len() < 5 {
            bail!("pricing failed");
        }
        message.advance(5);
        Ok(PriceReply::decode(message)?.version)
    }

    async fn sender(&self) -> anyhow::Result<SendRequest<Bytes>> {
        let mut slot = self.connection.lock().await;
        if let Some(sender) = slot.take()
            && let Ok(ready) = sender.ready().await
        {
            *slot = Some(ready.clone());
            return Ok(ready);
        }
        let tcp = TcpStream::connect(&*self.address).await?;
        tcp.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(tcp).await?;
        tokio::spawn(connection);
        let sender = sender.ready().await?;
        *slot = Some(sender.clone());
        Ok(sender)
    }
}
