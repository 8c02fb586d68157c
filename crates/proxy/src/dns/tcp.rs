//! Queries over connections (RFC 7766): several at once, answered as they come, until the client has been silent for a while.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Dns, Transport};

/// Connections at once; more wait to be accepted.
const MOST_CONNECTIONS: usize = 256;
/// Queries at once on one connection; more wait to be read.
const MOST_PIPELINED: usize = 16;
/// A connection without a whole query or an answer for so long ends.
const IDLE: Duration = Duration::from_secs(10);
/// As over UDP: one question and options.
const LONGEST: usize = 4096;

/// Accepts for as long as the runtime runs.
pub(super) async fn serve(dns: Arc<Dns>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let dns = dns.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(&dns, stream).await {
                        tracing::debug!(%peer, %error, "a DNS connection failed");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a DNS connection failed");
                // No descriptors, for instance: one may be free soon.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

async fn converse(dns: &Dns, stream: impl AsyncRead + AsyncWrite) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut buffer = BytesMut::new();
    let mut answers = FuturesUnordered::new();
    let (mut open, mut since) = (true, Instant::now());
    loop {
        while answers.len() < MOST_PIPELINED
            && let Some(query) = frame(&mut buffer)?
        {
            since = Instant::now();
            answers.push(async move { dns.answer(&query, Transport::Tcp).await });
        }
        if !open && answers.is_empty() {
            return Ok(());
        }
        tokio::select! {
            read = reader.read_buf(&mut buffer), if open && answers.len() < MOST_PIPELINED => {
                open = read? > 0;
            }
            Some(answer) = answers.next() => {
                // Whoever sends what must not be answered is no client.
                let Some(answer) = answer else { return Ok(()) };
                let length = u16::try_from(answer.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
                let framed = [&length.to_be_bytes()[..], &answer].concat();
                timeout(IDLE, writer.write_all(&framed)).await??;
                since = Instant::now();
            }
            () = sleep_until(since + IDLE), if answers.is_empty() => return Ok(()),
        }
    }
}

/// The next whole query.
fn frame(buffer: &mut BytesMut) -> std::io::Result<Option<Bytes>> {
    let Some(length) = buffer.first_chunk::<2>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*length));
    if length > LONGEST {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("a query of {length} bytes"),
        ));
    }
    if buffer.len() < 2 + length {
        return Ok(None);
    }
    buffer.advance(2);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_cut_out_of_whatever_arrives() {
        let mut buffer = BytesMut::from(&[0, 3, 1, 2, 3, 0, 1][..]);
        assert_eq!(frame(&mut buffer).unwrap().as_deref(), Some(&[1, 2, 3][..]));
        assert_eq!(frame(&mut buffer).unwrap(), None);
        buffer.extend_from_slice(&[9, 0]);
        assert_eq!(frame(&mut buffer).unwrap().as_deref(), Some(&[9][..]));
        assert_eq!(frame(&mut buffer).unwrap(), None);
        assert!(frame(&mut BytesMut::from(&[0xff, 0xff][..])).is_err(), "before it is kept");
    }
}
