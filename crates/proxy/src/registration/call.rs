//! One call of the registration API, at the control plane's xDS port with our certificate. A connection for each: they are rare,
//! and a new one shows the newest certificate.

use std::fmt;
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::{Method, Request, StatusCode, header};
use outrigger_identity::ControlPlane;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Own, Standing};

/// Of an answer; more is none.
const MOST_ANSWER: usize = 16 << 10;

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why the control plane does not have what it was told.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It cannot be reached, or gives no answer.
    Away(String),
    /// It refuses.
    Refused(StatusCode, String),
    /// Another process has registered our id since.
    Replaced(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away(reason) => write!(f, "the control plane cannot be told: {reason}"),
            Self::Refused(status, reason) => write!(f, "the control plane refuses ({status}): {reason}"),
            Self::Replaced(reason) => f.write_str(reason),
        }
    }
}

/// Says the state, with the whole registration, or ends it: that there is none is as good then, or that it is another's by now.
pub(super) async fn tell(control: &ControlPlane, own: &Own, state: Standing) -> Result<(), Trouble> {
    if state != Standing::Gone {
        let path = "/v1/instances".to_owned();
        return call(control, own, Method::POST, path, |local| own.body(state, local)).await;
    }
    let path = format!("/v1/instances/{}", utf8_percent_encode(own.id(), RESERVED));
    match call(control, own, Method::DELETE, path, |_| Vec::new()).await {
        Err(Trouble::Refused(StatusCode::NOT_FOUND, _) | Trouble::Replaced(_)) => Ok(()),
        result => result,
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Of two processes with our id the control plane keeps the newer one.
const INCARNATION: &str = "outrigger-incarnation";

/// `body` is made with our own address of the connection.
async fn call(
    control: &ControlPlane,
    own: &Own,
    method: Method,
    path: String,
    body: impl FnOnce(IpAddr) -> Vec<u8>,
) -> Result<(), Trouble> {
    let exchange = async {
        let stream = control.connect().await?;
        let body = body(stream.get_ref().0.local_addr()?.ip());
        let (sender, connection) = h2::client::handshake(stream).await?;
        let request = Request::builder()
            .method(method)
            .uri(format!("https://control-plane{path}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(INCARNATION, own.incarnation())
            .body(())?;
        let answered = async move {
            let mut sender = sender.ready().await?;
            let (response, mut sending) = sender.send_request(request, body.is_empty())?;
            if !body.is_empty() {
                sending.send_data(body.into(), true)?;
            }
            let (head, body) = response.await?.into_parts();
            Ok::<_, AnyError>((head, read(body).await?))
        };
        tokio::select! {
            biased;
            answer = answered => answer,
            ended = connection => {
                ended?;
                Err("it has ended the connection".into())
            }
        }
    };
    let (head, body) = exchange.await.map_err(|error: AnyError| Trouble::Away(error.to_string()))?;
    // What has no such endpoint, or does not let us there, answers as gRPC does, with 200.
    if let Some(status) = head.headers.get("grpc-status") {
        let (code, reason) = match status.as_bytes() {
            b"12" => (
                StatusCode::NOT_IMPLEMENTED,
                "it takes no registrations there: it is of an older release".to_owned(),
            ),
            b"16" => (StatusCode::UNAUTHORIZED, "it wants a valid certificate of its mesh".to_owned()),
            _ => (StatusCode::BAD_GATEWAY, format!("grpc-status {status:?}")),
        };
        return Err(Trouble::Refused(code, reason));
    }
    if head.status.is_success() {
        return Ok(());
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let reason = answer["error"].as_str().map(str::to_owned);
    let reason = reason.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    Err(match answer["replacedBy"].is_string() {
        true => Trouble::Replaced(reason),
        false => Trouble::Refused(head.status, reason),
    })
}

async fn read(mut body: RecvStream) -> Result<Bytes, AnyError> {
    let mut answer = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        if answer.len() + chunk.len() > MOST_ANSWER {
            return Err("its answer is too long".into());
        }
        answer.extend_from_slice(&chunk);
    }
    Ok(answer.freeze())
}
