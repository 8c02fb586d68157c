//! `outrigger-proxy wait`: ends when the sidecar beside it is ready, or when it is alone. For platforms that start containers in turn but know
//! of no readiness between them, and end them all at once, such as a Kubernetes without native sidecars: there it is the sidecar's
//! `postStart` and `preStop`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

mod sockets;

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Of an answer: its first line, and what is missing.
const MOST: u64 = 4096;

/// What is waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Goal {
    /// The sidecar is ready
    #[default]
    Ready,
    /// No program of another user has a TCP socket here that listens or is connected: the application has ended
    Alone,
}

/// How long, and for whom.
#[derive(Debug, Clone, clap::Args)]
pub struct WaitArgs {
    /// What to wait for
    #[arg(long = "for", value_name = "GOAL", value_enum, default_value_t = Goal::Ready)]
    pub goal: Goal,
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
        let missing = match args.goal {
            Goal::Ready => unready(args.health),
            Goal::Alone => others()?,
        };
        let Some(missing) = missing else { return Ok(()) };
        if Instant::now() >= end {
            bail!("{missing}, after {} s", args.timeout);
        }
        thread::sleep(PAUSE);
    }
}

/// Why the sidecar is not ready.
fn unready(health: SocketAddr) -> Option<String> {
    let missing = match ask(health) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => return None,
        Ok(answer) => answer.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.trim().to_owned()),
        Err(error) => error.to_string(),
    };
    Some(format!("the sidecar at {health} is not ready: {missing}"))
}

/// Who else is here.
fn others() -> anyhow::Result<Option<String>> {
    let found = sockets::of_others(rustix::process::getuid().as_raw()).context("sockets cannot be listed")?;
    Ok(found.map(|socket| {
        let what = if socket.listens { "listens" } else { "has a connection" };
        format!("the application {what} on port {} still", socket.port)
    }))
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
        run(&WaitArgs { goal: Goal::Ready, health, timeout: 60 }).unwrap();
        let args = WaitArgs { goal: Goal::Ready, health: answering(&[NOT]), timeout: 0 };
        let error = run(&args).unwrap_err().to_string();
        assert!(error.ends_with("is not ready: identity, after 0 s"), "{error}");
    }
}
