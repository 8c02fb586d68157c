//! gRPC to a registry of others over one connection: when it ends, whoever asks begins anew, because the next may have another history.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio_rustls::rustls::ClientConfig;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::outside::Place;

/// A silent server is asked this often, and must answer within as much.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Connects once.
pub(super) async fn channel(
    place: &Place,
    tls: Option<&Arc<ClientConfig>>,
    name: Option<&str>,
) -> Result<Channel, String> {
    let stream = place.connect(tls, name).await.map_err(|error| error.to_string())?;
    let scheme = if place.tls { "https" } else { "http" };
    let one = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = one.lock().take();
        async move { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection ended")) }
    });
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", place.authority()));
    let endpoint = endpoint.map_err(|error| error.to_string())?;
    let endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE).keep_alive_timeout(KEEPALIVE);
    let connected = endpoint.keep_alive_while_idle(true).connect_with_connector(connector).await;
    connected.map_err(|error| reason(&error))
}

/// An error with what is behind it.
pub(super) fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}
