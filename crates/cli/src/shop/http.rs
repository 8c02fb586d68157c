//! HTTP/1.1 for the shop: a server loop, a small client pool, and the two plain services catalog and reviews.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::{App, Reply, ShopArgs, grpc};

/// What an application must pass on for its hops to be one trace, and for header routes to work.
const FORWARDED: [&str; 6] = ["traceparent", "tracestate", "baggage", "x-request-id", "b3", "end-user"];

/// The headers to pass on.
pub(super) fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut picked = HeaderMap::new();
    for name in FORWARDED {
        if let Some(value) = headers.get(name) {
            picked.insert(name, value.clone());
        }
    }
    picked
}

/// Serves HTTP/1.1 for ever.
pub(super) async fn listen<F, A>(address: SocketAddr, answer: F) -> anyhow::Result<()>
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        let _ = tcp.set_nodelay(true);
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(request);
                async move { Ok::<_, std::convert::Infallible>(response.await) }
            });
            let _ =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tcp), service).await;
        });
    }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, reply: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(reply).unwrap_or_default();
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    response
}

/// Kept connections to one address, `host:port`.
#[derive(Clone)]
pub(crate) struct Pool {
    address: Arc<str>,
    host: &'static str,
    idle: Arc<Mutex<Vec<SendRequest<Empty<Bytes>>>>>,
}

impl Pool {
    pub(crate) fn new(address: &str, host: &'static str) -> Self {
        Self { address: address.into(), host, idle: Arc::default() }
    }

    /// A GET; status and body.
    pub(crate) async fn get(&self, path: &str, headers: HeaderMap) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::get(path).header(hyper::header::HOST, self.host).body(Empty::new())?;
        request.headers_mut().extend(headers);
        let mut sender = self.sender().await?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if sender.is_ready() {
            self.idle.lock().await.push(sender);
        }
        Ok((status, body))
    }

    async fn sender(&self) -> anyhow::Result<SendRequest<Empty<Bytes>>> {
        while let Some(mut sender) = self.idle.lock().await.pop() {
            if !sender.is_closed() && sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let tcp = TcpStream::connect(&*self.address).await?;
        tcp.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(tcp)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A switch that the demo throws: how often the application fails, and how long it takes. It counts what it is sent.
#[derive(Default)]
struct Switch {
    asked: AtomicU64,
    fail_percent: AtomicU32,
    delay_millis: AtomicU32,
}

impl Switch {
    fn throw(&self, query: &str) {
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = value.parse().unwrap_or(0);
            match key {
                "fail" => self.fail_percent.store(value, Relaxed),
                "delay" => self.delay_millis.store(value, Relaxed),
                _ => {}
            }
        }
    }
}

/// Catalog and reviews.
pub(super) async fn serve(args: &ShopArgs) -> anyhow::Result<()> {
    let name = if args.app == App::Catalog { "catalog" } else { "reviews" };
    let version: Arc<str> = args.version.as_str().into();
    let pricing = args.pricing.as_deref().map(grpc::Client::new);
    let switch = Arc::new(Switch::default());
    listen(args.listen, move |request| {
        let (version, pricing, switch) = (version.clone(), pricing.clone(), switch.clone());
        async move {
            let mut reply = Reply::default();
            reply.versions.insert(name.into(), version.to_string());
            if request.method() == Method::POST && request.uri().path() == "/__switch" {
                switch.throw(request.uri().query().unwrap_or_default());
                return json(StatusCode::OK, &switch.asked.load(Relaxed));
            }
            switch.asked.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(switch.delay_millis.load(Relaxed).into())).await;
            if fastrand::u32(0..100) < switch.fail_percent.load(Relaxed) {
                return json(StatusCode::SERVICE_UNAVAILABLE, &reply);
            }
            if let Some(pricing) = pricing {
                match pricing.price(&forwarded(request.headers())).await {
                    Ok(by) => drop(reply.versions.insert("pricing".into(), by)),
                    Err(_) => {
                        reply.failed.insert("pricing".into(), 500);
                        return json(StatusCode::BAD_GATEWAY, &reply);
                    }
                }
            }
            json(StatusCode::OK, &reply)
        }
    })
    .await
}
