//! Servers that speak first: what two sidecars add to the time until their first byte, and what one sidecar of a PERMISSIVE workload
//! adds for a client that has none.
//!
//! Not how fast it is (that is a bench's), but which wait is in it: a silent client that may be about to begin TLS is held for 20 ms,
//! whoever is known to have a sidecar and every client of a plain port for none. Measured against a second port of the same application
//! that the rules leave alone, turn by turn, so that a busy machine is busy for both. The median of the differences must be below the
//! first wait too many, in one of ten measurements.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use outrigger_tests::app::{exchange, teller};
use outrigger_tests::netns::Host;
use outrigger_tests::netns::workload::Workload;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{ALONE, MARKER, Pair, hears};

/// Through sidecars, and past them.
const THROUGH: u16 = 7000;
const DIRECT: u16 = 7001;
const ROUNDS: usize = 20;
/// Of a client that may be about to begin TLS.
const HOLD: Duration = Duration::from_millis(20);

async fn first_byte(to: SocketAddr) -> std::io::Result<Duration> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(to).await?;
    stream.read_u8().await?;
    let took = began.elapsed();
    // To its end: what is left unread would reset the connection.
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(took)
}

/// What twenty new connections of each kind take.
async fn measure(client: &Host, server: &Host) -> Vec<(Duration, Duration)> {
    let addresses = server.addresses();
    let rounds = async move {
        let mut taken = Vec::new();
        for round in 0..ROUNDS {
            let address = addresses[round % 2];
            let direct = first_byte(SocketAddr::new(address, DIRECT)).await.expect("the application greets");
            let through =
                first_byte(SocketAddr::new(address, THROUGH)).await.expect("it greets through sidecars");
            taken.push((direct, through));
        }
        taken
    };
    client.run(rounds).await
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Holds that the median of what sidecars add is below `bound` in one of ten measurements.
async fn adds_less_than(bound: Duration, what: &str, client: &Host, server: &Host) {
    let _nobody_else = ALONE.lock().await;
    // What is asked for on first use is asked for now.
    measure(client, server).await;
    let mut said = String::new();
    for _ in 0..10 {
        let taken = measure(client, server).await;
        let direct = median(taken.iter().map(|(direct, _)| *direct).collect());
        let through = median(taken.iter().map(|(_, through)| *through).collect());
        let added = median(taken.iter().map(|(direct, through)| through.saturating_sub(*direct)).collect());
        let worst = taken.iter().map(|(_, through)| *through).max().unwrap_or_default();
        said = format!(
            "{what}: {direct:?} direct, {through:?} through, median added {added:?}, worst {worst:?}"
        );
        println!("{said}");
        if added < bound {
            return;
        }
    }
    panic!("{said}; that is a wait of {bound:?} too many");
}

async fn greeting(pair: &Pair) {
    for address in pair.server.host.addresses() {
        for port in [THROUGH, DIRECT] {
            pair.server.host.run(teller(SocketAddr::new(address, port))).await;
        }
    }
}

/// The second port is nobody's business.
const LEAVE: Workload<'_> = Workload {
    service: "",
    ports: &[],
    mode: "redirect",
    rules: &["--exclude-inbound-ports", "7001", "--exclude-outbound-ports", "7001"],
    open_files: None,
};

#[tokio::test(flavor = "multi_thread")]
async fn two_sidecars_hold_no_greeting_up() {
    let Some(pair) = Pair::start(&[THROUGH], LEAVE).await else { return };
    greeting(&pair).await;
    pair.crosses("a greeting", THROUGH, async |address| {
        let said = hears(&pair.client.host, SocketAddr::new(address, THROUGH)).await.unwrap();
        assert!(said.ends_with(MARKER), "{said}");
    })
    .await;
    adds_less_than(HOLD, "two sidecars", &pair.client.host, &pair.server.host).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_sidecar_is_held_once_where_it_may_be_greeted() {
    let Some(pair) = Pair::start(&[THROUGH], LEAVE).await else { return };
    greeting(&pair).await;
    let stranger = pair.net.host("stranger");
    let to = SocketAddr::new(pair.server.host.v4(), THROUGH);
    let word = "a word, or the sidecar would wait for one\n";
    let refused = stranger.run(exchange(to, word)).await.unwrap_err().to_string();
    assert!(!refused.contains("hello"), "STRICT takes nobody without a sidecar: {refused}");
    pair.mesh
        .apply(
            "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: PERMISSIVE}}
",
        )
        .await;
    adds_less_than(2 * HOLD, "a plain client", &stranger, &pair.server.host).await;
    // Whoever has a sidecar is not answered in plain text meanwhile.
    let capture = pair.capture().await;
    measure(&pair.client.host, &pair.server.host).await;
    capture.so_far().await.only_tls(THROUGH).unwrap_or_else(|error| panic!("{error}"));
}
