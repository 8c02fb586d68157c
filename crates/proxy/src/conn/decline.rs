//! A connection of our own application that leads nowhere: an HTTP/1 client is answered with the reason, any other is reset.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use crate::detect::{self, Detected, Look, Outcome, Patience};
use crate::failure::Failure;
use crate::http::h1::Framing;
use crate::http::h1::write::{How, Persist};
use crate::http::respond::{self, Audience};
use crate::stream::Unanswered;
use crate::worker::Worker;

/// For the first bytes, for taking the answer, and for what the client still sends.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is read of a request that is not served, so that closing does not reset the answer away.
const MOST_READ: u64 = 256 * 1024;

/// Answers, if that is HTTP/1.
pub(super) async fn tell(worker: &Rc<Worker>, stream: Unanswered, failure: &Failure) {
    let patience = Patience { first: Some(Instant::now() + PATIENCE), rest: PATIENCE };
    let Ok(Outcome::Decided(Detected::Http1, stream)) = detect::detect(stream, Look::Http, patience).await
    else {
        return;
    };
    let hop = &worker.metrics.local().workload.name;
    let audience =
        Audience { trusted: true, is_grpc: false, is_head: false, request_id: None, hop, inbound: false };
    let answer = respond::local(failure, &audience);
    let mut out = BytesMut::with_capacity(512);
    let framing = Framing::Length(answer.body.len() as u64);
    if answer.head.write_h1(How { framing, persist: Persist::Close, upgrade: false }, &mut out).is_err() {
        return;
    }
    out.extend_from_slice(answer.body.as_bytes());
    let mut stream = stream.answer();
    let sent = async {
        stream.write_all(&out).await?;
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(MOST_READ), &mut tokio::io::sink()).await
    };
    // A client that is gone need not be told.
    let _ = timeout(PATIENCE, sent).await;
}
