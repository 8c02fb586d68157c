//! Stock: a line protocol over TCP. The server greets first, which a mesh that waits for the client would stall on.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

const GREETING: &str = "stock ready";

/// Serves for ever.
pub(super) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| address.to_string())?;
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let _ = talk(BufStream::new(tcp)).await;
        });
    }
}

async fn talk(mut stream: BufStream<TcpStream>) -> std::io::Result<()> {
    stream.write_all(format!("{GREETING}\n").as_bytes()).await?;
    stream.flush().await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let left: u32 = line.bytes().map(u32::from).sum::<u32>() % 100;
        stream.write_all(format!("{left}\n").as_bytes()).await?;
        stream.flush().await?;
        line.clear();
    }
    Ok(())
}

/// One session, opened when needed and kept.
pub(super) struct Session {
    address: String,
    stream: Mutex<Option<BufStream<TcpStream>>>,
}

impl Session {
    pub(super) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), stream: Mutex::new(None) }
    }

    /// How many are left; `None` when stock cannot be reached, or somebody else is asking: one session must never be the
    /// bottleneck of the shop.
    pub(super) async fn left(&self, id: &str) -> Option<u32> {
        let mut slot = self.stream.try_lock().ok()?;
        let asked = tokio::time::timeout(Duration::from_secs(1), self.ask(&mut slot, id)).await;
        match asked {
            Ok(Ok(left)) => Some(left),
            _ => {
                *slot = None;
                None
            }
        }
    }

    async fn ask(&self, slot: &mut Option<BufStream<TcpStream>>, id: &str) -> anyhow::Result<u32> {
        let stream = match slot {
            Some(stream) => stream,
            None => {
                let mut stream = BufStream::new(TcpStream::connect(&self.address).await?);
                let mut greeting = String::new();
                stream.read_line(&mut greeting).await?;
                anyhow::ensure!(greeting.trim() == GREETING, "no greeting");
                slot.insert(stream)
            }
        };
        stream.write_all(format!("{id}\n").as_bytes()).await?;
        stream.flush().await?;
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        Ok(line.trim().parse()?)
    }
}
