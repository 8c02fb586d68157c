//! Many new connections, one after another and at once: nothing of them is kept, and a sidecar without descriptors comes back.

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_tests::app::teller;
use outrigger_tests::netns::Host;
use outrigger_tests::netns::workload::{Intercepted, Workload};
use outrigger_tests::wait::eventually;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{ALONE, Pair};

/// In all.
const CONNECTIONS: usize = 20_000;
/// Spread over these, and over both families: one pair of addresses and one port would run short of ports to come from, while the
/// kernel still waits for the last of connections that are gone.
const PORTS: [u16; 8] = [7000, 7001, 7002, 7003, 7004, 7005, 7006, 7007];
/// With one of them.
const PATIENCE: Duration = Duration::from_secs(30);
/// At once.
const WIDTH: usize = 64;

/// Opens, says a word, hears it, closes.
async fn talk(to: SocketAddr) -> Result<(), String> {
    let connected = timeout(PATIENCE, TcpStream::connect(to)).await;
    let mut stream = connected.map_err(|_| "cannot connect in time")?.map_err(|e| format!("connect: {e}"))?;
    let own = stream.local_addr().map_err(|e| e.to_string())?;
    let mut heard = Vec::new();
    let talk = async {
        stream.write_all(b"word").await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut heard).await
    };
    let ended = timeout(PATIENCE, talk).await;
    let heard = String::from_utf8_lossy(&heard);
    match ended {
        Ok(Ok(_)) if heard.ends_with("\nword") => Ok(()),
        ended => Err(format!("{own} to {to} heard {heard:?}, then {ended:?}")),
    }
}

/// How many of `count` conversations failed, and the first reason.
async fn flood(to: SocketAddr, count: usize, width: usize) -> (usize, String) {
    let permits = Arc::new(Semaphore::new(width));
    let mut talks = JoinSet::new();
    let (mut failed, mut why) = (0, String::new());
    let mut note = |ended: Result<Result<(), String>, tokio::task::JoinError>| {
        if let Err(reason) = ended.map_err(|error| error.to_string()).flatten() {
            failed += 1;
            why = reason;
        }
    };
    for _ in 0..count {
        let permit = permits.clone().acquire_owned().await.expect("it is never closed");
        talks.spawn(async move {
            let done = talk(to).await;
            drop(permit);
            done
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

/// Descriptors, and tasks of its workers.
async fn level(sidecar: &Intercepted) -> (usize, f64) {
    let tasks = sidecar.metric("outrigger_worker_tasks").await;
    assert!(!tasks.is_empty(), "the metrics page has the workers' tasks");
    (sidecar.descriptors(), tasks.iter().map(|(_, value)| value).sum())
}

/// Where the server's application listens.
async fn listening(pair: &Pair, ports: &[u16]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for address in pair.server.host.addresses() {
        all.extend(ports.iter().map(|port| SocketAddr::new(address, *port)));
    }
    for address in &all {
        pair.server.host.run(teller(*address)).await;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_connections_leave_no_descriptor_and_no_task() {
    twenty_thousand_connections("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_connections_leave_no_descriptor_and_no_task_under_tproxy() {
    twenty_thousand_connections("tproxy").await;
}

async fn twenty_thousand_connections(mode: &str) {
    let Some(pair) = Pair::start(&PORTS, Workload { mode, ..Workload::default() }).await else { return };
    let addresses = listening(&pair, &PORTS).await;
    // What is made on first use is made now.
    for address in &addresses {
        assert_eq!(pair.client.host.run(flood(*address, 2 * WIDTH, WIDTH)).await, (0, String::new()));
    }
    let before = [settled(&pair.client).await, settled(&pair.server).await];
    let nobody_else = ALONE.lock().await;
    let began = Instant::now();
    for address in &addresses {
        let ended = pair.client.host.run(flood(*address, CONNECTIONS / addresses.len(), WIDTH)).await;
        if ended.0 > 0 {
            let mine = |line: &Value| {
                let source = line["downstream_remote_address"].as_str().unwrap_or_default();
                ended.1.starts_with(&format!("{source} ")) || !line["error"].is_null()
            };
            for sidecar in [&pair.client, &pair.server] {
                sidecar.access_log().iter().filter(|line| mine(line)).for_each(|line| println!("{line}"));
                // What the kernel dropped by itself, where two connections would have become one.
                let counters = sidecar.host.ask(Path::new("cat"), &["/proc/net/stat/nf_conntrack"]);
                println!("{}: {counters:?}", sidecar.service);
            }
        }
        assert_eq!(ended, (0, String::new()), "failures over {address}");
    }
    let took = began.elapsed();
    drop(nobody_else);
    for sidecar in [&pair.client, &pair.server] {
        assert_eq!(
            translated(&sidecar.host),
            Vec::<String>::new(),
            "ports of clients, on the {}",
            sidecar.service
        );
    }
    println!(
        "{CONNECTIONS} connections in {took:.1?}, {:.0} a second",
        CONNECTIONS as f64 / took.as_secs_f64()
    );
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
        println!("{}: {before:?} descriptors and tasks before, {now:?} after", sidecar.service);
    }
}

/// Connections whose client has another port to the kernel's eyes than to its own: such a port is given to somebody else once a FIN
/// has come twice, in mid-conversation.
fn translated(host: &Host) -> Vec<String> {
    let all =
        host.ask(Path::new("cat"), &["/proc/net/nf_conntrack"]).expect("the kernel lists what it tracks");
    let ports = |line: &str, name: &str| -> Vec<String> {
        line.split(' ').filter_map(|word| word.strip_prefix(name)).map(str::to_owned).collect()
    };
    let tracked: Vec<_> = all.lines().filter(|line| line.contains(" tcp ")).collect();
    assert!(tracked.len() > 1000, "{} connections are tracked", tracked.len());
    let kept = |line: &&&str| ports(line, "sport=").first() == ports(line, "dport=").last();
    tracked.iter().filter(|line| !kept(line)).map(|line| (*line).to_owned()).collect()
}

/// The lowest level of a second.
async fn settled(sidecar: &Intercepted) -> (usize, f64) {
    let lowest = Cell::new((usize::MAX, f64::MAX));
    let until = Instant::now() + Duration::from_secs(1);
    eventually("a second", || async {
        let (now, low) = (level(sidecar).await, lowest.get());
        lowest.set((low.0.min(now.0), low.1.min(now.1)));
        if Instant::now() > until { Ok(()) } else { Err("not yet over") }
    })
    .await;
    lowest.get()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_ran_out_of_descriptors_serves_again() {
    let few = Workload { open_files: Some((192, 192)), ..Workload::default() };
    let Some(pair) = Pair::start(&[7000], few).await else { return };
    let addresses = listening(&pair, &[7000]).await;
    let client = pair.client.host.clone();
    assert_eq!(client.run(flood(addresses[0], 10, 1)).await.0, 0);
    // More than a sidecar has descriptors for, through both, and then to the server's alone.
    let stranger = pair.net.host("stranger");
    for (from, sidecar) in [(&client, &pair.client), (&stranger, &pair.server)] {
        let held = from.run(hold(addresses.clone(), 300)).await;
        eventually(&format!("the {}'s sidecar has met its limit", sidecar.service), || async {
            let log = sidecar.log();
            // It gives up those that rest or have not begun before it meets the kernel's own limit.
            if log.contains("others need its place") { Ok(()) } else { Err(log) }
        })
        .await;
        println!("{} connections held, {} descriptors", held.len(), sidecar.descriptors());
        // Sockets belong to the runtime that made them.
        from.run(async move { drop(held) }).await;
        for address in &addresses {
            eventually("the pair serves again", || async {
                match client.run(flood(*address, 50, 4)).await {
                    (0, _) => Ok(()),
                    (failed, why) => Err(format!("{failed} failed: {why}")),
                }
            })
            .await;
        }
    }
}

/// A containerd 2 starts programs with a soft limit of 1,024, and a high hard one.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_serves_as_many_as_its_hard_limit_of_open_files_lets_it() {
    const MANY: usize = 600;
    let few = Workload { open_files: Some((256, 4096)), ..Workload::default() };
    let Some(pair) = Pair::start(&[7000], few).await else { return };
    // Client and application are in this process.
    let own = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: own.maximum, ..own }).unwrap();
    let address = listening(&pair, &[7000]).await[0];
    let client = pair.client.host.clone();
    let (begun, held) = client
        .run(async move {
            let (mut held, mut begun) = (Vec::new(), 0);
            for _ in 0..MANY {
                let mut stream = TcpStream::connect(address).await.unwrap();
                begun += usize::from(is_answered(&mut stream).await);
                held.push(stream);
            }
            let mut still = 0;
            for stream in &mut held {
                still += usize::from(is_answered(stream).await);
            }
            (begun, still)
        })
        .await;
    assert_eq!((begun, held), (MANY, MANY), "answered at their begin, and while all are held");
    for sidecar in [&pair.client, &pair.server] {
        assert!(!sidecar.log().contains("others need its place"), "{}", sidecar.log());
    }
}

/// Says a word, which is a line and so no beginning of a request, and waits until it comes back.
async fn is_answered(stream: &mut TcpStream) -> bool {
    let mut heard = Vec::new();
    let talk = async {
        stream.write_all(b"word\n").await?;
        while !heard.ends_with(b"word\n") {
            if stream.read_buf(&mut heard).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok::<_, std::io::Error>(())
    };
    timeout(PATIENCE, talk).await.is_ok_and(|ended| ended.is_ok())
}

/// Opens connections and leaves them so; those that nobody accepts wait in a queue of the kernel.
async fn hold(addresses: Vec<SocketAddr>, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for number in 0..count {
        let connect = TcpStream::connect(addresses[number % addresses.len()]);
        held.extend(timeout(Duration::from_secs(5), connect).await.ok().and_then(Result::ok));
    }
    held
}
