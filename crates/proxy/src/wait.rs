//! `outrigger-proxy wait`: ends when the sidecar beside it is ready. For platforms that start containers in turn but know of no
//! readiness between them, such as a Kubernetes without native sidecars: there it is the sidecar's `postStart`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Of an answer: its first line, and what is missing.
const MOST: u64 = 4096;

/// How long, and for whom.
#[derive(Debug, Clone, clap::Args)]
pub struct WaitArgs {
    /// The sidecar's health port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15021")]
    pub health: SocketAddr,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

/// Waits.
///
/// # Errors
/// What is still missing when the time is over.
pub fn run(args: &WaitArgs) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let missing = match ask(args.health) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => return Ok(()),
            Ok(answer) => {
                answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.trim().to_owned())
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            bail!("the sidecar at {} is not ready after {} s: {missing}", args.health, args.timeout);
        }
        thread::sleep(PAUSE);
    }
}

fn ask(health: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&health, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!("GET /healthz/ready HTTP/1.1\r\nhost: {health}\r\nconnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one after the other, then nobody is there.
    fn answering(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = [0; 1024];
                let n = stream.read(&mut head).unwrap();
                assert!(head[..n].starts_with(b"GET /healthz/ready HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn who_waits_goes_on_when_the_sidecar_is_ready_and_is_told_what_is_missing() {
        const NOT: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nidentity\n";
        let health = answering(&[NOT, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]);
        run(&WaitArgs { health, timeout: 60 }).unwrap();
        let error = run(&WaitArgs { health: answering(&[NOT]), timeout: 0 }).unwrap_err().to_string();
        assert!(error.ends_with("not ready after 0 s: identity"), "{error}");
    }
}
