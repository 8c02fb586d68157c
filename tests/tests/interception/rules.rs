//! The rules in the kernel: they leave nothing behind, they come with a dry run, and without a sidecar they let nothing through.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use outrigger_tests::app::teller;
use outrigger_tests::netns::workload::{Intercepted, Workload};
use outrigger_tests::netns::{Host, Net};
use outrigger_tests::require;
use outrigger_tests::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{MARKER, Pair, at, curl, hears, nginx};
use crate::BINARY;

/// All that `ip` knows beside the packet filter.
fn routing(host: &Host) -> String {
    let lists = ["-4 rule show", "-6 rule show", "-4 route show table all", "-6 route show table all"];
    let ask = |words: &str| host.ask(Path::new("ip"), &words.split(' ').collect::<Vec<_>>()).unwrap();
    let all: String = lists.into_iter().map(ask).collect();
    // The kernel adds the link's own address when it has found it unique, which takes a while.
    all.lines().filter(|line| !line.contains("fe80:")).map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_twice_and_removing_leaves_the_rules_as_they_were() {
    if !require::netns() || require::tool("nft").is_none() {
        return;
    }
    let net = Net::new();
    let host = net.host("host");
    let foreign = "table inet foreign {
\tchain input {
\t\ttype filter hook input priority filter; policy accept;
\t\ttcp dport 9999 counter packets 0 bytes 0 drop
\t}
}
";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), foreign).unwrap();
    host.ask(Path::new("nft"), &["-f", &file.path().display().to_string()]).unwrap();
    let before = (host.ruleset(), routing(&host));
    assert_eq!(before.0, foreign);
    let intercept = |args: &[&str]| host.ask(Path::new(BINARY), &[&["intercept"], args].concat());
    for mode in ["redirect", "tproxy"] {
        let planned = intercept(&["apply", "--mode", mode, "--dry-run"]).unwrap();
        assert!(planned.contains("15006") && planned.contains("1337"), "{planned}");
        assert_eq!((host.ruleset(), routing(&host)), before, "a dry run does nothing");
        intercept(&["show"]).expect_err("there is nothing to show");
        intercept(&["apply", "--mode", mode]).unwrap();
        let once = (host.ruleset(), routing(&host));
        assert!(once.0.starts_with(foreign) && once.0.len() > before.0.len(), "{}", once.0);
        assert_eq!(once.1 != before.1, mode == "tproxy", "{}", once.1);
        intercept(&["apply", "--mode", mode]).unwrap();
        assert_eq!((host.ruleset(), routing(&host)), once, "twice is once");
        assert!(once.0.contains(intercept(&["show"]).unwrap().trim()));
        intercept(&["remove"]).unwrap();
        assert_eq!((host.ruleset(), routing(&host)), before, "{mode} leaves nothing behind");
        intercept(&["remove"]).unwrap();
    }
    // From one mode to the other, without a gap and without a rest.
    for mode in ["tproxy", "redirect"] {
        intercept(&["apply", "--mode", mode]).unwrap();
    }
    assert_eq!(routing(&host), before.1);
    intercept(&["remove"]).unwrap();
    assert_eq!(host.ruleset(), before.0);
}

/// Sends back what it hears.
async fn parrot(listen: SocketAddr) {
    let listener = TcpListener::bind(listen).await.expect("the address is free");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
}

/// Whether the connection still carries a word there and back.
async fn lives(mut stream: TcpStream) -> std::io::Result<TcpStream> {
    let mut heard = [0; 4];
    stream.write_all(b"word").await?;
    tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut heard)).await??;
    assert_eq!(&heard, b"word");
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_added_is_intercepted_whatever_the_inclusions_name() {
    if !require::netns() || require::tool("nft").is_none() {
        return;
    }
    const PORTS: [u16; 3] = [7000, 7001, 7002];
    let net = Net::new();
    let (host, other) = (net.host("host"), net.host("other"));
    for address in other.addresses() {
        for port in PORTS {
            other.run(parrot(SocketAddr::new(address, port))).await;
        }
    }
    for (flags, taken) in [
        ("", [true; 3]),
        ("--also-outbound-ports 7000", [true; 3]),
        ("--include-outbound-cidrs none", [false; 3]),
        ("--include-outbound-cidrs none --also-outbound-ports 7000,7002", [true, false, true]),
        ("--include-outbound-ports 7001 --also-outbound-ports 7000", [true, true, false]),
        (
            "--include-outbound-cidrs none --also-outbound-ports 7000,7001 --exclude-outbound-ports 7000",
            [false, true, false],
        ),
    ] {
        let args: Vec<&str> = ["intercept", "apply"].into_iter().chain(flags.split_whitespace()).collect();
        host.ask(Path::new(BINARY), &args).unwrap();
        for address in other.addresses() {
            for (port, taken) in PORTS.into_iter().zip(taken) {
                let address = SocketAddr::new(address, port);
                // What is intercepted is the sidecar's, and there is none.
                let refused = host.run(TcpStream::connect(address)).await.map(drop).map_err(|e| e.kind());
                let expected = if taken { Err(std::io::ErrorKind::ConnectionRefused) } else { Ok(()) };
                assert_eq!(refused, expected, "{flags}: {address}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_open_before_the_rules_lives_on() {
    if !require::netns() || require::tool("nft").is_none() {
        return;
    }
    for mode in ["redirect", "tproxy"] {
        let net = Net::new();
        let (host, other) = (net.host("host"), net.host("other"));
        let mut open = Vec::new();
        for (from, to) in [(&host, &other), (&other, &host)] {
            for address in to.addresses() {
                let address = SocketAddr::new(address, 7000);
                to.run(parrot(address)).await;
                let stream = from.run(TcpStream::connect(address)).await.expect("nothing is in the way");
                open.push((from, address, from.run(lives(stream)).await.expect("it is open")));
            }
        }
        let apply = || host.ask(Path::new(BINARY), &["intercept", "apply", "--mode", mode]).unwrap();
        apply();
        for again in [false, true] {
            let mut still = Vec::new();
            for (from, address, stream) in open {
                let alive = from.run(lives(stream)).await;
                let alive = alive.unwrap_or_else(|e| panic!("{mode}, {} to {address}: {e}", from.name()));
                // What is new is the sidecar's, and there is none.
                let new = from.run(TcpStream::connect(address)).await.map(drop).map_err(|e| e.kind());
                assert_eq!(new, Err(std::io::ErrorKind::ConnectionRefused), "{mode}, {}", from.name());
                still.push((from, address, alive));
            }
            open = still;
            if !again {
                apply();
            }
        }
    }
}

async fn works(pair: &Pair) {
    for address in pair.server.host.addresses() {
        eventually("the server is reached", || async {
            let body = curl(&pair.client.host, &["--data", MARKER, &format!("http://{}", at(address, 80))])?;
            let text =
                hears(&pair.client.host, SocketAddr::new(address, 7000)).await.map_err(|e| e.to_string())?;
            if body.contains(MARKER) && text.contains(MARKER) {
                Ok(())
            } else {
                Err(format!("{body} {text}"))
            }
        })
        .await;
    }
}

async fn fails(from: &Host, to: IpAddr) {
    let url = format!("http://{}/{MARKER}", at(to, 80));
    let body = curl(from, &["--data", MARKER, &url]);
    body.expect_err("curl must fail without the sidecar");
    let said = hears(from, SocketAddr::new(to, 7000)).await;
    said.expect_err("nothing comes without the sidecar");
}

async fn in_and_out_fail_without(pair: &mut Pair, kill: impl Fn(&mut Pair) -> &mut Intercepted) {
    kill(pair).kill();
    for address in pair.server.host.addresses() {
        fails(&pair.client.host, address).await;
    }
}

async fn a_killed_sidecar_fails_its_workload_and_leaks_nothing_in_plain_text(mode: &str) {
    if require::tool("nginx").is_none() || require::tool("openssl").is_none() {
        return;
    }
    let Some(mut pair) = Pair::start(&[80, 7000], Workload { mode, ..Workload::default() }).await else {
        return;
    };
    let _nginx = nginx(&pair.mesh, &pair.server.host).await;
    for address in pair.server.host.addresses() {
        pair.server.host.run(teller(SocketAddr::new(address, 7000))).await;
    }
    let stranger = pair.net.host("stranger");
    let capture = pair.capture().await;
    works(&pair).await;

    // Outbound: the client's sidecar is gone, the application's connections have nowhere to go.
    in_and_out_fail_without(&mut pair, |pair| &mut pair.client).await;
    pair.client.start().await;
    works(&pair).await;

    // Inbound: the server's is gone; neither a peer nor a stranger gets through to the application.
    in_and_out_fail_without(&mut pair, |pair| &mut pair.server).await;
    for address in pair.server.host.addresses() {
        fails(&stranger, address).await;
    }
    // The server's own application cannot get out either.
    curl(&pair.server.host, &[&format!("http://{}", at(stranger.v4(), 80))]).expect_err("nothing gets out");
    pair.server.start().await;
    works(&pair).await;

    let wire = capture.so_far().await;
    for port in [80, 7000] {
        wire.only_tls(port).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(!wire.contains(MARKER), "what the programs said is on the wire");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_fails_its_workload_and_leaks_nothing_in_plain_text_under_redirect() {
    a_killed_sidecar_fails_its_workload_and_leaks_nothing_in_plain_text("redirect").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_fails_its_workload_and_leaks_nothing_in_plain_text_under_tproxy() {
    a_killed_sidecar_fails_its_workload_and_leaks_nothing_in_plain_text("tproxy").await;
}
