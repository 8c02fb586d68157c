//! The client's life: connect, converse, lose the connection, wait, connect again with what it has.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::backoff::Backoff;
use super::stream::{Conversation, End};
use super::subscription::{Has, Told};
use super::{Event, Feed, Options};
use crate::node::NodeInfo;

/// Requests that wait for the connection; the first ones (one per kind) must fit before it is open.
const REQUESTS: usize = 16;

pub(super) async fn run<C, F>(
    connect: C,
    node: NodeInfo,
    options: Options,
    shared: Arc<Feed>,
    events: mpsc::Sender<Event>,
) where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = Result<Channel, String>> + Send + 'static,
{
    let mut backoff = Backoff::new(options.backoff_base, options.backoff_max);
    let mut has = Has::new();
    loop {
        let connecting = connect();
        let mut opened = None;
        let attempt = async {
            let channel = connecting.await.map_err(End::Stream)?;
            converse(channel, &node, &options, &shared, &events, &mut has, &mut opened).await
        };
        let end = tokio::select! {
            ended = attempt => ended.err(),
            () = events.closed() => Some(End::Consumer),
        };
        let reason = match end {
            Some(End::Consumer) => return,
            Some(End::Stream(reason)) => reason,
            None => "the control plane closed the stream".to_owned(),
        };
        backoff.ended(opened.map_or(Duration::ZERO, |at: Instant| at.elapsed()));
        tracing::debug!(reason, "no stream to the control plane");
        if events.send(Event::Disconnected { reason }).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = events.closed() => return,
        }
    }
}

/// One stream, until it ends.
async fn converse(
    channel: Channel,
    node: &NodeInfo,
    options: &Options,
    shared: &Feed,
    events: &mpsc::Sender<Event>,
    has: &mut Has,
    since: &mut Option<Instant>,
) -> Result<(), End> {
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(options.max_response_bytes);
    let (requests, outbound) = mpsc::channel(REQUESTS);
    let mut conversation = Conversation {
        shared,
        has,
        events,
        requests,
        told: Told::default(),
        node: Some(node.to_wire()),
        barrier: None,
    };
    let call = client.delta_aggregated_resources(ReceiverStream::new(outbound));
    // Told while the stream opens: some servers send nothing, not even headers, before the first request.
    let (opened, told) = tokio::join!(tokio::time::timeout(options.open_timeout, call), conversation.tell());
    told?;
    let mut inbound = match opened {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return Err(End::Stream(status.to_string())),
        Err(_) => return Err(End::Stream(format!("no answer within {:?}", options.open_timeout))),
    };
    *since = Some(Instant::now());
    {
        // Whoever is at the other end may be another control plane, with generations of its own.
        let mut wanted = shared.wanted.lock();
        (wanted.in_force, wanted.opened) = (None, wanted.opened + 1);
    }
    events.send(Event::Connected).await.map_err(|_| End::Consumer)?;
    loop {
        let owed = conversation.owes();
        tokio::select! {
            message = inbound.message() => match message {
                Ok(Some(response)) => conversation.take(response).await?,
                Ok(None) => return Ok(()),
                Err(status) => return Err(End::Stream(status.to_string())),
            },
            () = shared.stir.notified() => conversation.tell().await?,
            () = tokio::time::sleep_until(owed.unwrap_or_else(Instant::now)), if owed.is_some() => {
                conversation.acknowledge().await?;
            }
        }
    }
}
