//! From the start of a sidecar to its first proxied request: ours from its last good configuration on disk, the others from their
//! files. The inbound side stays up; what is started again is the outbound one.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::peers::{self, Site};

/// Longer than any of them takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Start-up of one peer.
#[derive(Serialize)]
pub struct Startup {
    /// Whose.
    pub peer: String,
    /// Milliseconds to the first answer, of each start.
    pub millis: Vec<f64>,
}

/// Starts a peer's outbound sidecar so many times.
pub async fn measure(name: &str, times: usize, site: &Site<'_>) -> Result<Startup> {
    let mut peer = peers::start(name, site).await?;
    first_answer(peer.front.h1).context("before the first measured start")?;
    // Ours writes its configuration half a second after it has changed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut millis = Vec::with_capacity(times);
    for _ in 0..times {
        let sidecar = peer.sidecars.first_mut().context("it has no sidecars")?;
        sidecar.stop();
        let since = Instant::now();
        sidecar.start_again()?;
        first_answer(peer.front.h1).with_context(|| name.to_owned())?;
        millis.push(since.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Startup { peer: name.to_owned(), millis })
}

fn first_answer(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask(address) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_micros(500)),
        }
    }
}

fn ask(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /0 HTTP/1.1\r\nhost: echo:8080\r\nconnection: close\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    if answer != *b"HTTP/1.1 200" {
        bail!("the answer was {:?}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}
