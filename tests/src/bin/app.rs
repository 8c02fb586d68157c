#![forbid(unsafe_code)]
//! What runs in the containers of the tests' cluster: `serve PORT [SECONDS]`, HTTP that answers with its host's address and the request's
//! head, and goes on for a while after SIGTERM as applications should (at LISTEN, and its metrics at the port METRICS, if these are in its environment, as OpenMetrics, too, with OPEN_METRICS); `meet PORT READY NAME…`, a member of a group: the same, and once all of these
//! members have answered it is ready, and listens at another port; `end`, what a Job does; `end ADMIN`, what a Job does whose sidecar would go
//! on: it tells the sidecar to end, at its admin port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use outrigger_tests::app;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |place: usize| words.get(place).and_then(|word| word.parse::<u16>().ok());
    match (words.first().map(String::as_str), number(1)) {
        (Some("serve"), Some(port)) => {
            let mut ends = signal(SignalKind::terminate())?;
            let name: &'static str =
                Box::leak(std::env::var("NAME").unwrap_or_else(|_| "app".to_owned()).into_boxed_str());
            let own = std::env::var("LISTEN").ok().and_then(|ip| ip.parse::<IpAddr>().ok());
            app::echo(SocketAddr::new(own.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port), name).await;
            if let Some(metrics) = std::env::var("METRICS").ok().and_then(|port| port.parse().ok()) {
                let listen = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), metrics);
                app::metrics(listen, name, std::env::var_os("OPEN_METRICS").is_some()).await;
            }
            ends.recv().await;
            tokio::time::sleep(Duration::from_secs(number(2).unwrap_or(0).into())).await;
            Ok(())
        }
        (Some("meet"), Some(port)) => {
            app::echo(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port), "member").await;
            for name in words.iter().skip(3) {
                while !answers(name, port).await {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            let ready = number(2).ok_or_else(|| std::io::Error::other("meet PORT READY NAME…"))?;
            app::echo(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), ready), "ready").await;
            std::future::pending().await
        }
        (Some("end"), None) => Ok(()),
        (Some("end"), Some(admin)) => quit(admin).await,
        _ => Err(std::io::Error::other(format!(
            "serve PORT [SECONDS], meet PORT READY NAME… or end [ADMIN], not {words:?}"
        ))),
    }
}

/// Whether a member can be asked, by its name.
async fn answers(name: &str, port: u16) -> bool {
    let Ok(mut all) = tokio::net::lookup_host((name, port)).await else { return false };
    let Some(address) = all.next() else { return false };
    let Ok(mut stream) = TcpStream::connect(address).await else { return false };
    // To the first words of the answer: as bytes the connection goes on for as long as its ends like.
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: member\r\n\r\n").await;
    let mut answer = [0; 12];
    asked.is_ok() && stream.read_exact(&mut answer).await.is_ok() && answer.ends_with(b" 200")
}

/// As often as it takes: the sidecar may not be there yet.
async fn quit(admin: u16) -> std::io::Result<()> {
    loop {
        if ask(admin).await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ask(admin: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, admin)).await?;
    let head =
        "POST /quitquitquit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
