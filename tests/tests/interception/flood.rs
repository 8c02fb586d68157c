//! Many new connections, one after another and at once: nothing of them is kept, and a sidecar without descriptors comes back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_tests::app::teller;
use outrigger_tests::netns::workload::{Intercepted, Workload};
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Pair;

/// Over each family.
const CONNECTIONS: usize = 10_000;
/// At once.
const WIDTH: usize = 64;

/// Opens, says a word, hears it, closes.
async fn talk(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(b"word").await?;
    stream.shutdown().await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    if text.ends_with("\nword") { Ok(()) } else { Err(std::io::Error::other(format!("{text:?} came back"))) }
}

/// How many of `count` conversations failed, and the first reason.
async fn flood(to: SocketAddr, count: usize, width: usize) -> (usize, String) {
    let permits = Arc::new(Semaphore::new(width));
    let mut talks = JoinSet::new();
    let (mut failed, mut why) = (0, String::new());
    let mut note = |ended: Result<std::io::Result<()>, tokio::task::JoinError>| {
        if let Err(error) = ended.map_err(std::io::Error::other).flatten() {
            failed += 1;
            why = error.to_string();
        }
    };
    for _ in 0..count {
        let permit = permits.clone().acquire_owned().await.expect("it is never closed");
        talks.spawn(async move {
            let done = timeout(Duration::from_secs(30), talk(to)).await;
            drop(permit);
            done.unwrap_or_else(|_| Err(std::io::Error::other("no answer within 30 s")))
        });
        while let Some(ended) = talks.try_join_next() {
            note(ended);
        }
    }
    while let Some(ended) = talks.join_next().await {
        note(ended);
    }
    (failed, why)
}

/// Descriptors, and what the metrics call open.
async fn level(sidecar: &Intercepted) -> (usize, f64) {
    let active = sidecar.metric("envoy_cluster_upstream_cx_active").await;
    (sidecar.descriptors(), active.iter().map(|(_, value)| value).sum())
}

async fn listening(pair: &Pair) -> [SocketAddr; 2] {
    let addresses = pair.server.host.addresses().map(|address| SocketAddr::new(address, 7000));
    for address in addresses {
        pair.server.host.run(teller(address)).await;
    }
    addresses
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_connections_leave_no_descriptor_and_no_task() {
    let Some(pair) = Pair::start(&[7000], Workload::default()).await else { return };
    let addresses = listening(&pair).await;
    for address in addresses {
        let first = pair.client.host.run(flood(address, 100, WIDTH)).await;
        assert_eq!(first, (0, String::new()));
    }
    let mut before = Vec::new();
    for sidecar in [&pair.client, &pair.server] {
        before.push(settled(sidecar).await);
    }
    let began = Instant::now();
    for address in addresses {
        let ended = pair.client.host.run(flood(address, CONNECTIONS, WIDTH)).await;
        assert_eq!(ended, (0, String::new()), "failures over {address}");
    }
    let took = began.elapsed();
    println!("{} connections in {took:.1?}, {:.0} a second", 2 * CONNECTIONS, 2e4 / took.as_secs_f64());
    for (sidecar, before) in [&pair.client, &pair.server].into_iter().zip(before) {
        let now = eventually(&format!("the {}'s sidecar is as it was", sidecar.service), || async {
            let now = level(sidecar).await;
            if now.0 <= before.0 && now.1 <= before.1 {
                Ok(now)
            } else {
                Err(format!("{before:?}, now {now:?}"))
            }
        })
        .await;
        println!("{}: {before:?} before, {now:?} after", sidecar.service);
    }
}

/// The level once nothing is under way.
async fn settled(sidecar: &Intercepted) -> (usize, f64) {
    eventually("nothing is under way", || async {
        let now = level(sidecar).await;
        if now.1 == 0.0 { Ok(now) } else { Err(format!("{now:?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_ran_out_of_descriptors_serves_again() {
    let few = Workload { open_files: Some(128), ..Workload::default() };
    let Some(pair) = Pair::start(&[7000], few).await else { return };
    let addresses = listening(&pair).await;
    let client = pair.client.host.clone();
    assert_eq!(client.run(flood(addresses[0], 10, 1)).await.0, 0);
    // Four hundred that stay open: more than either sidecar has descriptors for.
    let held = client.run(async move {
        let mut held = Vec::new();
        for number in 0..400 {
            if let Ok(Ok(stream)) =
                timeout(Duration::from_secs(5), TcpStream::connect(addresses[number % 2])).await
            {
                held.push(stream);
            }
        }
        held
    });
    let held = held.await;
    eventually("both have met their limit", || async {
        let counts = (pair.client.descriptors(), pair.server.descriptors());
        let log = pair.client.log();
        if log.contains("cannot accept") { Ok(()) } else { Err(format!("{counts:?} descriptors, {log}")) }
    })
    .await;
    println!(
        "{} connections held, {} and {} descriptors",
        held.len(),
        pair.client.descriptors(),
        pair.server.descriptors()
    );
    // Sockets belong to the runtime that made them.
    client.run(async move { drop(held) }).await;
    for address in addresses {
        eventually("the pair serves again", || async {
            match client.run(flood(address, 50, 4)).await {
                (0, _) => Ok(()),
                (failed, why) => Err(format!("{failed} failed: {why}")),
            }
        })
        .await;
    }
}
