//! HTTP/1 and HTTP/2 applications and clients with real bodies: an echo that streams, and a client that sends what it is told.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A request body.
pub type Body = BoxBody<Bytes, std::convert::Infallible>;

/// A body with its length announced.
pub fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).boxed()
}

/// A body that is sent as it is written, and where to write it.
pub fn streamed() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (send, receive) = mpsc::channel(1);
    let frames = tokio_stream::StreamExt::map(ReceiverStream::new(receive), Ok);
    (send, BodyExt::boxed(StreamBody::new(frames)))
}

/// A body in pieces, with trailers.
pub fn pieces(bytes: &Bytes, size: usize, trailers: Option<HeaderMap>) -> Body {
    let (send, body) = streamed();
    let bytes = bytes.clone();
    tokio::spawn(async move {
        for at in (0..bytes.len()).step_by(size.max(1)) {
            let piece = bytes.slice(at..bytes.len().min(at + size));
            if send.send(Frame::data(piece)).await.is_err() {
                return;
            }
        }
        if let Some(trailers) = trailers {
            let _ = send.send(Frame::trailers(trailers)).await;
        }
    });
    body
}

/// An application that returns each body as it comes, trailers included, with the head's content type.
pub async fn echo(listen: SocketAddr) {
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service =
                    service_fn(|request: Request<Incoming>| async { Ok::<_, hyper::Error>(answer(request)) });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

/// An application, HTTP/1 or HTTP/2, that answers with its name (`x-app-name`) and what it was sent: method and path, then a
/// line for each header.
pub async fn named(listen: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    Ok::<_, hyper::Error>(described(&request, name))
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

/// An application that answers with its name and the head that it received: over HTTP/1 byte for byte, over HTTP/2 as [`named`] does.
pub async fn heads(listen: SocketAddr, name: &'static str) {
    let listener = TcpListener::bind(listen).await.expect("the application's address is free");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                if !begins_http2(&stream).await {
                    let _ = crate::app::echo_heads(stream, name).await;
                    return;
                }
                let service = service_fn(move |request: Request<Incoming>| async move {
                    let text = format!("{name}\n{}", lines(&request));
                    Ok::<_, hyper::Error>(Response::new(whole(text.into())))
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}

/// Whether a client begins as one of HTTP/2 does; nothing of it is taken away.
async fn begins_http2(stream: &TcpStream) -> bool {
    let mut start = [0; 3];
    loop {
        match stream.peek(&mut start).await {
            Ok(n) if (1..start.len()).contains(&n) && b"PRI".starts_with(&start[..n]) => {
                tokio::task::yield_now().await;
            }
            Ok(n) => return start[..n] == *b"PRI",
            Err(_) => return false,
        }
    }
}

/// Method and path, then a line for each header.
fn lines(request: &Request<Incoming>) -> String {
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    let mut text = format!("{} {path}\n", request.method());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    text
}

fn described(request: &Request<Incoming>, name: &'static str) -> Response<Body> {
    let mut response = Response::new(whole(lines(request).into()));
    response.headers_mut().insert("x-app-name", http::HeaderValue::from_static(name));
    response
}

fn answer(request: Request<Incoming>) -> Response<Incoming> {
    let (head, body) = request.into_parts();
    let mut response = Response::new(body);
    for name in ["content-type", "trailer"] {
        if let Some(value) = head.headers.get(name) {
            response.headers_mut().insert(http::HeaderName::from_static(name), value.clone());
        }
    }
    response
}

/// A client connection.
pub enum Client {
    /// HTTP/1.1.
    H1(http1::SendRequest<Body>),
    /// HTTP/2 with prior knowledge.
    H2(http2::SendRequest<Body>),
}

impl Client {
    /// Over HTTP/1.1.
    pub async fn h1(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the sidecar listens");
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        tokio::spawn(connection);
        Self::H1(send)
    }

    /// Over HTTP/2.
    pub async fn h2(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the sidecar listens");
        let io = TokioIo::new(stream);
        let (send, connection) = http2::handshake(TokioExecutor::new(), io).await.expect("a handshake");
        tokio::spawn(connection);
        Self::H2(send)
    }

    /// Sends a request, waits for the head of the answer.
    ///
    /// # Errors
    /// When the connection or the stream breaks.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        match self {
            Self::H1(send) => {
                send.ready().await?;
                send.send_request(request).await
            }
            Self::H2(send) => {
                send.ready().await?;
                send.send_request(request).await
            }
        }
    }
}
