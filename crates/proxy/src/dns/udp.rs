//! Queries in datagrams: one task each, so that a slow upstream holds nobody up.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use super::{Dns, Transport};

/// Queries at once on one address; what comes beyond is dropped, and asked again by whoever wants to know.
const MOST_AT_ONCE: usize = 1024;
/// A query has one question and options: what is longer is cut, and then malformed.
const LONGEST: usize = 4096;

/// Answers for as long as the runtime runs.
pub(super) async fn serve(dns: Arc<Dns>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let permits = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let mut buffer = vec![0; LONGEST];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receiving DNS queries failed");
                // Whatever it is, it must not become a busy loop.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let query = buffer.get(..length).unwrap_or_default().to_vec();
        let (dns, socket) = (dns.clone(), socket.clone());
        tokio::spawn(async move {
            if let Some(answer) = dns.answer(&query, Transport::Udp).await
                && let Err(error) = socket.send_to(&answer, peer).await
            {
                tracing::debug!(%peer, %error, "a DNS answer cannot be sent");
            }
            drop(permit);
        });
    }
}
