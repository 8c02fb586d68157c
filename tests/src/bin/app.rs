#![forbid(unsafe_code)]
//! What runs in the containers of the tests' cluster: `serve PORT [SECONDS]`, HTTP that answers with its host's address and the request's
//! head, and goes on for a while after SIGTERM as applications should; `end`, what a Job does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use outrigger_tests::app;
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
            app::echo(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port), name).await;
            ends.recv().await;
            tokio::time::sleep(Duration::from_secs(number(2).unwrap_or(0).into())).await;
            Ok(())
        }
        (Some("end"), _) => Ok(()),
        _ => Err(std::io::Error::other(format!("serve PORT [SECONDS] or end, not {words:?}"))),
    }
}
